//! What a tokenizer is built from: the loader hands it over, [`super::Tokenizer`] consumes it.

/// A model's tokenizer as its files hold it.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum TokenizerSource {
    /// The model has none (made-up weights).
    #[default]
    None,
    /// The bytes of a `tokenizer.json`.
    Json(Vec<u8>),
    /// The `tokenizer.ggml.*` fields of a GGUF file.
    Gguf(GgufVocab),
}

/// The `tokenizer.ggml.*` fields of a GGUF file.
///
/// Source: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece).
    pub model: String,
    /// Names the pre-tokenizer of a `gpt2` vocabulary.
    pub pre: Option<String>,
    /// Text of each token, by id.
    pub tokens: Vec<String>,
    /// Merge priorities of a `llama` vocabulary, by id; empty otherwise.
    pub scores: Vec<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; by id, empty means all normal.
    pub token_types: Vec<i32>,
    /// Pairs of a `gpt2` vocabulary, best first, as `left right`.
    pub merges: Vec<String>,
    /// Begins a text.
    pub bos_token_id: Option<u32>,
    /// Ends a text.
    pub eos_token_id: Option<u32>,
    /// Ends a turn.
    pub eot_token_id: Option<u32>,
    /// Stands for what the vocabulary cannot spell.
    pub unknown_token_id: Option<u32>,
    /// Fills batches.
    pub padding_token_id: Option<u32>,
    /// Whether texts begin with the bos token; the model kind decides when absent.
    pub add_bos_token: Option<bool>,
    /// Whether a `llama` vocabulary puts a space before a text; it does when absent.
    pub add_space_prefix: Option<bool>,
}

/// How a token of a GGUF vocabulary is matched and shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl GgufVocab {
    /// The kind of the token `id`. What begins or ends texts and turns is a control token even where the file forgot to
    /// say so.
    pub(super) fn kind(&self, id: usize) -> TokenKind {
        let marks = [self.bos_token_id, self.eos_token_id, self.eot_token_id];
        match self.token_types.get(id) {
            None | Some(1) if marks.into_iter().flatten().any(|mark| mark as usize == id) => TokenKind::Control,
            Some(2) => TokenKind::Unknown,
            Some(3) => TokenKind::Control,
            Some(4) => TokenKind::UserDefined,
            Some(5) => TokenKind::Unused,
            Some(6) => TokenKind::Byte,
            _ => TokenKind::Normal,
        }
    }

    /// Checks that the arrays fit together and the special ids exist.
    pub(super) fn check(&self) -> Result<(), super::TextError> {
        let malformed = |message: String| Err(super::TextError::MalformedTokenizer(message));
        let count = self.tokens.len();
        if count == 0 || u32::try_from(count).is_err() {
            return malformed(format!("tokenizer.ggml.tokens has {count} entries"));
        }
        for (field, len) in [("scores", self.scores.len()), ("token_type", self.token_types.len())] {
            if len != 0 && len != count {
                return malformed(format!("tokenizer.ggml.{field} has {len} entries for {count} tokens"));
            }
        }
        let ids = [
            ("bos", self.bos_token_id),
            ("eos", self.eos_token_id),
            ("eot", self.eot_token_id),
            ("unknown", self.unknown_token_id),
            ("padding", self.padding_token_id),
        ];
        match ids.into_iter().find(|(_, id)| id.is_some_and(|id| id as usize >= count)) {
            Some((name, Some(id))) => malformed(format!("{name} token {id} is outside the vocabulary of {count}")),
            _ => Ok(()),
        }
    }
}
