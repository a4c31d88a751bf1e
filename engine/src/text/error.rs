//! What can go wrong between text and tokens.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why text could not become tokens, or a template could not become text. Every message is one line.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TextError {
    /// The model came without a tokenizer.
    #[error("the model has no tokenizer: put tokenizer.json beside its weights, or send token ids")]
    NoTokenizer,
    /// A tokenizer file says something that cannot be used.
    #[error("the tokenizer is malformed: {0}")]
    MalformedTokenizer(String),
    /// A tokenizer of a kind that is not implemented.
    #[error("{what} '{name}' is not supported: use one of {known}")]
    Unsupported {
        /// The field that names it.
        what: &'static str,
        /// What the file asks for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The text is longer than the tokenizer takes.
    #[error("the text has {bytes} bytes, at most {max_bytes} are taken: shorten it")]
    TextTooLong {
        /// Bytes of the text.
        bytes: usize,
        /// Most that is taken.
        max_bytes: usize,
    },
    /// The tokenizer failed on this text.
    #[error("the tokenizer failed on this text: {0}")]
    Encode(String),
    /// A token's name is not in the vocabulary.
    #[error("the token '{0}' is not in the vocabulary")]
    UnknownToken(String),
    /// Messages were sent to a model without a chat template.
    #[error("the model has no chat template: pass one with --chat-template, or use /v1/completions")]
    NoChatTemplate,
    /// The chat template does not compile.
    #[error("the chat template is malformed{}: {message}", at_line(.line))]
    MalformedTemplate {
        /// Line of the template, from 1.
        line: Option<usize>,
        /// What is wrong there.
        message: String,
    },
    /// The template refused the messages through `raise_exception`.
    #[error("the chat template refused the messages: {0}")]
    TemplateRefused(String),
    /// The chat template failed on these messages.
    #[error("the chat template failed{}: {message}", at_line(.line))]
    TemplateFailed {
        /// Line of the template, from 1.
        line: Option<usize>,
        /// What went wrong there.
        message: String,
    },
}

fn at_line(line: &Option<usize>) -> String {
    line.map(|line| format!(" at line {line}")).unwrap_or_default()
}

/// Runs a call into a library and turns a panic into an error.
///
/// The `tokenizers` crate unwraps in places that a hostile vocabulary or text can reach (RELIABILITY.md measured a Split
/// pattern that makes `encode` panic), and minijinja subtracts unsigned numbers from a template; one request must not
/// take its thread along. Nothing of ours is left half-changed: `call` borrows immutable state or builds a value that
/// is dropped.
pub(super) fn contain_panic<T>(library: &str, call: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(format!("{library} panicked")))
}

/// Folds a message of a library into one line of bounded length.
pub(super) fn one_line(message: &str) -> String {
    const MAX_CHARS: usize = 300;
    let mut words = message.split_whitespace();
    let mut line = words.next().unwrap_or_default().to_string();
    for word in words {
        if line.len() > MAX_CHARS {
            break;
        }
        line.push(' ');
        line.push_str(word);
    }
    if let Some((cut, _)) = line.char_indices().nth(MAX_CHARS) {
        line.truncate(cut);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_of_bounded_length() {
        assert_eq!(one_line(" a\n\tb  c\n"), "a b c");
        assert!(one_line(&"é".repeat(10_000)).chars().count() <= 301);
        assert!(one_line(&"ab ".repeat(10_000)).chars().count() <= 301);
    }
}
