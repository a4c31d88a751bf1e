//! The command line. Names are vLLM's wherever it has the flag; every flag here does something.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use aisp_engine::optimizations::SelectionText;
use aisp_engine::text::{ChatTemplate, TextError};
use aisp_engine::{DeviceChoice, Engine, EngineBuilder, ModelSource, SelectionError};
use clap::{Parser, ValueEnum};

use crate::admission::AdmissionLimits;
use crate::app::AppConfig;
use crate::metrics::Namespace;

/// Serves a language model over an OpenAI-compatible HTTP API.
#[derive(Debug, Clone, Parser)]
#[command(name = "aisp-serve", version, max_term_width = 120)]
pub struct Args {
    /// What to serve: a hub id, a folder, a .gguf file, `dummy:<shape>`, or `story-12m`, which is built in
    #[arg(long, value_name = "MODEL", default_value = "story-12m", help_heading = "Model")]
    pub model: String,

    /// Branch, tag or commit of a hub id
    #[arg(long, value_name = "REVISION", help_heading = "Model")]
    pub revision: Option<String>,

    /// Names that clients call the model by [default: the model's own]
    #[arg(long, value_name = "NAME", num_args = 1.., help_heading = "Model")]
    pub served_model_name: Vec<String>,

    /// Jinja file that replaces the model's own chat template
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub chat_template: Option<PathBuf>,

    /// Where it runs: cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu", help_heading = "Model")]
    pub device: DeviceChoice,

    /// Type of weights that are not quantized, and of activations; `auto` is f32 on CPU and bf16 on CUDA
    #[arg(long, value_name = "TYPE", default_value = "auto", help_heading = "Model")]
    pub dtype: Dtype,

    /// Feeds requests without a seed of their own, and the weights of `dummy:` shapes
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Model")]
    pub seed: u64,

    /// Optimizations: `none`, `exact`, `all`, `NAME,NAME` or `all,-NAME`
    #[arg(long, value_name = "SET", default_value = "all", help_heading = "Engine")]
    pub optimizations: SelectionText,

    /// Tokens that prompt and answer may have together [default: what model and cache allow]
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    pub max_model_len: Option<usize>,

    /// Sequences in a step
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Engine")]
    pub max_num_seqs: usize,

    /// Tokens in a step
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, help_heading = "Engine")]
    pub max_num_batched_tokens: usize,

    /// Prompt tokens that `chunked-prefill` takes into a step with running answers: fewer keep those more even, more let
    /// prompts wait less [default: 64 on CPU, 2048 on CUDA]
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    pub prefill_chunk_tokens: Option<usize>,

    /// On CPU the part of the free memory that the KV cache may take [default: 0.25]; on CUDA the part of the GPU's
    /// memory that everything together may take [default: 0.9]
    #[arg(long, value_name = "SHARE", conflicts_with = "kv_cache_memory_bytes", help_heading = "Engine")]
    pub gpu_memory_utilization: Option<f64>,

    /// Bytes of the KV cache [default: room for --max-num-seqs contexts within a quarter of the free memory]
    #[arg(long, value_name = "BYTES", help_heading = "Engine")]
    pub kv_cache_memory_bytes: Option<u64>,

    /// Threads that compute [default: all cores for pinned-pool, all but one for the rest]
    #[arg(long, value_name = "N", value_parser = parse_threads, help_heading = "Engine")]
    pub threads: Option<usize>,

    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), help_heading = "Server")]
    pub host: IpAddr,

    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000, help_heading = "Server")]
    pub port: u16,

    /// Key that clients must send as `Authorization: Bearer <KEY>`; /health and /ready stay open
    #[arg(long, value_name = "KEY", env = "AISP_API_KEY", hide_env_values = true, help_heading = "Server")]
    pub api_key: Option<String>,

    /// Sequences that may wait beyond --max-num-seqs; more are answered with 429
    #[arg(long, value_name = "N", default_value_t = 1024, help_heading = "Server")]
    pub max_num_queued_reqs: usize,

    /// Prompt tokens that may wait; more are answered with 429
    #[arg(long, value_name = "TOKENS", default_value_t = 4 << 20, help_heading = "Server")]
    pub max_num_queued_tokens: usize,

    /// Seconds that answers under way have to finish after SIGTERM or SIGINT
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, help_heading = "Server")]
    pub drain_timeout: Duration,

    /// Prefix of metric names: `aisp`, or `vllm` for dashboards that know vLLM
    #[arg(long, value_name = "NAME", default_value = "aisp", help_heading = "Server")]
    pub metrics_namespace: Namespace,
}

/// Values of `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// f32 on CPU.
    Auto,
    /// 32 bits.
    #[value(alias = "f32")]
    Float32,
    /// 16 bits, wide range.
    #[value(alias = "bf16")]
    Bfloat16,
    /// 16 bits, fine steps.
    #[value(alias = "f16", alias = "half")]
    Float16,
}

/// Why the arguments do not go together.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// The model cannot be named so.
    #[error("--model: {0}")]
    Model(#[from] aisp_engine::loader::LoadError),
    /// Optimizations that do not go together where the model runs.
    #[error("--optimizations: {0}")]
    Optimizations(#[from] SelectionError),
    /// A revision of something that has none.
    #[error("--revision is for hub ids; `{0}` is not one")]
    Revision(ModelSource),
    /// Two revisions.
    #[error("--revision and `@` in --model both name a revision: leave one out")]
    TwoRevisions,
    /// The template file cannot be read.
    #[error("--chat-template {path}: {error}")]
    TemplateFile {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The template does not compile.
    #[error("--chat-template: {0}")]
    Template(#[from] TextError),
}

impl Args {
    /// Where to listen.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.port)
    }

    /// The model, with its revision.
    ///
    /// Errors: not a model; a revision that does not apply.
    pub fn source(&self) -> Result<ModelSource, ArgsError> {
        let source = ModelSource::from_str(&self.model)?;
        let Some(asked) = &self.revision else { return Ok(source) };
        match source {
            ModelSource::Hub { revision: Some(_), .. } => Err(ArgsError::TwoRevisions),
            ModelSource::Hub { .. } => Ok(ModelSource::from_str(&format!("{}@{asked}", self.model))?),
            other => Err(ArgsError::Revision(other)),
        }
    }

    /// The engine's settings.
    ///
    /// Errors: as [`Args::source`].
    pub fn engine(&self) -> Result<EngineBuilder, ArgsError> {
        let dtype = match self.dtype {
            Dtype::Auto => None,
            Dtype::Float32 => "f32".parse().ok(),
            Dtype::Bfloat16 => "bf16".parse().ok(),
            Dtype::Float16 => "f16".parse().ok(),
        };
        Ok(Engine::builder()
            .model(self.source()?)
            .device(self.device)
            .optimizations(self.optimizations.on(self.device.kind())?)
            .max_model_len(self.max_model_len)
            .max_num_seqs(self.max_num_seqs)
            .max_num_batched_tokens(self.max_num_batched_tokens)
            .prefill_chunk_tokens(self.prefill_chunk_tokens)
            .memory_utilization(self.gpu_memory_utilization)
            .threads(self.threads)
            .kv_cache_memory_bytes(self.kv_cache_memory_bytes)
            .seed(self.seed)
            .dtype(dtype)
            .progress(true))
    }

    /// The server's settings.
    ///
    /// Errors: as [`Args::source`]; a chat template that cannot be read or compiled.
    pub fn app(&self) -> Result<AppConfig, ArgsError> {
        let names = match self.served_model_name.as_slice() {
            [] => vec![self.source()?.name()],
            names => names.to_vec(),
        };
        let chat_template = match &self.chat_template {
            Some(path) => {
                let source = std::fs::read_to_string(path)
                    .map_err(|error| ArgsError::TemplateFile { path: path.clone(), error })?;
                Some(ChatTemplate::new(&source)?)
            }
            None => None,
        };
        Ok(AppConfig {
            served_model_names: names,
            api_key: self.api_key.clone(),
            admission: AdmissionLimits {
                max_num_seqs: self.max_num_seqs,
                max_num_queued_reqs: self.max_num_queued_reqs,
                max_num_queued_tokens: self.max_num_queued_tokens,
            },
            metrics_namespace: self.metrics_namespace,
            chat_template,
            ..AppConfig::default()
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if duration <= Duration::from_secs(24 * 3600) => Ok(duration),
        _ => Err("must be between 0 and 86400".into()),
    }
}

fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads @ 1..=1024) => Ok(threads),
        _ => Err("must be a number from 1 to 1024".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("aisp-serve").chain(args.iter().copied()))
    }

    #[test]
    fn the_help_text_is_known() {
        let mut command = <Args as clap::CommandFactory>::command().term_width(100);
        insta::assert_snapshot!(command.render_long_help().to_string());
    }

    #[test]
    fn defaults_are_safe() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.address().to_string(), "127.0.0.1:8000");
        assert_eq!(args.app().unwrap().served_model_names, ["story-12m"]);
        assert_eq!(args.source().unwrap(), ModelSource::Builtin);
    }

    #[test]
    fn mistakes_are_explained() {
        let check = |args: &[&str], part: &str| {
            let message = match parse(args) {
                Err(error) => error.to_string(),
                Ok(args) => match args.app() {
                    Err(error) => error.to_string(),
                    Ok(_) => args.engine().map(|_| ()).unwrap_err().to_string(),
                },
            };
            assert!(message.contains(part), "{args:?}: {message}");
        };
        check(&["--optimizations", "turbo"], "unknown optimization `turbo`");
        check(&["--optimizations", "cuda-graphs"], "cuda-graphs does not apply on cpu");
        check(&["--device", "cuda", "--optimizations", "cuda-graphs"], "cuda-graphs needs fused-ops");
        check(&["--optimizations", "all,cuda-graphs"], "cuda-graphs does not apply on cpu");
        check(&["--device", "cuda", "--optimizations", "pinned-pool,fast-linear"], "does not apply on cuda");
        check(&["--device", "tpu"], "choose cpu, cuda or cuda:N");
        check(&["--metrics-namespace", "x"], "choose aisp or vllm");
        check(&["--drain-timeout=-1"], "must be between 0 and 86400");
        check(&["--drain-timeout", "nan"], "must be between 0 and 86400");
        check(&["--port", "70000"], "70000");
        check(&["--revision", "main"], "--revision is for hub ids");
        check(&["--model", "a/b@x", "--revision", "main"], "leave one out");
        check(&["--chat-template", "/nowhere"], "--chat-template /nowhere");
    }

    #[test]
    fn a_hub_id_takes_a_revision() {
        let source = parse(&["--model", "a/b", "--revision", "v1"]).unwrap().source().unwrap();
        assert_eq!(source.to_string(), "a/b@v1");
    }
}
