//! The wire formats: requests into sampling parameters, answers into JSON. Pure: no channel, no clock, no HTTP.

mod answer;
mod chat_request;
mod completion_request;
mod logprobs;
mod prompt;
mod sampling;

pub use answer::{AnswerFormat, AnswerSettings, ApiKind, ChoicePiece, PromptRecord, StopCause, Usage};
pub use chat_request::{ChatRequest, read_context, read_messages};
pub use completion_request::CompletionRequest;
pub use logprobs::TokenNames;
pub use prompt::Prompt;
pub use sampling::CommonFields;
