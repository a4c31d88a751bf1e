//! `ch13:kv_cache`: a cache that grows by concatenation, as plain programs write it, against the engine's own stores.
//! Each step appends one token and hands all keys and values over, as decoding does.

use std::time::Instant;

use aisp_engine::kv_cache::{BLOCK_SIZE, BlockId, KvPlacement};
use aisp_engine::loader::{LoadOptions, load};
use aisp_engine::model::ModelConfig;
use aisp_engine::runner::{ContiguousStore, KvPool, KvStore, PagedStore, SequenceInput, StepInput, TokenChoice};
use aisp_engine::{ModelSource, Optimization, RequestId};
use aisp_kernels::attention::padded_len;
use candle_core::{DType, Device, IndexOp, Result, Tensor};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::LabError;
use crate::fingerprint::Fingerprint;
use crate::gate::{Outputs, Tolerance};
use crate::lab::{ArmSpec, Experiment, Lab, LabContext, LabInfo, Measured};
use crate::record::{Goal, Workload};

const NUM_LAYERS: usize = 4;
const NUM_KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const PROMPT_TOKENS: usize = 256;
const NUM_STEPS: usize = 256;
const CONTEXT: usize = PROMPT_TOKENS + NUM_STEPS;

/// The lab.
#[derive(Debug, Clone, Copy)]
pub struct KvCacheLab;

struct KvCacheExperiment {
    config: ModelConfig,
    /// Keys and values of the whole context, `[CONTEXT, NUM_KV_HEADS, HEAD_DIM]`.
    k: Tensor,
    v: Tensor,
    fingerprint: String,
}

impl Lab for KvCacheLab {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: "ch13:kv_cache".into(),
            summary: "append a token and hand over the context: concatenate, write to slots, write to blocks".into(),
            goal: Goal::Speed,
            tags: vec!["kv_optimization".into()],
            tolerance: Tolerance::exact("keys and values are copied, never computed with"),
        }
    }

    fn prepare(&self, context: &LabContext) -> std::result::Result<Box<dyn Experiment>, LabError> {
        let mut rng = ChaCha8Rng::seed_from_u64(context.seed);
        let len = CONTEXT * NUM_KV_HEADS * HEAD_DIM;
        let mut draw = || -> Vec<f32> { (0..len).map(|_| rng.random_range(-1.0f32..1.0)).collect() };
        let (k, v) = (draw(), draw());
        let fingerprint = Fingerprint::default().add_f32(&k).add_f32(&v).finish();
        let tensor = |values| Tensor::from_vec(values, (CONTEXT, NUM_KV_HEADS, HEAD_DIM), &Device::Cpu);
        let checkpoint =
            load(&ModelSource::Builtin, &LoadOptions::default()).map_err(aisp_engine::EngineError::from)?;
        let config =
            ModelConfig { num_layers: NUM_LAYERS, num_kv_heads: NUM_KV_HEADS, head_dim: HEAD_DIM, ..checkpoint.config };
        Ok(Box::new(KvCacheExperiment { config, k: tensor(k)?, v: tensor(v)?, fingerprint }))
    }
}

impl Experiment for KvCacheExperiment {
    fn workload(&self) -> Workload {
        // Each appended key and value is written once in each layer, f32.
        let bytes = CONTEXT * NUM_LAYERS * 2 * NUM_KV_HEADS * HEAD_DIM * size_of::<f32>();
        Workload {
            description: format!(
                "a prompt of {PROMPT_TOKENS} tokens, then {NUM_STEPS} tokens one by one, {NUM_LAYERS} layers"
            ),
            fingerprint: self.fingerprint.clone(),
            tokens: Some(CONTEXT as u64),
            bytes: Some(bytes as u64),
            ..Workload::default()
        }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        ["concatenate", "contiguous", "paged"].map(ArmSpec::named).to_vec()
    }

    fn set_up(&mut self, _arm: usize) -> std::result::Result<(), LabError> {
        Ok(())
    }

    fn run(&mut self, arm: usize) -> std::result::Result<Measured, LabError> {
        let started = Instant::now();
        let (num_slots, device) = (padded_len(CONTEXT), Device::Cpu);
        let pool = || KvPool::new(&self.config, num_slots, DType::F32, &device);
        let mut store: Box<dyn KvStore> = match arm {
            0 => Box::new(ConcatenatingStore { layers: vec![None; NUM_LAYERS] }),
            1 => Box::new(ContiguousStore::new(pool()?)),
            _ => Box::new(PagedStore::new(pool()?)),
        };
        self.step(store.as_mut(), arm, 0, PROMPT_TOKENS)?;
        let mut last = Vec::new();
        for position in PROMPT_TOKENS..CONTEXT {
            last = self.step(store.as_mut(), arm, position, 1)?;
        }
        let duration = started.elapsed();
        let mut values = Vec::new();
        for tensor in last.iter().flat_map(|(k, v)| [k, v]) {
            values.extend(tensor.i(..CONTEXT)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(Measured::new(duration, self.fingerprint.clone(), Outputs::Values(values)))
    }
}

impl KvCacheExperiment {
    /// Writes tokens into every layer and reads the context back.
    fn step(&self, store: &mut dyn KvStore, arm: usize, start: usize, len: usize) -> Result<Vec<(Tensor, Tensor)>> {
        let (k, v) = (self.k.narrow(0, start, len)?, self.v.narrow(0, start, len)?);
        let input = step_input(placement(arm), start, len);
        let mut read = Vec::with_capacity(NUM_LAYERS);
        for layer in 0..NUM_LAYERS {
            store.write(layer, &k, &v, &input)?;
            read.push(store.read(layer, &input.sequences[0])?);
        }
        Ok(read)
    }
}

fn placement(arm: usize) -> KvPlacement {
    match arm {
        0 | 1 => KvPlacement::Contiguous { start_slot: 0 },
        // Every other block from the end, as they lie after a while of serving.
        _ => {
            let num_blocks = CONTEXT.div_ceil(BLOCK_SIZE) as u32;
            let (even, odd): (Vec<u32>, Vec<u32>) = (0..num_blocks).rev().partition(|block| block % 2 == 0);
            KvPlacement::Paged { block_table: even.into_iter().chain(odd).map(BlockId).collect() }
        }
    }
}

fn step_input(placement: KvPlacement, start: usize, len: usize) -> StepInput {
    StepInput {
        copies: Vec::new(),
        pending: Vec::new(),
        token_ids: vec![0; len],
        positions: (start as u32..(start + len) as u32).collect(),
        sequences: vec![SequenceInput {
            id: RequestId(0),
            rows: 0..len,
            query_start: start,
            placement,
            logits: 0..1,
            choice: TokenChoice::Host,
        }],
        logit_rows: vec![len as u32 - 1],
    }
}

/// The plain way: a new tensor for the whole context at every token.
struct ConcatenatingStore {
    layers: Vec<Option<(Tensor, Tensor)>>,
}

impl KvStore for ConcatenatingStore {
    fn write(&mut self, layer: usize, k: &Tensor, v: &Tensor, _input: &StepInput) -> Result<()> {
        let joined = match &self.layers[layer] {
            Some((old_k, old_v)) => (Tensor::cat(&[old_k, k], 0)?, Tensor::cat(&[old_v, v], 0)?),
            None => (k.copy()?, v.copy()?),
        };
        self.layers[layer] = Some(joined);
        Ok(())
    }

    fn read(&self, layer: usize, _sequence: &SequenceInput) -> Result<(Tensor, Tensor)> {
        match &self.layers[layer] {
            Some((k, v)) => Ok((k.clone(), v.clone())),
            None => candle_core::bail!("layer {layer} was read before it was written"),
        }
    }

    fn optimization(&self) -> Option<Optimization> {
        None
    }
}
