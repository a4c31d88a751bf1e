//! A trace of the built-in model has every phase, nested as it ran.

use std::collections::BTreeMap;

use super::*;
use crate::labs::mixed_requests;
use crate::record::Ceilings;

fn traced() -> Trace {
    let selection = Selection::all();
    let settings = TraceSettings { selection, mix: mixed_requests, engine: EngineSettings::default(), max_steps: 12 };
    record(&LabContext::default(), &settings).unwrap()
}

#[test]
fn every_phase_is_in_the_trace_and_lies_in_its_step() {
    let trace = traced();
    assert_eq!(trace.steps.len(), 12);
    for name in ["schedule", "prepare", "forward", "layer", "head", "sample", "detokenize"] {
        assert!(trace.spans.iter().any(|span| span.name == name), "{name} is missing");
    }
    let of = |name| trace.spans.iter().filter(move |span| span.name == name);
    let num_layers = of("layer").filter_map(|span| span.index).max().unwrap() + 1;
    assert_eq!(of("layer").count() as u64, num_layers * of("forward").count() as u64);
    for span in &trace.spans {
        let inside = |step: &Step| {
            span.start_s >= step.start_s && span.start_s + span.seconds <= step.start_s + step.seconds + 1e-9
        };
        assert!(trace.steps.iter().any(inside), "{span:?} lies in no step");
    }
    let forward: f64 = of("forward").map(|span| span.seconds).sum();
    let inside: f64 = of("layer").chain(of("head")).map(|span| span.seconds).sum();
    assert!(inside <= forward && inside > 0.5 * forward, "{inside} of {forward}");
}

#[test]
fn the_file_is_what_perfetto_reads() {
    let json = traced().to_chrome_json();
    let events = json["traceEvents"].as_array().unwrap();
    assert!(events.iter().any(|event| event["name"] == "layer 0"));
    for event in events.iter().filter(|event| event["ph"] == "X") {
        assert!(event["ts"].as_f64().unwrap() >= 0.0 && event["dur"].as_f64().unwrap() >= 0.0);
    }
}

#[test]
fn shares_add_up_and_the_nearer_ceiling_binds() {
    let trace = traced();
    let ceilings = |read_gbytes_per_s, peak| Ceilings {
        device: "cpu".into(),
        host: "host".into(),
        date: "2026-01-01T00:00:00Z".into(),
        read_gbytes_per_s,
        copy_gbytes_per_s: read_gbytes_per_s,
        peak_gflops_per_s: BTreeMap::from([("f32".to_owned(), peak)]),
    };
    let branch = |ceilings: &Ceilings| {
        let rows = phases(&trace, Some(ceilings));
        let whole: f64 = rows.iter().filter(|row| !matches!(row.phase, "layer" | "head")).map(|row| row.share).sum();
        assert!((whole - 1.0).abs() < 1e-6, "{whole}");
        rows.iter().find(|row| row.phase == "forward").unwrap().branch.unwrap()
    };
    assert_eq!(branch(&ceilings(1e-3, 1e9)), Branch::Memory);
    assert_eq!(branch(&ceilings(1e9, 1e-3)), Branch::Compute);
    assert_eq!(branch(&ceilings(1e9, 1e9)), Branch::Launch);
    assert!(phases(&trace, None).iter().filter(|row| row.phase == "forward").all(|row| row.branch.is_none()));
    assert!(table(&phases(&trace, None)).to_string().contains("detokenize"));
}
