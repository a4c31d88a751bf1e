//! What to measure: plain data, no behaviour but its own validation.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{Arrivals, Error, Slo};

/// A benchmark, described whole. [`Config::default`] is 200 built-in prompts sent at once to a local server.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// Scheme, host and port; a trailing `/v1` is dropped. Only `http` is spoken.
    pub base_url: String,
    /// The route that is measured.
    pub endpoint: Endpoint,
    /// The model's name; `None` takes the first that the server lists.
    pub model: Option<String>,
    /// Sent as a bearer token; never written to a result.
    #[serde(skip)]
    pub api_key: Option<String>,
    /// The longest that one request may take from when it is sent. Units: seconds.
    pub timeout_s: f64,
    /// Where prompts come from.
    pub dataset: Dataset,
    /// How many requests are measured; `None` means all of a file, or 200 built-in prompts.
    pub num_prompts: Option<usize>,
    /// How many requests are sent before, unmeasured, with prompts of their own.
    pub num_warmups: usize,
    /// Lets a file's prompts be sent more than once.
    pub allow_prompt_reuse: bool,
    /// Tokens of a built-in prompt; for a file, the longest prompt that is kept. `None`: 128, and no limit.
    pub input_len: Option<usize>,
    /// Tokens to generate; `None`: what the data set says, else 64.
    pub output_len: Option<usize>,
    /// The share of each built-in prompt that is common to all of them, from its start.
    pub shared_prefix_fraction: f64,
    /// The sampling temperature.
    pub temperature: f64,
    /// Asks the server to generate on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Asks for cumulative usage in each chunk, so that tokens in it can be counted.
    pub continuous_usage: bool,
    /// Further fields of each request's body.
    pub extra_body: Map<String, Value>,
    /// When requests are sent.
    pub load: Load,
    /// Fixes prompts and arrivals; `None` draws a fresh seed, so that a server's prefix cache does not know the prompts
    /// from an earlier run. The seed used is in the result.
    pub seed: Option<u64>,
    /// What makes a request good.
    pub slo: Slo,
    /// USD per hour of the hardware; `None` reports no cost.
    pub hourly_rate: Option<f64>,
    /// Percentiles reported beyond the median, in per cent.
    pub percentiles: Vec<f64>,
    /// Threads that send and receive; `None` chooses by the machine's cores.
    pub client_threads: Option<usize>,
}

/// The routes that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Endpoint {
    /// `/v1/completions`.
    #[serde(rename = "/v1/completions")]
    Completions,
    /// `/v1/chat/completions`.
    #[serde(rename = "/v1/chat/completions")]
    Chat,
}

impl Endpoint {
    /// The route's path.
    pub fn path(&self) -> &'static str {
        match self {
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

/// Where prompts come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dataset {
    /// English prose shipped with the client.
    Builtin,
    /// A file with one JSON object a line: `prompt` or `messages`, and optionally `max_tokens`; in the file's order.
    Jsonl(PathBuf),
    /// A ShareGPT file: the first human turn of each conversation, shuffled by the seed.
    ShareGpt(PathBuf),
}

/// When requests are sent.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// At arrivals drawn before the run, whatever the server does.
    Open {
        /// The law of arrivals.
        arrivals: Arrivals,
        /// The most requests in flight; one that must wait for its turn waits on its own latency.
        max_concurrency: Option<usize>,
    },
    /// The next one when one ends, with this many in flight. Its latencies cannot show queueing.
    Closed {
        /// Requests in flight.
        concurrency: usize,
    },
}

impl Default for Config {
    fn default() -> Self {
        Self {
            base_url: "http://127.0.0.1:8000".into(),
            endpoint: Endpoint::Completions,
            model: None,
            api_key: None,
            timeout_s: 600.0,
            dataset: Dataset::Builtin,
            num_prompts: None,
            num_warmups: 0,
            allow_prompt_reuse: false,
            input_len: None,
            output_len: None,
            shared_prefix_fraction: 0.0,
            temperature: 0.0,
            ignore_eos: false,
            continuous_usage: true,
            extra_body: Map::new(),
            load: Load::Open { arrivals: Arrivals::poisson(f64::INFINITY), max_concurrency: None },
            seed: None,
            slo: Slo::default(),
            hourly_rate: None,
            percentiles: vec![50.0, 90.0, 95.0, 99.0],
            client_threads: None,
        }
    }
}

impl Config {
    /// Checks every value that could only fail later.
    ///
    /// Errors: [`Error::BadSetting`] with the flag, the cause and the fix.
    pub fn validate(&self) -> Result<(), Error> {
        let at_least_one = |setting, value: Option<usize>| match value {
            Some(0) => Err(Error::setting(setting, "0 is too few", "give 1 or more")),
            _ => Ok(()),
        };
        at_least_one("--num-prompts", self.num_prompts)?;
        at_least_one("--input-len", self.input_len)?;
        at_least_one("--output-len", self.output_len)?;
        at_least_one("--client-threads", self.client_threads)?;
        match &self.load {
            Load::Open { arrivals, max_concurrency } => {
                arrivals.validate()?;
                at_least_one("--max-concurrency", *max_concurrency)?;
            }
            Load::Closed { concurrency } => at_least_one("--max-concurrency", Some(*concurrency))?,
        }
        let within = |setting, value: f64, least: f64, most: f64| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(Error::setting(setting, format!("{value} is out of range"), format!("give {least} to {most}")))
            }
        };
        within("--timeout", self.timeout_s, 0.001, 1e6)?;
        within("--temperature", self.temperature, 0.0, 100.0)?;
        within("--shared-prefix-fraction", self.shared_prefix_fraction, 0.0, 0.95)?;
        within("--hourly-rate", self.hourly_rate.unwrap_or(0.0), 0.0, 1e6)?;
        self.percentiles.iter().try_for_each(|percent| within("--metric-percentiles", *percent, 0.0, 100.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn useless_values_name_their_flag() {
        let check = |change: fn(&mut Config), flag: &str| {
            let mut config = Config::default();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(flag), "{message}");
        };
        check(|config| config.num_prompts = Some(0), "--num-prompts");
        check(|config| config.output_len = Some(0), "--output-len");
        check(|config| config.load = Load::Closed { concurrency: 0 }, "--max-concurrency");
        check(|config| config.timeout_s = f64::NAN, "--timeout");
        check(|config| config.temperature = -0.1, "--temperature");
        check(|config| config.shared_prefix_fraction = 1.0, "--shared-prefix-fraction");
        check(|config| config.hourly_rate = Some(-2.0), "--hourly-rate");
        check(|config| config.percentiles = vec![101.0], "--metric-percentiles");
        Config::default().validate().unwrap();
    }

    #[test]
    fn a_key_is_never_written() {
        let config = Config { api_key: Some("sk-secret".into()), ..Config::default() };
        assert!(!serde_json::to_string(&config).unwrap().contains("secret"));
    }
}
