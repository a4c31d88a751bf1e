//! Every route but the two that generate, every error, every bound, the key.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use std::time::Duration;

use aisp_engine::Selection;
use aisp_serve::admission::{AdmissionLimits, Load};
use aisp_serve::mock::MockEngine;
use aisp_serve::{App, AppConfig, Limits};
use axum::body::Body;
use axum::http::{Method, Request};
use support::{Answer, app, call, completion, eventually, get, metric, plain, post};

#[tokio::test]
async fn models_are_listed_and_shown() {
    let app = plain().await;
    let json = get(&app, "/v1/models").await.json();
    assert_eq!(json["object"], "list");
    assert_eq!(json["data"].as_array().unwrap().len(), 2);
    assert_eq!(json["data"][0]["id"], "mock");
    assert_eq!(json["data"][0]["max_model_len"], 1024);
    for path in ["/v1/models/other/name", "/v1/models/other%2Fname"] {
        assert_eq!(get(&app, path).await.json()["id"], "other/name");
    }
    let missing = get(&app, "/v1/models/gpt-4").await;
    assert_eq!((missing.status.as_u16(), missing.error().as_str()), (404, "the model `gpt-4` does not exist"));
    assert_eq!(missing.json()["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn text_goes_to_tokens_and_back() {
    let app = plain().await;
    let tokens = post(&app, "/tokenize", r#"{"prompt":"Hi\n","return_token_strs":true}"#).await.json();
    assert_eq!((tokens["count"].as_u64(), tokens["max_model_len"].as_u64()), (Some(3), Some(1024)));
    assert_eq!(tokens["token_strs"], serde_json::json!(["H", "i", "Ċ"]));
    let back = post(&app, "/detokenize", format!(r#"{{"tokens":{}}}"#, tokens["tokens"])).await.json();
    assert_eq!(back, serde_json::json!({"prompt": "Hi\n"}));
    let chat = r#"{"messages":[{"role":"user","content":"Hi"}],"add_generation_prompt":false}"#;
    let tokens = post(&app, "/tokenize", chat).await.json()["tokens"].to_string();
    let back = post(&app, "/detokenize", format!(r#"{{"tokens":{tokens}}}"#)).await.json();
    assert_eq!(back["prompt"], "user: Hi\n");
    for (path, json, part) in [
        ("/tokenize", "{}", "prompt: send either"),
        ("/tokenize", r#"{"prompt":"a","messages":[{"role":"user"}]}"#, "prompt: send either"),
        ("/tokenize", r#"{"prompt":3}"#, "prompt: invalid type"),
        ("/detokenize", "{}", "tokens: is missing"),
        ("/detokenize", r#"{"tokens":[4000000]}"#, "outside the vocabulary"),
        ("/detokenize", r#"{"tokens":[-1]}"#, "tokens: invalid value"),
    ] {
        let answer = post(&app, path, json).await;
        assert_eq!(answer.status, 400, "{json}");
        assert!(answer.error().contains(part), "{json}: {}", answer.body);
    }
}

#[tokio::test]
async fn operators_get_their_answers() {
    let app = plain().await;
    assert_eq!(get(&app, "/health").await.json()["status"], "ok");
    assert_eq!(get(&app, "/ready").await.json()["status"], "ready");
    assert_eq!(get(&app, "/version").await.json()["version"], env!("CARGO_PKG_VERSION"));
    assert!(get(&app, "/openapi.json").await.json()["paths"]["/v1/completions"].is_object());
    let rows = get(&app, "/v1/optimizations").await.json()["data"].clone();
    let names: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"continuous-batching") && names.contains(&"paged-kv"), "{names:?}");
    let exact = Selection::exact().to_string();
    for row in rows.as_array().unwrap() {
        let asked = exact.split(',').any(|name| row["name"] == name);
        assert_eq!((row["requested"].as_bool(), row["engaged"].as_bool()), (Some(asked), Some(false)), "{row}");
    }
}

#[tokio::test]
async fn an_optimization_that_ran_is_engaged_once_the_answer_is_there() {
    let app =
        app(MockEngine { step_time: Duration::from_millis(5), ..MockEngine::default() }, AppConfig::default()).await;
    let request = r#"{"prompt":"a","max_tokens":30,"ignore_eos":true}"#;
    let (_, _) = tokio::join!(completion(&app, request), async {
        eventually("it runs", Duration::from_secs(2), || async {
            metric(&app, "aisp_num_requests_running").await > 0.0
        })
        .await;
        completion(&app, request).await
    });
    let rows = get(&app, "/v1/optimizations").await.json()["data"].clone();
    let row = rows.as_array().unwrap().iter().find(|row| row["name"] == "continuous-batching").unwrap().clone();
    assert_eq!((row["engaged"].as_bool(), row["count"].as_u64()), (Some(true), Some(1)));
    for series in ["requested", "engaged", "uses_total"] {
        let series = format!(r#"aisp_optimization_{series}{{model_name="mock",optimization="continuous-batching"}}"#);
        assert_eq!(metric(&app, &series).await, 1.0, "{series}");
    }
}

#[tokio::test]
async fn unknown_paths_methods_and_models_have_openai_s_bodies() {
    let app = plain().await;
    let nowhere = get(&app, "/v1/nowhere").await;
    assert_eq!((nowhere.status.as_u16(), nowhere.error().contains("no such route")), (404, true));
    let wrong = call(&app, Request::delete("/v1/completions").body(Body::empty()).unwrap()).await;
    assert_eq!((wrong.status.as_u16(), wrong.error().contains("method")), (405, true));
    assert_eq!(wrong.headers["allow"], "POST");
    for path in ["/v1/completions", "/v1/chat/completions", "/tokenize"] {
        let json = r#"{"model":"gpt-4","prompt":"a","messages":[{"role":"user","content":"a"}]}"#;
        let json = if path == "/v1/completions" { r#"{"model":"gpt-4","prompt":"a"}"# } else { json };
        let json = if path == "/v1/chat/completions" { json.replace(r#""prompt":"a","#, "") } else { json.into() };
        let answer = post(&app, path, json).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["code"]),
            (404, &"model_not_found".into()),
            "{path}"
        );
    }
}

#[tokio::test]
async fn malformed_requests_are_400_and_name_the_field() {
    let app = plain().await;
    let check = async |path: &str, json: &str, param: Option<&str>| {
        let answer = post(&app, path, json).await;
        assert_eq!(answer.status, 400, "{json}: {}", answer.body);
        answer.error();
        assert_eq!(answer.json()["error"]["param"].as_str(), param, "{json}: {}", answer.body);
    };
    for (json, param) in [
        ("", None),
        ("[]", None),
        ("{", None),
        ("\u{0}", None),
        (r#"{"prompt":"a","x":1}"#, None),
        (r#"{"prompt":"a","temperature":-1}"#, Some("temperature")),
        (r#"{"prompt":"a","temperature":1e300}"#, Some("temperature")),
        (r#"{"prompt":"a","top_p":0}"#, Some("top_p")),
        (r#"{"prompt":"a","max_tokens":-1}"#, Some("max_tokens")),
        (r#"{"prompt":"a","max_tokens":18446744073709551615}"#, Some("max_tokens")),
        (r#"{"prompt":"a","max_tokens":99999999999999999999999}"#, Some("max_tokens")),
        (r#"{"prompt":"a","min_tokens":17}"#, Some("min_tokens")),
        (r#"{"prompt":"a","presence_penalty":3}"#, Some("presence_penalty")),
        (r#"{"prompt":"a","repetition_penalty":0}"#, Some("repetition_penalty")),
        (r#"{"prompt":"a","stop_token_ids":[98765]}"#, Some("stop_token_ids")),
        (r#"{"prompt":"a","logit_bias":{"98765":1}}"#, Some("logit_bias")),
        (r#"{"prompt":"a","best_of":2}"#, Some("best_of")),
        (r#"{"prompt":"a","n":1000000}"#, Some("n")),
        (r#"{"prompt":[]}"#, Some("prompt")),
        (r#"{"prompt":""}"#, Some("prompt")),
        (r#"{"prompt":[98765]}"#, Some("prompt")),
    ] {
        check("/v1/completions", json, param).await;
    }
    for (json, param) in [
        (r#"{"messages":[]}"#, Some("messages")),
        (r#"{"messages":[{"role":"user","content":"a"}],"tools":[{}]}"#, Some("tools")),
        (r#"{"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"messages":1}}"#, Some("messages")),
        (r#"{"messages":[{"role":"user","content":"a"}],"top_logprobs":21,"logprobs":true}"#, Some("top_logprobs")),
    ] {
        check("/v1/chat/completions", json, param).await;
    }
    assert_eq!(metric(&app, "aisp_num_requests_running").await, 0.0);
}

#[tokio::test]
async fn what_does_not_fit_the_context_is_refused() {
    let app = plain().await;
    for (json, part) in [
        (format!(r#"{{"prompt":"{}"}}"#, "a".repeat(1024)), "the prompt has 1024"),
        (format!(r#"{{"prompt":"{}","max_tokens":25}}"#, "a".repeat(1000)), "the answer may have 25"),
        (format!(r#"{{"prompt":"{}"}}"#, "a".repeat(1_000_000)), "the prompt has at least"),
        (format!(r#"{{"prompt":{:?}}}"#, vec![1; 2000]), "the prompt has 2000"),
    ] {
        let answer = post(&app, "/v1/completions", json).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (400, &"context_length_exceeded".into()));
        assert!(answer.error().contains(part), "{}", answer.body);
    }
    completion(&app, &format!(r#"{{"prompt":"{}","max_tokens":24}}"#, "a".repeat(1000))).await;
}

#[tokio::test(start_paused = true)]
async fn bodies_are_bounded_in_size_type_and_time() {
    let app = plain().await;
    let too_large = post(&app, "/v1/completions", format!(r#"{{"prompt":"{}"}}"#, "a".repeat(3 << 20))).await;
    assert_eq!((too_large.status.as_u16(), too_large.error().contains("longer than 2097152 bytes")), (413, true));
    let form = Request::post("/v1/completions").header("content-type", "application/x-www-form-urlencoded");
    let form = call(&app, form.body(Body::from("prompt=a")).unwrap()).await;
    assert_eq!((form.status.as_u16(), form.error().contains("application/json")), (415, true));
    let never = Body::new(Never);
    let slow = Request::post("/tokenize").header("content-type", "application/json").body(never).unwrap();
    let slow = call(&app, slow).await;
    assert_eq!((slow.status.as_u16(), slow.error().contains("within 30 s")), (408, true));
}

/// A body that never ends and never says anything.
struct Never;

impl hyper::body::Body for Never {
    type Data = axum::body::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Self::Data>, Self::Error>>> {
        std::task::Poll::Pending
    }
}

#[tokio::test]
async fn a_full_queue_is_429_with_retry_after_before_tokenizing() {
    let admission = AdmissionLimits { max_num_seqs: 1, max_num_queued_reqs: 2, max_num_queued_tokens: 1000 };
    let engine = MockEngine { max_num_seqs: 1, step_time: Duration::from_millis(20), ..MockEngine::default() };
    let app = app(engine, AppConfig { admission, ..AppConfig::default() }).await;
    let long = r#"{"prompt":"a","max_tokens":1000,"ignore_eos":true}"#;
    let running: Vec<_> = (0..3)
        .map(|_| {
            let app = app.clone();
            tokio::spawn(async move { post(&app, "/v1/completions", long).await })
        })
        .collect();
    eventually("three are in", Duration::from_secs(2), || async { app.admission.load().num_sequences == 3 }).await;
    let started = std::time::Instant::now();
    // A prompt that tokenizing would refuse: admission comes first.
    let refused = post(&app, "/v1/completions", format!(r#"{{"prompt":"{}"}}"#, "a".repeat(1_000_000))).await;
    assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
    assert_eq!((refused.status.as_u16(), refused.headers["retry-after"].to_str().unwrap()), (429, "1"));
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
    let series = r#"aisp_admission_rejections_total{model_name="mock",reason="queue_full"}"#;
    assert_eq!(metric(&app, series).await, 1.0);
    let never = post(&app, "/v1/completions", r#"{"prompt":"a","n":4}"#).await;
    assert_eq!((never.status.as_u16(), never.json()["error"]["param"].as_str()), (400, Some("n")));
    running.iter().for_each(tokio::task::JoinHandle::abort);
    support::engine_is_empty(&app, Duration::from_secs(1)).await;
    completion(&app, r#"{"prompt":"a","max_tokens":2}"#).await;
}

#[tokio::test]
async fn queued_prompt_tokens_are_bounded_too() {
    let admission = AdmissionLimits { max_num_seqs: 1, max_num_queued_reqs: 100, max_num_queued_tokens: 1000 };
    let engine = MockEngine { max_num_seqs: 1, step_time: Duration::from_millis(20), ..MockEngine::default() };
    let app = app(engine, AppConfig { admission, ..AppConfig::default() }).await;
    let request = format!(r#"{{"prompt":{:?},"max_tokens":100,"ignore_eos":true}}"#, vec![1; 600]);
    let mut queue = Vec::new();
    // The first leaves the queue with its first token; the second waits.
    for load in [Load { num_sequences: 1, num_queued_tokens: 0 }, Load { num_sequences: 2, num_queued_tokens: 600 }] {
        let (other, request) = (app.clone(), request.clone());
        queue.push(tokio::spawn(async move { post(&other, "/v1/completions", request).await }));
        eventually("it is counted", Duration::from_secs(2), || async { app.admission.load() == load }).await;
    }
    let refused = post(&app, "/v1/completions", request).await;
    assert_eq!(refused.status, 429);
    assert!(refused.error().contains("--max-num-queued-tokens"), "{}", refused.body);
    queue.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn without_the_key_every_route_but_the_probes_is_closed() {
    let config = AppConfig { api_key: Some("sécret".into()), ..AppConfig::default() };
    let app = app(MockEngine::default(), config).await;
    let send = async |method: &str, path: &str, key: Option<&str>| -> Answer {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        if let Some(key) = key {
            request = request.header("authorization", key);
        }
        call(&app, request.body(Body::empty()).unwrap()).await
    };
    let document = plain().await;
    let document = get(&document, "/openapi.json").await.json();
    let mut routes: Vec<(String, String)> = vec![("GET".into(), "/nowhere".into()), ("GET".into(), "/".into())];
    for (path, methods) in document["paths"].as_object().unwrap() {
        routes.extend(methods.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())));
    }
    for (method, path) in routes {
        let open = ["/health", "/ready"].contains(&path.as_str());
        for key in [
            None,
            Some(""),
            Some("Bearer"),
            Some("Bearer "),
            Some("Bearer secret"),
            Some("sécret"),
            Some("Bearer sécrets"),
        ] {
            let answer = send(&method, &path, key).await;
            assert_eq!(answer.status == 401, !open, "{method} {path} {key:?}");
            if !open {
                assert_eq!(
                    (answer.json()["error"]["code"].as_str(), &answer.headers["www-authenticate"]),
                    (Some("invalid_api_key"), &"Bearer".parse().unwrap())
                );
            }
            assert!(!answer.body.contains("sécret"));
        }
        for key in ["Bearer sécret", "bearer sécret"] {
            assert_ne!(send(&method, &path, Some(key)).await.status, 401, "{method} {path}");
        }
    }
    assert!(App::new(AppConfig { api_key: Some(String::new()), ..AppConfig::default() }).is_err());
}

#[tokio::test]
async fn no_origin_is_let_in_and_no_secret_is_shown() {
    const CANARY: &str = "canary-5f3a";
    let config = AppConfig { api_key: Some(CANARY.into()), limits: Limits::default(), ..AppConfig::default() };
    let app = app(MockEngine::default(), config).await;
    let send = async |path: &str, json: &str| {
        let request = Request::post(path)
            .header("content-type", "application/json")
            .header("origin", "http://evil.example")
            .header("authorization", format!("Bearer {CANARY}"));
        call(&app, request.body(Body::from(json.to_owned())).unwrap()).await
    };
    let answers = [
        send("/v1/completions", r#"{"prompt":"a","max_tokens":2}"#).await,
        send("/v1/completions", r#"{"prompt":"a","temperature":9999}"#).await,
        send("/v1/chat/completions", r#"{"messages":[{"role":"user","content":"canary-5f3a"}],"n":0}"#).await,
        call(
            &app,
            Request::get("/metrics").header("authorization", format!("Bearer {CANARY}")).body(Body::empty()).unwrap(),
        )
        .await,
    ];
    for answer in answers {
        assert!(answer.headers.keys().all(|name| !name.as_str().starts_with("access-control")));
        assert!(!answer.body.contains(CANARY), "{}", answer.body);
    }
}

#[tokio::test]
async fn while_the_model_loads_only_the_probes_answer() {
    let app = App::new(AppConfig::default()).unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let loading = tokio::spawn({
        let app = app.clone();
        async move {
            app.load(move || {
                let _ = wait.recv();
                MockEngine::default().build()
            })
            .await
            .unwrap();
        }
    });
    assert_eq!(get(&app, "/health").await.status, 200);
    let ready = get(&app, "/ready").await;
    assert_eq!((ready.status.as_u16(), ready.json()["status"].as_str()), (503, Some("loading")));
    for path in ["/v1/models", "/v1/optimizations"] {
        assert_eq!(get(&app, path).await.error(), "the model is still loading");
    }
    let refused = post(&app, "/v1/completions", r#"{"prompt":"a"}"#).await;
    assert_eq!((refused.status.as_u16(), refused.headers["retry-after"].to_str().unwrap()), (503, "1"));
    go.send(()).unwrap();
    loading.await.unwrap();
    assert_eq!(get(&app, "/ready").await.status, 200);
}

#[tokio::test]
async fn a_process_that_ends_waits_for_its_engine() {
    let app = plain().await;
    assert!(app.end(Duration::from_secs(5)));
    assert_eq!(post(&app, "/v1/completions", r#"{"prompt":"a"}"#).await.status, 503);
    // An engine that is still being built is waited for no longer than asked.
    let app = App::new(AppConfig::default()).unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (loader, begun) = (app.clone(), std::sync::mpsc::channel());
    let loading = tokio::spawn(async move {
        let build = move || {
            begun.0.send(()).unwrap();
            let _ = wait.recv();
            MockEngine::default().build()
        };
        loader.load(build).await
    });
    tokio::task::spawn_blocking(move || begun.1.recv().unwrap()).await.unwrap();
    assert!(!app.end(Duration::from_millis(20)));
    go.send(()).unwrap();
    // It is told to end before it serves anybody.
    let _ = loading.await.unwrap();
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_is_an_error() {
    let app = App::new(AppConfig::default()).unwrap();
    let failed = app.load(|| Err(aisp_engine::EngineError::NoTokenizer)).await;
    assert!(failed.unwrap_err().to_string().contains("no tokenizer"));
    let app = App::new(AppConfig::default()).unwrap();
    let panicked = app.load(|| panic!("injected")).await;
    assert!(panicked.unwrap_err().to_string().contains("panicked"));
}
