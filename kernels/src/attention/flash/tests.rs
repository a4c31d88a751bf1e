use std::ops::Range;

use candle_core::Result;

use super::{BLOCK_SIZE, FlashCall, FlashParams, FlashScratch, FlashSequence, flash_attention};
use crate::attention::{AttentionParams, reference};
use crate::isa::Isa;
use crate::kv::{KvBuffer, KvShape, KvType};
use crate::team::SingleThread;
use crate::testing::{Threads, activations, nmse};

const NUM_BLOCKS: usize = 160;

/// One sequence in a pool whose other slots hold NaN, its blocks in no order.
struct Case {
    kv: KvBuffer,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    table: Vec<u32>,
    params: FlashParams,
    dim: usize,
    kv_heads: usize,
}

impl Case {
    fn new(len: usize, (heads, kv_heads, dim): (usize, usize, usize), window: Option<usize>, kv_type: KvType) -> Self {
        Self::with_step(len, (heads, kv_heads, dim), window, kv_type, 59)
    }

    /// `step`, coprime to the number of blocks, permutes the block table.
    fn with_step(
        len: usize,
        (heads, kv_heads, dim): (usize, usize, usize),
        window: Option<usize>,
        kv_type: KvType,
        step: u32,
    ) -> Self {
        let shape = KvShape { num_layers: 2, num_blocks: NUM_BLOCKS, num_kv_heads: kv_heads, head_dim: dim };
        let mut kv = KvBuffer::new(shape, kv_type).unwrap();
        let every: Vec<u32> = (0..(NUM_BLOCKS * BLOCK_SIZE) as u32).collect();
        let garbage = vec![f32::NAN; every.len() * kv_heads * dim];
        kv.store(1, &garbage, &garbage, &every, Isa::Portable, &SingleThread).unwrap();
        let (k, v) = (activations(len * kv_heads * dim, 2), activations(len * kv_heads * dim, 3));
        let table: Vec<u32> =
            (0..len.div_ceil(BLOCK_SIZE) as u32).map(|i| (7 + i * step) % NUM_BLOCKS as u32).collect();
        let slots: Vec<u32> =
            (0..len).map(|at| table[at / BLOCK_SIZE] * BLOCK_SIZE as u32 + (at % BLOCK_SIZE) as u32).collect();
        kv.store(1, &k, &v, &slots, Isa::detect(), &SingleThread).unwrap();
        let params = FlashParams { num_heads: heads, scale: 1.0 / (dim as f32).sqrt(), sliding_window: window };
        Self { kv, q: activations(len * heads * dim, 1), k, v, table, params, dim, kv_heads }
    }

    fn row(&self) -> usize {
        self.params.num_heads * self.dim
    }

    fn call<'a>(&'a self, layer: usize, sequences: &'a [FlashSequence]) -> FlashCall<'a> {
        FlashCall { kv: &self.kv, layer, sequences, block_tables: &self.table, params: self.params }
    }

    /// Attention of some queries as a step of their own.
    fn run(&self, tokens: Range<usize>, isa: Isa, threads: usize) -> Vec<f32> {
        let q = &self.q[tokens.start * self.row()..tokens.end * self.row()];
        let mut out = vec![f32::NAN; q.len()];
        let whole_table = 0..self.table.len();
        let sequence = FlashSequence { rows: 0..tokens.len(), query_start: tokens.start, block_table: whole_table };
        let call = self.call(1, std::slice::from_ref(&sequence));
        flash_attention(q, &mut out, call, &mut FlashScratch::new(), isa, &Threads(threads)).unwrap();
        out
    }

    /// In f64, from keys and values before they were stored.
    fn expected(&self) -> Vec<f64> {
        let mut out = vec![0.0; self.q.len()];
        let params = AttentionParams {
            query_start: 0,
            scale: f64::from(self.params.scale),
            sliding_window: self.params.sliding_window,
        };
        let head_of = |x: &[f32], head: usize, heads: usize| -> Vec<f64> {
            let rows = x.chunks(heads * self.dim);
            rows.flat_map(|row| row[head * self.dim..(head + 1) * self.dim].iter().map(|x| f64::from(*x))).collect()
        };
        for head in 0..self.params.num_heads {
            let kv_head = head / (self.params.num_heads / self.kv_heads);
            let (k, v) = (head_of(&self.k, kv_head, self.kv_heads), head_of(&self.v, kv_head, self.kv_heads));
            let one = reference(&head_of(&self.q, head, self.params.num_heads), &k, &v, self.dim, params);
            for (token, values) in one.chunks(self.dim).enumerate() {
                let at = (token * self.params.num_heads + head) * self.dim;
                out[at..at + self.dim].copy_from_slice(values);
            }
        }
        out
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Positions, heads with kv heads and their dimension, window.
type Shape = (usize, (usize, usize, usize), Option<usize>);

const SHAPES: [Shape; 9] = [
    (1, (3, 1, 64), None),
    (33, (9, 3, 64), None),
    (70, (2, 2, 32), Some(16)),
    (600, (3, 1, 64), None),
    (40, (1, 1, 128), Some(100)),
    (300, (8, 1, 64), Some(70)),
    (130, (14, 2, 64), None),
    (90, (4, 1, 80), None),
    (64, (5, 5, 16), None),
];

#[test]
fn agrees_with_the_reference_in_every_type_on_every_isa() {
    let bounds =
        [(KvType::F32, 1e-10), (KvType::F16, 1e-6), (KvType::Bf16, 5e-5), (KvType::Fp8, 1e-2), (KvType::Fp4, 0.15)];
    for (len, heads, window) in SHAPES {
        for (kv_type, bound) in bounds {
            let case = Case::new(len, heads, window, kv_type);
            let expected = case.expected();
            for isa in Isa::available() {
                let distance = nmse(&wide(&case.run(0..len, isa, 2)), &expected);
                assert!(distance < bound, "{len} tokens, {heads:?}, {kv_type:?}, {isa:?}: nmse {distance:e}");
            }
        }
    }
}

#[test]
fn a_query_depends_on_neither_chunk_nor_threads_nor_blocks() {
    for (len, heads, window) in [(1100, (9, 3, 64), None), (700, (2, 2, 32), Some(200)), (600, (7, 1, 64), Some(64))] {
        for kv_type in KvType::ALL {
            let case = Case::new(len, heads, window, kv_type);
            let row = case.row();
            for isa in Isa::available() {
                let whole = case.run(0..len, isa, 1);
                assert!(bits(&case.run(0..len, isa, 2)) == bits(&whole), "{kv_type:?} {isa:?}: threads");
                for tokens in [0..1, 0..17, 31..32, 32..33, 255..258, 500..530, 511..513, len - 20..len, len - 1..len] {
                    for threads in [1, 2, 3] {
                        let part = case.run(tokens.clone(), isa, threads);
                        let same = bits(&part) == bits(&whole[tokens.start * row..tokens.end * row]);
                        assert!(same, "{kv_type:?} {isa:?} {heads:?}: {tokens:?} on {threads} threads");
                    }
                }
            }
            let permuted = Case::with_step(len, heads, window, kv_type, 1);
            assert!(bits(&permuted.run(0..len, Isa::detect(), 1)) == bits(&case.run(0..len, Isa::detect(), 1)));
        }
    }
}

#[test]
fn avx2_and_avx512_agree_bitwise() {
    let isas: Vec<Isa> = Isa::available().into_iter().filter(|isa| *isa != Isa::Portable).collect();
    let case = Case::new(300, (9, 3, 64), None, KvType::F16);
    for pair in isas.windows(2) {
        assert!(bits(&case.run(0..300, pair[0], 1)) == bits(&case.run(0..300, pair[1], 2)));
    }
}

#[test]
fn sequences_of_a_batch_do_not_meet() -> Result<()> {
    let case = Case::new(400, (9, 3, 64), None, KvType::Fp8);
    let row = case.row();
    // Three steps of the same sequence as if of three: a decode, a chunk and another decode; rows 1, 22 are nobody's.
    let parts = [(0..1, 399), (2..22, 100), (23..24, 17)];
    let mut q = vec![f32::NAN; 24 * row];
    let sequences = parts.clone().map(|(rows, start)| {
        q[rows.start * row..rows.end * row].copy_from_slice(&case.q[start * row..(start + rows.len()) * row]);
        FlashSequence { rows, query_start: start, block_table: 0..case.table.len() }
    });
    let mut out = vec![7.0; 24 * row];
    let call = case.call(1, &sequences);
    let mut scratch = FlashScratch::new();
    flash_attention(&q, &mut out, call, &mut scratch, Isa::detect(), &Threads(2))?;
    let (items, threads) = (scratch.items.as_ptr(), scratch.threads.as_ptr());
    for (rows, start) in parts {
        let alone = case.run(start..start + rows.len(), Isa::detect(), 1);
        assert!(bits(&out[rows.start * row..rows.end * row]) == bits(&alone));
    }
    assert!(out[row..2 * row].iter().all(|x| *x == 7.0), "a row of no sequence was written");
    flash_attention(&q, &mut out, call, &mut scratch, Isa::detect(), &Threads(2))?;
    assert_eq!((items, threads), (scratch.items.as_ptr(), scratch.threads.as_ptr()), "scratch grew twice");
    Ok(())
}

#[test]
fn faults_are_seen() {
    let len = 200;
    let mut case = Case::new(len, (3, 1, 64), None, KvType::F32);
    let expected = case.expected();
    let distance = |case: &Case| nmse(&wide(&case.run(0..len, Isa::detect(), 2)), &expected);
    assert!(distance(&case) < 1e-10);
    case.params.scale *= 1.01;
    assert!(distance(&case) > 1e-6, "a wrong scale");
    case.params.scale /= 1.01;
    case.table.swap(3, 4);
    assert!(distance(&case) > 1e-3, "blocks swapped");
    case.table.swap(3, 4);
    case.params.sliding_window = Some(len - 1);
    assert!(distance(&case) > 1e-10, "a window one short");
    case.params.sliding_window = None;
    case.table[12] = (case.table[12] + 1) % NUM_BLOCKS as u32;
    assert!(distance(&case).is_nan(), "a block off by one holds NaN");
}

#[test]
fn calls_that_do_not_fit_are_errors() {
    let case = Case::new(40, (3, 1, 64), None, KvType::F16);
    let error = |sequences: &[FlashSequence], layer: usize, num_heads: usize| {
        let params = FlashParams { num_heads, ..case.params };
        let call = FlashCall { params, ..case.call(layer, sequences) };
        let mut out = vec![0.0; case.q.len()];
        flash_attention(&case.q, &mut out, call, &mut FlashScratch::new(), Isa::Portable, &SingleThread).is_err()
    };
    let fits = FlashSequence { rows: 0..40, query_start: 0, block_table: 0..case.table.len() };
    assert!(!error(std::slice::from_ref(&fits), 1, 3));
    assert!(error(std::slice::from_ref(&fits), 2, 3), "layer");
    assert!(error(std::slice::from_ref(&fits), 1, 0), "heads");
    assert!(error(&[FlashSequence { query_start: 9, ..fits.clone() }], 1, 3), "table too short");
    assert!(error(&[fits.clone(), fits.clone()], 1, 3), "rows twice");
    assert!(error(&[FlashSequence { block_table: 0..case.table.len() + 1, ..fits }], 1, 3), "table out of range");
    let mut case = case;
    case.table[2] = 999;
    let sequence = FlashSequence { rows: 0..40, query_start: 0, block_table: 0..case.table.len() };
    let mut out = vec![0.0; case.q.len()];
    let call = case.call(1, std::slice::from_ref(&sequence));
    let scratch = &mut FlashScratch::new();
    assert!(flash_attention(&case.q, &mut out, call, scratch, Isa::Portable, &SingleThread).is_err(), "block");
}
