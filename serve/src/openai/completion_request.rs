//! `POST /v1/completions`.

use crate::error::ApiError;
use crate::fields::{Fields, Schema};
use crate::limits::Limits;
use crate::openai::prompt::Prompt;
use crate::openai::sampling::{COMMON, CommonFields, IGNORED, UNSUPPORTED, read_count};

/// The request's fields; `suffix` is the one that chat does not have.
const SCHEMA: Schema =
    Schema { known: &[COMMON, &["prompt", "echo", "logprobs", "suffix"]], ignored: IGNORED, unsupported: UNSUPPORTED };

/// A completion request, checked against every bound that needs no tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionRequest {
    /// What chat has too. `params.logprobs` is filled in.
    pub common: CommonFields,
    /// At least one prompt.
    pub prompts: Vec<Prompt>,
    /// The answer begins with the prompt.
    pub echo: bool,
}

impl CompletionRequest {
    /// Reads a body.
    ///
    /// Errors: malformed JSON, a field that is unknown, unsupported, of the wrong type or out of bounds.
    pub fn parse(json: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let fields = Fields::parse(json, &SCHEMA)?;
        if fields.get::<String>("suffix")?.is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::Unsupported { param: "suffix", hint: String::new() });
        }
        let mut common = CommonFields::read(&fields, limits)?;
        let Some(prompt) = fields.raw("prompt") else {
            return Err(ApiError::invalid("prompt", "is missing"));
        };
        let prompts = Prompt::read(prompt, limits.max_sequences_per_request)?;
        let most = limits.max_sequences_per_request;
        if prompts.len() * common.num_choices > most {
            return Err(ApiError::invalid("n", format!("times the number of prompts must be at most {most}")));
        }
        common.params.logprobs = read_count(&fields, "logprobs")?;
        let echo = fields.get("echo")?.unwrap_or(false);
        if common.max_tokens == Some(0) && !echo {
            return Err(ApiError::invalid("max_tokens", "must be at least 1, or 0 together with `echo`"));
        }
        if echo && common.params.prompt_logprobs.is_none() {
            common.params.prompt_logprobs = common.params.logprobs;
        }
        Ok(Self { common, prompts, echo })
    }

    /// `max_tokens` when the client gives none, as OpenAI's and vLLM's.
    pub const DEFAULT_MAX_TOKENS: usize = 16;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(json: &str, part: &str) {
        let error = CompletionRequest::parse(json.as_bytes(), &Limits::default()).unwrap_err().to_string();
        assert!(error.contains(part), "{json}: {error}");
    }

    #[test]
    fn fields_arrive() {
        let json = br#"{"prompt":["a","b"],"echo":true,"logprobs":2,"n":3,"suffix":""}"#;
        let request = CompletionRequest::parse(json, &Limits::default()).unwrap();
        assert_eq!(request.prompts.len(), 2);
        assert!(request.echo);
        let params = &request.common.params;
        assert_eq!((params.logprobs, params.prompt_logprobs), (Some(2), Some(2)));
    }

    #[test]
    fn bounds_are_named() {
        check_refused("{}", "prompt: is missing");
        check_refused(r#"{"prompt":"a","logprobs":21}"#, "logprobs: must be at most 20");
        check_refused(r#"{"prompt":"a","max_tokens":0}"#, "max_tokens: must be at least 1");
        check_refused(r#"{"prompt":"a","suffix":"b"}"#, "`suffix` is not supported");
        check_refused(r#"{"prompt":["a","b","c"],"n":100}"#, "times the number of prompts");
        check_refused(r#"{"prompt":"a","messages":[]}"#, "unrecognized request argument: messages");
    }
}
