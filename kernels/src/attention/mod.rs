//! Causal attention of one sequence: `softmax(q k^T * scale + mask) v`, scores materialised.
//!
//! Queries may be the last part of the context only (decode, or a later chunk of a prompt); keys and values come from
//! the cache, padded to a multiple of [`KV_TILE`] rows. Grouped queries share their key head without a copy of it.
//! Accumulation is f32 in a fixed order: the padding makes sums over the context end on whole vectors, and values are
//! summed in tiles at absolute positions, so a query's result does not depend on how many follow it.

pub mod flash;

use candle_core::{D, Device, Result, Tensor};

use crate::{Cost, matmul};

/// Cached rows handed to [`materialised`] come in multiples of this; a multiple of the cache's block size.
pub const KV_TILE: usize = 32;

/// Values are summed in tiles of this many positions: the depth at which the matrix multiplication below splits a sum.
const SUM_TILE: usize = 512;

/// Query rows whose scores exist at the same time.
const QUERY_TILE: usize = 256;

/// Rounds a context length up to whole tiles.
pub fn padded_len(context_len: usize) -> usize {
    context_len.next_multiple_of(KV_TILE)
}

/// Where the queries stand and what they see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionParams {
    /// Absolute position of the first query.
    pub query_start: usize,
    /// Multiplies the scores, `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// A query sees this many latest positions, itself included.
    pub sliding_window: Option<usize>,
}

/// Attention with all scores of a tile of queries in memory.
///
/// Shapes: `q [num_tokens, num_heads, head_dim]`, `k` and `v [padded_len, num_kv_heads, head_dim]` with
/// `padded_len = padded_len(query_start + num_tokens)` and finite values in the padding, result as `q`.
/// Errors: shapes that do not fit.
pub fn materialised(q: &Tensor, k: &Tensor, v: &Tensor, params: AttentionParams) -> Result<Tensor> {
    let num_tokens = q.dim(0)?;
    let mut tiles = Vec::with_capacity(num_tokens.div_ceil(QUERY_TILE));
    for start in (0..num_tokens).step_by(QUERY_TILE) {
        let len = QUERY_TILE.min(num_tokens - start);
        let query_start = params.query_start + start;
        let visible = padded_len(query_start + len);
        let (k, v) = (k.narrow(0, 0, visible)?, v.narrow(0, 0, visible)?);
        tiles.push(query_tile(&q.narrow(0, start, len)?, &k, &v, AttentionParams { query_start, ..params })?);
    }
    Tensor::cat(&tiles, 0)
}

fn query_tile(q: &Tensor, k: &Tensor, v: &Tensor, params: AttentionParams) -> Result<Tensor> {
    let (num_tokens, num_heads, head_dim) = q.dims3()?;
    let (context, num_kv_heads, _) = k.dims3()?;
    let group = num_heads / num_kv_heads;
    let rows = num_tokens * group;
    // [T, H, D] -> [KVH, T * G, D]: all queries of a key head are rows of one product.
    let q = q.reshape((num_tokens, num_kv_heads, group, head_dim))?.transpose(0, 1)?;
    let q = q.reshape((num_kv_heads, rows, head_dim))?.contiguous()?;
    let scores = (matmul::batch_invariant(&q, &k.transpose(0, 1)?.transpose(1, 2)?)? * params.scale)?; // [KVH, T * G, C]
    let mask = causal_mask(num_tokens, group, context, params, q.device())?.to_dtype(scores.dtype())?;
    let weights = candle_nn::ops::softmax_last_dim(&scores.broadcast_add(&mask)?)?;
    let v = v.transpose(0, 1)?; // [KVH, C, D]
    let mut out: Option<Tensor> = None;
    for start in (0..context).step_by(SUM_TILE) {
        let len = SUM_TILE.min(context - start);
        let weights = weights.narrow(D::Minus1, start, len)?.contiguous()?;
        let part = matmul::batch_invariant(&weights, &v.narrow(1, start, len)?)?;
        out = Some(match out {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    let Some(out) = out else { candle_core::bail!("attention over an empty context") };
    let out = out.reshape((num_kv_heads, num_tokens, group, head_dim))?;
    out.transpose(0, 1)?.reshape((num_tokens, num_heads, head_dim))
}

/// 0 where a query sees a position, minus infinity elsewhere, `[1, num_tokens * group, context]`.
fn causal_mask(
    num_tokens: usize,
    group: usize,
    context: usize,
    params: AttentionParams,
    device: &Device,
) -> Result<Tensor> {
    let mut mask = Vec::with_capacity(num_tokens * group * context);
    for token in 0..num_tokens {
        let last = params.query_start + token;
        let first = params.sliding_window.map_or(0, |window| (last + 1).saturating_sub(window));
        for _ in 0..group {
            mask.extend((0..context).map(|at| if at < first || at > last { f32::NEG_INFINITY } else { 0.0 }));
        }
    }
    Tensor::from_vec(mask, (1, num_tokens * group, context), device)
}

/// The same in f64 for one query head: `q [n, d]`, `k` and `v [c, d]`, row-major.
pub fn reference(q: &[f64], k: &[f64], v: &[f64], head_dim: usize, params: AttentionParams) -> Vec<f64> {
    let mut out = Vec::with_capacity(q.len());
    for (i, query) in q.chunks(head_dim).enumerate() {
        let last = params.query_start + i;
        let first = params.sliding_window.map_or(0, |window| (last + 1).saturating_sub(window));
        let row = |m: &[f64], at: usize| m[at * head_dim..(at + 1) * head_dim].to_vec();
        let scores: Vec<f64> = (first..=last)
            .map(|at| query.iter().zip(row(k, at)).map(|(a, b)| a * b).sum::<f64>() * params.scale)
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        for d in 0..head_dim {
            out.push((first..=last).zip(&weights).map(|(at, w)| w * row(v, at)[d]).sum::<f64>() / total);
        }
    }
    out
}

/// One read of queries, keys and values and one write of the result, in values of `value_bytes`.
pub fn cost(num_tokens: usize, context_len: usize, num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Cost {
    let seen = num_tokens * context_len - num_tokens * (num_tokens - 1) / 2;
    Cost {
        bytes: 4 * (2 * num_tokens * num_heads * head_dim + 2 * context_len * num_kv_heads * head_dim) as u64,
        flops: 4 * (seen * num_heads * head_dim) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, nmse, tensor, values};

    struct Case {
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: Option<usize>,
    }

    impl Case {
        fn new(len: usize, heads: usize, kv_heads: usize, window: Option<usize>) -> Result<Self> {
            let kv_shape = [padded_len(len), kv_heads, 64];
            Ok(Self { q: tensor(&[len, heads, 64], 1)?, k: tensor(&kv_shape, 2)?, v: tensor(&kv_shape, 3)?, window })
        }

        fn run(&self, start: usize, len: usize) -> Result<Tensor> {
            let params = AttentionParams { query_start: start, scale: 0.125, sliding_window: self.window };
            let visible = padded_len(start + len);
            let (k, v) = (self.k.narrow(0, 0, visible)?, self.v.narrow(0, 0, visible)?);
            materialised(&self.q.narrow(0, start, len)?, &k, &v, params)
        }
    }

    fn head(tensor: &Tensor, index: usize) -> Result<Vec<f64>> {
        Ok(values(&tensor.narrow(1, index, 1)?.contiguous()?))
    }

    #[test]
    fn agrees_with_the_reference() -> Result<()> {
        for (len, heads, kv_heads, window) in
            [(1, 3, 1, None), (33, 9, 3, None), (70, 2, 2, Some(16)), (600, 3, 1, None), (40, 1, 1, Some(100))]
        {
            let case = Case::new(len, heads, kv_heads, window)?;
            let out = case.run(0, len)?;
            for h in 0..heads {
                let params = AttentionParams { query_start: 0, scale: 0.125, sliding_window: window };
                let kv_head = h / (heads / kv_heads);
                let (k, v) = (head(&case.k, kv_head)?, head(&case.v, kv_head)?);
                let expected = reference(&head(&case.q, h)?, &k, &v, 64, params);
                let distance = nmse(&head(&out, h)?, &expected);
                assert!(distance < 1e-10, "{len} tokens, head {h}: nmse {distance:e}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_mask_off_by_one_is_seen() -> Result<()> {
        let case = Case::new(33, 1, 1, None)?;
        let params = AttentionParams { query_start: 1, scale: 0.125, sliding_window: None };
        let shifted = materialised(&case.q.narrow(0, 0, 32)?, &case.k, &case.v, params)?;
        assert!(nmse(&values(&shifted), &values(&case.run(0, 32)?)) > 1e-3);
        Ok(())
    }

    #[test]
    fn a_query_does_not_depend_on_how_the_prompt_was_cut() -> Result<()> {
        for (heads, kv_heads, window) in [(9, 3, None), (2, 2, None), (3, 1, Some(200))] {
            let case = Case::new(1100, heads, kv_heads, window)?;
            let whole = case.run(0, 1100)?;
            for (start, len) in
                [(0, 1), (0, 17), (31, 1), (32, 1), (500, 30), (511, 2), (600, 300), (1024, 1), (1099, 1)]
            {
                let part = case.run(start, len)?;
                assert!(bits(&part) == bits(&whole.narrow(0, start, len)?), "{heads}/{kv_heads}: {start}+{len} differ");
            }
        }
        Ok(())
    }
}
