//! The stacking matrix as a picture: three bars a switch with their intervals, a line at 1. Plain SVG, readable on
//! light and dark pages.

use std::fmt::Write;

use crate::stacking::{Matrix, Measurement};

const WIDTH: f64 = 760.0;
const LABEL_WIDTH: f64 = 180.0;
const TEXT_WIDTH: f64 = 60.0;
const BAR_HEIGHT: f64 = 14.0;
const ROW_HEIGHT: f64 = 3.0 * BAR_HEIGHT + 14.0;
const HEAD_HEIGHT: f64 = 48.0;

/// Name and colour of each series.
const SERIES: [(&str, &str); 3] =
    [("alone", "#4c78a8"), ("stack up to it", "#54a24b"), ("added to the rest", "#e4a532")];

/// Draws the matrix.
pub fn svg(matrix: &Matrix) -> String {
    let height = HEAD_HEIGHT + ROW_HEIGHT * matrix.rows.len() as f64 + 12.0;
    let scale = scale(matrix);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let _ = writeln!(svg, "<text x=\"8\" y=\"16\" fill=\"#222222\">Speed-up; {}</text>", escaped(&matrix.workload));
    for (at, (name, colour)) in SERIES.into_iter().enumerate() {
        let x = LABEL_WIDTH + at as f64 * 160.0;
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"26\" width=\"10\" height=\"10\" fill=\"{colour}\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"35\" fill=\"#222222\">{name}</text>", x + 16.0);
    }
    for (at, row) in matrix.rows.iter().enumerate() {
        let top = HEAD_HEIGHT + at as f64 * ROW_HEIGHT;
        let middle = top + 1.5 * BAR_HEIGHT + 4.0;
        let _ = writeln!(svg, "<text x=\"8\" y=\"{middle:.1}\" fill=\"#222222\">{}</text>", escaped(&row.switch));
        for (series, measured) in [&row.alone, &row.cumulative, &row.in_stack].into_iter().enumerate() {
            bar(&mut svg, top + series as f64 * BAR_HEIGHT, SERIES[series].1, measured, scale);
        }
    }
    let one = LABEL_WIDTH + scale;
    let (top, bottom) = (HEAD_HEIGHT - 4.0, height - 12.0);
    let _ = writeln!(svg, "<path d=\"M{one:.1} {top}V{bottom}\" stroke=\"#888888\" stroke-dasharray=\"3 3\"/>");
    svg + "</svg>\n"
}

/// Pixels of a speed-up of 1.
fn scale(matrix: &Matrix) -> f64 {
    let measured = matrix.rows.iter().flat_map(|row| [&row.alone, &row.cumulative, &row.in_stack]);
    let most = measured.filter_map(|m| m.speedup).map(|speedup| speedup.high).fold(1.0, f64::max);
    (WIDTH - LABEL_WIDTH - TEXT_WIDTH) / most
}

fn bar(svg: &mut String, y: f64, colour: &str, measured: &Measurement, scale: f64) {
    let middle = y + BAR_HEIGHT / 2.0;
    let Some(speedup) = measured.speedup else {
        let text = escaped(&measured.text);
        let _ = writeln!(svg, "<text x=\"{LABEL_WIDTH}\" y=\"{:.1}\" fill=\"#b00020\">{text}</text>", middle + 4.0);
        return;
    };
    let x = |ratio: f64| LABEL_WIDTH + ratio * scale;
    let (width, height) = (speedup.ratio * scale, BAR_HEIGHT - 2.0);
    let _ = writeln!(
        svg,
        "<rect x=\"{LABEL_WIDTH}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{colour}\"/>"
    );
    let (low, high) = (x(speedup.low), x(speedup.high));
    let _ = writeln!(svg, "<path class=\"interval\" d=\"M{low:.1} {middle:.1}H{high:.1}\" stroke=\"#222222\"/>");
    let (at, line) = (high + 6.0, middle + 4.0);
    let _ = writeln!(svg, "<text x=\"{at:.1}\" y=\"{line:.1}\" fill=\"#222222\">x{:.2}</text>", speedup.ratio);
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
