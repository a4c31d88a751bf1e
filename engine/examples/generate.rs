//! Continues a prompt with the built-in model, or another one:
//! `cargo run --release --example generate -- "The little dog" models/SmolLM2-135M-Instruct.Q4_1.gguf`

use std::io::Write;

use aisp_engine::{Engine, ModelSource, SamplingParams};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let prompt = args.next().unwrap_or_else(|| "The little dog".to_owned());
    let model: ModelSource = args.next().unwrap_or_default().parse()?;

    let mut engine = Engine::builder().model(model).progress(true).build()?;
    let params = SamplingParams { temperature: 0.7, top_p: 0.95, max_tokens: 120, seed: Some(1), ..Default::default() };
    print!("{prompt}");
    for delta in engine.stream(&prompt, &params)? {
        print!("{}", delta?.text);
        std::io::stdout().flush()?;
    }
    println!();
    Ok(())
}
