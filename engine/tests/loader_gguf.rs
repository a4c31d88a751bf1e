//! GGUF files that are wrong in one way each: the message names the field.
// A test ends where it fails; clippy's own exception does not reach helper functions.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod loader_support;

use aisp_engine::loader::{LoadOptions, load_gguf_bytes};
use aisp_engine::model::{RopeScaling, RopeStyle, Weight};
use candle_core::DType;
use loader_support::check_outcome;
use loader_support::gguf::{GgufFile, array_value, bool_value, f32_value, string_value, strings_value, u32_value};

fn check(change: impl Fn(&mut GgufFile), expected: &str) {
    let mut file = GgufFile::tiny();
    change(&mut file);
    check_bytes(&file.bytes(), expected);
}

fn check_bytes(bytes: &[u8], expected: &str) {
    let mut outcome = load_gguf_bytes(bytes, "model.gguf", &LoadOptions::default());
    check_outcome(&mut outcome);
    let message = outcome.expect_err(expected).to_string();
    assert!(message.starts_with("model.gguf: ") && message.contains(expected), "expected '{expected}': {message}");
}

#[test]
fn valid_files_load() {
    for file in GgufFile::variety() {
        let mut outcome = load_gguf_bytes(&file.bytes(), "model.gguf", &LoadOptions::default());
        check_outcome(&mut outcome);
        let checkpoint = outcome.unwrap();
        assert_eq!((checkpoint.config.num_layers, checkpoint.config.vocab_size), (1, 8));
        assert_eq!(checkpoint.config.eos_token_ids, [2, 6]);
        assert_eq!(checkpoint.name, "model");
    }
}

#[test]
fn architectures_and_types_are_told_apart() {
    let variety = GgufFile::variety();
    let load = |index: usize| load_gguf_bytes(&variety[index].bytes(), "m.gguf", &LoadOptions::default()).unwrap();
    let mut untied = load(1);
    assert!(!untied.config.tie_word_embeddings && untied.config.rope_style == RopeStyle::Interleaved);
    assert!(matches!(&untied.config.rope_scaling, RopeScaling::PerFrequency(factors) if factors.len() == 8));
    assert!(matches!(untied.weights.take("lm_head.weight"), Some(Weight::Quantized(_))));
    // F16 and BF16 matrices and F16 norms become the compute type.
    for name in ["model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"] {
        assert!(matches!(untied.weights.take(name), Some(Weight::Dense(t)) if t.dtype() == DType::F32), "{name}");
    }
    assert_eq!(load(2).weight_format, "Q5_K+Q6_K+Q4_K");
    let qwen2 = load(3);
    assert!(qwen2.config.qkv_bias && qwen2.weights.contains("model.layers.0.self_attn.k_proj.bias"));
    assert_eq!(
        (qwen2.config.rope_style, qwen2.config.rope_scaling),
        (RopeStyle::Neox, RopeScaling::Linear { factor: 2.0 })
    );
    let qwen3 = load(4);
    assert!(qwen3.config.qk_norm && qwen3.weights.contains("model.layers.0.self_attn.q_norm.weight"));
}

#[test]
fn the_three_files_that_break_the_tensor_library_are_refused() {
    let mut zero_alignment = GgufFile::empty();
    zero_alignment.set("general.alignment", u32_value(0));
    let bytes = zero_alignment.bytes();
    assert_eq!(bytes.len(), 57);
    check_bytes(&bytes, "general.alignment");
    check(|f| f.tensor_mut("token_embd.weight").dims = vec![8, (1 << 61) + 1], "tensor token_embd.weight dimensions");
    let mut overflow = GgufFile::empty();
    overflow.tensor("t", &[(1 << 61) + 1, 8], 0);
    check_bytes(&overflow.bytes(), "tensor t dimensions");
    let mut capacity = GgufFile::empty();
    capacity.tensor("t", &[1 << 62], 0);
    check_bytes(&capacity.bytes(), "tensor t dimensions");
}

#[test]
fn preamble_and_counts() {
    check_bytes(b"", "magic");
    check_bytes(b"GGUF", "version");
    check(|f| f.magic = *b"GG\n\0", "magic");
    check(|f| f.version = 1, "version");
    check(|f| f.version = 4, "version");
    check(|f| f.version = 3_u32.swap_bytes(), "big-endian");
    check(|f| f.tensor_count = Some(u64::MAX), "tensor_count");
    check(|f| f.tensor_count = Some(60_000), "tensor_count");
    check(|f| f.tensor_count = Some(12), "tensor");
    check(|f| f.key_count = Some(u64::MAX), "metadata_kv_count");
    check(|f| f.key_count = Some(60_000), "metadata_kv_count");
}

#[test]
fn metadata() {
    check(
        |f| f.keys.push(("general.architecture".into(), string_value("llama"))),
        "general.architecture appears twice",
    );
    check(|f| f.keys.push((String::new(), u32_value(1))), "metadata key");
    check(|f| f.keys.push(("k".repeat(5000), u32_value(1))), "metadata key");
    check(|f| f.keys.push(("k".into(), 13_u32.to_le_bytes().into())), "k has value type 13");
    check(|f| f.keys.push(("k".into(), [&7_u32.to_le_bytes()[..], &[2]].concat())), "k is a boolean of value 2");
    let long = [&8_u32.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
    check(|f| f.keys.push(("k".into(), long.clone())), "k is a string of 18446744073709551615 bytes");
    let many = [&9_u32.to_le_bytes()[..], &0_u32.to_le_bytes(), &(1_u64 << 40).to_le_bytes()].concat();
    check(|f| f.keys.push(("k".into(), many.clone())), "k is 1099511627776");
    let deep = (0..6).fold(array_value(0, &[]), |inner, _| array_value(9, &[inner[4..].to_vec()]));
    check(|f| f.keys.push(("k".into(), deep.clone())), "k nests arrays");
    for alignment in [0, 3, 48, 1 << 21, u32::MAX] {
        check(|f| f.set("general.alignment", u32_value(alignment)), "general.alignment");
    }
    check(|f| f.set("general.alignment", string_value("32")), "general.alignment must be an integer");
}

#[test]
fn tensor_infos() {
    let norm = "output_norm.weight";
    check(|f| f.tensor_mut(norm).dims = vec![], "tensor output_norm.weight dimension count");
    check(|f| f.tensor_mut(norm).dims = vec![1; 5], "tensor output_norm.weight dimension count");
    check(|f| f.tensor_mut(norm).dims = vec![0], "tensor output_norm.weight dimensions");
    check(|f| f.tensor_mut("token_embd.weight").dims = vec![33, 8], "multiples of 32");
    for unsupported in [4, 9, 15, 16, 99, u32::MAX] {
        check(|f| f.tensor_mut(norm).type_number = unsupported, "tensor output_norm.weight type");
    }
    check(|f| f.tensor_mut(norm).offset = Some(1), "multiple of the alignment");
    check(|f| f.tensor_mut(norm).offset = Some(1 << 40), "reaches beyond the end");
    check(|f| f.tensor_mut(norm).offset = Some(u64::MAX - 31), "reaches beyond the end");
    check(|f| f.tensor_mut(norm).offset = Some(0), "lies inside tensor");
    check(|f| f.tensor_mut(norm).name = "token_embd.weight".into(), "appears twice");
    check(|f| f.tensor_mut(norm).name = "x".repeat(300), "tensor name");
    check(|f| f.tensor_mut(norm).name = "a\nb".into(), "output_norm.weight is missing");
    let mut cut = GgufFile::tiny().bytes();
    cut.pop();
    check_bytes(&cut, "reaches beyond the end");
}

#[test]
fn meaning() {
    check(|f| f.unset("llama.block_count"), "llama.block_count is missing");
    check(|f| f.set("general.architecture", string_value("mamba")), "general.architecture mamba");
    check(|f| f.set("llama.block_count", u32_value(0)), "llama.block_count");
    check(|f| f.set("llama.block_count", u32_value(2)), "tensor blk.1.attn_norm.weight is missing");
    check(|f| f.set("llama.attention.head_count", u32_value(0)), "llama.attention.head_count");
    check(|f| f.set("llama.attention.head_count_kv", u32_value(0)), "llama.attention.head_count_kv");
    check(|f| f.set("llama.attention.layer_norm_rms_epsilon", f32_value(f32::NAN)), "layer_norm_rms_epsilon");
    check(|f| f.set("llama.rope.freq_base", f32_value(-1.0)), "llama.rope.freq_base");
    check(|f| f.set("llama.feed_forward_length", u32_value(64)), "has shape [32, 32], the config gives it [64, 32]");
    check(|f| f.set("llama.expert_count", u32_value(8)), "llama.expert_count");
    check(|f| f.tensor("blk.0.attn_output.bias", &[32], 0), "blk.0.attn_output.bias");
    check(|f| f.tensor("blk.0.attn_q.bias", &[32], 0), "blk.0.attn_k.bias is missing");
    check(|f| f.tensor("rope_freqs.weight", &[4], 0), "rope_freqs.weight");
    check(|f| f.tensors.retain(|t| t.name != "output_norm.weight"), "output_norm.weight is missing");
    check(|f| f.tensors.retain(|t| t.name != "token_embd.weight"), "token_embd.weight is missing");
}

#[test]
fn vocabulary() {
    check(|f| f.set("tokenizer.ggml.tokens", strings_value(&["a"])), "tokenizer.ggml");
    check(|f| f.set("tokenizer.ggml.tokens", u32_value(1)), "tokenizer.ggml.tokens must be an array of strings");
    check(|f| f.set("tokenizer.ggml.eos_token_id", u32_value(8)), "tokenizer.ggml.eos_token_id");
    check(|f| f.set("tokenizer.ggml.add_bos_token", u32_value(1)), "tokenizer.ggml.add_bos_token");
    check(|f| f.set("tokenizer.chat_template", bool_value(true)), "tokenizer.chat_template");
    check(|f| f.unset("tokenizer.ggml.model"), "tokenizer.ggml.model is missing");
    let mut without = GgufFile::tiny();
    without.keys.retain(|(key, _)| !key.starts_with("tokenizer."));
    let checkpoint = load_gguf_bytes(&without.bytes(), "m.gguf", &LoadOptions::default()).unwrap();
    assert_eq!(checkpoint.tokenizer, aisp_engine::loader::TokenizerSource::None);
}

#[test]
fn files_that_cannot_be_opened() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.gguf");
    let source = aisp_engine::loader::ModelSource::Gguf(missing.clone());
    let message = aisp_engine::loader::load(&source, &LoadOptions::default()).unwrap_err().to_string();
    assert!(message.contains("missing.gguf: cannot open"), "{message}");
    let source = aisp_engine::loader::ModelSource::Gguf(folder.path().into());
    let message = aisp_engine::loader::load(&source, &LoadOptions::default()).unwrap_err().to_string();
    assert!(message.contains("not a regular file"), "{message}");
}
