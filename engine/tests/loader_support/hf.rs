//! Writes small model folders in Hugging Face layout.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

/// Files of a folder by name.
pub type Files = BTreeMap<String, Vec<u8>>;

/// `config.json` of a Llama of one layer and width 8.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 10, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true, "bos_token_id": 1, "eos_token_id": [2],
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32},
    })
}

/// Names and shapes of its tensors.
pub fn tensors() -> Vec<(&'static str, Vec<usize>)> {
    vec![
        ("model.embed_tokens.weight", vec![10, 8]),
        ("model.layers.0.input_layernorm.weight", vec![8]),
        ("model.layers.0.self_attn.q_proj.weight", vec![8, 8]),
        ("model.layers.0.self_attn.k_proj.weight", vec![4, 8]),
        ("model.layers.0.self_attn.v_proj.weight", vec![4, 8]),
        ("model.layers.0.self_attn.o_proj.weight", vec![8, 8]),
        ("model.layers.0.post_attention_layernorm.weight", vec![8]),
        ("model.layers.0.mlp.gate_proj.weight", vec![16, 8]),
        ("model.layers.0.mlp.up_proj.weight", vec![16, 8]),
        ("model.layers.0.mlp.down_proj.weight", vec![8, 16]),
        ("model.norm.weight", vec![8]),
    ]
}

/// A safetensors file of zeros.
pub fn safetensors(tensors: &[(&str, Vec<usize>)], dtype: &str) -> Vec<u8> {
    let width = if dtype == "F32" { 4 } else { 2 };
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * width;
        header.insert((*name).into(), json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; offset]].concat()
}

/// One safetensors file.
pub fn folder() -> Files {
    let mut files = Files::new();
    files.insert("config.json".into(), config().to_string().into());
    files.insert("generation_config.json".into(), json!({"eos_token_id": [2, 3]}).to_string().into());
    let tokenizer = json!({"version": "1.0", "added_tokens": [{"id": 4, "content": "<|im_end|>"}], "model": {}});
    files.insert("tokenizer.json".into(), tokenizer.to_string().into());
    let tokenizer_config = json!({"eos_token": {"content": "<|im_end|>"}, "chat_template": "{{ messages }}"});
    files.insert("tokenizer_config.json".into(), tokenizer_config.to_string().into());
    files.insert("model.safetensors".into(), safetensors(&tensors(), "BF16"));
    files
}

/// Two shards and an index.
pub fn sharded_folder() -> Files {
    let mut files = folder();
    files.remove("model.safetensors");
    let all = tensors();
    let (first, second) = all.split_at(5);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    files.insert(names[0].into(), safetensors(first, "F16"));
    files.insert(names[1].into(), safetensors(second, "F32"));
    let weight_map: serde_json::Map<String, Value> = first
        .iter()
        .map(|(name, _)| ((*name).to_owned(), json!(names[0])))
        .chain(second.iter().map(|(name, _)| ((*name).to_owned(), json!(names[1]))))
        .collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    files.insert("model.safetensors.index.json".into(), index.to_string().into());
    files
}

/// Writes all files.
pub fn write(files: &Files, folder: &Path) {
    for (name, bytes) in files {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}
