//! Who owns which part of the KV cache. Pure bookkeeping over token slots: the runner owns the memory itself.

mod contiguous;
mod paged;
#[cfg(test)]
mod tests;

pub use contiguous::ContiguousManager;
pub use paged::PagedManager;

use crate::RequestId;

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

/// Hands out token slots.
pub trait KvCacheManager: Send {
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
