//! The `tokenizers` crate: text to token ids, by its own encoding or, where the two are known to be the same, by
//! [`WordTokenizer`].

use std::sync::OnceLock;

use tokenizers::Encoding;

use super::error::{TextError, contain_panic, one_line};
use super::sentence_piece::SpecialNames;
use super::words::WordTokenizer;
use crate::request::TokenId;

/// A tokenizer of the library.
pub(super) struct Library {
    tokenizer: tokenizers::Tokenizer,
    /// Matching names is a setting of the library's tokenizer, so taking them as text needs a second one.
    plain: OnceLock<Box<tokenizers::Tokenizer>>,
    words: Option<WordTokenizer>,
}

impl Library {
    /// A tokenizer that neither truncates nor pads.
    pub(super) fn new(tokenizer: tokenizers::Tokenizer) -> Self {
        let words = contain_panic("the tokenizer library", || Ok(WordTokenizer::recognize(&tokenizer)));
        Self { tokenizer, plain: OnceLock::new(), words: words.unwrap_or_default() }
    }

    /// The tokens of `text`; `add_special` lets the post-processor add its own.
    ///
    /// Errors: a text on which the library fails.
    pub(super) fn encode(&self, text: &str, add_special: bool, names: SpecialNames) -> Result<Vec<TokenId>, TextError> {
        let Some(words) = &self.words else { return self.encode_baseline(text, add_special, names) };
        self.contained(names, |tokenizer| {
            let ids = words.encode(tokenizer, text)?;
            if tokenizer.get_post_processor().is_none() {
                return Ok(ids);
            }
            let encoding: Encoding = ids.into_iter().map(|id| (id, String::new(), (0, 0), None, 0)).collect();
            Ok(tokenizer.post_process(encoding, None, add_special)?.get_ids().to_vec())
        })
    }

    /// The same by the library alone.
    pub(super) fn encode_baseline(
        &self,
        text: &str,
        add_special: bool,
        names: SpecialNames,
    ) -> Result<Vec<TokenId>, TextError> {
        self.contained(names, |tokenizer| Ok(tokenizer.encode_fast(text, add_special)?.get_ids().to_vec()))
    }

    /// The token of that name in the vocabulary.
    pub(super) fn token_id(&self, name: &str) -> Option<TokenId> {
        self.tokenizer.token_to_id(name)
    }

    fn contained(
        &self,
        names: SpecialNames,
        encode: impl Fn(&tokenizers::Tokenizer) -> tokenizers::Result<Vec<TokenId>>,
    ) -> Result<Vec<TokenId>, TextError> {
        let encode = || {
            encode(match names {
                SpecialNames::All => &self.tokenizer,
                SpecialNames::UserDefined => self.plain.get_or_init(|| {
                    let mut plain = Box::new(self.tokenizer.clone());
                    plain.set_encode_special_tokens(true);
                    plain
                }),
            })
            .map_err(|error| error.to_string())
        };
        contain_panic("the tokenizer library", encode).map_err(|message| TextError::Encode(one_line(&message)))
    }
}

#[cfg(test)]
#[cfg(feature = "builtin-model")]
mod tests;
