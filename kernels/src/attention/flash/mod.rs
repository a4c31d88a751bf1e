//! Causal attention over the paged KV pool, `softmax(q k^T * scale + mask) v`, without the matrix of scores.
//!
//! Formula: online softmax (arXiv 2205.14135) over tiles of 64 positions, cut at absolute positions; partial
//! results of 256 positions are joined in order (split-KV, arXiv 2311.01282), whether one thread made them or many.
//! Loops: sequence and kv head, queries of up to about 48 rows, splits, tiles, panels of 6 rows. The query heads of a
//! kv head are rows of one panel, so each cached key and value is read once for all of them.
//! Bytes and flops: [`cost`]. Accumulation: f32, see `tile.rs`. A query's bits depend on neither batch, chunk nor threads.

#![allow(unsafe_code, reason = "threads write different rows of the result")]

mod expand;
mod panels;
mod plan;
#[cfg(test)]
mod tests;
mod tile;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::Result;

use crate::Cost;
use crate::isa::Isa;
use crate::kv::format::{Bf16, F16, F32, Format, Fp4, Fp8};
use crate::kv::{BLOCK_SIZE, KvBuffer, KvType, Record};
use crate::shared::Shared;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::team::Team;

use expand::Expand;
use panels::Panels;
pub use plan::FlashScratch;
use plan::{Item, Merge, Plan};
use tile::{PANEL, QueryGroup, TILE, TILE_BLOCKS, Visible};

/// Floats of a panel's queries in 16 dimensions.
const QUERY_GROUP: usize = PANEL * LANES;

/// Positions whose partial result one thread makes alone; a multiple of [`TILE`].
const SPLIT: usize = 256;

/// One sequence's queries of a step.
#[derive(Debug, Clone)]
pub struct FlashSequence {
    /// Its rows of `q` and `out`.
    pub rows: Range<usize>,
    /// Absolute position of the first query; keys and values up to the last query's position are stored.
    pub query_start: usize,
    /// Blocks of its context, in order: where they stand in [`FlashCall::block_tables`].
    pub block_table: Range<usize>,
}

/// What attention computes in every sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlashParams {
    /// Query heads, a multiple of the pool's kv heads.
    pub num_heads: usize,
    /// Multiplies the scores, `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A query sees this many latest positions, itself included.
    pub sliding_window: Option<usize>,
}

/// One layer's attention.
#[derive(Debug, Clone, Copy)]
pub struct FlashCall<'a> {
    /// The pool.
    pub kv: &'a KvBuffer,
    /// Layer of the pool.
    pub layer: usize,
    /// Who asks.
    pub sequences: &'a [FlashSequence],
    /// Blocks of all sequences.
    pub block_tables: &'a [u32],
    /// What is computed.
    pub params: FlashParams,
}

/// Attention of all sequences of a step.
///
/// Shapes: `q` and `out [num_tokens, num_heads, head_dim]`; rows that belong to no sequence are left alone.
/// Errors: shapes, rows, blocks or a layer that do not fit.
/// Cost: [`cost`] of each sequence. Allocates only while `scratch` grows.
pub fn flash_attention(
    q: &[f32],
    out: &mut [f32],
    call: FlashCall<'_>,
    scratch: &mut FlashScratch,
    isa: Isa,
    team: &dyn Team,
) -> Result<()> {
    let plan = plan::plan(q, out, &call, scratch, team.num_threads())?;
    let step = Step {
        q,
        out: Shared::new(out),
        partials: Shared::new(&mut scratch.partials[plan.partials_start..]),
        call,
        plan,
        items: &scratch.items,
        merges: &scratch.merges,
        next: AtomicUsize::new(0),
    };
    let threads = &scratch.threads;
    let attend = |thread: usize| {
        let mut buffer = threads[thread].lock().unwrap_or_else(PoisonError::into_inner);
        let start = plan::aligned_start(&buffer);
        dispatch(isa, Attend { step: &step, buffer: &mut buffer[start..] });
    };
    if step.items.len() == 1 {
        attend(0)
    } else {
        team.run(&attend)
    }
    step.next.store(0, Ordering::Relaxed);
    let join = |_: usize| dispatch(isa, Join { step: &step });
    if step.merges.len() < 32 {
        join(0)
    } else {
        team.run(&join)
    }
    Ok(())
}

/// What the threads of one call share.
struct Step<'a> {
    q: &'a [f32],
    out: Shared<'a, f32>,
    partials: Shared<'a, f32>,
    call: FlashCall<'a>,
    plan: Plan,
    items: &'a [Item],
    merges: &'a [Merge],
    next: AtomicUsize,
}

struct Attend<'a, 'b> {
    step: &'a Step<'b>,
    buffer: &'a mut [f32],
}

impl Kernel for Attend<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.step.call.kv.kv_type() {
            KvType::F32 => attend_all::<S, F32>(s, self.step, self.buffer),
            KvType::F16 => attend_all::<S, F16>(s, self.step, self.buffer),
            KvType::Bf16 => attend_all::<S, Bf16>(s, self.step, self.buffer),
            KvType::Fp8 => attend_all::<S, Fp8>(s, self.step, self.buffer),
            KvType::Fp4 => attend_all::<S, Fp4>(s, self.step, self.buffer),
        }
    }
}

#[inline(always)]
fn attend_all<S: Simd, F: Format>(s: S, step: &Step, buffer: &mut [f32]) {
    while let Some(item) = step.items.get(step.next.fetch_add(1, Ordering::Relaxed)) {
        attend_item::<S, F>(s, step, item, buffer);
    }
}

/// Queries of one item: rows of all its tokens and of the query heads of its kv head.
#[inline(always)]
fn attend_item<S: Simd, F: Format>(s: S, step: &Step, item: &Item, buffer: &mut [f32]) {
    let Plan { group, stride, .. } = step.plan;
    let num_rows = item.tokens.len() * group;
    let (part, rest) = buffer.split_at_mut(num_rows * stride);
    let (total, rest) = rest.split_at_mut(num_rows * stride);
    let panels = Panels::new::<S>(item.tokens.len(), group);
    let (expanded, queries) = rest.split_at_mut(step.plan.expanded_len());
    pack_queries(s, step, item, panels, queries);
    let queries = queries.as_chunks::<LANES>().0.as_chunks::<PANEL>().0;
    total.chunks_exact_mut(stride).for_each(tile::reset);
    for split in item.splits.clone() {
        part.chunks_exact_mut(stride).for_each(tile::reset);
        let work = SplitWork { split, panels, queries, expanded };
        attend_split::<S, F>(s, step, item, work, part);
        for (total, part) in total.chunks_exact_mut(stride).zip(part.chunks_exact(stride)) {
            tile::merge(s, total, part);
        }
    }
    match item.partial {
        Some(at) => {
            // SAFETY: each item has its own part.
            let to = unsafe { step.partials.part(at, total.len()) };
            to.copy_from_slice(total);
        }
        None => finish_rows(s, step, item.sequence, item.kv_head, item.tokens.clone(), total),
    }
}

/// Queries times the scale, `[panel][D / 16][PANEL][16]`: what one pass over 16 dimensions reads lies together.
#[inline(always)]
fn pack_queries<S: Simd>(s: S, step: &Step, item: &Item, panels: Panels, to: &mut [f32]) {
    let Plan { group, head_dim, padded_dim, .. } = step.plan;
    let params = step.call.params;
    let first = step.call.sequences[item.sequence].rows.start;
    let scale = s.splat(params.scale);
    for (panel, to) in to.chunks_exact_mut(padded_dim * PANEL).enumerate().take(panels.len()) {
        for (slot, row) in panels.rows(panel).enumerate() {
            let (token, head) = (item.tokens.start + row / group, item.kv_head * group + row % group);
            let row = &step.q[((first + token) * params.num_heads + head) * head_dim..][..head_dim];
            for (at, to) in to.as_chunks_mut::<QUERY_GROUP>().0.iter_mut().enumerate() {
                let to = &mut to.as_chunks_mut::<LANES>().0[slot];
                let rest = row.get(LANES * at..).unwrap_or_default();
                let x = match rest.first_chunk::<LANES>() {
                    Some(x) => s.load(x),
                    None => {
                        *to = [0.0; LANES];
                        to[..rest.len()].copy_from_slice(rest);
                        s.load(to)
                    }
                };
                s.store(to, s.mul(x, scale));
            }
        }
    }
}

/// Positions that a token of a sequence sees.
#[inline(always)]
fn seen_by(call: &FlashCall, sequence: usize, token: usize) -> Range<usize> {
    let end = call.sequences[sequence].query_start + token + 1;
    call.params.sliding_window.map_or(0, |window| end.saturating_sub(window))..end
}

/// One split of an item's context.
struct SplitWork<'a> {
    split: usize,
    panels: Panels,
    queries: &'a [QueryGroup],
    /// Room for a widened tile.
    expanded: &'a mut [f32],
}

#[inline(always)]
fn attend_split<S: Simd, F: Format>(s: S, step: &Step, item: &Item, work: SplitWork, part: &mut [f32]) {
    let SplitWork { split, panels, queries, expanded } = work;
    let call = &step.call;
    let first = seen_by(call, item.sequence, item.tokens.start).start.max(split * SPLIT);
    let last = seen_by(call, item.sequence, item.tokens.end - 1).end.min(item.splits.end * SPLIT);
    let end = last.min((split + 1) * SPLIT);
    for start in (first / TILE * TILE..end).step_by(TILE) {
        let records = tile_records(step, item, start, first, end);
        if F::EXPAND && panels.len() > 2 {
            s.vectorize(Expand::<F> { records: &records, to: &mut *expanded, format: PhantomData });
            let tile = Tile { start, records: &expand::expanded(expanded), next: None };
            attend_tile::<S, F32>(s, step, item, panels, queries, tile, part);
            continue;
        }
        let next =
            (panels.len() == 1 && start + TILE < end).then(|| tile_records(step, item, start + TILE, first, end));
        let tile = Tile { start, records: &records, next: next.as_ref() };
        attend_tile::<S, F>(s, step, item, panels, queries, tile, part);
    }
}

/// A tile from position `start` on.
struct Tile<'a, 'b> {
    start: usize,
    records: &'a [Record<'b>; TILE_BLOCKS],
    next: Option<&'a [Record<'b>; TILE_BLOCKS]>,
}

/// All panels of an item against one tile.
#[inline(always)]
fn attend_tile<S: Simd, F: Format>(
    s: S,
    step: &Step,
    item: &Item,
    panels: Panels,
    queries: &[QueryGroup],
    tile: Tile,
    part: &mut [f32],
) {
    let Plan { group, stride, padded_dim, .. } = step.plan;
    let Tile { start, records, next } = tile;
    for panel in 0..panels.len() {
        let rows = panels.rows(panel);
        let token = rows.start / group;
        let mut ranges: [Range<usize>; PANEL] = Default::default();
        let num_tokens = rows.len().div_ceil(panels.rows_per_token);
        let mut any = false;
        for (i, range) in ranges[..num_tokens].iter_mut().enumerate() {
            let seen = seen_by(&step.call, item.sequence, item.tokens.start + token + i);
            let (from, to) = (seen.start.max(start), seen.end.min(start + TILE));
            if from < to {
                *range = from - start..to - start;
                any = true;
            }
        }
        if any {
            let groups = padded_dim / LANES;
            let q = &queries[panel * groups..(panel + 1) * groups];
            let ranges = &ranges[..num_tokens];
            let seen = Visible { records, next, rows_per_token: panels.rows_per_token, ranges };
            tile::advance::<S, F>(s, q, &mut part[rows.start * stride..rows.end * stride], stride, &seen);
        }
    }
}

/// The records of a tile; blocks that hold nothing of `first..end` repeat one that does.
#[inline(always)]
fn tile_records<'a>(step: &Step<'a>, item: &Item, start: usize, first: usize, end: usize) -> [Record<'a>; TILE_BLOCKS] {
    let table = &step.call.block_tables[step.call.sequences[item.sequence].block_table.clone()];
    let (low, high) = (first.max(start) / BLOCK_SIZE, (end.min(start + TILE) - 1) / BLOCK_SIZE);
    let record = |b: usize| {
        let block = table[(start / BLOCK_SIZE + b).clamp(low, high)];
        step.call.kv.record(step.call.layer, block as usize, item.kv_head)
    };
    [record(0), record(1), record(2), record(3)]
}

/// Writes the heads of a kv head for the rows of some tokens.
#[inline(always)]
fn finish_rows<S: Simd>(s: S, step: &Step, sequence: usize, kv_head: usize, tokens: Range<usize>, total: &mut [f32]) {
    let Plan { group, head_dim, stride, .. } = step.plan;
    let first = step.call.sequences[sequence].rows.start;
    for (row, state) in total.chunks_exact_mut(stride).enumerate() {
        let (token, head) = (tokens.start + row / group, kv_head * group + row % group);
        let at = ((first + token) * step.call.params.num_heads + head) * head_dim;
        // SAFETY: rows of sequences are disjoint (checked in the plan), and each head of a token has one item.
        let out = unsafe { step.out.part(at, head_dim) };
        tile::finish(s, state, out);
    }
}

/// Joins the splits that several items made of the same queries.
struct Join<'a, 'b> {
    step: &'a Step<'b>,
}

impl Kernel for Join<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (step, stride) = (self.step, self.step.plan.stride);
        while let Some(merge) = step.merges.get(step.next.fetch_add(1, Ordering::Relaxed)) {
            let len = merge.tokens.len() * step.plan.group * stride;
            // SAFETY: the items that wrote these parts are done, and each part belongs to one merge.
            let parts = unsafe { step.partials.part(merge.partial, len * merge.num_splits) };
            let (total, parts) = parts.split_at_mut(len);
            for part in parts.chunks_exact(len) {
                for (total, part) in total.chunks_exact_mut(stride).zip(part.chunks_exact(stride)) {
                    tile::merge(s, total, part);
                }
            }
            finish_rows(s, step, merge.sequence, merge.kv_head, merge.tokens.clone(), total);
        }
    }
}

/// One read of queries and of the cached keys and values, one write of the result, for one sequence.
///
/// A sliding window shortens the context that is read.
pub fn cost(call: &FlashCall<'_>, sequence: usize) -> Cost {
    let FlashSequence { rows, query_start, .. } = &call.sequences[sequence];
    let shape = call.kv.shape();
    let seen: usize = (0..rows.len()).map(|token| seen_by(call, sequence, token).len()).sum();
    let context = query_start + rows.len() - seen_by(call, sequence, 0).start;
    let row = call.params.num_heads * shape.head_dim;
    Cost {
        bytes: (8 * rows.len() * row + context * call.kv.bytes_per_token() / shape.num_layers) as u64,
        flops: 4 * (seen * row) as u64,
    }
}
