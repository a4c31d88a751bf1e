//! The gain of one arm from run to run, with intervals.

use super::scale::Scale;
use super::{Html, at, label, line, verdict_class};
use crate::analysis::history::{Entry, History};
use crate::units;

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 150.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 24.0;

/// The plot of one arm; a run whose outputs were wrong shows a cross instead of a gain.
pub fn history(history: &History) -> Html {
    let gains = history.entries.iter().filter_map(|entry| entry.speedup);
    let (low, high) = gains.fold((0.95f64, 1.05f64), |(low, high), gain| (low.min(gain.low), high.max(gain.high)));
    let room = (high - low) * 0.06;
    let y = Scale::new(low - room, high + room, HEIGHT - BOTTOM, TOP);
    let x = Scale::new(0.0, (history.entries.len().max(2) - 1) as f64, LEFT + 14.0, WIDTH - RIGHT - 8.0);

    let mut html = Html::new();
    html.raw("<svg class=\"history\" role=\"img\"").attribute("viewBox", format!("0 0 {WIDTH} {HEIGHT}"));
    html.raw("><title>").text(format!("{} / {}: gain by run", history.lab, history.arm)).raw("</title>");
    for tick in y.ticks() {
        line(&mut html, "grid", (LEFT, y.place(tick)), (WIDTH - RIGHT, y.place(tick)));
        label(&mut html, "tick", (LEFT - 6.0, y.place(tick) + 4.0), "end", format!("x{}", units::short(tick)));
    }
    line(&mut html, "one", (LEFT, y.place(1.0)), (WIDTH - RIGHT, y.place(1.0)));
    for (at, entry) in history.entries.iter().enumerate() {
        mark(&mut html, entry, x.place(at as f64), &y);
    }
    if let (Some(first), Some(last)) = (history.entries.first(), history.entries.last()) {
        label(&mut html, "tick", (LEFT, HEIGHT - 6.0), "start", day(&first.date));
        if history.entries.len() > 1 {
            label(&mut html, "tick", (WIDTH - RIGHT, HEIGHT - 6.0), "end", day(&last.date));
        }
    }
    html.raw("</svg>");
    html
}

fn mark(html: &mut Html, entry: &Entry, x: f64, y: &Scale) {
    html.raw("<g").attribute("class", verdict_class(Some(entry.verdict))).raw("><title>");
    let commit = entry.commit.as_deref().unwrap_or("no commit");
    let dirty = if entry.dirty { " + changes" } else { "" };
    let gain = entry
        .speedup
        .map_or("outputs wrong".to_owned(), |gain| format!("x{:.3} [{:.3}, {:.3}]", gain.ratio, gain.low, gain.high));
    html.text(format!("{} ({}, {commit}{dirty}): {gain}", entry.run_id, entry.date)).raw("</title>");
    match entry.speedup {
        Some(gain) => {
            line(html, "whisker", (x, y.place(gain.low)), (x, y.place(gain.high)));
            html.raw("<circle").attribute("cx", at(x)).attribute("cy", at(y.place(gain.ratio))).raw(" r=\"4\"/>");
        }
        None => {
            let bottom = HEIGHT - BOTTOM - 8.0;
            line(html, "cross", (x - 5.0, bottom - 5.0), (x + 5.0, bottom + 5.0));
            line(html, "cross", (x - 5.0, bottom + 5.0), (x + 5.0, bottom - 5.0));
        }
    }
    html.raw("</g>");
}

/// The day of an RFC 3339 date.
fn day(date: &str) -> &str {
    date.get(..10).unwrap_or(date)
}
