//! A fact hidden in a long text is found again with keys and values in 8 bits where it is found with them in full.
//! `AISP_LONG=1` asks at 8k tokens as well.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use aisp_engine::{Engine, Optimization, SamplingParams, Selection};
use support::{SMOLLM2, TEXT};

const FACT: &str = "\n\nThe secret code of the vault is 7481. Remember it.\n\n";
const QUESTION: &str = "\n\nQuestion: What is the secret code of the vault?\nAnswer: The secret code of the vault is";

fn answers(selection: &Selection, num_tokens: usize, depths: &[f64]) -> Vec<String> {
    let builder = Engine::builder().model(SMOLLM2.parse().unwrap()).optimizations(selection.clone());
    let mut engine = builder.max_model_len(Some(num_tokens + num_tokens / 20)).threads(Some(2)).build().unwrap();
    let words: Vec<&str> = TEXT.split(' ').collect();
    let tokens_of_text = engine.tokenizer().unwrap().encode(TEXT, false).unwrap().len();
    let num_words = num_tokens * words.len() / tokens_of_text;
    let filler: Vec<&str> = words.into_iter().cycle().take(num_words).collect();
    let answer = |depth: &f64| {
        let (before, after) = filler.split_at((num_words as f64 * depth) as usize);
        let prompt = [&before.join(" "), FACT, &after.join(" "), QUESTION].concat();
        engine.generate(&prompt, &SamplingParams::greedy(6)).unwrap().text
    };
    depths.iter().map(answer).collect()
}

#[test]
fn fp8_keeps_what_the_full_type_finds() {
    let long = std::env::var_os("AISP_LONG").is_some();
    let depths = if long { &[0.1, 0.5, 0.9][..] } else { &[0.5] };
    let with = Selection::all();
    let without = with.without(Optimization::KvFp8);
    for num_tokens in if long { &[3900, 7600][..] } else { &[3900] } {
        let expected = answers(&without, *num_tokens, depths);
        assert!(expected.iter().any(|answer| answer.contains("7481")), "{num_tokens}: not found: {expected:?}");
        assert_eq!(answers(&with, *num_tokens, depths), expected, "{num_tokens}");
    }
}
