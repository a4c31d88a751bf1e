//! Every lab is well-formed, and every arm of every lab passes its gate in one iteration.

use std::collections::BTreeSet;

use super::*;
use crate::gate::Gate;
use crate::lab::LabContext;

fn ids(targets: &[&str]) -> Vec<String> {
    let targets: Vec<String> = targets.iter().map(|&target| target.to_owned()).collect();
    matching(&targets).unwrap().iter().map(|lab| lab.info().id).collect()
}

#[test]
fn ids_are_unique_and_have_an_area() {
    let ids: Vec<String> = all().iter().map(|lab| lab.info().id).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
    assert!(ids.iter().all(|id| id.split(':').count() == 2), "{ids:?}");
    for optimization in Optimization::ALL {
        assert!(ids.contains(&format!("switch:{}", optimization.name())), "a switch has no lab");
    }
}

#[test]
fn targets_are_ids_areas_or_all() {
    assert_eq!(ids(&["all"]).len(), all().len());
    assert_eq!(ids(&["ch13"]), ["ch13:kv_cache"]);
    assert_eq!(ids(&["ch13:kv_cache", "ch13"]), ["ch13:kv_cache"]);
    assert!(matching(&["ch99".to_owned()]).is_err());
    assert!(matching(&["ch1".to_owned()]).is_err());
}

#[test]
fn every_arm_of_every_lab_passes_its_gate() {
    let context = LabContext::default();
    for lab in matching_on(&["all".to_owned()], context.device.kind()).unwrap() {
        let info = lab.info();
        let mut experiment = lab.prepare(&context).unwrap();
        let workload = experiment.workload();
        assert_eq!(workload.fingerprint.len(), 16, "{}: the workload is not frozen", info.id);
        let mut reference = None;
        for (arm, spec) in experiment.arms().iter().enumerate() {
            experiment.set_up(arm).unwrap();
            let measured = experiment.run(arm).unwrap();
            assert_eq!(measured.inputs, workload.fingerprint, "{}/{}", info.id, spec.name);
            let mut gate = Gate::new(&info.tolerance);
            gate.compare(reference.get_or_insert(measured.outputs.clone()), &measured.outputs);
            assert!(gate.passed(), "{}/{}: {}", info.id, spec.name, gate.why_wrong());
            let engaged: Vec<_> = measured.engaged.iter().filter(|e| e.engaged).map(|e| e.name.clone()).collect();
            assert_eq!(engaged, spec.requested, "{}/{}: requested but not engaged", info.id, spec.name);
        }
    }
}
