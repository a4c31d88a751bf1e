//! The live line on stderr: a bar on a terminal, a plain line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bench_client::{Live, Snapshot};
use indicatif::{ProgressBar, ProgressStyle};

const TERMINAL_TICK: Duration = Duration::from_millis(200);
const LOG_TICK: Duration = Duration::from_secs(5);

/// A thread that shows a run's progress until it is dropped.
pub struct Progress {
    finish: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts showing; shows nothing if no thread can be had.
    pub fn start(live: Arc<Live>) -> Self {
        let (finish, finished) = channel();
        let show = move || {
            if std::io::stderr().is_terminal() { on_terminal(&live, &finished) } else { as_lines(&live, &finished) }
        };
        let thread = std::thread::Builder::new().name("bench-progress".into()).spawn(show).ok();
        Self { finish: Some(finish), thread }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.finish.take());
        if let Some(thread) = self.thread.take() {
            // Its end matters, not how it ended.
            let _ = thread.join();
        }
    }
}

fn on_terminal(live: &Live, finished: &Receiver<()>) {
    let bar = ProgressBar::new(0);
    let style = ProgressStyle::with_template("{spinner} {bar:24} {pos}/{len} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message("preparing prompts, warming up");
    let mut speed = Speed::default();
    while !is_over(finished, TERMINAL_TICK) {
        let now = live.snapshot();
        bar.tick();
        if now.total > 0 {
            bar.set_length(now.total as u64);
            bar.set_position((now.completed + now.failed) as u64);
            bar.set_message(describe(&now, speed.tokens_per_s(&now)));
        }
    }
    bar.finish_and_clear();
}

fn as_lines(live: &Live, finished: &Receiver<()>) {
    let mut speed = Speed::default();
    while !is_over(finished, LOG_TICK) {
        let now = live.snapshot();
        if now.total > 0 {
            let ended = now.completed + now.failed;
            eprintln!("{ended}/{} {}", now.total, describe(&now, speed.tokens_per_s(&now)));
        }
    }
}

fn is_over(finished: &Receiver<()>, tick: Duration) -> bool {
    !matches!(finished.recv_timeout(tick), Err(RecvTimeoutError::Timeout))
}

fn describe(now: &Snapshot, tokens_per_s: f64) -> String {
    let in_flight = now.sent.saturating_sub(now.completed + now.failed);
    let ttft = now.mean_ttft_ms.map_or(String::new(), |ttft_ms| format!(", mean TTFT {ttft_ms:.0} ms"));
    let failed = if now.failed > 0 { format!(", {} FAILED", now.failed) } else { String::new() };
    format!("{in_flight} in flight, {tokens_per_s:.0} tokens/s{ttft}{failed}")
}

/// Tokens per second since the last look, smoothed.
#[derive(Default)]
struct Speed {
    last: Option<(Instant, u64)>,
    smoothed: f64,
}

impl Speed {
    fn tokens_per_s(&mut self, now: &Snapshot) -> f64 {
        let moment = Instant::now();
        if let Some((before, tokens)) = self.last {
            let seconds = moment.duration_since(before).as_secs_f64().max(1e-3);
            let current = now.output_tokens.saturating_sub(tokens) as f64 / seconds;
            self.smoothed = if self.smoothed == 0.0 { current } else { 0.7 * self.smoothed + 0.3 * current };
        }
        self.last = Some((moment, now.output_tokens));
        self.smoothed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_matters() {
        let now = Snapshot { total: 10, sent: 6, completed: 3, failed: 1, output_tokens: 40, mean_ttft_ms: Some(12.4) };
        assert_eq!(describe(&now, 99.6), "2 in flight, 100 tokens/s, mean TTFT 12 ms, 1 FAILED");
        assert_eq!(describe(&Snapshot::default(), 0.0), "0 in flight, 0 tokens/s");
    }
}
