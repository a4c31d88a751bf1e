//! A conversation on the terminal: `cargo run --release --example chat -- [MODEL]`; an empty line ends it.

use std::io::Write;

use aisp_engine::text::ChatMessage;
use aisp_engine::{Engine, ModelSource, SamplingParams};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let model: ModelSource = std::env::args().nth(1).unwrap_or_default().parse()?;
    let mut engine = Engine::builder().model(model).progress(true).build()?;
    let params = SamplingParams { temperature: 0.7, top_p: 0.9, max_tokens: 200, ..Default::default() };
    let mut messages = Vec::new();
    let mut question = String::new();
    loop {
        print!("> ");
        std::io::stdout().flush()?;
        question.clear();
        if std::io::stdin().read_line(&mut question)? == 0 || question.trim().is_empty() {
            return Ok(());
        }
        messages.push(ChatMessage::new("user", question.trim()));
        let mut answer = String::new();
        for delta in engine.chat(&messages, &params)? {
            let text = delta?.text;
            print!("{text}");
            std::io::stdout().flush()?;
            answer.push_str(&text);
        }
        println!();
        messages.push(ChatMessage::new("assistant", answer));
    }
}
