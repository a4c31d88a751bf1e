//! The tokenizer against llama.cpp's ids, and against itself: the same vocabulary as tokenizer.json and as GGUF.

use std::path::{Path, PathBuf};

use aisp_engine::text::{GgufVocab, TextError, Tokenizer, TokenizerSource};
use candle_core::quantized::gguf_file::{Content, Value};

#[derive(serde::Deserialize)]
struct Case {
    text: String,
    ids: Vec<u32>,
}

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn cases(path: &Path) -> Vec<Case> {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The tokenizer fields of a GGUF file that is known to be well-formed.
fn vocab_of(path: &Path) -> GgufVocab {
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

fn story() -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/story-12m-q8_0.gguf");
    Tokenizer::new(TokenizerSource::Gguf(vocab_of(&path))).unwrap()
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
