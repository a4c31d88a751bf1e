//! A decode step on the CPU path takes its memory from workspaces: once they have their size, the model allocates
//! nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::alloc::System;
use std::sync::{Arc, Mutex};

use aisp_engine::runner::{Logits, ModelRunner, StepInput};
use aisp_engine::{Engagement, Engine, EngineError, Request, SamplingParams, Selection};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Counts the allocations of each step of the runner within.
struct Counter {
    inner: Box<dyn ModelRunner>,
    counts: Arc<Mutex<Vec<usize>>>,
}

impl ModelRunner for Counter {
    fn execute(
        &mut self,
        input: &StepInput,
        logits: &mut Logits,
        engagement: &mut Engagement,
    ) -> Result<(), EngineError> {
        let region = Region::new(ALLOCATOR);
        self.inner.execute(input, logits, engagement)?;
        let change = region.change();
        self.counts.lock().unwrap().push(change.allocations + change.reallocations);
        Ok(())
    }
}

fn allocations_by_step(selection: &str) -> Vec<usize> {
    let counts = Arc::new(Mutex::new(Vec::new()));
    let selection: Selection = selection.parse().unwrap();
    let mut engine = Engine::builder()
        .optimizations(selection)
        .threads(Some(2))
        .build_around(|inner| Box::new(Counter { inner, counts: counts.clone() }))
        .unwrap();
    for prompt in 1..5 {
        let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy(40) };
        engine.add_request(Request::new(vec![1; 10 * prompt], params)).unwrap();
    }
    while engine.has_unfinished() {
        engine.step().unwrap();
    }
    drop(engine);
    Arc::try_unwrap(counts).unwrap().into_inner().unwrap()
}

#[test]
fn a_steady_decode_step_allocates_nothing() {
    let counts = allocations_by_step("all");
    assert!(counts.len() > 39);
    assert!(counts[0] > 0, "the first step sizes the workspaces");
    // Contexts grow by a block now and then, and the tables with them.
    let steady = &counts[5..];
    let num_allocating = steady.iter().filter(|&&count| count > 0).count();
    assert!(num_allocating <= 2, "steps allocate: {counts:?}");
    // The gate can fail: candle's ops allocate in every step.
    assert!(allocations_by_step("none")[5..].iter().all(|&count| count > 100));
}
