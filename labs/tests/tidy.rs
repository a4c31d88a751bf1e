//! Rules of the house that a compiler does not check: layering, file length, where `unsafe` may stand.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

/// Longer files hold more than one idea.
const MAX_LINES: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() && !entry.ends_with("target") {
            rust_files(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

fn files_of(member: &str) -> Vec<(String, String)> {
    let root = root();
    let mut found = Vec::new();
    rust_files(&root.join(member), &mut found);
    let name = |path: &PathBuf| path.strip_prefix(&root).unwrap().display().to_string();
    found.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

const MEMBERS: [&str; 5] = ["kernels", "engine", "serve", "labs", "bench-client"];

/// Lines of `source` that break `rule`, as `file:line`.
fn offenders(files: &[(String, String)], rule: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let lines =
        files.iter().flat_map(|(name, source)| source.lines().enumerate().map(move |(at, line)| (name, at, line)));
    lines.filter(|(name, _, line)| rule(name, line)).map(|(name, at, _)| format!("{name}:{}", at + 1)).collect()
}

fn manifest(member: &str) -> String {
    fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap()
}

#[test]
fn crates_depend_only_downwards() {
    let forbidden = [
        ("kernels", vec!["aisp-engine", "aisp-serve", "tokio", "axum", "serde_json"]),
        ("engine", vec!["aisp-serve", "tokio", "axum", "hyper"]),
        ("serve", vec!["aisp-kernels", "candle-core", "candle-nn"]),
        ("bench-client", vec!["aisp-engine", "aisp-kernels", "aisp-serve", "candle-core"]),
    ];
    for (member, dependencies) in forbidden {
        let manifest = manifest(member);
        for dependency in dependencies {
            let named = manifest.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(dependency));
            assert!(!named, "{member} must not depend on {dependency}");
        }
    }
}

#[test]
fn bookkeeping_names_no_tensor_no_device_and_no_thread() {
    for folder in ["engine/src/scheduler", "engine/src/kv_cache"] {
        let names = |_: &str, line: &str| {
            !line.trim_start().starts_with("//")
                && ["candle", "Tensor", "Device", "std::thread", "Mutex"].iter().any(|word| line.contains(word))
        };
        assert_eq!(offenders(&files_of(folder), names), [""; 0], "{folder} is pure bookkeeping");
    }
}

#[test]
fn files_hold_one_idea() {
    for member in MEMBERS {
        for (name, source) in files_of(member) {
            let lines = source.lines().count();
            assert!(lines <= MAX_LINES, "{name} has {lines} lines, {MAX_LINES} is the limit: split it by idea");
            assert!(source.starts_with("//!") || name.contains("/tests"), "{name} does not say what it is");
        }
    }
}

#[test]
fn unsafe_stands_only_in_kernels() {
    for member in MEMBERS {
        assert!(manifest(member).contains("[lints]\nworkspace = true"), "{member} does not take the workspace's lints");
        for root_file in ["src/lib.rs", "src/main.rs"] {
            let path = root().join(member).join(root_file);
            if member != "kernels" && path.exists() {
                let source = fs::read_to_string(path).unwrap();
                assert!(source.contains("#![forbid(unsafe_code)]"), "{member}/{root_file} allows unsafe code");
            }
        }
    }
}

#[test]
fn nothing_is_left_open() {
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["todo", "!("].concat(), ["dbg", "!("].concat()];
    for member in MEMBERS {
        let open = |_: &str, line: &str| words.iter().any(|word| line.contains(word.as_str()));
        assert_eq!(offenders(&files_of(member), open), [""; 0]);
    }
}

#[test]
fn an_offender_is_found() {
    let files = vec![("a.rs".to_owned(), "fn a() {}\nlet t: Tensor;\n".to_owned())];
    assert_eq!(offenders(&files, |_, line| line.contains("Tensor")), ["a.rs:2"]);
}
