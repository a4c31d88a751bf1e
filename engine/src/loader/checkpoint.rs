//! A model in memory, complete and checked, with everything that its files say about text.

use crate::model::{ModelConfig, Weights};

use crate::text::TokenizerSource;

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
