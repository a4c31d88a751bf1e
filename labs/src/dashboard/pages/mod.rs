//! The pages: one file each, over one frame.

mod history;
mod leaderboard;
mod pareto;
mod stacking;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use super::Dashboard;
use super::html::Html;
use crate::LabError;
use crate::record::RunRecord;

/// A page: address, name in the menu, and what it shows of the runs.
struct Page {
    path: &'static str,
    name: &'static str,
    body: fn(&[RunRecord]) -> Html,
}

const PAGES: [Page; 4] = [
    Page { path: "/", name: "Leaderboard", body: leaderboard::body },
    Page { path: "/pareto", name: "Pareto", body: pareto::body },
    Page { path: "/stacking", name: "Stacking", body: stacking::body },
    Page { path: "/history", name: "History", body: history::body },
];

/// All pages, and an answer for every other address.
pub fn routes() -> Router<Dashboard> {
    let mut router = Router::new().fallback(|| async {
        let mut body = Html::new();
        body.raw("<p class=\"empty\">There is no such page.</p>");
        (StatusCode::NOT_FOUND, html_response(frame("Not found", "", &body)))
    });
    for page in &PAGES {
        let answer = move |State(dashboard): State<Dashboard>| async move { show(page, dashboard.runs().await) };
        router = router.route(page.path, get(answer));
    }
    router
}

fn show(page: &'static Page, runs: Result<Vec<RunRecord>, LabError>) -> Response {
    let body = match &runs {
        Ok(runs) if runs.is_empty() => {
            let mut body = Html::new();
            body.raw("<p class=\"empty\">No runs yet: <code>aisp bench run</code> makes the first.</p>");
            body
        }
        Ok(runs) => (page.body)(runs),
        Err(error) => {
            let mut body = Html::new();
            body.raw("<p class=\"empty\">").text(error).raw("</p>");
            return (StatusCode::INTERNAL_SERVER_ERROR, html_response(frame(page.name, page.path, &body)))
                .into_response();
        }
    };
    html_response(frame(page.name, page.path, &body))
}

fn html_response(html: Html) -> Response {
    axum::response::Html(html.into_string()).into_response()
}

/// Head, menu and live progress around a body.
fn frame(title: &'static str, path: &'static str, body: &Html) -> Html {
    let mut html = Html::new();
    html.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">");
    html.raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">");
    html.raw("<meta name=\"color-scheme\" content=\"light dark\"><title>").text(title).raw(" · aisp lab</title>");
    html.raw("<link rel=\"stylesheet\" href=\"/style.css\"><script src=\"/live.js\" defer></script></head><body>");
    html.raw("<header><a class=\"brand\" href=\"/\">aisp <span>lab</span></a><nav>");
    for page in &PAGES {
        html.raw("<a").attribute("href", page.path);
        if page.path == path {
            html.raw(" aria-current=\"page\"");
        }
        html.raw(">").text(page.name).raw("</a>");
    }
    html.raw("</nav><div id=\"live\" data-state=\"idle\"><span id=\"live-text\">no run under way</span>");
    html.raw("<progress id=\"live-bar\" max=\"1\" value=\"0\" aria-label=\"progress of the run\"></progress></div></header><main>");
    html.add(body).raw("</main></body></html>\n");
    html
}

/// Name, device and origin of a group of rows, as every page shows them.
fn origin(html: &mut Html, lab: &str, device: &str, detail: &str) {
    html.raw("<div class=\"origin\"><h2>")
        .text(lab)
        .raw("</h2><p>")
        .text(device)
        .raw(" · ")
        .text(detail)
        .raw("</p></div>");
}
