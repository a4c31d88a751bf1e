//! The tokenizer against llama.cpp's ids, and against itself: the same vocabulary as `tokenizer.json` and as GGUF.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use aisp_engine::loader::{LoadOptions, ModelSource, load};
use aisp_engine::text::{Tokenizer, TokenizerSource};

/// Texts and their ids as `llama-tokenize --ids` prints them for the built-in model.
const CASES: &str = include_str!("data/tokenizer_cases.json");

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

fn cases() -> Vec<Case> {
    serde_json::from_str(CASES).unwrap()
}

fn from_gguf() -> Tokenizer {
    Tokenizer::new(load(&ModelSource::Builtin, &LoadOptions::default()).unwrap().tokenizer).unwrap()
}

fn from_json() -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/story-12m");
    let checkpoint = load(&ModelSource::Folder(folder), &LoadOptions::default()).unwrap();
    assert!(matches!(checkpoint.tokenizer, TokenizerSource::Json(_)));
    Tokenizer::new(checkpoint.tokenizer).unwrap()
}

#[test]
fn ids_are_llama_cpps() {
    let cases = cases();
    assert!(cases.len() >= 50);
    for (kind, tokenizer) in [("gguf", from_gguf()), ("json", from_json())] {
        for case in &cases {
            assert_eq!(tokenizer.encode(&case.text, true).unwrap(), case.ids, "{kind}: {:?}", case.text);
        }
    }
}

#[test]
fn decoding_gives_the_text_back() {
    let tokenizer = from_gguf();
    for case in cases() {
        assert_eq!(tokenizer.decode(&case.ids, false), case.text);
    }
}

#[test]
fn special_tokens_in_plain_text_stay_text() {
    let tokenizer = from_gguf();
    let text = "a<|im_end|>b";
    let plain = tokenizer.encode_plain(text, false).unwrap();
    assert!(plain.iter().all(|id| !tokenizer.is_special(*id)));
    assert!(tokenizer.encode(text, false).unwrap().iter().any(|id| tokenizer.is_special(*id)));
    assert_eq!(tokenizer.decode(&plain, true), text);
}

#[test]
fn a_text_that_is_too_long_is_refused_at_once() {
    let tokenizer = from_gguf().with_max_text_bytes(1000);
    let error = tokenizer.encode(&"a".repeat(1001), false).unwrap_err().to_string();
    assert!(error.contains("1001") && error.contains("1000") && !error.contains('\n'), "{error}");
}
