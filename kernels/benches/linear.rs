//! Packed layers against candle's, on the shapes of SmolLM2-135M: all 30 layers, so that no cache holds the weights.
//!
//! Run: `cargo bench -p aisp-kernels --bench linear -- q4_1 [threads] [rounds] [rows]`; `AISP_ISA` lowers the level.
//! `int8`, `int4`, `fp8` and `fp4` are converted from f32, with which candle's arm computes.
//! Floors predicted: one row reads every weight once, so `bytes / read roof` (Q4_1: 66 MB, 2.1 ms at 31 GB/s). 512 rows
//! take `MACs / integer peak`, where 8 of about 12 instructions a block are products: 54 GMAC at 0.67 * 468 GMAC/s are
//! 174 ms. The read roof is measured in the same round and arms alternate.
//! Printed are the median of the rounds, and the sum over ops of their best times (`quiet`), for machines with company.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use aisp_kernels::linear::{Activations, LinearSource, PackedLinear, WeightType};
use aisp_kernels::team::{PinnedPool, RayonTeam, SingleThread, Team, for_each_item};
use aisp_kernels::{Isa, KernelError};
use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{Device, Module, Tensor};

const NUM_LAYERS: usize = 30;
/// Packed QKV, attention output, packed gate and up, down: `(in, out)`.
const SHAPES: [(usize, usize); 4] = [(576, 960), (576, 576), (576, 3072), (1536, 576)];
const ROOF_BYTES: usize = 96 << 20;
/// Words of the roof's data that are read and timed at once.
const ROOF_PIECE: usize = 1 << 20;

fn main() -> Result<(), KernelError> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    let name = args.first().map_or("q4_1", String::as_str);
    let (dtype, weight_type) = (dtype_of(name), weight_type_of(name));
    let number = |idx: usize, default| args.get(idx).and_then(|arg| arg.parse().ok()).unwrap_or(default);
    let (num_threads, num_rounds) = (number(1, 2), number(2, 15));
    let isa = Isa::from_env()?;
    let pool = PinnedPool::new(num_threads)?;
    let model = Model::new(dtype, weight_type, isa, &pool)?;
    let roof_data = vec![1u64; ROOF_BYTES / 8];
    let weight_bytes: usize = model.packed.iter().map(PackedLinear::weight_bytes).sum();
    let macs = NUM_LAYERS * SHAPES.iter().map(|(i, o)| i * o).sum::<usize>();
    println!(
        "{dtype:?} {weight_type:?} {isa}, {num_threads} threads, {} MB, {num_rounds} rounds",
        weight_bytes / 1_000_000
    );
    let single: &dyn Team = if num_threads == 1 { &SingleThread } else { &RayonTeam };
    let only = number(3, 0);
    for num_rows in [1, 2, 4, 8, 32, 512].into_iter().filter(|&num_rows| only == 0 || only == num_rows) {
        let mut x = Workspaces::new(num_rows)?;
        let mut arms = [const { Arm { totals: Vec::new(), best: Vec::new() } }; 4];
        for round in 0..if num_rows < 100 { num_rounds } else { 5 } {
            arms[0].round(|time| roof_data.chunks(ROOF_PIECE).for_each(|piece| time(&mut || read_all(piece, &pool))));
            arms[1].round(|time| model.forward(&mut x, isa, &pool, time));
            arms[2].round(|time| model.forward(&mut x, isa, single, time));
            if num_rows <= 8 && round < 2 {
                arms[3].round(|time| model.forward_candle(&x, time));
            }
        }
        let [roof, pinned, other, candle] = arms.map(Arm::finish);
        let roof_gbps = roof.map(|seconds| ROOF_BYTES as f64 / seconds / 1e9);
        println!("{num_rows} rows; read roof {:.1} GB/s, quiet {:.1}", roof_gbps[0], roof_gbps[1]);
        let named = [("pinned-pool", pinned), ("rayon or single", other), ("candle", candle)];
        for (name, seconds) in named.into_iter().filter(|(_, seconds)| seconds[0].is_finite()) {
            let [median, quiet] = seconds.map(|seconds| {
                let gbps = weight_bytes as f64 / seconds / 1e9;
                let gmacs = (macs * num_rows) as f64 / seconds / 1e9;
                format!("{:8.3} ms {gbps:6.1} GB/s {gmacs:6.1} GMAC/s", seconds * 1e3)
            });
            let share = 100.0 * roof[1] / seconds[1] * weight_bytes as f64 / ROOF_BYTES as f64;
            println!(
                "  {name:16} {median} | quiet {quiet} {share:5.1} % of roof, {:6.2}x candle",
                candle[1] / seconds[1]
            );
        }
    }
    Ok(())
}

/// Times of one arm: the total of every round, and for each op its best, whose sum is what a quiet machine takes.
struct Arm {
    totals: Vec<f64>,
    best: Vec<f64>,
}

impl Arm {
    fn round(&mut self, ops: impl FnOnce(&mut dyn FnMut(&mut dyn FnMut()))) {
        let mut op_idx = 0;
        let mut total = 0.0;
        ops(&mut |op| {
            let start = Instant::now();
            op();
            let seconds = start.elapsed().as_secs_f64();
            match self.best.get_mut(op_idx) {
                Some(best) => *best = best.min(seconds),
                None => self.best.push(seconds),
            }
            op_idx += 1;
            total += seconds;
        });
        self.totals.push(total);
    }

    /// Median and quiet seconds.
    fn finish(mut self) -> [f64; 2] {
        self.totals.sort_by(f64::total_cmp);
        [self.totals.get(self.totals.len() / 2).copied().unwrap_or(f64::NAN), self.best.iter().sum()]
    }
}

fn dtype_of(name: &str) -> GgmlDType {
    match name {
        "q4_0" => GgmlDType::Q4_0,
        "q5_0" => GgmlDType::Q5_0,
        "q8_0" => GgmlDType::Q8_0,
        "f16" => GgmlDType::F16,
        "bf16" => GgmlDType::BF16,
        "f32" | "int8" | "int4" | "fp8" | "fp4" => GgmlDType::F32,
        _ => GgmlDType::Q4_1,
    }
}

fn weight_type_of(name: &str) -> WeightType {
    match name {
        "int8" => WeightType::Int8,
        "int4" => WeightType::Int4,
        "fp8" => WeightType::Fp8,
        "fp4" => WeightType::Fp4,
        _ => WeightType::Stored,
    }
}

/// The same weights twice: packed, and as candle holds them.
struct Model {
    packed: Vec<PackedLinear>,
    plain: Vec<QMatMul>,
}

impl Model {
    fn new(dtype: GgmlDType, weight_type: WeightType, isa: Isa, team: &dyn Team) -> Result<Self, KernelError> {
        let mut model = Self { packed: Vec::new(), plain: Vec::new() };
        for (in_features, out_features) in SHAPES {
            let weight = Tensor::randn(0f32, 1.0, (out_features, in_features), &Device::Cpu)?;
            let first = QTensor::quantize(&weight, dtype)?;
            let data = first.data()?;
            for _ in 0..NUM_LAYERS {
                let storage = QStorage::from_data(data.clone().into_owned().into(), &Device::Cpu, dtype)?;
                let copy = QTensor::new(storage, (out_features, in_features))?;
                let source = [LinearSource::Quantized(&copy, None)];
                model.packed.push(PackedLinear::pack_as(&source, weight_type, isa, team)?);
                model.plain.push(QMatMul::from_arc(Arc::new(copy))?);
            }
        }
        Ok(model)
    }

    /// Layer by layer, as a decoder runs them.
    fn order() -> impl Iterator<Item = (usize, usize)> {
        (0..NUM_LAYERS).flat_map(|layer| (0..SHAPES.len()).map(move |shape| (shape, shape * NUM_LAYERS + layer)))
    }

    fn forward(&self, x: &mut Workspaces, isa: Isa, team: &dyn Team, time: &mut dyn FnMut(&mut dyn FnMut())) {
        for (shape, idx) in Self::order() {
            let layer = &self.packed[idx];
            time(&mut || {
                x.activations.load(&x.values[shape], SHAPES[shape].0, layer.form(), isa, team);
                layer.forward(&x.activations, &mut x.y[..x.num_rows * SHAPES[shape].1], team);
            });
        }
    }

    fn forward_candle(&self, x: &Workspaces, time: &mut dyn FnMut(&mut dyn FnMut())) {
        for (shape, idx) in Self::order() {
            time(&mut || drop(black_box(self.plain[idx].forward(&x.tensors[shape]).ok())));
        }
    }
}

struct Workspaces {
    num_rows: usize,
    activations: Activations,
    values: Vec<Vec<f32>>,
    tensors: Vec<Tensor>,
    y: Vec<f32>,
}

impl Workspaces {
    fn new(num_rows: usize) -> Result<Self, KernelError> {
        let tensor = |(width, _)| Tensor::randn(0f32, 1.0, (num_rows, width), &Device::Cpu);
        let tensors = SHAPES.into_iter().map(tensor).collect::<Result<Vec<_>, _>>()?;
        let values = tensors.iter().map(|x| x.flatten_all()?.to_vec1()).collect::<Result<Vec<_>, _>>()?;
        let activations = Activations::with_capacity(num_rows, 1536);
        Ok(Self { num_rows, activations, values, tensors, y: vec![0.0; num_rows * 3072] })
    }
}

/// Reads every value once.
fn read_all(data: &[u64], team: &dyn Team) {
    let sum = AtomicU64::new(0);
    let chunks: Vec<&[u64]> = data.chunks(1 << 13).collect();
    for_each_item(team, chunks.len(), |idx| {
        let mut sums = [0u64; 16];
        for values in chunks[idx].as_chunks::<16>().0 {
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.wrapping_add(*value));
        }
        sum.fetch_add(sums.iter().fold(0, |a, b| a.wrapping_add(*b)), Ordering::Relaxed);
    });
    black_box(sum);
}
