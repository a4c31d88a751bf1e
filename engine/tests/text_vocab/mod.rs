//! The vocabularies that the text tests share.

use std::path::Path;

use aisp_engine::text::{GgufVocab, Tokenizer};
use candle_core::quantized::gguf_file::{Content, Value};

/// The tokenizer fields of a GGUF file that is known to be well-formed.
pub fn vocab_of(path: &Path) -> GgufVocab {
    let mut file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let content = Content::read(&mut file).unwrap();
    let get = |key: &str| content.metadata.get(&format!("tokenizer.ggml.{key}"));
    let string = |value: &Value| value.to_string().unwrap().clone();
    let list = |key: &str| get(key).map_or(Vec::new(), |value| value.to_vec().unwrap().clone());
    let id = |key: &str| get(key).map(|value| value.to_u32().unwrap());
    GgufVocab {
        model: string(get("model").unwrap()),
        pre: get("pre").map(string),
        tokens: list("tokens").iter().map(string).collect(),
        scores: list("scores").iter().map(|v| v.to_f32().unwrap()).collect(),
        token_types: list("token_type").iter().map(|v| v.to_i32().unwrap()).collect(),
        merges: list("merges").iter().map(string).collect(),
        bos_token_id: id("bos_token_id"),
        eos_token_id: id("eos_token_id"),
        eot_token_id: id("eot_token_id"),
        unknown_token_id: id("unknown_token_id"),
        padding_token_id: id("padding_token_id"),
        add_bos_token: get("add_bos_token").map(|value| value.to_bool().unwrap()),
        add_space_prefix: get("add_space_prefix").map(|value| value.to_bool().unwrap()),
    }
}

/// SmolLM2's byte-level vocabulary, out of the built-in model.
pub fn story() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/story-12m-q8_0.gguf");
    Tokenizer::from_gguf(&vocab_of(&path)).unwrap()
}

/// A small SentencePiece vocabulary: specials, all bytes, some pieces; `(name, score)` in the order of ids.
#[allow(dead_code)]
pub fn sentence_piece(pieces: &[(&str, f32)]) -> Tokenizer {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>", "<tool>"].map(String::from).to_vec();
    let mut token_types = vec![2, 3, 3, 4];
    tokens.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
    token_types.resize(tokens.len(), 6);
    let mut scores = vec![0.0; tokens.len()];
    for (piece, score) in pieces {
        tokens.push((*piece).into());
        scores.push(*score);
        token_types.push(1);
    }
    Tokenizer::from_gguf(&GgufVocab {
        model: "llama".into(),
        tokens,
        scores,
        token_types,
        bos_token_id: Some(1),
        eos_token_id: Some(2),
        unknown_token_id: Some(0),
        ..GgufVocab::default()
    })
    .unwrap()
}
