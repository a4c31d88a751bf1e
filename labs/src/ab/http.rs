//! Arms behind HTTP and in process over the same prompts: the load generator measures, greedy tokens are the gate.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aisp_engine::{Engine, Selection};
use bench_client::{BenchResult, Config, Cost, Dataset, Live, Load, TokenTotals, run_observed};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::AbSettings;
use super::server::{Server, ServerSettings, find_binary};
use crate::gate::Outputs;
use crate::lab::{ArmSpec, Experiment, LabContext, Measured};
use crate::labs::{EngineSettings, RequestSet, engaged, loosest, metrics};
use crate::record::Workload;
use crate::roofline::ArmWork;
use crate::{LabError, machine, memory};

/// How often the load generator is told of Ctrl-C.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where an arm's engine lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// In an `aisp-serve` of its own.
    Http,
    /// In this process.
    InProcess,
}

/// One arm.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpArm {
    /// Name within the lab.
    pub name: String,
    /// Its switches.
    pub selection: Selection,
    /// Where its engine lives.
    pub front: Front,
}

enum Running {
    Server(Server),
    Engine(Box<Engine>),
}

/// Arms over one set of prompts, all sent at once.
pub struct HttpExperiment {
    context: LabContext,
    ab: AbSettings,
    arms: Vec<HttpArm>,
    running: Vec<Running>,
    /// Prompts as token ids, for arms in process.
    requests: RequestSet,
    /// The same prompts as text.
    texts: Vec<String>,
    file: NamedTempFile,
    kv_cache_bytes: u64,
    is_lossless: bool,
    fingerprint: String,
}

impl HttpExperiment {
    /// Loads the model once to draw prompts for it.
    ///
    /// Errors: a model that cannot be loaded or has no tokenizer.
    pub fn new(context: &LabContext, ab: &AbSettings, arms: Vec<HttpArm>) -> Result<Self, LabError> {
        let settings = ab.engine;
        let probe = context.probe().max_num_seqs(1).max_model_len(Some(settings.max_model_len)).build()?;
        let info = probe.model_info();
        let kv_cache_bytes = info.kv_cache_bytes / info.num_kv_slots.max(1) as u64 * settings.num_kv_tokens as u64;
        let Some(tokenizer) = probe.tokenizer() else {
            return Err(LabError::Input(format!(
                "{} has no tokenizer, and a load over HTTP is text: take another model, or leave --http out",
                context.model
            )));
        };
        let mut drawn = RequestSet::draw(ab.workload.mix()(info.num_parameters), &probe, context.seed)?;
        // A prompt of nothing but a special token is no text.
        drawn.requests.retain(|request| !tokenizer.decode(&request.prompt, true).is_empty());
        let text_of = |prompt: &[u32]| tokenizer.decode(prompt, true);
        let texts: Vec<String> = drawn.requests.iter().map(|request| text_of(&request.prompt)).collect();
        // As the server does it, special tokens included.
        let prompts = texts.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<Vec<_>, _>>();
        let requests = drawn.all_at_once(prompts.map_err(aisp_engine::EngineError::from)?);
        let selections: Vec<Selection> = arms.iter().map(|arm| arm.selection.clone()).collect();
        Ok(Self {
            file: write_prompts(&texts, &requests)?,
            fingerprint: requests.fingerprint(&context.model.to_string()),
            is_lossless: loosest(&selections).is_lossless(),
            context: context.clone(),
            ab: *ab,
            arms,
            running: Vec::new(),
            requests,
            texts,
            kv_cache_bytes,
        })
    }

    fn config(&self, server: &Server) -> Config {
        Config {
            base_url: server.base_url().to_owned(),
            dataset: Dataset::Jsonl(self.file.path().to_owned()),
            ignore_eos: true,
            seed: Some(self.context.seed),
            slo: self.ab.engine.slo,
            load: Load::Closed { concurrency: self.texts.len() },
            ..Config::default()
        }
    }

    fn over_http(&self, server: &Server) -> Result<Measured, LabError> {
        server.reset_peak_rss();
        let result = self.load(server)?;
        if result.completed < self.texts.len() {
            let example = result.failures.first().map_or("no reason given", |failure| failure.example.as_str());
            let message = format!("{} of {} requests failed: {example}", result.failed, self.texts.len());
            return Err(LabError::System { what: "the load over HTTP", message });
        }
        let outputs = self.outputs_over_http(server)?;
        let duration = Duration::from_secs_f64(result.duration_s);
        let mut measured = Measured::new(duration, self.fingerprint.clone(), outputs);
        measured.engaged = server.engaged()?;
        measured.reserved_bytes = server.peak_rss_bytes();
        measured.metrics = http_metrics(&result, self.ab.engine.hourly_rate);
        Ok(measured)
    }

    fn load(&self, server: &Server) -> Result<BenchResult, LabError> {
        let (config, live, over) = (self.config(server), Arc::new(Live::new()), AtomicBool::new(false));
        let stop = &self.context.stop;
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    if stop.is_requested() {
                        live.stop();
                    }
                    std::thread::sleep(LOOK_EVERY);
                }
            });
            let result = run_observed(&config, &live);
            over.store(true, Ordering::Relaxed);
            result
        });
        if stop.is_requested() {
            return Err(LabError::Stopped);
        }
        result.map_err(|error| LabError::System { what: "the load over HTTP", message: error.to_string() })
    }

    /// The same prompts once more, at once and untimed, because the load generator keeps no text.
    fn outputs_over_http(&self, server: &Server) -> Result<Outputs, LabError> {
        let body = |at: usize| {
            let mut body = json!({
                "prompt": self.texts[at], "temperature": 0.0, "ignore_eos": true, "return_token_ids": true,
                "max_tokens": self.requests.requests[at].num_answer_tokens,
            });
            if !self.is_lossless {
                (body["max_tokens"], body["echo"], body["logprobs"]) = (json!(1), json!(true), json!(0));
            }
            body
        };
        let answers: Vec<Result<Value, LabError>> = std::thread::scope(|scope| {
            let ask = |body| scope.spawn(move || server.complete(&body));
            let threads: Vec<_> = (0..self.texts.len()).map(|at| ask(body(at))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or(Err(LabError::Stopped))).collect()
        });
        let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
        if self.is_lossless {
            return Ok(Outputs::Tokens(answers.iter().map(token_ids).collect()));
        }
        let logprobs = answers.iter().zip(&self.requests.requests);
        Ok(Outputs::Values(
            logprobs.flat_map(|(answer, request)| prompt_logprobs(answer, request.prompt.len())).collect(),
        ))
    }
}

impl Experiment for HttpExperiment {
    fn workload(&self) -> Workload {
        let workload = self.requests.workload(&self.context.model.to_string());
        Workload { fingerprint: self.fingerprint.clone(), ..workload }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        self.arms.iter().map(|arm| ArmSpec::stack(&arm.name, &arm.selection)).collect()
    }

    fn set_up(&mut self, arm: usize) -> Result<(), LabError> {
        let EngineSettings { max_num_seqs, max_model_len, .. } = self.ab.engine;
        let (selection, kv_cache_bytes) = (self.arms[arm].selection.clone(), self.kv_cache_bytes);
        self.running.push(match self.arms[arm].front {
            Front::Http => Running::Server(Server::start(&ServerSettings {
                binary: find_binary(self.context.server.as_deref())?,
                model: self.context.model.clone(),
                device: self.context.device,
                selection,
                max_num_seqs,
                max_model_len,
                kv_cache_bytes,
                threads: machine::num_threads(),
            })?),
            Front::InProcess => {
                let engine = self.context.engine(selection).max_num_seqs(max_num_seqs);
                let engine = engine.max_model_len(Some(max_model_len)).kv_cache_memory_bytes(Some(kv_cache_bytes));
                Running::Engine(Box::new(engine.build()?))
            }
        });
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        if let Running::Server(server) = &self.running[arm] {
            return self.over_http(server);
        }
        let Running::Engine(engine) = &mut self.running[arm] else { return Err(LabError::Stopped) };
        let before = engine.stats().work;
        let started = Instant::now();
        let served = self.requests.serve(engine)?;
        let duration = started.elapsed();
        let work = ArmWork::since(&before, engine);
        let outputs = if self.is_lossless {
            Outputs::Tokens(served.answers.clone())
        } else {
            let mut gate = self.requests.clone();
            gate.with_prompt_logprobs = true;
            Outputs::Values(gate.serve(engine)?.prompt_logprobs)
        };
        let mut measured = Measured::new(duration, self.fingerprint.clone(), outputs);
        measured.engaged = engaged(engine, &self.arms[arm].selection);
        measured.work = Some(work);
        measured.metrics = metrics(&served, duration.as_secs_f64(), &self.requests, &self.ab.engine);
        measured.reserved_bytes = memory::peak_rss_bytes();
        Ok(measured)
    }
}

/// One JSON object a line, as the load generator reads them.
fn write_prompts(texts: &[String], requests: &RequestSet) -> Result<NamedTempFile, LabError> {
    let mut file = NamedTempFile::with_suffix(".jsonl").map_err(LabError::io("a temporary file"))?;
    for (text, request) in texts.iter().zip(&requests.requests) {
        let line = json!({ "prompt": text, "max_tokens": request.num_answer_tokens });
        writeln!(file, "{line}").map_err(LabError::io(file.path().to_owned()))?;
    }
    Ok(file)
}

fn token_ids(answer: &Value) -> Vec<u32> {
    let ids = answer["choices"][0]["token_ids"].as_array();
    ids.into_iter().flatten().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// Log-probabilities of all prompt tokens but the first, which nothing predicts.
fn prompt_logprobs(answer: &Value, num_prompt_tokens: usize) -> Vec<f32> {
    let logprobs = answer["choices"][0]["logprobs"]["token_logprobs"].as_array();
    let of_prompt = logprobs.into_iter().flatten().take(num_prompt_tokens).skip(1);
    of_prompt.map(|logprob| logprob.as_f64().map_or(f32::NAN, |logprob| logprob as f32)).collect()
}

fn http_metrics(result: &BenchResult, hourly_rate: f64) -> BTreeMap<String, f64> {
    let tokens =
        TokenTotals { input: result.total_input_tokens, output: result.total_output_tokens, good_output: None };
    let cost = Cost::of(hourly_rate, result.duration_s, tokens);
    let latencies = &result.latencies;
    let figures = [
        ("output_tokens_per_s", Some(result.output_throughput())),
        ("ttft_p50_ms", latencies.ttft_ms.percentile(50.0)),
        ("tpot_p50_ms", latencies.tpot_ms.percentile(50.0)),
        ("itl_p50_ms", latencies.itl_ms.percentile(50.0)),
        ("itl_p99_ms", latencies.itl_ms.percentile(99.0)),
        ("goodput_requests_per_s", result.goodput.map(|goodput| goodput.requests_per_s)),
        ("usd_per_million_tokens", cost.per_million_total_tokens),
    ];
    figures.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}
