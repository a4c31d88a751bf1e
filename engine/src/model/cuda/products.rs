//! Which kernels compute the products of a step: timed once, when the model is loaded.

use super::{CudaDecoder, Layer, Workspace};
use crate::error::EngineError;
use crate::optimizations::Optimization;
use crate::plan::{ActivationKind, Plan, Products, ProductsKind};
use aisp_kernels::cuda::{
    CudaError, DeviceBuffer, DeviceSlice, DeviceWeight, Event, FP8_GROUP, Gemm, GemmInput, GemmOperands, GemmOutput,
    GemmScratch, WeightFormat,
};

const FLUSH: (&str, &str) = ("timing matrix products", "--gpu-memory-utilization");

/// Numbers of rows that products are timed for.
const TIMED_ROWS: [usize; 8] = [16, 32, 64, 128, 256, 512, 1024, 2048];

/// Steps of up to so many rows are always computed by the kernels for few.
const FEW_ROWS: usize = 8;

/// Up to so many rows they are timed against the others.
const MOST_FEW_ROWS: usize = 128;

/// Layers whose products are timed: together larger than the last cache.
const TIMED_LAYERS: usize = 8;

impl Products {
    /// The switch that allows them.
    pub fn optimization(self) -> Option<Optimization> {
        match self {
            Self::FewRows => None,
            Self::Wide => Some(Optimization::WgmmaLinear),
            Self::Library => Some(Optimization::LibraryGemm),
            Self::WideFp8 | Self::LibraryFp8 => Some(Optimization::ActivationsFp8),
        }
    }

    /// Whether own kernels compute all rows of a step at once.
    pub(super) fn are_wide(self) -> bool {
        matches!(self, Self::Wide | Self::WideFp8)
    }

    /// Whether cuBLASLt computes them; x is then divided by its norm before, not after.
    pub(super) fn are_library(self) -> bool {
        matches!(self, Self::Library | Self::LibraryFp8)
    }
}

/// cuBLASLt's plans.
pub(super) struct Gemms {
    /// For `library-gemm`.
    bf16: Option<LayerGemms>,
    /// For `activations-fp8`.
    fp8: Option<LayerGemms>,
    /// The head keeps its precision in either.
    pub(super) head: Gemm,
    pub(super) scratch: GemmScratch,
}

/// One plan a shape of weights of a layer.
pub(super) struct LayerGemms {
    pub(super) qkv: Gemm,
    pub(super) o: Gemm,
    pub(super) gate_up: Gemm,
    pub(super) down: Gemm,
}

impl Gemms {
    /// `out [rows, n] = x [rows, k] W^T`, or `+=` if the plan says so.
    pub(super) fn multiply<T>(
        &self,
        rows: usize,
        (gemm, weight): (&Gemm, &DeviceWeight),
        x: GemmInput<'_>,
        out: DeviceSlice<'_, T>,
    ) -> Result<(), CudaError> {
        gemm.run(rows, x, weight, &self.scratch, out)
    }
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

    /// cuBLASLt's plans for the layers and for all else, if it computes products of this kind.
    pub(super) fn library(&self, products: Products) -> Option<(&LayerGemms, &Gemms)> {
        let gemms = self.gemms.as_ref()?;
        let layers = match products {
            Products::FewRows | Products::Wide | Products::WideFp8 => None,
            Products::Library => gemms.bf16.as_ref(),
            Products::LibraryFp8 => gemms.fp8.as_ref(),
        };
        Some((layers?, gemms))
    }

    /// Whether products of layers may read x in e4m3: where every weight of every layer is in it.
    pub(super) fn allows_fp8(&self, plan: &Plan) -> bool {
        let mut weights = self.layers.iter().flat_map(Layer::weights);
        plan.activations == ActivationKind::Fp8 && weights.all(|weight| weight.format() == WeightFormat::Fp8)
    }

    /// Whether own kernels have code for such products, and take these shapes.
    pub(super) fn allows_wide_fp8(&self, plan: &Plan) -> bool {
        let widths = [self.config.hidden_size, self.config.intermediate_size];
        self.allows_fp8(plan)
            && self.gpu.has_wide_linear()
            && widths.iter().all(|width| width.is_multiple_of(FP8_GROUP))
    }

    /// Plans of cuBLASLt for the shapes of the model; none where the plan has no use for them.
    pub(super) fn plan_products(&self, plan: &Plan) -> Result<Option<Gemms>, EngineError> {
        let bf16 = plan.products == ProductsKind::Library;
        let fp8 = self.allows_fp8(plan);
        if !bf16 && !fp8 {
            return Ok(None);
        }
        let head = self.lm_head.as_ref().unwrap_or(&self.embedding);
        let Some(layer) = self.layers.first() else {
            return Err(EngineError::Runner("a model without layers".into()));
        };
        let of_layer = layer.weights().into_iter().filter(|_| bf16);
        let expanded = of_layer.chain([head]).filter(|weight| weight.format() != WeightFormat::Bf16);
        let most = expanded.map(|weight| weight.out_features() * weight.in_features()).max().unwrap_or(0);
        let layers = |operands| self.layer_gemms(layer, operands);
        Ok(Some(Gemms {
            bf16: bf16.then(|| layers(GemmOperands::Bf16)).transpose()?,
            fp8: fp8.then(|| layers(GemmOperands::Fp8)).transpose()?,
            head: self.gemm(head, GemmOperands::Bf16, GemmOutput::F32)?,
            scratch: GemmScratch::new(&self.gpu, most)?,
        }))
    }

    fn layer_gemms(&self, layer: &Layer, operands: GemmOperands) -> Result<LayerGemms, CudaError> {
        Ok(LayerGemms {
            qkv: self.gemm(&layer.qkv_proj, operands, GemmOutput::F32)?,
            o: self.gemm(&layer.o_proj, operands, GemmOutput::Add)?,
            gate_up: self.gemm(&layer.gate_up_proj, operands, GemmOutput::Bf16)?,
            down: self.gemm(&layer.down_proj, operands, GemmOutput::Add)?,
        })
    }

    fn gemm(&self, weight: &DeviceWeight, operands: GemmOperands, output: GemmOutput) -> Result<Gemm, CudaError> {
        Gemm::new(&self.gpu, weight.out_features(), weight.in_features(), operands, output)
    }

    /// Times the products that the plan allows, on the buffers that steps use: which of them computes a step of so many
    /// rows is decided here, once. `only` takes the place of the fastest.
    ///
    /// Errors: a product that failed; an `only` that is not allowed.
    pub fn time_products(
        &mut self,
        w: &Workspace,
        logits: &DeviceBuffer<f32>,
        only: Option<Products>,
    ) -> Result<(), EngineError> {
        self.tune_library(w, logits)?;
        if let Some(only) = only {
            if !self.allowed_products(FEW_ROWS).contains(&only) {
                let message = format!("cannot be {only:?} with these optimizations on this device");
                return Err(EngineError::InvalidSetting { name: "products", message });
            }
            self.fastest.push((w.max_rows, only));
            return Ok(());
        }
        if self.allowed_products(FEW_ROWS).len() == 1 {
            return Ok(());
        }
        for rows in TIMED_ROWS.into_iter().filter(|rows| *rows <= w.max_rows) {
            let mut fastest = (f32::INFINITY, Products::FewRows);
            for products in self.allowed_products(rows) {
                let ms = self.time_layers(rows, products, w)?;
                if ms < fastest.0 {
                    fastest = (ms, products);
                }
            }
            self.fastest.push((rows, fastest.1));
        }
        Ok(())
    }

    /// What may compute a step of so many rows.
    fn allowed_products(&self, rows: usize) -> Vec<Products> {
        let all = [
            (Products::FewRows, rows <= MOST_FEW_ROWS),
            (Products::Wide, self.wide),
            (Products::WideFp8, self.wide_fp8),
            (Products::Library, self.library(Products::Library).is_some()),
            (Products::LibraryFp8, self.library(Products::LibraryFp8).is_some()),
        ];
        all.into_iter().filter_map(|(products, allowed)| allowed.then_some(products)).collect()
    }

    /// Times cuBLASLt's algorithms.
    fn tune_library(&mut self, w: &Workspace, logits: &DeviceBuffer<f32>) -> Result<(), EngineError> {
        let (Some(gemms), Some(layer)) = (&mut self.gemms, self.layers.first()) else { return Ok(()) };
        let head = self.lm_head.as_ref().unwrap_or(&self.embedding);
        let Gemms { bf16, fp8, head: head_gemm, scratch } = gemms;
        // In a step no weight is in the cache.
        let flush = DeviceBuffer::<u8>::zeroed(&self.gpu, 2 * self.gpu.info().l2_bytes, FLUSH)?;
        for rows in TIMED_ROWS.into_iter().filter(|rows| *rows <= w.max_rows) {
            for LayerGemms { qkv, o, gate_up, down } in [&mut *bf16, &mut *fp8].into_iter().flatten() {
                let x = qkv.input(rows, w.x.all(), w.rounded())?;
                qkv.tune(rows, x, &layer.qkv_proj, scratch, w.qkv.all(), flush.all())?;
                let x = o.input(rows, w.attention.all(), w.rounded())?;
                o.tune(rows, x, &layer.o_proj, scratch, w.residual.all(), flush.all())?;
                let x = gate_up.input(rows, w.x.all(), w.rounded())?;
                gate_up.tune(rows, x, &layer.gate_up_proj, scratch, w.gate_up.all(), flush.all())?;
                let x = down.input(rows, w.gated.all(), w.rounded())?;
                down.tune(rows, x, &layer.down_proj, scratch, w.residual.all(), flush.all())?;
            }
            if rows * self.config.vocab_size <= logits.len() {
                let x = head_gemm.input(rows, w.x.all(), w.rounded())?;
                head_gemm.tune(rows, x, head, scratch, logits.all(), flush.all())?;
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
            for (index, layer) in self.layers.iter().enumerate().take(TIMED_LAYERS) {
                let codes = w.x_codes(products);
                self.qkv(rows, layer, (products, codes), w)?;
                self.mlp(rows, index, products, codes, w)?;
            }
            end.record()?;
        }
        Ok(end.ms_since(&start)?)
    }
}
