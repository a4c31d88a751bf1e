//! Prompts cut from English prose that ships with the client (`assets/PROVENANCE.md`).
//!
//! Invariant: no two prompts of a run, nor a prompt and a warm-up, share their first words; so a prefix cache finds
//! nothing but the prefix that `--shared-prefix-fraction` asks for.

use std::collections::HashSet;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const TEXT: &str = include_str!("../assets/eighty-days.txt");

/// What numbers a prompt's opening.
const OPENINGS: [&str; 8] = ["Extract", "Passage", "Fragment", "Page", "Folio", "Letter", "Notebook", "Chronicle"];

/// Draws prompts from a seed, each with an opening of its own and most with a starting sentence of their own.
pub(crate) struct Prose {
    words: Vec<&'static str>,
    /// Positions in `words` where sentences start, in the order of use.
    starts: Vec<usize>,
    num_drawn: usize,
    used_openings: HashSet<String>,
    rng: ChaCha8Rng,
}

/// One prompt of adjustable length: its opening and where its text starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Passage {
    /// Where the part common to all prompts starts.
    shared_start: usize,
    opening: String,
    start: usize,
}

impl Prose {
    pub(crate) fn new(seed: u64) -> Self {
        let words: Vec<&str> = TEXT.split_whitespace().collect();
        let ends_sentence = |word: &str| word.trim_end_matches(['"', '\'', ')']).ends_with(['.', '!', '?']);
        let mut starts: Vec<usize> = (0..words.len())
            .filter(|idx| {
                idx.checked_sub(1).and_then(|before| words.get(before)).is_none_or(|word| ends_sentence(word))
            })
            .collect();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1);
        starts.shuffle(&mut rng);
        Self { words, starts, num_drawn: 0, used_openings: HashSet::new(), rng }
    }

    /// The passages of one phase of a run (its warm-up, or the run); each phase has a shared part of its own.
    pub(crate) fn draw(&mut self, count: usize) -> Vec<Passage> {
        let shared_start = self.next_start();
        (0..count).map(|_| Passage { shared_start, opening: self.opening(), start: self.next_start() }).collect()
    }

    /// The passage cut to `num_words` words, of which the first `shared_words` are common to its phase.
    pub(crate) fn text(&self, passage: &Passage, num_words: usize, shared_words: usize) -> String {
        let own_words = num_words.saturating_sub(shared_words);
        let from = |start: usize| self.words.iter().cycle().skip(start % self.words.len().max(1)).copied();
        let own = passage.opening.split(' ').chain(from(passage.start)).take(own_words);
        from(passage.shared_start).take(num_words - own_words).chain(own).collect::<Vec<_>>().join(" ")
    }

    fn next_start(&mut self) -> usize {
        let start = self.starts.get(self.num_drawn % self.starts.len().max(1)).copied().unwrap_or(0);
        self.num_drawn += 1;
        start
    }

    fn opening(&mut self) -> String {
        loop {
            let noun = OPENINGS[self.rng.random_range(0..OPENINGS.len())];
            let opening = format!("{noun} {}:", self.rng.random_range(1_000_000..100_000_000));
            if self.used_openings.insert(opening.clone()) {
                return opening;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_english_prose() {
        let prose = Prose::new(0);
        assert!(prose.words.len() > 12_000 && prose.starts.len() > 600);
        let the = prose.words.iter().filter(|word| **word == "the").count() as f64 / prose.words.len() as f64;
        assert!((0.04..0.08).contains(&the), "share of \"the\": {the}");
    }

    #[test]
    fn no_two_prompts_begin_alike() {
        let mut prose = Prose::new(3);
        let passages = [prose.draw(50), prose.draw(2_000)].concat();
        let begins: HashSet<String> = passages.iter().map(|passage| prose.text(passage, 2, 0)).collect();
        assert_eq!(begins.len(), 2_050);
        let starts: HashSet<usize> = passages.iter().take(600).map(|passage| passage.start).collect();
        assert_eq!(starts.len(), 600, "a starting sentence is used again before all were used");
    }

    #[test]
    fn the_seed_fixes_prompts_and_another_seed_changes_all() {
        let texts = |seed| {
            let mut prose = Prose::new(seed);
            let passages = prose.draw(300);
            passages.iter().map(|passage| prose.text(passage, 12, 0)).collect::<HashSet<_>>()
        };
        assert_eq!(texts(1), texts(1));
        assert!(texts(1).is_disjoint(&texts(2)));
    }

    #[test]
    fn lengths_and_the_shared_part_are_exact() {
        let mut prose = Prose::new(9);
        let passages = prose.draw(2);
        for (num_words, shared_words) in [(1, 0), (40, 0), (40, 30), (20_000, 15_000)] {
            let texts: Vec<String> =
                passages.iter().map(|passage| prose.text(passage, num_words, shared_words)).collect();
            let words: Vec<Vec<&str>> = texts.iter().map(|text| text.split(' ').collect()).collect();
            assert!(words.iter().all(|words| words.len() == num_words));
            let common = words[0].iter().zip(&words[1]).take_while(|(left, right)| left == right).count();
            assert!((shared_words..=shared_words + 1).contains(&common), "{common} words in common");
        }
        let warm = prose.draw(1);
        assert_ne!(prose.text(&warm[0], 30, 30), prose.text(&passages[0], 30, 30), "warm-up warms the shared part");
    }
}
