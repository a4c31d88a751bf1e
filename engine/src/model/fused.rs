//! The same decoder on plain slices: Q, K and V in one product, gate and up in one, pointwise ops fused with what
//! stands beside them, all results in a workspace that is allocated once. Reads top-down.
//!
//! A step is cut into passes of at most [`PASS_ROWS`] tokens, which bounds the workspace: kernels are batch-invariant
//! and attention reads earlier passes from the cache, so the cut changes no bit.

use std::ops::Range;
use std::sync::Arc;

use aisp_kernels::attention::flash::{FlashCall, FlashParams, FlashScratch, FlashSequence, flash_attention};
use aisp_kernels::embedding::{RowTable, embedding_rows};
use aisp_kernels::kv::KvBuffer;
use aisp_kernels::linear::{Activations, LinearWork, PackedLinear};
use aisp_kernels::rms_norm::{Norm, residual_add_rms_norm, rms_norm_rows};
use aisp_kernels::rope::{Qkv, RopeStore, RopeTable, rope_and_store};
use aisp_kernels::silu_mul::silu_mul_rows;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Result};
use tracing::debug_span;

use super::config::ModelConfig;
use super::rope_frequencies::rope_frequencies;
use super::take::{Projection, Take};
use super::weights::Weight;
use super::work::MatrixWork;
use crate::compute::Compute;
use crate::error::EngineError;
use crate::runner::{BlockLayout, Logits, StepInput};

/// Tokens computed at a time.
const PASS_ROWS: usize = 512;

/// A decoder-only transformer with its weights packed for the CPU.
pub struct FusedDecoder {
    config: ModelConfig,
    embedding: Arc<QTensor>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    lm_head: PackedLinear,
    rope: RopeTable,
    compute: Compute,
    workspace: Workspace,
}

struct Layer {
    input_norm: Vec<f32>,
    qkv_proj: PackedLinear,
    /// Weights of the norms over each head of Q and of K (Qwen3).
    qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    o_proj: PackedLinear,
    post_attention_norm: Vec<f32>,
    gate_up_proj: PackedLinear,
    down_proj: PackedLinear,
}

/// Rows of a pass. Grows to the largest pass, then stays.
#[derive(Default)]
struct Workspace {
    /// The residual stream, `[T, H]`.
    hidden: Vec<f32>,
    /// What the next projection reads, `[T, H]`.
    normed: Vec<f32>,
    /// What the last projection wrote, `[T, H]`.
    delta: Vec<f32>,
    /// `[T, (NH + 2 KVH) * D]`.
    qkv: Vec<f32>,
    /// Turned queries, `[T, NH, D]`.
    q: Vec<f32>,
    /// `[T, NH, D]`.
    attention: Vec<f32>,
    /// `[T, 2 I]`.
    gate_up: Vec<f32>,
    /// `[T, I]`.
    gated: Vec<f32>,
    sequences: Vec<FlashSequence>,
    activations: Activations,
    flash: FlashScratch,
}

impl Workspace {
    fn resize(&mut self, rows: usize, config: &ModelConfig) {
        let q_size = config.num_heads * config.head_dim;
        for (buffer, width) in [
            (&mut self.hidden, config.hidden_size),
            (&mut self.normed, config.hidden_size),
            (&mut self.delta, config.hidden_size),
            (&mut self.qkv, q_size + 2 * config.num_kv_heads * config.head_dim),
            (&mut self.q, q_size),
            (&mut self.attention, q_size),
            (&mut self.gate_up, 2 * config.intermediate_size),
            (&mut self.gated, config.intermediate_size),
        ] {
            buffer.resize(rows * width, 0.0);
        }
    }
}

impl FusedDecoder {
    /// Assembles the decoder and takes its tensors. Positions reach up to `max_model_len`.
    ///
    /// Errors: a tensor that is missing, does not fit the config or cannot be packed.
    pub(super) fn new(
        config: &ModelConfig,
        take: &mut Take<'_>,
        max_model_len: usize,
    ) -> std::result::Result<Self, EngineError> {
        let table = take.weight("model.embed_tokens.weight", &[config.vocab_size, config.hidden_size])?;
        let embedding = row_table(&table)?;
        let head = match config.tie_word_embeddings {
            true => Projection { weight: table, bias: None, tied: true },
            false => take.projection("lm_head", config.hidden_size, config.vocab_size, false)?,
        };
        let layers = (0..config.num_layers).map(|layer| Layer::new(config, layer, take));
        Ok(Self {
            layers: layers.collect::<std::result::Result<_, _>>()?,
            norm: take.values("model.norm.weight", config.hidden_size)?,
            lm_head: take.pack(&[head])?,
            rope: RopeTable::new(&rope_frequencies(config), max_model_len, config.rope_style),
            embedding,
            config: config.clone(),
            compute: take.compute.clone(),
            workspace: Workspace::default(),
        })
    }

    /// What its matrices take.
    pub fn matrices(&self) -> MatrixWork {
        MatrixWork {
            layers: self.layers.iter().map(Layer::matrices).sum(),
            head: self.lm_head.work(),
            embedding_row_bytes: (self.embedding.storage_size_in_bytes() / self.config.vocab_size) as u64,
        }
    }

    /// Runs a step: stores its keys and values and writes the logits of `input.logit_rows`.
    ///
    /// Errors: a token or slot out of range.
    pub fn forward(
        &mut self,
        input: &StepInput,
        layout: &BlockLayout,
        kv: &mut KvBuffer,
        logits: &mut Logits,
    ) -> Result<()> {
        let num_tokens = input.token_ids.len();
        let logits = logits.reset(input.logit_rows.len(), self.config.vocab_size);
        let mut num_done = 0;
        for start in (0..num_tokens).step_by(PASS_ROWS) {
            let rows = start..(start + PASS_ROWS).min(num_tokens);
            self.pass(rows.clone(), input, layout, kv)?;
            let wanted = &input.logit_rows[num_done..];
            let wanted = &wanted[..wanted.partition_point(|&row| (row as usize) < rows.end)];
            let done = (num_done + wanted.len()) * self.config.vocab_size;
            self.head(wanted, start, &mut logits[num_done * self.config.vocab_size..done]);
            num_done += wanted.len();
        }
        Ok(())
    }

    /// Leaves the normed hidden states of these rows in the workspace.
    fn pass(&mut self, rows: Range<usize>, input: &StepInput, layout: &BlockLayout, kv: &mut KvBuffer) -> Result<()> {
        let Self { config, workspace: w, compute: Compute { isa, team }, .. } = self;
        let (isa, team) = (*isa, team.as_ref());
        let norm = |weight| Norm { weight, eps: config.rms_norm_eps as f32 };
        let q_size = config.num_heads * config.head_dim;
        let params = FlashParams {
            num_heads: config.num_heads,
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            sliding_window: config.sliding_window,
        };
        layout.cut(rows.clone(), &mut w.sequences);
        w.resize(rows.len(), config);
        let table =
            RowTable { bytes: &self.embedding.data()?, dtype: self.embedding.dtype(), hidden_size: config.hidden_size };
        embedding_rows(table, &input.token_ids[rows.clone()], &mut w.hidden)?; // [T] -> [T, H]
        if let Some(first) = self.layers.first() {
            rms_norm_rows(&w.hidden, norm(&first.input_norm), &mut w.normed, isa, team)?;
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let _span = debug_span!("layer", index).entered();
            w.activations.load(&w.normed, config.hidden_size, layer.qkv_proj.form(), isa, team);
            layer.qkv_proj.forward(&w.activations, &mut w.qkv, team); // [T, H] -> [T, (NH + 2 KVH) * D]
            let to = RopeStore {
                table: &self.rope,
                positions: &input.positions[rows.clone()],
                slots: &layout.slots[rows.clone()],
                kv,
                layer: index,
                norms: layer.qk_norm.as_ref().map(|(q, k)| (norm(q), norm(k))),
            };
            let qkv = Qkv::packed(&w.qkv, config.num_heads, config.num_kv_heads, config.head_dim);
            rope_and_store(qkv, &mut w.q, to, isa, team)?;
            let call = FlashCall { kv, layer: index, sequences: &w.sequences, block_tables: &layout.tables, params };
            flash_attention(&w.q, &mut w.attention, call, &mut w.flash, isa, team)?;
            w.activations.load(&w.attention, q_size, layer.o_proj.form(), isa, team);
            layer.o_proj.forward(&w.activations, &mut w.delta, team); // [T, NH * D] -> [T, H]
            let post_norm = norm(&layer.post_attention_norm);
            residual_add_rms_norm(&mut w.hidden, &w.delta, post_norm, &mut w.normed, isa, team)?;
            w.activations.load(&w.normed, config.hidden_size, layer.gate_up_proj.form(), isa, team);
            layer.gate_up_proj.forward(&w.activations, &mut w.gate_up, team); // [T, H] -> [T, 2 I]
            silu_mul_rows(&w.gate_up, config.intermediate_size, &mut w.gated, isa, team)?;
            w.activations.load(&w.gated, config.intermediate_size, layer.down_proj.form(), isa, team);
            layer.down_proj.forward(&w.activations, &mut w.delta, team); // [T, I] -> [T, H]
            let next_norm = self.layers.get(index + 1).map_or(&self.norm, |next| &next.input_norm);
            residual_add_rms_norm(&mut w.hidden, &w.delta, norm(next_norm), &mut w.normed, isa, team)?;
        }
        Ok(())
    }

    /// Logits of some rows of the pass that began at row `start` of the step.
    fn head(&mut self, wanted: &[u32], start: usize, logits: &mut [f32]) {
        if wanted.is_empty() {
            return;
        }
        let _span = debug_span!("head").entered();
        let Self { config, workspace: w, compute: Compute { isa, team }, .. } = self;
        let hidden_size = config.hidden_size;
        // Ascending, so a row never moves onto one that is still to be read.
        for (to, &row) in wanted.iter().enumerate() {
            let from = (row as usize - start) * hidden_size;
            w.normed.copy_within(from..from + hidden_size, to * hidden_size);
        }
        let rows = &w.normed[..wanted.len() * hidden_size];
        w.activations.load(rows, hidden_size, self.lm_head.form(), *isa, team.as_ref());
        self.lm_head.forward(&w.activations, logits, team.as_ref()); // [R, H] -> [R, V]
    }
}

impl Layer {
    fn new(config: &ModelConfig, index: usize, take: &mut Take<'_>) -> std::result::Result<Self, EngineError> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_size, kv_size) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let bias = config.qkv_bias;
        let qkv = [
            take.projection(&name("self_attn.q_proj"), hidden, q_size, bias)?,
            take.projection(&name("self_attn.k_proj"), hidden, kv_size, bias)?,
            take.projection(&name("self_attn.v_proj"), hidden, kv_size, bias)?,
        ];
        let qk_norm = match config.qk_norm {
            true => Some((
                take.values(&name("self_attn.q_norm.weight"), config.head_dim)?,
                take.values(&name("self_attn.k_norm.weight"), config.head_dim)?,
            )),
            false => None,
        };
        let gate_up = [
            take.projection(&name("mlp.gate_proj"), hidden, inner, false)?,
            take.projection(&name("mlp.up_proj"), hidden, inner, false)?,
        ];
        let o_proj = take.projection(&name("self_attn.o_proj"), q_size, hidden, false)?;
        let down_proj = take.projection(&name("mlp.down_proj"), inner, hidden, false)?;
        Ok(Self {
            input_norm: take.values(&name("input_layernorm.weight"), hidden)?,
            qkv_proj: take.pack(&qkv)?,
            qk_norm,
            o_proj: take.pack(&[o_proj])?,
            post_attention_norm: take.values(&name("post_attention_layernorm.weight"), hidden)?,
            gate_up_proj: take.pack(&gate_up)?,
            down_proj: take.pack(&[down_proj])?,
        })
    }

    fn matrices(&self) -> LinearWork {
        [&self.qkv_proj, &self.o_proj, &self.gate_up_proj, &self.down_proj].map(PackedLinear::work).into_iter().sum()
    }
}

/// The table in a form whose rows are read as bytes.
fn row_table(table: &Weight) -> Result<Arc<QTensor>> {
    match table {
        Weight::Quantized(table) => Ok(table.clone()),
        Weight::Mapped(table) => Ok(Arc::new(table.stored().to_qtensor(&Device::Cpu)?)),
        Weight::Dense(table) => {
            let dtype = match table.dtype() {
                candle_core::DType::BF16 => GgmlDType::BF16,
                candle_core::DType::F16 => GgmlDType::F16,
                _ => GgmlDType::F32,
            };
            Ok(Arc::new(QTensor::quantize(table, dtype)?))
        }
    }
}
