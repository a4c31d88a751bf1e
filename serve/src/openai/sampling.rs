//! The fields that chat and completion requests share: how to sample, when to stop, how to stream.

use std::sync::Arc;

use aisp_engine::{MAX_LOGPROBS, SamplingParams, TokenId};

use crate::error::ApiError;
use crate::fields::{Fields, read, read_list};
use crate::limits::Limits;

/// Names of the shared fields.
pub const COMMON: &[&str] = &[
    "model",
    "max_tokens",
    "n",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "prompt_logprobs",
    "return_token_ids",
    "request_id",
    "add_special_tokens",
    "priority",
    "cache_salt",
];

/// Fields of either API that change nothing in the answer.
pub const IGNORED: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
    "prediction",
];

/// Fields of either API that would change the answer, and the values that ask for nothing.
pub const UNSUPPORTED: &[(&str, &[&str])] = &[
    ("best_of", &["1"]),
    ("use_beam_search", &["false"]),
    ("length_penalty", &["1.0", "1"]),
    ("bad_words", &["[]"]),
    ("allowed_token_ids", &[]),
    ("response_format", &[r#"{"type":"text"}"#]),
    ("structured_outputs", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("truncate_prompt_tokens", &[]),
    ("spaces_between_special_tokens", &["true"]),
    ("logits_processors", &["[]"]),
    ("echo", &["false"]),
    ("tools", &["[]"]),
    ("tool_choice", &["\"none\"", "\"auto\""]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\"", "\"auto\""]),
    ("modalities", &["[\"text\"]"]),
    ("audio", &[]),
    ("reasoning_effort", &[]),
    ("verbosity", &[]),
    ("web_search_options", &[]),
    ("continue_final_message", &["false"]),
    ("chat_template", &[]),
    ("documents", &[]),
    ("mm_processor_kwargs", &[]),
];

/// `stream_options`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StreamOptions {
    /// A last event carries the usage.
    pub include_usage: bool,
    /// Every event carries the usage so far.
    pub continuous_usage_stats: bool,
}

/// What chat and completion requests have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct CommonFields {
    /// The model's name, if the client gave one.
    pub model: Option<String>,
    /// Answers to each prompt.
    pub num_choices: usize,
    /// How to sample. `max_tokens` and `logprobs` are left to the API.
    pub params: SamplingParams,
    /// `max_tokens` as given.
    pub max_tokens: Option<usize>,
    /// Present when the answer is streamed.
    pub stream: Option<StreamOptions>,
    /// Answers carry vLLM's `prompt_logprobs`. `params` may ask the engine for them for `echo` as well.
    pub prompt_logprobs_field: bool,
    /// Answers carry token ids.
    pub return_token_ids: bool,
    /// The client's own id for the request.
    pub request_id: Option<String>,
    /// Whether the tokenizer adds its special tokens, if the client said.
    pub add_special_tokens: Option<bool>,
    /// Lower goes first.
    pub priority: i32,
    /// Prompts share computed blocks only with those of the same salt.
    pub cache_salt: Option<Arc<str>>,
}

impl CommonFields {
    /// Reads them.
    ///
    /// Errors: a value of the wrong type or out of bounds, by name.
    pub fn read(fields: &Fields<'_>, limits: &Limits) -> Result<Self, ApiError> {
        let defaults = SamplingParams::default();
        let num_choices = fields.get::<usize>("n")?.unwrap_or(1);
        if !(1..=limits.max_choices).contains(&num_choices) {
            return Err(ApiError::invalid("n", format!("must be between 1 and {}", limits.max_choices)));
        }
        let float = |name, default: f32| Ok::<_, ApiError>(fields.get::<f32>(name)?.unwrap_or(default));
        let flag = |name, default: bool| Ok::<_, ApiError>(fields.get::<bool>(name)?.unwrap_or(default));
        let params = SamplingParams {
            temperature: float("temperature", defaults.temperature)?,
            top_k: read_top_k(fields)?,
            top_p: float("top_p", defaults.top_p)?,
            min_p: float("min_p", defaults.min_p)?,
            repetition_penalty: float("repetition_penalty", defaults.repetition_penalty)?,
            presence_penalty: float("presence_penalty", defaults.presence_penalty)?,
            frequency_penalty: float("frequency_penalty", defaults.frequency_penalty)?,
            seed: read_seed(fields)?,
            min_tokens: fields.get("min_tokens")?.unwrap_or(defaults.min_tokens),
            ignore_eos: flag("ignore_eos", defaults.ignore_eos)?,
            stop_token_ids: fields.list("stop_token_ids", limits.max_stop_token_ids)?,
            stop: read_stop(fields, limits)?,
            include_stop_str_in_output: flag("include_stop_str_in_output", defaults.include_stop_str_in_output)?,
            skip_special_tokens: flag("skip_special_tokens", defaults.skip_special_tokens)?,
            prompt_logprobs: read_count(fields, "prompt_logprobs")?,
            logit_bias: read_logit_bias(fields, limits)?,
            ..defaults
        };
        Ok(Self {
            model: fields.get("model")?,
            num_choices,
            prompt_logprobs_field: params.prompt_logprobs.is_some(),
            params,
            max_tokens: fields.get("max_tokens")?,
            stream: read_stream(fields)?,
            return_token_ids: flag("return_token_ids", false)?,
            request_id: read_request_id(fields, limits)?,
            add_special_tokens: fields.get("add_special_tokens")?,
            priority: fields.get("priority")?.unwrap_or(0),
            cache_salt: read_cache_salt(fields, limits)?,
        })
    }
}

/// A number of log-probabilities.
///
/// Errors: not a number from 0 to [`MAX_LOGPROBS`].
pub fn read_count(fields: &Fields<'_>, name: &'static str) -> Result<Option<usize>, ApiError> {
    match fields.get::<usize>(name)? {
        Some(count) if count > MAX_LOGPROBS => {
            Err(ApiError::invalid(name, format!("must be at most {MAX_LOGPROBS}, got {count}")))
        }
        count => Ok(count),
    }
}

/// -1 and 0 keep all tokens, as in vLLM.
fn read_top_k(fields: &Fields<'_>) -> Result<usize, ApiError> {
    match fields.get::<i64>("top_k")? {
        None | Some(-1) => Ok(0),
        Some(top_k) => usize::try_from(top_k).map_err(|_| ApiError::invalid("top_k", "must be -1, 0 or more")),
    }
}

/// Any 64-bit integer; a negative one stands for its two's complement.
fn read_seed(fields: &Fields<'_>) -> Result<Option<u64>, ApiError> {
    let Some(raw) = fields.raw("seed") else { return Ok(None) };
    if raw.get().starts_with('-') {
        return read::<i64>(raw, "seed").map(|seed| Some(seed as u64));
    }
    read::<u64>(raw, "seed").map(Some)
}

/// A word that separates tenants: it must not be empty, as in vLLM.
fn read_cache_salt(fields: &Fields<'_>, limits: &Limits) -> Result<Option<Arc<str>>, ApiError> {
    match fields.get::<String>("cache_salt")? {
        Some(salt) if !(1..=limits.max_cache_salt_bytes).contains(&salt.len()) => {
            let message = format!("must have between 1 and {} bytes", limits.max_cache_salt_bytes);
            Err(ApiError::invalid("cache_salt", message))
        }
        salt => Ok(salt.map(Arc::from)),
    }
}

/// One string or a list of them.
fn read_stop(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<String>, ApiError> {
    let Some(raw) = fields.raw("stop") else { return Ok(Vec::new()) };
    let stop: Vec<String> = match raw.get().starts_with('[') {
        true => read_list(raw, "stop", limits.max_stop_strings)?,
        false => vec![read(raw, "stop")?],
    };
    if stop.iter().any(|stop| !(1..=limits.max_stop_bytes).contains(&stop.len())) {
        let message = format!("every string must have between 1 and {} bytes", limits.max_stop_bytes);
        return Err(ApiError::invalid("stop", message));
    }
    Ok(stop)
}

/// A map from token ids, written as strings, to biases.
fn read_logit_bias(fields: &Fields<'_>, limits: &Limits) -> Result<Vec<(TokenId, f32)>, ApiError> {
    const PARAM: &str = "logit_bias";
    // An entry takes at least `"1":0,`.
    let max_bytes = limits.max_logit_biases * 64;
    let Some(map) = fields.small::<serde_json::Map<String, serde_json::Value>>(PARAM, max_bytes)? else {
        return Ok(Vec::new());
    };
    if map.len() > limits.max_logit_biases {
        return Err(ApiError::invalid(PARAM, format!("must have at most {} entries", limits.max_logit_biases)));
    }
    map.iter()
        .map(|(id, bias)| match (id.parse(), bias.as_f64()) {
            (Ok(id), Some(bias)) => Ok((id, bias as f32)),
            _ => Err(ApiError::invalid(PARAM, "must map token ids to numbers")),
        })
        .collect()
}

fn read_stream(fields: &Fields<'_>) -> Result<Option<StreamOptions>, ApiError> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wire {
        #[serde(default)]
        include_usage: bool,
        #[serde(default)]
        continuous_usage_stats: bool,
        #[serde(default, rename = "include_obfuscation")]
        _include_obfuscation: bool,
    }
    let options: Option<Wire> = fields.get("stream_options")?;
    if !fields.get("stream")?.unwrap_or(false) {
        return match options {
            Some(_) => Err(ApiError::invalid("stream_options", "takes `stream: true`")),
            None => Ok(None),
        };
    }
    let options = options.map(|wire| StreamOptions {
        include_usage: wire.include_usage,
        continuous_usage_stats: wire.continuous_usage_stats,
    });
    Ok(Some(options.unwrap_or_default()))
}

fn read_request_id(fields: &Fields<'_>, limits: &Limits) -> Result<Option<String>, ApiError> {
    let id: Option<String> = fields.get("request_id")?;
    match &id {
        Some(given) if !is_plain_id(given, limits.max_request_id_chars) => {
            let message =
                format!("must have 1 to {} letters, digits, `-`, `_`, `.` or `:`", limits.max_request_id_chars);
            Err(ApiError::invalid("request_id", message))
        }
        _ => Ok(id),
    }
}

fn is_plain_id(id: &str, max_chars: usize) -> bool {
    (1..=max_chars).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::Schema;

    const SCHEMA: Schema = Schema { known: &[COMMON], ignored: IGNORED, unsupported: UNSUPPORTED };

    fn read_json(json: &str) -> Result<CommonFields, ApiError> {
        CommonFields::read(&Fields::parse(json.as_bytes(), &SCHEMA)?, &Limits::default())
    }

    fn check_refused(json: &str, part: &str) {
        let error = read_json(json).unwrap_err().to_string();
        assert!(error.contains(part), "{json}: {error}");
    }

    #[test]
    fn nothing_given_means_the_defaults() {
        let read = read_json("{}").unwrap();
        assert_eq!(read.params, SamplingParams::default());
        assert_eq!((read.num_choices, read.stream, read.max_tokens), (1, None, None));
    }

    #[test]
    fn every_field_arrives() {
        let read = read_json(
            r#"{"temperature":0.5,"top_k":-1,"top_p":0.9,"min_p":0.1,"repetition_penalty":1.1,"presence_penalty":-1,
            "frequency_penalty":2,"seed":-1,"min_tokens":2,"ignore_eos":true,"stop_token_ids":[3],"stop":"x",
            "include_stop_str_in_output":true,"skip_special_tokens":false,"prompt_logprobs":3,"logit_bias":{"7":-100},
            "n":2,"max_tokens":9,"stream":true,"stream_options":{"include_usage":true},"return_token_ids":true,
            "request_id":"a-1","add_special_tokens":false,"model":"m","user":"me","best_of":1}"#,
        )
        .unwrap();
        let expected = SamplingParams {
            temperature: 0.5,
            top_p: 0.9,
            min_p: 0.1,
            repetition_penalty: 1.1,
            presence_penalty: -1.0,
            frequency_penalty: 2.0,
            seed: Some(u64::MAX),
            min_tokens: 2,
            ignore_eos: true,
            stop_token_ids: vec![3],
            stop: vec!["x".into()],
            include_stop_str_in_output: true,
            skip_special_tokens: false,
            prompt_logprobs: Some(3),
            logit_bias: vec![(7, -100.0)],
            ..SamplingParams::default()
        };
        assert_eq!(read.params, expected);
        assert_eq!(read.stream, Some(StreamOptions { include_usage: true, continuous_usage_stats: false }));
        assert_eq!((read.num_choices, read.max_tokens, read.add_special_tokens), (2, Some(9), Some(false)));
    }

    #[test]
    fn bounds_are_named() {
        check_refused(r#"{"n":0}"#, "n: must be between 1 and 128");
        check_refused(r#"{"n":129}"#, "n: must be between 1 and 128");
        check_refused(r#"{"n":99999999999999999999}"#, "n: invalid");
        check_refused(r#"{"top_k":-2}"#, "top_k: must be -1, 0 or more");
        check_refused(r#"{"max_tokens":-5}"#, "max_tokens: invalid value: integer `-5`");
        check_refused(r#"{"seed":1.5}"#, "seed: invalid type");
        check_refused(r#"{"seed":18446744073709551616}"#, "seed: invalid");
        check_refused(r#"{"prompt_logprobs":21}"#, "prompt_logprobs: must be at most 20");
        check_refused(r#"{"stop":""}"#, "stop: every string must have between 1");
        check_refused(
            r#"{"stop":["1","2","3","4","5","6","7","8","9","a","b","c","d","e","f","g","h"]}"#,
            "at most 16",
        );
        check_refused(r#"{"logit_bias":{"x":1}}"#, "logit_bias: must map token ids to numbers");
        check_refused(r#"{"logit_bias":{"-1":1}}"#, "logit_bias: must map token ids to numbers");
        check_refused(r#"{"request_id":"a b"}"#, "request_id: must have 1 to 128");
        check_refused(r#"{"stream_options":{"include_usage":true}}"#, "stream_options: takes `stream: true`");
        check_refused(r#"{"stream":true,"stream_options":{"x":1}}"#, "stream_options: unknown field");
        check_refused(r#"{"temperature":"hot"}"#, "temperature: invalid type");
        let many: Vec<String> = (0..2000).map(|id| format!("\"{id}\":1")).collect();
        check_refused(&format!(r#"{{"logit_bias":{{{}}}}}"#, many.join(",")), "logit_bias: must have at most 1024");
    }
}
