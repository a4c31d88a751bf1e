//! Samples and what is said about them: mean, standard deviation, percentiles. Exact, from all samples; nothing is
//! binned and nothing is invented from a mean and a deviation.

/// A set of samples, kept sorted. An empty one has no mean and no percentile, rather than a zero.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    sorted: Vec<f64>,
}

impl Distribution {
    /// Takes all finite samples; others are dropped.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = samples.into_iter().filter(|sample| sample.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        Self { sorted }
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether there is no sample.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// The samples, ascending.
    pub fn sorted(&self) -> &[f64] {
        &self.sorted
    }

    /// The arithmetic mean.
    pub fn mean(&self) -> Option<f64> {
        (!self.is_empty()).then(|| self.sorted.iter().sum::<f64>() / self.len() as f64)
    }

    /// The standard deviation of the samples themselves (divisor n, as `numpy.std`).
    pub fn std(&self) -> Option<f64> {
        let mean = self.mean()?;
        let squares: f64 = self.sorted.iter().map(|sample| (sample - mean).powi(2)).sum();
        Some((squares / self.len() as f64).sqrt())
    }

    /// The largest sample.
    pub fn max(&self) -> Option<f64> {
        self.sorted.last().copied()
    }

    /// The 50th percentile.
    pub fn median(&self) -> Option<f64> {
        self.percentile(50.0)
    }

    /// The value below which `percent` per cent of the samples lie, by linear interpolation between the two nearest
    /// ranks: position `percent / 100 * (n - 1)` in the sorted samples, as `numpy.percentile` does by default.
    /// `percent` is clamped to 0..=100.
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        let last = self.len().checked_sub(1)?;
        let position = percent.clamp(0.0, 100.0) / 100.0 * last as f64;
        let below = position.floor() as usize;
        let (low, high) = (*self.sorted.get(below)?, *self.sorted.get((below + 1).min(last))?);
        Some(low + (high - low) * (position - below as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Values from `numpy.percentile(samples, p)`, `numpy.mean` and `numpy.std`.
    #[test]
    fn agrees_with_numpy() {
        let samples = [15.0, 20.0, 35.0, 40.0, 50.0];
        let distribution = Distribution::of([40.0, 15.0, 50.0, 35.0, 20.0]);
        assert_eq!(distribution.sorted(), samples);
        let check = |percent, wanted: f64| {
            let got = distribution.percentile(percent).unwrap();
            assert!((got - wanted).abs() < 1e-9, "p{percent}: {got}, not {wanted}");
        };
        check(0.0, 15.0);
        check(25.0, 20.0);
        check(40.0, 29.0);
        check(50.0, 35.0);
        check(90.0, 46.0);
        check(95.0, 48.0);
        check(99.0, 49.6);
        check(100.0, 50.0);
        check(140.0, 50.0);
        assert_eq!(distribution.mean(), Some(32.0));
        assert!((distribution.std().unwrap() - 12.884_098_726_725_126).abs() < 1e-12);
        assert_eq!(distribution.max(), Some(50.0));
    }

    #[test]
    fn nothing_is_said_about_no_samples() {
        let empty = Distribution::of([f64::NAN, f64::INFINITY]);
        assert!(empty.is_empty());
        assert_eq!((empty.mean(), empty.std(), empty.median(), empty.max()), (None, None, None, None));
        let one = Distribution::of([3.0]);
        assert_eq!((one.percentile(99.0), one.std()), (Some(3.0), Some(0.0)));
    }

    proptest! {
        #[test]
        fn percentiles_are_monotone_and_inside_the_samples(
            samples in prop::collection::vec(-1e6_f64..1e6, 1..100), low in 0.0_f64..100.0, high in 0.0_f64..100.0,
        ) {
            let distribution = Distribution::of(samples.clone());
            let (low, high) = (low.min(high), low.max(high));
            let (below, above) = (distribution.percentile(low).unwrap(), distribution.percentile(high).unwrap());
            prop_assert!(below <= above + 1e-6);
            prop_assert!(below >= distribution.percentile(0.0).unwrap() && above <= distribution.max().unwrap() + 1e-6);
            // At most that share of the samples lies strictly below the percentile.
            let share = samples.iter().filter(|sample| **sample < below - 1e-6).count() as f64 / samples.len() as f64;
            prop_assert!(share <= low / 100.0 + 1.0 / samples.len() as f64);
        }
    }
}
