//! From GGUF metadata to the decoder's shape.

use crate::model::{Architecture, ModelConfig, RopeScaling, RopeStyle};

use super::super::error::FieldError;
use super::super::limits::check_config;
use super::metadata::Metadata;

/// llama.cpp's default where the file does not say.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

/// What the tensors, rather than the metadata, say about the shape.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorFacts {
    /// Rows of the embedding table.
    pub(crate) vocab_size: usize,
    /// There is an output head of its own.
    pub(crate) has_output_head: bool,
    /// The first layer's Q projection has a bias.
    pub(crate) has_qkv_bias: bool,
    /// `rope_freqs.weight`.
    pub(crate) rope_freqs: Option<Vec<f32>>,
}

/// Builds and checks the config; special tokens are filled in from the vocabulary.
///
/// Errors: a missing key, a value out of range, an architecture or feature that the decoder does not have.
pub(crate) fn read_config(
    metadata: &Metadata,
    facts: TensorFacts,
    eos_token_ids: Vec<u32>,
    bos_token_id: Option<u32>,
) -> Result<ModelConfig, FieldError> {
    let arch = metadata.required_string("general.architecture")?.to_owned();
    let (architecture, rope_style) = architecture(&arch)?;
    let key = |name: &str| format!("{arch}.{name}");
    check_features(metadata, &arch)?;

    let hidden_size = metadata.required_size(&key("embedding_length"))?;
    let num_heads = metadata.required_size(&key("attention.head_count"))?;
    if num_heads == 0 {
        return Err(FieldError::malformed(key("attention.head_count"), "must be at least 1, got 0"));
    }
    let head_dim = metadata.size(&key("attention.key_length"))?.unwrap_or(hidden_size / num_heads);
    for name in ["attention.value_length", "rope.dimension_count"] {
        if let Some(value) = metadata.size(&key(name))?.filter(|value| *value != head_dim) {
            let supported = format!("it must equal the head size, {head_dim}");
            return Err(FieldError::unsupported(key(name), value.to_string(), supported));
        }
    }
    let config = ModelConfig {
        architecture,
        hidden_size,
        intermediate_size: metadata.required_size(&key("feed_forward_length"))?,
        num_layers: metadata.required_size(&key("block_count"))?,
        num_heads,
        num_kv_heads: metadata.size(&key("attention.head_count_kv"))?.unwrap_or(num_heads),
        head_dim,
        vocab_size: facts.vocab_size,
        max_position_embeddings: metadata.required_size(&key("context_length"))?,
        rms_norm_eps: rms_norm_eps(metadata, &key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: metadata.float(&key("rope.freq_base"))?.unwrap_or(DEFAULT_ROPE_THETA),
        rope_style,
        rope_scaling: rope_scaling(metadata, &arch, facts.rope_freqs)?,
        sliding_window: match architecture {
            // Qwen files carry the window even where the model does not use it.
            Architecture::Qwen2 | Architecture::Qwen3 => None,
            Architecture::Llama | Architecture::Mistral => {
                metadata.size(&key("attention.sliding_window"))?.filter(|window| *window > 0)
            }
        },
        qkv_bias: architecture == Architecture::Qwen2 || facts.has_qkv_bias,
        qk_norm: architecture == Architecture::Qwen3,
        tie_word_embeddings: !facts.has_output_head,
        eos_token_ids,
        bos_token_id,
    };
    check_config(&config).map_err(|error| error.rename(|field| gguf_key(&arch, field)))?;
    Ok(config)
}

fn architecture(name: &str) -> Result<(Architecture, RopeStyle), FieldError> {
    match name {
        "llama" => Ok((Architecture::Llama, RopeStyle::Interleaved)),
        "qwen2" => Ok((Architecture::Qwen2, RopeStyle::Neox)),
        "qwen3" => Ok((Architecture::Qwen3, RopeStyle::Neox)),
        other => {
            Err(FieldError::unsupported("general.architecture", other, "architectures are llama, qwen2 and qwen3"))
        }
    }
}

/// Refuses what would be computed wrongly rather than not at all.
fn check_features(metadata: &Metadata, arch: &str) -> Result<(), FieldError> {
    let experts = format!("{arch}.expert_count");
    if let Some(count) = metadata.unsigned(&experts)?.filter(|count| *count > 0) {
        return Err(FieldError::unsupported(experts, count.to_string(), "only dense feed-forward layers are"));
    }
    if let Some(count) = metadata.unsigned("split.count")?.filter(|count| *count > 1) {
        let cure = "merge the parts with llama-gguf-split --merge";
        return Err(FieldError::unsupported("split.count", count.to_string(), cure));
    }
    Ok(())
}

/// The file stores an f32; its shortest decimal is the number that was meant (`1e-5`, not `9.99999974e-6`).
fn rms_norm_eps(metadata: &Metadata, key: &str) -> Result<f64, FieldError> {
    let value = metadata
        .float(key)?
        .ok_or_else(|| FieldError::malformed(key, "is missing: the file is not a complete model"))?;
    Ok((value as f32).to_string().parse().unwrap_or(value))
}

fn rope_scaling(metadata: &Metadata, arch: &str, rope_freqs: Option<Vec<f32>>) -> Result<RopeScaling, FieldError> {
    let type_key = format!("{arch}.rope.scaling.type");
    let factor_key = format!("{arch}.rope.scaling.factor");
    let legacy_factor = metadata.float(&format!("{arch}.rope.scale_linear"))?;
    let factor = metadata.float(&factor_key)?.or(legacy_factor).filter(|factor| *factor != 0.0);
    let declared = metadata.string(&type_key)?.unwrap_or(if legacy_factor.is_some() { "linear" } else { "none" });
    match (declared, rope_freqs, factor) {
        ("none", Some(factors), _) => Ok(RopeScaling::PerFrequency(factors)),
        ("none", None, _) => Ok(RopeScaling::None),
        ("linear", Some(factors), None | Some(1.0)) => Ok(RopeScaling::PerFrequency(factors)),
        ("linear", None, None | Some(1.0)) => Ok(RopeScaling::None),
        ("linear", None, Some(factor)) => Ok(RopeScaling::Linear { factor }),
        ("linear", Some(_), Some(_)) => {
            Err(FieldError::unsupported(type_key, "linear with rope_freqs.weight", "use one of the two"))
        }
        (other, ..) => Err(FieldError::unsupported(type_key, other, "types are none, linear and rope_freqs.weight")),
    }
}

/// The key that a field of the config came from.
fn gguf_key(arch: &str, field: &str) -> String {
    let name = match field {
        "hidden_size" => "embedding_length",
        "intermediate_size" => "feed_forward_length",
        "num_layers" => "block_count",
        "num_heads" => "attention.head_count",
        "num_kv_heads" => "attention.head_count_kv",
        "head_dim" => "attention.key_length",
        "max_position_embeddings" => "context_length",
        "rms_norm_eps" => "attention.layer_norm_rms_epsilon",
        "rope_theta" => "rope.freq_base",
        "rope_scaling.factor" => "rope.scaling.factor",
        "sliding_window" => "attention.sliding_window",
        "vocab_size" => return "tensor token_embd.weight rows".into(),
        "rope_freqs" => return "tensor rope_freqs.weight".into(),
        "bos_token_id" | "eos_token_id" => return format!("tokenizer.ggml.{field}"),
        other => other,
    };
    format!("{arch}.{name}")
}

#[cfg(test)]
mod tests {
    use super::super::value::Value;
    use super::*;

    fn metadata(changes: &[(&str, Option<Value>)]) -> Metadata {
        let mut values = vec![
            ("general.architecture", Value::String("llama".into())),
            ("llama.context_length", Value::Unsigned(2048)),
            ("llama.embedding_length", Value::Unsigned(192)),
            ("llama.block_count", Value::Unsigned(6)),
            ("llama.feed_forward_length", Value::Unsigned(512)),
            ("llama.attention.head_count", Value::Unsigned(3)),
            ("llama.attention.head_count_kv", Value::Unsigned(1)),
            ("llama.attention.layer_norm_rms_epsilon", Value::Float(f64::from(1e-5_f32))),
        ];
        for (key, value) in changes {
            values.retain(|(old, _)| old != key);
            if let Some(value) = value {
                values.push((key, value.clone()));
            }
        }
        let mut metadata = Metadata::default();
        for (key, value) in values {
            metadata.insert(key.into(), value).unwrap();
        }
        metadata
    }

    fn read(changes: &[(&str, Option<Value>)], rope_freqs: Option<Vec<f32>>) -> Result<ModelConfig, FieldError> {
        let facts = TensorFacts { vocab_size: 100, has_output_head: false, has_qkv_bias: false, rope_freqs };
        read_config(&metadata(changes), facts, vec![2], Some(1))
    }

    #[test]
    fn a_llama_is_read() {
        let config = read(&[], None).unwrap();
        assert_eq!((config.head_dim, config.rope_style), (64, RopeStyle::Interleaved));
        assert_eq!((config.rope_theta, config.rms_norm_eps), (10_000.0, 1e-5));
        assert!(config.tie_word_embeddings && !config.qkv_bias && !config.qk_norm);
        let scaled = read(
            &[
                ("llama.rope.scaling.type", Some(Value::String("linear".into()))),
                ("llama.rope.scaling.factor", Some(Value::Float(4.0))),
            ],
            None,
        );
        assert_eq!(scaled.unwrap().rope_scaling, RopeScaling::Linear { factor: 4.0 });
        assert_eq!(read(&[], Some(vec![2.0; 32])).unwrap().rope_scaling, RopeScaling::PerFrequency(vec![2.0; 32]));
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        let check = |key: &str, value: Option<Value>| {
            let error = read(&[(key, value)], None).unwrap_err().in_file("f");
            assert!(error.to_string().contains(key), "{key}: {error}");
        };
        check("general.architecture", Some(Value::String("gpt-j".into())));
        check("general.architecture", None);
        check("llama.block_count", None);
        check("llama.block_count", Some(Value::String("6".into())));
        check("llama.block_count", Some(Value::Unsigned(u64::MAX)));
        check("llama.attention.head_count_kv", Some(Value::Unsigned(0)));
        check("llama.attention.head_count_kv", Some(Value::Unsigned(2)));
        check("llama.attention.head_count", Some(Value::Signed(-1)));
        check("llama.attention.layer_norm_rms_epsilon", Some(Value::Float(f64::NAN)));
        check("llama.rope.dimension_count", Some(Value::Unsigned(32)));
        check("llama.rope.scaling.type", Some(Value::String("yarn".into())));
        check("llama.expert_count", Some(Value::Unsigned(8)));
        check("split.count", Some(Value::Unsigned(2)));
    }
}
