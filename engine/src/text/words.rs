//! Byte-level BPE over words that are cut out of the text as slices and looked up in a table of words seen before. The
//! `tokenizers` crate copies every word, with an alignment for each byte, once a stage; that is nearly all it costs.
//!
//! Added tokens, the normalizer, the expressions and the merges within a word stay the library's own, so ids are the
//! same. What is not recognized here is encoded by the library alone.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokenizers::pre_tokenizers::{PreTokenizerWrapper, split::Split};
use tokenizers::utils::SysRegex;
use tokenizers::{Model, ModelWrapper, NormalizerWrapper, OffsetReferential, OffsetType, SplitDelimiterBehavior};
use unicode_normalization_alignments::{IsNormalized, is_nfc_quick};

use super::byte_level::char_of_byte;
use crate::request::TokenId;

/// The library's expression for a `ByteLevel` with `use_regex`: GPT-2's.
const BYTE_LEVEL: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Most stages that are cut by recursion; no known model has more than five.
const MAX_STAGES: usize = 8;

/// Words that one table remembers; a full one begins anew. With [`MAX_WORD_BYTES`] this bounds a table to a few MB,
/// whatever texts are sent.
const MAX_WORDS: usize = 1 << 14;

/// Longest word that is remembered. Longer ones hardly come twice.
const MAX_WORD_BYTES: usize = 64;

/// Tables that are kept while no text is encoded. More texts at once take fresh ones.
const MAX_IDLE_TABLES: usize = 8;

/// How a tokenizer of the `tokenizers` crate cuts text into words, and the ids of words.
pub(super) struct WordTokenizer {
    stages: Vec<Stage>,
    /// A text takes a table and gives it back, so no lock is held while it is encoded.
    idle: Mutex<Vec<WordTable>>,
}

/// One pre-tokenizer: each match, and each gap between matches, is a piece of its own.
enum Stage {
    Expression(SysRegex),
    Digits,
}

impl WordTokenizer {
    /// The words of `library` when its model is BPE and its pre-tokenizer a sequence of isolating `Split`s and single
    /// `Digits` that ends in a `ByteLevel` without a prefix space; `None` otherwise.
    pub(super) fn recognize(library: &tokenizers::Tokenizer) -> Option<Self> {
        let parts = match library.get_pre_tokenizer()? {
            PreTokenizerWrapper::Sequence(sequence) => sequence.as_ref(),
            single => std::slice::from_ref(single),
        };
        let (PreTokenizerWrapper::ByteLevel(spelling), cuts) = parts.split_last()? else { return None };
        let ModelWrapper::BPE(bpe) = library.get_model() else { return None };
        if spelling.add_prefix_space || bpe.dropout.is_some() || cuts.len() >= MAX_STAGES {
            return None;
        }
        let mut stages = cuts.iter().map(Stage::recognize).collect::<Option<Vec<_>>>()?;
        if spelling.use_regex {
            stages.push(Stage::Expression(SysRegex::new(BYTE_LEVEL).ok()?));
        }
        Some(Self { stages, idle: Mutex::default() })
    }

    /// The ids that `library` gives `text` before its post-processor. `library` is the recognized one, or a clone that
    /// takes the names of special tokens as text.
    ///
    /// Errors: as the library's.
    /// Cost: a search of each expression and a look-up a word; merges for words that are new.
    pub(super) fn encode(&self, library: &tokenizers::Tokenizer, text: &str) -> tokenizers::Result<Vec<TokenId>> {
        // Qwen's normalizer. A text that it leaves as it is needs no alignment of each byte.
        let is_identity = |normalizer: &NormalizerWrapper| {
            matches!(normalizer, NormalizerWrapper::NFC(_)) && is_nfc_quick(text.chars()) == IsNormalized::Yes
        };
        let normalizer = library.get_normalizer().filter(|normalizer| !is_identity(normalizer));
        let pieces = library.get_added_vocabulary().extract_and_normalize(normalizer, text);
        let mut table = self.lock().pop().unwrap_or_default();
        let mut ids = Vec::with_capacity(text.len() / 4);
        for (piece, _, added) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match added {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => cut(&self.stages, piece, &mut |word| table.append(library.get_model(), word, &mut ids))?,
            }
        }
        let mut idle = self.lock();
        if idle.len() < MAX_IDLE_TABLES {
            idle.push(table);
        }
        Ok(ids)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<WordTable>> {
        // Tables are whole whenever they are in here.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stage {
    fn recognize(part: &PreTokenizerWrapper) -> Option<Self> {
        match part {
            PreTokenizerWrapper::Split(split)
                if split.behavior == SplitDelimiterBehavior::Isolated && !split.invert =>
            {
                Some(Self::Expression(Split::new(split.pattern.clone(), split.behavior, split.invert).ok()?.regex))
            }
            PreTokenizerWrapper::Digits(digits) if digits.individual_digits => Some(Self::Digits),
            _ => None,
        }
    }
}

/// Takes the words of a text in their order.
type OnWord<'w> = dyn FnMut(&str) -> tokenizers::Result<()> + 'w;

/// Calls `on_word` with each word of `text`.
fn cut(stages: &[Stage], text: &str, on_word: &mut OnWord<'_>) -> tokenizers::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    match stages.split_first() {
        None => on_word(text),
        Some((Stage::Expression(expression), rest)) => isolate(expression.find_iter(text), rest, text, on_word),
        Some((Stage::Digits, rest)) => {
            let digits = text.match_indices(char::is_numeric).map(|(start, digit)| (start, start + digit.len()));
            isolate(digits, rest, text, on_word)
        }
    }
}

/// Cuts each match and each gap further. When an expression gives up on a text (it may backtrack only so often), its
/// matches end there, and the rest is one gap, as in the library.
fn isolate(
    matches: impl Iterator<Item = (usize, usize)>,
    rest: &[Stage],
    text: &str,
    on_word: &mut OnWord<'_>,
) -> tokenizers::Result<()> {
    const NO_SLICE: &str = "an expression matched what is no slice of the text";
    let mut end_of_last = 0;
    for (start, end) in matches {
        for span in [end_of_last..start, start..end] {
            cut(rest, text.get(span).ok_or(NO_SLICE)?, on_word)?;
        }
        end_of_last = end;
    }
    cut(rest, text.get(end_of_last..).ok_or(NO_SLICE)?, on_word)
}

/// The ids of words seen before.
#[derive(Default)]
struct WordTable {
    spans: HashMap<Box<str>, Range<usize>>,
    /// The ids of all words, one word after the other.
    ids: Vec<TokenId>,
}

impl WordTable {
    /// Appends the ids of `word`.
    fn append(&mut self, model: &ModelWrapper, word: &str, ids: &mut Vec<TokenId>) -> tokenizers::Result<()> {
        if let Some(known) = self.spans.get(word).and_then(|span| self.ids.get(span.clone())) {
            ids.extend_from_slice(known);
            return Ok(());
        }
        let spelled: String = word.bytes().map(char_of_byte).collect();
        let tokens = model.tokenize(&spelled)?;
        ids.extend(tokens.iter().map(|token| token.id));
        if word.len() <= MAX_WORD_BYTES {
            if self.spans.len() == MAX_WORDS {
                self.spans.clear();
                self.ids.clear();
            }
            let start = self.ids.len();
            self.ids.extend(tokens.iter().map(|token| token.id));
            self.spans.insert(word.into(), start..self.ids.len());
        }
        Ok(())
    }
}
