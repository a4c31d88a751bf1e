//! The scheduler against random loads: everyone is served, bounds hold, the cache is clean at the end.

use proptest::prelude::*;

use super::*;
use crate::kv_cache::{ContiguousManager, PagedManager};
use crate::prefix_cache::NoPrefixCache;
use crate::{Request, SamplingParams};

fn paged(total_tokens: usize) -> PagedManager {
    PagedManager::new(total_tokens, Box::new(NoPrefixCache))
}

fn policies(admission: impl AdmissionPolicy + 'static, prefill: impl PrefillPolicy + 'static) -> SchedulerPolicies {
    SchedulerPolicies { admission: Box::new(admission), prefill: Box::new(prefill) }
}

#[derive(Debug)]
struct Load {
    /// (prompt tokens, answer tokens, step at which it arrives)
    requests: Vec<(usize, usize, usize)>,
    config: SchedulerConfig,
}

/// Runs a load to its end with a model that answers anything; returns the steps at which requests ended.
fn simulate(load: &Load, policies: SchedulerPolicies, kv: &mut dyn KvCacheManager) -> Vec<usize> {
    let mut scheduler = Scheduler::new(load.config, policies);
    let mut ended = vec![0; load.requests.len()];
    let work: usize = load.requests.iter().map(|r| r.0 + r.1).sum();
    let last_arrival = load.requests.iter().map(|r| r.2).max().unwrap_or(0);
    for step in 0.. {
        assert!(step <= last_arrival + 20 * work + 20, "a sequence starves");
        for (at, &(prompt, answer, arrival)) in load.requests.iter().enumerate() {
            if arrival == step {
                let request = Request::new(vec![1; prompt], SamplingParams::greedy(answer));
                scheduler.add(Sequence::new(RequestId(at as u64), request, 0, 4096));
            }
        }
        let batch = scheduler.schedule(kv, Instant::now());
        assert_eq!(batch.sequences.is_empty(), scheduler.is_idle(), "an empty step with work to do");
        check_bounds(&batch, &scheduler, load.config);
        kv.check_integrity().expect("consistent");
        for scheduled in &batch.sequences {
            let sequence = &mut scheduler.running_mut()[scheduled.running_idx];
            assert_eq!(sequence.id, scheduled.id);
            sequence.num_computed_tokens += scheduled.num_new_tokens;
            if sequence.num_uncomputed_tokens() == 0 {
                sequence.push(7, Instant::now());
            }
        }
        let done = |s: &&Sequence| s.num_generated_tokens() == s.params.max_tokens;
        for id in scheduler.running().iter().filter(done).map(|s| s.id).collect::<Vec<_>>() {
            scheduler.remove(id, kv);
            ended[id.0 as usize] = step;
        }
        if scheduler.is_idle() && step >= last_arrival {
            break;
        }
    }
    assert_eq!(kv.usage().reserved_tokens, 0, "room is left reserved");
    ended
}

fn check_bounds(batch: &Batch, scheduler: &Scheduler, config: SchedulerConfig) {
    assert!(batch.sequences.len() <= config.max_num_seqs);
    let prefills = batch.sequences.iter().filter(|s| s.num_new_tokens > 1).count();
    assert!(batch.num_tokens <= config.max_num_batched_tokens + config.max_num_seqs || prefills <= 1);
    for scheduled in &batch.sequences {
        let sequence = &scheduler.running()[scheduled.running_idx];
        assert!(scheduled.num_new_tokens <= sequence.num_uncomputed_tokens());
    }
}

fn loads() -> impl Strategy<Value = Load> {
    let request = (1usize..200, 1usize..60, 0usize..100);
    (proptest::collection::vec(request, 1..25), 1usize..9, 8usize..300).prop_map(|(requests, seqs, tokens)| Load {
        requests,
        config: SchedulerConfig { max_num_seqs: seqs, max_num_batched_tokens: tokens },
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn everyone_is_served(load in loads(), total in 288usize..2000) {
        simulate(&load, policies(StaticBatching, WholePrompt), &mut ContiguousManager::new(total, 32));
        simulate(&load, policies(ContinuousBatching, WholePrompt), &mut ContiguousManager::new(total, 32));
        simulate(&load, policies(StaticBatching, WholePrompt), &mut paged(total));
        simulate(&load, policies(ContinuousBatching, WholePrompt), &mut paged(total));
        let chunked = ChunkedPrefill { chunk_tokens: 16 };
        simulate(&load, policies(StaticBatching, chunked), &mut ContiguousManager::new(total, 32));
        simulate(&load, policies(ContinuousBatching, chunked), &mut paged(total));
    }
}

#[test]
fn no_single_token_of_a_prompt_is_left_over() {
    for (len, budget_left) in (2..200).flat_map(|len| (3..40).map(move |budget| (len, budget))) {
        let policy = ChunkedPrefill { chunk_tokens: 16 };
        let mut left = len;
        while left > 0 {
            let state =
                PrefillState { num_uncomputed_tokens: left, budget_left, num_prefill_tokens: 0, num_decodes: left % 2 };
            let part = policy.num_new_tokens(state);
            assert!((2..=budget_left.min(left)).contains(&part), "{part} of {left} with room for {budget_left}");
            // Behind another prompt it waits instead.
            let behind = policy.num_new_tokens(PrefillState { num_prefill_tokens: 5, budget_left: 1, ..state });
            assert_eq!(behind, 0, "{left} left");
            left -= part;
        }
    }
}

#[test]
fn a_short_answer_need_not_wait_for_a_long_one() {
    let config = SchedulerConfig { max_num_seqs: 2, max_num_batched_tokens: 64 };
    let load = Load { requests: vec![(4, 100, 0), (4, 2, 0), (4, 2, 1)], config };
    let ended = simulate(&load, policies(StaticBatching, WholePrompt), &mut paged(1024));
    assert_eq!(ended, [99, 1, 101]);
    let ended = simulate(&load, policies(ContinuousBatching, WholePrompt), &mut paged(1024));
    assert_eq!(ended, [99, 1, 3]);
}

#[test]
fn a_full_cache_preempts_the_newest() {
    let config = SchedulerConfig { max_num_seqs: 4, max_num_batched_tokens: 64 };
    let mut kv = paged(64);
    let mut scheduler = Scheduler::new(config, policies(ContinuousBatching, WholePrompt));
    for id in 0..2 {
        let request = Request::new(vec![1; 30], SamplingParams::greedy(30));
        scheduler.add(Sequence::new(RequestId(id), request, 0, 4096));
    }
    for _ in 0..4 {
        let batch = scheduler.schedule(&mut kv, Instant::now());
        for scheduled in &batch.sequences {
            let sequence = &mut scheduler.running_mut()[scheduled.running_idx];
            sequence.num_computed_tokens += scheduled.num_new_tokens;
            sequence.push(7, Instant::now());
        }
    }
    assert_eq!(scheduler.counters().num_preemptions, 1);
    assert_eq!(scheduler.running().iter().map(|s| s.id.0).collect::<Vec<_>>(), [0]);
    assert_eq!(scheduler.num_waiting(), 1);
}

/// The same step that the engine takes after the model has run.
fn finish_step(scheduler: &mut Scheduler, batch: &Batch) {
    for scheduled in &batch.sequences {
        let sequence = &mut scheduler.running_mut()[scheduled.running_idx];
        sequence.num_computed_tokens += scheduled.num_new_tokens;
        if sequence.num_uncomputed_tokens() == 0 {
            sequence.push(7, Instant::now());
        }
    }
}

fn request(id: u64, prompt: usize, priority: i32) -> Sequence {
    let request = Request { priority, ..Request::new(vec![1; prompt], SamplingParams::greedy(100)) };
    Sequence::new(RequestId(id), request, 0, 4096)
}

#[test]
fn a_long_prompt_runs_in_parts_beside_answers_and_whole_without_them() {
    let config = SchedulerConfig { max_num_seqs: 4, max_num_batched_tokens: 256 };
    let mut kv = paged(4096);
    let mut scheduler = Scheduler::new(config, policies(ContinuousBatching, ChunkedPrefill { chunk_tokens: 32 }));
    scheduler.add(request(0, 200, 0));
    let mut sizes = Vec::new();
    for step in 0..5 {
        if step == 1 {
            scheduler.add(request(1, 100, 0));
        }
        let batch = scheduler.schedule(&mut kv, Instant::now());
        sizes.push(batch.sequences.iter().map(|s| s.num_new_tokens).collect::<Vec<_>>());
        finish_step(&mut scheduler, &batch);
    }
    assert_eq!(sizes, [vec![200], vec![1, 32], vec![1, 32], vec![1, 32], vec![1, 4]]);
    assert_eq!(scheduler.counters().num_chunks, 3);
}

#[test]
fn priority_decides_who_joins_first_and_who_gives_way() {
    let config = SchedulerConfig { max_num_seqs: 2, max_num_batched_tokens: 256 };
    let mut kv = paged(64);
    let mut scheduler = Scheduler::new(config, policies(ContinuousBatching, WholePrompt));
    for (id, priority) in [(0, 5), (1, 0), (2, 1)] {
        scheduler.add(request(id, 30, priority));
    }
    let ids = |scheduler: &Scheduler| scheduler.running().iter().map(|s| s.id.0).collect::<Vec<_>>();
    for _ in 0..3 {
        let batch = scheduler.schedule(&mut kv, Instant::now());
        finish_step(&mut scheduler, &batch);
    }
    // Both fill 4 blocks with 32 tokens each; the 33rd token of the first takes the room of the second.
    assert_eq!(ids(&scheduler), [1, 2]);
    let batch = scheduler.schedule(&mut kv, Instant::now());
    finish_step(&mut scheduler, &batch);
    assert_eq!(ids(&scheduler), [1]);
    assert_eq!(scheduler.counters().num_preemptions, 1);
}
