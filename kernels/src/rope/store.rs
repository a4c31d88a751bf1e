//! Between the projection and attention in one pass: norm of the heads where the model has one, rotation of queries
//! and keys, and storing of keys and values in the KV pool.
//!
//! Layout: queries, keys and values as rows of one packed product or of three. Bytes: q, k, v read once, q written in
//! f32, k and v as the pool stores them; flops: 3 a value of q and k. Loop: token, head. Tokens of one block go to one
//! thread. Arithmetic is that of [`super::rope_rows`] and [`crate::rms_norm::rms_norm_in_place`].
#![allow(unsafe_code, reason = "threads write different tokens and blocks")]

use candle_core::{Result, bail};

use super::RopeTable;
use crate::Cost;
use crate::isa::Isa;
use crate::kv::KvBuffer;
use crate::kv::store::{LayerWriter, owner};
use crate::rms_norm::{Norm, norm_head};
use crate::shared::Shared;
use crate::simd::{Kernel, Simd, dispatch};
use crate::team::Team;

/// Longest head.
const MAX_HEAD_DIM: usize = 512;

/// Projected rows: token `t` has its queries at `q[t * q_stride..]`, keys and values at `t * kv_stride`.
#[derive(Debug, Clone, Copy)]
pub struct Qkv<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    q_stride: usize,
    kv_stride: usize,
    num_heads: usize,
}

impl<'a> Qkv<'a> {
    /// Rows of one product: `[num_tokens, (num_heads + 2 num_kv_heads) head_dim]`.
    pub fn packed(qkv: &'a [f32], num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Self {
        let stride = (num_heads + 2 * num_kv_heads) * head_dim;
        let from = |start: usize| qkv.get(start..).unwrap_or_default();
        let (k, v) = (from(num_heads * head_dim), from((num_heads + num_kv_heads) * head_dim));
        Self { q: qkv, k, v, q_stride: stride, kv_stride: stride, num_heads }
    }

    /// Three products: `q [num_tokens, num_heads, head_dim]`, `k` and `v [num_tokens, num_kv_heads, head_dim]`.
    pub fn separate(q: &'a [f32], k: &'a [f32], v: &'a [f32], heads: (usize, usize), head_dim: usize) -> Self {
        Self { q, k, v, q_stride: heads.0 * head_dim, kv_stride: heads.1 * head_dim, num_heads: heads.0 }
    }
}

/// Where rows of a step stand and go to.
#[derive(Debug)]
pub struct RopeStore<'a> {
    /// Cosines and sines.
    pub table: &'a RopeTable,
    /// Absolute position of each token.
    pub positions: &'a [u32],
    /// Slot of each token in the pool; `u32::MAX` stores nothing.
    pub slots: &'a [u32],
    /// The pool.
    pub kv: &'a mut KvBuffer,
    /// Layer of the pool.
    pub layer: usize,
    /// Norms of query heads and of key heads, before the rotation.
    pub norms: Option<(Norm<'a>, Norm<'a>)>,
}

/// Turns queries into `q_out` and keys into the pool, and stores values.
///
/// Shapes: `q_out [num_tokens, num_heads, head_dim]`.
/// Errors: lengths that do not fit, positions outside the table, slots outside the pool.
pub fn rope_and_store(qkv: Qkv<'_>, q_out: &mut [f32], to: RopeStore<'_>, isa: Isa, team: &dyn Team) -> Result<()> {
    let RopeStore { table, positions, slots, kv, layer, norms } = to;
    let shape = kv.shape();
    let (dim, num_tokens) = (shape.head_dim, positions.len());
    let covers =
        |x: &[f32], stride: usize, heads: usize| num_tokens == 0 || x.len() >= (num_tokens - 1) * stride + heads * dim;
    let fits = covers(qkv.q, qkv.q_stride, qkv.num_heads)
        && covers(qkv.k, qkv.kv_stride, shape.num_kv_heads)
        && covers(qkv.v, qkv.kv_stride, shape.num_kv_heads)
        && q_out.len() == num_tokens * qkv.num_heads * dim
        && slots.len() == num_tokens;
    if !fits || dim != table.head_dim() || dim > MAX_HEAD_DIM {
        bail!("{num_tokens} tokens of {} heads of {dim} do not fit the rows, slots or the table", qkv.num_heads);
    }
    if norms.is_some_and(|(q, k)| q.weight.len() != dim || k.weight.len() != dim) {
        bail!("norms of heads need {dim} weights");
    }
    table.check(positions)?;
    let writer = kv.layer_writer(layer, slots)?;
    let q_out = Shared::new(q_out);
    let threads = if num_tokens < 8 { 1 } else { team.num_threads() };
    let step = Step { qkv, q_out, table, positions, slots, writer, norms };
    if threads == 1 {
        dispatch(isa, TurnAndStore { step: &step, part: (0, 1) });
    } else {
        team.run(&|thread| dispatch(isa, TurnAndStore { step: &step, part: (thread, threads) }));
    }
    Ok(())
}

/// Reads of q, k and v, writes of q and of what the pool keeps.
pub fn rope_and_store_cost(kv: &KvBuffer, num_tokens: usize, num_heads: usize) -> Cost {
    let shape = kv.shape();
    let (q, k) = (num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim);
    let stored = kv.bytes_per_token() / shape.num_layers;
    Cost {
        bytes: (num_tokens * (4 * (2 * q + 2 * k + shape.head_dim) + stored)) as u64,
        flops: (3 * num_tokens * (q + k)) as u64,
    }
}

struct Step<'a> {
    qkv: Qkv<'a>,
    q_out: Shared<'a, f32>,
    table: &'a RopeTable,
    positions: &'a [u32],
    slots: &'a [u32],
    writer: LayerWriter<'a>,
    norms: Option<(Norm<'a>, Norm<'a>)>,
}

/// Tokens of thread `part.0` of `part.1`.
struct TurnAndStore<'a, 'b> {
    step: &'a Step<'b>,
    part: (usize, usize),
}

impl Kernel for TurnAndStore<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Step { qkv, q_out, table, positions, slots, writer, norms } = self.step;
        let dim = table.head_dim();
        let (q_row, kv_row) = (qkv.num_heads * dim, writer.num_kv_heads() * dim);
        let mut key = [0.0; MAX_HEAD_DIM];
        let key = &mut key[..dim];
        for (token, (&position, &slot)) in positions.iter().zip(slots.iter()).enumerate() {
            if owner(slot, self.part.1) != self.part.0 {
                continue;
            }
            // SAFETY: a token has one owner.
            let out = unsafe { q_out.part(token * q_row, q_row) };
            out.copy_from_slice(&qkv.q[token * qkv.q_stride..][..q_row]);
            for head in out.chunks_exact_mut(dim) {
                if let Some((norm, _)) = norms {
                    norm_head(s, head, *norm);
                }
                table.turn(position, head);
            }
            if slot == u32::MAX {
                continue;
            }
            let (k, v) = (&qkv.k[token * qkv.kv_stride..][..kv_row], &qkv.v[token * qkv.kv_stride..][..kv_row]);
            for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
                key.copy_from_slice(k);
                if let Some((_, norm)) = norms {
                    norm_head(s, key, *norm);
                }
                table.turn(position, key);
                // SAFETY: all tokens of a block have one owner.
                unsafe { writer.write(slot, head, key, v) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{KvShape, KvType};
    use crate::rms_norm::rms_norm_in_place;
    use crate::rope::{RopeStyle, rope_rows};
    use crate::team::SingleThread;
    use crate::testing::{Threads, activations};

    #[test]
    fn equals_its_parts_bitwise() -> Result<()> {
        let frequencies: Vec<f64> = (0..32).map(|i| 1e5f64.powf(-f64::from(i) / 32.0)).collect();
        let shape = KvShape { num_layers: 2, num_blocks: 8, num_kv_heads: 3, head_dim: 64 };
        let (rows, q_row, kv_row) = (40, 9 * 64, 3 * 64);
        let stride = q_row + 2 * kv_row;
        let (qkv, weight) = (activations(rows * stride, 1), activations(64, 2));
        let norm = Norm { weight: &weight, eps: 1e-6 };
        let positions: Vec<u32> = (100..140).collect();
        let mut slots: Vec<u32> = (0..40).map(|i| (i * 7 + 3) % 128).collect();
        slots[5] = u32::MAX;
        let pick = |from: usize, len: usize| -> Vec<f32> {
            qkv.chunks(stride).flat_map(|row| &row[from..from + len]).copied().collect()
        };
        for style in [RopeStyle::Neox, RopeStyle::Interleaved] {
            let table = RopeTable::new(&frequencies, 200, style);
            for kv_type in KvType::ALL {
                for isa in Isa::available() {
                    for norms in [None, Some((norm, norm))] {
                        let (mut q, mut k, v) = (pick(0, q_row), pick(q_row, kv_row), pick(q_row + kv_row, kv_row));
                        let (q_raw, k_raw) = (q.clone(), k.clone());
                        if norms.is_some() {
                            rms_norm_in_place(&mut q, norm, isa, &SingleThread)?;
                            rms_norm_in_place(&mut k, norm, isa, &SingleThread)?;
                        }
                        rope_rows(&mut q, 9, &positions, &table, isa, &SingleThread)?;
                        rope_rows(&mut k, 3, &positions, &table, isa, &SingleThread)?;
                        let mut expected = KvBuffer::new(shape, kv_type)?;
                        expected.store(1, &k, &v, &slots, isa, &SingleThread)?;
                        let sources = [Qkv::packed(&qkv, 9, 3, 64), Qkv::separate(&q_raw, &k_raw, &v, (9, 3), 64)];
                        for (source, threads) in sources.into_iter().zip([2, 1]) {
                            let mut kv = KvBuffer::new(shape, kv_type)?;
                            let mut out = vec![0.0; q.len()];
                            let to = RopeStore {
                                table: &table,
                                positions: &positions,
                                slots: &slots,
                                kv: &mut kv,
                                layer: 1,
                                norms,
                            };
                            rope_and_store(source, &mut out, to, isa, &Threads(threads))?;
                            assert!(out == q, "{style:?} {kv_type:?} {isa:?}: queries differ");
                            assert!(kv.same_contents(&expected), "{style:?} {kv_type:?} {isa:?}: the pool differs");
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
