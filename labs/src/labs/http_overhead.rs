//! `serving:http_overhead`: the same requests over HTTP to `aisp-serve` and in process: what the front end takes.

use aisp_engine::{Optimization, Selection};

use crate::LabError;
use crate::ab::{AbSettings, Front, HttpArm, HttpExperiment};
use crate::gate::Tolerance;
use crate::lab::{Experiment, Lab, LabContext, LabInfo};
use crate::record::Goal;

/// The lab.
#[derive(Debug, Clone, Copy)]
pub struct HttpOverheadLab;

impl Lab for HttpOverheadLab {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: "serving:http_overhead".into(),
            summary: "the same requests over HTTP and in process: what the front end takes".into(),
            goal: Goal::Throughput,
            tags: vec!["serving".into()],
            tolerance: Tolerance::exact("the greedy tokens of every request; the front end computes none"),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let switches = [Optimization::ContinuousBatching, Optimization::PagedKv];
        let selection = Selection::of(switches).map_err(|error| LabError::Engine(error.into()))?;
        let arm = |name: &str, front| HttpArm { name: name.to_owned(), selection: selection.clone(), front };
        let arms = vec![arm("http", Front::Http), arm("in_process", Front::InProcess)];
        Ok(Box::new(HttpExperiment::new(context, &AbSettings::default(), arms)?))
    }
}
