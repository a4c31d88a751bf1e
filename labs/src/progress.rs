//! Who is told how far a run is. Bars go to standard error, so that output stays clean.

use std::cell::RefCell;

use indicatif::{ProgressBar, ProgressStyle};

/// Follows a run.
pub trait Progress {
    /// A lab begins; it will take this many iterations.
    fn lab_started(&self, id: &str, num_iterations: u64);

    /// One of them is through.
    fn iteration_done(&self);

    /// The lab is through.
    fn lab_finished(&self);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn lab_started(&self, _id: &str, _num_iterations: u64) {}

    fn iteration_done(&self) {}

    fn lab_finished(&self) {}
}

/// A bar a lab; nothing where standard error is no terminal.
#[derive(Debug, Default)]
pub struct Bars {
    current: RefCell<Option<ProgressBar>>,
}

impl Progress for Bars {
    fn lab_started(&self, id: &str, num_iterations: u64) {
        let bar = ProgressBar::new(num_iterations).with_message(id.to_owned());
        if let Ok(style) = ProgressStyle::with_template("{msg:32} {bar:30} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        *self.current.borrow_mut() = Some(bar);
    }

    fn iteration_done(&self) {
        if let Some(bar) = &*self.current.borrow() {
            bar.inc(1);
        }
    }

    fn lab_finished(&self) {
        if let Some(bar) = self.current.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}
