//! The lab: what each optimization gains, measured after it is proven equal.
//!
//! A [`record::RunRecord`] is the one thing that all verbs share: `run` writes it, `compare`, `verify` and every report
//! read it.
#![forbid(unsafe_code)]

pub mod analysis;
pub mod artifacts;
pub mod cli;
pub mod comparison;
pub mod dashboard;
mod error;
pub mod probe;
pub mod progress;
pub mod record;
mod table;
pub mod tools;
mod units;

pub use error::LabError;
