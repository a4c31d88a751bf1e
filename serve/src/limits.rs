//! The bounds on what one request may ask for. Every list and number from the wire is checked against one of these.

use std::time::Duration;

/// Bounds of requests and connections. The defaults hold a full 128 Ki-token context.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of a request body.
    pub max_body_bytes: usize,
    /// Time in which a request body must have arrived.
    pub body_timeout: Duration,
    /// Time in which a request head must have arrived; idle connections close after it too.
    pub header_timeout: Duration,
    /// A connection whose peer reads nothing for this long is cut.
    pub write_stall_timeout: Duration,
    /// Open connections; more are answered with 503 and closed.
    pub max_connections: usize,
    /// Choices for one prompt (`n`).
    pub max_choices: usize,
    /// Sequences of one HTTP request: prompts times `n`.
    pub max_sequences_per_request: usize,
    /// Messages of a chat.
    pub max_messages: usize,
    /// Parts of one message's content.
    pub max_content_parts: usize,
    /// Stop strings.
    pub max_stop_strings: usize,
    /// Bytes of one stop string.
    pub max_stop_bytes: usize,
    /// Entries of `stop_token_ids`.
    pub max_stop_token_ids: usize,
    /// Entries of `logit_bias`.
    pub max_logit_biases: usize,
    /// Characters of a request id.
    pub max_request_id_chars: usize,
    /// Bytes of a cache salt.
    pub max_cache_salt_bytes: usize,
    /// Bytes of `chat_template_kwargs` and of each field of a message that only the template reads.
    pub max_template_json_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_body_bytes: 2 << 20,
            body_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(30),
            write_stall_timeout: Duration::from_secs(30),
            max_connections: 16_384,
            max_choices: 128,
            max_sequences_per_request: 256,
            max_messages: 4096,
            max_content_parts: 256,
            max_stop_strings: 16,
            max_stop_bytes: 1024,
            max_stop_token_ids: 256,
            max_logit_biases: 1024,
            max_request_id_chars: 128,
            max_cache_salt_bytes: 256,
            max_template_json_bytes: 64 << 10,
        }
    }
}
