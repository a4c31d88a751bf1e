//! A prompt, ready to be put into a request.

use serde_json::Value;

/// What is asked of the model in one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The text or the chat.
    pub content: Content,
    /// Tokens to generate at most.
    pub max_tokens: usize,
    /// Tokens of the content: the server's tokenizer's count where it has one, else by words. Used only where the
    /// response reports no usage.
    pub estimated_tokens: u64,
}

/// The two shapes of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Plain text; for a chat it becomes one user message.
    Text(String),
    /// The `messages` of a chat, as the data set has them.
    Messages(Value),
}

/// Tokens per word of English prose under a tokenizer of 32 k to 128 k entries; used where the server has no
/// `/tokenize`.
pub const TOKENS_PER_WORD: f64 = 1.3;

/// How many tokens a text has, judged by its words.
pub fn tokens_by_words(text: &str) -> u64 {
    (text.split_whitespace().count() as f64 * TOKENS_PER_WORD).ceil() as u64
}

/// Tokens of the strings anywhere in a chat's messages, judged by words.
pub(crate) fn message_tokens_by_words(messages: &Value) -> u64 {
    match messages {
        Value::String(text) => tokens_by_words(text),
        Value::Array(items) => items.iter().map(message_tokens_by_words).sum(),
        Value::Object(fields) => fields.get("content").map_or(0, message_tokens_by_words),
        _ => 0,
    }
}
