//! Peak arithmetic: chains of multiply-adds and dot products that never leave the registers, and the matrix products of
//! candle.

use std::hint::black_box;
use std::time::Duration;

use aisp_kernels::{Arithmetic, Isa, peak};
use candle_core::{DType, Device, Tensor};
use pulp::{Arch, Simd, WithSimd};
use serde::{Deserialize, Serialize};

use super::timing::{Reading, rate};

/// Kind of the rows of f32 multiply-adds: a ceiling.
pub const FMA: &str = "fma";
/// Kind of the rows of dot products that are summed in a wider type: ceilings.
pub const DOT: &str = "dot";
/// Kind of the rows that show what a library reaches.
const MATMUL: &str = "matmul";
/// Calls of `progress` that [`measure`] makes.
pub const NUM_STEPS: usize = 2 * Arithmetic::ALL.len() + MATMUL_DTYPES.len();
const MATMUL_DTYPES: [(DType, &str); 3] = [(DType::F32, "f32"), (DType::F16, "f16"), (DType::BF16, "bf16")];
/// Rows, columns and depth of the matrix product.
const MATMUL_SIZE: usize = 768;
/// A product slower than this is not repeated.
const SLOW: Duration = Duration::from_millis(800);
/// Multiply-adds in flight: more than latency times issue width of any current core, few enough for 16 registers.
const CHAINS: usize = 12;
const STEPS_PER_PASS: u32 = 10_000;

/// Arithmetic of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComputeRow {
    /// `fma`, `dot`: a ceiling. `matmul`: what candle reaches under it.
    pub kind: String,
    /// Number format.
    pub dtype: String,
    /// Threads at work.
    pub threads: usize,
    /// 10^9 operations a second over all threads; a multiply-add is two.
    pub gflops_per_s: Reading,
}

/// Measures all rows; the second list holds what this machine or candle cannot do, with the reason.
pub fn measure(cores: usize, mut progress: impl FnMut(&str, usize)) -> (Vec<ComputeRow>, Vec<String>) {
    let mut rows = Vec::new();
    let mut unavailable = Vec::new();
    let mut thread_counts = vec![1, cores.max(1)];
    thread_counts.dedup();
    for (at, arithmetic) in Arithmetic::ALL.into_iter().enumerate() {
        for (nth, threads) in thread_counts.iter().copied().enumerate() {
            progress(&format!("{} multiply-adds, {threads} thread(s)", arithmetic.name()), 2 * at + nth);
            match peak_row(arithmetic, threads) {
                Some(row) => rows.push(row),
                None if nth > 0 => {}
                None => unavailable.push(format!("{} peak: no kernel has such instructions here", arithmetic.name())),
            }
        }
    }
    for (at, (dtype, name)) in MATMUL_DTYPES.into_iter().enumerate() {
        progress(&format!("{name} matrix product"), 2 * Arithmetic::ALL.len() + at);
        match matmul(dtype) {
            Ok(gflops_per_s) => {
                rows.push(ComputeRow { kind: MATMUL.into(), dtype: name.into(), threads: cores, gflops_per_s });
            }
            Err(error) => {
                let reason = error.to_string();
                unavailable.push(format!("{name} matmul: {}", reason.lines().next().unwrap_or("refused")));
            }
        }
    }
    (rows, unavailable)
}

/// Widest vectors that the loops of the probe run with.
pub fn vector_instructions() -> String {
    match Arch::new() {
        #[cfg(target_arch = "x86_64")]
        Arch::V4(_) => "AVX-512".to_owned(),
        #[cfg(target_arch = "x86_64")]
        Arch::V3(_) => "AVX2 + FMA".to_owned(),
        #[cfg(target_arch = "aarch64")]
        Arch::Neon(_) => "NEON".to_owned(),
        _ => "baseline".to_owned(),
    }
}

/// The ceiling of a kind of arithmetic; none where kernels have no instructions for it.
fn peak_row(arithmetic: Arithmetic, threads: usize) -> Option<ComputeRow> {
    match arithmetic {
        Arithmetic::F32 => Some(fma(threads)),
        Arithmetic::Bf16 => dots("bf16", threads, peak::bf16_dots),
        Arithmetic::Int8 => dots("int8", threads, peak::int8_dots),
        // GPUs alone multiply it.
        Arithmetic::Fp8 => None,
    }
}

fn dots(dtype: &str, threads: usize, run: fn(Isa, u32) -> Option<u64>) -> Option<ComputeRow> {
    let isa = Isa::detect();
    let flops_per_pass = run(isa, STEPS_PER_PASS)? as f64;
    let pass = |(): &mut ()| {
        black_box(run(isa, black_box(STEPS_PER_PASS)));
    };
    let gflops_per_s = rate(threads, flops_per_pass / 1e9, || (), pass);
    Some(ComputeRow { kind: DOT.into(), dtype: dtype.into(), threads, gflops_per_s })
}

fn fma(threads: usize) -> ComputeRow {
    let arch = Arch::new();
    let flops_per_pass = arch.dispatch(FmaChains { steps: 1 }).0 * f64::from(STEPS_PER_PASS);
    let pass = |(): &mut ()| {
        black_box(arch.dispatch(FmaChains { steps: black_box(STEPS_PER_PASS) }));
    };
    let gflops_per_s = rate(threads, flops_per_pass / 1e9, || (), pass);
    ComputeRow { kind: FMA.into(), dtype: "f32".into(), threads, gflops_per_s }
}

/// Independent chains of `x = x * a + b`; gives the operations done and a sum that keeps them alive.
struct FmaChains {
    steps: u32,
}

impl WithSimd for FmaChains {
    type Output = (f64, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let (a, b) = (simd.splat_f32s(black_box(0.999)), simd.splat_f32s(black_box(0.001)));
        let mut chains = [simd.splat_f32s(black_box(1.0)); CHAINS];
        for _ in 0..self.steps {
            for chain in &mut chains {
                *chain = simd.mul_add_e_f32s(*chain, a, b);
            }
        }
        let sum = chains.into_iter().map(|chain| simd.reduce_sum_f32s(chain)).sum();
        (2.0 * (S::F32_LANES * CHAINS) as f64 * f64::from(self.steps), sum)
    }
}

/// Matrix product on all cores, as candle does it.
fn matmul(dtype: DType) -> candle_core::Result<Reading> {
    let matrix = |seed: f64| {
        let values = Tensor::arange(0f32, (MATMUL_SIZE * MATMUL_SIZE) as f32, &Device::Cpu)?;
        (values * seed)?.sin()?.reshape((MATMUL_SIZE, MATMUL_SIZE))?.to_dtype(dtype)
    };
    let (a, b) = (matrix(0.7)?, matrix(1.3)?);
    let start = std::time::Instant::now();
    black_box(a.matmul(&b)?);
    let gflops = 2.0 * (MATMUL_SIZE as f64).powi(3) / 1e9;
    let first = start.elapsed();
    if first > SLOW {
        return Ok(Reading::of(gflops, &[first.as_secs_f64()]));
    }
    Ok(rate(
        1,
        gflops,
        || (),
        |()| {
            black_box(a.matmul(&b).ok());
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_count_what_they_do() {
        let (flops, sum) = Arch::new().dispatch(FmaChains { steps: 1 });
        let lanes = flops / 2.0 / CHAINS as f64;
        assert!([1.0, 4.0, 8.0, 16.0].contains(&lanes), "{lanes} lanes");
        // Every lane of every chain went from 1 to 1 * 0.999 + 0.001.
        assert!((f64::from(sum) - lanes * CHAINS as f64).abs() < 1e-3, "{sum}");
    }
}
