//! What `aisp bench run --profile` adds to a run: a trace of the engine's steps, and the system's own profilers where
//! they are installed.

use std::path::Path;
use std::process::{Command, Stdio};

use aisp_engine::Selection;
use clap::ValueEnum;

use crate::lab::LabContext;
use crate::labs::{EngineSettings, mixed_requests};
use crate::record::Ceilings;
use crate::trace::{TraceSettings, phases, record, table};
use crate::{LabError, artifacts};

/// Steps that a trace beside a run has.
const NUM_STEPS: usize = 100;

/// How much is looked at beside the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Profile {
    /// Nothing
    #[default]
    None,
    /// A trace of the engine's steps
    Minimal,
    /// The trace, and perf, nsys and ncu where they are installed
    Deep,
}

/// A profiler and how it is called in front of a command; `{out}` is its file.
const PROFILERS: [(&str, &[&str], &str); 3] = [
    ("perf", &["record", "--quiet", "-g", "-o", "{out}", "--"], "perf.data"),
    ("nsys", &["profile", "--force-overwrite=true", "-o", "{out}"], "nsys"),
    ("ncu", &["--force-overwrite", "-o", "{out}"], "ncu"),
];

/// Profiles beside a run whose folder is `dir`; returns what was found and what was not. `again` are the arguments that
/// run the same targets once more under a profiler.
///
/// Errors: a trace that cannot be recorded or written.
pub fn profile(
    profile: Profile,
    context: &LabContext,
    ceilings: Option<&Ceilings>,
    dir: &Path,
    again: &[String],
) -> Result<String, LabError> {
    if profile == Profile::None {
        return Ok(String::new());
    }
    let settings = TraceSettings {
        selection: Selection::all(),
        mix: mixed_requests,
        engine: EngineSettings::default(),
        max_steps: NUM_STEPS,
    };
    let trace = record(context, &settings)?;
    let path = dir.join("trace.json");
    artifacts::write_json(&path, &trace.to_chrome_json())?;
    let mut text = format!("{}\ntrace written to {}\n", table(&phases(&trace, ceilings)), path.display());
    if profile == Profile::Deep {
        for (program, arguments, file) in PROFILERS {
            text += &format!("{}\n", under(program, arguments, &dir.join(file), again));
        }
    }
    Ok(text)
}

/// Runs this program again under a profiler; says what came of it.
fn under(program: &str, arguments: &[&str], out: &Path, again: &[String]) -> String {
    let silent =
        |command: &mut Command| command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if silent(Command::new(program).arg("--version")).is_err() {
        return format!("{program} is not installed: no {program} profile");
    }
    let Ok(own) = std::env::current_exe() else { return format!("{program}: this program does not know its own path") };
    let arguments = arguments.iter().map(|argument| argument.replace("{out}", &out.display().to_string()));
    match silent(Command::new(program).args(arguments).arg(own).args(again)) {
        Ok(status) if status.success() => format!("{program} profile written to {}", out.display()),
        Ok(status) => format!("{program} ended with {status}: no {program} profile"),
        Err(error) => format!("{program} could not be started: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profiler_that_is_not_there_is_said() {
        let text = under("no-such-profiler", &[], Path::new("/tmp/x"), &[]);
        assert_eq!(text, "no-such-profiler is not installed: no no-such-profiler profile");
    }
}
