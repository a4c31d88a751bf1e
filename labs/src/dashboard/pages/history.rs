//! Gains from run to run, and the runs themselves.

use crate::analysis::history::histories;
use crate::dashboard::html::Html;
use crate::dashboard::plots::history;
use crate::record::RunRecord;

/// A small plot for each arm, then all runs.
pub fn body(runs: &[RunRecord]) -> Html {
    let mut html = Html::new();
    html.raw("<p class=\"lead\">Gain of each arm over its own baseline in the same run, with the 95 % interval. ");
    html.raw("Seconds of different runs are not compared. A cross is a run whose outputs were wrong.</p>");
    html.raw("<section class=\"grid\">");
    for it in histories(runs) {
        html.raw("<figure class=\"panel\"><figcaption><b>").text(&it.arm).raw("</b> ").text(&it.lab);
        html.raw("<small>")
            .text(&it.device)
            .raw(" · workload ")
            .text(&it.workload)
            .raw("</small></figcaption>")
            .add(&history(&it))
            .raw("</figure>");
    }
    html.raw("</section>");
    table(&mut html, runs);
    html
}

fn table(html: &mut Html, runs: &[RunRecord]) {
    html.raw("<section class=\"panel\"><h2>Runs</h2><div class=\"scroll\"><table><thead><tr><th>run</th><th>date</th>");
    html.raw(
        "<th>device</th><th>commit</th><th>build</th><th class=\"number\">labs</th><th class=\"number\">load</th>",
    );
    html.raw("<th>command</th></tr></thead><tbody>");
    for run in runs {
        let manifest = &run.manifest;
        let commit: String = manifest.commit.as_deref().unwrap_or("none").chars().take(10).collect();
        html.raw("<tr><td class=\"arm\">").text(&manifest.run_id);
        if run.partial {
            html.raw("<span class=\"caution\">stopped before its end</span>");
        }
        html.raw("</td><td>")
            .text(&manifest.date)
            .raw("</td><td>")
            .text(&manifest.device)
            .raw("</td><td>")
            .text(commit);
        html.text(if manifest.dirty { " + changes" } else { "" }).raw("</td><td>").text(&manifest.build);
        html.raw("</td><td class=\"number\">").text(run.labs.len()).raw("</td><td class=\"number\">");
        html.text(manifest.load_average.map_or("–".to_owned(), |load| format!("{load:.2}"))).raw("</td><td><code>");
        html.text(manifest.command.join(" ")).raw("</code></td></tr>");
    }
    html.raw("</tbody></table></div></section>");
}
