//! The README's table of optimizations is the registry's, with the gains of the last stacking matrix that was committed
//! as `expectations/stacking.json`. `UPDATE_README=1 cargo test -p aisp --test readme` rewrites it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::fmt::Write;
use std::path::Path;

use aisp_engine::Optimization;
use labs::expectations::{self, Expectation};
use labs::record::Ratio;
use labs::stacking::Matrix;
use labs::stats::verdict_text;

const BEGIN: &str = "<!-- optimizations: begin -->\n";
const END: &str = "<!-- optimizations: end -->";

fn table() -> String {
    let mut table =
        "| optimization | slot | on | baseline | what it does | outputs | gain alone | in the stack | on an H200 | source |\n|---|---|---|---|---|---|---|---|---|---|\n".to_owned();
    let matrix = matrix();
    let measured = |name: &str| matrix.as_ref().and_then(|matrix| matrix.rows.iter().find(|row| row.switch == name));
    for spec in Optimization::ALL.map(Optimization::spec) {
        let (name, slot, baseline, summary) = (spec.name, spec.slot, spec.baseline, spec.summary);
        let (exactness, source, devices) = (spec.exactness, spec.source, spec.devices);
        let (alone, in_stack) = measured(name)
            .map_or(("not measured", "not measured"), |row| (row.alone.text.as_str(), row.in_stack.text.as_str()));
        writeln!(
            table,
            "| `{name}` | {slot} | {devices} | {baseline} | {summary} | {exactness} | {alone} | {in_stack} | {} | {source} |",
            on_h200(name)
        )
        .unwrap();
    }
    if let Some(Matrix { workload, noise, .. }) = &matrix {
        writeln!(
            table,
            "\nMeasured by `aisp bench stacking` on {workload}, noise ±{:.1} %; on an H200 by `aisp bench run --device cuda \
             --targets switch:NAME`, each alone beside what it needs, over dummy:llama-3.2-1b ([expectations/h200](expectations/h200) \
             has commands and commits).",
            noise * 100.0
        )
        .unwrap();
    }
    table
}

/// What the lab of a switch showed there.
fn on_h200(name: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../expectations");
    let Some(Expectation { arms, .. }) = expectations::read(&dir, "h200", &format!("switch:{name}")).unwrap() else {
        return "not measured".to_owned();
    };
    let arm = arms.first().expect("an expectation has an arm");
    let speedup = Ratio { ratio: arm.speedup, low: arm.low, high: arm.high };
    verdict_text(arm.verdict, Some(speedup), arm.noise, "")
}

/// The matrix that was committed last; none before the first.
fn matrix() -> Option<Matrix> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../expectations/stacking.json");
    let text = std::fs::read_to_string(path).ok()?;
    Some(serde_json::from_str(&text).expect("expectations/stacking.json is a stacking matrix"))
}

#[test]
fn the_table_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let start = readme.find(BEGIN).expect("the README has a marker where the table begins") + BEGIN.len();
    let end = readme.find(END).expect("the README has a marker where the table ends");
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(&path, format!("{}{}{}", &readme[..start], table(), &readme[end..])).unwrap();
    } else {
        assert_eq!(&readme[start..end], table(), "run UPDATE_README=1 cargo test -p aisp --test readme");
    }
}
