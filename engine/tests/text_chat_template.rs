//! Chat templates against what Hugging Face's renderer (Python's Jinja2 with its settings) makes of the same messages,
//! and against hostile templates.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aisp_engine::text::{ChatContext, ChatMessage, ChatTemplate, MAX_TEMPLATE_BYTES, TextError};
use serde_json::{Map, Value, json};

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    source: String,
    messages: Vec<Map<String, Value>>,
    tools: Option<Value>,
    add_generation_prompt: bool,
    kwargs: Map<String, Value>,
    want: Option<String>,
    error: Option<String>,
}

impl Case {
    fn render(&self) -> Result<String, TextError> {
        let messages: Vec<_> = self.messages.iter().map(message).collect();
        ChatTemplate::new(&self.source)?.render(
            &messages,
            &ChatContext {
                add_generation_prompt: self.add_generation_prompt,
                special_tokens: vec![("bos_token".into(), "<s>".into()), ("eos_token".into(), "</s>".into())],
                tools: self.tools.clone(),
                kwargs: self.kwargs.clone(),
            },
        )
    }
}

fn message(fields: &Map<String, Value>) -> ChatMessage {
    let mut extra = fields.clone();
    let mut take = |name: &str| extra.remove(name).and_then(|v| v.as_str().map(String::from)).unwrap_or_default();
    let (role, content) = (take("role"), take("content"));
    ChatMessage { role, content, extra }
}

/// Renders every case; the number of those that differ from the reference, with the first lines of each difference.
fn check_cases(path: &Path) -> usize {
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut num_wrong = 0;
    for case in &cases {
        match (case.render(), &case.want) {
            (Ok(got), Some(want)) if got == *want => {}
            (Err(_), None) => {}
            (got, want) => {
                num_wrong += 1;
                eprintln!("{}\n want {:?}\n got  {got:?}", case.name, want.as_ref().or(case.error.as_ref()));
            }
        }
    }
    eprintln!("{num_wrong} of {} differ", cases.len());
    num_wrong
}

/// `AISP_TEMPLATES=x.json cargo test --test text_chat_template -- --ignored any_templates --nocapture`.
#[test]
#[ignore = "needs AISP_TEMPLATES"]
fn any_templates_equal_jinja2() {
    assert_eq!(check_cases(&PathBuf::from(std::env::var("AISP_TEMPLATES").unwrap())), 0);
}
