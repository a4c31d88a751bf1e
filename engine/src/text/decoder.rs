//! The incremental detokenizer of one answer: tokens in, text out as soon as it can no longer change.

use super::stop::StopMatcher;
use super::tokenizer::Tokenizer;
use super::utf8::Utf8Stream;
use crate::request::{SamplingParams, TokenId};

/// Turns the tokens of one answer into text, token by token, and applies the stop strings.
///
/// What it returns is never taken back: bytes that do not yet make a character, and text that may be the beginning of a
/// stop string, wait. Without a stop, all deltas and [`TextDecoder::finish`] together are exactly the lossy UTF-8 text
/// of the answer's bytes. The answer continues a prompt, so a SentencePiece token's leading space is kept.
///
/// ```
/// # use aisp_engine::text::{GgufVocab, Tokenizer, TokenizerSource, TextDecoder};
/// # use aisp_engine::SamplingParams;
/// # let tokens = ["a", "b", "c"].map(String::from).to_vec();
/// # let vocab = GgufVocab { model: "gpt2".into(), tokens, ..GgufVocab::default() };
/// # let tokenizer = Tokenizer::new(TokenizerSource::Gguf(vocab))?;
/// let params = SamplingParams { stop: vec!["bc".into()], ..SamplingParams::default() };
/// let mut decoder = TextDecoder::new(tokenizer, &params);
/// assert_eq!(decoder.push(0).text, "a");
/// assert_eq!(decoder.push(1).text, ""); // may be the beginning of the stop string
/// assert!(decoder.push(2).stopped.is_some());
/// assert_eq!(decoder.finish(), "");
/// # Ok::<(), aisp_engine::text::TextError>(())
/// ```
#[derive(Debug, Clone)]
pub struct TextDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    include_stop: bool,
    min_tokens: usize,
    stop: Vec<String>,
    matcher: StopMatcher,
    utf8: Utf8Stream,
    /// Text that is complete but may be the beginning of a stop string.
    held: String,
    num_tokens: usize,
    stopped: Option<StopReason>,
}

/// What one token added to the text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TextDelta {
    /// Text that is final; empty while it waits.
    pub text: String,
    /// Set once a stop string is complete, and from then on: the request should be aborted.
    pub stopped: Option<StopReason>,
}

/// Which stop string ended an answer, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StopReason {
    /// The stop string.
    pub stop: String,
    /// Its place in [`SamplingParams::stop`].
    pub stop_idx: usize,
    /// Tokens of the answer, up to and with the one that completed the stop string. Later ones do not belong to it.
    pub num_tokens: usize,
}

impl TextDecoder {
    /// A decoder for one answer, with the stop strings and the rule on special tokens of `params`.
    pub fn new(tokenizer: Tokenizer, params: &SamplingParams) -> Self {
        Self {
            tokenizer,
            skip_special: params.skip_special_tokens,
            include_stop: params.include_stop_str_in_output,
            min_tokens: params.min_tokens,
            stop: params.stop.clone(),
            matcher: StopMatcher::new(&params.stop),
            utf8: Utf8Stream::default(),
            held: String::new(),
            num_tokens: 0,
            stopped: None,
        }
    }

    /// Takes the next token. After a stop it does nothing more.
    ///
    /// As in vLLM, a stop string that is complete within the first `min_tokens` tokens does not count.
    ///
    /// Cost: amortised linear in the token's bytes, times the number of stop strings; it also moves the text held back,
    /// which is shorter than the longest stop string. It does not depend on how long the answer is.
    pub fn push(&mut self, token: TokenId) -> TextDelta {
        if self.stopped.is_some() {
            return TextDelta { text: String::new(), stopped: self.stopped.clone() };
        }
        self.num_tokens += 1;
        if self.skip_special && self.tokenizer.is_special(token) {
            return TextDelta::default();
        }
        let piece_start = self.held.len();
        self.utf8.push(self.tokenizer.token_to_bytes(token), &mut self.held);
        let text = self.release(piece_start);
        TextDelta { text, stopped: self.stopped.clone() }
    }

    /// Takes the token that ended the answer, an end-of-sequence or stop token. It counts, but its text is left out
    /// unless stop strings are kept too, as in vLLM.
    pub fn push_end(&mut self, token: TokenId) -> TextDelta {
        if self.include_stop {
            return self.push(token);
        }
        self.num_tokens += usize::from(self.stopped.is_none());
        TextDelta { text: String::new(), stopped: self.stopped.clone() }
    }

    /// Ends the answer: the text that still waited. An incomplete character becomes U+FFFD. Nothing after a stop.
    pub fn finish(&mut self) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.utf8.finish(&mut self.held);
        std::mem::take(&mut self.held)
    }

    /// The stop string that ended the answer.
    pub fn stopped(&self) -> Option<&StopReason> {
        self.stopped.as_ref()
    }

    /// Tokens pushed so far, those after a stop not counted.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Searches the text from `piece_start` on and takes out what is final.
    fn release(&mut self, piece_start: usize) -> String {
        let accept = self.num_tokens > self.min_tokens;
        let Some(hit) = self.matcher.push(&self.held[piece_start..], accept) else {
            let held_start = self.held.len() - self.matcher.num_held_bytes();
            if held_start == 0 {
                return String::new();
            }
            let waiting = self.held.split_off(held_start);
            return std::mem::replace(&mut self.held, waiting);
        };
        let mut text = std::mem::take(&mut self.held);
        let stop_end = piece_start + hit.end;
        text.truncate(if self.include_stop { stop_end } else { stop_end - hit.num_bytes });
        let stop = self.stop.get(hit.pattern_idx).cloned().unwrap_or_default();
        self.stopped = Some(StopReason { stop, stop_idx: hit.pattern_idx, num_tokens: self.num_tokens });
        text
    }
}
