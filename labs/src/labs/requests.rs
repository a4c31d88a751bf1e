//! Frozen requests for the engine: real text cut to mixed lengths, arriving while others run.

use aisp_engine::{Engine, Request, RequestOutput, SamplingParams, TokenId};
use bench_client::Slo;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::LabError;
use crate::fingerprint::Fingerprint;
use crate::record::Workload;

/// Prompts are cut from this text.
pub const TEXT: &str = include_str!("../../../engine/tests/data/english.txt");

/// How many requests, and of what lengths.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestMix {
    /// Requests.
    pub num_requests: usize,
    /// Longest prompt; lengths are even between 1 and this.
    pub max_prompt_tokens: usize,
    /// Longest answer.
    pub max_answer_tokens: usize,
    /// How many answers are long.
    pub answers: Answers,
    /// Requests that arrive before each step of the engine.
    pub arrivals_per_step: usize,
    /// Tokens that every request allows its answer, where nobody knows before how long it becomes: it ends by itself.
    pub allowed_tokens: Option<usize>,
}

/// How the lengths of answers are spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// Even between 1 and the longest.
    Even,
    /// One in eight is the longest, the rest are an eighth of it.
    FewLong,
    /// Even in the logarithm between a thirty-second of the longest and it, as the lengths of real answers are.
    Spread,
}

/// One request of the workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedRequest {
    /// Tokens of the prompt.
    pub prompt: Vec<TokenId>,
    /// Tokens of the answer: all are generated, whatever they are.
    pub num_answer_tokens: usize,
}

/// The whole workload.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestSet {
    /// In order of arrival.
    pub requests: Vec<PlannedRequest>,
    mix: RequestMix,
    /// Whether the probabilities of the prompts' tokens are asked for.
    pub with_prompt_logprobs: bool,
    /// Whether all requests are greedy, as the load generator's are.
    pub is_greedy: bool,
}

/// What became of a workload.
#[derive(Debug, Clone, Default)]
pub struct Served {
    /// Tokens of each answer.
    pub answers: Vec<Vec<TokenId>>,
    /// Log-probabilities of the prompts' tokens, if asked for.
    pub prompt_logprobs: Vec<f32>,
    /// Of each request, in the order they ended.
    pub latencies: Vec<Latency>,
    /// Between one token of an answer and the next, over all answers.
    pub itl_s: Vec<f64>,
}

/// How long one request took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Latency {
    /// From arrival to first token.
    pub ttft_s: f64,
    /// Between the tokens of an answer, on the mean; none for an answer of one token.
    pub tpot_s: Option<f64>,
    /// From arrival to last token.
    pub e2el_s: f64,
}

impl Latency {
    /// Whether every objective is met; a bound on a latency that the request does not have is met.
    pub fn meets(&self, slo: &Slo) -> bool {
        let within = |bound_ms: Option<f64>, seconds: Option<f64>| match (bound_ms, seconds) {
            (Some(bound_ms), Some(seconds)) => seconds * 1e3 <= bound_ms,
            _ => true,
        };
        within(slo.ttft_ms, Some(self.ttft_s))
            && within(slo.tpot_ms, self.tpot_s)
            && within(slo.e2el_ms, Some(self.e2el_s))
    }
}

impl RequestSet {
    /// Draws a workload for an engine's vocabulary.
    ///
    /// Errors: a tokenizer that fails.
    pub fn draw(mix: RequestMix, engine: &Engine, seed: u64) -> Result<Self, LabError> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let vocab_size = engine.model_info().vocab_size as u32;
        let text = match engine.tokenizer() {
            Some(tokenizer) => tokenizer.encode(TEXT, false).map_err(aisp_engine::EngineError::from)?,
            None => (0..512).map(|_| rng.random_range(0..vocab_size)).collect(),
        };
        let requests = (0..mix.num_requests).map(|at| {
            let num_prompt_tokens = rng.random_range(1..=mix.max_prompt_tokens.min(text.len() - 1));
            let start = rng.random_range(0..text.len() - num_prompt_tokens);
            let num_answer_tokens = match mix.answers {
                Answers::Even => rng.random_range(1..=mix.max_answer_tokens),
                Answers::FewLong if at % 8 == 0 => mix.max_answer_tokens,
                Answers::FewLong => mix.max_answer_tokens.div_ceil(8),
                Answers::Spread => {
                    let share = 32f64.powf(rng.random_range(-1.0..=0.0));
                    (mix.max_answer_tokens as f64 * share).ceil() as usize
                }
            };
            PlannedRequest { prompt: text[start..start + num_prompt_tokens].to_vec(), num_answer_tokens }
        });
        Ok(Self { requests: requests.collect(), mix, with_prompt_logprobs: false, is_greedy: false })
    }

    /// Other prompts with the same lengths of answers, greedy and all at once, as a load generator sends them.
    #[must_use]
    pub fn all_at_once(&self, prompts: Vec<Vec<TokenId>>) -> Self {
        let with = |(prompt, of): (Vec<TokenId>, &PlannedRequest)| PlannedRequest { prompt, ..of.clone() };
        let requests: Vec<_> = prompts.into_iter().zip(&self.requests).map(with).collect();
        let mix = RequestMix { arrivals_per_step: requests.len(), num_requests: requests.len(), ..self.mix };
        Self { requests, mix, with_prompt_logprobs: false, is_greedy: true }
    }

    /// The prompts alone of the first requests, until they have so many tokens, with the probabilities of these.
    #[must_use]
    pub fn prompts_of_first(&self, num_tokens: usize) -> Self {
        let mut left = num_tokens;
        let first = self.requests.iter().map_while(|request| {
            let fits = left > 0;
            left = left.saturating_sub(request.prompt.len());
            fits.then(|| PlannedRequest { num_answer_tokens: 1, ..request.clone() })
        });
        let requests: Vec<_> = first.collect();
        let mix = RequestMix { num_requests: requests.len(), allowed_tokens: None, ..self.mix };
        Self { requests, mix, with_prompt_logprobs: true, is_greedy: true }
    }

    /// Replaces every prompt by as much of the longest.
    pub fn begin_alike(&mut self) {
        let longest = self.requests.iter().map(|request| request.prompt.clone()).max_by_key(Vec::len);
        let longest = longest.unwrap_or_default();
        for request in &mut self.requests {
            request.prompt = longest[..request.prompt.len()].to_vec();
        }
    }

    /// What one pass over it is.
    pub fn workload(&self, model: &str) -> Workload {
        let tokens: usize = self.requests.iter().map(|r| r.prompt.len() + r.num_answer_tokens).sum();
        let mix = &self.mix;
        let description = format!(
            "{model}: {} requests, {} a step, prompts up to {} and answers up to {} tokens",
            mix.num_requests, mix.arrivals_per_step, mix.max_prompt_tokens, mix.max_answer_tokens
        );
        Workload {
            description,
            fingerprint: self.fingerprint(model),
            requests: Some(self.requests.len() as u64),
            tokens: Some(tokens as u64),
            bytes: None,
            flops: None,
        }
    }

    /// Hash of everything that an arm gets.
    pub fn fingerprint(&self, model: &str) -> String {
        let mut hash = Fingerprint::default();
        hash.add(model.as_bytes());
        let flags = [u32::from(self.with_prompt_logprobs), u32::from(self.is_greedy)];
        hash.add_u32(&[self.mix.arrivals_per_step as u32]).add_u32(&flags);
        for request in &self.requests {
            hash.add_u32(&request.prompt).add_u32(&[request.num_answer_tokens as u32]);
        }
        hash.add_u32(&self.mix.allowed_tokens.map(|tokens| tokens as u32).into_iter().collect::<Vec<_>>());
        hash.finish()
    }

    /// Sends all requests through an engine and takes all answers. Unless all are greedy, every other request draws with
    /// a seed of its own, so that every part of the sampler works.
    ///
    /// Errors: the engine refused a request or failed.
    pub fn serve(&self, engine: &mut Engine) -> Result<Served, LabError> {
        let mut served = Served { answers: vec![Vec::new(); self.requests.len()], ..Served::default() };
        let mut prompt_logprobs = vec![Vec::new(); self.requests.len()];
        let mut last_token = vec![None; self.requests.len()];
        let mut first_id = None;
        let mut waiting = self.requests.iter().enumerate();
        while waiting.len() > 0 || engine.has_unfinished() {
            for (index, planned) in waiting.by_ref().take(self.mix.arrivals_per_step) {
                let params = SamplingParams {
                    temperature: if self.is_greedy || index % 2 == 0 { 0.0 } else { 0.8 },
                    seed: Some(index as u64),
                    ignore_eos: true,
                    prompt_logprobs: self.with_prompt_logprobs.then_some(0),
                    ..SamplingParams::greedy(self.mix.allowed_tokens.unwrap_or(planned.num_answer_tokens))
                };
                let request = Request::new(planned.prompt.clone(), params);
                let id = engine.add_request(request).map_err(aisp_engine::EngineError::from)?;
                first_id.get_or_insert(id.0);
            }
            for output in engine.step()? {
                let at = (output.id.0 - first_id.unwrap_or(0)) as usize;
                served.answers[at].extend(output.tokens.iter().map(|token| token.id));
                if let Some(rows) = &output.prompt_logprobs {
                    prompt_logprobs[at] = rows.iter().map(|row| row.logprob).collect();
                }
                if let Some(last) = output.timings.last_token
                    && let Some(before) = last_token[at].replace(last)
                {
                    served.itl_s.push((last - before).as_secs_f64());
                }
                let ended = served.answers[at].len() >= self.requests[at].num_answer_tokens;
                if ended && output.finish.is_none() {
                    engine.abort(output.id);
                }
                served.time(&output, ended);
            }
        }
        served.prompt_logprobs = prompt_logprobs.concat();
        Ok(served)
    }
}

impl Served {
    fn time(&mut self, output: &RequestOutput, ended: bool) {
        let timings = &output.timings;
        if let (true, Some(first), Some(last)) = (ended, timings.first_token, timings.last_token) {
            let num_gaps = timings.num_generated_tokens.saturating_sub(1);
            self.latencies.push(Latency {
                ttft_s: (first - timings.arrival).as_secs_f64(),
                tpot_s: (num_gaps > 0).then(|| (last - first).as_secs_f64() / num_gaps as f64),
                e2el_s: (last - timings.arrival).as_secs_f64(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use aisp_engine::Selection;

    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_work_and_every_token_is_served() {
        let mix = RequestMix {
            num_requests: 9,
            max_prompt_tokens: 20,
            max_answer_tokens: 16,
            answers: Answers::FewLong,
            arrivals_per_step: 2,
            allowed_tokens: None,
        };
        let mut engine = Engine::builder().optimizations(Selection::all()).max_num_seqs(4).build().unwrap();
        let mut set = RequestSet::draw(mix, &engine, 3).unwrap();
        assert_eq!(set, RequestSet::draw(mix, &engine, 3).unwrap());
        assert_ne!(set.fingerprint("m"), RequestSet::draw(mix, &engine, 4).unwrap().fingerprint("m"));
        let served = set.serve(&mut engine).unwrap();
        let wanted: Vec<usize> = set.requests.iter().map(|request| request.num_answer_tokens).collect();
        assert_eq!(served.answers.iter().map(Vec::len).collect::<Vec<_>>(), wanted);
        assert_eq!(wanted.iter().filter(|&&tokens| tokens == 16).count(), 2);
        assert_eq!(served.latencies.len(), 9);
        // Answers that end by themselves are the same.
        let allowed = RequestMix { allowed_tokens: Some(40), ..mix };
        let longer = RequestSet { mix: allowed, ..set.clone() };
        assert_ne!(longer.fingerprint("m"), set.fingerprint("m"));
        let ended = longer.serve(&mut engine).unwrap();
        assert_eq!((ended.answers, ended.latencies.len()), (served.answers.clone(), 9));
        assert!(!engine.has_unfinished());
        // A second pass through the same engine gives the same, with probabilities of all but each first token.
        set.with_prompt_logprobs = true;
        let again = set.serve(&mut engine).unwrap();
        assert_eq!(again.answers, served.answers);
        let num_prompt_tokens: usize = set.requests.iter().map(|request| request.prompt.len() - 1).sum();
        assert_eq!(again.prompt_logprobs.len(), num_prompt_tokens);
        // Prompts alone have those of their beginning.
        let two = set.requests[0].prompt.len() + 1;
        let first = set.prompts_of_first(two).serve(&mut engine).unwrap();
        assert_eq!(first.answers.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(first.prompt_logprobs, again.prompt_logprobs[..first.prompt_logprobs.len()]);
    }
}
