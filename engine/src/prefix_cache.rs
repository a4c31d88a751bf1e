//! Which full blocks hold which tokens, so that a prompt's known beginning need not be computed again. Pure bookkeeping.
//!
//! A block is known by its tokens and by the node before it, back to a root that names the salt: equal keys mean equal
//! token sequences from position 0, compared token by token, so that no hash collision can mix up two prompts. Model and
//! KV type are fixed for the life of an engine, and each engine has a cache of its own.

use std::collections::HashMap;
use std::sync::Arc;

use crate::TokenId;
use crate::kv_cache::{BLOCK_SIZE, BlockId};

/// What stands before a block.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ChainNode {
    /// Nothing: the beginning of a prompt. Different salts share no block.
    Root {
        /// The request's `cache_salt`.
        salt: Option<Arc<str>>,
    },
    /// A registered block; numbers are never used twice.
    Block(u64),
}

/// Finds and remembers full blocks.
pub trait PrefixCache: Send {
    /// Whether blocks are kept at all.
    fn is_enabled(&self) -> bool;

    /// The block with these tokens after `parent`, and the node to go on from.
    fn find(&self, parent: &ChainNode, tokens: &[TokenId]) -> Option<(BlockId, ChainNode)>;

    /// Registers a full block. Returns the node to go on from: that of an equal block if there is one, for which
    /// `block` is then not kept.
    fn insert(&mut self, parent: &ChainNode, tokens: &[TokenId], block: BlockId) -> ChainNode;

    /// Whether this block is registered.
    fn holds(&self, block: BlockId) -> bool;

    /// Forgets a block that is about to be written anew.
    fn forget(&mut self, block: BlockId);
}

/// Baseline: nothing is remembered.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPrefixCache;

impl PrefixCache for NoPrefixCache {
    fn is_enabled(&self) -> bool {
        false
    }

    fn find(&self, _: &ChainNode, _: &[TokenId]) -> Option<(BlockId, ChainNode)> {
        None
    }

    fn insert(&mut self, parent: &ChainNode, _: &[TokenId], _: BlockId) -> ChainNode {
        parent.clone()
    }

    fn holds(&self, _: BlockId) -> bool {
        false
    }

    fn forget(&mut self, _: BlockId) {}
}

type BlockTokens = [TokenId; BLOCK_SIZE];

/// Optimized: a map from (node before, tokens) to the block. Source: vLLM's automatic prefix caching, with the tokens
/// themselves in the key in place of their hash.
#[derive(Debug, Default)]
pub struct BlockChain {
    nodes: HashMap<(ChainNode, BlockTokens), (BlockId, u64)>,
    keys: HashMap<BlockId, (ChainNode, BlockTokens)>,
    next_node: u64,
}

impl PrefixCache for BlockChain {
    fn is_enabled(&self) -> bool {
        true
    }

    fn find(&self, parent: &ChainNode, tokens: &[TokenId]) -> Option<(BlockId, ChainNode)> {
        let tokens = BlockTokens::try_from(tokens).ok()?;
        let (block, node) = self.nodes.get(&(parent.clone(), tokens))?;
        Some((*block, ChainNode::Block(*node)))
    }

    fn insert(&mut self, parent: &ChainNode, tokens: &[TokenId], block: BlockId) -> ChainNode {
        let Ok(tokens) = BlockTokens::try_from(tokens) else { return parent.clone() };
        let key = (parent.clone(), tokens);
        if let Some((_, node)) = self.nodes.get(&key) {
            return ChainNode::Block(*node);
        }
        let node = self.next_node;
        self.next_node += 1;
        self.nodes.insert(key.clone(), (block, node));
        self.keys.insert(block, key);
        ChainNode::Block(node)
    }

    fn holds(&self, block: BlockId) -> bool {
        self.keys.contains_key(&block)
    }

    fn forget(&mut self, block: BlockId) {
        if let Some(key) = self.keys.remove(&block) {
            self.nodes.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(first: TokenId) -> Vec<TokenId> {
        (first..first + BLOCK_SIZE as TokenId).collect()
    }

    fn root(salt: Option<&str>) -> ChainNode {
        ChainNode::Root { salt: salt.map(Arc::from) }
    }

    #[test]
    fn a_chain_is_found_again_until_it_is_forgotten() {
        let mut cache = BlockChain::default();
        let first = cache.insert(&root(None), &tokens(0), BlockId(3));
        let second = cache.insert(&first, &tokens(100), BlockId(5));
        assert_eq!(cache.find(&root(None), &tokens(0)), Some((BlockId(3), first.clone())));
        assert_eq!(cache.find(&first, &tokens(100)), Some((BlockId(5), second.clone())));
        // The same tokens elsewhere, others here, or too few of them, are not the same block.
        assert_eq!(cache.find(&second, &tokens(100)), None);
        assert_eq!(cache.find(&first, &tokens(101)), None);
        assert_eq!(cache.find(&first, &tokens(100)[1..]), None);
        cache.forget(BlockId(3));
        assert_eq!(cache.find(&root(None), &tokens(0)), None);
        assert!(!cache.holds(BlockId(3)) && cache.holds(BlockId(5)));
        // What is registered anew is not the old node: the old child stays out of reach.
        let again = cache.insert(&root(None), &tokens(0), BlockId(7));
        assert_eq!(cache.find(&again, &tokens(100)), None);
    }

    #[test]
    fn two_salts_share_nothing() {
        let mut cache = BlockChain::default();
        let a = cache.insert(&root(Some("a")), &tokens(0), BlockId(0));
        assert_eq!(cache.find(&root(Some("b")), &tokens(0)), None);
        assert_eq!(cache.find(&root(None), &tokens(0)), None);
        assert_eq!(cache.find(&root(Some("a")), &tokens(0)), Some((BlockId(0), a)));
    }

    #[test]
    fn an_equal_block_is_kept_once() {
        let mut cache = BlockChain::default();
        let first = cache.insert(&root(None), &tokens(0), BlockId(0));
        assert_eq!(cache.insert(&root(None), &tokens(0), BlockId(1)), first);
        assert!(!cache.holds(BlockId(1)));
    }
}
