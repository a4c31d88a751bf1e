//! The lab: what each optimization gains, measured after it is proven equal.
//!
//! A [`record::RunRecord`] is the one thing that all verbs share: `run` writes it, `compare`, `verify` and every report
//! read it.
#![forbid(unsafe_code)]

pub mod ab;
pub mod analysis;
pub mod artifacts;
mod child;
pub mod cli;
pub mod comparison;
pub mod dashboard;
mod error;
pub mod expectations;
pub mod fingerprint;
pub mod gate;
pub mod harness;
pub mod lab;
pub mod labs;
pub mod live;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod profile;
pub mod progress;
pub mod record;
pub mod report;
pub mod roofline;
pub mod stacking;
pub mod stacking_plot;
pub mod stats;
pub mod stop;
mod table;
pub mod tools;
pub mod trace;
pub mod tui;
mod units;

pub use error::LabError;
