//! The decoder on the GPU over its block pool: tables over, a step (recorded or not), tokens or logits back.
//!
//! A step whose tokens the device chooses is only put on the stream; the next one may follow before the host waits for it.
//! So there are two of whatever the host writes or reads.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aisp_kernels::cuda::{
    CudaKv, DeviceBuffer, Event, Gpu, Graph, LINEAR_MAX_ROWS, MAX_DRAWN_VOCAB, PinnedBuffer, argmax_workspace_bytes,
};

use super::cuda_tables::{StepShape, StepTables, rows_bucket};
use super::{DeviceIdle, Logits, ModelRunner, OverlappedRunner, SequenceInput, StepInput, TokenChoice};
use crate::components::Engagement;
use crate::error::EngineError;
use crate::kv_cache::BlockCopy;
use crate::model::{CudaDecoder, StepAddresses, Workspace};
use crate::optimizations::Optimization;
use crate::plan::{ExecutionKind, Plan, Products, SamplerKind};

const TABLES: (&str, &str) = ("the tables of a step", "--max-num-seqs or --max-model-len");
const LOGITS: (&str, &str) = ("the logits", "--max-num-seqs");

/// Bounds of the steps that a runner takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaLimits {
    /// Tokens in a step.
    pub max_num_tokens: usize,
    /// Sequences in a step.
    pub max_num_seqs: usize,
    /// Tokens of a sequence.
    pub max_model_len: usize,
}

impl CudaLimits {
    /// Rows that steps come to, padding included; a multiple of 4, as `Fp8Groups` wants it.
    pub fn max_rows(&self) -> usize {
        self.max_num_tokens.max(self.max_sequences()).max(LINEAR_MAX_ROWS).next_multiple_of(4)
    }

    /// Sequences that steps come to, padding included.
    pub fn max_sequences(&self) -> usize {
        rows_bucket(self.max_num_seqs)
    }

    /// Rows of logits that are there at once.
    pub fn max_logit_rows(&self) -> usize {
        self.max_sequences().max(LINEAR_MAX_ROWS)
    }

    /// Bytes of what the runner allocates itself.
    pub fn num_bytes(&self, vocab_size: usize) -> u64 {
        let tables = StepShape::most_values(self.max_rows(), self.max_sequences(), self.max_model_len);
        (4 * (tables + self.max_logit_rows() * vocab_size)) as u64
    }
}

/// Runs a [`CudaDecoder`].
pub struct CudaRunner {
    // Graphs go first: they use the memory of the rest.
    graphs: HashMap<StepShape, Graph>,
    model: CudaDecoder,
    kv: CudaKv,
    workspace: Workspace,
    limits: CudaLimits,
    execution: ExecutionKind,
    draws: bool,
    optimizations: Vec<Optimization>,
    order: StepTables,
    tables: DeviceBuffer<i32>,
    copies: DeviceBuffer<i32>,
    logits: DeviceBuffer<f32>,
    tokens: DeviceBuffer<i32>,
    argmax: DeviceBuffer<u8>,
    host_logits: PinnedBuffer<f32>,
    /// Steps take them in turns.
    turns: [Turn; 2],
    num_submitted: usize,
    num_collected: usize,
    idle: DeviceIdle,
}

/// What the host keeps of a step under way.
struct Turn {
    staging: PinnedBuffer<i32>,
    tokens: PinnedBuffer<i32>,
    /// Around the step on the stream.
    begin: Event,
    end: Event,
    is_decode: bool,
    /// Tokens that the device will have chosen; none if `logits` has the step's results already.
    num_chosen: Option<usize>,
    logits: Logits,
}

impl Turn {
    fn new(gpu: &Arc<Gpu>, num_values: usize, num_rows: usize) -> Result<Self, EngineError> {
        Ok(Self {
            staging: PinnedBuffer::zeroed(gpu, num_values, TABLES)?,
            tokens: PinnedBuffer::zeroed(gpu, num_rows, LOGITS)?,
            begin: Event::new(gpu)?,
            end: Event::new(gpu)?,
            is_decode: false,
            num_chosen: None,
            logits: Logits::default(),
        })
    }
}

impl CudaRunner {
    /// Joins a model, a pool of its shape and a workspace; `optimizations` are those that they stand for, `products` the only
    /// ones of many rows if they are not to be the fastest.
    ///
    /// Errors: out of memory; a product that could not be timed.
    pub fn new(
        mut model: CudaDecoder,
        kv: CudaKv,
        workspace: Workspace,
        limits: CudaLimits,
        (plan, products): (&Plan, Option<Products>),
        optimizations: Vec<Optimization>,
    ) -> Result<Self, EngineError> {
        let gpu = model.gpu().clone();
        let vocab_size = model.config().vocab_size;
        let most = StepShape::most_values(limits.max_rows(), limits.max_sequences(), limits.max_model_len);
        let rows = limits.max_logit_rows();
        let logits = DeviceBuffer::zeroed(&gpu, rows * vocab_size, LOGITS)?;
        model.time_products(&workspace, &logits, products)?;
        Ok(Self {
            graphs: HashMap::new(),
            kv,
            workspace,
            limits,
            execution: plan.execution,
            draws: plan.sampler == SamplerKind::Candidates && vocab_size <= MAX_DRAWN_VOCAB,
            optimizations,
            order: StepTables::default(),
            tables: DeviceBuffer::zeroed(&gpu, most, TABLES)?,
            copies: DeviceBuffer::zeroed(&gpu, 2 * limits.max_num_seqs.max(LINEAR_MAX_ROWS), TABLES)?,
            logits,
            tokens: DeviceBuffer::zeroed(&gpu, rows, LOGITS)?,
            argmax: DeviceBuffer::zeroed(&gpu, argmax_workspace_bytes(rows), LOGITS)?,
            host_logits: PinnedBuffer::zeroed(&gpu, LINEAR_MAX_ROWS * vocab_size, LOGITS)?,
            turns: [Turn::new(&gpu, most, rows)?, Turn::new(&gpu, most, rows)?],
            num_submitted: 0,
            num_collected: 0,
            idle: DeviceIdle::default(),
            model,
        })
    }

    fn copy_blocks(&self, copies: &[BlockCopy]) -> Result<(), EngineError> {
        for part in copies.chunks(self.copies.len() / 2) {
            let pairs: Vec<i32> = part.iter().flat_map(|copy| [copy.from.0 as i32, copy.to.0 as i32]).collect();
            self.copies.upload(0, &pairs)?;
            self.model.gpu().copy_blocks(&self.kv, self.copies.all(), part.len())?;
        }
        Ok(())
    }

    /// The layers, and for a step of decodes its head and its most likely tokens.
    fn ops(&self, shape: &StepShape) -> Result<(), EngineError> {
        let at = StepAddresses::new(&self.tables, &self.tokens, shape.layout());
        self.model.forward(shape, &at, &self.kv, &self.workspace)?;
        if shape.is_decode() { self.choose(shape, 0, shape.num_logit_rows) } else { Ok(()) }
    }

    /// Logits and tokens of some of the rows that want them.
    fn choose(&self, shape: &StepShape, start: usize, len: usize) -> Result<(), EngineError> {
        let at = StepAddresses::new(&self.tables, &self.tokens, shape.layout());
        let rows = (at.logit_rows.from(start), len);
        self.model.head(shape, rows, &self.workspace, self.logits.all())?;
        let (gpu, vocab_size, logits) = (self.model.gpu(), self.model.config().vocab_size, self.logits.all());
        match shape.draws {
            true => gpu.sample(logits, len, vocab_size, at.draws.from(start), self.tokens.all())?,
            false => gpu.argmax(logits, len, vocab_size, self.tokens.all(), self.argmax.all())?,
        }
        Ok(())
    }

    /// Puts a step on the stream; whether it was a recorded one.
    fn launch(&mut self, shape: &StepShape) -> Result<bool, EngineError> {
        if self.execution == ExecutionKind::Eager || !shape.is_decode() {
            self.ops(shape)?;
            return Ok(false);
        }
        if !self.graphs.contains_key(shape) {
            // Once without recording: libraries allocate on first use, which a recording does not allow.
            self.ops(shape)?;
            self.model.gpu().synchronize()?;
            let graph = Graph::capture(self.model.gpu(), || self.ops(shape))?;
            self.graphs.insert(*shape, graph);
            return Ok(false);
        }
        if let Some(graph) = self.graphs.get(shape) {
            graph.launch()?;
        }
        Ok(true)
    }

    /// Brings what `len` of the wanted rows from `start` on came to: their tokens, and the logits of those that are drawn
    /// by the host.
    fn bring(&mut self, turn: usize, start: usize, len: usize, chosen: &ChosenRows) -> Result<(), EngineError> {
        let vocab_size = self.model.config().vocab_size;
        if len == 0 {
            return Ok(());
        }
        let Turn { tokens, logits, .. } = &mut self.turns[turn];
        tokens.copy_from(0, self.tokens.all(), len)?;
        if chosen.all() {
            self.model.gpu().synchronize()?;
            for (at, &token) in tokens.values()[..len].iter().enumerate() {
                logits.choose(start + at, token as u32);
            }
            return Ok(());
        }
        for first in (0..len).step_by(LINEAR_MAX_ROWS) {
            let rows = LINEAR_MAX_ROWS.min(len - first);
            self.host_logits.copy_from(0, self.logits.all().from(first * vocab_size), rows * vocab_size)?;
            self.model.gpu().synchronize()?;
            for (at, row) in self.host_logits.values()[..rows * vocab_size].chunks(vocab_size).enumerate() {
                let index = start + first + at;
                match (chosen.row(index), logits.row_mut(index)) {
                    (false, Some(to)) => to.copy_from_slice(row),
                    (_, _) => logits.choose(index, tokens.values()[first + at] as u32),
                }
            }
        }
        Ok(())
    }
}

/// Which of the wanted rows the device may choose for.
struct ChosenRows(Vec<bool>);

impl ChosenRows {
    fn new(input: &StepInput) -> Self {
        let mut rows = vec![false; input.logit_rows.len()];
        for sequence in &input.sequences {
            rows[sequence.logits.clone()].fill(sequence.choice.is_runners());
        }
        Self(rows)
    }

    fn row(&self, index: usize) -> bool {
        self.0.get(index).copied().unwrap_or(false)
    }

    fn all(&self) -> bool {
        self.0.iter().all(|chosen| *chosen)
    }
}

impl ModelRunner for CudaRunner {
    fn execute(
        &mut self,
        input: &StepInput,
        logits: &mut Logits,
        engagement: &mut Engagement,
    ) -> Result<(), EngineError> {
        self.submit(input, engagement)?;
        self.collect(logits)
    }

    fn overlapped(&mut self) -> Option<&mut dyn OverlappedRunner> {
        Some(self)
    }

    fn draws(&self) -> bool {
        self.draws
    }

    fn device_idle(&self) -> Option<DeviceIdle> {
        Some(self.idle)
    }
}

impl OverlappedRunner for CudaRunner {
    fn submit(&mut self, input: &StepInput, engagement: &mut Engagement) -> Result<(), EngineError> {
        let submitted = self.put_on_stream(input, engagement);
        if submitted.is_err() {
            // What a failed step put on the stream may read its tables, which the next one writes.
            let _ = self.model.gpu().synchronize();
        }
        submitted
    }

    fn keeps_choices(&self, input: &StepInput) -> bool {
        let fits = input.token_ids.len() <= self.limits.max_rows();
        fits && input.logit_rows.len() <= self.limits.max_logit_rows() && input.is_chosen_by_runner()
    }

    fn collect(&mut self, logits: &mut Logits) -> Result<(), EngineError> {
        if self.num_collected == self.num_submitted {
            return Err(EngineError::Runner("no step is under way".into()));
        }
        self.model.gpu().make_current()?;
        let turn = &mut self.turns[self.num_collected % 2];
        turn.end.wait()?;
        if let Some(num_chosen) = turn.num_chosen {
            for (at, &token) in turn.tokens.values()[..num_chosen].iter().enumerate() {
                turn.logits.choose(at, token as u32);
            }
        }
        std::mem::swap(logits, &mut turn.logits);
        self.num_collected += 1;
        Ok(())
    }
}

impl CudaRunner {
    /// A step, from its tables to the tokens on their way back.
    fn put_on_stream(&mut self, input: &StepInput, engagement: &mut Engagement) -> Result<(), EngineError> {
        // The engine may have moved to another thread since it was built.
        self.model.gpu().make_current()?;
        let turn = self.num_submitted % self.turns.len();
        self.note_gap(turn)?;
        let chosen = ChosenRows::new(input);
        let drawn_by_host = if chosen.all() { 0 } else { input.logit_rows.len() };
        self.turns[turn].logits.reset(drawn_by_host, self.model.config().vocab_size);
        self.turns[turn].begin.record()?;
        if self.keeps_choices(input) {
            let wanted = input.logit_rows.len();
            let shape = self.start(turn, input, engagement)?;
            if !shape.is_decode() {
                self.choose(&shape, 0, wanted)?;
            }
            let Turn { tokens, num_chosen, is_decode, .. } = &mut self.turns[turn];
            tokens.copy_from(0, self.tokens.all(), wanted)?;
            (*num_chosen, *is_decode) = (Some(wanted), shape.is_decode());
        } else {
            self.compute(turn, input, &chosen, engagement)?;
        }
        self.turns[turn].end.record()?;
        self.num_submitted += 1;
        let drawn = |sequence: &&SequenceInput| matches!(sequence.choice, TokenChoice::Drawn(_));
        engagement.add(Optimization::FastSampler, input.sequences.iter().filter(drawn).count() as u64);
        engagement.add_all(&self.optimizations, input);
        Ok(())
    }

    /// Adds the gap between the step that had this turn, which ended, and the one after it, if that is one of decodes.
    fn note_gap(&mut self, turn: usize) -> Result<(), EngineError> {
        let after = &self.turns[1 - turn];
        if self.num_submitted >= 2 && after.is_decode {
            let gap_ms = after.begin.ms_since(&self.turns[turn].end)?;
            self.idle.total += Duration::from_secs_f32(gap_ms.max(0.0) * 1e-3);
            self.idle.num_gaps += 1;
        }
        Ok(())
    }

    /// Computes a step to its end: one whose logits the host wants, or a prompt longer than a step's bound.
    fn compute(
        &mut self,
        turn: usize,
        input: &StepInput,
        chosen: &ChosenRows,
        engagement: &mut Engagement,
    ) -> Result<(), EngineError> {
        let (num_rows, most) = (input.token_ids.len(), self.limits.max_rows());
        let known;
        let input = if num_rows > most && !input.pending.is_empty() {
            known = self.with_known_tokens(turn, input)?;
            &known
        } else {
            input
        };
        let mut done = 0;
        // Parts alike: a single row of a prompt at the end would be computed by the kernel of answers.
        let num_parts = num_rows.div_ceil(most).max(1);
        let len = num_rows.div_ceil(num_parts).max(1);
        for start in (0..num_rows).step_by(len) {
            let part = if num_rows <= most { None } else { Some(input.part(start..(start + len).min(num_rows))) };
            let part = part.as_ref().unwrap_or(input);
            let shape = self.start(turn, part, engagement)?;
            self.finish(turn, &shape, part.logit_rows.len(), done, chosen)?;
            done += part.logit_rows.len();
        }
        (self.turns[turn].num_chosen, self.turns[turn].is_decode) = (None, false);
        Ok(())
    }

    /// A step whose tokens the host knows all, once the one before has ended: of several parts, each overwrites what the
    /// device picked before.
    fn with_known_tokens(&self, turn: usize, input: &StepInput) -> Result<StepInput, EngineError> {
        let before = &self.turns[1 - turn];
        before.end.wait()?;
        let mut known = input.clone();
        for pending in std::mem::take(&mut known.pending) {
            known.token_ids[pending.row] = before.tokens.values()[pending.choice] as u32;
        }
        Ok(known)
    }

    /// Puts rows that fit into the workspace on the stream.
    fn start(&mut self, turn: usize, input: &StepInput, engagement: &mut Engagement) -> Result<StepShape, EngineError> {
        self.copy_blocks(&input.copies)?;
        let shape = self.order.shape(input, self.limits.max_model_len);
        let staging = &mut self.turns[turn].staging;
        self.order.fill(input, &shape, staging.values_mut())?;
        staging.copy_to(self.tables.all(), shape.layout().len)?;
        if self.launch(&shape)? {
            engagement.add_all(&[Optimization::CudaGraphs], input);
        }
        if let Some(optimization) = self.model.products(shape.num_rows).optimization() {
            engagement.add_all(&[optimization], input);
        }
        if self.model.has_adaptive_splits() {
            engagement
                .add(Optimization::AdaptiveSplits, input.sequences.iter().filter(|s| s.rows.len() == 1).count() as u64);
        }
        Ok(shape)
    }

    /// Brings what started rows came to; `first` of the step's wanted ones were brought before.
    fn finish(
        &mut self,
        turn: usize,
        shape: &StepShape,
        wanted: usize,
        first: usize,
        chosen: &ChosenRows,
    ) -> Result<(), EngineError> {
        if shape.is_decode() {
            self.bring(turn, first, wanted, chosen)?;
        } else {
            let most = self.limits.max_logit_rows();
            for start in (0..wanted).step_by(most) {
                let len = most.min(wanted - start);
                self.choose(shape, start, len)?;
                self.bring(turn, first + start, len, chosen)?;
            }
        }
        if wanted == 0 {
            // Nothing is brought back, but the tables may not change while they are read.
            self.model.gpu().synchronize()?;
        }
        Ok(())
    }
}

impl Drop for CudaRunner {
    fn drop(&mut self) {
        // A step may be under way in the memory that goes now; a device that failed has nothing under way.
        let _ = self.model.gpu().synchronize();
    }
}
