//! Optimized: a sequence takes blocks one by one as it grows, wherever they are free. Source: arXiv 2309.06180.
//!
//! Blocks count their owners: sequences with the same beginning share its blocks, and a fork shares all of them until
//! one side writes. Free blocks keep what they hold until they are needed, the longest unused first.

use std::collections::HashMap;
use std::sync::Arc;

use super::block_pool::BlockPool;
use super::{BLOCK_SIZE, BlockCopy, BlockId, BlockSharing, KvCacheManager, KvPlacement, KvUsage};
use crate::prefix_cache::{ChainNode, PrefixCache};
use crate::{RequestId, TokenId};

/// Blocks of [`BLOCK_SIZE`] slots.
pub struct PagedManager {
    pool: BlockPool,
    prefix: Box<dyn PrefixCache>,
    tables: HashMap<RequestId, Table>,
    copies: Vec<BlockCopy>,
    usage: KvUsage,
}

/// What one sequence holds.
#[derive(Debug)]
struct Table {
    placement: KvPlacement,
    /// Blocks that the prefix cache knows.
    num_registered: usize,
    /// The node after those.
    chain: ChainNode,
    /// A block that is partly filled and that a fork has as well: whoever writes to it first takes a copy.
    shared_tail: Option<usize>,
}

impl Table {
    fn new(salt: Option<Arc<str>>) -> Self {
        Self {
            placement: KvPlacement::Paged { block_table: Vec::new() },
            num_registered: 0,
            chain: ChainNode::Root { salt },
            shared_tail: None,
        }
    }

    fn blocks(&self) -> &[BlockId] {
        match &self.placement {
            KvPlacement::Paged { block_table } => block_table,
            KvPlacement::Contiguous { .. } => &[],
        }
    }

    fn blocks_mut(&mut self) -> Option<&mut Vec<BlockId>> {
        match &mut self.placement {
            KvPlacement::Paged { block_table } => Some(block_table),
            KvPlacement::Contiguous { .. } => None,
        }
    }
}

impl PagedManager {
    /// Over `total_tokens` slots, rounded down to whole blocks.
    pub fn new(total_tokens: usize, prefix: Box<dyn PrefixCache>) -> Self {
        let num_blocks = u32::try_from(total_tokens / BLOCK_SIZE).unwrap_or(u32::MAX);
        Self {
            pool: BlockPool::new(num_blocks),
            prefix,
            tables: HashMap::new(),
            copies: Vec::new(),
            usage: KvUsage { total_tokens: num_blocks as usize * BLOCK_SIZE, ..KvUsage::default() },
        }
    }

    fn allocate(&mut self) -> Option<BlockId> {
        let block = self.pool.allocate()?;
        self.prefix.forget(block);
        Some(block)
    }

    fn count_usage(&mut self) {
        self.usage.reserved_tokens = (self.pool.num_blocks() - self.pool.num_free()) * BLOCK_SIZE;
        self.usage.peak_reserved_tokens = self.usage.peak_reserved_tokens.max(self.usage.reserved_tokens);
    }
}

impl KvCacheManager for PagedManager {
    fn reserve(&mut self, id: RequestId, num_tokens: usize, _max_tokens: usize) -> bool {
        let (held, tail) = self.tables.get(&id).map_or((0, None), |t| (t.blocks().len(), t.shared_tail));
        let tail = tail.filter(|_| num_tokens > 0);
        let must_copy = tail.is_some_and(|at| self.pool.ref_count(self.tables[&id].blocks()[at]) > 1);
        let missing = num_tokens.div_ceil(BLOCK_SIZE).saturating_sub(held);
        if missing + usize::from(must_copy) > self.pool.num_free() {
            return false;
        }
        let new: Vec<BlockId> = (0..missing).filter_map(|_| self.allocate()).collect();
        let copy = if must_copy { self.allocate() } else { None };
        let table = self.tables.entry(id).or_insert_with(|| Table::new(None));
        table.shared_tail = None;
        if let Some(blocks) = table.blocks_mut() {
            if let (Some(at), Some(to)) = (tail, copy) {
                let from = std::mem::replace(&mut blocks[at], to);
                self.copies.push(BlockCopy { from, to });
                self.pool.release(from, false);
            }
            blocks.extend(new);
        }
        self.count_usage();
        true
    }

    fn release(&mut self, id: RequestId) {
        let Some(table) = self.tables.remove(&id) else { return };
        // The end of a prompt is used again before its beginning, which more prompts have.
        for &block in table.blocks().iter().rev() {
            self.pool.release(block, self.prefix.holds(block));
        }
        self.count_usage();
    }

    fn placement(&self, id: RequestId) -> Option<&KvPlacement> {
        self.tables.get(&id).map(|table| &table.placement)
    }

    fn usage(&self) -> KvUsage {
        self.usage
    }

    fn check_integrity(&self) -> Result<(), String> {
        let mut owners = vec![0u32; self.pool.num_blocks()];
        for block in self.tables.values().flat_map(Table::blocks) {
            owners[block.0 as usize] += 1;
        }
        let mut free = vec![false; owners.len()];
        for block in self.pool.free_blocks() {
            if std::mem::replace(&mut free[block.0 as usize], true) {
                return Err(format!("block {} is free twice", block.0));
            }
        }
        for (at, (&owners, &free)) in owners.iter().zip(&free).enumerate() {
            let counted = self.pool.ref_count(BlockId(at as u32));
            if owners != counted || free != (owners == 0) {
                return Err(format!("block {at} has {owners} owners, counts {counted}, free: {free}"));
            }
        }
        Ok(())
    }
}

impl BlockSharing for PagedManager {
    fn attach_prefix(&mut self, id: RequestId, tokens: &[TokenId], salt: Option<&Arc<str>>) -> usize {
        if !self.prefix.is_enabled() || self.tables.contains_key(&id) {
            return 0;
        }
        let mut table = Table::new(salt.cloned());
        // The last token is always computed: its logits are wanted. So is the one before: no part of a prompt is a single token,
        // see ChunkedPrefill.
        let num_full_blocks = tokens.len().saturating_sub(2) / BLOCK_SIZE;
        let mut blocks = Vec::new();
        for tokens in tokens.chunks_exact(BLOCK_SIZE).take(num_full_blocks) {
            let Some((block, node)) = self.prefix.find(&table.chain, tokens) else { break };
            self.pool.share(block);
            blocks.push(block);
            table.chain = node;
        }
        let num_blocks = blocks.len();
        table.num_registered = num_blocks;
        table.placement = KvPlacement::Paged { block_table: blocks };
        self.tables.insert(id, table);
        self.count_usage();
        num_blocks * BLOCK_SIZE
    }

    fn commit(&mut self, id: RequestId, tokens: &[TokenId]) {
        if !self.prefix.is_enabled() {
            return;
        }
        let Some(table) = self.tables.get_mut(&id) else { return };
        let num_full = tokens.len() / BLOCK_SIZE;
        for at in table.num_registered..num_full {
            let Some(&block) = table.blocks().get(at) else { break };
            let tokens = &tokens[at * BLOCK_SIZE..(at + 1) * BLOCK_SIZE];
            table.chain = self.prefix.insert(&table.chain, tokens, block);
            table.num_registered = at + 1;
        }
    }

    fn fork(&mut self, parent: RequestId, child: RequestId, num_tokens: usize) -> bool {
        let Some(from) = self.tables.get_mut(&parent) else { return false };
        let num_blocks = num_tokens.div_ceil(BLOCK_SIZE);
        let blocks: Vec<BlockId> = from.blocks().iter().take(num_blocks).copied().collect();
        if blocks.len() < num_blocks {
            return false;
        }
        let shared_tail = (!num_tokens.is_multiple_of(BLOCK_SIZE)).then(|| num_blocks - 1);
        from.shared_tail = shared_tail;
        let table = Table {
            num_registered: from.num_registered.min(num_blocks),
            chain: from.chain.clone(),
            shared_tail,
            placement: KvPlacement::Paged { block_table: Vec::new() },
        };
        for &block in &blocks {
            self.pool.share(block);
        }
        self.tables.insert(child, Table { placement: KvPlacement::Paged { block_table: blocks }, ..table });
        true
    }

    fn take_copies(&mut self) -> Vec<BlockCopy> {
        std::mem::take(&mut self.copies)
    }

    fn reset_prefix_cache(&mut self) -> bool {
        if self.pool.num_free() < self.pool.num_blocks() {
            return false;
        }
        (0..self.pool.num_blocks() as u32).for_each(|block| self.prefix.forget(BlockId(block)));
        true
    }
}

#[cfg(test)]
impl PagedManager {
    /// The fault that the integrity check exists for: a block loses an owner that still has it in its table.
    pub(super) fn release_while_held(&mut self, id: RequestId) {
        if let Some(&block) = self.tables.get(&id).and_then(|table| table.blocks().first()) {
            self.pool.release(block, false);
        }
    }
}
