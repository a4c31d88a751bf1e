//! Plots as inline SVG. Colours come from the style sheet by class, so that they follow light and dark.

mod history;
mod interval;
mod scale;
mod scatter;

pub use history::history;
pub use interval::{IntervalScale, interval};
pub use scatter::scatter;

use super::html::Html;
use crate::record::Verdict;

/// Class of a verdict in the style sheet.
pub fn verdict_class(verdict: Option<Verdict>) -> &'static str {
    match verdict {
        None => "baseline",
        Some(Verdict::Faster) => "faster",
        Some(Verdict::Slower) => "slower",
        Some(Verdict::NoDifference) => "same",
        Some(Verdict::Wrong) => "wrong",
    }
}

/// A number as a coordinate.
fn at(value: f64) -> String {
    format!("{value:.1}")
}

fn line(html: &mut Html, class: &'static str, from: (f64, f64), to: (f64, f64)) {
    html.raw("<line").attribute("class", class).attribute("x1", at(from.0)).attribute("y1", at(from.1));
    html.attribute("x2", at(to.0)).attribute("y2", at(to.1)).raw("/>");
}

fn label(html: &mut Html, class: &'static str, place: (f64, f64), anchor: &'static str, text: impl std::fmt::Display) {
    html.raw("<text").attribute("class", class).attribute("x", at(place.0)).attribute("y", at(place.1));
    html.attribute("text-anchor", anchor).raw(">").text(text).raw("</text>");
}
