//! Throughput against memory, one plot a workload: rows of different workloads never share one.

use crate::analysis::groups;
use crate::analysis::pareto::{Frontier, frontiers};
use crate::analysis::report::memory;
use crate::dashboard::html::Html;
use crate::dashboard::plots::scatter;
use crate::record::RunRecord;
use crate::units;

/// One plot and one table a workload.
pub fn body(runs: &[RunRecord]) -> Html {
    let groups = groups(runs);
    let mut html = Html::new();
    html.raw(
        "<p class=\"lead\">Filled rows are on the frontier: no other row of the same workload is at least as good in ",
    );
    html.raw("throughput, latency and memory and better, beyond noise, in one.</p>");
    for frontier in frontiers(&groups) {
        panel(&mut html, &frontier);
    }
    html
}

fn panel(html: &mut Html, frontier: &Frontier<'_>) {
    html.raw("<section class=\"panel\">");
    super::origin(html, frontier.lab, frontier.device, &format!("workload {}", frontier.workload));
    html.add(&scatter(frontier));
    html.raw("<div class=\"scroll\"><table><thead><tr><th>arm</th><th class=\"number\">work a second</th>");
    html.raw(
        "<th class=\"number\">latency</th><th class=\"number\">peak memory</th><th>frontier</th></tr></thead><tbody>",
    );
    for point in &frontier.points {
        let rate = format!("{} {}/s", units::digits(point.rate_per_s), frontier.rate_unit);
        html.raw("<tr><td class=\"arm\">").text(&point.arm);
        for cell in [rate, units::seconds(point.latency_ms / 1000.0), memory(Some(point.memory_bytes))] {
            html.raw("</td><td class=\"number\">").text(cell);
        }
        match &point.dominated_by {
            None => html.raw("</td><td><b class=\"use\">on it</b>"),
            Some(other) => html.raw("</td><td class=\"quiet\">beaten by ").text(other),
        };
        html.raw("</td></tr>");
    }
    html.raw("</tbody></table></div>");
    for left_out in &frontier.left_out {
        html.raw("<p class=\"caution\">left out: ").text(left_out).raw("</p>");
    }
    html.raw("</section>");
}
