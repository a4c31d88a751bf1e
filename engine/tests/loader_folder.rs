//! Hugging Face folders, right and wrong in one way each.
// A test ends where it fails; clippy's own exception does not reach helper functions.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod loader_support;

use aisp_engine::loader::{Checkpoint, LoadError, LoadOptions, ModelSource, TokenizerSource, load};
use aisp_engine::model::RopeScaling;
use loader_support::check_outcome;
use loader_support::hf::{self, Files};
use serde_json::{Value, json};

fn load_files(files: &Files) -> Result<Checkpoint, LoadError> {
    let folder = tempfile::tempdir().unwrap();
    hf::write(files, folder.path());
    let mut outcome = load(&ModelSource::Folder(folder.path().into()), &LoadOptions::default());
    check_outcome(&mut outcome);
    outcome
}

fn check(change: impl Fn(&mut Files), expected: &str) {
    let mut files = hf::folder();
    change(&mut files);
    let message = load_files(&files).expect_err(expected).to_string();
    assert!(message.contains(expected), "expected '{expected}': {message}");
}

fn put(files: &mut Files, name: &str, bytes: impl Into<Vec<u8>>) {
    files.insert(name.into(), bytes.into());
}

fn put_config(files: &mut Files, key: &str, value: Value) {
    let mut config = hf::config();
    config[key] = value;
    put(files, "config.json", config.to_string());
}

#[test]
fn one_file_and_shards_load_alike() {
    for (files, format) in [(hf::folder(), "bf16 as f32"), (hf::sharded_folder(), "f32+f16 as f32")] {
        let checkpoint = load_files(&files).unwrap();
        assert_eq!(checkpoint.weight_format, format);
        assert_eq!((checkpoint.num_parameters, checkpoint.weights.names().len()), (680, 11));
        assert_eq!((checkpoint.config.eos_token_ids, checkpoint.config.bos_token_id), (vec![2, 3, 4], Some(1)));
        assert!(matches!(checkpoint.config.rope_scaling, RopeScaling::Llama3 { original_context: 32, .. }));
        assert_eq!(checkpoint.chat_template.as_deref(), Some("{{ messages }}"));
        assert!(matches!(checkpoint.tokenizer, TokenizerSource::Json(_)));
    }
}

#[test]
fn missing_and_oversized_files() {
    check(|f| drop(f.remove("config.json")), "config.json is missing");
    check(|f| drop(f.remove("model.safetensors")), "model.safetensors: cannot open");
    check(|f| put(f, "config.json", vec![b' '; (1 << 20) + 1]), "config.json: file size");
    check(|f| put(f, "config.json", "{"), "config.json: JSON");
    check(|f| put(f, "config.json", "[".repeat(100_000)), "config.json: JSON");
    check(|f| put(f, "tokenizer.json", "{\"added_tokens\": 3}"), "tokenizer.json: JSON");
    let mut files = hf::folder();
    for optional in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        files.remove(optional);
    }
    assert_eq!(load_files(&files).unwrap().tokenizer, TokenizerSource::None);
}

#[test]
fn config_and_tensors_must_agree() {
    check(|f| put_config(f, "num_hidden_layers", json!(2)), "model.layers.1.input_layernorm.weight is missing");
    check(|f| put_config(f, "intermediate_size", json!(32)), "has shape [16, 8], the config gives it [32, 8]");
    check(|f| put_config(f, "tie_word_embeddings", json!(false)), "lm_head.weight is missing");
    check(|f| put_config(f, "architectures", json!(["Qwen3ForCausalLM"])), "self_attn.q_norm.weight is missing");
    check(|f| put_config(f, "architectures", json!(["BertModel"])), "architectures BertModel");
    let with = |name: &'static str| {
        move |f: &mut Files| {
            let mut tensors = hf::tensors();
            tensors.push((name, vec![8]));
            put(f, "model.safetensors", hf::safetensors(&tensors, "BF16"));
        }
    };
    check(with("model.layers.0.self_attn.o_proj.bias"), "self_attn.o_proj.bias");
    let mut harmless = hf::folder();
    with("model.layers.0.self_attn.rotary_emb.inv_freq")(&mut harmless);
    assert!(load_files(&harmless).is_ok());
}

#[test]
fn safetensors_headers() {
    let spoil = |change: fn(&mut Vec<u8>)| move |f: &mut Files| change(f.get_mut("model.safetensors").unwrap());
    check(spoil(Vec::clear), "header length");
    check(spoil(|b| b.truncate(100)), "header length");
    check(spoil(|b| b.truncate(b.len() - 1)), "data_offsets");
    check(spoil(|b| b.push(0)), "data_offsets");
    check(spoil(|b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())), "header length");
    check(spoil(|b| b[8] = b'x'), "header is not valid");
    check(|f| put(f, "model.safetensors", hf::safetensors(&hf::tensors(), "I16")), "dtype");
}

#[test]
fn indexes() {
    let check = |change: &dyn Fn(&mut Files), expected: &str| {
        let mut files = hf::sharded_folder();
        change(&mut files);
        let message = load_files(&files).expect_err(expected).to_string();
        assert!(message.contains(expected), "expected '{expected}': {message}");
    };
    let index = "model.safetensors.index.json";
    for name in ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "x.bin"] {
        check(&|f| put(f, index, json!({"weight_map": {"w": name}}).to_string()), "weight_map.w");
    }
    check(&|f| put(f, index, "{}"), "JSON");
    check(&|f| put(f, index, json!({"weight_map": {}}).to_string()), "weight_map is empty");
    check(&|f| drop(f.remove("model-00002-of-00002.safetensors")), "model-00002-of-00002.safetensors: cannot open");
    check(
        &|f| {
            let first = f["model-00001-of-00002.safetensors"].clone();
            put(f, "model-00002-of-00002.safetensors", first);
        },
        "is in shard 1 too",
    );
}
