//! `ch01:training_goodput`: a small transformer learns real text; gradients of one sequence at a time, accumulated,
//! against all sequences of the step in one pass.

mod transformer;

use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use self::transformer::{Shape, Transformer};
use crate::LabError;
use crate::fingerprint::Fingerprint;
use crate::gate::{Measure, Outputs, Tolerance};
use crate::lab::{ArmSpec, Experiment, Lab, LabContext, LabInfo, Measured};
use crate::record::{Goal, Workload};

/// What is learned, byte by byte.
const TEXT: &str = include_str!("../../../bench-client/assets/eighty-days.txt");

const SHAPE: Shape = Shape { vocab_size: 256, hidden_size: 64, num_layers: 2, num_heads: 4, context: SEQUENCE_BYTES };
const SEQUENCE_BYTES: usize = 16;
/// Sequences of a step of the optimizer.
const BATCH: usize = 32;
/// Steps of an iteration, each from the same first weights.
const NUM_STEPS: usize = 6;

/// The lab.
#[derive(Debug, Clone, Copy)]
pub struct TrainingLab;

struct TrainingExperiment {
    seed: u64,
    /// For each step `[BATCH, SEQUENCE_BYTES + 1]`: the last of each row is only a target.
    batches: Vec<Tensor>,
    fingerprint: String,
}

impl Lab for TrainingLab {
    fn info(&self) -> LabInfo {
        LabInfo {
            id: "ch01:training_goodput".into(),
            summary: "training f32: gradients accumulated sequence by sequence against one pass over the batch".into(),
            goal: Goal::Throughput,
            tags: vec!["training".into()],
            tolerance: Tolerance {
                measure: Measure::RelativeDifference,
                allowed: 1e-3,
                reason: "the loss after each step; gradients are summed in another order".into(),
            },
        }
    }

    fn prepare(&self, context: &LabContext) -> Result<Box<dyn Experiment>, LabError> {
        let mut rng = ChaCha8Rng::seed_from_u64(context.seed);
        let mut hash = Fingerprint::default();
        let text = TEXT.as_bytes();
        let batches = (0..NUM_STEPS).map(|_| -> Result<Tensor, LabError> {
            let starts = (0..BATCH).map(|_| rng.random_range(0..text.len() - SEQUENCE_BYTES));
            let bytes: Vec<u8> =
                starts.flat_map(|start| text[start..=start + SEQUENCE_BYTES].iter().copied()).collect();
            hash.add(&bytes);
            let ids: Vec<u32> = bytes.into_iter().map(u32::from).collect();
            Ok(Tensor::from_vec(ids, (BATCH, SEQUENCE_BYTES + 1), &Device::Cpu)?)
        });
        let batches = batches.collect::<Result<_, _>>()?;
        Ok(Box::new(TrainingExperiment { seed: context.seed, batches, fingerprint: hash.finish() }))
    }
}

impl Experiment for TrainingExperiment {
    fn workload(&self) -> Workload {
        let tokens = (NUM_STEPS * BATCH * SEQUENCE_BYTES) as u64;
        Workload {
            description: format!(
                "{NUM_STEPS} steps of AdamW, {BATCH} sequences of {SEQUENCE_BYTES} bytes of English each"
            ),
            fingerprint: self.fingerprint.clone(),
            tokens: Some(tokens),
            // Two for each weight forward, four backward.
            flops: Some(6 * tokens * SHAPE.num_matmul_weights() as u64),
            ..Workload::default()
        }
    }

    fn arms(&self) -> Vec<ArmSpec> {
        ["one_by_one", "fused"].map(ArmSpec::named).to_vec()
    }

    fn set_up(&mut self, _arm: usize) -> Result<(), LabError> {
        Ok(())
    }

    fn run(&mut self, arm: usize) -> Result<Measured, LabError> {
        let model = Transformer::new(SHAPE, self.seed)?;
        let params = ParamsAdamW { lr: 3e-3, ..ParamsAdamW::default() };
        let mut optimizer = AdamW::new(model.weights().to_vec(), params)?;
        let micro_batch = if arm == 0 { 1 } else { BATCH };
        let mut losses = Vec::with_capacity(NUM_STEPS);
        let started = Instant::now();
        for batch in &self.batches {
            let (loss, gradients) = gradients(&model, batch, micro_batch)?;
            optimizer.step(&gradients)?;
            losses.push(loss);
        }
        let duration = started.elapsed();
        let mut measured = Measured::new(duration, self.fingerprint.clone(), Outputs::Values(losses));
        let tokens = (NUM_STEPS * BATCH * SEQUENCE_BYTES) as f64;
        measured.metrics.insert("tokens_per_s".into(), tokens / duration.as_secs_f64());
        Ok(measured)
    }
}

/// Mean loss of a batch and its gradients, `micro_batch` sequences at a time.
fn gradients(model: &Transformer, batch: &Tensor, micro_batch: usize) -> Result<(f32, GradStore), LabError> {
    let num_micro_batches = BATCH / micro_batch;
    let mut loss_sum = 0.0;
    let mut total: Option<GradStore> = None;
    for at in 0..num_micro_batches {
        let rows = batch.narrow(0, at * micro_batch, micro_batch)?;
        let loss = (model.loss(&rows)? / num_micro_batches as f64)?;
        let gradients = loss.backward()?;
        loss_sum += loss.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        let Some(total) = total.as_mut() else {
            total = Some(gradients);
            continue;
        };
        for weight in model.weights() {
            if let (Some(sum), Some(new)) = (total.get(weight), gradients.get(weight)) {
                let sum = (sum + new)?;
                total.insert(weight, sum);
            }
        }
    }
    let total = total.ok_or_else(|| LabError::Input("a step of no sequences".into()))?;
    Ok((loss_sum, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loss_falls_and_both_arms_agree() {
        let mut experiment = TrainingLab.prepare(&LabContext::default()).unwrap();
        let losses = [0, 1].map(|arm| match experiment.run(arm).unwrap().outputs {
            Outputs::Values(losses) => losses,
            Outputs::Tokens(_) => Vec::new(),
        });
        let (first, last) = (losses[1][0], losses[1][NUM_STEPS - 1]);
        // Bytes drawn evenly would cost ln 256 = 5.5.
        assert!((5.0..6.5).contains(&first) && last < first - 0.5, "{losses:?}");
        for (a, b) in losses[0].iter().zip(&losses[1]) {
            assert!((a - b).abs() < 1e-3 * a, "{losses:?}");
        }
    }
}
