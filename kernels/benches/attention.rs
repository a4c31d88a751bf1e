//! Attention on the CPU: microseconds, bytes and their ratio by depth and KV type, next to the scores-materialised
//! baseline. Layers of a whole model are walked, so that keys and values come from where they would in a step; times
//! are of all layers, the least of several rounds and their median.
//!
//! `cargo bench -p aisp-kernels --bench attention -- [threads=2] [layers=30] [heads=9,3,64] [only=decode|prefill|ops] [type=f16] [baseline=no]`

use std::time::Instant;

use aisp_kernels::attention::flash::{FlashCall, FlashParams, FlashScratch, FlashSequence, cost, flash_attention};
use aisp_kernels::attention::{AttentionParams, materialised, padded_len};
use aisp_kernels::kv::{BLOCK_SIZE, KvBuffer, KvShape, KvType};
use aisp_kernels::rms_norm::{Norm, residual_add_cost, residual_add_rms_norm};
use aisp_kernels::rope::{Qkv, RopeStore, RopeStyle, RopeTable, rope_and_store, rope_and_store_cost};
use aisp_kernels::silu_mul::silu_mul_rows;
use aisp_kernels::team::{PinnedPool, Team};
use aisp_kernels::{Cost, Isa};
use candle_core::{Device, Result, Tensor};

struct Bench {
    team: PinnedPool,
    isa: Isa,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

/// Numbers without a pattern, about normal in size.
fn noise(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

fn report(name: &str, cost: Cost, mut round: impl FnMut() -> Result<()>) -> Result<()> {
    round()?;
    let (started, mut times) = (Instant::now(), Vec::new());
    while times.len() < 5 || (started.elapsed().as_millis() < 600 && times.len() < 200) {
        let start = Instant::now();
        round()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    let (least, median) = (times[0], times[times.len() / 2]);
    println!(
        "{name:<34} {:>9.0} us least {:>9.0} us median {:>8.2} MB {:>6.1} GB/s {:>7.1} GFLOP/s",
        least * 1e6,
        median * 1e6,
        cost.bytes as f64 / 1e6,
        cost.bytes as f64 / least / 1e9,
        cost.flops as f64 / least / 1e9,
    );
    Ok(())
}

impl Bench {
    /// A pool in which one sequence has `len` positions in every layer.
    fn filled(&self, len: usize, kv_type: KvType) -> Result<(KvBuffer, Vec<u32>)> {
        let num_blocks = len.div_ceil(BLOCK_SIZE);
        let (num_layers, num_kv_heads, head_dim) = (self.num_layers, self.num_kv_heads, self.head_dim);
        let mut kv = KvBuffer::new(KvShape { num_layers, num_blocks, num_kv_heads, head_dim }, kv_type)?;
        let rows = noise(len * num_kv_heads * head_dim);
        let slots: Vec<u32> = (0..len as u32).collect();
        (0..num_layers).try_for_each(|layer| kv.store(layer, &rows, &rows, &slots, self.isa, &self.team))?;
        Ok((kv, (0..num_blocks as u32).collect()))
    }

    fn attention(&self, name: &str, query_start: usize, num_tokens: usize, kv_type: KvType) -> Result<()> {
        let (kv, table) = self.filled(query_start + num_tokens, kv_type)?;
        let q = noise(num_tokens * self.num_heads * self.head_dim);
        let mut out = vec![0.0; q.len()];
        let sequences = [FlashSequence { rows: 0..num_tokens, query_start, block_table: 0..table.len() }];
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        let params = FlashParams { num_heads: self.num_heads, scale, sliding_window: None };
        let call = |layer| FlashCall { kv: &kv, layer, sequences: &sequences, block_tables: &table, params };
        let one = cost(&call(0), 0);
        let all = Cost { bytes: one.bytes * self.num_layers as u64, flops: one.flops * self.num_layers as u64 };
        let mut scratch = FlashScratch::new();
        report(&format!("{name} {kv_type:?}"), all, || {
            (0..self.num_layers)
                .try_for_each(|layer| flash_attention(&q, &mut out, call(layer), &mut scratch, self.isa, &self.team))
        })
    }

    fn baseline(&self, name: &str, query_start: usize, num_tokens: usize) -> Result<()> {
        let len = padded_len(query_start + num_tokens);
        let tensor = |rows: usize, heads: usize| {
            Tensor::from_vec(noise(rows * heads * self.head_dim), (rows, heads, self.head_dim), &Device::Cpu)
        };
        let layers: Vec<(Tensor, Tensor)> = (0..self.num_layers)
            .map(|_| Ok((tensor(len, self.num_kv_heads)?, tensor(len, self.num_kv_heads)?)))
            .collect::<Result<_>>()?;
        let q = tensor(num_tokens, self.num_heads)?;
        let one = aisp_kernels::attention::cost(
            num_tokens,
            query_start + num_tokens,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
        );
        let all = Cost { bytes: one.bytes * self.num_layers as u64, flops: one.flops * self.num_layers as u64 };
        let params = AttentionParams { query_start, scale: 1.0 / (self.head_dim as f64).sqrt(), sliding_window: None };
        report(&format!("{name} materialised, f32"), all, || {
            layers.iter().try_for_each(|(k, v)| materialised(&q, k, v, params).map(drop))
        })
    }

    fn ops(&self, num_tokens: usize) -> Result<()> {
        let (hidden, inner) = (self.num_heads * self.head_dim, 1536);
        let row = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim;
        let layers = self.num_layers as u64;
        let times = |one: Cost| Cost { bytes: one.bytes * layers, flops: one.flops * layers };
        let (mut x, delta, weight) = (noise(num_tokens * hidden), vec![0.0; num_tokens * hidden], noise(hidden));
        let mut out = vec![0.0; num_tokens * hidden];
        let norm = Norm { weight: &weight, eps: 1e-5 };
        report(&format!("residual+norm {num_tokens}"), times(residual_add_cost(num_tokens, hidden)), || {
            (0..layers).try_for_each(|_| residual_add_rms_norm(&mut x, &delta, norm, &mut out, self.isa, &self.team))
        })?;
        let packed = noise(num_tokens * 2 * inner);
        let mut gated = vec![0.0; num_tokens * inner];
        let gate = aisp_kernels::silu_mul::cost(num_tokens * inner, 4);
        report(&format!("silu*mul {num_tokens}"), times(gate), || {
            (0..layers).try_for_each(|_| silu_mul_rows(&packed, inner, &mut gated, self.isa, &self.team))
        })?;
        let frequencies: Vec<f64> = (0..self.head_dim / 2).map(|i| 0.9f64.powi(i as i32)).collect();
        let table = RopeTable::new(&frequencies, num_tokens, RopeStyle::Interleaved);
        let positions: Vec<u32> = (0..num_tokens as u32).collect();
        let qkv = noise(num_tokens * row);
        for kv_type in KvType::ALL {
            let (mut kv, _) = self.filled(num_tokens, kv_type)?;
            let one = rope_and_store_cost(&kv, num_tokens, self.num_heads);
            report(&format!("rope+store {num_tokens} {kv_type:?}"), times(one), || {
                (0..self.num_layers).try_for_each(|layer| {
                    let rows = Qkv::packed(&qkv, self.num_heads, self.num_kv_heads, self.head_dim);
                    let (table, positions, slots) = (&table, &positions[..], &positions[..]);
                    let to = RopeStore { table, positions, slots, kv: &mut kv, layer, norms: None };
                    rope_and_store(rows, &mut out, to, self.isa, &self.team)
                })
            })?;
        }
        let logits = noise(49_152);
        let mut best = 0;
        report("argmax of 49152", aisp_kernels::argmax::cost(logits.len()), || {
            best += aisp_kernels::argmax::argmax(std::hint::black_box(&logits), self.isa);
            Ok(())
        })
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |name: &str| arguments.iter().find_map(|a| a.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str, default: usize| value(name).and_then(|v| v.parse().ok()).unwrap_or(default);
    let heads: Vec<usize> = value("heads").unwrap_or("9,3,64").split(',').filter_map(|n| n.parse().ok()).collect();
    let [num_heads, num_kv_heads, head_dim] = heads[..] else { candle_core::bail!("heads=H,KVH,D") };
    let team = PinnedPool::new(number("threads", 2)).map_err(candle_core::Error::wrap)?;
    let isa = Isa::from_env().map_err(candle_core::Error::wrap)?;
    let bench = Bench { team, isa, num_layers: number("layers", 30), num_heads, num_kv_heads, head_dim };
    println!("{isa} on {} threads, {} layers of {heads:?}", bench.team.num_threads(), bench.num_layers);
    let types: Vec<KvType> = KvType::ALL
        .into_iter()
        .filter(|t| value("type").is_none_or(|name| format!("{t:?}").eq_ignore_ascii_case(name)))
        .collect();
    let wanted = |name: &str| value("only").is_none_or(|only| only == name);
    if wanted("decode") {
        for depth in [128, 2048, 8192] {
            let name = format!("decode at {depth}");
            types.iter().try_for_each(|&kv_type| bench.attention(&name, depth - 1, 1, kv_type))?;
            if value("baseline") != Some("no") {
                bench.baseline(&name, depth - 1, 1)?;
            }
        }
    }
    if wanted("prefill") {
        for len in [512, 2048] {
            let name = format!("prefill {len}");
            types.iter().try_for_each(|&kv_type| bench.attention(&name, 0, len, kv_type))?;
            if value("baseline") != Some("no") {
                bench.baseline(&name, 0, len)?;
            }
        }
    }
    if wanted("ops") {
        [1, 512].into_iter().try_for_each(|num_tokens| bench.ops(num_tokens))?;
    }
    Ok(())
}
