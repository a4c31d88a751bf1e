//! Who owns which part of the KV cache. Pure bookkeeping over token slots: the runner owns the memory itself.

mod block_pool;
mod contiguous;
mod paged;
#[cfg(test)]
mod tests;

pub use contiguous::ContiguousManager;
pub use paged::PagedManager;

use std::sync::Arc;

use crate::{RequestId, TokenId};

/// Tokens in a block of the paged cache.
pub const BLOCK_SIZE: usize = 16;

/// A block of [`BLOCK_SIZE`] token slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Where the tokens of one sequence lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvPlacement {
    /// In consecutive slots from `start_slot`.
    Contiguous {
        /// Slot of position 0.
        start_slot: usize,
    },
    /// Position `p` lies in block `p / BLOCK_SIZE` of the table.
    Paged {
        /// Blocks in the order of positions.
        block_table: Vec<BlockId>,
    },
}

/// How full the cache is, in token slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvUsage {
    /// Slots there are.
    pub total_tokens: usize,
    /// Slots that belong to a sequence, filled or not.
    pub reserved_tokens: usize,
    /// Most slots ever reserved at once.
    pub peak_reserved_tokens: usize,
}

impl KvUsage {
    /// Share in use, 0 to 1.
    pub fn share(&self) -> f64 {
        self.reserved_tokens as f64 / self.total_tokens.max(1) as f64
    }
}

/// A block whose content the runner must copy before the next step writes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// The block that has it.
    pub from: BlockId,
    /// The block that gets it.
    pub to: BlockId,
}

/// Computed tokens that several sequences have in common. The defaults share nothing.
pub trait BlockSharing {
    /// Gives a new sequence the blocks of the longest known beginning of its tokens, and returns how many tokens that
    /// is: at most all but the last two. [`KvCacheManager::release`] takes them back.
    fn attach_prefix(&mut self, _id: RequestId, _tokens: &[TokenId], _salt: Option<&Arc<str>>) -> usize {
        0
    }

    /// Says that the keys and values of these first tokens of a sequence are computed.
    fn commit(&mut self, _id: RequestId, _tokens: &[TokenId]) {}

    /// Gives `child` the first `num_tokens` of `parent`; the side that writes first copies the last block. Returns
    /// whether it did.
    fn fork(&mut self, _parent: RequestId, _child: RequestId, _num_tokens: usize) -> bool {
        false
    }

    /// Copies that are due, in order.
    fn take_copies(&mut self) -> Vec<BlockCopy> {
        Vec::new()
    }

    /// Forgets every known beginning. Returns false, and forgets nothing, while sequences hold blocks.
    fn reset_prefix_cache(&mut self) -> bool {
        true
    }
}

/// Hands out token slots.
pub trait KvCacheManager: BlockSharing + Send {
    /// Makes room for the first `num_tokens` positions of a sequence that may grow to `max_tokens`. Returns false, and
    /// changes nothing, when the cache is too full. Asking for room that is there already costs nothing.
    fn reserve(&mut self, id: RequestId, num_tokens: usize, max_tokens: usize) -> bool;

    /// Takes back everything a sequence holds; unknown ids hold nothing.
    fn release(&mut self, id: RequestId);

    /// Where a sequence lies, if it holds anything.
    fn placement(&self, id: RequestId) -> Option<&KvPlacement>;

    /// How full the cache is.
    fn usage(&self) -> KvUsage;

    /// Checks that every slot is either free or owned once.
    ///
    /// Errors: what is inconsistent.
    fn check_integrity(&self) -> Result<(), String>;
}
