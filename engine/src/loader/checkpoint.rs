//! A model in memory, complete and checked, with everything that its files say about text.

use crate::model::{ModelConfig, Weights};

use super::source::ModelSource;

/// A loaded model. Every tensor that the config calls for is there, in the shape it calls for, and no other.
#[derive(Debug)]
pub struct Checkpoint {
    /// The id that `/v1/models` shows.
    pub name: String,
    /// Where it came from.
    pub source: ModelSource,
    /// Its shape.
    pub config: ModelConfig,
    /// Its tensors.
    pub weights: Weights,
    /// Its tokenizer as the file had it.
    pub tokenizer: TokenizerSource,
    /// Its chat template (Jinja), if it has one.
    pub chat_template: Option<String>,
    /// The types of its matrices, most frequent first: `Q8_0`, `Q4_1+Q8_0`, `bf16 as f32`.
    pub weight_format: String,
    /// Values in its tensors; a tied head counts once.
    pub num_parameters: u64,
    /// Bytes that the tensors take in memory.
    pub weight_bytes: u64,
}

/// A tokenizer as a checkpoint carries it; [`crate::text`] makes it work.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// There is none: prompts are token ids.
    None,
    /// A `tokenizer.json`, unparsed.
    Json(Vec<u8>),
    /// The vocabulary of a GGUF file.
    Gguf(GgufVocab),
}

/// The `tokenizer.ggml.*` metadata of a GGUF file. Ids are checked to lie inside `tokens`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GgufVocab {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece), ...
    pub model: String,
    /// Which pre-tokenizer splits the text: `smollm`, `llama-bpe`, `qwen2`, ...
    pub pre: Option<String>,
    /// Text of each token, as many as the model's vocabulary.
    pub tokens: Vec<String>,
    /// Log-probabilities of SentencePiece tokens: as many as `tokens`, or none.
    pub scores: Vec<f32>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte: as many as `tokens`, or none.
    pub token_types: Vec<i32>,
    /// BPE merges, most important first, the two halves separated by a space.
    pub merges: Vec<String>,
    /// Beginning of a text.
    pub bos_token_id: Option<u32>,
    /// End of a text.
    pub eos_token_id: Option<u32>,
    /// End of a chat turn.
    pub eot_token_id: Option<u32>,
    /// Stands for unknown text.
    pub unk_token_id: Option<u32>,
    /// Fills batches.
    pub pad_token_id: Option<u32>,
    /// Whether a prompt gets the beginning-of-text token in front.
    pub add_bos_token: Option<bool>,
    /// Whether SentencePiece puts a space in front of a text.
    pub add_space_prefix: Option<bool>,
}
