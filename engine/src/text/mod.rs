//! Text in and out of token ids: tokenizers, the incremental detokenizer with stop strings, chat templates.
//! Knows files' bytes and tokens; knows nothing of models, requests' scheduling or HTTP.

mod byte_level;
mod chat_template;
mod decoder;
mod error;
mod library;
mod pre_tokenizer;
mod sentence_piece;
mod stop;
mod template_budget;
mod template_builtins;
mod template_json;
mod token_table;
mod tokenizer;
mod tokenizer_json;
mod utf8;
mod vocab;
mod words;

pub use chat_template::{ChatContext, ChatMessage, ChatTemplate, MAX_TEMPLATE_BYTES};
pub use decoder::{StopReason, TextDecoder, TextDelta};
pub use error::TextError;
pub use template_budget::MAX_TEMPLATE_WORK_BYTES;
pub use tokenizer::{DEFAULT_MAX_TEXT_BYTES, Tokenizer};
pub use vocab::{GgufVocab, TokenizerSource};
