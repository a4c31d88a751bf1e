//! How time grows with the size of the work: an exponent fitted to measured sizes, never to fewer than three.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::record::RunRecord;

/// Sizes that a fit needs.
pub const LEAST_SIZES: usize = 3;

/// `time = factor * size ^ exponent`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PowerLaw {
    /// 1 is linear, below 1 grows slower than the work.
    pub exponent: f64,
    /// Standard error of the exponent; none with fewer than three points beyond the two that a line needs.
    pub exponent_error: f64,
    /// Seconds at size 1.
    pub factor: f64,
    /// Part of the variance of log time that the line explains.
    pub r_squared: f64,
}

/// Fits a power law by least squares on the logarithms; none for fewer than [`LEAST_SIZES`] distinct positive sizes.
pub fn fit(points: &[(f64, f64)]) -> Option<PowerLaw> {
    let usable =
        |(size, seconds): &&(f64, f64)| *size > 0.0 && *seconds > 0.0 && size.is_finite() && seconds.is_finite();
    let logs: Vec<(f64, f64)> = points.iter().filter(usable).map(|(size, seconds)| (size.ln(), seconds.ln())).collect();
    let mut sizes: Vec<f64> = logs.iter().map(|(x, _)| *x).collect();
    sizes.sort_by(f64::total_cmp);
    sizes.dedup();
    if sizes.len() < LEAST_SIZES {
        return None;
    }
    let count = logs.len() as f64;
    let mean_x = logs.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = logs.iter().map(|(_, y)| y).sum::<f64>() / count;
    let xx: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    let xy: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
    let yy: f64 = logs.iter().map(|(_, y)| (y - mean_y).powi(2)).sum();
    let exponent = xy / xx;
    let unexplained = (yy - exponent * xy).max(0.0);
    Some(PowerLaw {
        exponent,
        exponent_error: (unexplained / (count - 2.0) / xx).sqrt(),
        factor: (mean_y - exponent * mean_x).exp(),
        r_squared: if yy > 0.0 { 1.0 - unexplained / yy } else { 1.0 },
    })
}

/// One arm over the sizes that were measured on one device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScalingCurve {
    /// Device that ran it.
    pub device: String,
    /// `chapter:name`.
    pub lab: String,
    /// Name within the lab.
    pub arm: String,
    /// What the sizes count: `tokens`, `flops`, `bytes` or `requests`.
    pub size_unit: &'static str,
    /// Size and seconds, smallest first.
    pub points: Vec<(f64, f64)>,
    /// The fit; none with fewer than [`LEAST_SIZES`] sizes.
    pub law: Option<PowerLaw>,
}

/// Curves of all arms: records of one lab with different workloads are its sizes; of one size the last record counts.
pub fn curves(runs: &[RunRecord]) -> Vec<ScalingCurve> {
    let mut oldest_first: Vec<&RunRecord> = runs.iter().collect();
    oldest_first.sort_by(|a, b| a.manifest.date.cmp(&b.manifest.date));
    let mut measured: BTreeMap<(String, String, String, &'static str), BTreeMap<u64, f64>> = BTreeMap::new();
    for run in oldest_first {
        for lab in &run.labs {
            let work = &lab.workload;
            let sizes =
                [(work.tokens, "tokens"), (work.flops, "flops"), (work.bytes, "bytes"), (work.requests, "requests")];
            let Some((size, unit)) = sizes.into_iter().find_map(|(size, unit)| Some((size?, unit))) else { continue };
            let right = lab.variants.iter().filter(|variant| variant.gate.passed).map(|variant| &variant.arm);
            for arm in std::iter::once(&lab.baseline).chain(right) {
                if let Some(seconds) = arm.median_s {
                    let key = (run.manifest.device.clone(), lab.id.clone(), arm.name.clone(), unit);
                    measured.entry(key).or_default().insert(size, seconds);
                }
            }
        }
    }
    let curve = |((device, lab, arm, size_unit), points): (_, BTreeMap<u64, f64>)| {
        let points: Vec<(f64, f64)> = points.into_iter().map(|(size, seconds)| (size as f64, seconds)).collect();
        ScalingCurve { device, lab, arm, size_unit, law: fit(&points), points }
    };
    measured.into_iter().map(curve).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rows::samples;
    use super::*;

    #[test]
    fn an_exact_power_is_found() {
        let points: Vec<(f64, f64)> =
            [1.0, 2.0, 4.0, 8.0f64].iter().map(|size| (*size, 3.0 * size.powf(1.5))).collect();
        let law = fit(&points).unwrap();
        assert!((law.exponent - 1.5).abs() < 1e-9 && (law.factor - 3.0).abs() < 1e-9, "{law:?}");
        assert!(law.r_squared > 0.999_999 && law.exponent_error < 1e-6, "{law:?}");
    }

    #[test]
    fn noise_shows_in_the_error() {
        let law = fit(&[(1.0, 1.0), (2.0, 2.5), (4.0, 3.5), (8.0, 9.0)]).unwrap();
        assert!(law.exponent_error > 0.05 && law.r_squared < 0.99, "{law:?}");
    }

    #[test]
    fn too_few_sizes_have_no_exponent() {
        assert_eq!(fit(&[(1.0, 1.0), (2.0, 2.0)]), None);
        assert_eq!(fit(&[(1.0, 1.0), (1.0, 2.0), (2.0, 2.0), (0.0, 1.0), (4.0, f64::NAN)]), None);
    }

    #[test]
    fn sizes_of_one_lab_make_a_curve() {
        let at = |tokens: u64| {
            let mut run = samples::run("r", &[("paged", 2.0, 50)]);
            run.labs[0].workload.tokens = Some(tokens);
            run.labs[0].baseline.median_s = Some((tokens as f64).powi(2));
            run
        };
        let curves = curves(&[at(10), at(20), at(40)]);
        let exponents: Vec<_> =
            curves.iter().map(|curve| (curve.arm.as_str(), curve.law.unwrap().exponent.round())).collect();
        assert_eq!(exponents, [("concatenate", 2.0), ("paged", 0.0)]);
        assert_eq!(super::curves(&[at(10)])[0].law, None);
    }
}
