//! The flags: names as in `vllm bench serve`, turned into a [`Config`]. The only place that knows clap.

use std::path::PathBuf;

use bench_client::{Arrivals, Config, Dataset, Endpoint, Error, Load, Metric, Rate, Slo, Spacing, hourly_price};
use clap::{Parser, ValueEnum};
use serde_json::{Map, Value};

const AFTER_HELP: &str = "\
Examples:
  bench-client --qps 50 --num-prompts 200
  bench-client --qps 5 --goodput ttft:200 tpot:50 e2el:5000 --gpu H100 --save-result run.json
  bench-client --max-concurrency 32 --dataset-name sharegpt --dataset-path sharegpt.json
  bench-client --ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 40

Exit status: 0 all requests completed, 1 some failed, 2 nothing could be measured, 130 interrupted.";

/// Load generator for OpenAI-compatible servers: every request timed from its intended arrival, the client's own
/// lateness reported beside it.
#[derive(Debug, Parser)]
#[command(name = "bench-client", version, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    /// Address of the server, plain http
    #[arg(long, help_heading = "Server", default_value = "http://127.0.0.1:8000", value_name = "URL")]
    base_url: String,
    /// Route to measure
    #[arg(long, help_heading = "Server", value_enum, default_value = "/v1/completions")]
    endpoint: EndpointArg,
    /// Model name [default: the first of GET /v1/models]
    #[arg(long, help_heading = "Server", value_name = "NAME")]
    model: Option<String>,
    /// Bearer token
    #[arg(long, help_heading = "Server", env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<String>,
    /// Longest time one request may take
    #[arg(long, help_heading = "Server", default_value_t = 600.0, value_name = "SECONDS")]
    timeout: f64,

    /// Requests to measure [default: all of a file, or 200 built-in prompts]
    #[arg(short = 'n', long, help_heading = "Load", value_name = "N")]
    num_prompts: Option<usize>,
    /// Requests per second (open loop); inf sends all at once
    #[arg(long, visible_alias = "qps", help_heading = "Load", value_name = "RATE", value_parser = parse_rate)]
    request_rate: Option<f64>,
    /// Law of the gaps between arrivals
    #[arg(long, help_heading = "Load", value_enum, default_value = "poisson")]
    arrival: ArrivalArg,
    /// Shape of gamma gaps: 1 is Poisson, less is burstier, more is smoother
    #[arg(long, help_heading = "Load", default_value_t = 1.0, value_name = "SHAPE")]
    burstiness: f64,
    /// Closed loop of N in flight; with a rate, a cap whose waiting counts as latency
    #[arg(long, help_heading = "Load", value_name = "N")]
    max_concurrency: Option<usize>,
    /// Raise the rate over the run
    #[arg(long, help_heading = "Load", value_enum, value_name = "HOW", requires_all = ["ramp_up_start_rps", "ramp_up_end_rps"],
          conflicts_with = "request_rate")]
    ramp_up_strategy: Option<RampArg>,
    /// Rate at the first request
    #[arg(long, help_heading = "Load", value_name = "RATE", requires = "ramp_up_strategy")]
    ramp_up_start_rps: Option<f64>,
    /// Rate at the last request
    #[arg(long, help_heading = "Load", value_name = "RATE", requires = "ramp_up_strategy")]
    ramp_up_end_rps: Option<f64>,
    /// Requests sent before, unmeasured, with prompts of their own
    #[arg(long, help_heading = "Load", default_value_t = 0, value_name = "N")]
    num_warmups: usize,
    /// Fixes arrivals and prompts [default: fresh, so that no prefix cache is warm]
    #[arg(long, help_heading = "Load", value_name = "N")]
    seed: Option<u64>,
    /// Threads that send and receive [default: a quarter of the cores, 1 to 8]
    #[arg(long, help_heading = "Load", value_name = "N")]
    client_threads: Option<usize>,

    /// Source of prompts
    #[arg(long, help_heading = "Prompts", value_enum, default_value = "builtin")]
    dataset_name: DatasetArg,
    /// File of prompts, for jsonl and sharegpt
    #[arg(long, help_heading = "Prompts", value_name = "FILE")]
    dataset_path: Option<PathBuf>,
    /// Tokens of a built-in prompt [default: 128]; for a file, the longest prompt kept (judged by words)
    #[arg(long, help_heading = "Prompts", value_name = "TOKENS")]
    input_len: Option<usize>,
    /// Tokens to generate [default: as the file says, else 64]
    #[arg(long, help_heading = "Prompts", value_name = "TOKENS")]
    output_len: Option<usize>,
    /// Share of each built-in prompt that all have in common
    #[arg(long, help_heading = "Prompts", default_value_t = 0.0, value_name = "SHARE")]
    shared_prefix_fraction: f64,
    /// Send a file's prompts more than once if it has too few
    #[arg(long, help_heading = "Prompts")]
    allow_prompt_reuse: bool,

    /// Sampling temperature
    #[arg(long, help_heading = "Generation", default_value_t = 0.0, value_name = "T")]
    temperature: f64,
    /// Generate on after an end-of-sequence token
    #[arg(long, help_heading = "Generation")]
    ignore_eos: bool,
    /// Do not ask for usage in each chunk, for servers that refuse stream_options.continuous_usage_stats
    #[arg(long, help_heading = "Generation")]
    no_continuous_usage: bool,
    /// Further fields of each request, like '{"top_k": 20}'
    #[arg(long, help_heading = "Generation", value_name = "JSON")]
    extra_body: Option<String>,

    /// Objectives of a good request, in ms: ttft:200 tpot:50 e2el:5000
    #[arg(long, help_heading = "Report", num_args = 1.., value_name = "NAME:MS")]
    goodput: Vec<String>,
    /// Latencies in the table
    #[arg(long, help_heading = "Report", default_value = "ttft,tpot,itl,e2el", value_name = "NAMES")]
    percentile_metrics: String,
    /// Percentiles in the table
    #[arg(long, help_heading = "Report", default_value = "50,90,95,99", value_delimiter = ',', value_name = "LIST")]
    metric_percentiles: Vec<f64>,
    /// Hardware to price: B200, H200, H100, A100, L40S, A10G, T4 or CPU
    #[arg(long, help_heading = "Report", value_name = "NAME", conflicts_with = "hourly_rate")]
    gpu: Option<String>,
    /// Price of the hardware, in USD
    #[arg(long, help_heading = "Report", value_name = "USD")]
    hourly_rate: Option<f64>,
    /// Write the result as JSON [default FILE: bench-MODEL-TIME.json]
    #[arg(long, help_heading = "Report", value_name = "FILE")]
    save_result: Option<Option<PathBuf>>,
    /// Include every request and sample in the JSON
    #[arg(long, help_heading = "Report", requires = "save_result")]
    save_detailed: bool,
    /// Show no progress
    #[arg(short, long, help_heading = "Report")]
    quiet: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EndpointArg {
    #[value(name = "/v1/completions")]
    Completions,
    #[value(name = "/v1/chat/completions")]
    Chat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArrivalArg {
    Poisson,
    Constant,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum RampArg {
    Linear,
    Exponential,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DatasetArg {
    Builtin,
    Jsonl,
    Sharegpt,
}

/// Where to save the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Save {
    /// Nowhere.
    Nowhere,
    /// In a file of the working folder, named after the model and the time.
    DefaultFile,
    /// In this file.
    File(PathBuf),
}

/// What to do with the result.
#[derive(Debug)]
pub struct Output {
    /// Latencies in the table.
    pub metrics: Vec<Metric>,
    /// Where to save it.
    pub save: Save,
    /// Whether each request is saved.
    pub is_detailed: bool,
    /// Whether progress is hidden.
    pub is_quiet: bool,
}

fn setting(setting: &'static str, problem: impl Into<String>, fix: &str) -> Error {
    Error::BadSetting { setting, problem: problem.into(), fix: fix.to_owned() }
}

impl Cli {
    /// Splits the flags into what to measure and what to do with the result.
    ///
    /// Errors: a value or a combination that cannot be used.
    pub fn resolve(self) -> Result<(Config, Output), Error> {
        let load = self.load()?;
        let dataset = self.dataset()?;
        let metrics =
            self.percentile_metrics.split(',').map(|name| parse_metric(name.trim())).collect::<Result<_, _>>();
        let output =
            Output { metrics: metrics?, save: self.save()?, is_detailed: self.save_detailed, is_quiet: self.quiet };
        let hourly_rate = match (&self.gpu, self.hourly_rate) {
            (Some(gpu), _) => Some(hourly_price(gpu)?),
            (None, rate) => rate,
        };
        let config = Config {
            base_url: self.base_url,
            endpoint: match self.endpoint {
                EndpointArg::Completions => Endpoint::Completions,
                EndpointArg::Chat => Endpoint::Chat,
            },
            model: self.model,
            api_key: self.api_key.filter(|key| !key.is_empty()),
            timeout_s: self.timeout,
            dataset,
            num_prompts: self.num_prompts,
            num_warmups: self.num_warmups,
            allow_prompt_reuse: self.allow_prompt_reuse,
            input_len: self.input_len,
            output_len: self.output_len,
            shared_prefix_fraction: self.shared_prefix_fraction,
            temperature: self.temperature,
            ignore_eos: self.ignore_eos,
            continuous_usage: !self.no_continuous_usage,
            extra_body: self.extra_body.as_deref().map_or(Ok(Map::new()), parse_extra_body)?,
            load,
            seed: self.seed,
            slo: Slo::parse(self.goodput.iter().map(String::as_str))?,
            hourly_rate,
            percentiles: self.metric_percentiles,
            client_threads: self.client_threads,
        };
        config.validate()?;
        Ok((config, output))
    }

    /// Also checks what would otherwise only fail after the run.
    fn save(&self) -> Result<Save, Error> {
        match &self.save_result {
            None => Ok(Save::Nowhere),
            Some(None) => Ok(Save::DefaultFile),
            Some(Some(path)) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                if path.is_dir() || folder.is_some_and(|folder| !folder.is_dir()) {
                    let problem = format!("{} is not a file in an existing folder", path.display());
                    return Err(setting("--save-result", problem, "give a file name, or make the folder first"));
                }
                Ok(Save::File(path.clone()))
            }
        }
    }

    fn load(&self) -> Result<Load, Error> {
        let spacing = match self.arrival {
            ArrivalArg::Constant if self.burstiness != 1.0 => {
                return Err(setting("--burstiness", "constant gaps do not scatter", "leave out one of the two flags"));
            }
            ArrivalArg::Constant => Spacing::Constant,
            ArrivalArg::Poisson => Spacing::Gamma { burstiness: self.burstiness },
        };
        let rate = match (self.ramp_up_strategy, self.ramp_up_start_rps, self.ramp_up_end_rps) {
            (Some(RampArg::Linear), Some(start), Some(end)) => Rate::Linear { start, end },
            (Some(RampArg::Exponential), Some(start), Some(end)) => Rate::Exponential { start, end },
            _ => match self.request_rate {
                Some(per_s) if per_s.is_finite() => Rate::Fixed { per_s },
                _ => Rate::AtOnce,
            },
        };
        Ok(match (rate, self.max_concurrency) {
            (Rate::AtOnce, Some(concurrency)) => Load::Closed { concurrency },
            (rate, max_concurrency) => Load::Open { arrivals: Arrivals { rate, spacing }, max_concurrency },
        })
    }

    fn dataset(&self) -> Result<Dataset, Error> {
        let needed = || setting("--dataset-path", "this data set is a file", "name it");
        match (self.dataset_name, self.dataset_path.clone()) {
            (DatasetArg::Builtin, None) => Ok(Dataset::Builtin),
            (DatasetArg::Builtin, Some(_)) => Err(setting(
                "--dataset-path",
                "the built-in prompts take no file",
                "add --dataset-name jsonl or sharegpt",
            )),
            (DatasetArg::Jsonl, path) => path.map(Dataset::Jsonl).ok_or_else(needed),
            (DatasetArg::Sharegpt, path) => path.map(Dataset::ShareGpt).ok_or_else(needed),
        }
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 => Ok(rate),
        _ => Err("give requests per second above 0, or inf".to_owned()),
    }
}

fn parse_metric(name: &str) -> Result<Metric, Error> {
    let found = Metric::ALL.into_iter().find(|metric| metric.name() == name);
    found.ok_or_else(|| setting("--percentile-metrics", format!("\"{name}\" is unknown"), "use ttft, tpot, itl, e2el"))
}

fn parse_extra_body(text: &str) -> Result<Map<String, Value>, Error> {
    serde_json::from_str(text)
        .map_err(|cause| setting("--extra-body", cause.to_string(), "give one JSON object, like '{\"top_k\": 20}'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn resolve(flags: &str) -> Result<(Config, Output), Error> {
        Cli::try_parse_from(["bench-client"].into_iter().chain(flags.split_whitespace())).unwrap().resolve()
    }

    fn config(flags: &str) -> Config {
        resolve(flags).unwrap().0
    }

    #[test]
    fn help() {
        insta::assert_snapshot!(Cli::command().term_width(110).render_help());
    }

    #[test]
    fn loads() {
        let open = |rate, max_concurrency| Load::Open {
            arrivals: Arrivals { rate, spacing: Spacing::Gamma { burstiness: 1.0 } },
            max_concurrency,
        };
        assert_eq!(config("").load, open(Rate::AtOnce, None));
        assert_eq!(config("--qps 50").load, open(Rate::Fixed { per_s: 50.0 }, None));
        assert_eq!(config("--request-rate inf").load, open(Rate::AtOnce, None));
        assert_eq!(config("--qps 50 --max-concurrency 4").load, open(Rate::Fixed { per_s: 50.0 }, Some(4)));
        assert_eq!(config("--max-concurrency 4").load, Load::Closed { concurrency: 4 });
        assert_eq!(config("--max-concurrency 4 --qps inf").load, Load::Closed { concurrency: 4 });
        let ramp = "--ramp-up-strategy exponential --ramp-up-start-rps 1 --ramp-up-end-rps 9";
        assert_eq!(config(ramp).load, open(Rate::Exponential { start: 1.0, end: 9.0 }, None));
        let constant = config("--qps 2 --arrival constant").load;
        assert!(matches!(constant, Load::Open { arrivals, .. } if arrivals.spacing == Spacing::Constant));
    }

    #[test]
    fn what_vllm_users_type() {
        let (config, output) = resolve(
            "--goodput ttft:200 tpot:50 e2el:5000 --gpu h100 --percentile-metrics ttft,itl --metric-percentiles 50,99.9 \
             --save-result --ignore-eos --seed 7",
        )
        .unwrap();
        assert_eq!(config.slo.e2el_ms, Some(5000.0));
        assert_eq!((config.hourly_rate, config.seed, config.ignore_eos), (Some(3.5), Some(7), true));
        assert_eq!(config.percentiles, [50.0, 99.9]);
        assert_eq!(output.metrics, [Metric::Ttft, Metric::Itl]);
        assert_eq!(output.save, Save::DefaultFile);
    }

    #[test]
    fn bad_combinations_name_the_flag() {
        let check = |flags: &str, wanted: &str| {
            let message = resolve(flags).unwrap_err().to_string();
            assert!(message.starts_with(wanted) && !message.contains('\n'), "{message}");
        };
        check("--dataset-name jsonl", "--dataset-path");
        check("--dataset-path x", "--dataset-path");
        check("--save-result /no/such/folder/x.json", "--save-result");
        check("--save-result /tmp", "--save-result");
        check("--gpu abacus", "--gpu");
        check("--goodput speed:3", "--goodput");
        check("--percentile-metrics ttft,foo", "--percentile-metrics");
        check("--metric-percentiles 120", "--metric-percentiles");
        check("--extra-body [1]", "--extra-body");
        check("--arrival constant --burstiness 2", "--burstiness");
        check("--burstiness 0 --qps 3", "--burstiness");
        for refused in ["--qps 0", "--qps fast", "--ramp-up-strategy linear", "--gpu H100 --hourly-rate 2", "--qps -1"]
        {
            let flags = ["bench-client"].into_iter().chain(refused.split_whitespace());
            assert!(Cli::try_parse_from(flags).is_err(), "{refused}");
        }
    }
}
