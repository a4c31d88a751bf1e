//! The least work of steps: what they must read and compute whatever computes them, for rooflines.
//!
//! Counted are matrices, rows of the embedding, keys and values, and products. Left out is what a step can keep in
//! caches or what is small beside them: activations, norms, logits, sampling. Of blocks that sequences share, each
//! sequence reads its own copy.

use std::ops::{Add, Sub};

use aisp_kernels::linear::LinearWork;
use aisp_kernels::{Arithmetic, Cost, attention};

use super::config::ModelConfig;
use crate::runner::StepInput;

/// The matrices of a model as it holds them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MatrixWork {
    /// Those of all layers, for every token.
    pub layers: LinearWork,
    /// The head, for tokens whose logits are wanted. One that is the embedding too counts here.
    pub head: LinearWork,
    /// Bytes of a row of the embedding; a token reads one.
    pub embedding_row_bytes: u64,
}

/// What a token, a row of logits and a position cost at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelWork {
    /// Matrices.
    pub matrices: MatrixWork,
    /// Operations of attention for a token and a position that it sees, in all layers.
    pub flops_per_attended_position: u64,
    /// Bytes of keys and values of a position, in all layers.
    pub kv_bytes_per_position: u64,
    /// Each token sees this many latest positions, its own included; all unless said.
    pub sliding_window: Option<usize>,
}

/// What steps computed, in numbers that no device and no type changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WorkTotals {
    /// Steps.
    pub num_steps: u64,
    /// Those in which logits were wanted.
    pub num_logit_steps: u64,
    /// Tokens computed.
    pub num_tokens: u64,
    /// Tokens whose logits were wanted.
    pub num_logit_rows: u64,
    /// Positions that tokens saw, over all tokens.
    pub num_attended_positions: u64,
    /// Positions that a step read or wrote of a sequence, over all steps and sequences.
    pub num_context_positions: u64,
}

impl ModelWork {
    /// Of a model of this shape whose KV cache takes so many bytes a position.
    pub fn new(config: &ModelConfig, matrices: MatrixWork, kv_bytes_per_position: u64) -> Self {
        let one = attention::cost(1, 1, config.num_heads, config.num_kv_heads, config.head_dim);
        Self {
            matrices,
            flops_per_attended_position: one.flops * config.num_layers as u64,
            kv_bytes_per_position,
            sliding_window: config.sliding_window,
        }
    }

    /// What the matrices are multiplied in.
    pub fn arithmetic(&self) -> Arithmetic {
        self.matrices.layers.arithmetic.max(self.matrices.head.arithmetic)
    }

    /// The least bytes and operations of steps.
    pub fn cost(&self, totals: &WorkTotals) -> Cost {
        let embedding = Cost { bytes: totals.num_tokens * self.matrices.embedding_row_bytes, flops: 0 };
        embedding + self.layers_cost(totals) + self.head_cost(totals)
    }

    /// The part of the layers.
    pub fn layers_cost(&self, totals: &WorkTotals) -> Cost {
        let attention = Cost {
            bytes: totals.num_context_positions * self.kv_bytes_per_position,
            flops: totals.num_attended_positions * self.flops_per_attended_position,
        };
        self.matrices.layers.cost(totals.num_steps, totals.num_tokens) + attention
    }

    /// The part of the head.
    pub fn head_cost(&self, totals: &WorkTotals) -> Cost {
        self.matrices.head.cost(totals.num_logit_steps, totals.num_logit_rows)
    }
}

impl WorkTotals {
    /// One step.
    ///
    /// Cost: a few operations for each sequence.
    pub fn of(step: &StepInput, sliding_window: Option<usize>) -> Self {
        let mut totals = Self {
            num_steps: 1,
            num_logit_steps: u64::from(!step.logit_rows.is_empty()),
            num_tokens: step.token_ids.len() as u64,
            num_logit_rows: step.logit_rows.len() as u64,
            ..Self::default()
        };
        for sequence in &step.sequences {
            let (start, end) = (sequence.query_start as u64, sequence.context_len() as u64);
            let window = sliding_window.map_or(u64::MAX, |window| window as u64);
            // Tokens before this one see all positions up to their own, later ones a whole window.
            let full = window.clamp(start, end);
            let up_to = |position: u64| position * (position + 1) / 2;
            totals.num_attended_positions += up_to(full) - up_to(start) + (end - full).saturating_mul(window);
            totals.num_context_positions += end - (start + 1).saturating_sub(window);
        }
        totals
    }
}

impl Add for WorkTotals {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }
}

/// What was added since `other`.
impl Sub for WorkTotals {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self.each(other, u64::saturating_sub)
    }
}

impl WorkTotals {
    fn each(self, other: Self, op: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            num_steps: op(self.num_steps, other.num_steps),
            num_logit_steps: op(self.num_logit_steps, other.num_logit_steps),
            num_tokens: op(self.num_tokens, other.num_tokens),
            num_logit_rows: op(self.num_logit_rows, other.num_logit_rows),
            num_attended_positions: op(self.num_attended_positions, other.num_attended_positions),
            num_context_positions: op(self.num_context_positions, other.num_context_positions),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_cache::KvPlacement;
    use crate::loader::DummyShape;
    use crate::runner::{SequenceInput, TokenChoice};
    use crate::{Engine, ModelSource, Optimization, Request, RequestId, SamplingParams, Selection};

    fn matrices(layers: (u64, u64), head: (u64, u64), embedding_row_bytes: u64, arithmetic: Arithmetic) -> MatrixWork {
        let work = |(weight_bytes, flops_per_row)| LinearWork { weight_bytes, flops_per_row, arithmetic };
        MatrixWork { layers: work(layers), head: work(head), embedding_row_bytes }
    }

    fn check(model: ModelSource, selection: Selection, matrices: MatrixWork, attention: (u64, u64)) {
        let engine = Engine::builder().model(model).optimizations(selection).max_num_seqs(1).build().unwrap();
        let (flops_per_attended_position, kv_bytes_per_position) = attention;
        let expected = ModelWork { matrices, flops_per_attended_position, kv_bytes_per_position, sliding_window: None };
        assert_eq!(engine.model_info().work, expected);
    }

    #[test]
    fn figures_are_those_computed_by_hand() {
        // story-12m: 6 layers of 320 x 192, 192 x 192, 1024 x 192 and 192 x 512, a head of 49152 x 192 that is the
        // embedding, 34 bytes for 32 weights; 3 heads of 64 over one of keys.
        let layers = 6 * (320 * 192 + 192 * 192 + 1024 * 192 + 192 * 512);
        let head = 49_152 * 192;
        let story = matrices((layers * 34 / 32, 2 * layers), (head * 34 / 32, 2 * head), 204, Arithmetic::Int8);
        check(ModelSource::Builtin, Selection::none(), story, (6 * 4 * 3 * 64, 6 * 2 * 64 * 4));
        let fused = Selection::closed([Optimization::FusedOps, Optimization::KvF16]);
        check(ModelSource::Builtin, fused, story, (6 * 4 * 3 * 64, 6 * 2 * 64 * 2));
        // tiny: 2 layers of 128 x 64, 64 x 64, 256 x 64 and 64 x 128 in f32, 4 heads of 16 over 2.
        let layers = 2 * (128 * 64 + 64 * 64 + 256 * 64 + 64 * 128);
        let head = 49_152 * 64;
        let tiny = || ModelSource::Dummy(DummyShape::Tiny);
        let plain = matrices((layers * 4, 2 * layers), (head * 4, 2 * head), 256, Arithmetic::F32);
        check(tiny(), Selection::none(), plain, (2 * 4 * 4 * 16, 2 * 2 * 2 * 16 * 4));
        let int8 = matrices((layers * 34 / 32, 2 * layers), (head * 34 / 32, 2 * head), 256, Arithmetic::Int8);
        let packed = Selection::closed([Optimization::WeightsInt8]);
        check(tiny(), packed, int8, (2 * 4 * 4 * 16, 2 * 2 * 2 * 16 * 4));
    }

    #[test]
    fn a_run_adds_up() {
        for selection in [Selection::none(), Selection::all()] {
            let mut engine = Engine::builder().optimizations(selection).max_num_seqs(1).build().unwrap();
            let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy(3) };
            engine.add_request(Request::new(vec![5, 6, 7, 8, 9], params)).unwrap();
            while engine.has_unfinished() {
                engine.step().unwrap();
            }
            let totals = engine.stats().work;
            let expected = WorkTotals {
                num_steps: 3,
                num_logit_steps: 3,
                num_tokens: 7,
                num_logit_rows: 3,
                num_attended_positions: 1 + 2 + 3 + 4 + 5 + 6 + 7,
                num_context_positions: 5 + 6 + 7,
            };
            assert_eq!(totals, expected);
            let work = engine.model_info().work;
            let (layers, head) = (work.matrices.layers, work.matrices.head);
            let bytes = 3 * (layers.weight_bytes + head.weight_bytes) + 7 * 204 + 18 * work.kv_bytes_per_position;
            let flops = 7 * layers.flops_per_row + 3 * head.flops_per_row + 28 * 4608;
            assert_eq!(work.cost(&totals), Cost { bytes, flops });
            assert_eq!(totals + totals - totals, totals);
        }
    }

    #[test]
    fn a_window_bounds_what_is_seen_and_read() {
        let sequence = |rows: std::ops::Range<usize>, query_start| SequenceInput {
            id: RequestId(0),
            rows,
            query_start,
            placement: KvPlacement::Paged { block_table: Vec::new() },
            logits: 0..0,
            choice: TokenChoice::Host,
        };
        let step = StepInput {
            token_ids: vec![0; 5],
            positions: vec![3, 4, 5, 6, 10],
            sequences: vec![sequence(0..4, 3), sequence(4..5, 10)],
            logit_rows: Vec::new(),
            copies: Vec::new(),
            pending: Vec::new(),
        };
        let seen = |window| {
            let totals = WorkTotals::of(&step, window);
            assert_eq!((totals.num_tokens, totals.num_logit_steps), (5, 0));
            (totals.num_attended_positions, totals.num_context_positions)
        };
        assert_eq!(seen(None), (4 + 5 + 6 + 7 + 11, 7 + 11));
        assert_eq!(seen(Some(5)), (4 + 5 + 5 + 5 + 5, 7 + 5));
        assert_eq!(seen(Some(1)), (5, 5));
    }
}
