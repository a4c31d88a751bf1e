//! Which tensors a decoder of a given shape has: the one list that GGUF, safetensors and dummy weights are checked
//! against or made from.

use crate::model::ModelConfig;

/// What a tensor is for; decides its format and its dummy values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TensorRole {
    /// Token embeddings or the output head: `[vocab_size, hidden_size]`.
    Vocabulary,
    /// A projection into a layer: `[out_features, in_features]`.
    Projection,
    /// A projection that adds to the residual stream.
    ResidualProjection,
    /// RMS norm weights.
    Norm,
    /// Added after a projection.
    Bias,
}

/// A tensor that the config calls for.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorSpec {
    /// Hugging Face name.
    pub(crate) name: String,
    /// Outer dimension first.
    pub(crate) shape: Vec<usize>,
    /// What it is for.
    pub(crate) role: TensorRole,
}

impl TensorSpec {
    /// Values in it. The config's ranges keep this far from overflow.
    pub(crate) fn num_values(&self) -> u64 {
        self.shape.iter().map(|dim| *dim as u64).product()
    }

    /// Whether it is a vector: those are kept in plain values, whatever the matrices are.
    pub(crate) fn is_vector(&self) -> bool {
        matches!(self.role, TensorRole::Norm | TensorRole::Bias)
    }
}

/// Every tensor of the decoder, embeddings first, layer by layer, head last.
pub(crate) fn tensor_specs(config: &ModelConfig) -> Vec<TensorSpec> {
    let table = vec![config.vocab_size, config.hidden_size];
    let mut specs = Vec::with_capacity(3 + 14 * config.num_layers);
    let mut push = |name: String, shape: Vec<usize>, role| specs.push(TensorSpec { name, shape, role });
    push("model.embed_tokens.weight".into(), table.clone(), TensorRole::Vocabulary);
    for layer in 0..config.num_layers {
        for (name, shape, role) in layer_specs(config) {
            push(format!("model.layers.{layer}.{name}"), shape, role);
        }
    }
    push("model.norm.weight".into(), vec![config.hidden_size], TensorRole::Norm);
    if !config.tie_word_embeddings {
        push("lm_head.weight".into(), table, TensorRole::Vocabulary);
    }
    specs
}

/// The tensors of one layer, names relative to it.
fn layer_specs(config: &ModelConfig) -> Vec<(&'static str, Vec<usize>, TensorRole)> {
    use TensorRole::{Bias, Norm, Projection, ResidualProjection};
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let q_size = config.num_heads * config.head_dim;
    let kv_size = config.num_kv_heads * config.head_dim;
    let mut specs = vec![
        ("input_layernorm.weight", vec![hidden], Norm),
        ("self_attn.q_proj.weight", vec![q_size, hidden], Projection),
        ("self_attn.k_proj.weight", vec![kv_size, hidden], Projection),
        ("self_attn.v_proj.weight", vec![kv_size, hidden], Projection),
        ("self_attn.o_proj.weight", vec![hidden, q_size], ResidualProjection),
        ("post_attention_layernorm.weight", vec![hidden], Norm),
        ("mlp.gate_proj.weight", vec![inner, hidden], Projection),
        ("mlp.up_proj.weight", vec![inner, hidden], Projection),
        ("mlp.down_proj.weight", vec![hidden, inner], ResidualProjection),
    ];
    if config.qkv_bias {
        specs.push(("self_attn.q_proj.bias", vec![q_size], Bias));
        specs.push(("self_attn.k_proj.bias", vec![kv_size], Bias));
        specs.push(("self_attn.v_proj.bias", vec![kv_size], Bias));
    }
    if config.qk_norm {
        specs.push(("self_attn.q_norm.weight", vec![config.head_dim], Norm));
        specs.push(("self_attn.k_norm.weight", vec![config.head_dim], Norm));
    }
    specs
}

#[cfg(test)]
mod tests {
    use super::super::dummy::DummyShape;
    use super::*;

    #[test]
    fn known_models_have_their_published_size() {
        for (shape, expected) in [
            (DummyShape::Llama3_1_8b, 8_030_261_248),
            (DummyShape::Llama3_2_1b, 1_235_814_400),
            (DummyShape::Smollm2_135m, 134_515_008),
        ] {
            let total: u64 = tensor_specs(&shape.config()).iter().map(TensorSpec::num_values).sum();
            assert_eq!(total, expected, "{shape}");
        }
    }
}
