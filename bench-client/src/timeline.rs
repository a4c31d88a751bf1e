//! From the events of one stream to token times. This is where "per token, never per chunk" is decided:
//!
//! - How many tokens an event carries is read, in this order, from cumulative usage (`continuous_usage_stats`), from
//!   `token_ids`, from `logprobs`. Where a server reports none of these, the tokens of the final usage are dealt evenly
//!   to the events that carried text; without any usage each such event is one token, and the result warns.
//! - An event of m tokens that comes a gap g after the last one gives m samples of g/m. The first event gives the time
//!   to the first token; further tokens inside it have no measured gap and give no sample, so a burst cannot hide.

use serde::Serialize;

use crate::wire::Chunk;

/// How the tokens of a stream were counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenCounting {
    /// Each event's tokens are known, or every event was exactly one token of the final usage.
    PerEvent,
    /// The final usage counts more or fewer tokens than there were events: dealt evenly.
    Spread,
    /// The server sent no usage: one token an event is assumed.
    Assumed,
}

/// The token times of one stream. Units: seconds from the start of the run.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenTimes {
    /// When the first token came.
    pub first_s: f64,
    /// When the last token came.
    pub last_s: f64,
    /// Tokens generated, as the server's usage says, else as counted.
    pub output_tokens: u64,
    /// Mean time per token after those of the first event; `None` when no token came later.
    pub tpot_s: Option<f64>,
    /// The gap before each token after the first event; one sample a token.
    pub itl_s: Vec<f64>,
    /// How tokens were counted.
    pub counting: TokenCounting,
}

/// Collects the events of one stream as they come.
#[derive(Debug, Default)]
pub struct Timeline {
    events: Vec<Event>,
    /// The sum of the known tokens of `events`.
    counted: u64,
    /// Some event's tokens are not known.
    has_unknown: bool,
    total: Option<u64>,
    prompt_tokens: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Event {
    at_s: f64,
    tokens: Option<u64>,
}

impl Timeline {
    /// Notes one chunk of the stream, received at `at_s`. Returns the tokens it is known or assumed to carry.
    pub fn push(&mut self, at_s: f64, chunk: &Chunk) -> u64 {
        self.prompt_tokens = chunk.prompt_tokens.or(self.prompt_tokens);
        // Usage is cumulative only where every event so far had one; else it is the stream's total.
        let continuous = chunk.has_choice && !self.has_unknown;
        let known = match (continuous, chunk.completion_tokens) {
            (true, Some(cumulative)) => Some(cumulative.saturating_sub(self.counted)),
            _ => chunk.tokens.filter(|tokens| *tokens > 0 || !chunk.has_text),
        };
        self.total = chunk.completion_tokens.or(self.total);
        let carried = known.unwrap_or(u64::from(chunk.has_text));
        if carried > 0 {
            self.events.push(Event { at_s, tokens: known });
            self.counted += known.unwrap_or(0);
            self.has_unknown |= known.is_none();
        }
        carried
    }

    /// The server's count of the prompt's tokens, if it sent one.
    pub fn prompt_tokens(&self) -> Option<u64> {
        self.prompt_tokens
    }

    /// When the first token came, if one did.
    pub fn first_s(&self) -> Option<f64> {
        self.events.first().map(|event| event.at_s)
    }

    /// Ends the stream. `None` when no token came.
    pub fn finish(&self) -> Option<TokenTimes> {
        let (first, last) = (self.events.first()?, self.events.last()?);
        let (counts, counting) = self.counts();
        let mut itl_s = Vec::with_capacity(counts.iter().sum::<u64>().min(1 << 20) as usize);
        let mut previous_s = first.at_s;
        for (event, count) in self.events.iter().zip(&counts).skip(1).filter(|(_, count)| **count > 0) {
            let gap_s = (event.at_s - previous_s) / *count as f64;
            itl_s.extend(std::iter::repeat_n(gap_s, *count as usize));
            previous_s = event.at_s;
        }
        let counted: u64 = counts.iter().sum();
        Some(TokenTimes {
            first_s: first.at_s,
            last_s: last.at_s,
            output_tokens: self.total.filter(|total| *total > 0).unwrap_or(counted),
            tpot_s: (!itl_s.is_empty()).then(|| (previous_s - first.at_s) / itl_s.len() as f64),
            itl_s,
            counting,
        })
    }

    /// Tokens of each event.
    fn counts(&self) -> (Vec<u64>, TokenCounting) {
        if let Some(known) = self.events.iter().map(|event| event.tokens).collect::<Option<Vec<u64>>>() {
            return (known, TokenCounting::PerEvent);
        }
        let num_events = self.events.len() as u64;
        match self.total.filter(|total| *total > 0) {
            None => (vec![1; self.events.len()], TokenCounting::Assumed),
            Some(total) if total == num_events => (vec![1; self.events.len()], TokenCounting::PerEvent),
            // Rounded down, the extra tokens fall late; rounded up, the first event keeps its token.
            Some(total) if total > num_events => {
                let dealt = |upto: u64| upto * total / num_events;
                ((0..num_events).map(|idx| dealt(idx + 1) - dealt(idx)).collect(), TokenCounting::Spread)
            }
            Some(total) => {
                let dealt = |upto: u64| (upto * total).div_ceil(num_events);
                ((0..num_events).map(|idx| dealt(idx + 1) - dealt(idx)).collect(), TokenCounting::Spread)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text() -> Chunk {
        Chunk { has_choice: true, has_text: true, ..Chunk::default() }
    }

    fn usage(completion_tokens: u64) -> Chunk {
        Chunk { completion_tokens: Some(completion_tokens), prompt_tokens: Some(7), ..Chunk::default() }
    }

    fn times(chunks: &[(f64, Chunk)]) -> TokenTimes {
        let mut timeline = Timeline::default();
        for (at_s, chunk) in chunks {
            timeline.push(*at_s, chunk);
        }
        timeline.finish().unwrap()
    }

    #[test]
    fn one_token_an_event() {
        let times = times(&[(1.0, text()), (1.5, text()), (1.75, text()), (1.8, usage(3))]);
        assert_eq!((times.first_s, times.last_s, times.output_tokens), (1.0, 1.75, 3));
        assert_eq!((times.itl_s, times.tpot_s), (vec![0.5, 0.25], Some(0.375)));
        assert_eq!(times.counting, TokenCounting::PerEvent);
    }

    #[test]
    fn a_gap_is_shared_by_the_tokens_of_its_event() {
        let cumulative = |tokens| Chunk { completion_tokens: Some(tokens), ..text() };
        let check = |chunks: [Chunk; 3]| {
            let [first, second, third] = chunks;
            let times = times(&[(1.0, first), (1.4, second), (1.6, third), (1.6, usage(7))]);
            assert_eq!(times.output_tokens, 7);
            assert_eq!(times.counting, TokenCounting::PerEvent);
            let wanted = [0.1, 0.1, 0.1, 0.1, 0.1, 0.1];
            assert_eq!(times.itl_s.len(), 6);
            assert!(times.itl_s.iter().zip(wanted).all(|(got, want)| (got - want).abs() < 1e-12), "{:?}", times.itl_s);
            assert!((times.tpot_s.unwrap() - 0.1).abs() < 1e-12);
        };
        check([cumulative(1), cumulative(5), cumulative(7)]);
        let counted = |tokens| Chunk { tokens: Some(tokens), ..text() };
        check([counted(1), counted(4), counted(2)]);
    }

    #[test]
    fn usage_at_the_end_alone_is_dealt_evenly() {
        let spread = times(&[(0.0, text()), (0.3, text()), (0.9, text()), (0.9, usage(9))]);
        assert_eq!(spread.counting, TokenCounting::Spread);
        assert_eq!(spread.itl_s.len(), 6, "three tokens came with the first event");
        assert!((spread.itl_s[0] - 0.1).abs() < 1e-12 && (spread.itl_s[5] - 0.2).abs() < 1e-12);
        // The same, with the usage on the last event that has text.
        let last = Chunk { completion_tokens: Some(9), ..text() };
        assert_eq!(times(&[(0.0, text()), (0.3, text()), (0.9, last)]).itl_s, spread.itl_s);
        // Fewer tokens than events: no sample is invented.
        let fewer = times(&[(0.0, text()), (0.3, text()), (0.9, text()), (0.9, usage(2))]);
        assert_eq!((fewer.output_tokens, fewer.itl_s.len()), (2, 1));
        assert_eq!(times(&[(0.0, text()), (0.5, text())]).counting, TokenCounting::Assumed);
    }

    #[test]
    fn everything_in_one_event_has_no_inter_token_time() {
        let all = times(&[(2.0, Chunk { completion_tokens: Some(64), ..text() })]);
        assert_eq!((all.output_tokens, all.tpot_s, all.itl_s.len()), (64, None, 0));
    }

    #[test]
    fn a_token_without_text_counts_and_an_event_without_a_token_does_not() {
        let empty = |tokens| Chunk { completion_tokens: Some(tokens), has_choice: true, ..Chunk::default() };
        let times = times(&[(0.1, empty(0)), (1.0, empty(1)), (2.0, empty(2)), (2.5, empty(2))]);
        assert_eq!((times.first_s, times.last_s, times.itl_s), (1.0, 2.0, vec![1.0]));
        assert_eq!(Timeline::default().finish(), None);
    }

    proptest! {
        /// However tokens are packed into events, one sample a token, and they add up to the measured span.
        #[test]
        fn samples_add_up(steps in prop::collection::vec((0.0_f64..0.2, 1_u64..6), 1..40), known: bool) {
            let mut timeline = Timeline::default();
            let (mut at_s, mut cumulative) = (1.0, 0);
            for (gap_s, tokens) in &steps {
                at_s += gap_s;
                cumulative += tokens;
                let completion_tokens = known.then_some(cumulative);
                timeline.push(at_s, &Chunk { completion_tokens, ..text() });
            }
            timeline.push(at_s, &usage(cumulative));
            let times = timeline.finish().unwrap();
            prop_assert_eq!(times.output_tokens, cumulative);
            if known {
                prop_assert_eq!(times.itl_s.len() as u64, cumulative - steps[0].1);
            } else {
                prop_assert_eq!(times.itl_s.len() as u64, cumulative - cumulative / steps.len() as u64);
            }
            let span = times.last_s - times.first_s;
            prop_assert!((times.itl_s.iter().sum::<f64>() - span).abs() < 1e-9);
        }
    }
}
