//! Which kernels compute the products of a step: timed once, when the model is loaded.

use aisp_kernels::cuda::{DeviceBuffer, DeviceWeight, Event, Gemm, GemmOutput, GemmScratch, WeightFormat};

use super::{CudaDecoder, Workspace};
use crate::error::EngineError;
use crate::optimizations::Optimization;

const FLUSH: (&str, &str) = ("timing matrix products", "--gpu-memory-utilization");

/// Numbers of rows that products are timed for.
const TIMED_ROWS: [usize; 8] = [16, 32, 64, 128, 256, 512, 1024, 2048];

/// Steps of up to so many rows are always computed by the kernels for few.
const FEW_ROWS: usize = 8;

/// Up to so many rows they are timed against the others.
const MOST_FEW_ROWS: usize = 128;

/// Layers whose products are timed: together larger than the last cache.
const TIMED_LAYERS: usize = 8;

/// How the products of a step are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Products {
    /// 64 rows at a time.
    FewRows,
    /// All rows at once, by `wgmma`.
    Wide,
    /// cuBLASLt.
    Library,
}

impl Products {
    /// The switch that allows them.
    pub fn optimization(self) -> Option<Optimization> {
        match self {
            Self::FewRows => None,
            Self::Wide => Some(Optimization::WgmmaLinear),
            Self::Library => Some(Optimization::LibraryGemm),
        }
    }
}

/// cuBLASLt's plans, one a shape of weights.
pub(super) struct Gemms {
    pub(super) qkv: Gemm,
    pub(super) o: Gemm,
    pub(super) gate_up: Gemm,
    pub(super) down: Gemm,
    pub(super) head: Gemm,
    pub(super) scratch: GemmScratch,
}

impl CudaDecoder {
    /// How a step of so many rows is computed.
    pub fn products(&self, num_rows: usize) -> Products {
        let timed = self.fastest.iter().find(|(most, _)| num_rows <= *most).or(self.fastest.last());
        match timed {
            Some((_, products)) if num_rows > FEW_ROWS => *products,
            _ => Products::FewRows,
        }
    }

    /// Plans of cuBLASLt for the shapes of the model.
    pub(super) fn plan_products(&self) -> Result<Gemms, EngineError> {
        let head = self.lm_head.as_ref().unwrap_or(&self.embedding);
        let Some(layer) = self.layers.first() else {
            return Err(EngineError::Runner("a model without layers".into()));
        };
        let all = [&layer.qkv_proj, &layer.o_proj, &layer.gate_up_proj, &layer.down_proj, head];
        let expanded = all.iter().filter(|weight| weight.format() != WeightFormat::Bf16);
        let most = expanded.map(|weight| weight.out_features() * weight.in_features()).max().unwrap_or(0);
        let plan =
            |weight: &DeviceWeight, output| Gemm::new(&self.gpu, weight.out_features(), weight.in_features(), output);
        Ok(Gemms {
            qkv: plan(&layer.qkv_proj, GemmOutput::F32)?,
            o: plan(&layer.o_proj, GemmOutput::F32)?,
            gate_up: plan(&layer.gate_up_proj, GemmOutput::Bf16)?,
            down: plan(&layer.down_proj, GemmOutput::F32)?,
            head: plan(head, GemmOutput::F32)?,
            scratch: GemmScratch::new(&self.gpu, most)?,
        })
    }

    /// Times the products that the plan allows, on the buffers that steps use: which of them computes a step of so many
    /// rows is decided here, once.
    ///
    /// Errors: a product that failed.
    pub fn time_products(&mut self, w: &Workspace, logits: &DeviceBuffer<f32>) -> Result<(), EngineError> {
        self.tune_library(w, logits)?;
        if !self.wide && self.gemms.is_none() {
            return Ok(());
        }
        for rows in TIMED_ROWS.into_iter().filter(|rows| *rows <= w.max_rows) {
            let allowed = [
                (Products::FewRows, rows <= MOST_FEW_ROWS),
                (Products::Wide, self.wide),
                (Products::Library, self.gemms.is_some()),
            ];
            let mut fastest = (f32::INFINITY, Products::FewRows);
            for (products, _) in allowed.into_iter().filter(|(_, allowed)| *allowed) {
                let ms = self.time_layers(rows, products, w)?;
                if ms < fastest.0 {
                    fastest = (ms, products);
                }
            }
            self.fastest.push((rows, fastest.1));
        }
        Ok(())
    }

    /// Times cuBLASLt's algorithms.
    fn tune_library(&mut self, w: &Workspace, logits: &DeviceBuffer<f32>) -> Result<(), EngineError> {
        let (Some(gemms), Some(layer)) = (&mut self.gemms, self.layers.first()) else { return Ok(()) };
        let head = self.lm_head.as_ref().unwrap_or(&self.embedding);
        let Gemms { qkv, o, gate_up, down, head: head_gemm, scratch } = gemms;
        // In a step no weight is in the cache.
        let flush = DeviceBuffer::<u8>::zeroed(&self.gpu, 2 * self.gpu.info().l2_bytes, FLUSH)?;
        for rows in TIMED_ROWS.into_iter().filter(|rows| *rows <= w.max_rows) {
            qkv.tune(rows, w.x.all(), &layer.qkv_proj, scratch, w.qkv.all(), flush.all())?;
            o.tune(rows, w.attention.all(), &layer.o_proj, scratch, w.delta.all(), flush.all())?;
            gate_up.tune(rows, w.x.all(), &layer.gate_up_proj, scratch, w.gate_up.all(), flush.all())?;
            down.tune(rows, w.gated.all(), &layer.down_proj, scratch, w.delta.all(), flush.all())?;
            if rows * self.config.vocab_size <= logits.len() {
                head_gemm.tune(rows, w.x.all(), head, scratch, logits.all(), flush.all())?;
            }
        }
        Ok(())
    }

    /// Milliseconds that the products of some layers take.
    fn time_layers(&self, rows: usize, products: Products, w: &Workspace) -> Result<f32, EngineError> {
        let (start, end) = (Event::new(&self.gpu)?, Event::new(&self.gpu)?);
        // The first pass warms up.
        for _ in 0..2 {
            start.record()?;
            for layer in self.layers.iter().take(TIMED_LAYERS) {
                self.qkv(rows, layer, products, w)?;
                self.mlp(rows, layer, products, &self.norm, w)?;
            }
            end.record()?;
        }
        Ok(end.ms_since(&start)?)
    }
}
