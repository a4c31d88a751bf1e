//! Streams lose nothing: what the incremental detokenizer gives piece by piece is what decoding at once gives.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use aisp_engine::SamplingParams;
use aisp_engine::loader::{LoadOptions, ModelSource, load};
use aisp_engine::text::{TextDecoder, Tokenizer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn tokenizer() -> Tokenizer {
    Tokenizer::new(load(&ModelSource::Builtin, &LoadOptions::default()).unwrap().tokenizer).unwrap()
}

/// Sequences to try; `AISP_STREAMS=1000000` for the long run.
fn num_streams() -> usize {
    std::env::var("AISP_STREAMS").map_or(20_000, |n| n.parse().unwrap())
}

/// Tokens of a text with many multi-byte characters, or any tokens at all, whose bytes may be no text.
fn random_tokens(tokenizer: &Tokenizer, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let len = rng.random_range(1..40);
    if rng.random_bool(0.5) {
        return (0..len).map(|_| rng.random_range(0..tokenizer.vocab_size() as u32)).collect();
    }
    let alphabet: Vec<char> = "ab \n1é—ß中文字👍🏽🇩🇪\u{200d}𝔘नमस्ते<|".chars().collect();
    let text: String = (0..len).map(|_| alphabet[rng.random_range(0..alphabet.len())]).collect();
    tokenizer.encode(&text, false).unwrap()
}

#[test]
fn a_stream_equals_the_whole() {
    let tokenizer = tokenizer();
    let mut rng = ChaCha8Rng::seed_from_u64(13);
    for _ in 0..num_streams() {
        let tokens = random_tokens(&tokenizer, &mut rng);
        let skip_special_tokens = rng.random_bool(0.5);
        let params = SamplingParams { skip_special_tokens, ..SamplingParams::default() };
        let mut decoder = TextDecoder::new(tokenizer.clone(), &params);
        let mut streamed = String::new();
        for &token in &tokens {
            streamed.push_str(&decoder.push(token).text);
        }
        streamed.push_str(&decoder.finish());
        let whole = String::from_utf8_lossy(&tokenizer.decode_bytes(&tokens, skip_special_tokens)).into_owned();
        assert_eq!(streamed, whole, "{tokens:?}");
    }
}

#[test]
fn a_stop_string_cuts_where_the_whole_text_has_it_first() {
    let tokenizer = tokenizer();
    let mut rng = ChaCha8Rng::seed_from_u64(14);
    let mut num_stopped = 0;
    for _ in 0..num_streams() {
        let tokens = random_tokens(&tokenizer, &mut rng);
        let whole = String::from_utf8_lossy(&tokenizer.decode_bytes(&tokens, true)).into_owned();
        let chars: Vec<char> = whole.chars().collect();
        let start = rng.random_range(0..chars.len().max(1));
        let stop: String = chars.iter().skip(start).take(rng.random_range(1..4)).collect();
        if stop.is_empty() || stop.contains('\u{fffd}') {
            continue;
        }
        let include = rng.random_bool(0.5);
        let params = SamplingParams {
            stop: vec![stop.clone()],
            include_stop_str_in_output: include,
            ..SamplingParams::default()
        };
        let mut decoder = TextDecoder::new(tokenizer.clone(), &params);
        let mut streamed = String::new();
        for &token in &tokens {
            let delta = decoder.push(token);
            streamed.push_str(&delta.text);
            if delta.stopped.is_some() {
                break;
            }
        }
        streamed.push_str(&decoder.finish());
        let at = whole.find(&stop).unwrap();
        let end = if include { at + stop.len() } else { at };
        assert_eq!(streamed, whole[..end], "{stop:?} in {whole:?}");
        num_stopped += usize::from(decoder.stopped().is_some());
    }
    assert!(num_stopped > num_streams() / 2);
}

#[test]
fn the_token_that_ends_an_answer_counts_but_is_not_shown() {
    let tokenizer = tokenizer();
    let tokens = tokenizer.encode("Hello world", false).unwrap();
    for include in [false, true] {
        let params = SamplingParams { include_stop_str_in_output: include, ..SamplingParams::default() };
        let mut decoder = TextDecoder::new(tokenizer.clone(), &params);
        let shown = decoder.push(tokens[0]).text + &decoder.push_end(tokens[1]).text + &decoder.finish();
        assert_eq!(shown, if include { "Hello world" } else { "Hello" });
        assert_eq!(decoder.num_tokens(), 2);
    }
}
