//! SentencePiece BPE by score, for GGUF vocabularies of the kind `llama`.
//!
//! Why not the `tokenizers` crate: it merges pairs by rank, SentencePiece merges whatever two neighbours form the token
//! of the highest score, leftmost first. Scores turned into ranked merges differ where one token has several splits.
//!
//! Source: <https://github.com/google/sentencepiece/blob/master/src/bpe_model.cc>, in llama.cpp's reading
//! (`llm_tokenizer_spm_session`).

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::error::TextError;
use super::vocab::{GgufVocab, TokenKind};
use crate::request::TokenId;

/// The character that stands for a space inside tokens.
pub(super) const SPACE: char = '\u{2581}';

/// A SentencePiece vocabulary, ready to encode.
#[derive(Debug)]
pub(super) struct SentencePiece {
    ids: HashMap<String, TokenId>,
    scores: Vec<f32>,
    byte_ids: [Option<TokenId>; 256],
    unknown: Option<TokenId>,
    add_space_prefix: bool,
    /// Names of special and user-defined tokens, longest first for each first byte.
    special_by_first_byte: HashMap<u8, Vec<SpecialName>>,
}

#[derive(Debug)]
struct SpecialName {
    text: String,
    id: TokenId,
    user_defined: bool,
}

/// Which names inside a text are tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SpecialNames {
    /// All of them.
    All,
    /// Only those that are text of their own (user-defined ones).
    UserDefined,
}

impl SentencePiece {
    /// Errors: a vocabulary that cannot spell every byte and has no unknown token.
    pub(super) fn new(vocab: &GgufVocab) -> Result<Self, TextError> {
        let malformed = |message: &str| Err(TextError::MalformedTokenizer(message.into()));
        if vocab.scores.len() != vocab.tokens.len() {
            return malformed("tokenizer.ggml.scores is missing: a 'llama' vocabulary merges by score");
        }
        if vocab.scores.iter().any(|score| score.is_nan()) {
            return malformed("tokenizer.ggml.scores has a value that is not a number");
        }
        let mut ids = HashMap::with_capacity(vocab.tokens.len());
        let mut byte_ids = [None; 256];
        let mut special_by_first_byte: HashMap<u8, Vec<SpecialName>> = HashMap::new();
        for (id, token) in (0 as TokenId..).zip(&vocab.tokens) {
            ids.insert(token.clone(), id);
            match vocab.kind(id as usize) {
                TokenKind::Byte => {
                    if let Some(byte) = super::byte_level::byte_of_fallback(token) {
                        byte_ids[byte as usize] = Some(id);
                    }
                }
                kind @ (TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined) => {
                    if let Some(first) = token.bytes().next() {
                        let name =
                            SpecialName { text: token.clone(), id, user_defined: kind == TokenKind::UserDefined };
                        special_by_first_byte.entry(first).or_default().push(name);
                    }
                }
                TokenKind::Normal | TokenKind::Unused => {}
            }
        }
        for names in special_by_first_byte.values_mut() {
            names.sort_by_key(|name| std::cmp::Reverse(name.text.len()));
        }
        if vocab.unknown_token_id.is_none() && byte_ids.iter().any(Option::is_none) {
            return malformed("the vocabulary has neither a token for every byte nor an unknown token");
        }
        Ok(Self {
            ids,
            scores: vocab.scores.clone(),
            byte_ids,
            unknown: vocab.unknown_token_id,
            add_space_prefix: vocab.add_space_prefix.unwrap_or(true),
            special_by_first_byte,
        })
    }

    /// Whether encoding puts a space before a text, which decoding takes away again.
    pub(super) fn add_space_prefix(&self) -> bool {
        self.add_space_prefix
    }

    /// The token of that name.
    pub(super) fn token_id(&self, name: &str) -> Option<TokenId> {
        self.ids.get(name).copied()
    }

    /// The tokens of `text`, without bos.
    ///
    /// Cost: O(n log n) in the length of the text.
    pub(super) fn encode(&self, text: &str, names: SpecialNames) -> Vec<TokenId> {
        let mut ids = Vec::new();
        let mut plain_start = 0;
        let mut after_special = true;
        let mut at = 0;
        while at < text.len() {
            let Some(name) = self.special_at(&text.as_bytes()[at..], names) else {
                at += 1;
                continue;
            };
            if plain_start < at {
                self.encode_plain(&text[plain_start..at], after_special, &mut ids);
            }
            ids.push(name.id);
            at += name.text.len();
            plain_start = at;
            after_special = true;
        }
        if plain_start < text.len() {
            self.encode_plain(&text[plain_start..], after_special, &mut ids);
        }
        ids
    }

    /// The longest special name that `rest` begins with.
    fn special_at(&self, rest: &[u8], names: SpecialNames) -> Option<&SpecialName> {
        let candidates = self.special_by_first_byte.get(rest.first()?)?;
        candidates
            .iter()
            .find(|name| (names == SpecialNames::All || name.user_defined) && rest.starts_with(name.text.as_bytes()))
    }

    fn encode_plain(&self, text: &str, after_special: bool, ids: &mut Vec<TokenId>) {
        let prefix = if self.add_space_prefix && after_special { " " } else { "" };
        let escaped: String = prefix.chars().chain(text.chars()).map(|c| if c == ' ' { SPACE } else { c }).collect();
        for piece in self.merge(&escaped) {
            match self.ids.get(piece) {
                Some(id) => ids.push(*id),
                None => ids.extend(piece.bytes().filter_map(|byte| self.byte_ids[byte as usize].or(self.unknown))),
            }
        }
    }

    /// The pieces of `text` after all merges.
    fn merge<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol { start, len: c.len_utf8(), previous: i.checked_sub(1), next: Some(i + 1) })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            queue.extend(self.candidate(text, &symbols, Some(right - 1), Some(right)));
        }
        while let Some(merge) = queue.pop() {
            let (left, right) = (symbols[merge.left], symbols[merge.right]);
            // One of the two was merged away, or grew, since this candidate was queued.
            if left.len == 0 || right.len == 0 || left.len + right.len != merge.len {
                continue;
            }
            symbols[merge.left].len = merge.len;
            symbols[merge.left].next = right.next;
            symbols[merge.right].len = 0;
            if let Some(next) = right.next {
                symbols[next].previous = Some(merge.left);
            }
            queue.extend(self.candidate(text, &symbols, left.previous, Some(merge.left)));
            queue.extend(self.candidate(text, &symbols, Some(merge.left), right.next));
        }
        symbols.iter().filter(|symbol| symbol.len > 0).map(|s| &text[s.start..s.start + s.len]).collect()
    }

    fn candidate(&self, text: &str, symbols: &[Symbol], left: Option<usize>, right: Option<usize>) -> Option<Merge> {
        let (left, right) = (left?, right?);
        let len = symbols[left].len + symbols[right].len;
        let start = symbols[left].start;
        let id = self.ids.get(&text[start..start + len])?;
        Some(Merge { score: self.scores[*id as usize], left, right, len })
    }
}

/// A piece of the text and its neighbours; a merged one has length 0.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two neighbours that form a token; the greatest is merged first.
#[derive(Debug)]
struct Merge {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Merge {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Merge {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Merge {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Merge {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition: merge the best pair, leftmost first, until none forms a token.
    fn naive(vocab: &SentencePiece, text: &str) -> Vec<String> {
        let mut pieces: Vec<String> = text.chars().map(String::from).collect();
        loop {
            let mut best: Option<(f32, usize)> = None;
            for left in 0..pieces.len().saturating_sub(1) {
                if let Some(id) = vocab.ids.get(&(pieces[left].clone() + &pieces[left + 1])) {
                    let score = vocab.scores[*id as usize];
                    if best.is_none_or(|(most, _)| score > most) {
                        best = Some((score, left));
                    }
                }
            }
            let Some((_, left)) = best else { return pieces };
            let right = pieces.remove(left + 1);
            pieces[left].push_str(&right);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn merges_as_the_definition_says(
            tokens in prop::collection::btree_map("[abé]{1,4}", -4_i8..4, 1..24),
            text in "[abéx]{0,24}",
        ) {
            // Few different scores: ties are where implementations differ.
            let scores = tokens.values().map(|score| f32::from(*score)).collect();
            let tokens = tokens.into_keys().collect();
            let vocab = GgufVocab { tokens, scores, unknown_token_id: Some(0), ..GgufVocab::default() };
            let vocab = SentencePiece::new(&vocab).unwrap();
            prop_assert_eq!(vocab.merge(&text), naive(&vocab, &text));
        }
    }
}
