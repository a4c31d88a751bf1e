//! Sixteen requests at once through `add_request` and `step`, with every optimization and with none: the same tokens,
//! and what each way took. `cargo run --release --example many_requests`

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aisp_engine::{Engine, Request, RequestId, SamplingParams, Selection, TokenId};

type Answers = BTreeMap<RequestId, Vec<TokenId>>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (plain, plain_time) = run(Selection::none())?;
    let (optimized, optimized_time) = run(Selection::all())?;
    println!("none: {plain_time:.2?}   all: {optimized_time:.2?}   same tokens: {}", plain == optimized);
    Ok(())
}

fn run(selection: Selection) -> Result<(Answers, Duration), Box<dyn std::error::Error>> {
    let mut engine = Engine::builder().optimizations(selection).max_num_seqs(8).build()?;
    let tokenizer = engine.tokenizer().cloned().ok_or("the built-in model has a tokenizer")?;
    for i in 0..16 {
        let prompt = tokenizer.encode(&format!("Chapter {i}. The little dog"), true)?;
        let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy(10 + 10 * (i % 8)) };
        engine.add_request(Request::new(prompt, params))?;
    }
    let started = Instant::now();
    let mut answers = Answers::new();
    while engine.has_unfinished() {
        for output in engine.step()? {
            answers.entry(output.id).or_default().extend(output.tokens.iter().map(|token| token.id));
        }
    }
    Ok((answers, started.elapsed()))
}
