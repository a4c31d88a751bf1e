//! One tile of 64 positions for a panel of query rows: `s = q k`, `p = exp(s - m)`, `o = o e^(m' - m) + p v`.
//!
//! Layout: `q [D / 16][PANEL][16]`, keys `[D][16]` and values `[16][D]` a block (see [`crate::kv`]), state a row `[16 + 16 + D]`:
//! 16 partial sums of `p`, the maximum, the weighted sum of values.
//! Order: a score is one chain of multiply-adds over `d`, a weighted sum one chain over positions from the row's first
//! visible one to its last; both f32. A row's bits therefore do not depend on the panel it stands in.
//! Work of a row: `2 * 64 * D` multiply-adds. A panel of 6 rows widens each key and value once for 6 multiply-adds and
//! holds 24 sums in registers; narrower instruction sets hold 6 sums.

use std::marker::PhantomData;
use std::ops::Range;

use crate::kv::Record;
use crate::kv::format::Format;
use crate::simd::{Kernel, LANES, Simd};

/// Positions of a tile.
pub(super) const TILE: usize = 64;
/// Blocks of a tile.
pub(super) const TILE_BLOCKS: usize = TILE / LANES;
/// Slots for rows in a panel of queries; the vocabulary's [`Simd::WIDE`] says how many are used.
pub(super) const PANEL: usize = 8;
/// Floats before the weighted sum in a row's state.
pub(super) const STATE_HEAD: usize = 2 * LANES;
/// Where the maximum stands in a row's state.
const MAX_AT: usize = LANES;

/// 16 dimensions of the rows of a panel.
pub(super) type QueryGroup = [[f32; LANES]; PANEL];

type Scores = [[f32; TILE]; PANEL];

/// What one panel sees of one tile.
pub(super) struct Visible<'a, 'b> {
    /// Blocks of the tile; those beyond the context repeat one inside it.
    pub records: &'a [Record<'b>; TILE_BLOCKS],
    /// Blocks of the next tile, fetched into cache meanwhile; the hardware cannot foresee a block table.
    pub next: Option<&'a [Record<'b>; TILE_BLOCKS]>,
    /// Query rows of one token.
    pub rows_per_token: usize,
    /// Positions of the tile that each token sees, in order.
    pub ranges: &'a [Range<usize>],
}

/// Rows a panel holds.
#[inline(always)]
pub(super) fn panel_rows<S: Simd>() -> usize {
    if S::WIDE { 6 } else { 3 }
}

/// State of a row that has seen nothing.
#[inline(always)]
pub(super) fn reset(state: &mut [f32]) {
    state.fill(0.0);
    state[MAX_AT] = f32::NEG_INFINITY;
}

/// Runs a kernel compiled for each number of rows of a panel. Each is a function of its own: inlined into one they
/// would take minutes to compile.
macro_rules! by_rows {
    ($rows:expr, $wide:expr, $R:ident => $call:expr) => {{
        macro_rules! with {
            ($n:literal) => {{
                const $R: usize = $n;
                $call
            }};
        }
        match $rows {
            1 => with!(1),
            2 => with!(2),
            3 => with!(3),
            4 if $wide => with!(4),
            5 if $wide => with!(5),
            6 if $wide => with!(6),
            _ => {}
        }
    }};
}
/// Advances the state of a panel's rows by a tile.
#[inline(always)]
pub(super) fn advance<S: Simd, F: Format>(s: S, q: &[QueryGroup], state: &mut [f32], stride: usize, seen: &Visible) {
    let num_rows = state.len() / stride;
    let mut scores: Scores = [[0.0; TILE]; PANEL];
    by_rows!(num_rows, S::WIDE, R => s.vectorize(Score::<F, R> { q, seen, scores: &mut scores, format: PhantomData }));
    let mut factors = [0.0; LANES];
    s.vectorize(Soften::<F> { state, stride, seen, scores: &mut scores, factors: &mut factors, format: PhantomData });
    if seen.ranges.iter().all(|range| *range == (0..TILE)) {
        by_rows!(num_rows, S::WIDE, R => s.vectorize(Weigh::<F, R> {
            weights: &scores,
            factors: &factors,
            seen,
            range: 0..TILE,
            state,
            stride,
            format: PhantomData,
        }));
        return;
    }
    // Tokens end at different positions: each is summed by itself over exactly what it sees.
    let step = seen.rows_per_token;
    for (token, range) in seen.ranges.iter().enumerate() {
        let rows = token * step..((token + 1) * step).min(num_rows);
        if !range.is_empty() {
            by_rows!(rows.len(), S::WIDE, R => s.vectorize(Weigh::<F, R> {
                weights: &scores[rows.clone()],
                factors: &factors[rows.clone()],
                seen,
                range: range.clone(),
                state: &mut state[rows.start * stride..rows.end * stride],
                stride,
                format: PhantomData,
            }));
        }
    }
}

/// Scores of R rows and a tile.
struct Score<'a, 'b, F, const R: usize> {
    q: &'a [QueryGroup],
    seen: &'a Visible<'a, 'b>,
    scores: &'a mut Scores,
    format: PhantomData<F>,
}

impl<F: Format, const R: usize> Kernel for Score<'_, '_, F, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if S::WIDE {
            score::<S, F, R, 4>(s, self.q, self.seen, 0, self.scores);
        } else {
            for block in 0..TILE_BLOCKS {
                score::<S, F, R, 1>(s, self.q, self.seen, block, self.scores);
            }
        }
    }
}

/// `q k` of R rows and N blocks.
#[inline(always)]
fn score<S: Simd, F: Format, const R: usize, const N: usize>(
    s: S,
    q: &[QueryGroup],
    seen: &Visible,
    first: usize,
    scores: &mut Scores,
) {
    let records = seen.records;
    let groups = q.len();
    let mut sums = [[s.zero(); N]; R];
    for (group, q) in q.iter().enumerate() {
        if let Some(next) = seen.next {
            for record in &next[first..first + N] {
                let len = record.k.len() / groups;
                s.prefetch(&record.k[group * len..(group + 1) * len]);
            }
        }
        let mut scale = [s.zero(); N];
        for b in 0..N {
            scale[b] = F::key_scale(s, &records[first + b], group);
        }
        for pair in 0..8 {
            let (mut even, mut odd) = ([s.zero(); N], [s.zero(); N]);
            for b in 0..N {
                (even[b], odd[b]) = F::keys(s, &records[first + b], group.wrapping_mul(8).wrapping_add(pair), scale[b]);
            }
            for r in 0..R {
                let x = s.splat(q[r][2 * pair]);
                for b in 0..N {
                    sums[r][b] = s.fma(x, even[b], sums[r][b]);
                }
            }
            for r in 0..R {
                let x = s.splat(q[r][2 * pair + 1]);
                for b in 0..N {
                    sums[r][b] = s.fma(x, odd[b], sums[r][b]);
                }
            }
        }
    }
    for b in 0..N {
        let scales = F::key_scales(s, &records[first + b]);
        for r in 0..R {
            let sum = if F::POSITION_SCALES { s.mul(sums[r][b], scales) } else { sums[r][b] };
            s.store(&mut scores[r].as_chunks_mut::<LANES>().0[first + b], sum);
        }
    }
}

/// Lanes of block `b` inside `range`.
#[inline(always)]
fn lanes(range: &Range<usize>, b: usize) -> u16 {
    let below = |end: usize| (1u32 << end.saturating_sub(b * LANES).min(LANES)) - 1;
    (below(range.end) & !below(range.start)) as u16
}

/// Scores become weights; `factors` become what the state so far is multiplied by.
struct Soften<'a, 'b, F> {
    state: &'a mut [f32],
    stride: usize,
    seen: &'a Visible<'a, 'b>,
    scores: &'a mut Scores,
    factors: &'a mut [f32; LANES],
    format: PhantomData<F>,
}

impl<F: Format> Kernel for Soften<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Self { state, stride, seen, scores, factors, .. } = self;
        let minus_infinity = s.splat(f32::NEG_INFINITY);
        let mut maxima = [0.0; PANEL];
        let rows = state.len() / stride;
        for r in 0..rows {
            let range = &seen.ranges[r / seen.rows_per_token];
            let row = scores[r].as_chunks_mut::<LANES>().0;
            let mut top = minus_infinity;
            for (b, at) in row.iter_mut().enumerate() {
                let mut x = s.load(at);
                if *range != (0..TILE) {
                    x = s.select(lanes(range, b), x, minus_infinity);
                    s.store(at, x);
                }
                top = s.max(x, top);
            }
            let old = state[r * stride + MAX_AT];
            let new = s.reduce_max(top);
            maxima[r] = if new > old { new } else { old };
            factors[r] = old - maxima[r];
        }
        let exponentials = s.exp(s.load(factors));
        s.store(factors, exponentials);
        let mut value_scales = [s.zero(); TILE_BLOCKS];
        if F::POSITION_SCALES {
            for (scales, record) in value_scales.iter_mut().zip(seen.records) {
                *scales = F::value_scales(s, record);
            }
        }
        for r in 0..rows {
            let max = s.splat(maxima[r]);
            let row = scores[r].as_chunks_mut::<LANES>().0;
            let mut sums = [s.zero(); TILE_BLOCKS];
            for b in 0..TILE_BLOCKS {
                let weight = s.exp(s.sub(s.load(&row[b]), max));
                sums[b] = weight;
                s.store(&mut row[b], if F::POSITION_SCALES { s.mul(weight, value_scales[b]) } else { weight });
            }
            let sum = s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3]));
            let head = &mut state[r * stride..][..STATE_HEAD];
            head[MAX_AT] = maxima[r];
            let totals = &mut head.as_chunks_mut::<LANES>().0[0];
            let total = s.fma(s.load(totals), s.splat(factors[r]), sum);
            s.store(totals, total);
        }
    }
}

/// `o = o factor + p v` of R rows along the whole head.
struct Weigh<'a, 'b, F, const R: usize> {
    weights: &'a [[f32; TILE]],
    factors: &'a [f32],
    seen: &'a Visible<'a, 'b>,
    range: Range<usize>,
    state: &'a mut [f32],
    stride: usize,
    format: PhantomData<F>,
}

impl<F: Format, const R: usize> Kernel for Weigh<'_, '_, F, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let pairs = (self.stride - STATE_HEAD) / (2 * LANES);
        let mut pair = 0;
        if S::WIDE {
            while pair + 2 <= pairs {
                weigh::<S, F, R, 2>(s, &mut self, pair);
                pair += 2;
            }
        }
        while pair < pairs {
            weigh::<S, F, R, 1>(s, &mut self, pair);
            pair += 1;
        }
    }
}

/// N pairs of vectors of R rows.
#[inline(always)]
fn weigh<S: Simd, F: Format, const R: usize, const N: usize>(s: S, work: &mut Weigh<F, R>, first: usize) {
    let Weigh { weights, factors, seen, range, state, stride, .. } = work;
    let stride = *stride;
    let pairs = (stride - STATE_HEAD) / (2 * LANES);
    let Some(weights) = weights.first_chunk::<R>() else { return };
    let mut sums = [[[s.zero(); 2]; N]; R];
    for r in 0..R {
        let row = state[r * stride + STATE_HEAD..][..stride - STATE_HEAD].as_chunks::<LANES>().0;
        let factor = s.splat(factors[r]);
        for n in 0..N {
            for i in 0..2 {
                sums[r][n][i] = s.mul(s.load(&row[2 * (first + n) + i]), factor);
            }
        }
    }
    for b in range.start / LANES..range.end.div_ceil(LANES) {
        let record = &seen.records[b];
        let base = b * LANES;
        if let (Some(next), 0) = (seen.next, first) {
            s.prefetch(next[b].v);
        }
        for position in range.start.max(base) - base..range.end.min(base + LANES) - base {
            let mut v = [[s.zero(); 2]; N];
            for (n, v) in v.iter_mut().enumerate() {
                (v[0], v[1]) = F::values(s, record, position, first + n, pairs);
            }
            for r in 0..R {
                let weight = s.splat(weights[r][base + position]);
                for n in 0..N {
                    sums[r][n][0] = s.fma(weight, v[n][0], sums[r][n][0]);
                    sums[r][n][1] = s.fma(weight, v[n][1], sums[r][n][1]);
                }
            }
        }
    }
    for r in 0..R {
        let row = state[r * stride + STATE_HEAD..][..stride - STATE_HEAD].as_chunks_mut::<LANES>().0;
        for n in 0..N {
            for i in 0..2 {
                s.store(&mut row[2 * (first + n) + i], sums[r][n][i]);
            }
        }
    }
}

/// Joins the state of a later part of the context to that of all before it.
#[inline(always)]
pub(super) fn merge<S: Simd>(s: S, total: &mut [f32], part: &[f32]) {
    let (old, new) = (total[MAX_AT], part[MAX_AT]);
    if new == f32::NEG_INFINITY {
        return;
    }
    if old == f32::NEG_INFINITY {
        total.copy_from_slice(part);
        return;
    }
    let max = if new > old { new } else { old };
    let mut gaps = [0.0; LANES];
    (gaps[0], gaps[1]) = (old - max, new - max);
    let exponentials = s.exp(s.load(&gaps));
    s.store(&mut gaps, exponentials);
    let (keep, join) = (s.splat(gaps[0]), s.splat(gaps[1]));
    for (total, part) in total.as_chunks_mut::<LANES>().0.iter_mut().zip(part.as_chunks::<LANES>().0) {
        let sum = s.fma(s.load(part), join, s.mul(s.load(total), keep));
        s.store(total, sum);
    }
    total[MAX_AT] = max;
}

/// The weighted mean out of a state that has seen all.
#[inline(always)]
pub(super) fn finish<S: Simd>(s: S, state: &mut [f32], out: &mut [f32]) {
    let (head, sums) = state.split_at_mut(STATE_HEAD);
    let total = s.splat(s.reduce_add(s.load(&head.as_chunks::<LANES>().0[0])));
    for (sum, to) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(out.chunks_mut(LANES)) {
        let mean = s.div(s.load(sum), total);
        match to.first_chunk_mut::<LANES>() {
            Some(to) => s.store(to, mean),
            None => {
                s.store(sum, mean);
                to.copy_from_slice(&sum[..to.len()]);
            }
        }
    }
}
