//! The README's table of optimizations is the registry's. `UPDATE_README=1 cargo test -p aisp --test readme` rewrites it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::fmt::Write;
use std::path::Path;

use aisp_engine::Optimization;

const BEGIN: &str = "<!-- optimizations: begin -->\n";
const END: &str = "<!-- optimizations: end -->";

fn table() -> String {
    let mut table =
        "| optimization | slot | baseline | what it does | outputs | source |\n|---|---|---|---|---|---|\n".to_owned();
    for spec in Optimization::ALL.map(Optimization::spec) {
        let (name, slot, baseline, summary) = (spec.name, spec.slot, spec.baseline, spec.summary);
        let (exactness, source) = (spec.exactness, spec.source);
        writeln!(table, "| `{name}` | {slot} | {baseline} | {summary} | {exactness} | {source} |").unwrap();
    }
    table
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
