//! Checks that the calculators share: each error names the flag, what it takes and what it got.

use crate::LabError;

/// An input error with this text.
pub fn refuse<T>(text: impl Into<String>) -> Result<T, LabError> {
    Err(LabError::Input(text.into()))
}

/// `value`, if it is a finite number above zero.
///
/// Errors: a text with the flag's name.
pub fn positive(name: &str, value: f64) -> Result<f64, LabError> {
    check(name, value, value.is_finite() && value > 0.0, "above 0")
}

/// `value`, if it is a finite number and not negative.
///
/// Errors: a text with the flag's name.
pub fn not_negative(name: &str, value: f64) -> Result<f64, LabError> {
    check(name, value, value.is_finite() && value >= 0.0, "at least 0")
}

/// `value`, if it is a share: above 0 and at most 1.
///
/// Errors: a text with the flag's name.
pub fn share(name: &str, value: f64) -> Result<f64, LabError> {
    check(name, value, value > 0.0 && value <= 1.0, "above 0 and at most 1")
}

/// `value`, if `holds`; `range` says in words what is asked.
///
/// Errors: a text with the flag's name.
pub fn check(name: &str, value: f64, holds: bool, range: &str) -> Result<f64, LabError> {
    if holds { Ok(value) } else { refuse(format!("{name} must be {range}, it is {value}")) }
}
