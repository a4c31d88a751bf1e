//! The prompts of a run and of its warm-up: taken from a file, or cut from built-in prose to the wanted length.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use tokio::task::JoinSet;

use crate::Error;
use crate::builtin::{Passage, Prose};
use crate::config::{Config, Dataset};
use crate::dataset::{DEFAULT_OUTPUT_LEN, read_jsonl, read_sharegpt};
use crate::http::Client;
use crate::prompt::{Content, Prompt, TOKENS_PER_WORD, tokens_by_words};
use crate::server::count_tokens;

/// Tokens of a built-in prompt where no flag says.
const DEFAULT_INPUT_LEN: usize = 128;
/// Built-in prompts where no flag says.
const DEFAULT_NUM_PROMPTS: usize = 200;
/// Requests to `/tokenize` at a time.
const TOKENIZE_CONCURRENCY: usize = 8;
/// Attempts to hit the wanted number of tokens; two or three do, mostly.
const SIZING_ATTEMPTS: usize = 6;

/// How the lengths of prompts were determined before the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sizing {
    /// By the server's `/tokenize`.
    Tokenizer,
    /// By their words.
    Words,
}

/// The prompts of a run.
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) warmups: Vec<Prompt>,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) sizing: Sizing,
    /// Prompts that occurred before, in the warm-up or the run.
    pub(crate) num_repeated: usize,
}

impl Workload {
    /// Prepares all prompts; the measured ones never repeat one of the warm-up.
    pub(crate) async fn prepare(config: &Config, client: &Arc<Client>, model: &str, seed: u64) -> Result<Self, Error> {
        let (mut prompts, sizing) = match &config.dataset {
            Dataset::Builtin => builtin(config, client, model, seed).await?,
            Dataset::Jsonl(path) => (from_file(config, path, read_jsonl(path, config)?)?, Sizing::Words),
            Dataset::ShareGpt(path) => (from_file(config, path, read_sharegpt(path, config, seed)?)?, Sizing::Words),
        };
        let mut seen = HashSet::new();
        let num_repeated = prompts.iter().filter(|prompt| !seen.insert(key(&prompt.content))).count();
        let warmups = prompts.drain(..config.num_warmups.min(prompts.len())).collect();
        Ok(Self { warmups, prompts, sizing, num_repeated })
    }
}

fn key(content: &Content) -> String {
    match content {
        Content::Text(text) => text.clone(),
        Content::Messages(messages) => messages.to_string(),
    }
}

/// The warm-up's prompts, then the run's.
fn from_file(config: &Config, path: &Path, mut usable: Vec<Prompt>) -> Result<Vec<Prompt>, Error> {
    let limit = config.input_len.map_or(u64::MAX, |limit| limit as u64);
    usable.retain(|prompt| prompt.estimated_tokens <= limit);
    let warmups = config.num_warmups;
    let needed = match config.num_prompts {
        Some(num_prompts) => num_prompts + warmups,
        None => usable.len().max(warmups + 1),
    };
    let found = usable.len();
    if found == 0 || (found < needed && !config.allow_prompt_reuse) {
        return Err(Error::DatasetTooSmall { path: path.to_owned(), found, needed, warmups });
    }
    Ok(usable.into_iter().cycle().take(needed).collect())
}

async fn builtin(
    config: &Config,
    client: &Arc<Client>,
    model: &str,
    seed: u64,
) -> Result<(Vec<Prompt>, Sizing), Error> {
    let mut prose = Prose::new(seed);
    let mut passages = prose.draw(config.num_warmups);
    passages.append(&mut prose.draw(config.num_prompts.unwrap_or(DEFAULT_NUM_PROMPTS)));
    let cutter = Cutter {
        prose,
        client: Arc::clone(client),
        model: model.to_owned(),
        wanted_tokens: config.input_len.unwrap_or(DEFAULT_INPUT_LEN),
        shared_fraction: config.shared_prefix_fraction,
    };
    let probe = match passages.first() {
        Some(passage) => cutter.by_tokenizer(passage).await?,
        None => None,
    };
    let sizing = if probe.is_some() { Sizing::Tokenizer } else { Sizing::Words };
    let texts = match sizing {
        Sizing::Tokenizer => Arc::new(cutter).all_by_tokenizer(passages).await?,
        Sizing::Words => passages.iter().map(|passage| cutter.by_words(passage)).collect(),
    };
    let max_tokens = config.output_len.unwrap_or(DEFAULT_OUTPUT_LEN);
    let prompt = |(text, estimated_tokens)| Prompt { content: Content::Text(text), max_tokens, estimated_tokens };
    Ok((texts.into_iter().map(prompt).collect(), sizing))
}

/// Cuts passages to a length in tokens.
struct Cutter {
    prose: Prose,
    client: Arc<Client>,
    model: String,
    wanted_tokens: usize,
    shared_fraction: f64,
}

impl Cutter {
    fn text(&self, passage: &Passage, num_words: usize) -> String {
        self.prose.text(passage, num_words, (num_words as f64 * self.shared_fraction) as usize)
    }

    fn by_words(&self, passage: &Passage) -> (String, u64) {
        let text = self.text(passage, ((self.wanted_tokens as f64 / TOKENS_PER_WORD) as usize).max(1));
        let tokens = tokens_by_words(&text);
        (text, tokens)
    }

    /// The closest cut that a few attempts find; `None` where the server has no tokenizer.
    async fn by_tokenizer(&self, passage: &Passage) -> Result<Option<(String, u64)>, Error> {
        let wanted = self.wanted_tokens as f64;
        let mut num_words = ((wanted / TOKENS_PER_WORD) as usize).max(1);
        let mut best: Option<(String, u64)> = None;
        for _ in 0..SIZING_ATTEMPTS {
            let text = self.text(passage, num_words);
            let Some(tokens) = count_tokens(&self.client, &self.model, &text).await? else { return Ok(best) };
            let missing = wanted - tokens as f64;
            if best.as_ref().is_none_or(|(_, count)| missing.abs() < (wanted - *count as f64).abs()) {
                best = Some((text, tokens));
            }
            // Steps of a word at least, in the direction of the goal.
            let step = (missing * num_words as f64 / tokens as f64).round();
            let step = if step == 0.0 { missing.signum() } else { step };
            let next = (num_words as f64 + step).max(1.0) as usize;
            if missing == 0.0 || next == num_words {
                break;
            }
            num_words = next;
        }
        Ok(best)
    }

    async fn all_by_tokenizer(self: Arc<Self>, passages: Vec<Passage>) -> Result<Vec<(String, u64)>, Error> {
        let mut texts: Vec<(String, u64)> = passages.iter().map(|passage| self.by_words(passage)).collect();
        let passages = Arc::new(passages);
        let next = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        for _ in 0..TOKENIZE_CONCURRENCY {
            let (cutter, passages, next) = (Arc::clone(&self), Arc::clone(&passages), Arc::clone(&next));
            tasks.spawn(async move {
                let mut cut = Vec::new();
                loop {
                    let idx = next.fetch_add(1, Ordering::Relaxed);
                    let Some(passage) = passages.get(idx) else { return Ok::<_, Error>(cut) };
                    cut.push((idx, cutter.by_tokenizer(passage).await?));
                }
            });
        }
        while let Some(Ok(cut)) = tasks.join_next().await {
            for (idx, text) in cut? {
                if let (Some(slot), Some(text)) = (texts.get_mut(idx), text) {
                    *slot = text;
                }
            }
        }
        Ok(texts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompts(count: u64) -> Vec<Prompt> {
        let prompt = |idx: u64| Prompt {
            content: Content::Text(format!("p{idx}")),
            max_tokens: 4,
            estimated_tokens: 10 * (idx + 1),
        };
        (0..count).map(prompt).collect()
    }

    fn take(config: &Config, count: u64) -> Result<Vec<Prompt>, Error> {
        from_file(config, Path::new("f.jsonl"), prompts(count))
    }

    #[test]
    fn a_file_must_hold_enough_unless_reuse_is_allowed() {
        let config = Config { num_prompts: Some(4), num_warmups: 2, ..Config::default() };
        assert_eq!(take(&config, 6).unwrap(), prompts(6));
        assert_eq!(take(&config, 9).unwrap(), prompts(6));
        let message = take(&config, 5).unwrap_err().to_string();
        assert!(message.contains("5 usable") && message.contains("6 are needed") && message.contains("2 of them"));
        let reuse = Config { allow_prompt_reuse: true, ..config };
        assert_eq!(take(&reuse, 5).unwrap()[5], prompts(1)[0]);
        assert!(take(&reuse, 0).is_err());
    }

    #[test]
    fn all_of_a_file_by_default_and_long_prompts_left_out() {
        let config = Config { num_warmups: 1, ..Config::default() };
        assert_eq!(take(&config, 3).unwrap().len(), 3);
        assert!(take(&config, 1).is_err(), "nothing would be left to measure");
        let short = Config { input_len: Some(20), ..Config::default() };
        assert_eq!(take(&short, 5).unwrap(), prompts(2));
    }
}
