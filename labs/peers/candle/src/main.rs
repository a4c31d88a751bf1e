//! Is our baseline honest? Decode and prefill of aisp with no optimization against candle-transformers' own quantized
//! Llama: same file, same prompt, same process, interleaved ABBA.
//! `cargo run --release --manifest-path labs/peers/candle/Cargo.toml -- MODEL.gguf [ROUNDS]`

use std::time::{Duration, Instant};

use aisp_engine::{Engine, Request, SamplingParams, Selection, TokenId};
use anyhow::{Context, Result, ensure};
use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;

const PROMPT_TOKENS: usize = 64;
const ANSWER_TOKENS: usize = 48;

/// Greedy answers may part where two logits are this close, for arithmetic differs.
const NEAR_TIE_NAT: f32 = 0.05;

struct Timing {
    prefill: Duration,
    decode: Duration,
    tokens: Vec<TokenId>,
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().context("usage: candle-peer MODEL.gguf [ROUNDS]")?;
    let rounds: usize = args.next().map_or(Ok(5), |n| n.parse())?;
    let mut engine = Engine::builder().model(path.parse()?).optimizations(Selection::none()).build()?;
    let tokenizer = engine.tokenizer().context("the model has no tokenizer")?;
    let text = include_str!("../../../../engine/tests/data/english.txt");
    let prompt: Vec<TokenId> = tokenizer.encode(text, false)?[..PROMPT_TOKENS].to_vec();

    let mut file = std::fs::File::open(&path)?;
    let content = gguf_file::Content::read(&mut file)?;
    let mut peer = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;

    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    run_ours(&mut engine, &prompt)?;
    run_theirs(&mut peer, &prompt)?;
    for round in 0..rounds {
        for ours_first in [round % 2 == 0, round % 2 == 1] {
            if ours_first {
                ours.push(run_ours(&mut engine, &prompt)?);
            } else {
                theirs.push(run_theirs(&mut peer, &prompt)?);
            }
        }
    }
    let gap = largest_gap(&mut peer, &prompt, &ours[0].tokens)?;
    println!("{path}: {rounds} rounds, {PROMPT_TOKENS} prompt tokens, {ANSWER_TOKENS} answer tokens");
    println!("their logit of our token is at most {gap:.4} nat below their best");
    report("prefill", PROMPT_TOKENS, &ours, &theirs, |t| t.prefill);
    report("decode", ANSWER_TOKENS - 1, &ours, &theirs, |t| t.decode);
    ensure!(gap <= NEAR_TIE_NAT, "the two answer differently");
    Ok(())
}

fn run_ours(engine: &mut Engine, prompt: &[TokenId]) -> Result<Timing> {
    let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy(ANSWER_TOKENS) };
    let started = Instant::now();
    engine.add_request(Request::new(prompt.to_vec(), params))?;
    let mut tokens = Vec::new();
    let mut prefill = None;
    while engine.has_unfinished() {
        for output in engine.step()? {
            prefill.get_or_insert_with(|| started.elapsed());
            tokens.extend(output.tokens.iter().map(|token| token.id));
        }
    }
    let prefill = prefill.context("no token came")?;
    Ok(Timing { prefill, decode: started.elapsed() - prefill, tokens })
}

fn run_theirs(model: &mut ModelWeights, prompt: &[TokenId]) -> Result<Timing> {
    let started = Instant::now();
    let mut tokens = vec![next_token(model, prompt, 0)?];
    let prefill = started.elapsed();
    while tokens.len() < ANSWER_TOKENS {
        let last = tokens[tokens.len() - 1];
        tokens.push(next_token(model, &[last], prompt.len() + tokens.len() - 1)?);
    }
    Ok(Timing { prefill, decode: started.elapsed() - prefill, tokens })
}

fn next_token(model: &mut ModelWeights, tokens: &[TokenId], position: usize) -> Result<TokenId> {
    Ok(logits(model, tokens, position)?.argmax(0)?.to_scalar::<u32>()?)
}

fn logits(model: &mut ModelWeights, tokens: &[TokenId], position: usize) -> Result<Tensor> {
    let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
    Ok(model.forward(&input, position)?.squeeze(0)?)
}

/// Walks the peer along our answer: how far, at most, does its best logit stand above that of our token?
fn largest_gap(model: &mut ModelWeights, prompt: &[TokenId], answer: &[TokenId]) -> Result<f32> {
    let mut row = logits(model, prompt, 0)?.to_vec1::<f32>()?;
    let mut gap = 0f32;
    for (at, &token) in answer.iter().enumerate() {
        let best = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        gap = gap.max(best - row[token as usize]);
        row = logits(model, &[token], prompt.len() + at)?.to_vec1::<f32>()?;
    }
    Ok(gap)
}

fn report(phase: &str, tokens: usize, ours: &[Timing], theirs: &[Timing], of: fn(&Timing) -> Duration) {
    let rate = |timing: &Timing| tokens as f64 / of(timing).as_secs_f64();
    let mut ratios: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| rate(a) / rate(b)).collect();
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (a, b) = (median(&mut ours.iter().map(rate).collect()), median(&mut theirs.iter().map(rate).collect()));
    let ratio = median(&mut ratios);
    let (low, high) = (ratios[0], ratios[ratios.len() - 1]);
    println!("{phase:>8}: aisp none {a:8.1} tok/s, candle-transformers {b:8.1} tok/s, ratio {ratio:.3} [{low:.3}, {high:.3}]");
}
