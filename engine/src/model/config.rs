//! The shape of a decoder, read from `config.json` or GGUF metadata by the loader; complete and checked when it exists.

pub use aisp_kernels::rope::RopeStyle;

/// The families that the decoder covers; they differ in biases, norms and rotary layout, all spelled out in [`ModelConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama 2 and 3, SmolLM2.
    Llama,
    /// Mistral.
    Mistral,
    /// Qwen2 and Qwen2.5.
    Qwen2,
    /// Qwen3.
    Qwen3,
}

/// How rotary frequencies are stretched for contexts longer than those trained on.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by the factor. Source: arXiv 2306.15595.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, those between interpolated.
    Llama3 {
        /// How much longer the context is.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are scaled.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context trained on.
        original_context: usize,
    },
    /// Each frequency is divided by its own factor: GGUF's `rope_freqs.weight`, `head_dim / 2` values.
    PerFrequency(Vec<f32>),
}

/// The shape of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Values in a head; even.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Longest context that the checkpoint claims.
    pub max_position_embeddings: usize,
    /// Added under the root of every RMS norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Layout of the rotary pairs.
    pub rope_style: RopeStyle,
    /// Stretching of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Each token sees this many latest tokens, itself included; `None` sees all.
    pub sliding_window: Option<usize>,
    /// Q, K and V projections add a bias (Qwen2).
    pub qkv_bias: bool,
    /// Q and K are normed head by head before the rotation (Qwen3).
    pub qk_norm: bool,
    /// The output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// Token that starts a text, if the checkpoint names one.
    pub bos_token_id: Option<u32>,
}
