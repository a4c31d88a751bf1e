//! The OpenAI wire format, as far as a load generator needs it: the body of a request, and of each streamed chunk only
//! what bears on its measurement. Chunks are read without building a tree of values.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::config::{Config, Endpoint};
use crate::prompt::{Content, Prompt};

/// What one streamed chunk says.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Chunk {
    /// It has a choice, so it is not a bare usage report.
    pub has_choice: bool,
    /// It carries text (or reasoning, or part of a tool call).
    pub has_text: bool,
    /// Tokens in it, where `token_ids` or `logprobs` tell.
    pub tokens: Option<u64>,
    /// Its usage: tokens generated so far.
    pub completion_tokens: Option<u64>,
    /// Its usage: tokens of the prompt.
    pub prompt_tokens: Option<u64>,
    /// The message of an error object.
    pub error: Option<String>,
}

impl Chunk {
    /// Reads the data of one event.
    ///
    /// Errors: what is wrong with it, as the JSON reader says.
    pub fn parse(data: &[u8]) -> Result<Self, serde_json::Error> {
        let raw: RawChunk = serde_json::from_slice(data)?;
        let usage = raw.usage.unwrap_or_default();
        let mut chunk = Self {
            completion_tokens: usage.completion_tokens,
            prompt_tokens: usage.prompt_tokens,
            error: raw.error.map(|error| error.message()),
            ..Self::default()
        };
        for choice in raw.choices.into_iter().flatten() {
            chunk.has_choice = true;
            let delta = choice.delta.unwrap_or_default();
            chunk.has_text |= choice.text.0 || delta.content.0 || delta.reasoning_content.0 || delta.reasoning.0;
            chunk.has_text |= delta.tool_calls.0.is_some_and(|calls| calls > 0);
            let logprobs = choice.logprobs.unwrap_or_default();
            let tokens = choice.token_ids.0.or(logprobs.tokens.0).or(logprobs.content.0);
            chunk.tokens = tokens.map(|tokens| tokens + chunk.tokens.unwrap_or(0)).or(chunk.tokens);
        }
        Ok(chunk)
    }
}

#[derive(Deserialize)]
struct RawChunk {
    choices: Option<Vec<RawChoice>>,
    usage: Option<RawUsage>,
    error: Option<RawError>,
}

#[derive(Deserialize, Default)]
struct RawUsage {
    completion_tokens: Option<u64>,
    prompt_tokens: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawError {
    Object { message: String },
    Text(String),
    Other(Value),
}

impl RawError {
    fn message(self) -> String {
        match self {
            Self::Object { message } | Self::Text(message) => message,
            Self::Other(value) => value.to_string(),
        }
    }
}

#[derive(Deserialize)]
struct RawChoice {
    #[serde(default)]
    text: HasText,
    delta: Option<RawDelta>,
    #[serde(default)]
    token_ids: Count,
    logprobs: Option<RawLogprobs>,
}

#[derive(Deserialize, Default)]
struct RawDelta {
    #[serde(default)]
    content: HasText,
    #[serde(default)]
    reasoning_content: HasText,
    #[serde(default)]
    reasoning: HasText,
    #[serde(default)]
    tool_calls: Count,
}

#[derive(Deserialize, Default)]
struct RawLogprobs {
    #[serde(default)]
    tokens: Count,
    #[serde(default)]
    content: Count,
}

/// Whether a string field is there and not empty; the string itself is not kept.
#[derive(Default)]
struct HasText(bool);

impl<'de> Deserialize<'de> for HasText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Probe).map(|size| Self(size.is_some_and(|size| size > 0)))
    }
}

/// The length of a list field, `None` when it is absent or null; the items are not kept.
#[derive(Default)]
struct Count(Option<u64>);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Probe).map(Self)
    }
}

/// Measures a value and forgets it: the length of a string or list; `None` for null.
struct Probe;

impl<'de> Visitor<'de> for Probe {
    type Value = Option<u64>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string, a list or null")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(text.len() as u64))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut count = 0;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok(Some(count))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// The JSON body of the request for one prompt.
pub(crate) fn request_body(config: &Config, model: &str, prompt: &Prompt) -> Vec<u8> {
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    match (config.endpoint, &prompt.content) {
        (Endpoint::Chat, Content::Messages(messages)) => body.insert("messages".into(), messages.clone()),
        (Endpoint::Chat, Content::Text(text)) => {
            body.insert("messages".into(), json!([{ "role": "user", "content": text }]))
        }
        (Endpoint::Completions, Content::Text(text)) => body.insert("prompt".into(), text.as_str().into()),
        // Data sets refuse this pair while they are read.
        (Endpoint::Completions, Content::Messages(messages)) => body.insert("prompt".into(), messages.clone()),
    };
    body.insert("max_tokens".into(), prompt.max_tokens.into());
    body.insert("temperature".into(), config.temperature.into());
    body.insert("stream".into(), true.into());
    let mut stream_options = Map::from_iter([("include_usage".to_owned(), Value::from(true))]);
    if config.continuous_usage {
        stream_options.insert("continuous_usage_stats".into(), true.into());
    }
    body.insert("stream_options".into(), stream_options.into());
    if config.ignore_eos {
        body.insert("ignore_eos".into(), true.into());
    }
    for (name, value) in &config.extra_body {
        body.insert(name.clone(), value.clone());
    }
    Value::Object(body).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(data: &str) -> Chunk {
        Chunk::parse(data.as_bytes()).unwrap()
    }

    #[test]
    fn chunks_of_both_endpoints() {
        let text = Chunk { has_choice: true, has_text: true, ..Chunk::default() };
        assert_eq!(parse(r#"{"id":"x","choices":[{"index":0,"text":"a\n","logprobs":null}],"usage":null}"#), text);
        assert_eq!(parse(r#"{"choices":[{"delta":{"content":"hé"},"finish_reason":null}]}"#), text);
        assert_eq!(parse(r#"{"choices":[{"delta":{"reasoning_content":"hm"}}]}"#), text);
        assert_eq!(parse(r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}"#), text);
        let silent = Chunk { has_text: false, ..text };
        assert_eq!(parse(r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#), silent);
        assert_eq!(parse(r#"{"choices":[{"text":"","finish_reason":"length"}]}"#), silent);
    }

    #[test]
    fn token_counts_and_usage() {
        let count = |data| parse(data).tokens;
        assert_eq!(count(r#"{"choices":[{"text":"abc","token_ids":[1,2,3]}]}"#), Some(3));
        assert_eq!(
            count(r#"{"choices":[{"text":"ab","logprobs":{"tokens":["a","b"],"top_logprobs":[{},{}]}}]}"#),
            Some(2)
        );
        assert_eq!(count(r#"{"choices":[{"delta":{"content":"a"},"logprobs":{"content":[{"token":"a"}]}}]}"#), Some(1));
        let usage = parse(r#"{"choices":[],"usage":{"prompt_tokens":5,"total_tokens":9,"completion_tokens":4}}"#);
        assert_eq!((usage.has_choice, usage.prompt_tokens, usage.completion_tokens), (false, Some(5), Some(4)));
    }

    #[test]
    fn errors_in_a_stream() {
        let message = |data| parse(data).error.unwrap();
        assert_eq!(message(r#"{"error":{"message":"out of blocks","code":500}}"#), "out of blocks");
        assert_eq!(message(r#"{"error":"boom"}"#), "boom");
        assert_eq!(message(r#"{"error":{"code":3}}"#), r#"{"code":3}"#);
        assert!(Chunk::parse(b"{\"choices\":[").is_err());
        assert!(Chunk::parse(b"not json").is_err());
    }

    #[test]
    fn bodies_say_what_is_asked() {
        let mut config = Config { ignore_eos: true, ..Config::default() };
        config.extra_body.insert("top_k".into(), 3.into());
        let prompt = Prompt { content: Content::Text("Hi \"you\"".into()), max_tokens: 9, estimated_tokens: 2 };
        let body: Value = serde_json::from_slice(&request_body(&config, "m", &prompt)).unwrap();
        assert_eq!(
            body,
            json!({"model": "m", "prompt": "Hi \"you\"", "max_tokens": 9, "temperature": 0.0, "stream": true, "top_k": 3,
                   "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "ignore_eos": true})
        );
        config.endpoint = Endpoint::Chat;
        config.continuous_usage = false;
        let body: Value = serde_json::from_slice(&request_body(&config, "m", &prompt)).unwrap();
        assert_eq!(body["messages"], json!([{"role": "user", "content": "Hi \"you\""}]));
        assert_eq!(body["stream_options"], json!({"include_usage": true}));
        assert_eq!(body.get("prompt"), None);
    }
}
