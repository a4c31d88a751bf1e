//! The start page: what was won, and every arm of every lab with its interval.

use crate::analysis::findings::recommendations;
use crate::analysis::leaderboard::{Leaderboard, leaderboards};
use crate::analysis::report::memory;
use crate::analysis::{Group, Row, groups};
use crate::dashboard::api::summary;
use crate::dashboard::html::Html;
use crate::dashboard::plots::{IntervalScale, interval, verdict_class};
use crate::record::RunRecord;
use crate::units;

/// Cards, advice and one table a workload.
pub fn body(runs: &[RunRecord]) -> Html {
    let groups = groups(runs);
    let mut html = Html::new();
    cards(&mut html, runs);
    for (group, board) in groups.iter().zip(leaderboards(&groups)) {
        table(&mut html, group, &board);
    }
    advice(&mut html, &groups);
    html
}

fn cards(html: &mut Html, runs: &[RunRecord]) {
    let summary = summary(runs);
    html.raw("<section class=\"cards\">");
    let counts = [("runs", "runs"), ("labs", "workloads"), ("faster", "faster"), ("no_difference", "no difference")];
    let rest = [("slower", "slower"), ("wrong", "wrong"), ("not_engaged", "not engaged")];
    for (key, name) in counts.into_iter().chain(rest) {
        let count = summary[key].as_u64().unwrap_or(0);
        let alarm = matches!(key, "wrong" | "not_engaged") && count > 0;
        html.raw("<div").attribute("class", if alarm { "card alarm" } else { "card" }).raw("><b>").text(count);
        html.raw("</b><span>").text(name).raw("</span></div>");
    }
    if let (Some(ratio), Some(lab)) = (summary["best"]["speedup"]["ratio"].as_f64(), summary["best"]["lab"].as_str()) {
        let arm = summary["best"]["arm"].as_str().unwrap_or_default();
        html.raw("<div class=\"card best\"><b>x").text(format!("{ratio:.2}")).raw("</b><span>best gain: ");
        html.text(lab).raw(" / ").text(arm).raw("</span></div>");
    }
    html.raw("</section>");
}

fn table(html: &mut Html, group: &Group, board: &Leaderboard<'_>) {
    html.raw("<section class=\"panel\">");
    let noise = group.noise.map_or("noise not taken".to_owned(), |noise| format!("noise ±{:.1} %", noise * 100.0));
    let detail = format!("{:?} · {noise} · run {} · workload {}", group.goal, group.run_id, group.workload);
    super::origin(html, &group.lab, &group.device, &detail);
    html.raw("<p class=\"summary\">").text(&group.summary).raw("</p>");
    if group.debug_build {
        html.raw("<p class=\"caution\">debug build: these figures mean nothing</p>");
    }
    let scale = IntervalScale::of(group.rows.iter().filter_map(|row| row.speedup), group.noise);
    html.raw("<div class=\"scroll\"><table><thead><tr><th>#</th><th>arm</th><th>verdict</th><th class=\"plot\">");
    html.add(&scale.axis());
    html.raw("</th><th class=\"number\">work a second</th><th class=\"number\">latency</th>");
    html.raw("<th class=\"number\">peak memory</th><th class=\"number\">of the roof</th></tr></thead><tbody>");
    for (rank, arm) in board.ranked.iter().enumerate() {
        row(html, Some(rank + 1), arm, &scale);
    }
    for arm in &board.unranked {
        row(html, None, arm, &scale);
    }
    html.raw("</tbody></table></div></section>");
}

fn row(html: &mut Html, rank: Option<usize>, row: &Row, scale: &IntervalScale) {
    let dash = || "–".to_owned();
    html.raw("<tr").attribute("class", verdict_class(row.verdict)).raw("><td class=\"rank\">");
    html.text(rank.map_or(dash(), |rank| rank.to_string())).raw("</td><td class=\"arm\">").text(&row.arm);
    for reason in &row.not_engaged {
        html.raw("<span class=\"caution\">not engaged: ").text(reason).raw("</span>");
    }
    html.raw("</td><td><span class=\"verdict\">").text(&row.verdict_text).raw("</span></td><td class=\"plot\">");
    html.add(&interval(row.speedup, row.verdict, scale));
    let rate = row.rate.map_or(dash(), |rate| format!("{} {}/s", units::digits(rate.per_s), rate.unit));
    let latency = row.latency_ms.map_or(dash(), |ms| units::seconds(ms / 1000.0));
    let share = row.roofline_share.map_or(dash(), |share| format!("{:.0} %", share * 100.0));
    for cell in [rate, latency, memory(row.memory_bytes), share] {
        html.raw("</td><td class=\"number\">").text(cell);
    }
    html.raw("</td></tr>");
}

fn advice(html: &mut Html, groups: &[Group]) {
    html.raw("<section class=\"panel\"><h2>Advice</h2><ul class=\"advice\">");
    for it in recommendations(groups) {
        let urgency = format!("{:?}", it.urgency);
        html.raw("<li><b").attribute("class", urgency.to_lowercase()).raw(">").text(&urgency).raw("</b> <span>");
        html.text(&it.about).raw("</span> ").text(&it.text).raw("</li>");
    }
    html.raw("</ul></section>");
}
