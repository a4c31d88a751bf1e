//! The matrix comes from the registry, and its findings from samples.

use super::*;
use crate::record::{Workload, samples};

/// A record in which every arm takes the time that `seconds` gives it.
fn record(seconds: impl Fn(&Selection) -> f64) -> LabRecord {
    let run = samples::run("r", Ratio { ratio: 1.0, low: 1.0, high: 1.0 });
    let mut lab = run.labs[0].clone();
    lab.workload = Workload::default();
    let arms = StackingLab::arms();
    lab.baseline = samples::arm("none", &[seconds(&arms[0].selection); 6]);
    lab.variants.truncate(1);
    let template = lab.variants.remove(0);
    for arm in &arms[1..] {
        let mut variant = template.clone();
        variant.arm = samples::arm(&arm.name, &[seconds(&arm.selection); 6]);
        variant.speedup = stats::ratio_of_medians(&lab.baseline.samples_s, &variant.arm.samples_s, 0);
        variant.verdict = stats::judge(variant.speedup.unwrap(), 0.01);
        lab.variants.push(variant);
    }
    lab
}

fn row(matrix: &Matrix, switch: Optimization) -> &Row {
    matrix.rows.iter().find(|row| row.switch == switch.name()).unwrap()
}

#[test]
fn every_switch_has_three_cells_and_every_selection_one_arm() {
    let cells = cells();
    assert_eq!(cells.len(), 3 * Selection::all().iter().count());
    let arms = StackingLab::arms();
    assert_eq!(arms[0].selection, Selection::none());
    assert!(arms.iter().any(|arm| arm.selection == Selection::all()));
    for (at, arm) in arms.iter().enumerate() {
        assert!(!arms[..at].iter().any(|other| other.selection == arm.selection), "{} twice", arm.name);
    }
    for cell in &cells {
        assert_eq!(cell.selection.contains(cell.switch), cell.role != Role::AllMinusOne);
    }
}

#[test]
fn a_switch_that_loses_beside_others_is_found() {
    let (cb, paged) = (Optimization::ContinuousBatching, Optimization::PagedKv);
    // Each halves the time; together the second takes back what it gave.
    let matrix = matrix(
        &record(|selection| match (selection.contains(cb), selection.contains(paged)) {
            (false, false) => 4.0,
            (true, false) => 1.0,
            _ => 2.0,
        }),
        0,
    );
    assert_eq!(row(&matrix, paged).alone.verdict, Verdict::Faster);
    assert_eq!(row(&matrix, paged).in_stack.verdict, Verdict::Slower);
    assert_eq!(row(&matrix, paged).finding, Finding::Fights);
    assert_eq!(row(&matrix, cb).finding, Finding::Neutral);
    assert!(matrix.markdown().contains("| fights |"), "{}", matrix.markdown());
}

#[test]
fn a_wrong_arm_gives_no_ratio() {
    let mut record = record(|selection| 4.0 - selection.iter().count() as f64);
    let arms = StackingLab::arms();
    for (variant, arm) in record.variants.iter_mut().zip(&arms[1..]) {
        if arm.selection.contains(Optimization::PagedKv) {
            (variant.verdict, variant.speedup) = (Verdict::Wrong, None);
            variant.verdict_text = "wrong (tokens)".into();
        }
    }
    let matrix = matrix(&record, 0);
    assert_eq!(row(&matrix, Optimization::PagedKv).finding, Finding::Wrong);
    // What another switch adds to a stack that is wrong cannot be said either, however many switches there are.
    assert_eq!(row(&matrix, Optimization::ContinuousBatching).in_stack.speedup, None);
}

#[test]
fn the_plot_has_a_bar_with_an_interval_for_every_cell() {
    let matrix = matrix(&record(|selection| 4.0 - selection.iter().count() as f64), 0);
    let svg = crate::stacking_plot::svg(&matrix);
    assert_eq!(svg.matches("<rect").count(), 1 + 3 + 3 * matrix.rows.len());
    assert_eq!(svg.matches("class=\"interval\"").count(), 3 * matrix.rows.len());
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
}
