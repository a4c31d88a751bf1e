//! Prompts read from files. Every entry is checked before the run; a bad one is an error with its position.

use std::borrow::Cow;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use serde_json::Value;

use crate::config::Endpoint;
use crate::prompt::{Content, Prompt, message_tokens_by_words, tokens_by_words};
use crate::{Config, Error};

/// Tokens to generate where neither the data set nor a flag says.
pub(crate) const DEFAULT_OUTPUT_LEN: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonlEntry {
    prompt: Option<String>,
    messages: Option<Value>,
    max_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct Conversation<'a> {
    #[serde(borrow, default)]
    conversations: Vec<Turn<'a>>,
}

#[derive(Deserialize)]
struct Turn<'a> {
    #[serde(borrow)]
    from: Cow<'a, str>,
    #[serde(borrow)]
    value: Cow<'a, str>,
}

/// Reads all usable prompts of a JSONL file, in its order. Blank lines are skipped.
///
/// Errors: the file or one of its lines cannot be used.
pub(crate) fn read_jsonl(path: &Path, config: &Config) -> Result<Vec<Prompt>, Error> {
    let text = read(path)?;
    let mut prompts = Vec::new();
    for (idx, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let bad = |problem: String| Error::DatasetEntry { path: path.to_owned(), entry: idx + 1, problem };
        let entry: JsonlEntry = serde_json::from_str(line).map_err(|cause| {
            bad(format!("{cause}; expected {{\"prompt\": ..}} or {{\"messages\": ..}} and optionally \"max_tokens\""))
        })?;
        let (content, estimated_tokens) = match (entry.prompt, entry.messages) {
            (Some(text), None) => {
                let tokens = tokens_by_words(&text);
                (Content::Text(text), tokens)
            }
            (None, Some(messages)) => {
                if config.endpoint == Endpoint::Completions {
                    return Err(bad("\"messages\" need --endpoint /v1/chat/completions".into()));
                }
                if messages.as_array().is_none_or(Vec::is_empty) {
                    return Err(bad("\"messages\" must be a list with at least one message".into()));
                }
                let tokens = message_tokens_by_words(&messages);
                (Content::Messages(messages), tokens)
            }
            _ => return Err(bad("exactly one of \"prompt\" and \"messages\" is needed".into())),
        };
        if entry.max_tokens == Some(0) {
            return Err(bad("\"max_tokens\" must be 1 or more".into()));
        }
        let max_tokens = entry.max_tokens.or(config.output_len).unwrap_or(DEFAULT_OUTPUT_LEN);
        prompts.push(Prompt { content, max_tokens, estimated_tokens });
    }
    Ok(prompts)
}

/// Reads a ShareGPT file: a list of `{"conversations": [{"from": "human", "value": ..}, ..]}`. The first human turn is
/// the prompt; the length of the answer after it bounds the generation, unless `--output-len` does. Conversations
/// without that pair are skipped; the rest is shuffled by the seed.
///
/// Errors: the file is not such a list.
pub(crate) fn read_sharegpt(path: &Path, config: &Config, seed: u64) -> Result<Vec<Prompt>, Error> {
    let text = read(path)?;
    let conversations: Vec<Conversation> = serde_json::from_str(&text).map_err(|cause| Error::DatasetUnreadable {
        path: path.to_owned(),
        cause: format!("it is not a ShareGPT list: {cause}"),
    })?;
    let mut prompts: Vec<Prompt> = conversations.iter().filter_map(|conversation| pair(conversation, config)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(2);
    prompts.shuffle(&mut rng);
    Ok(prompts)
}

fn pair(conversation: &Conversation, config: &Config) -> Option<Prompt> {
    let is_human = |turn: &Turn| matches!(turn.from.as_ref(), "human" | "user");
    let mut turns = conversation.conversations.iter().skip_while(|turn| !is_human(turn));
    let (question, answer) = (turns.next()?, turns.next()?);
    if question.value.trim().is_empty() || answer.value.trim().is_empty() {
        return None;
    }
    Some(Prompt {
        content: Content::Text(question.value.clone().into_owned()),
        max_tokens: config.output_len.unwrap_or_else(|| tokens_by_words(&answer.value) as usize),
        estimated_tokens: tokens_by_words(&question.value),
    })
}

fn read(path: &Path) -> Result<String, Error> {
    let unreadable = |cause: String| Error::DatasetUnreadable { path: path.to_owned(), cause };
    let bytes = std::fs::read(path).map_err(|cause| unreadable(cause.to_string()))?;
    String::from_utf8(bytes).map_err(|cause| unreadable(format!("it is not UTF-8 text: {cause}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn jsonl(text: &str, endpoint: Endpoint) -> Result<Vec<Prompt>, Error> {
        read_jsonl(file(text).path(), &Config { endpoint, output_len: Some(10), ..Config::default() })
    }

    #[test]
    fn jsonl_lines_of_both_kinds() {
        let text = "{\"prompt\": \"One two three\", \"max_tokens\": 5}\n\n{\"prompt\": \"Four\"}\n";
        let prompts = jsonl(text, Endpoint::Completions).unwrap();
        assert_eq!(prompts.iter().map(|prompt| prompt.max_tokens).collect::<Vec<_>>(), [5, 10]);
        assert_eq!(prompts[0].content, Content::Text("One two three".into()));
        assert_eq!(prompts[0].estimated_tokens, 4);
        let chat = jsonl("{\"messages\": [{\"role\": \"user\", \"content\": \"a b\"}]}", Endpoint::Chat).unwrap();
        assert!(matches!(&chat[0].content, Content::Messages(list) if list[0]["content"] == "a b"));
        assert_eq!(chat[0].estimated_tokens, 3);
    }

    #[test]
    fn bad_lines_are_named() {
        let check = |line: &str, problem: &str| {
            let text = format!("{{\"prompt\": \"ok\"}}\n{line}\n");
            let message = jsonl(&text, Endpoint::Completions).unwrap_err().to_string();
            assert!(message.contains("entry 2") && message.contains(problem), "{message}");
            assert!(!message.contains('\n'));
        };
        check("{\"prompt\": ", "expected {\"prompt\"");
        check("{\"text\": \"a\"}", "unknown field");
        check("{}", "exactly one");
        check("{\"prompt\": \"a\", \"messages\": []}", "exactly one");
        check("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "--endpoint /v1/chat/completions");
        check("{\"prompt\": \"a\", \"max_tokens\": 0}", "1 or more");
        check("{\"prompt\": \"a\", \"max_tokens\": -3}", "invalid value");
        assert!(jsonl("{\"messages\": []}", Endpoint::Chat).unwrap_err().to_string().contains("at least one"));
        let missing = read_jsonl(Path::new("/no/such.jsonl"), &Config::default()).unwrap_err().to_string();
        assert!(missing.contains("/no/such.jsonl") && missing.contains("--dataset-path"), "{missing}");
    }

    #[test]
    fn sharegpt_takes_the_first_exchange() {
        let text = r#"[
            {"id": "a", "conversations": [{"from": "gpt", "value": "hello"}, {"from": "human", "value": "What is é?"},
                                          {"from": "gpt", "value": "A letter of five words."}, {"from": "human", "value": "x"}]},
            {"conversations": [{"from": "human", "value": "never answered"}]},
            {"conversations": []},
            {"conversations": [{"from": "human", "value": " "}, {"from": "gpt", "value": "y"}]}]"#;
        let prompts = read_sharegpt(file(text).path(), &Config::default(), 1).unwrap();
        assert_eq!(
            prompts,
            [Prompt { content: Content::Text("What is é?".into()), max_tokens: 7, estimated_tokens: 4 }]
        );
        let message = read_sharegpt(file("{}").path(), &Config::default(), 1).unwrap_err().to_string();
        assert!(message.contains("not a ShareGPT list"), "{message}");
    }

    #[test]
    fn sharegpt_is_shuffled_by_the_seed() {
        let entry =
            |idx| format!(r#"{{"conversations":[{{"from":"human","value":"q{idx}"}},{{"from":"gpt","value":"a"}}]}}"#);
        let list = file(&format!("[{}]", (0..50).map(entry).collect::<Vec<_>>().join(",")));
        let order = |seed| read_sharegpt(list.path(), &Config::default(), seed).unwrap();
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }
}
