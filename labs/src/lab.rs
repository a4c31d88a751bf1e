//! What a lab is: a baseline and its optimized arms over one frozen workload. Knows neither the order of measurement
//! nor statistics; those are the harness's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use aisp_engine::{DeviceChoice, DeviceKind, Engine, EngineBuilder, ModelSource, Optimization, Selection};

use crate::LabError;
use crate::gate::{Outputs, Tolerance};
use crate::record::{EngagedRecord, Goal, Workload};
use crate::roofline::ArmWork;
use crate::stop::Stop;

/// A pair (or more) of ways to do the same work. Implementing it and one line in [`crate::labs`] add a lab.
pub trait Lab {
    /// Name and purpose; costs nothing.
    fn info(&self) -> LabInfo;

    /// Draws the workload and makes the lab ready.
    ///
    /// Errors: a model or file that cannot be read.
    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError>;
}

/// A lab that is ready to run. Arm 0 is the baseline.
pub trait Experiment {
    /// What one iteration of any arm does.
    fn workload(&self) -> Workload;

    /// The arms, baseline first.
    fn arms(&self) -> Vec<ArmSpec>;

    /// Loads and builds what an arm needs before its first iteration.
    ///
    /// Errors: what stands in the way.
    fn set_up(&mut self, arm: usize) -> Result<(), LabError>;

    /// One iteration. Hashing inputs and collecting outputs are not part of the measured time.
    ///
    /// Errors: the arm failed; the lab ends.
    fn run(&mut self, arm: usize) -> Result<Measured, LabError>;
}

/// Name and purpose of a lab.
#[derive(Debug, Clone, PartialEq)]
pub struct LabInfo {
    /// `chapter:name` or `area:name`.
    pub id: String,
    /// One line: what is compared.
    pub summary: String,
    /// Which figure decides.
    pub goal: Goal,
    /// For instance `informational`.
    pub tags: Vec<String>,
    /// How equal outputs must be, and why that is right.
    pub tolerance: Tolerance,
}

/// What labs are prepared for.
#[derive(Debug, Clone)]
pub struct LabContext {
    /// The model of labs that need one.
    pub model: ModelSource,
    /// Where engines run.
    pub device: DeviceChoice,
    /// Feeds every draw.
    pub seed: u64,
    /// The server of labs that need one; none looks beside this program.
    pub server: Option<PathBuf>,
    /// Who may end the run.
    pub stop: Stop,
}

impl Default for LabContext {
    fn default() -> Self {
        Self { model: ModelSource::Builtin, device: DeviceChoice::Cpu, seed: 0, server: None, stop: Stop::default() }
    }
}

impl LabContext {
    /// An engine for the model on the device.
    pub fn engine(&self, selection: Selection) -> EngineBuilder {
        Engine::builder().model(self.model.clone()).device(self.device).optimizations(selection)
    }

    /// The cheapest engine to load, for a look at the model.
    pub fn probe(&self) -> EngineBuilder {
        self.engine(match self.device.kind() {
            DeviceKind::Cpu => Selection::none(),
            // Weights that are only drawn are drawn there.
            DeviceKind::Cuda => Selection::closed_on(DeviceKind::Cuda, [Optimization::FusedOps]),
        })
    }

    /// Those switches of an arm that apply on the device, with all that they need there. An arm records what is left.
    ///
    /// Errors: two that exclude one another.
    pub fn on_device(&self, selection: &Selection) -> Result<Selection, LabError> {
        let applies = |o: &Optimization| o.spec().devices.include(self.device.kind());
        let closed = Selection::closed_on(self.device.kind(), selection.iter().filter(applies));
        closed.on(self.device.kind()).map_err(|error| LabError::Engine(error.into()))
    }
}

/// One way to do the work.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ArmSpec {
    /// Name within the lab.
    pub name: String,
    /// Switches that it asks for.
    pub requested: Vec<String>,
}

impl ArmSpec {
    /// An arm without switches.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// An arm that asks for a stack of switches.
    pub fn stack(name: &str, selection: &Selection) -> Self {
        let requested = selection.iter().map(|o| o.name().to_owned()).collect();
        Self { requested, ..Self::named(name) }
    }
}

/// One iteration.
#[derive(Debug, Clone)]
pub struct Measured {
    /// By a monotonic clock, around the work alone.
    pub duration: Duration,
    /// Hash of the inputs that were really used; the harness holds it against the workload's.
    pub inputs: String,
    /// What came out of the timed run.
    pub outputs: Outputs,
    /// What became of the switches asked for.
    pub engaged: Vec<EngagedRecord>,
    /// The work of the time measured, where it is the arm's own and not the workload's.
    pub work: Option<ArmWork>,
    /// What the arm kept reserved at its peak, for instance KV cache.
    pub reserved_bytes: Option<u64>,
    /// Figures of the lab's own, with the unit in the name.
    pub metrics: BTreeMap<String, f64>,
}

impl Measured {
    /// Time and outputs, nothing else.
    pub fn new(duration: Duration, inputs: impl Into<String>, outputs: Outputs) -> Self {
        Self {
            duration,
            inputs: inputs.into(),
            outputs,
            engaged: Vec::new(),
            work: None,
            reserved_bytes: None,
            metrics: BTreeMap::new(),
        }
    }
}
