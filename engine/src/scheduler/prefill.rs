//! How much of a prompt a step takes: the difference between whole and chunked prefill.

/// What a policy decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefillState {
    /// Tokens that the sequence still has to compute.
    pub num_uncomputed_tokens: usize,
    /// Tokens that the step can still take.
    pub budget_left: usize,
    /// Tokens of prompts that the step has taken already.
    pub num_prefill_tokens: usize,
    /// Sequences that generate a token in this step.
    pub num_decodes: usize,
}

/// Decides how many tokens of a prompt run in this step.
pub trait PrefillPolicy: Send {
    /// At most `num_uncomputed_tokens`; 0 leaves the prompt for a later step.
    fn num_new_tokens(&self, state: PrefillState) -> usize;
}

/// Baseline: all of it or nothing. A prompt longer than the budget runs alone with the answers under way, so that none
/// waits for ever.
#[derive(Debug, Clone, Copy, Default)]
pub struct WholePrompt;

impl PrefillPolicy for WholePrompt {
    fn num_new_tokens(&self, state: PrefillState) -> usize {
        let fits = state.num_uncomputed_tokens <= state.budget_left;
        if fits || state.num_prefill_tokens == 0 { state.num_uncomputed_tokens } else { 0 }
    }
}

/// Optimized: what fits. Beside running answers a step takes at most `chunk_tokens`, which bounds how long it keeps them
/// waiting. A GPU computes a single token by the kernel of answers, whose bits are others than those of prompts: no part is
/// one, and none is left, but in a step that has room for no more. Source: arXiv 2403.02310.
#[derive(Debug, Clone, Copy)]
pub struct ChunkedPrefill {
    /// Prompt tokens of a step in which answers run as well.
    pub chunk_tokens: usize,
}

impl PrefillPolicy for ChunkedPrefill {
    fn num_new_tokens(&self, state: PrefillState) -> usize {
        let beside_answers = match state.num_decodes {
            0 => usize::MAX,
            _ => self.chunk_tokens.saturating_sub(state.num_prefill_tokens),
        };
        // A step full of answers still takes one prompt token, so that no prompt waits for ever.
        let least = usize::from(state.num_prefill_tokens == 0);
        let fits = state.num_uncomputed_tokens.min(state.budget_left.min(beside_answers).max(least));
        match state.num_uncomputed_tokens - fits {
            1 if fits > 2 => fits - 1,
            1.. if fits == 1 && state.num_prefill_tokens > 0 => 0,
            _ => fits,
        }
    }
}
