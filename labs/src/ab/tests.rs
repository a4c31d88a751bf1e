//! A/B runs on the built-in model; over HTTP with the real server, built beside this test.

use super::*;
use crate::harness::{Harness, HarnessConfig};
use crate::progress::Silent;
use crate::record::{LabRecord, Verdict};

fn ab(a: &str, b: &str, front: Front) -> AbLab {
    AbLab { a: a.parse().unwrap(), b: b.parse().unwrap(), front, settings: AbSettings::default() }
}

fn run(lab: &AbLab) -> LabRecord {
    let budget = std::time::Duration::ZERO;
    let config = HarnessConfig { num_replicates: 3, num_warmups: 1, budget, ceilings: None };
    let harness = Harness { config, context: LabContext::default(), progress: &Silent };
    harness.run(lab).unwrap().unwrap()
}

#[test]
fn stacks_are_compared_in_every_figure() {
    let lab = ab("none", "all", Front::InProcess);
    let record = run(&lab);
    assert_ne!(record.variants[0].verdict, Verdict::Wrong, "{}", record.variants[0].verdict_text);
    let page = markdown(&record, &lab, 0);
    let wanted =
        ["output tokens/s", "TTFT p50", "TPOT p50", "ITL p50", "goodput", "peak memory", "USD per million tokens"];
    for figure in wanted {
        assert!(page.contains(figure), "{figure} is not in {page}");
    }
    for figure in figures(&record, 0) {
        for side in [Some(figure.a), Some(figure.b), figure.b_over_a].into_iter().flatten() {
            assert!(side.low <= side.ratio && side.ratio <= side.high && side.ratio.is_finite(), "{figure:?}");
        }
    }
    assert!(front_shares(&record, &lab, 0).is_empty());
}

#[test]
fn both_fronts_give_the_same_tokens_and_the_share_is_known() {
    let lab = ab("none", "none", Front::Http);
    let record = run(&lab);
    let verdicts: Vec<_> = record.variants.iter().map(|variant| &variant.verdict_text).collect();
    assert!(record.variants.iter().all(|variant| variant.verdict != Verdict::Wrong), "{verdicts:?}");
    let arms: Vec<_> = record.variants.iter().map(|variant| variant.arm.name.as_str()).collect();
    assert_eq!(arms, ["b: none", "a in process: none", "b in process: none"]);
    assert_eq!(front_shares(&record, &lab, 0).len(), 2);
    assert!(markdown(&record, &lab, 0).contains("HTTP front end of a: none"));
}

#[test]
fn a_wrong_side_gets_no_figure() {
    let mut record = run(&ab("none", "none", Front::InProcess));
    record.variants[0].verdict = Verdict::Wrong;
    record.variants[0].verdict_text = "wrong (1 of 3 tokens differ)".into();
    assert!(figures(&record, 0).is_empty());
    let page = markdown(&record, &ab("none", "none", Front::InProcess), 0);
    assert!(page.contains("wrong (1 of 3") && !page.contains("tokens/s"), "{page}");
}
