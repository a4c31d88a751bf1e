//! Special tokens and chat template, from the three files that may name them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::model::ModelConfig;

use super::super::error::{FieldError, LoadError};
use super::config::token_ids;
use super::files::{CHAT_TEMPLATE, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG};

/// The parts of `tokenizer_config.json` that matter here.
#[derive(Debug, Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<TokenText>,
    eos_token: Option<TokenText>,
    chat_template: Option<ChatTemplate>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<String, AddedTokenText>,
}

/// A token's text, alone or with flags that play no role here.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TokenText {
    Plain(String),
    WithFlags(AddedTokenText),
}

#[derive(Debug, Deserialize)]
struct AddedTokenText {
    content: String,
}

/// One template, or several by name.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum ChatTemplate {
    Single(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Debug, Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

/// The parts of `tokenizer.json` that matter here.
#[derive(Debug, Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Debug, Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

/// Completes the config's special tokens and returns the chat template. Every token that any of the files calls
/// end-of-text ends an answer; the first file that names a beginning-of-text token wins.
///
/// Errors: a token that `tokenizer_config.json` names but no file gives an id; ids outside the vocabulary.
pub(crate) fn read_special_tokens(
    folder: &Path,
    tokenizer_json: Option<&[u8]>,
    config: &mut ModelConfig,
) -> Result<Option<String>, LoadError> {
    if let Some(bytes) = GENERATION_CONFIG.read(folder)? {
        let json: Value = GENERATION_CONFIG.parse(folder, &bytes)?;
        let in_file = |error: FieldError| error.in_file(&GENERATION_CONFIG.shown(folder));
        let eos = token_ids(&json, "eos_token_id").map_err(in_file)?;
        let bos = token_ids(&json, "bos_token_id").map_err(in_file)?;
        add_tokens(config, eos, bos.first().copied()).map_err(in_file)?;
    }
    let mut chat_template = None;
    if let Some(bytes) = TOKENIZER_CONFIG.read(folder)? {
        let mut file: TokenizerConfig = TOKENIZER_CONFIG.parse(folder, &bytes)?;
        chat_template = file.chat_template.take().and_then(default_template);
        let ids = TokenIds::collect(folder, tokenizer_json, &file)?;
        let in_file = |error: FieldError| error.in_file(&TOKENIZER_CONFIG.shown(folder));
        let eos = ids.find(file.eos_token.as_ref());
        let bos = ids.find(file.bos_token.as_ref());
        add_tokens(config, eos.into_iter().collect(), bos).map_err(in_file)?;
    }
    if let Some(bytes) = CHAT_TEMPLATE.read(folder)? {
        let text = String::from_utf8(bytes)
            .map_err(|_| FieldError::malformed("text", "is not UTF-8").in_file(&CHAT_TEMPLATE.shown(folder)))?;
        chat_template = Some(text);
    }
    Ok(chat_template)
}

fn default_template(template: ChatTemplate) -> Option<String> {
    match template {
        ChatTemplate::Single(template) => Some(template),
        ChatTemplate::Named(mut named) => {
            let index = named.iter().position(|entry| entry.name == "default").unwrap_or(0);
            (index < named.len()).then(|| named.swap_remove(index).template)
        }
    }
}

fn add_tokens(config: &mut ModelConfig, eos: Vec<u32>, bos: Option<u32>) -> Result<(), FieldError> {
    let ids = eos.iter().map(|id| ("eos_token_id", *id)).chain(bos.map(|id| ("bos_token_id", id)));
    for (field, id) in ids {
        if id as usize >= config.vocab_size {
            let problem = format!("{id} is outside the vocabulary of {}", config.vocab_size);
            return Err(FieldError::malformed(field, problem));
        }
    }
    for id in eos {
        if !config.eos_token_ids.contains(&id) {
            config.eos_token_ids.push(id);
        }
    }
    config.bos_token_id = config.bos_token_id.or(bos);
    Ok(())
}

/// Ids of added tokens by their text.
struct TokenIds(BTreeMap<String, u32>);

impl TokenIds {
    fn collect(folder: &Path, tokenizer_json: Option<&[u8]>, file: &TokenizerConfig) -> Result<Self, LoadError> {
        let decoder = file.added_tokens_decoder.iter();
        let mut ids: BTreeMap<String, u32> =
            decoder.filter_map(|(id, token)| Some((token.content.clone(), id.parse().ok()?))).collect();
        if let Some(bytes) = tokenizer_json {
            let tokenizer: TokenizerFile = TOKENIZER.parse(folder, bytes)?;
            ids.extend(tokenizer.added_tokens.into_iter().map(|token| (token.content, token.id)));
        }
        Ok(Self(ids))
    }

    /// A token that is plain text, not an added token, has no id here: it ends nothing by itself.
    fn find(&self, token: Option<&TokenText>) -> Option<u32> {
        let (TokenText::Plain(text) | TokenText::WithFlags(AddedTokenText { content: text })) = token?;
        self.0.get(text).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::dummy::DummyShape;
    use super::*;

    /// End-of-text ids, beginning-of-text id, template.
    type Found = (Vec<u32>, Option<u32>, Option<String>);

    fn read(files: &[(&str, &str)], tokenizer: Option<&str>) -> Result<Found, String> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let mut config = DummyShape::Tiny.config();
        config.eos_token_ids = vec![2];
        let template = read_special_tokens(folder.path(), tokenizer.map(str::as_bytes), &mut config);
        template.map(|t| (config.eos_token_ids, config.bos_token_id, t)).map_err(|error| error.to_string())
    }

    #[test]
    fn all_files_add_up() {
        let files = [
            ("generation_config.json", r#"{"eos_token_id": [2, 5], "bos_token_id": 1}"#),
            (
                "tokenizer_config.json",
                r#"{"eos_token": {"content": "<end>", "lstrip": false}, "bos_token": "<s>", "chat_template": "T"}"#,
            ),
        ];
        let tokenizer =
            r#"{"added_tokens": [{"id": 7, "content": "<end>", "special": true}, {"id": 8, "content": "<s>"}]}"#;
        assert_eq!(read(&files, Some(tokenizer)), Ok((vec![2, 5, 7], Some(1), Some("T".into()))));
        assert_eq!(read(&files, None), Ok((vec![2, 5], Some(1), Some("T".into()))));
        assert_eq!(read(&[], None), Ok((vec![2], None, None)));
    }

    #[test]
    fn ids_come_from_the_tokenizer_config_too() {
        let text = r#"{"eos_token": "<end>", "bos_token": "<s>",
            "added_tokens_decoder": {"9": {"content": "<end>"}, "4": {"content": "<s>"}, "x": {"content": "y"}}}"#;
        assert_eq!(read(&[("tokenizer_config.json", text)], None), Ok((vec![2, 9], Some(4), None)));
    }

    #[test]
    fn templates_may_be_named_or_have_their_own_file() {
        let named =
            r#"{"chat_template": [{"name": "tool_use", "template": "A"}, {"name": "default", "template": "B"}]}"#;
        assert_eq!(read(&[("tokenizer_config.json", named)], None).unwrap().2.as_deref(), Some("B"));
        let files = [("tokenizer_config.json", named), ("chat_template.jinja", "C")];
        assert_eq!(read(&files, None).unwrap().2.as_deref(), Some("C"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (file, text, field) in [
            ("generation_config.json", r#"{"eos_token_id": 99999999}"#, "eos_token_id"),
            ("generation_config.json", r#"{"bos_token_id": -1}"#, "bos_token_id"),
            ("generation_config.json", "{", "JSON"),
            ("tokenizer_config.json", r#"{"eos_token": 3}"#, "JSON"),
            ("tokenizer_config.json", r#"{"chat_template": 3}"#, "JSON"),
        ] {
            let message = read(&[(file, text)], None).unwrap_err();
            assert!(message.contains(file) && message.contains(field), "{message}");
        }
    }
}
