//! The equality gate: outputs of an arm against the baseline's. Before it has passed, no time is shown.

use std::fmt;

use crate::record::GateRecord;

/// What an iteration put out.
#[derive(Debug, Clone, PartialEq)]
pub enum Outputs {
    /// Token ids of each request.
    Tokens(Vec<Vec<u32>>),
    /// Values in order.
    Values(Vec<f32>),
}

/// How distance is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Number of outputs that are not the same bits.
    Differences,
    /// Mean squared error over mean square of the baseline.
    Nmse,
    /// Largest difference of a value, as a part of the baseline's value.
    RelativeDifference,
    /// Mean difference of a value from the baseline's.
    MeanDifference,
}

/// How equal outputs must be, and why that is right.
#[derive(Debug, Clone, PartialEq)]
pub struct Tolerance {
    /// How distance is measured.
    pub measure: Measure,
    /// Largest distance that passes.
    pub allowed: f64,
    /// Why not less and not more.
    pub reason: String,
}

impl Tolerance {
    /// Every output equal.
    pub fn exact(reason: &str) -> Self {
        Self { measure: Measure::Differences, allowed: 0.0, reason: reason.to_owned() }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.measure {
            Measure::Differences => write!(f, "bitwise: {}", self.reason),
            Measure::Nmse => write!(f, "NMSE ≤ {:e}: {}", self.allowed, self.reason),
            Measure::RelativeDifference => write!(f, "relative difference ≤ {:e}: {}", self.allowed, self.reason),
            Measure::MeanDifference => write!(f, "mean difference ≤ {:e}: {}", self.allowed, self.reason),
        }
    }
}

/// The gate of one arm: takes in one iteration after the other.
#[derive(Debug, Clone)]
pub struct Gate {
    tolerance: Tolerance,
    num_compared: u64,
    worst: f64,
    failure: Option<String>,
}

impl Gate {
    /// Nothing compared yet.
    pub fn new(tolerance: &Tolerance) -> Self {
        Self { tolerance: tolerance.clone(), num_compared: 0, worst: 0.0, failure: None }
    }

    /// Compares an iteration with the baseline's.
    pub fn compare(&mut self, baseline: &Outputs, outputs: &Outputs) {
        let (count, distance, difference) = self.distance(baseline, outputs);
        self.num_compared += count;
        // A distance that is not a number is no distance.
        if distance.is_nan() || distance > self.worst {
            self.worst = if distance.is_nan() { f64::INFINITY } else { distance };
        }
        if self.worst > self.tolerance.allowed && self.failure.is_none() {
            self.failure = Some(difference);
        }
    }

    /// Fails for a reason that is not an output, for instance other inputs.
    pub fn fail(&mut self, reason: String) {
        self.failure.get_or_insert(reason);
    }

    /// Whether everything so far passed, and something was compared at all.
    pub fn passed(&self) -> bool {
        self.failure.is_none() && self.num_compared > 0
    }

    /// Why it failed, as it stands behind `wrong`.
    pub fn why_wrong(&self) -> String {
        self.failure.clone().unwrap_or_else(|| "nothing was compared".to_owned())
    }

    /// The result so far.
    pub fn record(&self) -> GateRecord {
        let detail = if self.passed() { self.tolerance.to_string() } else { self.why_wrong() };
        let (distance, allowed) = (self.worst.min(f64::MAX), self.tolerance.allowed);
        GateRecord { passed: self.passed(), num_compared: self.num_compared, distance, allowed, detail }
    }

    /// Outputs compared, distance, and where they differ first or most.
    fn distance(&self, baseline: &Outputs, outputs: &Outputs) -> (u64, f64, String) {
        match (baseline, outputs) {
            (Outputs::Tokens(a), Outputs::Tokens(b)) => token_distance(a, b),
            (Outputs::Values(a), Outputs::Values(b)) if a.len() == b.len() => self.value_distance(a, b),
            (Outputs::Values(a), Outputs::Values(b)) => {
                (0, f64::INFINITY, format!("{} values, the baseline has {}", b.len(), a.len()))
            }
            _ => (0, f64::INFINITY, "outputs of another kind than the baseline's".to_owned()),
        }
    }

    fn value_distance(&self, a: &[f32], b: &[f32]) -> (u64, f64, String) {
        let count = a.len() as u64;
        match self.tolerance.measure {
            Measure::Differences => {
                let first = (0..a.len()).find(|&i| a[i].to_bits() != b[i].to_bits());
                let differences = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                let detail = first.map_or(String::new(), |i| {
                    format!("{differences} of {count} values differ, first value {i}: {} instead of {}", b[i], a[i])
                });
                (count, differences as f64, detail)
            }
            Measure::Nmse => {
                let square = |x: f64| x * x;
                let error: f64 = a.iter().zip(b).map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
                let size: f64 = a.iter().map(|&a| square(f64::from(a))).sum();
                let nmse = if error == 0.0 { 0.0 } else { error / size };
                (count, nmse, format!("NMSE {nmse:.2e} over {:.0e}", self.tolerance.allowed))
            }
            Measure::RelativeDifference => {
                let relative = |(&a, &b): (&f32, &f32)| {
                    let (a, b) = (f64::from(a), f64::from(b));
                    if a == b { 0.0 } else { (a - b).abs() / a.abs() }
                };
                let distances = a.iter().zip(b).map(relative);
                let worst = distances.fold(0.0, |worst, d| if d.is_nan() { f64::INFINITY } else { d.max(worst) });
                (count, worst, format!("relative difference {worst:.2e} over {:.0e}", self.tolerance.allowed))
            }
            Measure::MeanDifference => {
                let sum: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs()).sum();
                let mean = sum / count.max(1) as f64;
                (count, mean, format!("mean difference {mean:.2e} over {:.0e}", self.tolerance.allowed))
            }
        }
    }
}

fn token_distance(a: &[Vec<u32>], b: &[Vec<u32>]) -> (u64, f64, String) {
    if a.len() != b.len() {
        return (0, f64::INFINITY, format!("{} answers, the baseline has {}", b.len(), a.len()));
    }
    let (mut count, mut differences, mut first) = (0, 0, None);
    for (request, (a, b)) in a.iter().zip(b).enumerate() {
        count += a.len() as u64;
        let at = (0..a.len().max(b.len())).filter(|&i| a.get(i) != b.get(i));
        for position in at {
            differences += 1;
            first.get_or_insert((request, position, b.get(position), a.get(position)));
        }
    }
    let word = |token: Option<&u32>| token.map_or("missing".to_owned(), u32::to_string);
    let detail = first.map_or(String::new(), |(request, position, got, expected)| {
        let (got, expected) = (word(got), word(expected));
        format!("{differences} of {count} tokens differ, first token {position} of request {request}: {got} instead of {expected}")
    });
    (count, f64::from(differences), detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tolerance: &Tolerance, baseline: &Outputs, outputs: &Outputs, expected: &str) {
        let mut gate = Gate::new(tolerance);
        gate.compare(baseline, outputs);
        let shown = if gate.passed() { "passed".to_owned() } else { gate.why_wrong() };
        assert_eq!(shown, expected);
    }

    #[test]
    fn tokens_are_the_same_or_wrong() {
        let exact = Tolerance::exact("greedy tokens");
        let tokens = |a: &[&[u32]]| Outputs::Tokens(a.iter().map(|a| a.to_vec()).collect());
        let baseline = tokens(&[&[1, 2], &[3]]);
        check(&exact, &baseline, &baseline, "passed");
        let first = "1 of 3 tokens differ, first token 0 of request 1: 4 instead of 3";
        check(&exact, &baseline, &tokens(&[&[1, 2], &[4]]), first);
        let first = "1 of 3 tokens differ, first token 1 of request 0: missing instead of 2";
        check(&exact, &baseline, &tokens(&[&[1], &[3]]), first);
        check(&exact, &baseline, &tokens(&[&[1, 2]]), "1 answers, the baseline has 2");
        check(&exact, &baseline, &Outputs::Values(vec![1.0]), "outputs of another kind than the baseline's");
        check(&exact, &tokens(&[]), &tokens(&[]), "nothing was compared");
    }

    #[test]
    fn values_are_near_or_wrong() {
        let nmse = Tolerance { measure: Measure::Nmse, allowed: 1e-6, reason: "order of sums".into() };
        let relative = Tolerance { measure: Measure::RelativeDifference, ..nmse.clone() };
        let baseline = Outputs::Values(vec![1.0, -2.0]);
        for tolerance in [&nmse, &relative] {
            check(tolerance, &baseline, &Outputs::Values(vec![1.000_000_1, -2.0]), "passed");
        }
        check(&nmse, &baseline, &Outputs::Values(vec![1.1, -2.0]), "NMSE 2.00e-3 over 1e-6");
        check(&relative, &baseline, &Outputs::Values(vec![1.0, -1.0]), "relative difference 5.00e-1 over 1e-6");
        check(&nmse, &baseline, &Outputs::Values(vec![f32::NAN, -2.0]), "NMSE NaN over 1e-6");
        check(&relative, &baseline, &Outputs::Values(vec![f32::NAN, -2.0]), "relative difference inf over 1e-6");
        check(&nmse, &baseline, &Outputs::Values(vec![1.0]), "1 values, the baseline has 2");
        let bits = Tolerance::exact("a copy");
        let first = "1 of 2 values differ, first value 0: 1.0000001 instead of 1";
        check(&bits, &baseline, &Outputs::Values(vec![1.000_000_1, -2.0]), first);
    }

    #[test]
    fn one_bad_iteration_among_good_ones_is_remembered() {
        let mut gate = Gate::new(&Tolerance::exact("a copy"));
        for value in [1.0, 2.0, 1.0] {
            gate.compare(&Outputs::Values(vec![1.0]), &Outputs::Values(vec![value]));
        }
        assert!(!gate.passed());
        assert_eq!(gate.record().num_compared, 3);
    }
}
