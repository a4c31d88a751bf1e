//! The prompts of a completion request, in the four forms that OpenAI allows.

use aisp_engine::TokenId;
use serde_json::value::RawValue;

use crate::error::ApiError;
use crate::fields::{read, read_list};

const PARAM: &str = "prompt";

/// One prompt as the client sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// Text, to be tokenized.
    Text(String),
    /// Token ids, taken as they are.
    Tokens(Vec<TokenId>),
}

impl Prompt {
    /// About how many tokens it has: exact for ids, a quarter of the bytes for text.
    pub fn estimated_tokens(&self) -> usize {
        match self {
            Self::Text(text) => text.len().div_ceil(4),
            Self::Tokens(tokens) => tokens.len(),
        }
    }

    /// Reads a string, a list of strings, a list of ids, or a list of lists of ids.
    ///
    /// Errors: another type, nothing at all, or more than `max_prompts`.
    pub fn read(raw: &RawValue, max_prompts: usize) -> Result<Vec<Self>, ApiError> {
        // A prompt cannot have more tokens than its body has bytes, so the body's bound is the bound here.
        let max_tokens = raw.get().len();
        let json = raw.get().as_bytes();
        let inside = json.iter().skip(1).find(|byte| !byte.is_ascii_whitespace());
        let prompts: Vec<Self> = match (json.first(), inside) {
            (Some(b'"'), _) => vec![Self::Text(read(raw, PARAM)?)],
            (Some(b'['), Some(b'"')) => read_list(raw, PARAM, max_prompts)?.into_iter().map(Self::Text).collect(),
            (Some(b'['), Some(b'[')) => read_list::<&RawValue>(raw, PARAM, max_prompts)?
                .into_iter()
                .map(|list| read_list(list, PARAM, max_tokens).map(Self::Tokens))
                .collect::<Result<_, _>>()?,
            (Some(b'['), Some(b']')) => Vec::new(),
            (Some(b'['), _) => vec![Self::Tokens(read_list(raw, PARAM, max_tokens)?)],
            _ => Vec::new(),
        };
        if prompts.is_empty() {
            let message = "must be a string, a list of strings, a list of token ids, or a list of such lists";
            return Err(ApiError::invalid(PARAM, message));
        }
        Ok(prompts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: Result<Vec<Prompt>, &str>) {
        let raw: Box<RawValue> = serde_json::from_str(json).unwrap();
        match (Prompt::read(&raw, 2), expected) {
            (Ok(prompts), Ok(expected)) => assert_eq!(prompts, expected, "{json}"),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{json}: {error}"),
            (result, _) => panic!("{json}: {result:?}"),
        }
    }

    #[test]
    fn four_forms_are_read() {
        let text = |text: &str| Prompt::Text(text.into());
        check(r#""a""#, Ok(vec![text("a")]));
        check(r#"[ "a", "b" ]"#, Ok(vec![text("a"), text("b")]));
        check("[1,2]", Ok(vec![Prompt::Tokens(vec![1, 2])]));
        check("[ [1], [2,3]]", Ok(vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]));
    }

    #[test]
    fn anything_else_is_refused() {
        for json in
            ["[]", "1", "{}", "true", "[true]", "[1,\"a\"]", "[\"a\",1]", "[[1],2]", "[-1]", "[4294967296]", "[1.5]"]
        {
            check(json, Err("prompt: "));
        }
        check(r#"["a","b","c"]"#, Err("at most 2 entries"));
    }
}
