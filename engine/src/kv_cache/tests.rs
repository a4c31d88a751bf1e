//! Random histories against a plain model of who holds how much.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::prefix_cache::{BlockChain, NoPrefixCache};

const TOTAL: usize = 1024;

/// Histories of each kind: 300, or `AISP_KV_HISTORIES`.
fn cases() -> u32 {
    std::env::var("AISP_KV_HISTORIES").map_or(300, |count| count.parse().expect("a number"))
}

#[derive(Debug, Clone)]
enum Op {
    Reserve { id: u64, num_tokens: usize, max_tokens: usize },
    Release { id: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0u64..12, 1usize..300, 0usize..200)
            .prop_map(|(id, num_tokens, more)| Op::Reserve { id, num_tokens, max_tokens: num_tokens + more }),
        1 => (0u64..12).prop_map(|id| Op::Release { id }),
    ]
}

/// Every slot that a placement gives to the first `len` positions.
fn slots(placement: &KvPlacement, len: usize) -> Vec<usize> {
    (0..len)
        .map(|at| match placement {
            KvPlacement::Contiguous { start_slot } => start_slot + at,
            KvPlacement::Paged { block_table } => {
                block_table[at / BLOCK_SIZE].0 as usize * BLOCK_SIZE + at % BLOCK_SIZE
            }
        })
        .collect()
}

fn replay(manager: &mut dyn KvCacheManager, ops: &[Op]) {
    let mut held: HashMap<u64, usize> = HashMap::new();
    for op in ops {
        match *op {
            Op::Reserve { id, num_tokens, max_tokens } => {
                let before = manager.usage();
                if manager.reserve(RequestId(id), num_tokens, max_tokens) {
                    let len = held.entry(id).or_default();
                    *len = num_tokens.max(*len);
                } else {
                    assert_eq!(manager.usage().reserved_tokens, before.reserved_tokens, "a refusal changed something");
                }
            }
            Op::Release { id } => {
                manager.release(RequestId(id));
                held.remove(&id);
            }
        }
        manager.check_integrity().expect("consistent");
        let mut all: Vec<usize> = Vec::new();
        for (id, len) in &held {
            all.extend(slots(manager.placement(RequestId(*id)).expect("held"), *len));
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "a slot has two owners");
        assert!(all.last().is_none_or(|&slot| slot < TOTAL));
        assert!(manager.usage().reserved_tokens >= count);
    }
    for id in 0..12 {
        manager.release(RequestId(id));
    }
    assert_eq!(manager.usage().reserved_tokens, 0);
    assert!(manager.reserve(RequestId(99), TOTAL, TOTAL), "an empty cache holds one request of full size");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn no_slot_is_lost_or_shared(ops in proptest::collection::vec(op(), 1..120)) {
        replay(&mut ContiguousManager::new(TOTAL, 32), &ops);
        replay(&mut PagedManager::new(TOTAL, Box::new(NoPrefixCache)), &ops);
    }
}

#[test]
fn paging_holds_more_sequences_than_reservations_for_the_worst_case() {
    let count =
        |manager: &mut dyn KvCacheManager| (0..).take_while(|&id| manager.reserve(RequestId(id), 20, 256)).count();
    assert_eq!(count(&mut ContiguousManager::new(TOTAL, 32)), 4);
    assert_eq!(count(&mut PagedManager::new(TOTAL, Box::new(NoPrefixCache))), 32);
}

#[test]
fn a_block_that_lost_an_owner_is_seen() {
    let mut manager = PagedManager::new(64, Box::new(NoPrefixCache));
    assert!(manager.reserve(RequestId(1), 16, 16));
    manager.check_integrity().expect("consistent");
    manager.release_while_held(RequestId(1));
    assert!(manager.check_integrity().is_err());
}

/// What a sharing history does; tokens are drawn from few values, so that beginnings repeat.
#[derive(Debug, Clone)]
enum SharingOp {
    Start { id: u64, family: u32, len: usize, salted: bool },
    Grow { id: u64, by: usize },
    Fork { parent: u64, child: u64 },
    Release { id: u64 },
}

fn sharing_op() -> impl Strategy<Value = SharingOp> {
    prop_oneof![
        3 => (0u64..8, 0u32..3, 1usize..200, any::<bool>())
            .prop_map(|(id, family, len, salted)| SharingOp::Start { id, family, len, salted }),
        4 => (0u64..8, 1usize..40).prop_map(|(id, by)| SharingOp::Grow { id, by }),
        2 => (0u64..8, 8u64..12).prop_map(|(parent, child)| SharingOp::Fork { parent, child }),
        2 => (0u64..12).prop_map(|id| SharingOp::Release { id }),
    ]
}

/// A memory that records, for each slot, the salt and all tokens up to it: what a model's keys and values depend on.
#[derive(Default)]
struct Memory {
    slots: HashMap<usize, (Option<Arc<str>>, Vec<TokenId>)>,
}

impl Memory {
    fn copy(&mut self, copies: Vec<BlockCopy>) {
        for copy in copies {
            for at in 0..BLOCK_SIZE {
                let from = self.slots.get(&(copy.from.0 as usize * BLOCK_SIZE + at)).cloned();
                from.map(|content| self.slots.insert(copy.to.0 as usize * BLOCK_SIZE + at, content));
            }
        }
    }
}

type Held = (Vec<TokenId>, Option<Arc<str>>);

/// Writes what a step would write and checks that everyone reads what they should.
fn compute(manager: &mut PagedManager, memory: &mut Memory, held: &HashMap<u64, Held>, id: u64, from: usize) {
    memory.copy(manager.take_copies());
    let (tokens, salt) = &held[&id];
    let place = slots(manager.placement(RequestId(id)).expect("held"), tokens.len());
    for at in from..tokens.len() {
        memory.slots.insert(place[at], (salt.clone(), tokens[..=at].to_vec()));
    }
    manager.commit(RequestId(id), tokens);
    for (id, (tokens, salt)) in held {
        let place = slots(manager.placement(RequestId(*id)).expect("held"), tokens.len());
        for at in 0..tokens.len() {
            let expected = (salt.clone(), tokens[..=at].to_vec());
            assert_eq!(memory.slots.get(&place[at]), Some(&expected), "sequence {id} reads what is not its own");
        }
    }
}

fn replay_sharing(ops: &[SharingOp]) -> usize {
    let mut manager = PagedManager::new(512, Box::new(BlockChain::default()));
    let mut memory = Memory::default();
    let mut held: HashMap<u64, Held> = HashMap::new();
    let mut num_hit_tokens = 0;
    for op in ops {
        match *op {
            SharingOp::Start { id, family, len, salted } if !held.contains_key(&id) => {
                let tokens: Vec<TokenId> = (0..len as u32).map(|at| at / 40 * family).collect();
                let salt = salted.then(|| Arc::from("salt"));
                let hit = manager.attach_prefix(RequestId(id), &tokens, salt.as_ref());
                assert!(hit == 0 || hit + 2 <= len, "a hit of {hit} leaves a single token of {len}");
                if manager.reserve(RequestId(id), len, len) {
                    num_hit_tokens += hit;
                    held.insert(id, (tokens, salt));
                    compute(&mut manager, &mut memory, &held, id, hit);
                } else {
                    manager.release(RequestId(id));
                }
            }
            SharingOp::Grow { id, by } if held.contains_key(&id) => {
                let len = held[&id].0.len();
                if manager.reserve(RequestId(id), len + by, len + by) {
                    held.get_mut(&id).expect("held").0.extend((0..by as u32).map(|at| at + id as u32));
                    compute(&mut manager, &mut memory, &held, id, len);
                }
            }
            SharingOp::Fork { parent, child } if held.contains_key(&parent) && !held.contains_key(&child) => {
                assert!(manager.fork(RequestId(parent), RequestId(child), held[&parent].0.len()));
                held.insert(child, held[&parent].clone());
            }
            SharingOp::Release { id } => {
                manager.release(RequestId(id));
                held.remove(&id);
            }
            _ => {}
        }
        manager.check_integrity().expect("consistent");
    }
    for id in held.into_keys() {
        manager.release(RequestId(id));
    }
    assert_eq!(manager.usage().reserved_tokens, 0);
    assert!(manager.reset_prefix_cache());
    assert_eq!(manager.attach_prefix(RequestId(99), &[0; 64], None), 0, "a reset cache knows nothing");
    num_hit_tokens
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn sharing_never_mixes_sequences_up(ops in proptest::collection::vec(sharing_op(), 1..100)) {
        replay_sharing(&ops);
    }
}

#[test]
fn a_known_beginning_is_found_even_after_its_sequence_has_ended() {
    let start = |id| SharingOp::Start { id, family: 1, len: 100, salted: false };
    assert_eq!(replay_sharing(&[start(0), SharingOp::Release { id: 0 }, start(1)]), 96);
    assert_eq!(replay_sharing(&[start(0), start(1), start(2)]), 192);
}
