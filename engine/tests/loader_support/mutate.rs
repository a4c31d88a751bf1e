//! Seeded damage to files.

use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};

/// Numbers that break arithmetic.
const EXTREMES: [u64; 22] = [
    0,
    1,
    2,
    3,
    7,
    31,
    33,
    255,
    256,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    (1 << 61) + 1,
    1 << 61,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    u64::MAX - 31,
    u64::MAX - 1,
    u64::MAX,
];

/// One to four injuries. `fields` are positions and widths of numbers, `hot` is the length of the header.
pub fn binary(bytes: &mut Vec<u8>, fields: &[(usize, usize)], hot: usize, rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..=4) {
        if bytes.is_empty() {
            return;
        }
        let hot = hot.clamp(1, bytes.len());
        let position =
            if rng.random_ratio(9, 10) { rng.random_range(0..hot) } else { rng.random_range(0..bytes.len()) };
        match rng.random_range(0..10) {
            0..=2 => bytes[position] ^= 1 << rng.random_range(0..8),
            3 => bytes[position] = rng.random(),
            4 => bytes.truncate(rng.random_range(0..=bytes.len())),
            5..=7 if !fields.is_empty() => {
                let Some((at, width)) = fields.choose(rng) else { continue };
                put(bytes, *at, *width, *EXTREMES.choose(rng).unwrap_or(&0));
            }
            8 => {
                let end = (position + rng.random_range(1..64)).min(bytes.len());
                bytes.drain(position..end);
            }
            _ => {
                let end = (position + rng.random_range(1..64)).min(bytes.len());
                let copy = bytes[position..end].to_vec();
                bytes.splice(position..position, copy);
            }
        }
    }
}

fn put(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    for (byte, new) in bytes.iter_mut().skip(at).take(width).zip(value.to_le_bytes()) {
        *byte = new;
    }
}

/// JSON values that break readers.
const JSON_EXTREMES: [&str; 22] = [
    "0",
    "-1",
    "1",
    "3",
    "1e308",
    "1e999",
    "-0.0",
    "0.5",
    "18446744073709551615",
    "9223372036854775808",
    "4294967296",
    "2305843009213693953",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"../../x.safetensors\"",
    "\"\\u0000\\n\"",
    "[[[[[[]]]]]]",
    "\"llama3\"",
    "[4294967295, -1]",
];

/// One to three injuries to a text of JSON: whole values as often as bytes.
pub fn json(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..=3) {
        let starts: Vec<usize> =
            bytes.iter().enumerate().filter(|(_, b)| matches!(b, b':' | b',' | b'[')).map(|(i, _)| i + 1).collect();
        match (starts.choose(rng), rng.random_range(0..3)) {
            (Some(start), 0 | 1) => {
                let rest = &bytes[*start..];
                let end = start + rest.iter().position(|b| matches!(b, b',' | b'}' | b']')).unwrap_or(rest.len());
                let value = JSON_EXTREMES.choose(rng).unwrap_or(&"0");
                bytes.splice(*start..end, value.bytes());
            }
            _ => {
                let hot = bytes.len();
                binary(bytes, &[], hot, rng);
            }
        }
    }
}
