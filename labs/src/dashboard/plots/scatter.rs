//! Throughput over memory, with the frontier as a stair; up and left is better.

use super::scale::Scale;
use super::{Html, at, label, line};
use crate::analysis::pareto::{Frontier, Point};
use crate::units;

const WIDTH: f64 = 1080.0;
const HEIGHT: f64 = 330.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 48.0;
const BYTES_PER_MIB: f64 = 1024.0 * 1024.0;

/// The plot of one workload.
pub fn scatter(frontier: &Frontier<'_>) -> Html {
    let memory = |point: &Point| point.memory_bytes as f64 / BYTES_PER_MIB;
    let most = |figure: &dyn Fn(&Point) -> f64| frontier.points.iter().map(figure).fold(0.0, f64::max) * 1.08;
    let x = Scale::new(0.0, most(&memory), LEFT, WIDTH - RIGHT);
    let y = Scale::new(0.0, most(&|point| point.rate_per_s), HEIGHT - BOTTOM, TOP);
    let place = |point: &Point| (x.place(memory(point)), y.place(point.rate_per_s));

    let mut html = Html::new();
    html.raw("<svg class=\"scatter\" role=\"img\"").attribute("viewBox", format!("0 0 {WIDTH} {HEIGHT}"));
    html.raw("><title>").text(format!("{}: throughput over peak memory", frontier.lab)).raw("</title>");
    axes(&mut html, &x, &y, frontier.rate_unit);
    stair(&mut html, frontier, place);
    for (point, label_y) in frontier.points.iter().zip(label_heights(frontier, place)) {
        dot(&mut html, point, place(point), label_y);
    }
    html.raw("</svg>");
    html
}

fn axes(html: &mut Html, x: &Scale, y: &Scale, unit: &str) {
    let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    for tick in y.ticks() {
        line(html, "grid", (LEFT, y.place(tick)), (right, y.place(tick)));
        label(html, "tick", (LEFT - 8.0, y.place(tick) + 4.0), "end", units::short(tick));
    }
    for tick in x.ticks() {
        line(html, "grid", (x.place(tick), TOP), (x.place(tick), bottom));
        label(html, "tick", (x.place(tick), bottom + 18.0), "middle", units::short(tick));
    }
    line(html, "axis", (LEFT, bottom), (right, bottom));
    line(html, "axis", (LEFT, TOP), (LEFT, bottom));
    label(html, "caption", (right, HEIGHT - 8.0), "end", "peak memory, MiB → less is better");
    label(html, "caption", (LEFT, TOP - 8.0), "start", format!("{unit} a second ↑ more is better"));
}

/// The stair that no row beats: from the smallest row on the frontier up to the fastest.
fn stair(html: &mut Html, frontier: &Frontier<'_>, place: impl Fn(&Point) -> (f64, f64)) {
    let mut steps: Vec<(f64, f64)> = frontier.points.iter().filter(|point| point.on_frontier).map(place).collect();
    steps.sort_by(|a, b| a.0.total_cmp(&b.0));
    let Some(first) = steps.first() else { return };
    let mut path = format!("M{} {}", at(first.0), at(HEIGHT - BOTTOM));
    let mut highest = f64::MAX;
    for (x, y) in steps {
        if y < highest {
            path += &format!(" H{} V{}", at(x), at(y));
            highest = y;
        }
    }
    path += &format!(" H{}", at(WIDTH - RIGHT));
    html.raw("<path class=\"stair\"").attribute("d", path).raw("/>");
}

fn dot(html: &mut Html, point: &Point, (x, y): (f64, f64), label_y: f64) {
    let class = if point.on_frontier { "frontier" } else { "beaten" };
    html.raw("<g").attribute("class", class).raw("><title>");
    let rate = units::digits(point.rate_per_s);
    let latency = units::seconds(point.latency_ms / 1000.0);
    html.text(format!("{}: {rate}/s, {latency}, {}", point.arm, units::bytes(point.memory_bytes as f64)));
    html.raw("</title><circle").attribute("cx", at(x)).attribute("cy", at(y)).raw(" r=\"6\"/>");
    let left_side = x > WIDTH * 0.7;
    if (label_y - y).abs() > 8.0 {
        line(html, "leader", (x, y), (if left_side { x - 10.0 } else { x + 10.0 }, label_y));
    }
    let (label_x, anchor) = if left_side { (x - 10.0, "end") } else { (x + 10.0, "start") };
    label(html, "name", (label_x, label_y - 4.0), anchor, &point.arm);
    html.raw("</g>");
}

/// Heights of the labels, moved apart where they would cover each other.
fn label_heights(frontier: &Frontier<'_>, place: impl Fn(&Point) -> (f64, f64)) -> Vec<f64> {
    let places: Vec<(f64, f64)> = frontier.points.iter().map(place).collect();
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|a, b| places[*a].1.total_cmp(&places[*b].1));
    let mut heights = vec![0.0; places.len()];
    let mut placed: Vec<(f64, f64)> = Vec::new();
    for at in order {
        let (x, mut y) = places[at];
        while placed.iter().any(|(other_x, other_y)| (other_x - x).abs() < 170.0 && (other_y - y).abs() < 15.0) {
            y += 3.0;
        }
        placed.push((x, y));
        heights[at] = y;
    }
    heights
}
