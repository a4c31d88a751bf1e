//! Random histories against a plain model of who holds how much.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const TOTAL: usize = 1024;

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
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_slot_is_lost_or_shared(ops in proptest::collection::vec(op(), 1..120)) {
        replay(&mut ContiguousManager::new(TOTAL, 32), &ops);
        replay(&mut PagedManager::new(TOTAL), &ops);
    }
}

#[test]
fn paging_holds_more_sequences_than_reservations_for_the_worst_case() {
    let count =
        |manager: &mut dyn KvCacheManager| (0..).take_while(|&id| manager.reserve(RequestId(id), 20, 256)).count();
    assert_eq!(count(&mut ContiguousManager::new(TOTAL, 32)), 4);
    assert_eq!(count(&mut PagedManager::new(TOTAL)), 32);
}

#[test]
fn a_block_with_two_owners_is_seen() {
    let mut manager = PagedManager::new(64);
    assert!(manager.reserve(RequestId(1), 16, 16));
    manager.release(RequestId(1));
    manager.check_integrity().expect("consistent");
    let mut broken = PagedManager::new(64);
    broken.reserve(RequestId(1), 16, 16);
    broken.free_again(RequestId(1));
    assert!(broken.check_integrity().is_err());
}
