//! Which thread may compute what: the work of a call cut into items, and the memory they need.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use candle_core::{Result, bail};

use super::tile::{PANEL, STATE_HEAD, TILE};
use super::{BLOCK_SIZE, FlashCall, FlashSequence, SPLIT, seen_by};

/// Rows of queries of one item: few enough that they and a tile of keys and values stay in the first-level cache.
const ITEM_ROWS: usize = 48;

/// Memory of [`super::flash_attention`], kept between calls.
#[derive(Debug, Default)]
pub struct FlashScratch {
    pub(super) items: Vec<Item>,
    pub(super) merges: Vec<Merge>,
    pub(super) partials: Vec<f32>,
    pub(super) threads: Vec<Mutex<Vec<f32>>>,
}

impl FlashScratch {
    /// Empty; grows to what calls need.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Queries of one kv head against some splits of the context.
#[derive(Debug)]
pub(super) struct Item {
    pub sequence: usize,
    pub kv_head: usize,
    /// Counted from the sequence's first query.
    pub tokens: Range<usize>,
    pub splits: Range<usize>,
    /// Where the state goes if other items have other splits of the same queries.
    pub partial: Option<usize>,
}

/// Queries whose splits several items compute; their states follow each other from `partial`.
#[derive(Debug)]
pub(super) struct Merge {
    pub sequence: usize,
    pub kv_head: usize,
    pub tokens: Range<usize>,
    pub partial: usize,
    pub num_splits: usize,
}

/// Shapes of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Query heads of a kv head.
    pub group: usize,
    pub head_dim: usize,
    pub padded_dim: usize,
    /// Floats of a row's state.
    pub stride: usize,
    pub partials_start: usize,
}

impl Plan {
    /// Floats of a widened tile.
    pub fn expanded_len(self) -> usize {
        2 * TILE * self.padded_dim
    }
}

/// First float at a multiple of 64 bytes; buffers hold 16 more than they need.
pub(super) fn aligned_start(buffer: &[f32]) -> usize {
    buffer.as_ptr().align_offset(64).min(16)
}

/// Checks a call and cuts it.
pub(super) fn plan(
    q: &[f32],
    out: &[f32],
    call: &FlashCall,
    scratch: &mut FlashScratch,
    num_threads: usize,
) -> Result<Plan> {
    check(q, out, call)?;
    let shape = call.kv.shape();
    let group = call.params.num_heads / shape.num_kv_heads;
    let padded_dim = call.kv.layout().padded_dim;
    let stride = STATE_HEAD + padded_dim;
    let tile_tokens = (ITEM_ROWS / group).max(1);
    scratch.items.clear();
    scratch.merges.clear();
    let tokens_of =
        |sequence: &FlashSequence, tile: usize| tile * tile_tokens..((tile + 1) * tile_tokens).min(sequence.rows.len());
    let splits_of = |index: usize, tokens: &Range<usize>| {
        let first = seen_by(call, index, tokens.start).start / SPLIT;
        first..seen_by(call, index, tokens.end - 1).end.div_ceil(SPLIT)
    };
    let mut total = 0;
    for (index, sequence) in call.sequences.iter().enumerate() {
        for tile in 0..sequence.rows.len().div_ceil(tile_tokens) {
            total += splits_of(index, &tokens_of(sequence, tile)).len() * shape.num_kv_heads;
        }
    }
    let mut partials = 0;
    for (index, sequence) in call.sequences.iter().enumerate() {
        // The latest queries see most: they come first, so that threads end together.
        for tile in (0..sequence.rows.len().div_ceil(tile_tokens)).rev() {
            let tokens = tokens_of(sequence, tile);
            let splits = splits_of(index, &tokens);
            // What is more than a quarter of a thread's share is cut, so that no thread waits long for another.
            let cut = num_threads > 1 && splits.len() > 1 && splits.len() * 4 * num_threads > total;
            for kv_head in 0..shape.num_kv_heads {
                let item =
                    Item { sequence: index, kv_head, tokens: tokens.clone(), splits: splits.clone(), partial: None };
                if !cut {
                    scratch.items.push(item);
                    continue;
                }
                let tokens = tokens.clone();
                let (partial, num_splits) = (partials, splits.len());
                scratch.merges.push(Merge { sequence: index, kv_head, tokens: tokens.clone(), partial, num_splits });
                for split in splits.clone() {
                    let (tokens, partial) = (tokens.clone(), Some(partials));
                    partials += tokens.len() * group * stride;
                    let splits = split..split + 1;
                    scratch.items.push(Item { sequence: index, kv_head, tokens, splits, partial });
                }
            }
        }
    }
    let rows = tile_tokens * group;
    if scratch.partials.len() < partials + 16 {
        scratch.partials.resize(partials + 16, 0.0);
    }
    let partials_start = aligned_start(&scratch.partials);
    let plan = Plan { group, head_dim: shape.head_dim, padded_dim, stride, partials_start };
    // States of a split and of all before it, queries, where a panel of one row takes as much room as a full one, and
    // a widened tile.
    let len = 2 * rows * stride + rows * padded_dim * PANEL + plan.expanded_len() + 16;
    reserve_threads(scratch, num_threads, len);
    Ok(plan)
}

fn reserve_threads(scratch: &mut FlashScratch, num_threads: usize, len: usize) {
    if scratch.threads.len() < num_threads {
        scratch.threads.resize_with(num_threads, Default::default);
    }
    for buffer in &mut scratch.threads {
        let buffer = buffer.get_mut().unwrap_or_else(PoisonError::into_inner);
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        }
    }
}

fn check(q: &[f32], out: &[f32], call: &FlashCall) -> Result<()> {
    let shape = call.kv.shape();
    let num_heads = call.params.num_heads;
    if num_heads == 0 || !num_heads.is_multiple_of(shape.num_kv_heads) {
        bail!("{num_heads} query heads do not share {} kv heads", shape.num_kv_heads);
    }
    if call.layer >= shape.num_layers {
        bail!("layer {} is outside a pool of {}", call.layer, shape.num_layers);
    }
    if q.len() != out.len() || call.params.sliding_window == Some(0) {
        bail!("{} queries, {} results, a window of {:?}", q.len(), out.len(), call.params.sliding_window);
    }
    let num_rows = q.len() / (num_heads * shape.head_dim);
    let mut next = 0;
    for sequence in call.sequences {
        let rows = &sequence.rows;
        if rows.start < next || rows.end < rows.start || rows.end > num_rows {
            bail!("rows {rows:?} of a sequence overlap others or end beyond {num_rows}; sequences come in order");
        }
        next = rows.end;
        let num_blocks = (sequence.query_start + rows.len()).div_ceil(BLOCK_SIZE);
        let table = call.block_tables.get(sequence.block_table.clone());
        let Some(blocks) = table.and_then(|table| table.get(..num_blocks)) else {
            bail!("a context of {num_blocks} blocks has a table of {}", sequence.block_table.len());
        };
        if let Some(block) = blocks.iter().find(|block| **block as usize >= shape.num_blocks) {
            bail!("block {block} is outside a pool of {}", shape.num_blocks);
        }
    }
    Ok(())
}
