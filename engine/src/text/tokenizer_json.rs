//! What a `tokenizer.json` says beside its model: how names spell bytes, and which token begins a text.

use serde_json::Value;

use super::error::{TextError, one_line};
use super::token_table::Spelling;

/// The parts of a `tokenizer.json` that decoding needs.
#[derive(Debug)]
pub(super) struct JsonFacts {
    pub spelling: Spelling,
    /// Encoding puts a space before a text, so decoding takes it away.
    pub strip_space_prefix: bool,
    /// The token that the post-processor puts before a text.
    pub bos: Option<String>,
}

const KNOWN_DECODERS: &str = "ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip";

impl JsonFacts {
    /// Errors: a decoder that is not a composition of the known ones.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, TextError> {
        #[derive(serde::Deserialize)]
        struct Parts {
            #[serde(default)]
            decoder: Value,
            #[serde(default)]
            post_processor: Value,
        }
        let parts: Parts = serde_json::from_slice(bytes)
            .map_err(|error| TextError::MalformedTokenizer(one_line(&format!("tokenizer.json: {error}"))))?;
        let mut decoders = Vec::new();
        flatten(&parts.decoder, "decoders", &mut decoders);
        let mut facts = Self { spelling: Spelling::ByteLevel, strip_space_prefix: false, bos: bos(&parts) };
        if kinds(&decoders) == ["ByteLevel"] {
            return Ok(facts);
        }
        let mut space = None;
        let mut byte_fallback = false;
        for decoder in &decoders {
            match kind(decoder) {
                "Metaspace" => {
                    space = decoder["replacement"].as_str().and_then(|s| s.chars().next());
                    facts.strip_space_prefix =
                        decoder["prepend_scheme"] != "never" && decoder["add_prefix_space"].as_bool().unwrap_or(true);
                }
                "Replace" if decoder["content"] == " " => {
                    space = decoder["pattern"]["String"].as_str().and_then(single_char);
                }
                "ByteFallback" => byte_fallback = true,
                "Strip" if decoder["content"] == " " => facts.strip_space_prefix = decoder["start"] == 1,
                "Fuse" => {}
                other => return Err(unsupported(other)),
            }
        }
        let space = space.ok_or_else(|| unsupported(&kinds(&decoders).join("+")))?;
        facts.spelling = Spelling::SentencePiece { space, byte_fallback };
        return Ok(facts);

        fn bos(parts: &Parts) -> Option<String> {
            let mut processors = Vec::new();
            flatten(&parts.post_processor, "processors", &mut processors);
            let template = processors.into_iter().find(|processor| kind(processor) == "TemplateProcessing")?;
            template["single"].get(0)?["SpecialToken"]["id"].as_str().map(str::to_string)
        }
    }
}

fn unsupported(name: &str) -> TextError {
    let name = if name.is_empty() { "none".into() } else { one_line(name) };
    TextError::Unsupported { what: "the decoder of tokenizer.json", name, known: KNOWN_DECODERS.into() }
}

fn single_char(text: &str) -> Option<char> {
    let mut chars = text.chars();
    chars.next().filter(|_| chars.next().is_none())
}

fn kind(part: &Value) -> &str {
    part["type"].as_str().unwrap_or_default()
}

fn kinds<'v>(parts: &[&'v Value]) -> Vec<&'v str> {
    parts.iter().map(|part| kind(part)).collect()
}

/// The parts of a possibly nested `Sequence`. serde_json bounds the nesting.
fn flatten<'v>(part: &'v Value, list: &str, into: &mut Vec<&'v Value>) {
    match part[list].as_array() {
        Some(parts) if kind(part) == "Sequence" => parts.iter().for_each(|part| flatten(part, list, into)),
        _ if part.is_null() => {}
        _ => into.push(part),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, want: Result<(Spelling, bool, Option<&str>), &str>) {
        let got = JsonFacts::read(json.as_bytes());
        match want {
            Ok((spelling, strip, bos)) => {
                let facts = got.unwrap();
                assert_eq!((facts.spelling, facts.strip_space_prefix, facts.bos.as_deref()), (spelling, strip, bos));
            }
            Err(part) => {
                let message = got.unwrap_err().to_string();
                assert!(message.contains(part) && !message.contains('\n'), "{message}");
            }
        }
    }

    #[test]
    fn reads_decoders_and_bos() {
        check(r#"{"decoder": {"type": "ByteLevel"}}"#, Ok((Spelling::ByteLevel, false, None)));
        check(
            r#"{"decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
              "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}]}}"#,
            Ok((Spelling::SentencePiece { space: '▁', byte_fallback: true }, true, Some("<s>"))),
        );
        check(
            r#"{"decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never"},
              "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"},
                {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|b|>"}}, {"Sequence": {}}]}]}}"#,
            Ok((Spelling::SentencePiece { space: '▁', byte_fallback: false }, false, Some("<|b|>"))),
        );
        check(r#"{"decoder": {"type": "WordPiece"}}"#, Err("'WordPiece' is not supported"));
        check(r#"{"decoder": null}"#, Err("'none' is not supported"));
        check(r#"{"decoder": 7"#, Err("malformed"));
    }
}
