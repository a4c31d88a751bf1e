//! Two stacks of optimizations on the engine that ships, in process or behind HTTP, by the harness of every other lab.

mod http;
mod report;
mod server;
mod workload;

use aisp_engine::Selection;

pub use http::{Front, HttpArm, HttpExperiment};
pub use report::{Figure, FrontShare, figures, front_shares, markdown};
pub use server::{Server, ServerSettings, find_binary};
pub use workload::{AbWorkload, few_long_answers};

use crate::LabError;
use crate::lab::{Experiment, Lab, LabContext, LabInfo};
use crate::labs::{EngineArm, EngineExperiment, EngineSettings, loosest, tolerance};
use crate::record::Goal;

/// What both stacks are measured with.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AbSettings {
    /// The mix of requests.
    pub workload: AbWorkload,
    /// Bounds of the engines, and what makes a request good.
    pub engine: EngineSettings,
}

/// A against B.
#[derive(Debug, Clone)]
pub struct AbLab {
    /// The stack to compare with.
    pub a: Selection,
    /// The stack to look at.
    pub b: Selection,
    /// Over HTTP as well as in process.
    pub front: Front,
    /// With what.
    pub settings: AbSettings,
}

impl AbLab {
    /// Names of the arms: stacks may be equal, names may not.
    pub fn arm_name(side: char, selection: &Selection, front: Front) -> String {
        match front {
            Front::Http => format!("{side}: {selection}"),
            Front::InProcess => format!("{side} in process: {selection}"),
        }
    }
}

impl Lab for AbLab {
    fn info(&self) -> LabInfo {
        let name = if self.front == Front::Http { "http" } else { "in_process" };
        LabInfo {
            id: format!("ab:{name}"),
            summary: format!("`{}` against `{}`", self.b, self.a),
            goal: Goal::Throughput,
            tags: vec!["engine".into()],
            tolerance: tolerance(loosest(&[self.a.clone(), self.b.clone()])),
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let sides = [('a', &self.a), ('b', &self.b)];
        if self.front == Front::InProcess {
            let arm = |(side, selection): (char, &Selection)| EngineArm {
                name: Self::arm_name(side, selection, Front::Http),
                selection: selection.clone(),
            };
            let (mix, arms) = (self.settings.workload.mix(), sides.map(arm).to_vec());
            return Ok(Box::new(EngineExperiment::new(context, mix, self.settings.engine, arms)?));
        }
        let arm = |(front, (side, selection)): (Front, (char, &Selection))| HttpArm {
            name: Self::arm_name(side, selection, front),
            selection: selection.clone(),
            front,
        };
        let arms = [Front::Http, Front::InProcess].into_iter().flat_map(|front| sides.map(|side| arm((front, side))));
        Ok(Box::new(HttpExperiment::new(context, &self.settings, arms.collect())?))
    }
}

#[cfg(test)]
mod tests;
