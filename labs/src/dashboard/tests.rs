//! Every route, over a folder of runs with hostile names in it.

use std::path::Path;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::ServiceExt;

use super::router;
use crate::analysis::rows::samples;
use crate::artifacts::write_run;
use crate::live::LiveFile;
use crate::progress::{Progress, Silent};
use crate::record::EngagedRecord;

const HOSTILE: &str = "<script>alert('x')</script>\"&";

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut run = samples::run("first", &[("paged", 2.0, 50), ("broken", 9.0, 9), ("unknown", 1.4, 0)]);
    samples::wrong(&mut run, 1);
    run.labs[0].variants[0].arm.requested = vec!["paged-kv".into()];
    run.labs[0].variants[0].arm.engaged =
        vec![EngagedRecord { name: "paged-kv".into(), engaged: true, count: 3, counts: "steps".into(), reason: None }];
    write_run(folder.path(), &run, "").unwrap();
    let mut hostile = run.clone();
    hostile.manifest.run_id = "second".into();
    hostile.manifest.device = HOSTILE.into();
    hostile.manifest.command = vec![HOSTILE.into()];
    let lab = &mut hostile.labs[0];
    for text in [&mut lab.id, &mut lab.summary, &mut lab.workload.fingerprint, &mut lab.variants[0].verdict_text] {
        *text = HOSTILE.into();
    }
    lab.variants[0].arm.name = HOSTILE.into();
    lab.variants[0].arm.requested = vec![HOSTILE.into()];
    write_run(folder.path(), &hostile, "").unwrap();
    folder
}

async fn get(artifacts: &Path, host: &str, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).header("host", host).body(Body::empty()).unwrap();
    let response = router(artifacts.to_owned()).oneshot(request).await.unwrap();
    let status = response.status();
    assert!(status == StatusCode::FORBIDDEN || response.headers().contains_key("content-security-policy"), "{path}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn json(artifacts: &Path, path: &str) -> Value {
    let (status, body) = get(artifacts, "127.0.0.1:8100", path).await;
    assert_eq!(status, StatusCode::OK, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn pages_escape_everything_and_ask_nothing_of_others() {
    let folder = folder();
    for (path, part) in [("/", "x2.00"), ("/pareto", "beaten by"), ("/stacking", "paged-kv"), ("/history", "second")] {
        let (status, body) = get(folder.path(), "localhost:8100", path).await;
        assert_eq!(status, StatusCode::OK, "{path}");
        assert!(body.contains(part), "{path} lacks {part}");
        assert!(body.contains("&lt;script&gt;alert(") && !body.contains("<script>alert("), "{path} is not escaped");
        for outside in ["http://", "https://", "//cdn", "@import", " style=", "onerror="] {
            assert!(!body.contains(outside), "{path} has {outside}");
        }
    }
    assert_eq!(get(folder.path(), "localhost", "/nowhere").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn every_json_route_answers() {
    let folder = folder();
    let path = folder.path();
    assert_eq!(json(path, "/api/benchmarks").await.as_array().unwrap().len(), 2);
    let summary = json(path, "/api/summary").await;
    assert_eq!((summary["runs"].as_u64(), summary["wrong"].as_u64()), (Some(2), Some(2)));
    for name in ["leaderboards", "pareto", "tradeoffs", "recommendations", "stacking", "scaling"] {
        let answer = json(path, &format!("/api/analysis/{name}")).await;
        assert!(!answer.as_array().unwrap().is_empty(), "{name}");
    }
    let whatif = json(path, "/api/analysis/whatif?vram=1&latency=1500").await;
    let fits: Vec<_> = whatif.as_array().unwrap().iter().map(|it| it["fit"].as_str().unwrap()).collect();
    assert_eq!(
        fits,
        ["fits", "fits", "unknown", "unknown", "does_not_fit", "does_not_fit", "does_not_fit", "does_not_fit"]
    );
    let cost = json(path, "/api/analysis/cost?gpu=h100&top=1").await;
    assert_eq!((cost["tariff"]["usd_per_hour"].as_f64(), cost["rows"].as_array().unwrap().len()), (Some(3.5), 2));
    assert!(json(path, "/api/analysis/power").await["status"].is_string());
}

#[tokio::test]
async fn wrong_questions_are_answered_in_json() {
    let folder = folder();
    for path in ["whatif?vram=much", "whatif?colour=1", "cost?gpu=abacus", "cost?rate=-1", "cost?utilization=0"] {
        let (status, body) = get(folder.path(), "127.0.0.1", &format!("/api/analysis/{path}")).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}: {body}");
        assert!(serde_json::from_str::<Value>(&body).unwrap()["error"].is_string(), "{path}");
    }
}

#[tokio::test]
async fn names_of_the_outside_read_nothing() {
    let folder = folder();
    let (status, body) = get(folder.path(), "rebound.example:8100", "/api/summary").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(!body.contains("runs"));
}

#[tokio::test]
async fn no_runs_and_broken_runs_leave_a_page() {
    let folder = tempfile::tempdir().unwrap();
    assert!(get(folder.path(), "localhost", "/").await.1.contains("No runs yet"));
    std::fs::create_dir(folder.path().join("broken")).unwrap();
    std::fs::write(folder.path().join("broken/results.json"), "{").unwrap();
    assert!(get(folder.path(), "localhost", "/pareto").await.1.contains("No runs yet"));
    assert_eq!(json(folder.path(), "/api/benchmarks").await, serde_json::json!([]));
}

#[tokio::test]
async fn progress_is_an_event() {
    let folder = folder();
    let live = LiveFile::new(folder.path(), "third", Silent);
    live.lab_started("ch13:kv_cache", 4);
    let request = Request::get("/api/live").header("host", "localhost").body(Body::empty()).unwrap();
    let response = router(folder.path().to_owned()).oneshot(request).await.unwrap();
    let mut body = response.into_body();
    let mut next =
        async || String::from_utf8(body.frame().await.unwrap().unwrap().into_data().unwrap().to_vec()).unwrap();
    let first = next().await;
    assert!(first.contains("event: progress") && first.contains("\"run_id\":\"third\""), "{first}");
    drop(live);
    let second = next().await;
    assert!(second.contains("event: idle"), "{second}");
}
