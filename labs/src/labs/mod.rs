//! The registry of labs. Adding one is its file and its line in [`all`].

mod bandwidth;
mod chunked_prefill;
mod continuous_batching;
mod engine_experiment;
mod gemm;
mod http_overhead;
mod kv_cache;
mod llama_cpp;
mod model_loading;
mod prefix_caching;
mod requests;
mod start;
mod switches;
mod training;

use aisp_engine::{DeviceKind, Optimization};

pub use engine_experiment::{
    EngineArm, EngineExperiment, EngineSettings, engaged, loosest, metrics, mixed_requests, scaled, tolerance,
};
pub use requests::{Answers, Latency, PlannedRequest, RequestMix, RequestSet, Served};

use crate::LabError;
use crate::lab::{Lab, LabInfo};

/// Every lab, in the order of a full run; the switches' labs come from the engine's registry.
pub fn all() -> Vec<Box<dyn Lab>> {
    let mut labs: Vec<Box<dyn Lab>> = vec![
        Box::new(training::TrainingLab),
        Box::new(gemm::GemmLab),
        Box::new(bandwidth::BandwidthLab(bandwidth::Link::Read)),
        Box::new(bandwidth::BandwidthLab(bandwidth::Link::Copy)),
        Box::new(bandwidth::BandwidthLab(bandwidth::Link::Cache)),
        Box::new(model_loading::ModelLoadingLab),
        Box::new(kv_cache::KvCacheLab),
        Box::new(continuous_batching::ContinuousBatchingLab),
        Box::new(prefix_caching::PrefixCachingLab(prefix_caching::Prompts::Shared)),
        Box::new(prefix_caching::PrefixCachingLab(prefix_caching::Prompts::Distinct)),
        Box::new(chunked_prefill::ChunkedPrefillLab),
        Box::new(http_overhead::HttpOverheadLab),
    ];
    labs.extend(llama_cpp::installed());
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

/// Those of [`matching`] that run on a device: on a GPU the labs tagged so.
///
/// Errors: as [`matching`].
pub fn matching_on(targets: &[String], device: DeviceKind) -> Result<Vec<Box<dyn Lab>>, LabError> {
    let tag = device.to_string();
    let applies = |info: &LabInfo| {
        let switch = info.id.strip_prefix("switch:").and_then(Optimization::by_name);
        let switch_applies = switch.is_none_or(|switch| switch.spec().devices.include(device));
        switch_applies && (device == DeviceKind::Cpu || info.tags.contains(&tag))
    };
    Ok(matching(targets)?.into_iter().filter(|lab| applies(&lab.info())).collect())
}

#[cfg(test)]
mod tests;
