//! Finds stop strings in text that arrives in pieces, and says how much of the text must still be held back.

/// Matches all stop strings of a request at once, one Knuth-Morris-Pratt automaton each.
///
/// The match is the first byte of the text at which any stop string is complete; of several that end there, the
/// longest. So the result does not depend on how the text was cut into pieces.
#[derive(Debug, Clone)]
pub(super) struct StopMatcher {
    patterns: Vec<Pattern>,
}

/// A stop string that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StopMatch {
    /// Its place in the request's list.
    pub pattern_idx: usize,
    /// Bytes of the pushed piece up to and with its last byte.
    pub end: usize,
    /// Its length in bytes.
    pub num_bytes: usize,
}

#[derive(Debug, Clone)]
struct Pattern {
    bytes: Vec<u8>,
    /// `borders[i]`: length of the longest proper prefix of `bytes[..=i]` that is also its suffix.
    borders: Vec<usize>,
    /// How many bytes of the pattern the text ends with.
    matched: usize,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones never match.
    pub(super) fn new(stop: &[String]) -> Self {
        Self { patterns: stop.iter().map(|stop| Pattern::new(stop)).collect() }
    }

    /// Reads on; stops at the first match that `accept` allows. A refused match is passed over.
    ///
    /// Cost: amortised linear in `piece` times the number of stop strings.
    pub(super) fn push(&mut self, piece: &str, accept: bool) -> Option<StopMatch> {
        if self.patterns.is_empty() {
            return None;
        }
        for (i, byte) in piece.bytes().enumerate() {
            let mut found: Option<StopMatch> = None;
            for (pattern_idx, pattern) in self.patterns.iter_mut().enumerate() {
                let num_bytes = pattern.bytes.len();
                if pattern.advance(byte) && found.is_none_or(|found| found.num_bytes < num_bytes) {
                    found = Some(StopMatch { pattern_idx, end: i + 1, num_bytes });
                }
            }
            if found.is_some() && accept {
                return found;
            }
        }
        None
    }

    /// Bytes at the end of the text that may be the beginning of a stop string.
    pub(super) fn num_held_bytes(&self) -> usize {
        self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0)
    }
}

impl Pattern {
    fn new(stop: &str) -> Self {
        let bytes = stop.as_bytes().to_vec();
        let mut borders = vec![0; bytes.len()];
        let mut border = 0;
        for i in 1..bytes.len() {
            while border > 0 && bytes[i] != bytes[border] {
                border = borders[border - 1];
            }
            border += usize::from(bytes[i] == bytes[border]);
            borders[i] = border;
        }
        Self { bytes, borders, matched: 0 }
    }

    /// Takes one byte; whether the pattern is complete with it. `matched` then is its longest border, so that
    /// matching can go on.
    fn advance(&mut self, byte: u8) -> bool {
        let Some(first) = self.bytes.first() else { return false };
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.borders[self.matched - 1];
        }
        if self.matched == 0 && *first != byte {
            return false;
        }
        self.matched += 1;
        let complete = self.matched == self.bytes.len();
        if complete {
            self.matched = self.borders[self.matched - 1];
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, tried at every byte.
    fn naive(text: &str, stop: &[String]) -> Option<(usize, usize)> {
        (1..=text.len()).find_map(|end| {
            let ended = &text.as_bytes()[..end];
            let longest =
                stop.iter().filter(|s| !s.is_empty() && ended.ends_with(s.as_bytes())).max_by_key(|s| s.len());
            longest.map(|s| (end - s.len(), end))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn equals_the_naive_search(
            pieces in prop::collection::vec("[abé]{0,4}", 0..12),
            stop in prop::collection::vec("[abé]{1,4}", 0..4),
        ) {
            let text = pieces.concat();
            let mut matcher = StopMatcher::new(&stop);
            let mut before = 0;
            let mut found = None;
            for piece in &pieces {
                if let Some(hit) = matcher.push(piece, true) {
                    found = Some((before + hit.end - hit.num_bytes, before + hit.end));
                    prop_assert_eq!(stop[hit.pattern_idx].len(), hit.num_bytes);
                    break;
                }
                before += piece.len();
                let held = matcher.num_held_bytes();
                prop_assert!(text.is_char_boundary(before - held));
                let longest = (0..=before).find(|start| {
                    stop.iter().any(|s| s.len() > before - start && s.as_bytes().starts_with(&text.as_bytes()[*start..before]))
                });
                prop_assert_eq!(held, before - longest.unwrap_or(before));
            }
            prop_assert_eq!(found, naive(&text, &stop));
        }
    }

    #[test]
    fn the_longest_of_two_that_end_together_wins() {
        let mut matcher = StopMatcher::new(&["b".into(), "ab".into()]);
        assert_eq!(matcher.push("xab", true), Some(StopMatch { pattern_idx: 1, end: 3, num_bytes: 2 }));
    }
}
