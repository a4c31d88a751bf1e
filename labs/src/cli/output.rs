//! Standard output that may end early: a reader such as `head` that has seen enough is no error.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::LabError;

/// Prints text as it is.
///
/// Errors: an output that cannot be written, unless its reader has gone.
pub fn print(text: &str) -> Result<(), LabError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(LabError::System { what: "standard output", message: error.to_string() })
        }
        _ => Ok(()),
    }
}

/// Prints a line of text, or several.
///
/// Errors: as [`print`].
pub fn print_line(text: &str) -> Result<(), LabError> {
    print(&format!("{}\n", text.trim_end()))
}

/// Prints indented JSON.
///
/// Errors: as [`print`], and an answer that cannot be JSON.
pub fn print_json(answer: &impl Serialize) -> Result<(), LabError> {
    let system = |error: serde_json::Error| LabError::System { what: "JSON", message: error.to_string() };
    print_line(&serde_json::to_string_pretty(answer).map_err(system)?)
}
