//! The `openai` Python package against the real binary. The package goes into a virtual environment under `target/`.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod process;

use std::path::{Path, PathBuf};
use std::process::Command;

use process::Server;

/// The version that the test was written against.
const PACKAGE: &str = "openai==3.52.0";

/// The virtual environment's Python, made on first use. None where Python or the package cannot be had.
fn python() -> Option<PathBuf> {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-venv");
    let python = environment.join("bin/python");
    let has_package = |python: &Path| {
        Command::new(python).args(["-c", "import openai"]).output().is_ok_and(|output| output.status.success())
    };
    if has_package(&python) {
        return Some(python);
    }
    let run = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    // Some systems ship Python without `venv`.
    let made = run(Command::new("python3").args(["-m", "venv"]).arg(&environment))
        || run(Command::new("python3").args(["-m", "virtualenv"]).arg(&environment));
    let installed = made && run(Command::new(&python).args(["-m", "pip", "install", "--quiet", PACKAGE]));
    (installed && has_package(&python)).then_some(python)
}

#[test]
fn the_openai_package_works() {
    let Some(python) = python() else {
        // Never silently green: whoever has no package registry says so.
        assert!(std::env::var_os("AISP_OFFLINE").is_some(), "{PACKAGE} cannot be installed; AISP_OFFLINE=1 skips this");
        eprintln!("skipped: AISP_OFFLINE is set and {PACKAGE} is not here");
        return;
    };
    const KEY: &str = "key-of-this-test";
    let server = Server::start(&["--max-num-seqs", "1", "--max-num-queued-reqs", "1", "--api-key", KEY], &[]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client.py");
    let base_url = format!("http://{}/v1", server.address);
    let output = Command::new(python).arg(script).args([&base_url, KEY]).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    assert_eq!(stdout.lines().count(), 9, "{stdout}");
}
