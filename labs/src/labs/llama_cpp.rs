//! `peer:llama_cpp_*`: llama.cpp's own benchmark programs and this engine on the same GGUF file, threads and KV type, in
//! turns. There only where `LLAMA_CPP_BIN` names the folder of its programs (`labs/peers/llama-cpp/setup.sh`).
//!
//! What is compared is speed: both count tokens. Whether both answer alike is `labs/peers/llama-cpp/compare.py`'s.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use aisp_engine::{Engine, ModelSource, Optimization, Request, SamplingParams, Selection, TokenId};

use super::engine_experiment::engaged;
use crate::LabError;
use crate::gate::{Outputs, Tolerance};
use crate::lab::{ArmSpec, Experiment, Lab, LabContext, LabInfo, Measured};
use crate::record::{Goal, Workload};
use crate::roofline::ArmWork;

/// Names the folder of llama.cpp's programs.
const BIN_VARIABLE: &str = "LLAMA_CPP_BIN";

/// What both do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A prompt of 512 tokens.
    Prefill,
    /// 128 tokens of an answer to an empty prompt.
    Decode,
    /// 32 tokens of an answer after 2048 others.
    DecodeDeep,
    /// 64 tokens of each of 8 answers at once.
    Streams,
}

impl Work {
    const ALL: [Self; 4] = [Self::Prefill, Self::Decode, Self::DecodeDeep, Self::Streams];

    fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill_512",
            Self::Decode => "decode_128",
            Self::DecodeDeep => "decode_at_2048",
            Self::Streams => "decode_8_streams",
        }
    }

    /// Prompt tokens, answer tokens and answers at once. A prompt alone is timed to its first token.
    fn lengths(self) -> (usize, usize, usize) {
        match self {
            Self::Prefill => (512, 0, 1),
            Self::Decode => (1, 128, 1),
            Self::DecodeDeep => (2048, 32, 1),
            Self::Streams => (16, 64, 8),
        }
    }

    fn num_timed_tokens(self) -> usize {
        let (prompt, answer, streams) = self.lengths();
        if answer == 0 { prompt } else { answer * streams }
    }
}

/// The labs, where llama.cpp is installed.
pub fn installed() -> Vec<Box<dyn Lab>> {
    let Some(bin) = std::env::var_os(BIN_VARIABLE).map(PathBuf::from) else { return Vec::new() };
    Work::ALL.into_iter().map(|work| Box::new(LlamaCppLab { work, bin: bin.clone() }) as Box<dyn Lab>).collect()
}

/// The lab.
#[derive(Debug, Clone)]
pub struct LlamaCppLab {
    work: Work,
    bin: PathBuf,
}

impl Lab for LlamaCppLab {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: format!("peer:llama_cpp_{}", self.work.name()),
            summary: "llama.cpp and this engine on the same file, threads and KV type".into(),
            goal: Goal::Throughput,
            tags: vec!["peer".into()],
            tolerance: Tolerance::exact("the number of tokens that each computed"),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let bad = |message: String| LabError::BadLab { lab: self.info().id, message };
        let ModelSource::Gguf(model) = context.model.clone() else {
            return Err(bad(format!("llama.cpp reads GGUF files; name one with --model, not {}", context.model)));
        };
        let program = self.bin.join(if self.work == Work::Streams { "llama-batched-bench" } else { "llama-bench" });
        if !program.is_file() {
            return Err(bad(format!("{} is not there; {BIN_VARIABLE} names the wrong folder", program.display())));
        }
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Box::new(LlamaCpp { work: self.work, program, model, num_threads, engine: None, least: None }))
    }
}

struct LlamaCpp {
    work: Work,
    program: PathBuf,
    model: PathBuf,
    num_threads: usize,
    engine: Option<Engine>,
    /// Of a pass of the engine. llama.cpp's is held to be the same: the same file and as many tokens.
    least: Option<ArmWork>,
}

impl LlamaCpp {
    /// Everything on, keys and values in f16 as llama.cpp has them; no prompt is known beforehand.
    fn selection() -> Selection {
        let all = Selection::all().without(Optimization::KvFp8).without(Optimization::PrefixCache);
        Selection::closed(all.iter().chain([Optimization::KvF16]))
    }

    fn peer(&self) -> Result<Duration, LabError> {
        let (prompt, answer, streams) = self.work.lengths();
        let mut command = Command::new(&self.program);
        command.arg("-m").arg(&self.model).args(["-t", &self.num_threads.to_string()]);
        let (key, unit) = if self.work == Work::Streams {
            let lengths = [prompt, answer, streams].map(|length| length.to_string());
            command.args(["-c", "2048", "-npp", &lengths[0], "-ntg", &lengths[1], "-npl", &lengths[2]]);
            command.args(["--output-format", "jsonl"]);
            ("t_tg", 1.0)
        } else {
            let (p, n, d) = match self.work {
                Work::Prefill => (prompt, 0, 0),
                _ => (0, answer, if prompt > 1 { prompt } else { 0 }),
            };
            let lengths = [p, n, d].map(|length| length.to_string());
            command.args(["-p", &lengths[0], "-n", &lengths[1], "-d", &lengths[2], "-r", "1", "-o", "jsonl"]);
            ("avg_ns", 1e-9)
        };
        let failed = |message: String| LabError::System { what: "llama.cpp", message };
        let output = command.output().map_err(|error| failed(error.to_string()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        let line = said.lines().rev().find(|line| line.trim_start().starts_with('{')).unwrap_or_default();
        let json: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        let seconds = json.get(key).and_then(serde_json::Value::as_f64).map(|value| value * unit);
        seconds.filter(|seconds| *seconds > 0.0).map(Duration::from_secs_f64).ok_or_else(|| {
            let errors = String::from_utf8_lossy(&output.stderr);
            failed(format!("no time in its output: {}", errors.lines().next_back().unwrap_or("it said nothing")))
        })
    }

    fn ours(&mut self) -> Result<(Duration, usize), LabError> {
        let (prompt, answer, streams) = self.work.lengths();
        let Some(engine) = &mut self.engine else {
            return Err(LabError::System { what: "engine", message: "was not set up".into() });
        };
        let vocab_size = engine.model_info().vocab_size as u32;
        for stream in 0..streams as u32 {
            let tokens: Vec<TokenId> =
                (0..prompt as u32).map(|at| (at * 7919 + stream * 104_729) % vocab_size).collect();
            let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy(answer + 1) };
            engine.add_request(Request::new(tokens, params)).map_err(aisp_engine::EngineError::from)?;
        }
        let before = engine.stats().work;
        let started = Instant::now();
        let mut num_first = 0;
        while num_first < streams {
            num_first += engine.step()?.len();
        }
        if answer == 0 {
            let duration = started.elapsed();
            self.least = Some(ArmWork::since(&before, engine));
            return Ok((duration, prompt));
        }
        let before = engine.stats().work;
        let (started, mut num_tokens) = (Instant::now(), 0);
        while engine.has_unfinished() {
            num_tokens += engine.step()?.len();
        }
        let duration = started.elapsed();
        self.least = Some(ArmWork::since(&before, engine));
        Ok((duration, num_tokens))
    }
}

impl Experiment for LlamaCpp {
    fn workload(&self) -> Workload {
        let tokens = self.work.num_timed_tokens();
        let file = self.model.file_name().map(Path::new).unwrap_or(&self.model).display();
        Workload {
            description: format!("{file}: {}, {} threads, KV in f16", self.work.name(), self.num_threads),
            fingerprint: format!("{file} {} {}", self.work.name(), self.num_threads),
            requests: Some(self.work.lengths().2 as u64),
            tokens: Some(tokens as u64),
            bytes: None,
            flops: None,
        }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        vec![ArmSpec::named("llama.cpp"), ArmSpec::stack("aisp", &Self::selection())]
    }

    fn set_up(&mut self, arm: usize) -> Result<(), LabError> {
        if arm == 1 {
            let (prompt, answer, streams) = self.work.lengths();
            let builder = Engine::builder().model(ModelSource::Gguf(self.model.clone()));
            let builder = builder.optimizations(Self::selection()).threads(Some(self.num_threads));
            let max_model_len = (prompt + answer + 2).next_multiple_of(64);
            self.engine = Some(builder.max_model_len(Some(max_model_len)).max_num_seqs(streams).build()?);
        }
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        let (duration, num_tokens) = match arm {
            0 => (self.peer()?, self.work.num_timed_tokens()),
            _ => self.ours()?,
        };
        // Tokens of random weights and prompts are not compared, only how many there were.
        let outputs = Outputs::Tokens(vec![vec![num_tokens as TokenId]]);
        let mut measured = Measured::new(duration, self.workload().fingerprint, outputs);
        if let (1, Some(engine)) = (arm, &self.engine) {
            measured.engaged = engaged(engine, &Self::selection());
        }
        measured.work = self.least;
        measured.metrics.insert("tokens_per_s".into(), num_tokens as f64 / duration.as_secs_f64());
        Ok(measured)
    }
}
