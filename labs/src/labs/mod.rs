//! The registry of labs. Adding one is its file and its line in [`all`].

mod continuous_batching;
mod engine_experiment;
mod gemm;
mod kv_cache;
mod requests;
mod switches;

use aisp_engine::Optimization;

pub use engine_experiment::{EngineArm, EngineExperiment, EngineSettings, loosest, mixed_requests, tolerance};
pub use requests::{Answers, PlannedRequest, RequestMix, RequestSet, Served};

use crate::LabError;
use crate::lab::Lab;

/// Every lab, in the order of a full run; the switches' labs come from the engine's registry.
pub fn all() -> Vec<Box<dyn Lab>> {
    let mut labs: Vec<Box<dyn Lab>> = vec![
        Box::new(gemm::GemmLab),
        Box::new(kv_cache::KvCacheLab),
        Box::new(continuous_batching::ContinuousBatchingLab),
    ];
    labs.extend(Optimization::ALL.map(|optimization| Box::new(switches::SwitchLab(optimization)) as Box<dyn Lab>));
    labs
}

/// The labs that targets name: an id, an area (`ch01`), or `all`.
///
/// Errors: a target that names none.
pub fn matching(targets: &[String]) -> Result<Vec<Box<dyn Lab>>, LabError> {
    let names = |target: &str, id: &str| target == "all" || target == id || id.split(':').next() == Some(target);
    for target in targets {
        if !all().iter().any(|lab| names(target, &lab.info().id)) {
            return Err(LabError::UnknownTarget { target: target.clone() });
        }
    }
    let wanted = |id: &str| targets.iter().any(|target| names(target, id));
    Ok(all().into_iter().filter(|lab| wanted(&lab.info().id)).collect())
}

#[cfg(test)]
mod tests;
