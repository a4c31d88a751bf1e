//! Blocks with owners counted, and a list of those without one, the longest unused first.

use super::BlockId;

/// End of a list.
const NONE: u32 = u32::MAX;

/// All blocks of the cache. Free ones stand in a doubly linked list, so that one in its midst can be taken back into use.
#[derive(Debug)]
pub(super) struct BlockPool {
    ref_counts: Vec<u32>,
    links: Vec<Link>,
    first_free: u32,
    last_free: u32,
    num_free: usize,
}

#[derive(Debug, Clone, Copy)]
struct Link {
    before: u32,
    after: u32,
}

impl BlockPool {
    pub(super) fn new(num_blocks: u32) -> Self {
        let count = num_blocks as usize;
        let mut pool = Self {
            ref_counts: vec![0; count],
            links: vec![Link { before: NONE, after: NONE }; count],
            first_free: NONE,
            last_free: NONE,
            num_free: 0,
        };
        (0..num_blocks).for_each(|block| pool.link_last(block));
        pool
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    pub(super) fn num_free(&self) -> usize {
        self.num_free
    }

    pub(super) fn ref_count(&self, block: BlockId) -> u32 {
        self.ref_counts[block.0 as usize]
    }

    /// Takes the block that has been free for longest.
    pub(super) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.first_free;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        self.ref_counts[block as usize] = 1;
        Some(BlockId(block))
    }

    /// Adds an owner, also to a free block that still holds what it held.
    pub(super) fn share(&mut self, block: BlockId) {
        if self.ref_counts[block.0 as usize] == 0 {
            self.unlink(block.0);
        }
        self.ref_counts[block.0 as usize] += 1;
    }

    /// Takes an owner away. Of the blocks without one, those worth keeping are used again last. Returns whether it has
    /// become free.
    pub(super) fn release(&mut self, block: BlockId, keep: bool) -> bool {
        let count = &mut self.ref_counts[block.0 as usize];
        debug_assert!(*count > 0, "block {} is released without an owner", block.0);
        *count = count.saturating_sub(1);
        if *count > 0 {
            return false;
        }
        if keep {
            self.link_last(block.0)
        } else {
            self.link_first(block.0)
        }
        true
    }

    /// Free blocks, the next to be allocated first.
    pub(super) fn free_blocks(&self) -> impl Iterator<Item = BlockId> + '_ {
        let next = |&block: &u32| Some(self.links[block as usize].after).filter(|&after| after != NONE);
        std::iter::successors(Some(self.first_free).filter(|&block| block != NONE), next).map(BlockId)
    }

    fn link_first(&mut self, block: u32) {
        self.links[block as usize] = Link { before: NONE, after: self.first_free };
        match self.first_free {
            NONE => self.last_free = block,
            first => self.links[first as usize].before = block,
        }
        self.first_free = block;
        self.num_free += 1;
    }

    fn link_last(&mut self, block: u32) {
        self.links[block as usize] = Link { before: self.last_free, after: NONE };
        match self.last_free {
            NONE => self.first_free = block,
            last => self.links[last as usize].after = block,
        }
        self.last_free = block;
        self.num_free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Link { before, after } = self.links[block as usize];
        match before {
            NONE => self.first_free = after,
            before => self.links[before as usize].after = after,
        }
        match after {
            NONE => self.last_free = before,
            after => self.links[after as usize].before = before,
        }
        self.num_free -= 1;
    }
}
