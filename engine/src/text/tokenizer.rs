//! A model's tokenizer: text to token ids and back. One type over `tokenizer.json`, byte-level BPE out of a GGUF file
//! and SentencePiece out of a GGUF file.

use std::sync::Arc;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, ModelWrapper};

use super::error::{TextError, contain_panic, one_line};
use super::library::Library;
use super::pre_tokenizer::PreTokenizerSpec;
use super::sentence_piece::{SPACE, SentencePiece, SpecialNames};
use super::token_table::{Spelling, TokenTable};
use super::tokenizer_json::JsonFacts;
use super::vocab::{GgufVocab, TokenKind, TokenizerSource};
use crate::request::TokenId;

/// Bytes of text that [`Tokenizer::encode`] takes unless [`Tokenizer::with_max_text_bytes`] says otherwise: what a
/// context of 128 Ki tokens holds, and what bounds the time and memory of one call.
pub const DEFAULT_MAX_TEXT_BYTES: usize = 1 << 20;

/// Text to token ids and back. Cheap to clone; clones share the vocabulary.
///
/// ```
/// use aisp_engine::text::{GgufVocab, Tokenizer, TokenizerSource};
/// let tokens = ["h", "i", "Ġ", "hi", "<end>"].map(String::from).to_vec();
/// let vocab = GgufVocab {
///     model: "gpt2".into(),
///     pre: Some("smollm".into()),
///     tokens,
///     token_types: vec![1, 1, 1, 1, 3],
///     merges: vec!["h i".into()],
///     ..GgufVocab::default()
/// };
/// let tokenizer = Tokenizer::new(TokenizerSource::Gguf(vocab))?;
/// assert_eq!(tokenizer.encode("hi hi<end>", false)?, [3, 2, 3, 4]);
/// assert_eq!(tokenizer.decode(&[3, 2, 3, 4], true), "hi hi");
/// # Ok::<(), aisp_engine::text::TextError>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    shared: Arc<Shared>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    max_text_bytes: usize,
}

struct Shared {
    encoder: Encoder,
    table: TokenTable,
    /// Encoding puts a space before a text, so decoding a whole text takes it away.
    strip_space_prefix: bool,
}

/// Where token ids come from.
enum Encoder {
    /// The `tokenizers` crate. `add_bos` is for GGUF files; a `tokenizer.json` has a post-processor for it.
    Library { library: Box<Library>, add_bos: bool },
    /// Our SentencePiece.
    SentencePiece { vocab: Box<SentencePiece>, add_bos: bool },
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Builds the tokenizer of a model.
    ///
    /// Errors: no tokenizer, a malformed one, or a kind that is not implemented.
    pub fn new(source: TokenizerSource) -> Result<Self, TextError> {
        match source {
            TokenizerSource::None => Err(TextError::NoTokenizer),
            TokenizerSource::Json(bytes) => Self::from_json(&bytes),
            TokenizerSource::Gguf(vocab) => Self::from_gguf(&vocab),
        }
    }

    /// Builds it from the bytes of a `tokenizer.json`. The file does not name its eos token: see
    /// [`Tokenizer::with_bos_eos`].
    ///
    /// Errors: malformed JSON, or a decoder that is not implemented.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TextError> {
        let facts = JsonFacts::read(bytes)?;
        let malformed = |message: String| TextError::MalformedTokenizer(one_line(&message));
        let mut library = contain_panic("the tokenizer library", || {
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| e.to_string())
        })
        .map_err(malformed)?;
        // What a file was trained with must not shorten, fill or perturb prompts.
        library.with_truncation(None).map_err(|e| malformed(e.to_string()))?;
        library.with_padding(None);
        if let ModelWrapper::BPE(bpe) = library.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            library.with_model(bpe);
        }
        let table = table_of_library(&library, facts.spelling)?;
        let bos = facts.bos.and_then(|name| library.token_to_id(&name));
        let encoder = Encoder::Library { library: Box::new(Library::new(library)), add_bos: false };
        Ok(Self::assemble(Shared { encoder, table, strip_space_prefix: facts.strip_space_prefix }, bos, None))
    }

    /// Builds it from the fields of a GGUF file.
    ///
    /// Errors: fields that do not fit together, or a kind that is not implemented.
    pub fn from_gguf(vocab: &GgufVocab) -> Result<Self, TextError> {
        vocab.check()?;
        let shared = match vocab.model.as_str() {
            "gpt2" => byte_level_of_gguf(vocab)?,
            "llama" => sentence_piece_of_gguf(vocab)?,
            other => {
                return Err(TextError::Unsupported {
                    what: "tokenizer.ggml.model",
                    name: one_line(other),
                    known: "gpt2, llama".into(),
                });
            }
        };
        Ok(Self::assemble(shared, vocab.bos_token_id, vocab.eos_token_id))
    }

    fn assemble(shared: Shared, bos: Option<TokenId>, eos: Option<TokenId>) -> Self {
        Self { shared: Arc::new(shared), bos, eos, max_text_bytes: DEFAULT_MAX_TEXT_BYTES }
    }

    /// The same tokenizer with the special tokens that `tokenizer_config.json` names; `None` keeps what is known.
    ///
    /// Errors: a name that is not in the vocabulary.
    pub fn with_bos_eos(mut self, bos: Option<&str>, eos: Option<&str>) -> Result<Self, TextError> {
        let find = |name: &str| self.token_id(name).ok_or_else(|| TextError::UnknownToken(one_line(name)));
        let (bos, eos) = (bos.map(find).transpose()?, eos.map(find).transpose()?);
        self.bos = bos.or(self.bos);
        self.eos = eos.or(self.eos);
        Ok(self)
    }

    /// The same with ids, as a model's config names them; `None` keeps what is known.
    pub fn with_bos_eos_ids(mut self, bos: Option<TokenId>, eos: Option<&TokenId>) -> Self {
        self.bos = bos.or(self.bos);
        self.eos = eos.copied().or(self.eos);
        self
    }

    /// `bos_token` and `eos_token` with their names, as chat templates want them.
    pub fn special_tokens(&self) -> Vec<(String, String)> {
        let named = |key: &str, id: Option<TokenId>| Some((key.to_owned(), self.token_name(id?)?.to_owned()));
        [named("bos_token", self.bos), named("eos_token", self.eos)].into_iter().flatten().collect()
    }

    /// The same tokenizer with another bound on the length of texts.
    pub fn with_max_text_bytes(mut self, max_text_bytes: usize) -> Self {
        self.max_text_bytes = max_text_bytes;
        self
    }

    /// The tokens of `text`. Names of special tokens in it become those tokens, as Hugging Face and vLLM do for
    /// prompts and rendered chats. `add_special` puts the bos token in front when the model wants one.
    ///
    /// Errors: a text longer than the bound, or one on which the tokenizer fails.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        self.encode_with(text, add_special, SpecialNames::All)
    }

    /// As [`Tokenizer::encode`], but names of special tokens are ordinary text: nothing in it can end a turn.
    ///
    /// Errors: as [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str, add_special: bool) -> Result<Vec<TokenId>, TextError> {
        self.encode_with(text, add_special, SpecialNames::UserDefined)
    }

    fn encode_with(&self, text: &str, add_special: bool, names: SpecialNames) -> Result<Vec<TokenId>, TextError> {
        if text.len() > self.max_text_bytes {
            return Err(TextError::TextTooLong { bytes: text.len(), max_bytes: self.max_text_bytes });
        }
        let (mut ids, add_bos) = match &self.shared.encoder {
            Encoder::SentencePiece { vocab, add_bos } => (vocab.encode(text, names), *add_bos),
            Encoder::Library { library, add_bos } => (library.encode(text, add_special, names)?, *add_bos),
        };
        if let Some(bos) = self.bos.filter(|_| add_special && add_bos) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// The least number of tokens that a text of this many bytes can have. A prompt that cannot fit the context is
    /// refused by this before any work is done on it.
    pub fn min_token_count(&self, text_bytes: usize) -> usize {
        text_bytes.div_ceil(self.shared.table.longest_bytes().max(1))
    }

    /// The text of `ids` on their own. Bytes that are not UTF-8 become U+FFFD as in `String::from_utf8_lossy`; ids that
    /// do not exist are passed over. The space that encoding puts before a text is taken away.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> String {
        let bytes = self.decode_bytes(ids, skip_special);
        let bytes = match bytes.strip_prefix(b" ") {
            Some(rest) if self.shared.strip_space_prefix => rest,
            _ => &bytes,
        };
        String::from_utf8_lossy(bytes).into_owned()
    }

    /// The bytes of `ids` within a longer text: what they add to it.
    pub fn decode_bytes(&self, ids: &[TokenId], skip_special: bool) -> Vec<u8> {
        ids.iter()
            .filter(|id| !(skip_special && self.is_special(**id)))
            .flat_map(|id| self.token_to_bytes(*id))
            .copied()
            .collect()
    }

    /// The bytes of text that a token stands for; none for an id that does not exist. Special tokens stand for their
    /// name.
    pub fn token_to_bytes(&self, id: TokenId) -> &[u8] {
        self.shared.table.bytes(id)
    }

    /// A token's text as log-probabilities show it: bytes that are no whole character become U+FFFD.
    pub fn token_str(&self, id: TokenId) -> String {
        String::from_utf8_lossy(self.token_to_bytes(id)).into_owned()
    }

    /// A token's name in the vocabulary, as `Ġhello`.
    pub fn token_name(&self, id: TokenId) -> Option<&str> {
        self.shared.table.name(id)
    }

    /// The token of that name in the vocabulary.
    pub fn token_id(&self, name: &str) -> Option<TokenId> {
        match &self.shared.encoder {
            Encoder::Library { library, .. } => library.token_id(name),
            Encoder::SentencePiece { vocab, .. } => vocab.token_id(name),
        }
    }

    #[cfg(test)]
    pub(super) fn library(&self) -> Option<&Library> {
        match &self.shared.encoder {
            Encoder::Library { library, .. } => Some(library),
            Encoder::SentencePiece { .. } => None,
        }
    }

    /// One more than the highest id. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.shared.table.len()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }

    /// Whether the token marks structure and is left out of answers.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.shared.table.is_special(id)
    }
}

fn byte_level_of_gguf(vocab: &GgufVocab) -> Result<Shared, TextError> {
    let malformed = |message: String| TextError::MalformedTokenizer(one_line(&message));
    let spec = PreTokenizerSpec::by_name(vocab.pre.as_deref())?;
    let ids: Vocab = vocab.tokens.iter().cloned().zip(0..).collect();
    let mut merges = Vec::with_capacity(vocab.merges.len());
    for (rank, merge) in vocab.merges.iter().enumerate() {
        let (left, right) =
            merge.split_once(' ').ok_or_else(|| malformed(format!("merge {rank} '{merge}' is not a pair")))?;
        merges.push((left.to_string(), right.to_string()));
    }
    let bpe = contain_panic("the tokenizer library", || {
        let builder = BPE::builder().vocab_and_merges(ids, merges).ignore_merges(spec.ignore_merges);
        builder.build().map_err(|error| error.to_string())
    })
    .map_err(|message| malformed(format!("tokenizer.ggml.merges: {message}")))?;
    let mut library = tokenizers::Tokenizer::new(bpe);
    library.with_pre_tokenizer(Some(spec.build()?));
    let mut table = TokenTable::default();
    let mut added = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        let kind = vocab.kind(id);
        let special = matches!(kind, TokenKind::Control | TokenKind::Unknown);
        if special || kind == TokenKind::UserDefined {
            table.push_literal(token, special);
            added.push(AddedToken::from(token.clone(), special).normalized(false));
        } else {
            table.push_ordinary(token, Spelling::ByteLevel);
        }
    }
    contain_panic("the tokenizer library", || library.add_tokens(added).map_err(|error| error.to_string()))
        .map_err(malformed)?;
    let add_bos = vocab.add_bos_token.unwrap_or(spec.add_bos);
    let encoder = Encoder::Library { library: Box::new(Library::new(library)), add_bos };
    Ok(Shared { encoder, table, strip_space_prefix: false })
}

fn sentence_piece_of_gguf(vocab: &GgufVocab) -> Result<Shared, TextError> {
    let pieces = SentencePiece::new(vocab)?;
    let mut table = TokenTable::default();
    for (id, token) in vocab.tokens.iter().enumerate() {
        match vocab.kind(id) {
            TokenKind::Control | TokenKind::Unknown => table.push_literal(token, true),
            TokenKind::UserDefined => table.push_literal(token, false),
            kind => {
                let byte_fallback = kind == TokenKind::Byte;
                table.push_ordinary(token, Spelling::SentencePiece { space: SPACE, byte_fallback });
            }
        }
    }
    let strip_space_prefix = pieces.add_space_prefix();
    let add_bos = vocab.add_bos_token.unwrap_or(true);
    Ok(Shared { encoder: Encoder::SentencePiece { vocab: Box::new(pieces), add_bos }, table, strip_space_prefix })
}

fn table_of_library(library: &tokenizers::Tokenizer, spelling: Spelling) -> Result<TokenTable, TextError> {
    // A file may give a token any 32-bit id: the table has a row for each id below the highest.
    const MAX_VOCAB_SIZE: usize = 1 << 22;
    let added = library.get_added_tokens_decoder();
    let vocab = library.get_vocab(true);
    let size = vocab.values().max().map_or(0, |id| *id as usize + 1);
    if size == 0 || size > MAX_VOCAB_SIZE {
        return Err(TextError::MalformedTokenizer(format!(
            "the vocabulary's highest id is {}: it must be below {MAX_VOCAB_SIZE}",
            size.saturating_sub(1)
        )));
    }
    let mut names = vec![""; size];
    for (name, id) in &vocab {
        names[*id as usize] = name;
    }
    let mut table = TokenTable::default();
    for (id, name) in (0..).zip(names) {
        match added.get(&id) {
            Some(token) => table.push_literal(&token.content, token.special),
            None => table.push_ordinary(name, spelling),
        }
    }
    Ok(table)
}
