//! The same draws without a sort of the vocabulary: a few passes in vectors find the region where the draw falls, and only
//! its tokens are sorted.
//!
//! Sums in f32 vectors are not those of the baseline to the last bit, but their error is bounded
//! ([`categorical::RELATIVE_ERROR`]). A draw is decided for both ends of the bound; where these disagree, exact sums
//! decide, and where even those do not, the baseline does. So both samplers draw the same token for the same seed.

use aisp_kernels::categorical::{self, Mass};
use aisp_kernels::{Isa, argmax};

use super::draw::{Prefix, Sampler, SortSampler, Weights, by_likelihood};
use crate::{SamplingParams, TokenId};

/// Sorts the tokens that can matter, a hundred as a rule.
#[derive(Debug, Clone)]
pub struct CandidateSampler {
    isa: Isa,
    /// Of every token, in f32.
    weights: Vec<f32>,
    candidates: Vec<TokenId>,
    num_engaged: u64,
}

/// Relative error of sums in f64, in whatever order.
const EXACT_ERROR: f64 = 1e-10;

/// Fewer tokens are sorted instead of narrowed down further.
const FEW_TOKENS: usize = 64;

/// Passes that narrow the region of a draw down.
const MAX_PASSES: usize = 16;

/// Weights below this are nothing beside the total, whatever the vocabulary: `e^-64`.
const DEEPEST_NAT: f32 = 64.0;

impl Default for CandidateSampler {
    /// On the best instruction set of the machine.
    fn default() -> Self {
        Self::new(Isa::detect())
    }
}

impl CandidateSampler {
    /// On an instruction set.
    pub fn new(isa: Isa) -> Self {
        Self { isa, weights: Vec::new(), candidates: Vec::new(), num_engaged: 0 }
    }

    fn quick(&mut self, logits: &[f32], params: &SamplingParams, uniform: f64) -> Option<TokenId> {
        let max = *logits.get(argmax::argmax(logits, self.isa))?;
        let total = categorical::weights(logits, max, params.temperature, &mut self.weights, self.isa);
        // The likeliest token weighs 1; anything else comes of logits or a temperature out of all proportion.
        if !max.is_finite() || !total.is_finite() || total < 0.5 {
            return None;
        }
        let row = Row { logits, weights: &self.weights, max, total, isa: self.isa };
        let exact = Weights::with_max(logits, max, params.temperature);
        let is_filtered = (1..logits.len()).contains(&params.top_k) || params.top_p < 1.0 || params.min_p > 0.0;
        match is_filtered {
            true => filtered(&row, &exact, params, uniform, &mut self.candidates),
            false => unfiltered(&row, &exact, params.temperature, uniform, &mut self.candidates),
        }
    }
}

impl Sampler for CandidateSampler {
    fn argmax(&mut self, logits: &[f32]) -> TokenId {
        self.num_engaged += 1;
        argmax::argmax(logits, self.isa) as TokenId
    }

    fn draw(&mut self, logits: &[f32], params: &SamplingParams, uniform: f64) -> TokenId {
        match self.quick(logits, params, uniform) {
            Some(id) => {
                self.num_engaged += 1;
                id
            }
            None => SortSampler.draw(logits, params, uniform),
        }
    }

    fn has_nan(&self, logits: &[f32]) -> bool {
        argmax::has_nan(logits, self.isa)
    }

    fn num_engaged(&self) -> u64 {
        self.num_engaged
    }
}

/// A row of logits with its weights in f32.
struct Row<'a> {
    logits: &'a [f32],
    weights: &'a [f32],
    max: f32,
    total: f64,
    isa: Isa,
}

/// A depth below the best logit, and the mass of the tokens down to it.
#[derive(Debug, Clone, Copy)]
struct Level {
    /// Logit; tokens at it belong to the mass.
    floor: f32,
    mass: Mass,
}

impl Row<'_> {
    /// The tokens at most `nat` times the temperature below the best.
    fn level(&self, nat: f32, temperature: f32) -> Level {
        let floor = self.max - nat * temperature;
        Level { floor, mass: categorical::mass(self.logits, self.weights, floor, self.isa) }
    }

    fn whole(&self) -> Level {
        let mass = Mass { sum: self.total, count: self.logits.len() };
        Level { floor: f32::NEG_INFINITY, mass }
    }

    /// A level that is deep enough, and not much deeper.
    fn deep_enough(&self, temperature: f32, is_enough: impl Fn(Mass) -> bool) -> Level {
        let (mut shallow, mut deep) = (0.0, 1.0);
        let mut level = self.level(deep, temperature);
        while !is_enough(level.mass) {
            if deep > DEEPEST_NAT {
                return self.whole();
            }
            (shallow, deep) = (deep, 2.0 * deep);
            level = self.level(deep, temperature);
        }
        for _ in 0..3 {
            let between = 0.5 * (shallow + deep);
            let tried = self.level(between, temperature);
            match is_enough(tried.mass) {
                true => (deep, level) = (between, tried),
                false => shallow = between,
            }
        }
        level
    }

    /// Sorted tokens with `low <= logit < high`.
    fn sorted(&self, low: f32, high: f32, out: &mut Vec<TokenId>) {
        categorical::tokens_between(self.logits, low, high, out, self.isa);
        out.sort_unstable_by(by_likelihood(self.logits));
    }
}

/// Draws where a filter leaves only the most likely tokens.
fn filtered(
    row: &Row<'_>,
    exact: &Weights<'_>,
    params: &SamplingParams,
    uniform: f64,
    candidates: &mut Vec<TokenId>,
) -> Option<TokenId> {
    let temperature = params.temperature;
    let has_top_k = (1..row.logits.len()).contains(&params.top_k);
    let mut floor = f32::NEG_INFINITY;
    if has_top_k {
        floor = row.deep_enough(temperature, |mass| mass.count >= params.top_k).floor;
    } else if params.top_p < 1.0 {
        let nucleus = f64::from(params.top_p) * row.total + 4.0 * categorical::RELATIVE_ERROR * row.total;
        floor = row.deep_enough(temperature, |mass| mass.sum >= nucleus).floor;
    }
    // Half a nat more than the rule says, so that rounding cannot matter.
    let min_p_floor = row.max + (params.min_p.ln() - 0.5) * temperature;
    if params.min_p > 0.0 && !has_top_k && min_p_floor > floor {
        floor = min_p_floor;
    }
    row.sorted(floor, f32::INFINITY, candidates);
    let beyond = (f64::from(floor - row.max) / f64::from(temperature)).exp();
    let prefix = Prefix { ids: candidates, beyond };
    if has_top_k || params.top_p >= 1.0 {
        return exact.choose(prefix, params, uniform, row.total);
    }
    let error = categorical::RELATIVE_ERROR * row.total;
    let ends = [row.total - error, row.total + error].map(|total| exact.choose(prefix, params, uniform, total));
    if ends[0] == ends[1] { ends[0] } else { exact.choose(prefix, params, uniform, exact.total()) }
}

/// Draws from the whole vocabulary: the first token in order with which the mass exceeds `uniform` of the total.
fn unfiltered(
    row: &Row<'_>,
    exact: &Weights<'_>,
    temperature: f32,
    uniform: f64,
    candidates: &mut Vec<TokenId>,
) -> Option<TokenId> {
    let target = uniform * row.total;
    let error = 2.0 * categorical::RELATIVE_ERROR * row.total;
    // The token lies below `above` and not below `below`.
    let mut above = Level { floor: f32::INFINITY, mass: Mass::default() };
    let mut below = row.whole();
    let (mut shallow, mut deep) = (0.0, DEEPEST_NAT);
    for pass in 0..MAX_PASSES {
        if below.mass.count - above.mass.count <= FEW_TOKENS {
            break;
        }
        // Most draws fall near the top.
        let between = if pass < 3 && shallow == 0.0 { deep / 8.0 } else { 0.5 * (shallow + deep) };
        let level = row.level(between, temperature);
        if level.mass.sum >= target + error {
            (below, deep) = (level, between);
        } else if level.mass.sum <= target - error {
            (above, shallow) = (level, between);
        } else {
            break;
        }
    }
    row.sorted(below.floor, above.floor, candidates);
    let first_beyond = |mut mass: f64, target: f64| {
        candidates.iter().copied().find(|id| {
            mass += exact.of(*id);
            mass > target
        })
    };
    let agree = |mass: f64, target: f64, error: f64| {
        let ends = [target - error, target + error].map(|target| first_beyond(mass, target));
        ends[0].filter(|_| ends[0] == ends[1])
    };
    agree(above.mass.sum, target, error).or_else(|| {
        let total = exact.total();
        let ids = 0..row.logits.len() as TokenId;
        let mass = ids.filter(|id| row.logits[*id as usize] >= above.floor).map(|id| exact.of(id)).sum();
        agree(mass, uniform * total, EXACT_ERROR * total)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        // Peaked, flat, and with ties.
        (1f32..40.0, proptest::collection::vec(0u32..1000, 2..400))
            .prop_map(|(spread, values)| values.into_iter().map(|v| spread * v as f32 / 1000.0).collect())
    }

    fn params() -> impl Strategy<Value = SamplingParams> {
        let top_k = prop_oneof![Just(0usize), 1usize..500];
        let top_p = prop_oneof![Just(1.0f32), 0.01f32..1.0];
        let min_p = prop_oneof![Just(0.0f32), 0.0f32..1.0];
        (0.05f32..3.0, top_k, top_p, min_p).prop_map(|(temperature, top_k, top_p, min_p)| SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            ..Default::default()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        #[test]
        fn both_samplers_draw_the_same(logits in logits(), params in params(), uniform in 0.0f64..1.0) {
            let sorted = SortSampler.draw(&logits, &params, uniform);
            prop_assert_eq!(CandidateSampler::new(Isa::detect()).draw(&logits, &params, uniform), sorted);
        }
    }

    /// Logits of a model that knows little, as many as a real vocabulary has.
    fn flat_logits() -> Vec<f32> {
        (0..49_152u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 * 9.0).collect()
    }

    #[test]
    fn a_flat_vocabulary_is_drawn_from_alike_on_every_isa() {
        let logits = flat_logits();
        for isa in Isa::available() {
            let mut sampler = CandidateSampler::new(isa);
            let mut num_draws = 0;
            for (top_p, min_p, top_k) in [(1.0, 0.0, 0), (0.95, 0.0, 0), (1.0, 0.3, 0), (0.9, 0.2, 0), (0.9, 0.0, 50)] {
                for uniform in [0.0, 1e-9, 0.011, 0.3, 0.77, 0.999, 1.0 - 1e-9, 1.0 - f64::EPSILON] {
                    let params = SamplingParams { temperature: 0.8, top_p, min_p, top_k, ..Default::default() };
                    let sorted = SortSampler.draw(&logits, &params, uniform);
                    assert_eq!(sampler.draw(&logits, &params, uniform), sorted, "{isa} {uniform} {params:?}");
                    num_draws += 1;
                }
            }
            assert!(sampler.num_engaged() + 2 >= num_draws, "{isa}: {} of {num_draws}", sampler.num_engaged());
        }
    }

    #[test]
    fn an_error_beyond_its_bound_would_be_seen() {
        let logits = flat_logits();
        let row = |total: f64, weights| Row { logits: &logits, weights, max: 9.0, total, isa: Isa::detect() };
        let mut weights = Vec::new();
        let total = categorical::weights(&logits, 9.0, 1.0, &mut weights, Isa::detect());
        let exact = Weights::with_max(&logits, 9.0, 1.0);
        let mut candidates = Vec::new();
        let mut draw = |total, uniform| unfiltered(&row(total, &weights), &exact, 1.0, uniform, &mut candidates);
        let wrong = total * (1.0 + 100.0 * categorical::RELATIVE_ERROR);
        assert!((1..100).any(|at| draw(total, f64::from(at) / 100.0) != draw(wrong, f64::from(at) / 100.0)));
    }

    #[test]
    fn candidates_decide_for_peaked_logits() {
        let mut sampler = CandidateSampler::new(Isa::detect());
        let logits: Vec<f32> = (0..1000).map(|i| -0.1 * i as f32).collect();
        for step in 0..100 {
            sampler.draw(&logits, &SamplingParams::default(), f64::from(step) / 100.0);
        }
        assert_eq!(sampler.num_engaged(), 100);
    }
}
