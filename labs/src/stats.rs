//! The arithmetic behind a verdict: medians, bootstrap intervals, interleaving, the noise floor. Knows no clock.
//!
//! A ratio is always time of the first series over time of the second: above 1, the second is faster.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::record::{Ratio, Verdict};

/// Resamples of a bootstrap.
const NUM_RESAMPLES: usize = 4000;

/// Replicates below which no interval is given.
pub const MIN_REPLICATES: usize = 3;

/// The middle sample, or the mean of the two middle ones; none without samples.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    middle(&sorted)
}

fn middle(sorted: &[f64]) -> Option<f64> {
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 1 => Some(sorted[half]),
        _ => Some(f64::midpoint(sorted[half - 1], sorted[half])),
    }
}

/// Median of `baseline` over median of `variant` with its bootstrap 95 % interval; the same seed gives the same
/// interval. None without samples.
///
/// Source: Efron, The Annals of Statistics 1979, the percentile interval.
pub fn ratio_of_medians(baseline: &[f64], variant: &[f64], seed: u64) -> Option<Ratio> {
    let ratio = median(baseline)? / median(variant)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut left, mut right) = (Vec::with_capacity(baseline.len()), Vec::with_capacity(variant.len()));
    let mut ratios: Vec<f64> = (0..NUM_RESAMPLES)
        .filter_map(|_| {
            Some(resampled_median(baseline, &mut left, &mut rng)? / resampled_median(variant, &mut right, &mut rng)?)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let at = |share: f64| ratios[((ratios.len() - 1) as f64 * share).round() as usize];
    // The interval holds the estimate even where a few samples make the resamples lopsided.
    Some(Ratio { ratio, low: at(0.025).min(ratio), high: at(0.975).max(ratio) })
}

fn resampled_median(samples: &[f64], resample: &mut Vec<f64>, rng: &mut ChaCha8Rng) -> Option<f64> {
    resample.clear();
    resample.extend((0..samples.len()).map(|_| samples[rng.random_range(0..samples.len())]));
    resample.sort_by(f64::total_cmp);
    middle(resample)
}

/// The median with its bootstrap 95 % interval; none without samples.
pub fn median_interval(samples: &[f64], seed: u64) -> Option<Ratio> {
    ratio_of_medians(samples, &[1.0], seed)
}

/// The sample that this part of all samples does not exceed; none without samples.
pub fn percentile(samples: &[f64], part: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len().saturating_sub(1) as f64 * part).round() as usize;
    sorted.get(at).copied()
}

/// The order of arms in one replicate: there and back, so that drift meets every arm alike (A B B A); the arm that
/// begins moves on with each replicate.
pub fn interleave(num_arms: usize, replicate: usize) -> Vec<usize> {
    let forth = (0..num_arms).map(|at| (at + replicate) % num_arms.max(1));
    forth.clone().chain(forth.rev()).collect()
}

/// How far from 1 the ratio of the baseline to itself may lie: `0.021` is ±2.1 %.
pub fn noise_floor(aa: Ratio) -> f64 {
    distance(aa.low).max(distance(aa.high))
}

/// How far a ratio is from 1, the same for `r` and `1 / r`.
fn distance(ratio: f64) -> f64 {
    ratio.max(1.0 / ratio) - 1.0
}

/// A difference counts when the interval leaves 1 out and the ratio leaves the noise floor.
pub fn judge(speedup: Ratio, noise: f64) -> Verdict {
    match (speedup.low > 1.0, speedup.high < 1.0, distance(speedup.ratio) > noise) {
        (true, _, true) => Verdict::Faster,
        (_, true, true) => Verdict::Slower,
        _ => Verdict::NoDifference,
    }
}

/// The verdict as people read it. A wrong output gets no figure.
pub fn verdict_text(verdict: Verdict, speedup: Option<Ratio>, noise: f64, why_wrong: &str) -> String {
    match (verdict, speedup) {
        (Verdict::Faster, Some(r)) => format!("faster x{:.2} [{:.2}, {:.2}]", r.ratio, r.low, r.high),
        (Verdict::Slower, Some(r)) => format!("slower x{:.2} [{:.2}, {:.2}]", r.ratio, r.low, r.high),
        (Verdict::Wrong, _) => format!("wrong ({why_wrong})"),
        (_, speedup) => {
            // What could have been told apart: the noise floor, or the interval where that is wider.
            let half_width = speedup.map_or(0.0, |r| (r.high - r.low) / 2.0 / r.ratio);
            format!("no difference (noise ±{:.1} %)", noise.max(half_width) * 100.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NUM_RUNS: usize = 200;

    /// Series of `2 * replicates` times around `mean` with normal noise of `deviation`, a part of the mean.
    fn series(rng: &mut ChaCha8Rng, replicates: usize, mean: f64, deviation: f64) -> Vec<f64> {
        let normal = |rng: &mut ChaCha8Rng| (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        (0..2 * replicates).map(|_| mean * (1.0 + deviation * normal(rng))).collect()
    }

    /// Verdicts of many runs whose variant takes `slowdown` times as long as the baseline.
    fn verdicts(replicates: usize, slowdown: f64, deviation: f64) -> Vec<Verdict> {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let run = |seed| {
            let baseline = series(&mut rng, replicates, 1.0, deviation);
            let again = series(&mut rng, replicates, 1.0, deviation);
            let variant = series(&mut rng, replicates, slowdown, deviation);
            let noise = noise_floor(ratio_of_medians(&baseline, &again, seed).unwrap());
            judge(ratio_of_medians(&baseline, &variant, seed).unwrap(), noise)
        };
        (0..NUM_RUNS as u64).map(run).collect()
    }

    fn share(verdicts: &[Verdict], wanted: Verdict) -> f64 {
        verdicts.iter().filter(|&&verdict| verdict == wanted).count() as f64 / verdicts.len() as f64
    }

    #[test]
    fn equals_are_told_equal_in_19_of_20() {
        for (replicates, deviation) in [(3, 0.005), (5, 0.005), (5, 0.05), (10, 0.02)] {
            let share = share(&verdicts(replicates, 1.0, deviation), Verdict::NoDifference);
            assert!(share >= 0.95, "{replicates} replicates, noise {deviation}: {share}");
        }
    }

    #[test]
    fn three_percent_are_found_in_19_of_20() {
        for replicates in [5, 10] {
            let share = share(&verdicts(replicates, 1.03, 0.005), Verdict::Slower);
            assert!(share >= 0.95, "{replicates} replicates: {share}");
        }
    }

    #[test]
    fn less_time_is_faster_and_more_is_slower() {
        assert_eq!(share(&verdicts(5, 0.5, 0.01), Verdict::Faster), 1.0);
        assert_eq!(share(&verdicts(5, 2.0, 0.01), Verdict::Slower), 1.0);
        assert_eq!(ratio_of_medians(&[2.0; 6], &[1.0; 6], 0).unwrap().ratio, 2.0);
    }

    #[test]
    fn texts_read_as_promised() {
        let ratio = |ratio, low, high| Some(Ratio { ratio, low, high });
        let check = |verdict, speedup, expected| {
            assert_eq!(verdict_text(verdict, speedup, 0.021, "token 3 of request 0 is 7, not 9"), expected);
        };
        check(Verdict::Faster, ratio(1.83, 1.79, 1.88), "faster x1.83 [1.79, 1.88]");
        check(Verdict::Slower, ratio(0.91, 0.9, 0.92), "slower x0.91 [0.90, 0.92]");
        check(Verdict::NoDifference, ratio(1.0, 0.99, 1.01), "no difference (noise ±2.1 %)");
        check(Verdict::NoDifference, ratio(1.0, 0.9, 1.1), "no difference (noise ±10.0 %)");
        check(Verdict::Wrong, ratio(9.0, 8.0, 9.5), "wrong (token 3 of request 0 is 7, not 9)");
    }

    #[test]
    fn two_arms_interleave_as_abba() {
        assert_eq!(interleave(2, 0), [0, 1, 1, 0]);
        assert_eq!(interleave(2, 1), [1, 0, 0, 1]);
        assert_eq!(interleave(3, 1), [1, 2, 0, 0, 2, 1]);
    }

    proptest! {
        #[test]
        fn every_arm_runs_twice_at_the_same_mean_time(num_arms in 1usize..9, replicate in 0usize..20) {
            let order = interleave(num_arms, replicate);
            for arm in 0..num_arms {
                let at: Vec<usize> = (0..order.len()).filter(|&i| order[i] == arm).collect();
                prop_assert_eq!(at.len(), 2);
                prop_assert_eq!(at[0] + at[1], order.len() - 1);
            }
        }

        #[test]
        fn a_ratio_lies_in_its_interval_and_follows_the_unit(
            baseline in proptest::collection::vec(0.01f64..10.0, 1..20),
            variant in proptest::collection::vec(0.01f64..10.0, 1..20),
            seed: u64,
        ) {
            let ratio = ratio_of_medians(&baseline, &variant, seed).unwrap();
            prop_assert!(ratio.low <= ratio.ratio && ratio.ratio <= ratio.high);
            prop_assert_eq!(Some(ratio), ratio_of_medians(&baseline, &variant, seed));
            let milliseconds: Vec<f64> = variant.iter().map(|s| s * 1024.0).collect();
            let scaled = ratio_of_medians(&baseline, &milliseconds, seed).unwrap();
            prop_assert!((scaled.ratio * 1024.0 / ratio.ratio - 1.0).abs() < 1e-9);
        }

        #[test]
        fn a_median_has_as_many_samples_below_as_above(samples in proptest::collection::vec(0.0f64..1e6, 1..50)) {
            let median = median(&samples).unwrap();
            let below = samples.iter().filter(|&&s| s < median).count();
            let above = samples.iter().filter(|&&s| s > median).count();
            prop_assert!(below <= samples.len() / 2 && above <= samples.len() / 2);
        }

        #[test]
        fn noise_hides_what_is_smaller(ratio in 0.9f64..1.1) {
            let speedup = Ratio { ratio, low: ratio, high: ratio };
            prop_assert_eq!(judge(speedup, 0.12), Verdict::NoDifference);
        }
    }
}
