//! One gain with its interval, on an axis that a whole table shares; the band around 1 is noise.

use super::scale::Scale;
use super::{Html, at, label, line, verdict_class};
use crate::record::{Ratio, Verdict};
use crate::units;

const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 26.0;
const EDGE: f64 = 14.0;

/// The logarithmic axis of one table.
#[derive(Debug, Clone, Copy)]
pub struct IntervalScale {
    scale: Scale,
    low: f64,
    high: f64,
    noise: f64,
}

impl IntervalScale {
    /// An axis that holds all these gains, and 1.
    pub fn of(gains: impl Iterator<Item = Ratio>, noise: Option<f64>) -> Self {
        let noise = noise.unwrap_or(0.0).clamp(0.0, 0.9);
        let start = (0.9 * (1.0 - noise), 1.1 * (1.0 + noise));
        let positive = gains.filter(|gain| gain.low > 0.0 && gain.high.is_finite());
        let (low, high) = positive.fold(start, |(low, high), gain| (low.min(gain.low), high.max(gain.high)));
        Self { scale: Scale::new(low.ln(), high.ln(), EDGE, WIDTH - EDGE), low, high, noise }
    }

    fn place(&self, gain: f64) -> f64 {
        self.scale.place(gain.max(1e-9).ln())
    }

    /// The axis itself, for the table's head.
    pub fn axis(&self) -> Html {
        let mut html = open("gain over the baseline, logarithmic");
        let all = [0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0];
        let mut last = f64::NEG_INFINITY;
        for tick in all.into_iter().filter(|tick| (self.low..=self.high).contains(tick)) {
            let x = self.place(tick);
            if x - last >= 34.0 || tick == 1.0 {
                label(&mut html, "tick", (x, 17.0), "middle", format!("x{}", units::short(tick)));
                last = x;
            }
        }
        html.raw("</svg>");
        html
    }
}

/// The plot of one row; without a gain only the axis shows.
pub fn interval(gain: Option<Ratio>, verdict: Option<Verdict>, scale: &IntervalScale) -> Html {
    let what =
        gain.map_or("no gain".to_owned(), |gain| format!("x{:.3} [{:.3}, {:.3}]", gain.ratio, gain.low, gain.high));
    let mut html = open(&what);
    let middle = HEIGHT / 2.0;
    let band = (scale.place(1.0 - scale.noise), scale.place(1.0 + scale.noise));
    html.raw("<rect").attribute("class", "noise").attribute("x", at(band.0)).attribute("y", "0");
    html.attribute("width", at(band.1 - band.0)).attribute("height", at(HEIGHT)).raw("/>");
    line(&mut html, "one", (scale.place(1.0), 0.0), (scale.place(1.0), HEIGHT));
    if let Some(gain) = gain {
        html.raw("<g").attribute("class", verdict_class(verdict)).raw(">");
        line(&mut html, "whisker", (scale.place(gain.low), middle), (scale.place(gain.high), middle));
        html.raw("<circle").attribute("cx", at(scale.place(gain.ratio))).attribute("cy", at(middle));
        html.raw(" r=\"4\"/></g>");
    }
    html.raw("</svg>");
    html
}

fn open(title: &str) -> Html {
    let mut html = Html::new();
    html.raw("<svg class=\"interval\" role=\"img\"").attribute("viewBox", format!("0 0 {WIDTH} {HEIGHT}"));
    html.raw("><title>").text(title).raw("</title>");
    html
}
