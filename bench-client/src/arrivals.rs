//! When requests arrive: every arrival of a run is drawn before it starts, from a seed, so that nothing the server
//! does can move one (no coordinated omission by construction).

use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Gamma};
use serde::Serialize;

use crate::Error;

/// The law by which an open loop's requests arrive.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Arrivals {
    /// How many requests arrive per second, over the run.
    pub rate: Rate,
    /// How the gaps between them scatter.
    pub spacing: Spacing,
}

/// The mean rate of arrivals over a run. Units: requests per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rate {
    /// Every request arrives at time zero (`--request-rate inf`).
    AtOnce,
    /// One rate for the whole run.
    Fixed {
        /// Requests per second.
        per_s: f64,
    },
    /// From `start` to `end`, in equal steps from request to request.
    Linear {
        /// Requests per second at the first request.
        start: f64,
        /// Requests per second at the last request.
        end: f64,
    },
    /// From `start` to `end`, by an equal factor from request to request.
    Exponential {
        /// Requests per second at the first request.
        start: f64,
        /// Requests per second at the last request.
        end: f64,
    },
}

/// How gaps scatter around their mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Gamma-distributed gaps with coefficient of variation `1 / sqrt(burstiness)`: 1 is a Poisson process, less is
    /// burstier, more is smoother.
    Gamma {
        /// The shape of the gamma distribution.
        burstiness: f64,
    },
    /// Every gap equals its mean.
    Constant,
}

impl Rate {
    /// The rate at request `index` of `count`; `None` when all arrive at once.
    pub fn at(&self, index: usize, count: usize) -> Option<f64> {
        let progress = index as f64 / count.saturating_sub(1).max(1) as f64;
        match *self {
            Self::AtOnce => None,
            Self::Fixed { per_s } => Some(per_s),
            Self::Linear { start, end } => Some(start + (end - start) * progress),
            Self::Exponential { start, end } => Some(start * (end / start).powf(progress)),
        }
    }
}

impl Arrivals {
    /// A Poisson process, or all at once for an infinite rate.
    pub fn poisson(per_s: f64) -> Self {
        let rate = if per_s.is_finite() { Rate::Fixed { per_s } } else { Rate::AtOnce };
        Self { rate, spacing: Spacing::Gamma { burstiness: 1.0 } }
    }

    /// Checks that every rate and the burstiness are positive and finite.
    ///
    /// Errors: [`Error::BadSetting`] with the flag that carries the value.
    pub fn validate(&self) -> Result<(), Error> {
        let positive = |setting, value: f64| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(Error::setting(setting, format!("{value} is not a positive number"), "give one above 0"))
            }
        };
        match self.rate {
            Rate::AtOnce => {}
            Rate::Fixed { per_s } => positive("--request-rate", per_s)?,
            Rate::Linear { start, end } | Rate::Exponential { start, end } => {
                positive("--ramp-up-start-rps", start)?;
                positive("--ramp-up-end-rps", end)?;
            }
        }
        match self.spacing {
            Spacing::Gamma { burstiness } => positive("--burstiness", burstiness),
            Spacing::Constant => Ok(()),
        }
    }

    /// Draws the arrival of each of `count` requests as an offset from the start of the run, in order; the first is
    /// zero. The same seed gives the same arrivals on every machine.
    ///
    /// Errors: as [`Arrivals::validate`].
    pub fn draw(&self, count: usize, seed: u64) -> Result<Vec<Duration>, Error> {
        self.validate()?;
        let unit_gap = match self.spacing {
            Spacing::Constant => None,
            Spacing::Gamma { burstiness } => Some(Gamma::new(burstiness, 1.0 / burstiness).map_err(|cause| {
                Error::setting("--burstiness", format!("{burstiness}: {cause}"), "give one above 0")
            })?),
        };
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut now_s = 0.0_f64;
        let offsets = (0..count).map(|index| {
            if let (true, Some(per_s)) = (index > 0, self.rate.at(index, count)) {
                now_s += unit_gap.as_ref().map_or(1.0, |gamma| gamma.sample(&mut rng)) / per_s;
            }
            // A year is beyond any run and keeps the conversion in range.
            Duration::from_secs_f64(now_s.min(31_536_000.0))
        });
        Ok(offsets.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Distribution;
    use proptest::prelude::*;

    fn gaps(arrivals: &Arrivals, count: usize, seed: u64) -> Distribution {
        let at = arrivals.draw(count, seed).unwrap();
        Distribution::of(at.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()))
    }

    #[test]
    fn poisson_has_the_asked_mean_and_unit_variation() {
        let gaps = gaps(&Arrivals::poisson(50.0), 40_001, 7);
        let mean = gaps.mean().unwrap();
        assert!((mean * 50.0 - 1.0).abs() < 0.02, "mean gap {mean}");
        assert!((gaps.std().unwrap() / mean - 1.0).abs() < 0.03);
    }

    #[test]
    fn burstiness_sets_the_variation_of_gaps() {
        for burstiness in [0.25, 0.5, 1.0, 4.0, 25.0] {
            let arrivals = Arrivals { rate: Rate::Fixed { per_s: 20.0 }, spacing: Spacing::Gamma { burstiness } };
            let gaps = gaps(&arrivals, 60_001, 11);
            let mean = gaps.mean().unwrap();
            let variation = gaps.std().unwrap() / mean;
            let wanted = 1.0 / burstiness.sqrt();
            assert!((mean * 20.0 - 1.0).abs() < 0.03, "burstiness {burstiness}: mean gap {mean}");
            assert!((variation / wanted - 1.0).abs() < 0.05, "burstiness {burstiness}: CV {variation}, not {wanted}");
        }
    }

    #[test]
    fn constant_gaps_and_all_at_once() {
        let constant = Arrivals { rate: Rate::Fixed { per_s: 4.0 }, spacing: Spacing::Constant };
        let at: Vec<f64> = constant.draw(4, 1).unwrap().iter().map(Duration::as_secs_f64).collect();
        assert_eq!(at, [0.0, 0.25, 0.5, 0.75]);
        assert_eq!(Arrivals::poisson(f64::INFINITY).draw(3, 1).unwrap(), [Duration::ZERO; 3]);
        assert!(constant.draw(0, 1).unwrap().is_empty());
    }

    #[test]
    fn ramps_go_from_start_to_end() {
        let linear = Rate::Linear { start: 2.0, end: 10.0 };
        assert_eq!([0, 2, 4].map(|index| linear.at(index, 5)), [2.0, 6.0, 10.0].map(Some));
        let exponential = Rate::Exponential { start: 1.0, end: 100.0 };
        let rates = [0, 1, 2].map(|index| exponential.at(index, 3).unwrap());
        for (rate, wanted) in rates.iter().zip([1.0, 10.0, 100.0]) {
            assert!((rate - wanted).abs() < 1e-9);
        }
        let arrivals = Arrivals { rate: Rate::Linear { start: 2.0, end: 4.0 }, spacing: Spacing::Constant };
        let at: Vec<f64> = arrivals.draw(3, 1).unwrap().iter().map(Duration::as_secs_f64).collect();
        assert!((at[1] - 1.0 / 3.0).abs() < 1e-9 && (at[2] - 1.0 / 3.0 - 0.25).abs() < 1e-9);
    }

    #[test]
    fn useless_values_are_refused_with_their_flag() {
        let check = |rate, spacing, flag: &str| {
            let message = Arrivals { rate, spacing }.draw(2, 0).unwrap_err().to_string();
            assert!(message.starts_with(flag), "{message}");
        };
        check(Rate::Fixed { per_s: 0.0 }, Spacing::Constant, "--request-rate");
        check(Rate::Fixed { per_s: f64::NAN }, Spacing::Constant, "--request-rate");
        check(Rate::Linear { start: -1.0, end: 2.0 }, Spacing::Constant, "--ramp-up-start-rps");
        check(Rate::Exponential { start: 1.0, end: 0.0 }, Spacing::Constant, "--ramp-up-end-rps");
        check(Rate::AtOnce, Spacing::Gamma { burstiness: 0.0 }, "--burstiness");
    }

    proptest! {
        #[test]
        fn arrivals_are_ordered_and_depend_only_on_the_seed(
            seed: u64, count in 0_usize..200, per_s in 0.1_f64..1e4, burstiness in 0.05_f64..50.0,
        ) {
            let arrivals = Arrivals { rate: Rate::Fixed { per_s }, spacing: Spacing::Gamma { burstiness } };
            let at = arrivals.draw(count, seed).unwrap();
            prop_assert_eq!(at.len(), count);
            prop_assert!(at.is_sorted());
            prop_assert_eq!(&at, &arrivals.draw(count, seed).unwrap());
            if count > 2 {
                prop_assert_ne!(&at, &arrivals.draw(count, seed.wrapping_add(1)).unwrap());
            }
        }
    }
}
