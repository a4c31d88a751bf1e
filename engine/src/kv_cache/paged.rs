//! Optimized: a sequence takes blocks one by one as it grows, wherever they are free. Source: arXiv 2309.06180.

use std::collections::HashMap;

use super::{BLOCK_SIZE, BlockId, KvCacheManager, KvPlacement, KvUsage};
use crate::RequestId;

/// Blocks of [`BLOCK_SIZE`] slots.
#[derive(Debug)]
pub struct PagedManager {
    usage: KvUsage,
    tables: HashMap<RequestId, KvPlacement>,
    free: Vec<BlockId>,
}

impl PagedManager {
    /// Over `total_tokens` slots, rounded down to whole blocks.
    pub fn new(total_tokens: usize) -> Self {
        let num_blocks = u32::try_from(total_tokens / BLOCK_SIZE).unwrap_or(u32::MAX);
        let usage = KvUsage { total_tokens: num_blocks as usize * BLOCK_SIZE, ..KvUsage::default() };
        Self { usage, tables: HashMap::new(), free: (0..num_blocks).rev().map(BlockId).collect() }
    }
}

impl KvCacheManager for PagedManager {
    fn reserve(&mut self, id: RequestId, num_tokens: usize, _max_tokens: usize) -> bool {
        let held = match self.tables.get(&id) {
            Some(KvPlacement::Paged { block_table }) => block_table.len(),
            _ => 0,
        };
        let missing = num_tokens.div_ceil(BLOCK_SIZE).saturating_sub(held);
        if missing > self.free.len() {
            return false;
        }
        let new_table = || KvPlacement::Paged { block_table: Vec::new() };
        if let KvPlacement::Paged { block_table } = self.tables.entry(id).or_insert_with(new_table) {
            block_table.extend(self.free.drain(self.free.len() - missing..).rev());
        }
        self.usage.reserved_tokens += missing * BLOCK_SIZE;
        self.usage.peak_reserved_tokens = self.usage.peak_reserved_tokens.max(self.usage.reserved_tokens);
        true
    }

    fn release(&mut self, id: RequestId) {
        if let Some(KvPlacement::Paged { block_table }) = self.tables.remove(&id) {
            self.usage.reserved_tokens -= block_table.len() * BLOCK_SIZE;
            self.free.extend(block_table.into_iter().rev());
        }
    }

    fn placement(&self, id: RequestId) -> Option<&KvPlacement> {
        self.tables.get(&id)
    }

    fn usage(&self) -> KvUsage {
        self.usage
    }

    fn check_integrity(&self) -> Result<(), String> {
        let mut owners = vec![0u32; self.usage.total_tokens / BLOCK_SIZE];
        let tables = self.tables.values().filter_map(|placement| match placement {
            KvPlacement::Paged { block_table } => Some(block_table),
            KvPlacement::Contiguous { .. } => None,
        });
        for block in tables.flatten().chain(&self.free) {
            owners[block.0 as usize] += 1;
        }
        match owners.iter().position(|&count| count != 1) {
            Some(block) => Err(format!("block {block} has {} owners", owners[block])),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
impl PagedManager {
    /// The fault that the integrity check exists for: blocks freed while still in a table.
    pub(super) fn free_again(&mut self, id: RequestId) {
        if let Some(KvPlacement::Paged { block_table }) = self.tables.get(&id) {
            self.free.extend(block_table.iter().copied());
        }
    }
}
