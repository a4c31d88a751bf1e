//! Encoding by words against the library alone, over the built-in model's vocabulary.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::loader::{LoadOptions, ModelSource, load};
use crate::text::pre_tokenizer::PreTokenizerSpec;
use crate::text::{GgufVocab, Tokenizer, TokenizerSource};

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn story() -> GgufVocab {
    match load(&ModelSource::Builtin, &LoadOptions::default()).unwrap().tokenizer {
        TokenizerSource::Gguf(vocab) => vocab,
        other => panic!("{other:?}"),
    }
}

fn of_spec(vocab: &GgufVocab, name: &str) -> Tokenizer {
    Tokenizer::from_gguf(&GgufVocab { pre: Some(name.into()), ..vocab.clone() }).unwrap()
}

fn byte_level(use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn sequence(parts: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": parts})
}

/// A `tokenizer.json` of this vocabulary, with added tokens of every kind.
fn json_of(vocab: &GgufVocab, pre_tokenizer: Value, normalizer: Value, post_processor: Value) -> Value {
    let ids: serde_json::Map<_, _> = vocab.tokens.iter().cloned().zip((0..).map(Value::from)).collect();
    let id_of = |name: &str| vocab.tokens.iter().position(|token| token == name).unwrap_or(vocab.tokens.len());
    let added: Vec<_> = [
        ("<|im_start|>", true, None),
        ("<|im_end|>", true, Some("lstrip")),
        ("<|endoftext|>", true, Some("rstrip")),
        ("<repo_name>", false, Some("single_word")),
        ("<filename>", false, None),
        ("<naïve>", false, Some("normalized")),
    ]
    .into_iter()
    .map(|(name, special, flag)| {
        let mut token = json!({"id": id_of(name), "content": name, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": special});
        if let Some(flag) = flag {
            token[flag] = true.into();
        }
        token
    })
    .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": byte_level(true),
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": true,
            "vocab": ids, "merges": vocab.merges},
    })
}

fn from_json(json: &Value) -> Tokenizer {
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

fn template() -> Value {
    let special = |name: &str| json!({"SpecialToken": {"id": name, "type_id": 0}});
    let single = json!([special("<|im_start|>"), {"Sequence": {"id": "A", "type_id": 0}}, special("<|im_end|>")]);
    json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": {
        "<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]},
        "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}}})
}

/// Every pre-tokenizer of GGUF files, and what `tokenizer.json` files hold.
fn all_tokenizers() -> Vec<(String, Tokenizer)> {
    let vocab = story();
    let mut all: Vec<_> = PreTokenizerSpec::names().map(|name| (name.to_string(), of_spec(&vocab, name))).collect();
    let llama3 = sequence(&[split(LLAMA3), byte_level(false)]);
    let trimmed = json!({"type": "Sequence", "processors": [byte_level(true), template()]});
    for (name, pre_tokenizer, normalizer, post_processor) in [
        ("json of Llama 3", llama3.clone(), Value::Null, trimmed),
        ("json of Qwen", llama3.clone(), json!({"type": "NFC"}), byte_level(false)),
        ("json that lowers", llama3, json!({"type": "Lowercase"}), template()),
        ("json of GPT-2", byte_level(true), Value::Null, Value::Null),
        (
            "json of SmolLM2",
            sequence(&[json!({"type": "Digits", "individual_digits": true}), byte_level(true)]),
            Value::Null,
            Value::Null,
        ),
        (
            "json of a string",
            sequence(&[
                json!({"type": "Split", "pattern": {"String": "a."}, "behavior": "Isolated", "invert": false}),
                byte_level(false),
            ]),
            Value::Null,
            Value::Null,
        ),
        (
            "json of empty matches",
            sequence(&[split("[a-z]*"), split("(?=[0-9])"), byte_level(false)]),
            Value::Null,
            Value::Null,
        ),
        (
            "json of look-arounds",
            sequence(&[split(r"(?<=\s)\S|\S\K\s|(.)\1"), byte_level(false)]),
            Value::Null,
            Value::Null,
        ),
    ] {
        all.push((name.into(), from_json(&json_of(&vocab, pre_tokenizer, normalizer, post_processor))));
    }
    all
}

fn check(name: &str, tokenizer: &Tokenizer, text: &str) {
    let library = tokenizer.library().unwrap();
    assert!(library.words.is_some(), "{name} is not recognized");
    for names in [SpecialNames::All, SpecialNames::UserDefined] {
        for add_special in [false, true] {
            let got = library.encode(text, add_special, names);
            assert_eq!(got, library.encode_baseline(text, add_special, names), "{name}, {names:?}: {text:?}");
        }
    }
}

fn text() -> impl Strategy<Value = String> {
    let names =
        ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<filename>", "<naïve>", "<nai\u{308}ve>"];
    let contractions = ["'s", "'T", "'re", "'VE", "'m", "'ll", "'d", "’s", "don't", "I'LL"];
    let part = prop_oneof![
        4 => "[a-zA-Z]{1,8}",
        4 => " [a-z]{1,8}",
        2 => "[ \t\r\n\u{85}\u{a0}\u{2028}\u{3000}]{1,6}",
        2 => "[0-9]{1,5}|[٠-٩²½Ⅷ]{1,4}",
        2 => "[!-/:-@\\[-`{-~¿–…“”]{1,4}",
        2 => proptest::sample::select(names.to_vec()).prop_map(String::from),
        2 => proptest::sample::select(contractions.to_vec()).prop_map(String::from),
        1 => "[а-яА-Яα-ωß-öǅʰ]{1,6}",
        1 => "[一-三ぁ-おア-オ가-갛]{1,5}",
        1 => "[ا-ي\u{64b}-\u{64f}]{1,5}|[क-घ\u{93e}-\u{940}]{1,4}|[ก-ฉ\u{e31}]{1,4}|[a-e\u{300}-\u{308}]{1,6}",
        1 => "[😀-😄\u{200d}\u{fe0f}👍🏽🇫🇷]{1,4}",
        // Not of NFC, or not before what may follow.
        1 => "[\u{2126}\u{212b}\u{958}\u{1100}\u{1161}\u{11a8}\u{3099}か]{1,4}",
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
}

#[test]
fn words_equal_the_library() {
    let all = all_tokenizers();
    proptest!(ProptestConfig::with_cases(512), |(text in text())| {
        for (name, tokenizer) in &all {
            check(name, tokenizer, &text);
        }
    });
}

#[test]
fn texts_at_the_limits_equal_the_library() {
    let vocab = story();
    // More words than a table holds, a word longer than it remembers, an expression that gives up, unknown characters.
    let letter = |of: u32| char::from_u32(0x61 + of % 26).unwrap();
    let many: String =
        (0..20_000_u32).flat_map(|at| [' ', letter(at / 676), letter(at / 26), letter(at), 'q']).collect();
    let many = many.repeat(2);
    let long = "a".repeat(1 << 16);
    let spaces = " ".repeat(5000);
    let gives_up = sequence(&[split("x|(?:a|a(?=a))+(?=b)"), byte_level(false)]);
    let gives_up = from_json(&json_of(&vocab, gives_up, Value::Null, Value::Null));
    for (name, tokenizer) in
        [("smollm", of_spec(&vocab, "default")), ("llama3", of_spec(&vocab, "llama3")), ("gives up", gives_up)]
    {
        for text in ["", " ", &many, &long, &format!("x{spaces}x\n{spaces}"), &format!("xx{}xx", "a".repeat(40))] {
            check(name, &tokenizer, text);
        }
    }
    let mut json = json_of(&vocab, sequence(&[split(LLAMA3), byte_level(false)]), Value::Null, Value::Null);
    json["added_tokens"] = json!([]);
    json["model"]["vocab"] = json!({"a": 0, "Ġ": 1, "?": 2, "Ġa": 3});
    json["model"]["merges"] = json!(["Ġ a"]);
    for (unk_token, fuse_unk) in [("", false), ("?", false), ("?", true), ("not there", false)] {
        json["model"]["unk_token"] = if unk_token.is_empty() { Value::Null } else { unk_token.into() };
        json["model"]["fuse_unk"] = fuse_unk.into();
        check(unk_token, &from_json(&json), "a bcd a a\né b");
    }
}

#[test]
fn threads_at_once_equal_the_library() {
    let tokenizer = of_spec(&story(), "llama3");
    let text: String = (0..3000).map(|at| format!(" word{at}")).collect();
    std::thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| check("llama3", &tokenizer, &text));
        }
    });
}

#[test]
fn what_is_not_of_the_class_is_left_to_the_library() {
    let vocab = GgufVocab {
        tokens: ["a", "b", "ab", "Ġ"].map(String::from).to_vec(),
        merges: vec!["a b".into()],
        ..GgufVocab::default()
    };
    let with = |field: &str, value: Value| {
        let mut split = split(LLAMA3);
        split[field] = value;
        sequence(&[split, byte_level(false)])
    };
    let mut prefix = byte_level(true);
    prefix["add_prefix_space"] = true.into();
    for (pre_tokenizer, recognized) in [
        (sequence(&[split(LLAMA3), byte_level(false)]), true),
        (byte_level(true), true),
        (with("behavior", "Removed".into()), false),
        (with("behavior", "MergedWithNext".into()), false),
        (with("invert", true.into()), false),
        (prefix, false),
        (sequence(&[split(LLAMA3)]), false),
        (sequence(&[byte_level(false), split(LLAMA3)]), false),
        (sequence(&[byte_level(false), byte_level(false)]), false),
        (sequence(&[json!({"type": "Digits", "individual_digits": false}), byte_level(true)]), false),
        (sequence(&vec![split("a"); 5000].into_iter().chain([byte_level(false)]).collect::<Vec<_>>()), false),
        (sequence(&[]), false),
        (json!({"type": "Whitespace"}), false),
        (Value::Null, false),
    ] {
        let mut json = json_of(&vocab, pre_tokenizer, Value::Null, Value::Null);
        json["added_tokens"] = json!([]);
        let tokenizer = from_json(&json);
        let library = tokenizer.library().unwrap();
        assert_eq!(library.words.is_some(), recognized, "{}", json["pre_tokenizer"]);
        let encoded = library.encode("ab a1b", true, SpecialNames::All);
        assert_eq!(encoded, library.encode_baseline("ab a1b", true, SpecialNames::All));
    }
}

/// What a token of English costs both ways:
/// `cargo test --release -p aisp-engine --lib text::library -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_token() {
    let english = include_str!("../../../tests/data/english.txt");
    let vocab = story();
    let prose = english.repeat(17);
    let chat = format!("<|im_start|>user\n{english}<|im_end|>\n").repeat(17);
    let many_words = [include_str!("../../../../ARCHITECTURE.md"), include_str!("../../../../README.md")].concat();
    let nfc = json_of(&vocab, sequence(&[split(LLAMA3), byte_level(false)]), json!({"type": "NFC"}), template());
    for (name, tokenizer) in [
        ("llama3", of_spec(&vocab, "llama3")),
        ("smollm", of_spec(&vocab, "smollm")),
        ("json with NFC", from_json(&nfc)),
    ] {
        let library = tokenizer.library().unwrap();
        for (text_name, text) in
            [("prose", &prose), ("chat", &chat), ("prose, curly", &prose.replace('"', "”")), ("documents", &many_words)]
        {
            let num_tokens = library.encode(text, true, SpecialNames::All).unwrap().len();
            let mut ns: [Vec<f64>; 2] = Default::default();
            for _ in 0..25 {
                for (by, ns) in ns.iter_mut().enumerate() {
                    let start = std::time::Instant::now();
                    let ids = match by {
                        0 => library.encode_baseline(text, true, SpecialNames::All),
                        _ => library.encode(text, true, SpecialNames::All),
                    };
                    ns.push(start.elapsed().as_nanos() as f64 / ids.unwrap().len() as f64);
                }
            }
            ns.iter_mut().for_each(|ns| ns.sort_by(f64::total_cmp));
            let [library, words] = ns.map(|ns| [ns[12], ns[1], ns[23]].map(f64::round));
            let ratio = library[0] / words[0];
            println!(
                "{name}, {text_name}, {num_tokens} tokens, ns each as [median, p4, p96]: library {library:?}, words {words:?}, {ratio:.1}x"
            );
        }
    }
}
