//! Which switches combine: every measured set of switches as a row, every switch as a column.

use crate::analysis::stacking::{Cell, Stack, stacks};
use crate::dashboard::html::Html;
use crate::dashboard::plots::{IntervalScale, interval, verdict_class};
use crate::record::RunRecord;

/// One matrix a lab that has switches.
pub fn body(runs: &[RunRecord]) -> Html {
    let stacks = stacks(runs);
    let mut html = Html::new();
    if stacks.is_empty() {
        html.raw("<p class=\"empty\">No run has switches yet: <code>aisp bench stacking</code> measures them.</p>");
        return html;
    }
    html.raw("<p class=\"lead\">● ran &nbsp; ○ was asked for and did not run &nbsp; an empty cell was not asked for. ");
    html.raw("Gains are over the same baseline, in the same run.</p>");
    for stack in &stacks {
        matrix(&mut html, stack);
    }
    html
}

fn matrix(html: &mut Html, stack: &Stack) {
    html.raw("<section class=\"panel\">");
    super::origin(html, &stack.lab, &stack.device, &format!("run {}", stack.run_id));
    let scale = IntervalScale::of(stack.arms.iter().filter_map(|arm| arm.speedup), None);
    html.raw("<div class=\"scroll\"><table class=\"matrix\"><thead><tr><th>arm</th>");
    for switch in &stack.switches {
        html.raw("<th class=\"switch\"><span>").text(switch).raw("</span></th>");
    }
    html.raw("<th class=\"plot\">").add(&scale.axis()).raw("</th><th>verdict</th></tr></thead><tbody>");
    for arm in &stack.arms {
        html.raw("<tr")
            .attribute("class", verdict_class(Some(arm.verdict)))
            .raw("><td class=\"arm\">")
            .text(&arm.arm)
            .raw("</td>");
        for (cell, switch) in arm.cells.iter().zip(&stack.switches) {
            let (class, mark, meaning) = match cell {
                Cell::Off => ("cell", "", "off"),
                Cell::Engaged => ("cell on", "●", "ran"),
                Cell::NotEngaged => ("cell idle", "○", "asked for, did not run"),
            };
            html.raw("<td").attribute("class", class).attribute("title", format!("{switch}: {meaning}")).raw(">");
            html.text(mark).raw("</td>");
        }
        html.raw("<td class=\"plot\">").add(&interval(arm.speedup, Some(arm.verdict), &scale));
        html.raw("</td><td><span class=\"verdict\">").text(&arm.verdict_text).raw("</span></td></tr>");
    }
    html.raw("</tbody></table></div></section>");
}
