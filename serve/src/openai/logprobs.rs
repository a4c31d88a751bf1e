//! Log-probabilities in OpenAI's two shapes and in vLLM's shape for prompts.

use aisp_engine::text::Tokenizer;
use aisp_engine::{GeneratedToken, TokenId, TokenLogprobs};
use serde::Serialize;
use serde_json::{Map, Value};

/// JSON has no minus infinity; vLLM's stand-in.
const LEAST: f32 = -9999.0;

/// What tokens are called in answers.
#[derive(Debug, Clone)]
pub struct TokenNames {
    tokenizer: Option<Tokenizer>,
}

impl TokenNames {
    /// Names out of a vocabulary; without one, the ids themselves.
    pub fn new(tokenizer: Option<Tokenizer>) -> Self {
        Self { tokenizer }
    }

    fn text(&self, id: TokenId) -> String {
        self.tokenizer.as_ref().map_or_else(|| format!("token_id:{id}"), |tokenizer| tokenizer.token_str(id))
    }

    fn bytes(&self, id: TokenId) -> Vec<u8> {
        self.tokenizer.as_ref().map_or_else(Vec::new, |tokenizer| tokenizer.token_to_bytes(id).to_vec())
    }
}

/// `choices[].logprobs` of a completion.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct CompletionLogprobs {
    /// Where each token begins, in characters of the choice's text.
    pub text_offset: Vec<usize>,
    /// Null for the first token of a prompt, which nothing predicts.
    pub token_logprobs: Vec<Option<f32>>,
    /// Texts of the tokens.
    pub tokens: Vec<String>,
    /// The most likely tokens and the chosen one, best first.
    pub top_logprobs: Vec<Option<Map<String, Value>>>,
    #[serde(skip)]
    num_top: usize,
    #[serde(skip)]
    next_offset: usize,
}

impl CompletionLogprobs {
    /// Adds the tokens of a prompt; entry `i` of `logprobs` belongs to token `i + 1`.
    pub fn add_prompt(&mut self, names: &TokenNames, ids: &[TokenId], logprobs: &[TokenLogprobs]) {
        for (at, &id) in ids.iter().enumerate() {
            self.add(names, id, at.checked_sub(1).and_then(|at| logprobs.get(at)));
        }
    }

    /// Adds tokens of an answer.
    pub fn add_tokens(&mut self, names: &TokenNames, tokens: &[GeneratedToken]) {
        for token in tokens {
            self.add(names, token.id, token.logprobs.as_ref());
        }
    }

    /// An empty list for `num_top` alternatives, whose first token begins at character `next_offset`.
    pub fn new(num_top: usize, next_offset: usize) -> Self {
        Self { num_top, next_offset, ..Self::default() }
    }

    /// Characters of all tokens, those of earlier lists included.
    pub fn next_offset(&self) -> usize {
        self.next_offset
    }

    fn add(&mut self, names: &TokenNames, id: TokenId, logprobs: Option<&TokenLogprobs>) {
        let text = names.text(id);
        self.text_offset.push(self.next_offset);
        self.next_offset += text.chars().count();
        self.token_logprobs.push(logprobs.map(|logprobs| finite(logprobs.logprob)));
        self.top_logprobs.push(logprobs.map(|logprobs| {
            let best = logprobs.top.iter().take(self.num_top);
            let mut top: Map<String, Value> =
                best.map(|(id, logprob)| (names.text(*id), finite(*logprob).into())).collect();
            top.entry(text.clone()).or_insert_with(|| finite(logprobs.logprob).into());
            top
        }));
        self.tokens.push(text);
    }
}

/// `choices[].logprobs` of a chat answer.
#[derive(Debug, PartialEq, Serialize)]
pub struct ChatLogprobs {
    /// One entry a token.
    pub content: Vec<ChatLogprob>,
}

/// One token of [`ChatLogprobs`].
#[derive(Debug, PartialEq, Serialize)]
pub struct ChatLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Debug, PartialEq, Serialize)]
struct TopLogprob {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    /// The tokens of an answer.
    pub fn of(names: &TokenNames, tokens: &[GeneratedToken]) -> Self {
        let entry = |token: &GeneratedToken| {
            let logprobs = token.logprobs.as_ref()?;
            let top = logprobs.top.iter().map(|&(id, logprob)| TopLogprob {
                token: names.text(id),
                logprob: finite(logprob),
                bytes: names.bytes(id),
            });
            Some(ChatLogprob {
                token: names.text(token.id),
                logprob: finite(logprobs.logprob),
                bytes: names.bytes(token.id),
                top_logprobs: top.collect(),
            })
        };
        Self { content: tokens.iter().filter_map(entry).collect() }
    }
}

/// One position of vLLM's `prompt_logprobs`: token ids to their log-probabilities.
pub type PromptLogprobs = Vec<Option<Map<String, Value>>>;

/// vLLM's `prompt_logprobs`: null for the first token. The rank is null when the token is not among the most likely.
pub fn prompt_logprobs(names: &TokenNames, ids: &[TokenId], logprobs: &[TokenLogprobs]) -> PromptLogprobs {
    let entry = |id: TokenId, logprob: f32, rank: Option<usize>| {
        let value = serde_json::json!({
            "logprob": finite(logprob), "rank": rank, "decoded_token": names.text(id),
        });
        (id.to_string(), value)
    };
    let position = |(&id, logprobs): (&TokenId, &TokenLogprobs)| {
        let rank = logprobs.top.iter().position(|(top, _)| *top == id).map(|at| at + 1);
        let mut map = Map::from_iter([entry(id, logprobs.logprob, rank)]);
        let top = logprobs.top.iter().enumerate().filter(|(_, (top, _))| *top != id);
        map.extend(top.map(|(at, &(id, logprob))| entry(id, logprob, Some(at + 1))));
        Some(map)
    };
    std::iter::once(None).chain(ids.iter().skip(1).zip(logprobs).map(position)).collect()
}

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: TokenId) -> GeneratedToken {
        let top = vec![(4, -0.25), (id, -1.5)];
        GeneratedToken { id, logprobs: Some(TokenLogprobs { logprob: -1.5, top }) }
    }

    #[test]
    fn completions_have_four_parallel_lists() {
        let mut logprobs = CompletionLogprobs::new(2, 0);
        let names = TokenNames::new(None);
        let predicted = TokenLogprobs { logprob: f32::NEG_INFINITY, top: vec![] };
        logprobs.add_prompt(&names, &[1, 2], &[predicted]);
        logprobs.add_tokens(&names, &[token(3)]);
        assert_eq!(
            serde_json::to_string(&logprobs).unwrap(),
            r#"{"text_offset":[0,10,20],"token_logprobs":[null,-9999.0,-1.5],"tokens":["token_id:1","token_id:2","token_id:3"],"top_logprobs":[null,{"token_id:2":-9999.0},{"token_id:4":-0.25,"token_id:3":-1.5}]}"#
        );
    }

    #[test]
    fn chats_have_one_list() {
        assert_eq!(
            serde_json::to_string(&ChatLogprobs::of(&TokenNames::new(None), &[token(3)])).unwrap(),
            r#"{"content":[{"token":"token_id:3","logprob":-1.5,"bytes":[],"top_logprobs":[{"token":"token_id:4","logprob":-0.25,"bytes":[]},{"token":"token_id:3","logprob":-1.5,"bytes":[]}]}]}"#
        );
    }

    #[test]
    fn prompts_have_ranks() {
        let predicted = TokenLogprobs { logprob: -1.5, top: vec![(4, -0.25), (2, -1.5)] };
        assert_eq!(
            serde_json::to_string(&prompt_logprobs(&TokenNames::new(None), &[1, 2], &[predicted])).unwrap(),
            r#"[null,{"2":{"logprob":-1.5,"rank":2,"decoded_token":"token_id:2"},"4":{"logprob":-0.25,"rank":1,"decoded_token":"token_id:4"}}]"#
        );
    }
}
