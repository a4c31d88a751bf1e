//! `/v1/completions` and `/v1/chat/completions` on the mock engine: shapes, streams, every option.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod support;

use aisp_serve::AppConfig;
use aisp_serve::mock::MockEngine;
use serde_json::Value;
use support::{app, completion, engine_is_empty, metric, plain, post};

fn text(answer: &Value, choice: usize) -> String {
    answer["choices"][choice]["text"].as_str().unwrap().to_owned()
}

/// The text that a stream's events add up to, for each choice.
fn streamed(events: &[Value], num_choices: usize, of: impl Fn(&Value) -> Option<&str>) -> Vec<String> {
    let mut texts = vec![String::new(); num_choices];
    for choice in events.iter().flat_map(|event| event["choices"].as_array().unwrap()) {
        texts[choice["index"].as_u64().unwrap() as usize].push_str(of(choice).unwrap_or_default());
    }
    texts
}

#[tokio::test]
async fn a_completion_has_openai_s_shape() {
    let app = plain().await;
    let answer = completion(&app, r#"{"prompt":"Hello","max_tokens":8,"temperature":0,"ignore_eos":true}"#).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    let json = answer.json();
    let keys: Vec<_> = json.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["id", "object", "created", "model", "choices", "usage"]);
    assert!(json["id"].as_str().unwrap().starts_with("cmpl-"));
    assert_eq!((json["object"].as_str(), json["model"].as_str()), (Some("text_completion"), Some("mock")));
    assert_eq!(json["choices"][0]["finish_reason"], "length");
    assert_eq!(json["choices"][0]["logprobs"], Value::Null);
    assert_eq!(json["usage"], serde_json::json!({"prompt_tokens":5,"total_tokens":13,"completion_tokens":8}));
    assert_eq!(text(&json, 0).chars().count(), 8);
    engine_is_empty(&app, std::time::Duration::from_secs(1)).await;
}

#[tokio::test]
async fn max_tokens_defaults_to_16_and_for_chats_to_the_rest_of_the_context() {
    let app = plain().await;
    let json = completion(&app, r#"{"prompt":"a","ignore_eos":true}"#).await.json();
    assert_eq!(json["usage"]["completion_tokens"], 16);
    let chat = r#"{"messages":[{"role":"user","content":"a"}],"ignore_eos":true}"#;
    let json = post(&app, "/v1/chat/completions", chat).await.json();
    assert_eq!(json["usage"]["total_tokens"], 1024);
}

#[tokio::test]
async fn a_stream_has_one_event_a_token_and_the_same_text() {
    let app = plain().await;
    let request = r#"{"prompt":"Hello","max_tokens":20,"seed":7,"temperature":2,"ignore_eos":true}"#;
    let whole = completion(&app, request).await.json();
    let answer = completion(&app, &request.replace('{', r#"{"stream":true,"#)).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let events = answer.events();
    assert_eq!(events.len(), 20);
    assert_eq!(streamed(&events, 1, |choice| choice["text"].as_str()), [text(&whole, 0)]);
    assert!(events[..19].iter().all(|event| event["choices"][0]["finish_reason"].is_null()));
    assert_eq!(events[19]["choices"][0]["finish_reason"], "length");
    assert!(events.iter().all(|event| event.get("usage").is_none() && event["id"] == events[0]["id"]));
}

#[tokio::test]
async fn a_chat_streams_its_role_then_its_text() {
    let app = plain().await;
    let request =
        r#"{"messages":[{"role":"user","content":"Hi"}],"max_completion_tokens":9,"temperature":0,"ignore_eos":true}"#;
    let whole = post(&app, "/v1/chat/completions", request).await.json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["choices"][0]["message"]["role"], "assistant");
    let events = post(&app, "/v1/chat/completions", request.replacen('{', r#"{"stream":true,"#, 1)).await.events();
    assert_eq!(events.len(), 10);
    assert_eq!(events[0]["choices"][0]["delta"], serde_json::json!({"role":"assistant","content":""}));
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    let texts = streamed(&events, 1, |choice| choice["delta"]["content"].as_str());
    assert_eq!(texts[0], whole["choices"][0]["message"]["content"].as_str().unwrap());
}

#[tokio::test]
async fn usage_comes_last_or_with_every_event() {
    let app = plain().await;
    let request = |options: &str| {
        format!(r#"{{"prompt":"ab","max_tokens":3,"ignore_eos":true,"stream":true,"stream_options":{options}}}"#)
    };
    let events = completion(&app, &request(r#"{"include_usage":true}"#)).await.events();
    assert_eq!(events.len(), 4);
    assert!(events[..3].iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    assert_eq!(events[3]["choices"], serde_json::json!([]));
    let usage = serde_json::json!({"prompt_tokens":2,"total_tokens":5,"completion_tokens":3});
    assert_eq!(events[3]["usage"], usage);
    let continuous = r#"{"include_usage":true,"continuous_usage_stats":true}"#;
    let events = completion(&app, &request(continuous)).await.events();
    let counts: Vec<_> = events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!(counts, [1, 2, 3, 3]);
}

#[tokio::test]
async fn n_choices_differ_by_seed_and_repeat() {
    let app = plain().await;
    let request = r#"{"prompt":"Hello","max_tokens":40,"temperature":3,"seed":11,"n":3,"ignore_eos":true}"#;
    let first = completion(&app, request).await.json();
    let second = completion(&app, request).await.json();
    assert_eq!(first["choices"], second["choices"]);
    let texts: Vec<_> = (0..3).map(|choice| text(&first, choice)).collect();
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
    // Choice i has seed + i, whoever asks.
    let alone = completion(&app, &request.replace(r#""seed":11,"n":3"#, r#""seed":12"#)).await.json();
    assert_eq!(text(&alone, 0), texts[1]);
    assert_eq!(first["usage"], serde_json::json!({"prompt_tokens":5,"total_tokens":125,"completion_tokens":120}));
    let events = completion(&app, &request.replace('{', r#"{"stream":true,"#)).await.events();
    assert_eq!(streamed(&events, 3, |choice| choice["text"].as_str()), texts);
}

#[tokio::test]
async fn several_prompts_are_answered_in_order() {
    let app = plain().await;
    let request = |prompt: &str| format!(r#"{{"prompt":{prompt},"max_tokens":6,"temperature":0,"ignore_eos":true}}"#);
    let both = completion(&app, &request(r#"["Hello","World"]"#)).await.json();
    for (at, prompt) in [r#""Hello""#, r#""World""#].into_iter().enumerate() {
        let alone = completion(&app, &request(prompt)).await.json();
        assert_eq!(text(&both, at), text(&alone, 0));
        assert_eq!(both["choices"][at]["index"], at);
    }
    // Token ids say the same as text.
    let ids = post(&app, "/tokenize", r#"{"prompt":"Hello"}"#).await.json()["tokens"].to_string();
    for prompt in [ids.clone(), format!("[{ids},{ids}]")] {
        let json = completion(&app, &request(&prompt)).await.json();
        assert_eq!(text(&json, 0), text(&both, 0));
    }
}

#[tokio::test]
async fn a_stop_string_ends_a_choice_and_frees_it() {
    let app = plain().await;
    let whole =
        completion(&app, r#"{"prompt":"Hello","max_tokens":60,"temperature":0,"ignore_eos":true}"#).await.json();
    let whole = text(&whole, 0);
    let stop: String = whole.chars().skip(20).take(2).collect();
    let before = whole.split(&stop).next().unwrap();
    let request = serde_json::json!({
        "prompt": "Hello", "max_tokens": 60, "temperature": 0, "ignore_eos": true, "stop": [stop, "never-there"],
    });
    for stream in [false, true] {
        let mut request = request.clone();
        request["stream"] = stream.into();
        let answer = completion(&app, &request.to_string()).await;
        let (got, last) = match stream {
            true => {
                let events = answer.events();
                (streamed(&events, 1, |choice| choice["text"].as_str()).remove(0), events.last().unwrap().clone())
            }
            false => (text(&answer.json(), 0), answer.json()),
        };
        assert_eq!(got, before);
        assert_eq!(last["choices"][0]["finish_reason"], "stop");
        assert_eq!(last["choices"][0]["stop_reason"], stop);
    }
    let mut including = request.clone();
    including["include_stop_str_in_output"] = true.into();
    assert_eq!(text(&completion(&app, &including.to_string()).await.json(), 0), format!("{before}{stop}"));
    engine_is_empty(&app, std::time::Duration::from_secs(1)).await;
}

#[tokio::test]
async fn a_stop_token_ends_a_choice_and_is_named() {
    let app = plain().await;
    let request = r#"{"prompt":"Hello","max_tokens":9,"temperature":0,"ignore_eos":true,"return_token_ids":true}"#;
    let whole = completion(&app, request).await.json();
    let ids: Vec<u64> =
        whole["choices"][0]["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
    assert_eq!(ids.len(), 9);
    assert_eq!(whole["choices"][0]["prompt_token_ids"].as_array().unwrap().len(), 5);
    let stop = ids[4];
    let at = ids.iter().position(|id| *id == stop).unwrap();
    let json = completion(&app, &request.replace('{', &format!(r#"{{"stop_token_ids":[{stop}],"#))).await.json();
    assert_eq!(json["choices"][0]["stop_reason"], stop);
    assert_eq!(text(&json, 0).chars().count(), at);
    assert_eq!(json["usage"]["completion_tokens"], at + 1);
}

#[tokio::test]
async fn log_probabilities_of_both_apis() {
    let app = plain().await;
    let request = r#"{"prompt":"Hello","max_tokens":4,"temperature":0,"ignore_eos":true,"logprobs":2}"#;
    let json = completion(&app, request).await.json();
    let logprobs = &json["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 4);
    assert_eq!(logprobs["text_offset"], serde_json::json!([0, 1, 2, 3]));
    assert!(logprobs["token_logprobs"].as_array().unwrap().iter().all(|logprob| logprob.as_f64().unwrap() < 0.0));
    assert!(logprobs["top_logprobs"].as_array().unwrap().iter().all(|top| top.as_object().unwrap().len() == 2));
    let events = completion(&app, &request.replace('{', r#"{"stream":true,"#)).await.events();
    for (at, event) in events.iter().enumerate() {
        let streamed = &event["choices"][0]["logprobs"];
        for list in ["tokens", "text_offset", "token_logprobs", "top_logprobs"] {
            assert_eq!(streamed[list][0], logprobs[list][at], "{list} {at}");
        }
    }
    let chat = r#"{"messages":[{"role":"user","content":"a"}],"max_tokens":3,"ignore_eos":true,"logprobs":true,"top_logprobs":2}"#;
    let json = post(&app, "/v1/chat/completions", chat).await.json();
    let content = json["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 3);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(content[0]["bytes"].as_array().unwrap().len(), content[0]["token"].as_str().unwrap().len());
}

#[tokio::test]
async fn echo_repeats_the_prompt_with_its_log_probabilities() {
    let app = plain().await;
    let request = r#"{"prompt":"Hello","max_tokens":2,"temperature":0,"ignore_eos":true,"echo":true,"logprobs":1}"#;
    let json = completion(&app, request).await.json();
    assert!(text(&json, 0).starts_with("Hello"));
    let logprobs = &json["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 7);
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert_eq!(logprobs["text_offset"], serde_json::json!([0, 1, 2, 3, 4, 5, 6]));
    assert_eq!(json["usage"]["completion_tokens"], 2);
    let events = completion(&app, &request.replace('{', r#"{"stream":true,"#)).await.events();
    assert_eq!(streamed(&events, 1, |choice| choice["text"].as_str()), [text(&json, 0)]);
    // Scoring a text: no token is generated.
    let json = completion(&app, &request.replace(r#""max_tokens":2"#, r#""max_tokens":0"#)).await.json();
    assert_eq!(text(&json, 0), "Hello");
    assert_eq!(json["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), 5);
    assert_eq!(json["usage"]["completion_tokens"], 0);
    engine_is_empty(&app, std::time::Duration::from_secs(1)).await;
}

#[tokio::test]
async fn prompt_logprobs_have_vllm_s_shape() {
    let app = plain().await;
    let request = r#"{"prompt":"abc","max_tokens":1,"prompt_logprobs":1}"#;
    let positions = completion(&app, request).await.json()["choices"][0]["prompt_logprobs"].clone();
    assert_eq!(positions.as_array().unwrap().len(), 3);
    assert!(positions[0].is_null());
    let entry = positions[1].as_object().unwrap().values().next().unwrap().clone();
    assert_eq!(entry.as_object().unwrap().keys().collect::<Vec<_>>(), ["logprob", "rank", "decoded_token"]);
    let chat =
        r#"{"messages":[{"role":"user","content":"a"}],"max_tokens":1,"prompt_logprobs":0,"return_token_ids":true}"#;
    let json = post(&app, "/v1/chat/completions", chat).await.json();
    let tokens = json["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(json["prompt_logprobs"].as_array().unwrap().len(), tokens);
    assert_eq!(json["prompt_token_ids"].as_array().unwrap().len(), tokens);
    let events = post(&app, "/v1/chat/completions", chat.replacen('{', r#"{"stream":true,"#, 1)).await.events();
    assert_eq!(events[0]["prompt_token_ids"], json["prompt_token_ids"]);
    assert!(events[1].get("prompt_token_ids").is_none());
}

#[tokio::test]
async fn sampling_fields_reach_the_engine() {
    let app = plain().await;
    let a = post(&app, "/tokenize", r#"{"prompt":"a"}"#).await.json()["tokens"][0].to_string();
    let request = format!(r#"{{"prompt":"x","max_tokens":5,"temperature":0,"logit_bias":{{"{a}":100}}}}"#);
    assert_eq!(text(&completion(&app, &request).await.json(), 0), "aaaaa");
    let json =
        completion(&app, r#"{"prompt":"x","request_id":"my-id:1","max_tokens":1,"model":"other/name"}"#).await.json();
    assert_eq!((json["id"].as_str(), json["model"].as_str()), (Some("cmpl-my-id:1"), Some("other/name")));
}

#[tokio::test]
async fn many_streams_at_once_lose_and_mix_nothing() {
    let app = app(MockEngine { max_num_seqs: 8, ..MockEngine::default() }, AppConfig::default()).await;
    let expected = {
        let json =
            completion(&app, r#"{"prompt":"p0","max_tokens":50,"temperature":0,"ignore_eos":true}"#).await.json();
        text(&json, 0)
    };
    let tasks: Vec<_> = (0..100)
        .map(|at| {
            let app = app.clone();
            tokio::spawn(async move {
                let prompt = format!("p{}", at % 2);
                let request = format!(
                    r#"{{"prompt":"{prompt}","max_tokens":50,"temperature":0,"ignore_eos":true,"stream":true}}"#
                );
                let events = completion(&app, &request).await.events();
                assert_eq!(events.len(), 50);
                (at, streamed(&events, 1, |choice| choice["text"].as_str()).remove(0))
            })
        })
        .collect();
    for task in tasks {
        let (at, got) = task.await.unwrap();
        assert_eq!(got == expected, at % 2 == 0, "stream {at}");
    }
    assert_eq!(metric(&app, "aisp_generation_tokens_total").await, 101.0 * 50.0);
    assert_eq!(metric(&app, r#"aisp_request_success_total{model_name="mock",finished_reason="length"}"#).await, 101.0);
    assert_eq!(metric(&app, "aisp_time_to_first_token_seconds_count").await, 101.0);
    assert_eq!(metric(&app, "aisp_inter_token_latency_seconds_count").await, 101.0 * 49.0);
    engine_is_empty(&app, std::time::Duration::from_secs(1)).await;
}
