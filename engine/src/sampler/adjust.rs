//! Changes to logits before the choice: bias, penalties, bans.

use std::collections::HashMap;

use crate::TokenId;
use crate::sequence::Sequence;

/// Applies all that the request asks for.
pub fn apply(logits: &mut [f32], sequence: &Sequence, eos_token_ids: &[TokenId]) {
    let params = &sequence.params;
    for &(id, bias) in &params.logit_bias {
        logits[id as usize] += bias;
    }
    if params.repetition_penalty != 1.0 {
        penalize_repetition(logits, &sequence.tokens, params.repetition_penalty);
    }
    if params.presence_penalty != 0.0 || params.frequency_penalty != 0.0 {
        let mut counts: HashMap<TokenId, f32> = HashMap::new();
        for &id in sequence.generated() {
            *counts.entry(id).or_default() += 1.0;
        }
        for (id, count) in counts {
            logits[id as usize] -= params.presence_penalty + params.frequency_penalty * count;
        }
    }
    if sequence.num_generated_tokens() < params.min_tokens {
        for &id in eos_token_ids.iter().chain(&params.stop_token_ids) {
            logits[id as usize] = f32::NEG_INFINITY;
        }
    }
}

/// Each token seen counts once. Source: CTRL, arXiv 1909.05858.
fn penalize_repetition(logits: &mut [f32], tokens: &[TokenId], penalty: f32) {
    let mut seen = vec![false; logits.len()];
    for &id in tokens {
        let id = id as usize;
        if !std::mem::replace(&mut seen[id], true) {
            logits[id] = if logits[id] > 0.0 { logits[id] / penalty } else { logits[id] * penalty };
        }
    }
}
