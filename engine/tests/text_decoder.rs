//! RELIABILITY.md, G13: what streams is exactly what the whole would be, and stop strings end it where they should.
//! `AISP_G13_CASES=1000000` runs as many cases of each kind.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "test helpers fail by panicking")]

use std::collections::HashMap;

use aisp_engine::SamplingParams;
use aisp_engine::text::{StopReason, TextDecoder, Tokenizer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

mod text_vocab;
use text_vocab::{sentence_piece, story};

fn num_cases() -> u64 {
    std::env::var("AISP_G13_CASES").map_or(100_000, |text| text.parse().unwrap())
}

fn pieces() -> Tokenizer {
    sentence_piece(&[("▁", -9.0), ("a", -8.0), ("▁a", -2.0), ("ab", -1.0), ("é", -3.0), ("😀", -3.0), ("▁▁", -4.0)])
}

/// The text of `bytes` that later bytes cannot change.
fn stable(bytes: &[u8]) -> String {
    let tail = (0..=3.min(bytes.len())).find(|tail| {
        let cut = &bytes[bytes.len() - tail..];
        *tail > 0 && std::str::from_utf8(cut).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
    });
    String::from_utf8_lossy(&bytes[..bytes.len() - tail.unwrap_or(0)]).into_owned()
}

/// Streams `ids` without stop strings and holds the result against the bytes at every token.
fn check_stream(tokenizer: &Tokenizer, ids: &[u32], skip_special_tokens: bool) {
    let params = SamplingParams { skip_special_tokens, ..SamplingParams::default() };
    let mut decoder = TextDecoder::new(tokenizer.clone(), &params);
    let mut text = String::new();
    for (i, id) in ids.iter().enumerate() {
        let delta = decoder.push(*id);
        assert_eq!(delta.stopped, None);
        text.push_str(&delta.text);
        assert_eq!(text, stable(&tokenizer.decode_bytes(&ids[..=i], skip_special_tokens)), "{ids:?} at {i}");
    }
    text.push_str(&decoder.finish());
    assert_eq!(text, String::from_utf8_lossy(&tokenizer.decode_bytes(ids, skip_special_tokens)), "{ids:?}");
    assert_eq!((decoder.num_tokens(), decoder.finish()), (ids.len(), String::new()));
}

#[test]
fn random_tokens_stream_to_the_full_decode() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for tokenizer in [story(), pieces()] {
        // Tokens that are no text of their own are rare among all, and the ones that matter.
        let partial: Vec<u32> = (0..tokenizer.vocab_size() as u32)
            .filter(|id| std::str::from_utf8(tokenizer.token_to_bytes(*id)).is_err())
            .collect();
        assert!(partial.len() >= 128);
        for _ in 0..num_cases() {
            let ids: Vec<u32> = (0..rng.random_range(1..16))
                .map(|_| match rng.random_range(0..10) {
                    0 => rng.random_range(0..4),
                    1..6 => partial[rng.random_range(0..partial.len())],
                    _ => rng.random_range(0..tokenizer.vocab_size() as u32 + 2),
                })
                .collect();
            check_stream(&tokenizer, &ids, rng.random());
        }
    }
}

fn random_text(rng: &mut ChaCha8Rng, num_chars: usize) -> String {
    (0..num_chars)
        .map(|_| match rng.random_range(0..8) {
            0..3 => rng.random_range('a'..='e'),
            3 => ' ',
            4 => rng.random_range('\u{80}'..='\u{7ff}'),
            5 => rng.random_range('\u{800}'..='\u{d7ff}'),
            6 => rng.random_range('\u{1f300}'..='\u{1faff}'),
            _ => rng.random_range('\u{0}'..='\u{10ffff}'),
        })
        .collect()
}

/// Cuts `text` into tokens at random places, also within characters.
fn random_split(rng: &mut ChaCha8Rng, ids_by_bytes: &HashMap<Vec<u8>, u32>, text: &str) -> Vec<u32> {
    let mut rest = text.as_bytes();
    let mut ids = Vec::new();
    while !rest.is_empty() {
        let fitting: Vec<_> =
            (1..=rest.len().min(8)).filter_map(|n| Some((n, ids_by_bytes.get(&rest[..n])?))).collect();
        let (len, id) = fitting[rng.random_range(0..fitting.len())];
        ids.push(*id);
        rest = &rest[len..];
    }
    ids
}

fn ids_by_bytes(tokenizer: &Tokenizer) -> HashMap<Vec<u8>, u32> {
    let ids = (0..tokenizer.vocab_size() as u32).filter(|id| !tokenizer.is_special(*id));
    ids.map(|id| (tokenizer.token_to_bytes(id).to_vec(), id)).collect()
}

/// How random tokens spell text: a tokenizer and every byte string that one of its tokens stands for.
fn spellings() -> Vec<(Tokenizer, HashMap<Vec<u8>, u32>)> {
    // SmolLM2's vocabulary lacks 13 bytes that UTF-8 text never or hardly ever has; texts avoid characters with them.
    [story(), pieces()].into_iter().map(|tokenizer| (tokenizer.clone(), ids_by_bytes(&tokenizer))).collect()
}

fn can_spell(ids_by_bytes: &HashMap<Vec<u8>, u32>, c: char) -> bool {
    c.to_string().bytes().all(|byte| ids_by_bytes.contains_key(&vec![byte]))
}

#[test]
fn random_splits_of_text_stream_to_the_text() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (tokenizer, ids_by_bytes) in spellings() {
        for _ in 0..num_cases() {
            let num_chars = rng.random_range(0..12);
            let mut text = random_text(&mut rng, num_chars);
            text.retain(|c| can_spell(&ids_by_bytes, c));
            let ids = random_split(&mut rng, &ids_by_bytes, &text);
            let mut decoder = TextDecoder::new(tokenizer.clone(), &SamplingParams::default());
            let mut streamed = String::new();
            for id in ids {
                let delta = decoder.push(id).text;
                assert!(!delta.contains('\u{fffd}') || text.contains('\u{fffd}'));
                streamed.push_str(&delta);
            }
            assert_eq!(decoder.finish(), "");
            assert_eq!(streamed, text);
        }
    }
}

/// The definition of a stop, tried at every byte: the first byte at which a stop string is complete, the longest that
/// is complete there, not within the first `min_tokens` tokens.
fn naive_stop(texts: &[String], params: &SamplingParams) -> Option<(String, StopReason)> {
    let text = texts.last()?;
    (1..=text.len()).find_map(|end| {
        let ends = |stop: &&(usize, &String)| text.as_bytes()[..end].ends_with(stop.1.as_bytes());
        let listed: Vec<_> = params.stop.iter().enumerate().collect();
        let longest = listed.iter().filter(ends).map(|stop| stop.1.len()).max()?;
        let (stop_idx, stop) = listed.iter().filter(ends).find(|stop| stop.1.len() == longest)?;
        let num_tokens = texts.iter().position(|text| text.len() >= end)? + 1;
        let kept = if params.include_stop_str_in_output { end } else { end - longest };
        let reason = StopReason { stop: (*stop).clone(), stop_idx: *stop_idx, num_tokens };
        (num_tokens > params.min_tokens).then(|| (text[..kept].to_string(), reason))
    })
}

#[test]
fn stop_strings_end_the_text_as_the_naive_search_says() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut num_stopped, spellings) = (0, spellings());
    let alphabet = ['a', 'b', 'é', '😀', ' '];
    let draw = |rng: &mut ChaCha8Rng, most: usize| -> String {
        let len = rng.random_range(1..=most);
        (0..len).map(|_| alphabet[rng.random_range(0..alphabet.len())]).collect()
    };
    for case in 0..num_cases() {
        let (tokenizer, ids_by_bytes) = &spellings[(case % 2) as usize];
        let text = draw(&mut rng, 24);
        let ids = random_split(&mut rng, ids_by_bytes, &text);
        let params = SamplingParams {
            stop: (0..rng.random_range(0..4)).map(|_| draw(&mut rng, 4)).collect(),
            include_stop_str_in_output: rng.random(),
            min_tokens: if rng.random() { 0 } else { rng.random_range(0..8) },
            ..SamplingParams::default()
        };
        let texts: Vec<String> = (1..=ids.len()).map(|n| stable(&tokenizer.decode_bytes(&ids[..n], true))).collect();
        let want = naive_stop(&texts, &params);
        let mut decoder = TextDecoder::new(tokenizer.clone(), &params);
        let mut streamed = String::new();
        for id in &ids {
            streamed.push_str(&decoder.push(*id).text);
            let ended = want.as_ref().map_or(text.as_str(), |(kept, _)| kept);
            assert!(ended.starts_with(&streamed), "retracted: {ids:?} {params:?}");
        }
        streamed.push_str(&decoder.finish());
        num_stopped += u64::from(want.is_some());
        let got = (streamed, decoder.stopped().cloned());
        assert_eq!(
            got,
            want.map_or((text.clone(), None), |(kept, reason)| (kept, Some(reason))),
            "{text:?} {params:?}"
        );
    }
    assert!(num_stopped > num_cases() / 10, "only {num_stopped} cases stopped: the test does not bite");
}

#[test]
fn text_waits_only_while_it_may_be_a_stop_string() {
    let tokenizer = pieces();
    let ids = |text: &str| text.bytes().map(|byte| 4 + u32::from(byte)).collect::<Vec<_>>();
    let stream = |params: &SamplingParams, text: &str| -> Vec<String> {
        let mut decoder = TextDecoder::new(tokenizer.clone(), params);
        let mut deltas: Vec<_> = ids(text).into_iter().map(|id| decoder.push(id).text).collect();
        deltas.push(decoder.finish());
        deltas
    };
    let stop = |stop: &[&str]| SamplingParams {
        stop: stop.iter().map(|s| s.to_string()).collect(),
        ..SamplingParams::default()
    };
    assert_eq!(stream(&stop(&[]), "aé"), ["a", "", "é", ""]);
    assert_eq!(stream(&stop(&["aab"]), "aaac"), ["", "", "a", "aac", ""]);
    assert_eq!(stream(&stop(&["END"]), "xEN"), ["x", "", "", "EN"]);
    assert_eq!(stream(&stop(&["END"]), "xENDy"), ["x", "", "", "", "", ""]);
    let kept = SamplingParams { include_stop_str_in_output: true, ..stop(&["END"]) };
    assert_eq!(stream(&kept, "xENDy"), ["x", "", "", "END", "", ""]);
    let late = SamplingParams { min_tokens: 2, ..stop(&["a"]) };
    assert_eq!(stream(&late, "aaaa"), ["a", "a", "", "", ""]);
}

/// A long answer that never stops costs the same per token at its end as at its beginning.
#[test]
fn cost_per_token_does_not_grow() {
    let params = SamplingParams { stop: vec![format!("{}b", "a".repeat(2000))], ..SamplingParams::default() };
    let mut decoder = TextDecoder::new(pieces(), &params);
    let mut time_of_20_000_tokens = || {
        let start = std::time::Instant::now();
        (0..20_000).for_each(|_| drop(decoder.push(4 + u32::from(b'a'))));
        start.elapsed()
    };
    // The fastest of several: other processes share the machine.
    let early = (0..5).map(|_| time_of_20_000_tokens()).min().unwrap();
    let late = (0..10).map(|_| time_of_20_000_tokens()).min().unwrap();
    eprintln!("20000 tokens with 2000 bytes held back: {early:?} at the beginning, {late:?} later");
    assert!(late < early * 4, "{early:?} {late:?}");
}

#[test]
fn the_token_that_ends_an_answer_counts_but_is_not_shown() {
    let tokenizer = story();
    let tokens = tokenizer.encode("Hello world", false).unwrap();
    for include in [false, true] {
        let params = SamplingParams { include_stop_str_in_output: include, ..SamplingParams::default() };
        let mut decoder = TextDecoder::new(tokenizer.clone(), &params);
        let shown = decoder.push(tokens[0]).text + &decoder.push_end(tokens[1]).text + &decoder.finish();
        assert_eq!(shown, if include { "Hello world" } else { "Hello" });
        assert_eq!(decoder.num_tokens(), 2);
    }
}
