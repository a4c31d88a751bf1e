//! What each token stands for: its name, its bytes, whether it is special. One flat table by id, so that decoding is a
//! copy of bytes.

use super::byte_level;
use crate::request::TokenId;

/// How the names of a vocabulary's ordinary tokens spell bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// One printable character a byte (GPT-2).
    ByteLevel,
    /// Text with a character for the space and, optionally, tokens such as `<0x0A>` for single bytes.
    SentencePiece { space: char, byte_fallback: bool },
}

impl Spelling {
    /// The bytes that the ordinary token `name` stands for.
    fn bytes_of(self, name: &str) -> Vec<u8> {
        match self {
            // A name with any other character stands for itself, as in Hugging Face's decoder.
            Self::ByteLevel => byte_level::bytes_of_token(name).unwrap_or_else(|| name.as_bytes().to_vec()),
            Self::SentencePiece { space, byte_fallback } => {
                match byte_level::byte_of_fallback(name).filter(|_| byte_fallback) {
                    Some(byte) => vec![byte],
                    None => name.replace(space, " ").into_bytes(),
                }
            }
        }
    }
}

/// Names, bytes and flags of all tokens.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenTable {
    names: Flat,
    bytes: Flat,
    special: Vec<bool>,
    longest_bytes: usize,
}

/// Many byte strings in one allocation.
#[derive(Debug, Clone, Default)]
struct Flat {
    data: Vec<u8>,
    /// Where each string ends.
    ends: Vec<usize>,
}

impl Flat {
    fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
        self.ends.push(self.data.len());
    }

    fn get(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)?;
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        self.data.get(start..end)
    }
}

impl TokenTable {
    /// Appends an ordinary token, whose bytes `spelling` tells.
    pub(super) fn push_ordinary(&mut self, name: &str, spelling: Spelling) {
        self.push(name, &spelling.bytes_of(name), false);
    }

    /// Appends a token that stands for its own name (an added one), or for nothing.
    pub(super) fn push_literal(&mut self, name: &str, special: bool) {
        self.push(name, name.as_bytes(), special);
    }

    fn push(&mut self, name: &str, bytes: &[u8], special: bool) {
        self.names.push(name.as_bytes());
        self.bytes.push(bytes);
        self.special.push(special);
        // Special tokens count too: a text may be made of their names.
        self.longest_bytes = self.longest_bytes.max(bytes.len());
    }

    /// Number of ids.
    pub(super) fn len(&self) -> usize {
        self.special.len()
    }

    /// The token's name in the vocabulary.
    pub(super) fn name(&self, id: TokenId) -> Option<&str> {
        std::str::from_utf8(self.names.get(id as usize)?).ok()
    }

    /// The bytes of text that the token stands for; none for an id that does not exist.
    pub(super) fn bytes(&self, id: TokenId) -> &[u8] {
        self.bytes.get(id as usize).unwrap_or_default()
    }

    /// Whether the token marks structure rather than text.
    pub(super) fn is_special(&self, id: TokenId) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// Length of the longest token's text.
    pub(super) fn longest_bytes(&self) -> usize {
        self.longest_bytes
    }
}
