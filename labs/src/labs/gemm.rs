//! `ch01:gemm`: many small products one by one, in one call, and in one call over a strided layout.

use std::time::Instant;

use candle_core::{Device, Tensor};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::LabError;
use crate::fingerprint::Fingerprint;
use crate::gate::{Measure, Outputs, Tolerance};
use crate::lab::{ArmSpec, Experiment, Lab, LabContext, LabInfo, Measured};
use crate::record::{Goal, Workload};

/// Products in an iteration; the shape of attention scores of a small model: heads, tokens, head width.
const NUM_PRODUCTS: usize = 192;
const M: usize = 64;
const K: usize = 64;
const N: usize = 64;

/// The batch is worked through this often, so that an iteration takes long enough to be timed.
const NUM_PASSES: usize = 8;

/// The lab.
#[derive(Debug, Clone, Copy)]
pub struct GemmLab;

struct GemmExperiment {
    /// `[B, M, K]`, dense.
    a: Tensor,
    /// `[B, K, N]`, dense.
    b: Tensor,
    /// The same values with the batch in the middle, `[M, B, K]` in memory.
    a_strided: Tensor,
    /// The same, `[K, B, N]` in memory.
    b_strided: Tensor,
    fingerprint: String,
}

impl Lab for GemmLab {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: "ch01:gemm".into(),
            summary: format!("{NUM_PRODUCTS} products {M}x{K}x{N} f32: one by one, batched, batched over strides"),
            goal: Goal::Speed,
            tags: vec!["matmul".into()],
            tolerance: Tolerance {
                measure: Measure::Nmse,
                allowed: 1e-12,
                reason: "f32 sums of 64 terms; layouts may take another order".into(),
            },
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let mut rng = ChaCha8Rng::seed_from_u64(context.seed);
        let mut draw = |count: usize| -> Vec<f32> { (0..count).map(|_| rng.random_range(-1.0f32..1.0)).collect() };
        let (a, b) = (draw(NUM_PRODUCTS * M * K), draw(NUM_PRODUCTS * K * N));
        let mut hash = Fingerprint::default();
        let fingerprint = hash.add_f32(&a).add_f32(&b).add_u32(&[NUM_PASSES as u32]).finish();
        let a = Tensor::from_vec(a, (NUM_PRODUCTS, M, K), &Device::Cpu)?;
        let b = Tensor::from_vec(b, (NUM_PRODUCTS, K, N), &Device::Cpu)?;
        let a_strided = a.transpose(0, 1)?.contiguous()?.transpose(0, 1)?;
        let b_strided = b.transpose(0, 1)?.contiguous()?.transpose(0, 1)?;
        Ok(Box::new(GemmExperiment { a, b, a_strided, b_strided, fingerprint }))
    }
}

impl Experiment for GemmExperiment {
    fn workload(&self) -> Workload {
        let products = (NUM_PASSES * NUM_PRODUCTS) as u64;
        Workload {
            description: format!("{NUM_PASSES} passes over {NUM_PRODUCTS} products {M}x{K}x{N}, f32"),
            fingerprint: self.fingerprint.clone(),
            bytes: Some(products * ((M * K + K * N + M * N) * size_of::<f32>()) as u64),
            flops: Some(products * (2 * M * K * N) as u64),
            ..Workload::default()
        }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        ["single", "batched", "strided"].map(ArmSpec::named).to_vec()
    }

    fn set_up(&mut self, _arm: usize) -> Result<(), LabError> {
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        let started = Instant::now();
        let mut product = None;
        for _ in 0..NUM_PASSES {
            product = Some(match arm {
                0 => self.one_by_one()?,
                1 => vec![self.a.matmul(&self.b)?],
                _ => vec![self.a_strided.matmul(&self.b_strided)?],
            });
        }
        let duration = started.elapsed();
        let parts = product.unwrap_or_default();
        let values = parts.iter().map(|part| part.flatten_all()?.to_vec1::<f32>()).collect::<Result<Vec<_>, _>>()?;
        Ok(Measured::new(duration, self.fingerprint.clone(), Outputs::Values(values.concat())))
    }
}

impl GemmExperiment {
    /// The loop that a plain program has: a product at a time.
    fn one_by_one(&self) -> Result<Vec<Tensor>, LabError> {
        let product = |i| self.a.get(i)?.matmul(&self.b.get(i)?);
        Ok((0..NUM_PRODUCTS).map(product).collect::<Result<Vec<_>, _>>()?)
    }
}
