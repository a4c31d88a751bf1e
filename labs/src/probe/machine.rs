//! Which machine is probed.

use crate::machine;

/// Who is probed.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbedMachine {
    /// Name of the device in paths.
    pub device: String,
    /// Host name.
    pub host: String,
    /// Model of the processor.
    pub cpu: String,
    /// Processors that a process may use.
    pub cores: usize,
    /// Load average of the last minute, where the system says it.
    pub load_average: Option<f64>,
}

impl ProbedMachine {
    /// The machine this runs on.
    pub fn this() -> Self {
        Self {
            device: machine::device(),
            host: machine::host(),
            cpu: machine::cpu_name(),
            cores: machine::num_cores(),
            load_average: machine::load_average(),
        }
    }
}
