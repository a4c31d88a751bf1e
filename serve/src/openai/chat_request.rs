//! `POST /v1/chat/completions`.

use aisp_engine::text::{ChatContext, ChatMessage};
use serde_json::value::RawValue;

use crate::error::ApiError;
use crate::fields::{Fields, Schema, read, read_list};
use crate::limits::Limits;
use crate::openai::sampling::{COMMON, CommonFields, IGNORED, UNSUPPORTED, read_count};

const CHAT: &[&str] =
    &["messages", "logprobs", "top_logprobs", "max_completion_tokens", "chat_template_kwargs", "add_generation_prompt"];

const SCHEMA: Schema = Schema { known: &[COMMON, CHAT], ignored: IGNORED, unsupported: UNSUPPORTED };

/// The fields of one message: two are read, the rest is for the template.
const MESSAGE: Schema = Schema {
    known: &[&["role", "content"], TEMPLATE_ONLY],
    ignored: &["refusal", "annotations"],
    unsupported: &[("audio", &[]), ("function_call", &[])],
};

const TEMPLATE_ONLY: &[&str] = &["name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"];

const PART: Schema = Schema { known: &[&["type", "text"]], ignored: &[], unsupported: &[] };

/// A chat request, checked against every bound that needs no tokenizer.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest {
    /// What completions have too. `params.logprobs` and `max_tokens` are filled in.
    pub common: CommonFields,
    /// At least one message.
    pub messages: Vec<ChatMessage>,
    /// What the template sees beside them.
    pub context: ChatContext,
}

impl ChatRequest {
    /// Reads a body.
    ///
    /// Errors: malformed JSON, a field that is unknown, unsupported, of the wrong type or out of bounds.
    pub fn parse(json: &[u8], limits: &Limits) -> Result<Self, ApiError> {
        let fields = Fields::parse(json, &SCHEMA)?;
        let mut common = CommonFields::read(&fields, limits)?;
        if let Some(max_tokens) = fields.get("max_completion_tokens")? {
            common.max_tokens = Some(max_tokens);
        }
        if common.max_tokens == Some(0) {
            return Err(ApiError::invalid("max_tokens", "must be at least 1"));
        }
        let top = read_count(&fields, "top_logprobs")?;
        common.params.logprobs = match (fields.get("logprobs")?.unwrap_or(false), top) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(_)) => return Err(ApiError::invalid("top_logprobs", "takes `logprobs: true`")),
        };
        let messages = read_messages(&fields, limits)?;
        let context = read_context(&fields, limits)?;
        Ok(Self { common, messages, context })
    }

    /// About how many tokens the prompt has: a quarter of the bytes.
    pub fn estimated_tokens(&self) -> usize {
        self.messages.iter().map(|message| message.content.len().div_ceil(4) + 4).sum()
    }
}

/// Reads `chat_template_kwargs` and `add_generation_prompt`.
///
/// Errors: a value of the wrong type or out of bounds.
pub fn read_context(fields: &Fields<'_>, limits: &Limits) -> Result<ChatContext, ApiError> {
    Ok(ChatContext {
        add_generation_prompt: fields.get("add_generation_prompt")?.unwrap_or(true),
        kwargs: fields.small("chat_template_kwargs", limits.max_template_json_bytes)?.unwrap_or_default(),
        ..ChatContext::default()
    })
}

/// Reads `messages`.
///
/// Errors: none at all, too many, or one that is malformed.
pub fn read_messages(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<ChatMessage>, ApiError> {
    let raw: Vec<&RawValue> = fields.list("messages", limits.max_messages)?;
    if raw.is_empty() {
        return Err(ApiError::invalid("messages", "must have at least one message"));
    }
    raw.into_iter().map(|message| read_message(message, limits)).collect()
}

fn read_message(raw: &RawValue, limits: &Limits) -> Result<ChatMessage, ApiError> {
    const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];
    let fields = Fields::nested(raw, "messages", &MESSAGE)?;
    let role: String = fields.get("role")?.unwrap_or_default();
    if !ROLES.contains(&role.as_str()) {
        return Err(ApiError::invalid("messages", format!("`role` must be one of {}", ROLES.join(", "))));
    }
    let mut message = ChatMessage::new(role, read_content(&fields, limits)?);
    for name in TEMPLATE_ONLY {
        if let Some(value) = fields.small(name, limits.max_template_json_bytes)? {
            message.extra.insert((*name).to_owned(), value);
        }
    }
    Ok(message)
}

/// A string, or a list of parts of which every one is text.
fn read_content(fields: &Fields<'_>, limits: &Limits) -> Result<String, ApiError> {
    let Some(raw) = fields.raw("content") else { return Ok(String::new()) };
    if !raw.get().starts_with('[') {
        return read(raw, "messages");
    }
    let parts: Vec<&RawValue> = read_list(raw, "messages", limits.max_content_parts)?;
    let mut content = String::new();
    for part in parts {
        let only_text = || ApiError::invalid("messages", "this model takes content parts of type `text` only");
        let wire: Fields<'_> = read(part, "messages")?;
        if wire.get::<String>("type")?.as_deref() != Some("text") {
            return Err(only_text());
        }
        let part = Fields::nested(part, "messages", &PART)?;
        content.push_str(&part.get::<String>("text")?.ok_or_else(only_text)?);
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ChatRequest, ApiError> {
        ChatRequest::parse(json.as_bytes(), &Limits::default())
    }

    fn check_refused(json: &str, part: &str) {
        let error = parse(json).unwrap_err().to_string();
        assert!(error.contains(part), "{json}: {error}");
    }

    #[test]
    fn fields_arrive() {
        let request = parse(
            r#"{"messages":[{"role":"system","content":"s"},{"role":"user","name":"x","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
            "max_completion_tokens":5,"logprobs":true,"top_logprobs":2,"chat_template_kwargs":{"enable_thinking":false},
            "tools":[],"tool_choice":"none"}"#,
        )
        .unwrap();
        assert_eq!(request.messages[1].content, "ab");
        assert_eq!(request.messages[1].extra["name"], "x");
        assert_eq!(request.common.max_tokens, Some(5));
        assert_eq!(request.common.params.logprobs, Some(2));
        assert_eq!(request.context.kwargs["enable_thinking"], false);
        assert!(request.context.add_generation_prompt);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let user = r#"{"role":"user","content":"a"}"#;
        check_refused("{}", "messages: must have at least one message");
        check_refused(r#"{"messages":[]}"#, "messages: must have at least one message");
        check_refused(r#"{"messages":"a"}"#, "messages: invalid type");
        check_refused(r#"{"messages":[1]}"#, "messages: invalid type");
        check_refused(r#"{"messages":[{"content":"a"}]}"#, "`role` must be one of");
        check_refused(r#"{"messages":[{"role":"root","content":"a"}]}"#, "`role` must be one of");
        check_refused(r#"{"messages":[{"role":"user","content":3}]}"#, "messages: invalid type");
        check_refused(
            r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}"#,
            "parts of type `text` only",
        );
        check_refused(
            &format!(r#"{{"messages":[{user}],"tools":[{{"type":"function"}}]}}"#),
            "`tools` is not supported",
        );
        check_refused(
            &format!(r#"{{"messages":[{user}],"response_format":{{"type":"json_object"}}}}"#),
            "`response_format` is not supported",
        );
        check_refused(&format!(r#"{{"messages":[{user}],"logprobs":3}}"#), "logprobs: invalid type");
        check_refused(&format!(r#"{{"messages":[{user}],"top_logprobs":3}}"#), "takes `logprobs: true`");
        check_refused(&format!(r#"{{"messages":[{user}],"max_tokens":0}}"#), "max_tokens: must be at least 1");
        check_refused(&format!(r#"{{"messages":[{user}],"echo":true}}"#), "`echo` is not supported");
    }
}
