//! Baseline: each sequence reserves one run of slots for all it may become, first fit. Room is lost twice, to answers
//! shorter than allowed and to gaps between runs; paging is the cure for both.

use std::collections::HashMap;

use super::{BlockSharing, KvCacheManager, KvPlacement, KvUsage};
use crate::RequestId;

/// One consecutive run of slots a sequence.
#[derive(Debug)]
pub struct ContiguousManager {
    usage: KvUsage,
    tile: usize,
    runs: HashMap<RequestId, Run>,
    /// Gaps between runs, by start, never adjacent to one another.
    free: Vec<(usize, usize)>,
}

#[derive(Debug)]
struct Run {
    placement: KvPlacement,
    start: usize,
    len: usize,
}

impl ContiguousManager {
    /// Over `total_tokens` slots, rounded down to whole tiles; runs are whole tiles of `tile` slots, because attention
    /// reads whole tiles.
    pub fn new(total_tokens: usize, tile: usize) -> Self {
        let total_tokens = total_tokens / tile * tile;
        let usage = KvUsage { total_tokens, ..KvUsage::default() };
        Self { usage, tile, runs: HashMap::new(), free: vec![(0, total_tokens)] }
    }

    fn free_run(&mut self, start: usize, len: usize) {
        let at = self.free.partition_point(|&(s, _)| s < start);
        self.free.insert(at, (start, len));
        if at + 1 < self.free.len() && start + len == self.free[at + 1].0 {
            self.free[at].1 += self.free.remove(at + 1).1;
        }
        if at > 0 && self.free[at - 1].0 + self.free[at - 1].1 == start {
            self.free[at - 1].1 += self.free.remove(at).1;
        }
    }
}

impl BlockSharing for ContiguousManager {}

impl KvCacheManager for ContiguousManager {
    fn reserve(&mut self, id: RequestId, num_tokens: usize, max_tokens: usize) -> bool {
        if let Some(run) = self.runs.get(&id) {
            return num_tokens <= run.len;
        }
        let len = max_tokens.max(num_tokens).next_multiple_of(self.tile);
        let Some(at) = self.free.iter().position(|&(_, free)| free >= len) else { return false };
        let start = self.free[at].0;
        self.free[at] = (start + len, self.free[at].1 - len);
        self.free.retain(|&(_, len)| len > 0);
        self.runs.insert(id, Run { placement: KvPlacement::Contiguous { start_slot: start }, start, len });
        self.usage.reserved_tokens += len;
        self.usage.peak_reserved_tokens = self.usage.peak_reserved_tokens.max(self.usage.reserved_tokens);
        true
    }

    fn release(&mut self, id: RequestId) {
        if let Some(run) = self.runs.remove(&id) {
            self.usage.reserved_tokens -= run.len;
            self.free_run(run.start, run.len);
        }
    }

    fn placement(&self, id: RequestId) -> Option<&KvPlacement> {
        self.runs.get(&id).map(|run| &run.placement)
    }

    fn usage(&self) -> KvUsage {
        self.usage
    }

    fn check_integrity(&self) -> Result<(), String> {
        let mut spans: Vec<_> = self.runs.values().map(|run| (run.start, run.len)).chain(self.free.clone()).collect();
        spans.sort_unstable();
        let mut end = 0;
        for (start, len) in spans {
            if start != end {
                return Err(format!("slots {end} to {start} are lost or owned twice"));
            }
            end = start + len;
        }
        if end != self.usage.total_tokens {
            return Err(format!("the last span ends at {end} of {}", self.usage.total_tokens));
        }
        Ok(())
    }
}
