//! Perplexity of a text as `llama-perplexity -c 512` computes it: windows of 512 tokens, the second half of each scored.
//! `cargo run --release --example perplexity -- TEXT_FILE [MODEL [OPTIMIZATIONS]]`

use aisp_engine::{DeviceKind, Engine, ModelSource, Request, SamplingParams, Selection};

const WINDOW: usize = 512;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let text = std::fs::read_to_string(args.next().ok_or("usage: perplexity TEXT_FILE [MODEL [OPTIMIZATIONS]]")?)?;
    let model: ModelSource = args.next().unwrap_or_default().parse()?;

    let selection = Selection::parse_on(&args.next().unwrap_or("none".into()), DeviceKind::Cpu)?;
    let mut engine = Engine::builder().model(model).optimizations(selection).max_model_len(Some(WINDOW + 1)).build()?;
    let tokenizer = engine.tokenizer().ok_or("this model has no tokenizer")?;
    let tokens = tokenizer.encode(&text, true)?;
    let params = SamplingParams { prompt_logprobs: Some(0), ..SamplingParams::greedy(1) };
    let (mut sum, mut count) = (0.0, 0);
    for window in tokens.chunks_exact(WINDOW) {
        let id = engine.add_request(Request::new(window.to_vec(), params.clone()))?;
        let outputs = engine.step()?;
        let output = outputs.into_iter().find(|output| output.id == id).ok_or("the step answered another request")?;
        let logprobs = output.prompt_logprobs.ok_or("no log-probabilities")?;
        // Entry i belongs to token i + 1; the first half of a window only gives context.
        let scored = &logprobs[WINDOW / 2..];
        sum -= scored.iter().map(|entry| f64::from(entry.logprob)).sum::<f64>();
        count += scored.len();
        println!("{:.4}", (sum / f64::from(count as u32)).exp());
    }
    Ok(())
}
