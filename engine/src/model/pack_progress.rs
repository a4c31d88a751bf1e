//! How far the packing of weights is, said once it has taken a while.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shorter waits are not worth a line.
const PATIENCE: Duration = Duration::from_secs(1);

/// A bar on standard error that appears after [`PATIENCE`].
pub(super) struct PackProgress {
    bar: ProgressBar,
    is_wanted: bool,
    started: Instant,
}

impl PackProgress {
    /// Over `num_bytes` of weights; without a bar unless `is_wanted`.
    pub fn new(num_bytes: u64, is_wanted: bool) -> Self {
        let bar = ProgressBar::with_draw_target(Some(num_bytes), ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("packing weights {wide_bar} {bytes}/{total_bytes} eta {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, is_wanted, started: Instant::now() }
    }

    /// So many more bytes of the checkpoint are packed.
    pub fn add(&mut self, num_bytes: u64) {
        self.bar.inc(num_bytes);
        if self.is_wanted && self.started.elapsed() > PATIENCE {
            self.is_wanted = false;
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for PackProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
