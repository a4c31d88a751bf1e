//! From `config.json` to the decoder's shape. Accepts the layouts of transformers 4 (`rope_scaling`, `rope_theta`) and 5
//! (`rope_parameters`).

use serde_json::Value;

use crate::model::{Architecture, ModelConfig, RopeScaling, RopeStyle};

use super::super::error::FieldError;
use super::super::limits::check_config;

/// Defaults of transformers where the file does not say.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;
const DEFAULT_RMS_NORM_EPS: f64 = 1e-6;
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

/// Builds and checks the config, with the token ids that `config.json` itself names.
///
/// Errors: a missing field, a value out of range, an architecture or feature that the decoder does not have.
pub(crate) fn read_config(json: &Value) -> Result<ModelConfig, FieldError> {
    if !json.is_object() {
        return Err(FieldError::malformed("JSON", "must be an object"));
    }
    let fields = Fields(json);
    let architecture = architecture(&fields)?;
    check_features(&fields, architecture)?;
    let hidden_size = fields.required_size("hidden_size")?;
    let num_heads = fields.required_size("num_attention_heads")?;
    let num_layers = fields.required_size("num_hidden_layers")?;
    let head_dim = match fields.size("head_dim")? {
        Some(head_dim) => head_dim,
        None => hidden_size.checked_div(num_heads).unwrap_or(0),
    };
    let rope = rope_parameters(json)?;
    let config = ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: fields.required_size("intermediate_size")?,
        num_layers,
        num_heads,
        num_kv_heads: fields.size("num_key_value_heads")?.unwrap_or(num_heads),
        head_dim,
        vocab_size: fields.required_size("vocab_size")?,
        max_position_embeddings: fields.required_size("max_position_embeddings")?,
        rms_norm_eps: fields.float("rms_norm_eps")?.unwrap_or(DEFAULT_RMS_NORM_EPS),
        rope_theta: match fields.float("rope_theta")? {
            Some(theta) => theta,
            None => rope.float("rope_theta")?.unwrap_or(DEFAULT_ROPE_THETA),
        },
        rope_style: RopeStyle::Neox,
        rope_scaling: rope_scaling(&rope)?,
        sliding_window: sliding_window(&fields, architecture, num_layers)?,
        qkv_bias: architecture == Architecture::Qwen2,
        qk_norm: architecture == Architecture::Qwen3,
        tie_word_embeddings: fields.boolean("tie_word_embeddings")?.unwrap_or(false),
        eos_token_ids: token_ids(json, "eos_token_id")?,
        bos_token_id: token_ids(json, "bos_token_id")?.first().copied(),
    };
    check_config(&config).map_err(|error| error.rename(hf_field))?;
    Ok(config)
}

/// A token id, a list of them, or null.
pub(crate) fn token_ids(json: &Value, field: &str) -> Result<Vec<u32>, FieldError> {
    let id = |value: &Value| {
        value.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
            FieldError::malformed(field, format!("must be a token id or a list of them, got {}", kind(value)))
        })
    };
    match json.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(ids)) if ids.len() > 1024 => {
            Err(FieldError::malformed(field, format!("lists {} ids, at most 1024 are read", ids.len())))
        }
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(single) => Ok(vec![id(single)?]),
    }
}

fn architecture(fields: &Fields<'_>) -> Result<Architecture, FieldError> {
    let supported = "architectures are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM";
    let by_class = match fields.0.get("architectures") {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_array().map(Vec::as_slice) {
            Some([Value::String(class)]) => Some(class.as_str()),
            _ => return Err(FieldError::malformed("architectures", "must be a list of one name")),
        },
    };
    let (field, name) = match by_class {
        Some(class) => ("architectures", class),
        None => ("model_type", fields.string("model_type")?.unwrap_or("(missing)")),
    };
    match name {
        "LlamaForCausalLM" | "llama" => Ok(Architecture::Llama),
        "MistralForCausalLM" | "mistral" => Ok(Architecture::Mistral),
        "Qwen2ForCausalLM" | "qwen2" => Ok(Architecture::Qwen2),
        "Qwen3ForCausalLM" | "qwen3" => Ok(Architecture::Qwen3),
        other => Err(FieldError::unsupported(field, other, supported)),
    }
}

/// Refuses what would be computed wrongly rather than not at all.
fn check_features(fields: &Fields<'_>, architecture: Architecture) -> Result<(), FieldError> {
    if let Some(activation) = fields.string("hidden_act")?.filter(|name| !matches!(*name, "silu" | "swish")) {
        return Err(FieldError::unsupported("hidden_act", activation, "the activation is silu"));
    }
    for field in ["attention_bias", "mlp_bias"] {
        // Qwen2 has its biases whatever this says.
        if fields.boolean(field)? == Some(true) && architecture != Architecture::Qwen2 {
            return Err(FieldError::unsupported(field, "true", "only Qwen2 has biases"));
        }
    }
    if let Some(factor) = fields.float("partial_rotary_factor")?.filter(|factor| *factor != 1.0) {
        return Err(FieldError::unsupported("partial_rotary_factor", factor.to_string(), "whole heads are rotated"));
    }
    if let Some(value) = fields.0.get("quantization_config").filter(|value| !value.is_null()) {
        let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("(unnamed)");
        let supported = "safetensors hold f32, f16 or bf16; for quantized weights give a .gguf";
        return Err(FieldError::unsupported("quantization_config.quant_method", method, supported));
    }
    Ok(())
}

/// Mistral's window, or Qwen's where all layers use it.
fn sliding_window(
    fields: &Fields<'_>,
    architecture: Architecture,
    num_layers: usize,
) -> Result<Option<usize>, FieldError> {
    let window = fields.size("sliding_window")?;
    let declared = match architecture {
        Architecture::Llama => None,
        Architecture::Mistral => window,
        Architecture::Qwen2 | Architecture::Qwen3 => {
            if fields.boolean("use_sliding_window")? != Some(true) {
                return Ok(None);
            }
            let full_layers = fields.size("max_window_layers")?.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
            match window {
                Some(_) if (1..num_layers).contains(&full_layers) => {
                    let supported = format!("all {num_layers} layers or none have a window");
                    return Err(FieldError::unsupported("max_window_layers", full_layers.to_string(), supported));
                }
                window => window.filter(|_| full_layers == 0),
            }
        }
    };
    Ok(declared)
}

/// The object that describes the rotary embedding, under its old or new name.
fn rope_parameters(json: &Value) -> Result<Fields<'_>, FieldError> {
    for field in ["rope_parameters", "rope_scaling"] {
        match json.get(field) {
            None | Some(Value::Null) => {}
            Some(value @ Value::Object(_)) => return Ok(Fields(value)),
            Some(other) => {
                return Err(FieldError::malformed(field, format!("must be an object, got {}", kind(other))));
            }
        }
    }
    Ok(Fields(&Value::Null))
}

fn rope_scaling(rope: &Fields<'_>) -> Result<RopeScaling, FieldError> {
    let in_rope = |error: FieldError| error.rename(|field| format!("rope_scaling.{field}"));
    let rope_type = match rope.string("rope_type").map_err(in_rope)? {
        Some(rope_type) => rope_type,
        None => rope.string("type").map_err(in_rope)?.unwrap_or("default"),
    };
    let factor = |name| {
        rope.float(name)
            .and_then(|value| value.ok_or_else(|| FieldError::malformed(name, "is missing")))
            .map_err(in_rope)
    };
    match rope_type {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: factor("factor")?,
            low_freq_factor: factor("low_freq_factor")?,
            high_freq_factor: factor("high_freq_factor")?,
            original_context: rope.required_size("original_max_position_embeddings").map_err(in_rope)?,
        }),
        other => Err(FieldError::unsupported("rope_scaling.rope_type", other, "types are default, linear and llama3")),
    }
}

/// The name that `config.json` uses for a field of the config.
fn hf_field(field: &str) -> String {
    match field {
        "num_layers" => "num_hidden_layers",
        "num_heads" => "num_attention_heads",
        "num_kv_heads" => "num_key_value_heads",
        other => other,
    }
    .to_owned()
}

/// Typed access that names the field when the type is wrong; null counts as absent.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn get<T>(
        &self,
        field: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FieldError> {
        match self.0.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => Err(FieldError::malformed(field, format!("must be {expected}, got {}", kind(value)))),
            },
        }
    }

    fn size(&self, field: &str) -> Result<Option<usize>, FieldError> {
        self.get(field, "a non-negative integer", |value| value.as_u64().and_then(|v| usize::try_from(v).ok()))
    }

    fn required_size(&self, field: &str) -> Result<usize, FieldError> {
        self.size(field)?.ok_or_else(|| FieldError::malformed(field, "is missing"))
    }

    fn float(&self, field: &str) -> Result<Option<f64>, FieldError> {
        self.get(field, "a number", Value::as_f64)
    }

    fn boolean(&self, field: &str) -> Result<Option<bool>, FieldError> {
        self.get(field, "true or false", Value::as_bool)
    }

    fn string(&self, field: &str) -> Result<Option<&'a str>, FieldError> {
        self.get(field, "a string", Value::as_str)
    }
}

/// What a value is, for messages; numbers are shown.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(class: &str, changes: Value) -> Result<ModelConfig, FieldError> {
        let mut json = json!({
            "architectures": [class], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": [2, 3],
        });
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        read_config(&json)
    }

    #[test]
    fn families_differ_where_they_should() {
        let llama = read("LlamaForCausalLM", json!({"sliding_window": 5})).unwrap();
        assert_eq!((llama.head_dim, llama.sliding_window, llama.eos_token_ids), (16, None, vec![2, 3]));
        assert_eq!(llama.rope_theta, 10_000.0);
        let mistral = read("MistralForCausalLM", json!({"sliding_window": 5, "head_dim": 32})).unwrap();
        assert_eq!((mistral.head_dim, mistral.sliding_window), (32, Some(5)));
        let qwen2 = read("Qwen2ForCausalLM", json!({"sliding_window": 5, "use_sliding_window": false})).unwrap();
        assert_eq!((qwen2.qkv_bias, qwen2.qk_norm, qwen2.sliding_window), (true, false, None));
        let window = json!({"sliding_window": 5, "use_sliding_window": true, "max_window_layers": 0});
        assert_eq!(read("Qwen2ForCausalLM", window).unwrap().sliding_window, Some(5));
        let qwen3 = read("Qwen3ForCausalLM", json!({"tie_word_embeddings": true})).unwrap();
        assert!(!qwen3.qkv_bias && qwen3.qk_norm && qwen3.tie_word_embeddings);
    }

    #[test]
    fn rope_is_read_from_either_layout() {
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192});
        let expected =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let old = read("LlamaForCausalLM", json!({"rope_scaling": llama3, "rope_theta": 5e5})).unwrap();
        assert_eq!((old.rope_scaling, old.rope_theta), (expected.clone(), 5e5));
        let mut parameters = llama3.clone();
        parameters["rope_theta"] = json!(5e5);
        let new = read("LlamaForCausalLM", json!({"rope_parameters": parameters})).unwrap();
        assert_eq!((new.rope_scaling, new.rope_theta), (expected, 5e5));
        let linear = read("LlamaForCausalLM", json!({"rope_scaling": {"type": "linear", "factor": 2}})).unwrap();
        assert_eq!(linear.rope_scaling, RopeScaling::Linear { factor: 2.0 });
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (class, changes, field) in [
            ("GPT2LMHeadModel", json!({}), "architectures"),
            ("LlamaForCausalLM", json!({"architectures": [1]}), "architectures"),
            ("LlamaForCausalLM", json!({"architectures": null, "model_type": "bert"}), "model_type"),
            ("LlamaForCausalLM", json!({"hidden_size": null}), "hidden_size"),
            ("LlamaForCausalLM", json!({"hidden_size": -64}), "hidden_size"),
            ("LlamaForCausalLM", json!({"hidden_size": "64"}), "hidden_size"),
            ("LlamaForCausalLM", json!({"num_attention_heads": 0}), "num_attention_heads"),
            ("LlamaForCausalLM", json!({"num_key_value_heads": 3}), "num_key_value_heads"),
            ("LlamaForCausalLM", json!({"num_hidden_layers": 1e18 as u64}), "num_hidden_layers"),
            ("LlamaForCausalLM", json!({"rms_norm_eps": 0}), "rms_norm_eps"),
            ("LlamaForCausalLM", json!({"hidden_act": "gelu"}), "hidden_act"),
            ("LlamaForCausalLM", json!({"attention_bias": true}), "attention_bias"),
            ("LlamaForCausalLM", json!({"rope_scaling": {"rope_type": "yarn"}}), "rope_scaling.rope_type"),
            ("LlamaForCausalLM", json!({"rope_scaling": {"rope_type": "linear"}}), "rope_scaling.factor"),
            ("LlamaForCausalLM", json!({"rope_scaling": "linear"}), "rope_scaling"),
            ("LlamaForCausalLM", json!({"quantization_config": {"quant_method": "awq"}}), "quantization_config"),
            ("LlamaForCausalLM", json!({"eos_token_id": 100}), "eos_token_id"),
            ("LlamaForCausalLM", json!({"eos_token_id": "</s>"}), "eos_token_id"),
            ("MistralForCausalLM", json!({"sliding_window": 0}), "sliding_window"),
            (
                "Qwen2ForCausalLM",
                json!({"sliding_window": 5, "use_sliding_window": true, "max_window_layers": 1}),
                "max_window_layers",
            ),
        ] {
            let message = read(class, changes).unwrap_err().in_file("config.json").to_string();
            assert!(message.contains(field), "{field}: {message}");
        }
        assert!(read_config(&json!([])).is_err());
    }
}
