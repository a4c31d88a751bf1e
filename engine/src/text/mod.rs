//! Text in and out of token ids: tokenizers, the incremental detokenizer with stop strings, chat templates.
//! Knows files' bytes and tokens; knows nothing of models, requests' scheduling or HTTP.

mod byte_level;
mod decoder;
mod error;
mod pre_tokenizer;
mod sentence_piece;
mod stop;
mod token_table;
mod tokenizer;
mod tokenizer_json;
mod utf8;
mod vocab;

pub use decoder::{StopReason, TextDecoder, TextDelta};
pub use error::TextError;
pub use tokenizer::{DEFAULT_MAX_TEXT_BYTES, Tokenizer};
pub use vocab::{GgufVocab, TokenizerSource};
mod chat_template_stub;
pub use chat_template_stub::ChatTemplate;
