//! The decoder: one implementation for every family, assembled from its config. Reads top-down.

use aisp_kernels::embedding::Embedding;
use aisp_kernels::linear::{Linear, LinearWork, select_rows};
use aisp_kernels::rms_norm::rms_norm;
use aisp_kernels::rope::{RotaryRows, RotaryTable};
use aisp_kernels::silu_mul::silu_mul;
use candle_core::{DType, Device, Result, Tensor};
use tracing::debug_span;

use super::ModelContext;
use super::config::ModelConfig;
use super::rope_frequencies::rope_frequencies;
use super::take::{Projection, Take};
use super::weights::HeapWeight;
use super::work::MatrixWork;
use crate::error::EngineError;
use crate::runner::{AttentionBackend, Qkv, StepInput};

/// A decoder-only transformer with its weights.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: Tensor,
    lm_head: Linear,
    rotary: RotaryTable,
    dtype: DType,
    device: Device,
}

#[derive(Debug)]
struct Layer {
    input_norm: Tensor,
    attention: Attention,
    post_attention_norm: Tensor,
    mlp: Mlp,
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Weights of the norms over each head of Q and of K (Qwen3).
    qk_norm: Option<(Tensor, Tensor)>,
}

#[derive(Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Decoder {
    /// Assembles the decoder and takes its tensors.
    ///
    /// Errors: a tensor that is missing or does not fit the config.
    pub(super) fn new(context: &ModelContext<'_>, take: &mut Take<'_>) -> std::result::Result<Self, EngineError> {
        let ModelContext { config, max_model_len, dtype, device, .. } = *context;
        let embed_name = "model.embed_tokens.weight";
        let table = take.weight(embed_name, &[config.vocab_size, config.hidden_size])?;
        let lm_head = match config.tie_word_embeddings {
            true => take.linear_of(Projection { weight: table.clone(), bias: None, tied: true })?,
            false => take.linear("lm_head", config.hidden_size, config.vocab_size, false)?,
        };
        let embedding = match table.into_heap()? {
            HeapWeight::Dense(table) => Embedding::Dense(table),
            HeapWeight::Quantized(table) if device.is_cpu() => Embedding::Quantized(table),
            // Rows of blocks are picked by the host.
            HeapWeight::Quantized(table) => Embedding::Dense(table.dequantize(device)?.to_dtype(dtype)?),
        };
        let layers = (0..config.num_layers).map(|layer| Layer::new(config, layer, take));
        Ok(Self {
            embedding,
            layers: layers.collect::<std::result::Result<_, _>>()?,
            norm: take.vector("model.norm.weight", config.hidden_size)?,
            lm_head,
            rotary: RotaryTable::new(&rope_frequencies(config), max_model_len, config.rope_style, device)?,
            config: config.clone(),
            dtype,
            device: device.clone(),
        })
    }

    /// What its matrices take.
    pub fn matrices(&self) -> MatrixWork {
        MatrixWork {
            layers: self.layers.iter().map(Layer::matrices).sum(),
            head: self.lm_head.work(),
            embedding_row_bytes: self.embedding.row_bytes(),
        }
    }

    /// Runs a step and stores its keys and values.
    ///
    /// Shapes: the result is `[num_logit_rows, vocab_size]` in f32.
    /// Errors: a failed op.
    pub fn forward(&self, input: &StepInput, attention: &mut dyn AttentionBackend) -> Result<Tensor> {
        attention.begin_step(input)?;
        let positions = Tensor::new(input.positions.as_slice(), &self.device)?;
        let rotary = self.rotary.rows(&positions)?;
        let mut hidden = self.embedding.forward(&input.token_ids, self.dtype, &self.device)?; // [T, H]
        for (index, layer) in self.layers.iter().enumerate() {
            let _span = debug_span!("layer", index).entered();
            hidden = layer.forward(&hidden, index, &rotary, input, attention, &self.config)?;
        }
        if input.logit_rows.is_empty() {
            return Tensor::zeros((0, self.config.vocab_size), DType::F32, &self.device);
        }
        let _span = debug_span!("head").entered();
        let hidden = select_rows(&hidden, &input.logit_rows)?; // [T, H] -> [R, H]
        let hidden = rms_norm(&hidden, &self.norm, self.config.rms_norm_eps)?;
        self.lm_head.forward(&hidden)?.to_dtype(DType::F32) // [R, H] -> [R, V]
    }
}

impl Layer {
    fn new(config: &ModelConfig, index: usize, take: &mut Take<'_>) -> std::result::Result<Self, EngineError> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        Ok(Self {
            input_norm: take.vector(&name("input_layernorm.weight"), config.hidden_size)?,
            attention: Attention::new(config, &name("self_attn"), take)?,
            post_attention_norm: take.vector(&name("post_attention_layernorm.weight"), config.hidden_size)?,
            mlp: Mlp::new(config, &name("mlp"), take)?,
        })
    }

    fn matrices(&self) -> LinearWork {
        let (Attention { q_proj, k_proj, v_proj, o_proj, .. }, mlp) = (&self.attention, &self.mlp);
        let all = [q_proj, k_proj, v_proj, o_proj, &mlp.gate_proj, &mlp.up_proj, &mlp.down_proj];
        all.map(Linear::work).into_iter().sum()
    }

    fn forward(
        &self,
        hidden: &Tensor,
        index: usize,
        rotary: &RotaryRows,
        input: &StepInput,
        attention: &mut dyn AttentionBackend,
        config: &ModelConfig,
    ) -> Result<Tensor> {
        let normed = rms_norm(hidden, &self.input_norm, config.rms_norm_eps)?;
        let hidden = (hidden + self.attention.forward(&normed, index, rotary, input, attention, config)?)?;
        let normed = rms_norm(&hidden, &self.post_attention_norm, config.rms_norm_eps)?;
        &hidden + self.mlp.forward(&normed)?
    }
}

impl Attention {
    fn new(config: &ModelConfig, prefix: &str, take: &mut Take<'_>) -> std::result::Result<Self, EngineError> {
        let (hidden, bias) = (config.hidden_size, config.qkv_bias);
        let (q_size, kv_size) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let qk_norm = if config.qk_norm {
            let mut norm = |part: &str| take.vector(&format!("{prefix}.{part}.weight"), config.head_dim);
            Some((norm("q_norm")?, norm("k_norm")?))
        } else {
            None
        };
        Ok(Self {
            q_proj: take.linear(&format!("{prefix}.q_proj"), hidden, q_size, bias)?,
            k_proj: take.linear(&format!("{prefix}.k_proj"), hidden, kv_size, bias)?,
            v_proj: take.linear(&format!("{prefix}.v_proj"), hidden, kv_size, bias)?,
            o_proj: take.linear(&format!("{prefix}.o_proj"), q_size, hidden, false)?,
            qk_norm,
        })
    }

    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        rotary: &RotaryRows,
        input: &StepInput,
        attention: &mut dyn AttentionBackend,
        config: &ModelConfig,
    ) -> Result<Tensor> {
        let num_tokens = x.dim(0)?;
        let head_dim = config.head_dim;
        let mut q = self.q_proj.forward(x)?.reshape((num_tokens, config.num_heads, head_dim))?; // [T, H] -> [T, NH, D]
        let mut k = self.k_proj.forward(x)?.reshape((num_tokens, config.num_kv_heads, head_dim))?;
        let v = self.v_proj.forward(x)?.reshape((num_tokens, config.num_kv_heads, head_dim))?;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = rms_norm(&q, q_norm, config.rms_norm_eps)?;
            k = rms_norm(&k, k_norm, config.rms_norm_eps)?;
        }
        let (q, k) = (rotary.apply(&q)?, rotary.apply(&k)?);
        let out = attention.forward(layer, &Qkv { q, k, v }, input, config.sliding_window)?;
        let out = out.reshape((num_tokens, config.num_heads * head_dim))?;
        self.o_proj.forward(&out) // [T, NH * D] -> [T, H]
    }
}

impl Mlp {
    fn new(config: &ModelConfig, prefix: &str, take: &mut Take<'_>) -> std::result::Result<Self, EngineError> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            gate_proj: take.linear(&format!("{prefix}.gate_proj"), hidden, inner, false)?,
            up_proj: take.linear(&format!("{prefix}.up_proj"), hidden, inner, false)?,
            down_proj: take.linear(&format!("{prefix}.down_proj"), inner, hidden, false)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down_proj.forward(&silu_mul(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?)
    }
}
