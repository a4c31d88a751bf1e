//! The same decoder on the GPU: packed QKV and gate-up, norms inside the products that need them, all results in a
//! workspace that is allocated once. Reads top-down.
//!
//! A step is a series of launches whose addresses and shapes follow from its [`StepShape`] alone, so that it can be
//! recorded. Rows are computed 64 at a time by kernels whose bits do not depend on how many there are; with
//! `wgmma-linear`, `library-gemm` or `activations-fp8`, steps of many rows are computed whole.

mod products;

use std::sync::Arc;

use aisp_kernels::Arithmetic;
use aisp_kernels::cuda::{
    CudaError, CudaKv, DecodeAttention, DeviceBuffer, DeviceSlice, DeviceWeight, Fp8Groups, GemmInput, Gpu,
    LINEAR_MAX_ROWS, LinearInput, LinearOutput, NextNorm, PrefillAttention, Rope, RopeNorms, Rows, WeightFormat,
};
use aisp_kernels::linear::LinearWork;
use products::{Gemms, LayerGemms};

use super::config::ModelConfig;
use super::cuda_weights::CudaTake;
use super::cuda_workspace::{StepAddresses, Workspace};
use super::rope_frequencies::rope_frequencies;
use super::take::PackedWeights;
use super::weights::Weights;
use super::work::MatrixWork;
use crate::error::EngineError;
use crate::plan::{DecodeSplitsKind, Plan, Products, WeightKind, WideProductsKind};
use crate::runner::StepShape;

const ROPE: (&str, &str) = ("the rotary table", "--max-model-len");

/// A decoder-only transformer with its weights on a GPU.
pub struct CudaDecoder {
    gpu: Arc<Gpu>,
    config: ModelConfig,
    embedding: DeviceWeight,
    layers: Vec<Layer>,
    norm: DeviceBuffer<f32>,
    /// The head, unless it is the embedding.
    lm_head: Option<DeviceWeight>,
    rope: Rope,
    gemms: Option<Gemms>,
    /// Whether own products of many rows may be computed at once.
    wide: bool,
    /// The same with x in e4m3.
    wide_fp8: bool,
    /// Whether decode attention cuts contexts by the size of the batch.
    adaptive_splits: bool,
    /// The fastest products for steps of up to so many rows, in order; the last for more.
    fastest: Vec<(usize, Products)>,
}

struct Layer {
    input_norm: DeviceBuffer<f32>,
    qkv_proj: DeviceWeight,
    qkv_bias: Option<DeviceBuffer<f32>>,
    /// Weights of the norms over each head of Q and of K (Qwen3).
    qk_norm: Option<(DeviceBuffer<f32>, DeviceBuffer<f32>)>,
    o_proj: DeviceWeight,
    post_attention_norm: DeviceBuffer<f32>,
    gate_up_proj: DeviceWeight,
    down_proj: DeviceWeight,
}

impl CudaDecoder {
    /// Assembles the decoder and brings its tensors to the device. Positions reach up to `max_model_len`.
    ///
    /// Errors: a tensor that is missing or does not fit the config; a shape that the kernels do not take; out of memory.
    pub fn new(
        gpu: &Arc<Gpu>,
        config: &ModelConfig,
        weights: &mut Weights,
        plan: &Plan,
        max_model_len: usize,
    ) -> Result<(Self, PackedWeights), EngineError> {
        check_shape(config)?;
        let format = match plan.weights {
            WeightKind::Checkpoint => WeightFormat::Bf16,
            WeightKind::Int8 => WeightFormat::Int8,
            WeightKind::Int4 => WeightFormat::Int4,
            WeightKind::Fp8 => WeightFormat::Fp8,
            WeightKind::Fp4 => WeightFormat::Nvfp4,
        };
        let mut take = CudaTake { gpu, weights, staging: None, format, packed: PackedWeights::default() };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        // Table and head keep the checkpoint's values: with them in few bits answers lose more than time is won.
        let embedding = take.stored(&[("model.embed_tokens", vocab)], hidden)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(take.stored(&[("lm_head", vocab)], hidden)?),
        };
        let layers = (0..config.num_layers).map(|layer| Layer::new(config, layer, &mut take));
        let layers = layers.collect::<Result<Vec<_>, _>>()?;
        let norm = take.vector("model.norm.weight", hidden)?;
        let held = std::iter::once(&embedding).chain(&lm_head).map(DeviceWeight::num_bytes).sum::<u64>();
        let mut packed = take.packed;
        packed.packed_bytes += held;
        let rope = rope_table(gpu, config, max_model_len)?;
        let mut decoder = Self {
            gpu: gpu.clone(),
            config: config.clone(),
            embedding,
            layers,
            norm,
            lm_head,
            rope,
            gemms: None,
            wide: plan.wide_products == WideProductsKind::Wgmma && gpu.has_wide_linear(),
            wide_fp8: false,
            adaptive_splits: plan.decode_splits == DecodeSplitsKind::Adaptive,
            fastest: Vec::new(),
        };
        decoder.wide_fp8 = decoder.allows_wide_fp8(plan);
        decoder.gemms = decoder.plan_products(plan)?;
        Ok((decoder, packed))
    }

    /// Its device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }

    /// Whether decode attention cuts contexts by the size of the batch.
    pub fn has_adaptive_splits(&self) -> bool {
        self.adaptive_splits
    }

    /// What its matrices take.
    pub fn matrices(&self) -> MatrixWork {
        let of = |layer: &Layer| layer.weights().map(DeviceWeight::work);
        let mut layers: LinearWork = self.layers.iter().flat_map(of).sum();
        if self.wide_fp8 || self.library(Products::LibraryFp8).is_some() {
            layers.arithmetic = Arithmetic::Fp8;
        }
        MatrixWork {
            layers,
            head: self.lm_head.as_ref().unwrap_or(&self.embedding).work(),
            embedding_row_bytes: self.embedding.num_bytes() / self.config.vocab_size as u64,
        }
    }

    /// Its shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Puts a step on the stream: stores its keys and values and leaves what the head reads in `workspace.x`.
    ///
    /// Errors: a workspace or tables smaller than the shape; a failed launch.
    pub fn forward(
        &self,
        shape: &StepShape,
        at: &StepAddresses<'_>,
        kv: &CudaKv,
        w: &Workspace,
    ) -> Result<(), EngineError> {
        let rows = shape.num_rows;
        let first = self.layers.first().map_or(&self.norm, |layer| &layer.input_norm);
        self.gpu.embedding(
            &self.embedding,
            (at.token_ids, at.choices),
            rows,
            w.residual.all(),
            w.next_norm(0, first),
        )?;
        let products = self.products(rows);
        if products.are_library() {
            let out = self.input_rows(self.layers.first(), products, w);
            self.gpu.rms_norm(w.residual.all(), (first, self.eps()), rows, out)?;
        }
        let codes = w.x_codes(products);
        for (index, layer) in self.layers.iter().enumerate() {
            // What the embedding leaves and what the head reads is bf16 in any case.
            let (first, last) = (index == 0, index + 1 == self.layers.len());
            self.qkv(rows, layer, (products, codes.filter(|_| !first)), w)?;
            self.attend(shape, at, kv, index, w)?;
            self.mlp(rows, index, products, codes.filter(|_| !last), w)?;
        }
        Ok(())
    }

    /// Queries, keys and values of the rows, which are `codes` where there are such.
    fn qkv(
        &self,
        rows: usize,
        layer: &Layer,
        (products, codes): (Products, Option<Fp8Groups<'_>>),
        w: &Workspace,
    ) -> Result<(), EngineError> {
        match self.library(products) {
            Some((of_layer, gemms)) if layer.is_qkv_for_library() => {
                gemms.multiply(rows, (&of_layer.qkv, &layer.qkv_proj), w.for_product(products, &w.x), w.qkv.all())?;
                Ok(())
            }
            _ => self.by_parts(products, rows, |start, len| {
                let raw = !products.are_library();
                let input = LinearInput { bias: layer.qkv_bias.as_ref(), codes, ..self.normed(w, start, raw) };
                let out = LinearOutput::F32(w.rows_of(&w.qkv, start));
                self.linear(products, &layer.qkv_proj, len, input, out) // [T, H] -> [T, (NH + 2 KVH) * D]
            }),
        }
    }

    /// Output projection and feed-forward layer, which leaves `next_codes` where they are wanted.
    fn mlp(
        &self,
        rows: usize,
        index: usize,
        products: Products,
        next_codes: Option<Fp8Groups<'_>>,
        w: &Workspace,
    ) -> Result<(), EngineError> {
        if let Some(library) = self.library(products) {
            return self.library_mlp(rows, index, (products, library), w);
        }
        let (layer, next_norm) = (&self.layers[index], self.next_norm(index));
        let codes = w.x_codes(products);
        self.by_parts(products, rows, |start, len| {
            let input = LinearInput::of(w.rows_of(&w.attention, start));
            let next = NextNorm { codes, ..w.next_norm(start, &layer.post_attention_norm) };
            let out = LinearOutput::Residual(w.rows_of(&w.residual, start), next);
            self.linear(products, &layer.o_proj, len, input, out) // [T, NH * D] -> [T, H]
        })?;
        self.by_parts(products, rows, |start, len| {
            let input = LinearInput { codes, ..self.normed(w, start, true) };
            let out = match w.gated_codes(products) {
                Some(codes) => LinearOutput::SiluMulFp8(codes),
                None => LinearOutput::SiluMul(w.rows_of(&w.gated, start)),
            };
            self.linear(products, &layer.gate_up_proj, len, input, out) // [T, H] -> [T, I]
        })?;
        self.by_parts(products, rows, |start, len| {
            let input = LinearInput { codes: w.gated_codes(products), ..LinearInput::of(w.rows_of(&w.gated, start)) };
            let next = NextNorm { codes: next_codes, ..w.next_norm(start, next_norm) };
            let out = LinearOutput::Residual(w.rows_of(&w.residual, start), next);
            self.linear(products, &layer.down_proj, len, input, out) // [T, I] -> [T, H]
        })
    }

    /// The same by cuBLASLt.
    fn library_mlp(
        &self,
        rows: usize,
        index: usize,
        (products, (of_layer, gemms)): (Products, (&LayerGemms, &Gemms)),
        w: &Workspace,
    ) -> Result<(), EngineError> {
        let layer = &self.layers[index];
        let attention = of_layer.o.input(rows, w.attention.all(), w.rounded())?;
        gemms.multiply(rows, (&of_layer.o, &layer.o_proj), attention, w.residual.all())?;
        let (x, gated) = (w.for_product(products, &w.x), w.for_product(products, &w.gated));
        self.gpu.rms_norm(w.residual.all(), (&layer.post_attention_norm, self.eps()), rows, x)?;
        gemms.multiply(rows, (&of_layer.gate_up, &layer.gate_up_proj), x, w.gate_up.all())?;
        self.gpu.silu_mul(w.gate_up.all(), rows, self.config.intermediate_size, gated)?;
        gemms.multiply(rows, (&of_layer.down, &layer.down_proj), gated, w.residual.all())?;
        let next = self.input_rows(self.layers.get(index + 1), products, w);
        self.gpu.rms_norm(w.residual.all(), (self.next_norm(index), self.eps()), rows, next)?;
        Ok(())
    }

    /// Where a norm leaves what the first product of a layer, or without one the head, reads: bf16 where that is not
    /// cuBLASLt's in e4m3.
    fn input_rows<'a>(&self, layer: Option<&Layer>, products: Products, w: &'a Workspace) -> GemmInput<'a> {
        match layer {
            Some(layer) if layer.is_qkv_for_library() => w.for_product(products, &w.x),
            _ => GemmInput::Bf16(w.x.all()),
        }
    }

    /// Logits of rows that a table on the device lists, at most [`LINEAR_MAX_ROWS`] at a time; or of all rows in order.
    ///
    /// Shapes: `out [num_logits, vocab_size]`.
    /// Errors: as [`CudaDecoder::forward`].
    pub fn head(
        &self,
        shape: &StepShape,
        (rows, num_logits): (DeviceSlice<'_, i32>, usize),
        w: &Workspace,
        out: DeviceSlice<'_, f32>,
    ) -> Result<(), EngineError> {
        let products = self.products(shape.num_rows);
        let head = self.lm_head.as_ref().unwrap_or(&self.embedding);
        // Of a step of decodes every row is wanted, in order.
        let in_order = shape.is_decode() && num_logits == shape.num_rows;
        match self.library(products) {
            Some((_, gemms)) if in_order => {
                gemms.multiply(num_logits, (&gemms.head, head), GemmInput::Bf16(w.x.all()), out)?
            }
            None if in_order && products.are_wide() => {
                self.gpu.wide_linear(head, num_logits, self.normed(w, 0, true), LinearOutput::F32(out))?;
            }
            _ => self.by_parts(Products::FewRows, num_logits, |start, len| {
                let listed = Rows::Listed(rows.from(start), len);
                let logits = LinearOutput::F32(out.from(start * self.config.vocab_size));
                let raw = !products.are_library();
                self.gpu.linear(head, listed, self.normed(w, 0, raw), logits) // [R, H] -> [R, V]
            })?,
        }
        Ok(())
    }

    /// Attention of the rows over the pool, with their own keys and values in it.
    fn attend(
        &self,
        shape: &StepShape,
        at: &StepAddresses<'_>,
        kv: &CudaKv,
        layer: usize,
        w: &Workspace,
    ) -> Result<(), EngineError> {
        let (num_heads, sliding_window) = (self.config.num_heads, self.config.sliding_window);
        let norms = self.layers[layer].qk_norm.as_ref().map(|(q, k)| RopeNorms { q, k, eps: self.eps() });
        let (rope, tables) = ((&self.rope, norms), (at.positions, at.slots));
        let decode = DecodeAttention {
            q: w.q.all(),
            out: w.attention.all(),
            block_tables: at.block_tables,
            max_blocks: shape.max_blocks(),
            context_lens: at.context_lens,
            num_seqs: shape.num_decodes,
            num_heads,
            max_context_len: shape.max_context_len,
            sliding_window,
            workspace: w.decode.all(),
            next_is_small: self.layers[layer].o_proj.is_small(),
            adaptive_splits: self.adaptive_splits,
        };
        if shape.num_prefills == 0 {
            self.gpu.rope_decode_attention(w.qkv.all(), rope, tables, kv, layer, decode)?;
            return Ok(());
        }
        self.gpu.rope_store(w.qkv.all(), rope, tables, shape.num_rows, num_heads, kv, layer, w.q.all())?;
        if shape.num_decodes > 0 {
            self.gpu.decode_attention(kv, layer, decode)?;
        }
        let prefill = PrefillAttention {
            q: w.rows_of(&w.q, shape.num_decodes),
            out: w.rows_of(&w.attention, shape.num_decodes),
            block_tables: at.prefill_block_tables,
            max_blocks: shape.max_blocks(),
            cu_seqlens_q: at.cu_seqlens,
            context_lens: at.prefill_context_lens,
            num_tokens: shape.num_rows - shape.num_decodes,
            num_seqs: shape.num_prefills,
            max_query_len: shape.max_query_len,
            num_heads,
            sliding_window,
        };
        self.gpu.prefill_attention(kv, layer, prefill)?;
        Ok(())
    }

    /// Rows of `x` from `start` on, with the division by their norm still to be done if `raw`.
    fn normed<'a>(&self, w: &'a Workspace, start: usize, raw: bool) -> LinearInput<'a> {
        let norm = raw.then(|| (w.rows_of(&w.sumsq, start), self.eps()));
        LinearInput { norm, ..LinearInput::of(w.rows_of(&w.x, start)) }
    }

    /// As many rows at a time as one launch of own products takes.
    fn by_parts(
        &self,
        products: Products,
        rows: usize,
        part: impl Fn(usize, usize) -> Result<(), CudaError>,
    ) -> Result<(), EngineError> {
        let most = if products.are_wide() { rows.max(1) } else { LINEAR_MAX_ROWS };
        for start in (0..rows).step_by(most) {
            part(start, most.min(rows - start))?;
        }
        Ok(())
    }

    fn linear(
        &self,
        products: Products,
        weight: &DeviceWeight,
        rows: usize,
        input: LinearInput<'_>,
        output: LinearOutput<'_>,
    ) -> Result<(), CudaError> {
        match products.are_wide() {
            true => self.gpu.wide_linear(weight, rows, input, output),
            false => self.gpu.linear(weight, Rows::First(rows), input, output),
        }
    }

    /// The norm behind a layer.
    fn next_norm(&self, index: usize) -> &DeviceBuffer<f32> {
        self.layers.get(index + 1).map_or(&self.norm, |next| &next.input_norm)
    }

    fn eps(&self) -> f32 {
        self.config.rms_norm_eps as f32
    }
}

impl Layer {
    fn new(config: &ModelConfig, index: usize, take: &mut CudaTake<'_>) -> Result<Self, EngineError> {
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_size, kv_size) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let (q, k, v) = (name("self_attn.q_proj"), name("self_attn.k_proj"), name("self_attn.v_proj"));
        let biases = [(format!("{q}.bias"), q_size), (format!("{k}.bias"), kv_size), (format!("{v}.bias"), kv_size)];
        let biases = biases.each_ref().map(|(name, len)| (name.as_str(), *len));
        let qkv_bias = if config.qkv_bias { Some(take.vectors(&biases)?) } else { None };
        let qk_norm = match config.qk_norm {
            true => Some((
                take.vector(&name("self_attn.q_norm.weight"), config.head_dim)?,
                take.vector(&name("self_attn.k_norm.weight"), config.head_dim)?,
            )),
            false => None,
        };
        let qkv = [(q.as_str(), q_size), (k.as_str(), kv_size), (v.as_str(), kv_size)];
        let (gate, up) = (name("mlp.gate_proj"), name("mlp.up_proj"));
        Ok(Self {
            input_norm: take.vector(&name("input_layernorm.weight"), hidden)?,
            qkv_proj: take.projection(&qkv, hidden)?,
            qkv_bias,
            qk_norm,
            o_proj: take.projection(&[(&name("self_attn.o_proj"), hidden)], q_size)?,
            post_attention_norm: take.vector(&name("post_attention_layernorm.weight"), hidden)?,
            gate_up_proj: take.projection(&[(&gate, inner), (&up, inner)], hidden)?,
            down_proj: take.projection(&[(&name("mlp.down_proj"), hidden)], inner)?,
        })
    }

    /// Whether cuBLASLt may compute its queries, keys and values: it adds no bias.
    fn is_qkv_for_library(&self) -> bool {
        self.qkv_bias.is_none()
    }

    /// Its matrices.
    fn weights(&self) -> [&DeviceWeight; 4] {
        [&self.qkv_proj, &self.o_proj, &self.gate_up_proj, &self.down_proj]
    }
}

/// What the kernels ask of a shape.
fn check_shape(config: &ModelConfig) -> Result<(), EngineError> {
    let sizes = [
        ("hidden_size", config.hidden_size, 16),
        ("intermediate_size", config.intermediate_size, 16),
        ("head_dim", config.head_dim, 16),
        ("vocab_size", config.vocab_size, 16),
    ];
    let wrong = sizes.into_iter().find(|(_, size, of)| !size.is_multiple_of(*of));
    let wrong = wrong.map(|(name, size, of)| format!("{name} is {size}, no multiple of {of}"));
    let wide = (config.head_dim > 256).then(|| format!("head_dim is {}, above 256", config.head_dim));
    match wrong.or(wide) {
        None => Ok(()),
        Some(problem) => {
            let message = format!("has no CUDA kernels for this model: {problem}; choose `--optimizations exact`");
            Err(EngineError::InvalidSetting { name: "fused-ops", message })
        }
    }
}

fn rope_table(gpu: &Arc<Gpu>, config: &ModelConfig, num_positions: usize) -> Result<Rope, EngineError> {
    let frequencies = rope_frequencies(config);
    let angles = (0..num_positions).flat_map(|position| frequencies.iter().map(move |f| position as f64 * f));
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
    Ok(Rope {
        cos: DeviceBuffer::of(gpu, &cos, ROPE)?,
        sin: DeviceBuffer::of(gpu, &sin, ROPE)?,
        style: config.rope_style,
    })
}
