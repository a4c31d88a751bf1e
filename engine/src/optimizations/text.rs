//! The value of `--optimizations` before it is known where the model runs.

use std::fmt;
use std::str::FromStr;

use super::{Selection, SelectionError};
use crate::device::DeviceKind;

/// Words that make sense on at least one device.
///
/// ```
/// use aisp_engine::DeviceKind;
/// use aisp_engine::optimizations::SelectionText;
///
/// let text: SelectionText = "all,-cuda-graphs".parse()?;
/// assert!(text.on(DeviceKind::Cuda)?.iter().all(|switch| switch.name() != "cuda-graphs"));
/// # Ok::<(), aisp_engine::SelectionError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SelectionText(String);

impl SelectionText {
    /// What the words come to on a device.
    ///
    /// Errors: a switch that does not apply there, a conflict, an unmet requirement.
    pub fn on(&self, device: DeviceKind) -> Result<Selection, SelectionError> {
        Selection::parse_on(&self.0, device)
    }
}

impl FromStr for SelectionText {
    type Err = SelectionError;

    fn from_str(text: &str) -> Result<Self, SelectionError> {
        match (Selection::parse_on(text, DeviceKind::Cpu), Selection::parse_on(text, DeviceKind::Cuda)) {
            (Ok(_), _) | (_, Ok(_)) => Ok(Self(text.to_owned())),
            // What only the device forbids is said when the device is known.
            (Err(SelectionError::NotOnDevice { .. }), Err(_)) => Ok(Self(text.to_owned())),
            (Err(error), Err(_)) => Err(error),
        }
    }
}

impl fmt::Display for SelectionText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
