//! A load generator for OpenAI-compatible servers that measures its own error first.
//!
//! ```no_run
//! use bench_client::{Arrivals, Config, Load, Metric, Slo, run};
//!
//! let config = Config {
//!     load: Load::Open { arrivals: Arrivals::poisson(50.0), max_concurrency: None },
//!     num_prompts: Some(200),
//!     slo: Slo::parse(["ttft:200", "tpot:50"])?,
//!     ..Config::default()
//! };
//! let result = run(&config)?;
//! println!("{}", result.report(&Metric::ALL));
//! # Ok::<(), bench_client::Error>(())
//! ```
//!
//! What makes its figures true:
//!
//! - All arrivals are drawn before the run, and every latency counts from the intended arrival: a server that stalls
//!   cannot hold back the requests that would have shown it (no coordinated omission).
//! - The client's own lateness is a figure of the result ([`Latencies::send_lag_ms`]), with a warning when it matters.
//! - Inter-token latency has one sample a token, however many tokens an event carries ([`TokenCounting`]).
//! - A run sends its measured requests and its warm-up, nothing else; no prompt is sent twice.
//!
//! Invariant: this crate depends on no other of the workspace. A client that links the engine could cheat.

#![forbid(unsafe_code)]

mod arrivals;
mod builtin;
mod config;
mod cost;
mod dataset;
mod distribution;
mod error;
mod exchange;
mod http;
mod json;
mod live;
mod pacer;
mod prompt;
mod record;
mod report;
mod result;
mod run;
mod server;
mod slo;
mod sse;
mod timeline;
mod warnings;
mod wire;
mod workload;

pub use arrivals::{Arrivals, Rate, Spacing};
pub use config::{Config, Dataset, Endpoint, Load};
pub use cost::{Cost, HOURLY_PRICES, TokenTotals, hourly_price};
pub use distribution::Distribution;
pub use error::Error;
pub use json::Detail;
pub use live::{Live, Snapshot};
pub use record::{FailureKind, Outcome, RequestRecord};
pub use result::{BenchResult, FailureCount, Goodput, Latencies, Measured, Metric};
pub use run::{run, run_observed};
pub use slo::Slo;
pub use sse::{EventTooLong, MAX_EVENT_BYTES, SseParser};
pub use timeline::TokenCounting;
pub use workload::Sizing;
