//! What deciding costs: one step's schedule, block accounting and step input, without a model.
//!
//! `cargo bench -p aisp-engine --bench scheduler`

use std::hint::black_box;
use std::time::Instant;

use aisp_engine::kv_cache::{BlockSharing, KvCacheManager, PagedManager};
use aisp_engine::prefix_cache::BlockChain;
use aisp_engine::runner::StepInput;
use aisp_engine::scheduler::{ChunkedPrefill, ContinuousBatching, Scheduler, SchedulerConfig, SchedulerPolicies};
use aisp_engine::{Request, RequestId, SamplingParams, Sequence};
use criterion::{Criterion, criterion_group, criterion_main};

/// Tokens of each sequence when the clock starts.
const CONTEXT: usize = 200;

/// Every switch of the bookkeeping on, `num_seqs` sequences generating.
struct Bookkeeping {
    scheduler: Scheduler,
    kv: PagedManager,
}

impl Bookkeeping {
    fn new(num_seqs: usize) -> Self {
        let config = SchedulerConfig { max_num_seqs: num_seqs, max_num_batched_tokens: num_seqs * CONTEXT };
        let policies = SchedulerPolicies {
            admission: Box::new(ContinuousBatching),
            prefill: Box::new(ChunkedPrefill { chunk_tokens: 64 }),
        };
        let mut all = Self {
            scheduler: Scheduler::new(config, policies),
            kv: PagedManager::new(num_seqs * 4 * CONTEXT, Box::new(BlockChain::default())),
        };
        for id in 0..num_seqs {
            let prompt = (0..CONTEXT).map(|at| (id * 1000 + at) as u32).collect();
            let request = Request::new(prompt, SamplingParams::greedy(1 << 20));
            all.scheduler.add(Sequence::new(RequestId(id as u64), request, 0, 1 << 20));
        }
        all.step();
        all
    }

    /// All that the engine does in a step but for the model and the sampler.
    fn step(&mut self) {
        let now = Instant::now();
        let batch = self.scheduler.schedule(&mut self.kv, now);
        let input = StepInput::prepare(&batch, self.scheduler.running(), &mut self.kv, false);
        black_box(&input);
        for scheduled in &batch.sequences {
            let sequence = &mut self.scheduler.running_mut()[scheduled.running_idx];
            sequence.num_computed_tokens += scheduled.num_new_tokens;
            self.kv.commit(sequence.id, &sequence.tokens[..sequence.num_computed_tokens]);
            sequence.push(7, now);
        }
    }

    /// Sequences may grow to three times their first length; then they begin anew.
    fn is_full(&self) -> bool {
        self.kv.usage().share() > 0.9
    }
}

fn bench(c: &mut Criterion) {
    for num_seqs in [1, 32, 256] {
        let mut all = Bookkeeping::new(num_seqs);
        c.bench_function(&format!("step_{num_seqs}_sequences"), |b| {
            b.iter_custom(|count| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..count {
                    if all.is_full() {
                        all = Bookkeeping::new(num_seqs);
                    }
                    let started = Instant::now();
                    all.step();
                    spent += started.elapsed();
                }
                spent
            });
        });
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
