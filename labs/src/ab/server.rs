//! An `aisp-serve` process under measurement: started on a free port, asked what engaged, killed at the end.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use aisp_engine::{DeviceChoice, ModelSource, Selection};
use serde::Deserialize;
use serde_json::Value;

use crate::child::Supervised;
use crate::record::EngagedRecord;
use crate::{LabError, memory};

/// Name of the server's binary.
const BINARY: &str = "aisp-serve";

/// Lines of the server's log that an error shows.
const SHOWN_LINES: usize = 3;

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The binary.
    pub binary: PathBuf,
    /// What it serves.
    pub model: ModelSource,
    /// Where it runs.
    pub device: DeviceChoice,
    /// Its switches.
    pub selection: Selection,
    /// Sequences in a step.
    pub max_num_seqs: usize,
    /// Tokens that prompt and answer may have together.
    pub max_model_len: usize,
    /// Bytes of its KV cache.
    pub kv_cache_bytes: u64,
    /// Threads that compute.
    pub threads: usize,
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    process: Supervised,
    base_url: String,
}

/// Finds the server: as given, or beside the running executable.
///
/// Errors: it is not there.
pub fn find_binary(given: Option<&Path>) -> Result<PathBuf, LabError> {
    let own = std::env::current_exe().unwrap_or_default();
    // Tests run from a folder below.
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join(BINARY));
    let found =
        given.map(Path::to_owned).into_iter().chain(beside.take_while(|_| given.is_none())).find(|p| p.is_file());
    found.ok_or_else(|| {
        let place = given.map_or("beside this program".to_owned(), |path| format!("at {}", path.display()));
        LabError::Input(format!("{BINARY} is not {place}: cargo build --release -p {BINARY}, or name it with --server"))
    })
}

impl Server {
    /// Starts a server and waits until it listens with its model loaded.
    ///
    /// Errors: it cannot be started, or ends before it listens.
    pub fn start(settings: &ServerSettings) -> Result<Self, LabError> {
        let mut command = Command::new(&settings.binary);
        command.args(["--port", "0", "--host", "127.0.0.1"]);
        command.args(["--model", &settings.model.to_string(), "--optimizations", &settings.selection.to_string()]);
        command.args(["--device", &settings.device.to_string()]);
        command.args(["--max-num-seqs", &settings.max_num_seqs.to_string()]);
        command.args(["--max-model-len", &settings.max_model_len.to_string()]);
        command.args(["--kv-cache-memory-bytes", &settings.kv_cache_bytes.to_string()]);
        command.args(["--threads", &settings.threads.to_string()]);
        command.env_remove("AISP_API_KEY").env("RUST_LOG", "warn");
        // Its own group: Ctrl-C comes to the lab, which then ends both servers itself.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let start = Supervised::spawn(&mut command, |child| (child.stdout.take(), child.stderr.take()));
        let (process, (stdout, stderr)) = start.map_err(LabError::io(&settings.binary))?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.into_iter().flat_map(|pipe| BufReader::new(pipe).lines()).map_while(Result::ok) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(line);
                if kept.len() > SHOWN_LINES {
                    kept.pop_front();
                }
            }
        });
        let mut lines = stdout.into_iter().flat_map(|pipe| BufReader::new(pipe).lines()).map_while(Result::ok);
        let listening = lines.find_map(|line| line.strip_prefix("listening on ").map(str::to_owned));
        let Some(base_url) = listening else {
            let log = log.lock().unwrap_or_else(PoisonError::into_inner);
            let message = format!("it ended before it listened: {}", Vec::from_iter(log.iter().cloned()).join("; "));
            return Err(LabError::System { what: BINARY, message });
        };
        // What follows must be read, or the server would wait for its reader.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(Self { process, base_url: base_url.trim().to_owned() })
    }

    /// Where it listens.
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// Starts its resident peak anew.
    pub fn reset_peak_rss(&self) {
        // Where the system refuses, the peak covers more: an upper bound.
        let _ = fs::write(format!("/proc/{}/clear_refs", self.process.pid()), "5");
    }

    /// Most resident memory since [`Server::reset_peak_rss`].
    pub fn peak_rss_bytes(&self) -> Option<u64> {
        memory::kibibytes_of(&fs::read_to_string(format!("/proc/{}/status", self.process.pid())).ok()?, "VmHWM:")
    }

    /// Whether each switch that was asked for ran.
    ///
    /// Errors: no answer.
    pub fn engaged(&self) -> Result<Vec<EngagedRecord>, LabError> {
        let mut answer = ureq::get(format!("{}/v1/optimizations", self.base_url)).call().map_err(http)?;
        let text = answer.body_mut().read_to_string().map_err(http)?;
        let list: Statuses = serde_json::from_str(&text).map_err(|error| http(error.to_string()))?;
        let asked = list.data.into_iter().filter(|status| status.requested);
        Ok(asked.map(|status| status.engaged).collect())
    }

    /// Posts a completion and returns its JSON.
    ///
    /// Errors: no answer, or one that is an error.
    pub fn complete(&self, body: &Value) -> Result<Value, LabError> {
        let url = format!("{}/v1/completions", self.base_url);
        let request = ureq::post(url).content_type("application/json").config().http_status_as_error(false).build();
        let mut answer = request.send(body.to_string()).map_err(http)?;
        let text = answer.body_mut().read_to_string().map_err(http)?;
        if !answer.status().is_success() {
            return Err(http(format!("{}: {text}", answer.status())));
        }
        serde_json::from_str(&text).map_err(|error| http(error.to_string()))
    }
}

fn http(error: impl ToString) -> LabError {
    LabError::System { what: BINARY, message: error.to_string() }
}

#[derive(Deserialize)]
struct Statuses {
    data: Vec<Status>,
}

#[derive(Deserialize)]
struct Status {
    requested: bool,
    #[serde(flatten)]
    engaged: EngagedRecord,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_server_says_how_to_get_one() {
        let error = find_binary(Some(Path::new("/nowhere/aisp-serve"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/aisp-serve") && error.contains("cargo build"), "{error}");
    }

    #[test]
    fn a_server_that_ends_at_once_is_an_error() {
        let settings = ServerSettings {
            binary: "/bin/false".into(),
            model: ModelSource::Builtin,
            device: DeviceChoice::Cpu,
            selection: Selection::none(),
            max_num_seqs: 1,
            max_model_len: 8,
            kv_cache_bytes: 1 << 20,
            threads: 1,
        };
        assert!(Server::start(&settings).unwrap_err().to_string().contains("ended before it listened"));
    }
}
