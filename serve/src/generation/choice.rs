//! One sequence of an answer: its text, where it stops, its metrics.

use aisp_engine::text::{TextDecoder, Tokenizer};
use aisp_engine::{FinishReason, RequestOutput, RequestTimings, SamplingParams, TokenId};

use crate::metrics::RequestMetrics;
use crate::openai::{ChoicePiece, StopCause};

/// One sequence.
#[derive(Debug)]
pub struct Choice {
    decoder: Option<TextDecoder>,
    stop_token_ids: Vec<TokenId>,
    /// `max_tokens: 0`: the prompt was all that was asked for, and the one token that the engine makes is dropped.
    prompt_only: bool,
    metrics: RequestMetrics,
    done: bool,
}

impl Choice {
    /// A sequence sampled with `params`; without a tokenizer it has no text.
    pub fn new(tokenizer: Option<Tokenizer>, params: &SamplingParams, metrics: RequestMetrics) -> Self {
        Self {
            decoder: tokenizer.map(|tokenizer| TextDecoder::new(tokenizer, params)),
            stop_token_ids: params.stop_token_ids.clone(),
            prompt_only: false,
            metrics,
            done: false,
        }
    }

    /// The same, but for the prompt's sake only.
    pub fn prompt_only(self, prompt_only: bool) -> Self {
        Self { prompt_only, ..self }
    }

    /// Whether it has ended.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// What one step adds.
    pub fn absorb(&mut self, choice: usize, output: RequestOutput) -> ChoicePiece {
        let RequestOutput { tokens, prompt_logprobs, finish, .. } = output;
        let mut piece = ChoicePiece { choice, prompt_logprobs, finish, ..ChoicePiece::default() };
        if self.prompt_only {
            piece.finish = Some(FinishReason::Length);
            self.done = true;
            return piece;
        }
        let num_tokens = tokens.len();
        for (at, token) in tokens.into_iter().enumerate() {
            let ends = finish == Some(FinishReason::Stop) && at + 1 == num_tokens;
            if ends && self.stop_token_ids.contains(&token.id) {
                piece.stop_reason = Some(StopCause::Token(token.id));
            }
            let delta = self.decoder.as_mut().map(|decoder| match ends {
                true => decoder.push_end(token.id),
                false => decoder.push(token.id),
            });
            piece.tokens.push(token);
            let Some(delta) = delta else { continue };
            piece.text.push_str(&delta.text);
            if let Some(stopped) = delta.stopped {
                piece.finish = Some(FinishReason::Stop);
                piece.stop_reason = Some(StopCause::Text(stopped.stop));
                // Later tokens do not belong to the answer.
                break;
            }
        }
        if piece.finish.is_some() {
            self.done = true;
            if let Some(decoder) = &mut self.decoder {
                piece.text.push_str(&decoder.finish());
            }
        }
        piece
    }

    /// Counts a piece.
    pub fn record(&mut self, piece: &ChoicePiece, timings: &RequestTimings) {
        self.metrics.tokens(piece.tokens.len(), timings);
        if let Some(reason) = piece.finish {
            self.metrics.end(reason);
        }
    }
}
