//! The tokenizer against llama.cpp's ids, and against itself: the same vocabulary as tokenizer.json and as GGUF.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "test helpers fail by panicking")]

use std::path::{Path, PathBuf};

use aisp_engine::text::{GgufVocab, TextError, Tokenizer, TokenizerSource};

mod text_vocab;
use text_vocab::{sentence_piece, story, vocab_of};

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
    /// With names of special tokens taken as text.
    #[serde(default)]
    plain_ids: Vec<u32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn cases(path: &Path) -> Vec<Case> {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn check_all(tokenizer: &Tokenizer, cases: &[Case], encode: impl Fn(&str) -> Vec<u32>) {
    let wrong: Vec<_> = cases.iter().filter(|case| encode(&case.text) != case.ids).collect();
    for case in wrong.iter().take(5) {
        let got = encode(&case.text);
        let names = |ids: &[u32]| ids.iter().map(|id| tokenizer.token_str(*id)).collect::<Vec<_>>();
        eprintln!("{:?}\n want {:?} {:?}\n got  {got:?} {:?}", case.text, case.ids, names(&case.ids), names(&got));
    }
    assert!(wrong.is_empty(), "{} of {} texts differ", wrong.len(), cases.len());
}

/// `tests/data/smollm2_tokens.json` holds what `llama-tokenize --ids` says of `SmolLM2-135M-Instruct.Q4_1.gguf`, whose
/// vocabulary story-12m shares; `plain_ids` with `--no-parse-special`.
#[test]
fn smollm2_equals_llama_cpp() {
    let (tokenizer, cases) = (story(), cases(&data("smollm2_tokens.json")));
    assert!(cases.len() >= 50);
    check_all(&tokenizer, &cases, |text| tokenizer.encode(text, true).unwrap());
    let plain: Vec<_> =
        cases.iter().map(|c| Case { text: c.text.clone(), ids: c.plain_ids.clone(), plain_ids: Vec::new() }).collect();
    check_all(&tokenizer, &plain, |text| tokenizer.encode_plain(text, true).unwrap());
    for case in &cases {
        assert_eq!(tokenizer.decode(&case.ids, false), case.text);
        assert_eq!(tokenizer.decode(&case.plain_ids, true), case.text);
    }
}

#[test]
fn tokens_are_described() {
    let tokenizer = story();
    assert_eq!((tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()), (49152, Some(1), Some(2)));
    let hello = tokenizer.token_id("Ġhello").unwrap();
    assert_eq!((tokenizer.token_str(hello).as_str(), tokenizer.token_name(hello)), (" hello", Some("Ġhello")));
    assert_eq!(tokenizer.token_to_bytes(hello), b" hello");
    assert!(tokenizer.is_special(2) && !tokenizer.is_special(hello) && !tokenizer.is_special(u32::MAX));
    assert_eq!((tokenizer.token_to_bytes(u32::MAX), tokenizer.token_name(u32::MAX)), (&b""[..], None));
    assert_eq!(tokenizer.decode(&[1, hello, u32::MAX, 2], true), " hello");
    assert_eq!(tokenizer.decode(&[1, hello, 2], false), "<|im_start|> hello<|im_end|>");
    let bytes: Vec<u32> =
        "😀".bytes().flat_map(|b| (0..49152).find(|id| tokenizer.token_to_bytes(*id) == [b])).collect();
    assert_eq!((bytes.len(), tokenizer.decode(&bytes, true).as_str()), (4, "😀"));
    assert_eq!(tokenizer.decode(&bytes[..3], true), "\u{fffd}");
}

#[test]
fn long_texts_are_refused_before_any_work() {
    let tokenizer = story().with_max_text_bytes(10);
    assert!(tokenizer.encode("0123456789", true).is_ok());
    let error = tokenizer.encode("0123456789a", true).unwrap_err();
    assert_eq!(error, TextError::TextTooLong { bytes: 11, max_bytes: 10 });
    // No text of SmolLM2's fits more than its longest token in one token.
    let text = " ".repeat(4000);
    let least = story().min_token_count(text.len());
    assert!(least > 1 && least <= story().encode(&text, false).unwrap().len());
}

#[test]
fn sentence_piece_puts_a_space_before_texts_and_falls_back_to_bytes() {
    let tokenizer = sentence_piece(&[("▁", -9.0), ("a", -8.0), ("b", -8.0), ("▁a", -2.0), ("ab", -1.0), ("▁ab", -3.0)]);
    let id = |name: &str| tokenizer.token_id(name).unwrap();
    let (space, a, b, ab, space_ab) = (id("▁"), id("a"), id("b"), id("ab"), id("▁ab"));
    for (text, add_special, want) in [
        ("ab", false, vec![space_ab]),
        ("ab", true, vec![1, space_ab]),
        ("", true, vec![1]),
        ("aab", false, vec![id("▁a"), ab]),
        ("b\n", false, vec![space, b, id("<0x0A>")]),
        ("é", false, vec![space, id("<0xC3>"), id("<0xA9>")]),
        ("</s>ab<tool>b", false, vec![2, space_ab, 3, space, b]),
        ("a</s", false, vec![id("▁a"), id("<0x3C>"), id("<0x2F>"), id("<0x73>")]),
    ] {
        let ids = tokenizer.encode(text, add_special).unwrap();
        assert_eq!(ids, want, "{text:?}");
        if !text.contains('<') {
            assert_eq!(tokenizer.decode(&ids, true), text);
        }
    }
    let plain = tokenizer.encode_plain("</s>a<tool>", false).unwrap();
    assert_eq!((plain.first(), plain.contains(&2), plain.last()), (Some(&space), false, Some(&3)));
    assert_eq!(tokenizer.decode(&[a, space_ab], true), "a ab");
    assert_eq!((tokenizer.decode(&[space_ab], true).as_str(), tokenizer.token_str(space_ab).as_str()), ("ab", " ab"));
    assert_eq!(tokenizer.decode_bytes(&[space_ab], true), b" ab");
}

/// A byte-level `tokenizer.json` with everything in it that must not reach prompts.
const JSON: &str = r#"{
  "version": "1.0",
  "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
  "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
  "added_tokens": [{"id": 4, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
    {"id": 5, "content": "<think>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false}],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
  "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [4], "tokens": ["<s>"]}}},
  "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
  "model": {"type": "BPE", "dropout": 0.9, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
    "fuse_unk": false, "byte_fallback": false, "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": ["a b"]}
}"#;

#[test]
fn a_json_tokenizer_encodes_whole_texts_and_knows_its_bos() {
    let tokenizer = Tokenizer::new(TokenizerSource::Json(JSON.into())).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocab_size()), (Some(4), None, 6));
    for _ in 0..50 {
        assert_eq!(tokenizer.encode("ab ab ba", true).unwrap(), [4, 2, 3, 2, 3, 1, 0]);
    }
    assert_eq!(tokenizer.encode("<s>a<think>", false).unwrap(), [4, 0, 5]);
    assert_eq!(tokenizer.encode_plain("a<think>", false).unwrap(), [0, 5]);
    assert!(!tokenizer.encode_plain("<s>", false).unwrap().contains(&4));
    assert_eq!(tokenizer.decode(&[4, 2, 9, 3, 5], true), "ab <think>");
    let tokenizer = tokenizer.with_bos_eos(None, Some("<think>")).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(4), Some(5)));
    assert_eq!(tokenizer.with_bos_eos(Some("nope"), None).unwrap_err(), TextError::UnknownToken("nope".into()));
}

#[test]
fn broken_vocabularies_are_one_line_errors() {
    let good = || GgufVocab {
        model: "gpt2".into(),
        pre: Some("gpt-2".into()),
        tokens: ["a", "b", "ab"].map(String::from).to_vec(),
        merges: vec!["a b".into()],
        ..GgufVocab::default()
    };
    assert!(Tokenizer::from_gguf(&good()).is_ok());
    let spm = || GgufVocab { model: "llama".into(), unknown_token_id: Some(0), scores: vec![0.0; 3], ..good() };
    assert!(Tokenizer::from_gguf(&spm()).is_ok());
    for (vocab, part) in [
        (GgufVocab { model: "bert".into(), ..good() }, "'bert' is not supported"),
        (GgufVocab { pre: Some("new\nkind".into()), ..good() }, "'new kind' is not supported"),
        (GgufVocab { tokens: vec![], ..good() }, "0 entries"),
        (GgufVocab { merges: vec!["ab".into()], ..good() }, "merge 0"),
        (GgufVocab { merges: vec!["a c".into()], ..good() }, "merges"),
        (GgufVocab { merges: vec!["b a".into()], ..good() }, "merges"),
        (GgufVocab { token_types: vec![1], ..good() }, "token_type has 1 entries for 3 tokens"),
        (GgufVocab { bos_token_id: Some(3), ..good() }, "bos token 3 is outside"),
        (GgufVocab { scores: vec![], ..spm() }, "scores is missing"),
        (GgufVocab { scores: vec![f32::NAN; 3], ..spm() }, "not a number"),
        (GgufVocab { unknown_token_id: None, ..spm() }, "neither a token for every byte"),
    ] {
        let message = Tokenizer::from_gguf(&vocab).unwrap_err().to_string();
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
    }
    for (from, to, part) in [
        ("\"a\": 0", "\"a\": 4294967295", "highest id"),
        ("\"a b\"", "\"a c\"", "malformed"),
        ("\"ByteLevel\", \"add_prefix_space\": true", "\"CTC\", \"x\": 1", "'CTC' is not supported"),
        ("{\n", "[\n", "malformed"),
        ("\"BPE\"", "\"NPE\"", "malformed"),
    ] {
        assert!(JSON.contains(from));
        let message = Tokenizer::from_json(JSON.replace(from, to).as_bytes()).unwrap_err().to_string();
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
    }
    assert_eq!(Tokenizer::new(TokenizerSource::None).unwrap_err(), TextError::NoTokenizer);
}

/// The same vocabulary in two files; `AISP_CASES` names more texts.
#[test]
fn tokenizer_json_equals_gguf() {
    let json = Tokenizer::from_json(&std::fs::read(data("story-12m/tokenizer.json")).unwrap()).unwrap();
    let gguf = story();
    assert_eq!(json.vocab_size(), gguf.vocab_size());
    for id in 0..json.vocab_size() as u32 {
        assert_eq!(json.token_to_bytes(id), gguf.token_to_bytes(id), "{id}");
        assert_eq!(json.is_special(id), gguf.is_special(id), "{id}");
    }
    let path = std::env::var("AISP_CASES").map_or(data("smollm2_tokens.json"), PathBuf::from);
    let cases = cases(&path);
    check_all(&json, &cases, |text| json.encode(text, true).unwrap());
    for case in &cases {
        assert_eq!(json.encode_plain(&case.text, true), gguf.encode_plain(&case.text, true));
    }
}

/// What one hostile text costs: `cargo test --release --test text_tokenizer -- --ignored --nocapture hostile_texts`.
#[test]
#[ignore = "a measurement"]
fn hostile_texts_cost() {
    let path = std::env::var("AISP_VOCAB").map(PathBuf::from);
    let tokenizer = path.map_or_else(|_| story(), |path| Tokenizer::from_gguf(&vocab_of(&path)).unwrap());
    let tokenizer = tokenizer.with_max_text_bytes(usize::MAX);
    for unit in [
        "a",
        " ",
        "\n",
        "1",
        "é",
        "中",
        "😀",
        "\u{301}",
        "the ",
        "a ",
        "'s",
        " a\n\n  b",
        "<|im_start|>",
        "\u{1}",
        "=-",
    ] {
        for bytes in [1 << 20, 2 << 20] {
            let text = unit.repeat(bytes / unit.len());
            let start = std::time::Instant::now();
            let ids = tokenizer.encode(&text, true).unwrap();
            println!("{bytes} bytes of {unit:?}: {} tokens in {:?}", ids.len(), start.elapsed());
        }
    }
}

/// Any vocabulary against any list of `{"text", "ids"}`, as `llama-tokenize --ids` gives them:
/// `AISP_VOCAB=x.gguf AISP_CASES=x.json cargo test --test text_tokenizer -- --ignored any_vocabulary`.
#[test]
#[ignore = "needs AISP_VOCAB and AISP_CASES"]
fn any_vocabulary_equals_llama_cpp() {
    let path = |name: &str| PathBuf::from(std::env::var(name).unwrap());
    let tokenizer = Tokenizer::from_gguf(&vocab_of(&path("AISP_VOCAB"))).unwrap();
    let plain = std::env::var("AISP_PLAIN").is_ok();
    check_all(&tokenizer, &cases(&path("AISP_CASES")), |text| match plain {
        true => tokenizer.encode_plain(text, true).unwrap(),
        false => tokenizer.encode(text, true).unwrap(),
    });
}
