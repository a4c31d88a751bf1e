//! `aisp tools roofline`: which ceiling binds a computation, how fast it can be at best, and what share of it was reached.
//!
//! Source: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009.

use std::fmt;

use aisp_kernels::Cost;
use serde::Serialize;

use super::checks::{positive, refuse};
use crate::record::{Bound, Ceilings};
use crate::{LabError, units};

/// The two ceilings that bind an op.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Roof {
    /// Peak of the number format, in operations a second.
    pub flops_per_s: f64,
    /// Memory bandwidth, in bytes a second.
    pub bytes_per_s: f64,
}

impl Roof {
    /// The roof of a probed machine for a number format: its read bandwidth and its peak for `dtype`.
    ///
    /// Errors: a format that was not measured.
    pub fn of(ceilings: &Ceilings, dtype: &str) -> Result<Self, LabError> {
        let peaks = &ceilings.peak_gflops_per_s;
        let Some(gflops_per_s) = peaks.get(dtype) else {
            let known: Vec<&str> = peaks.keys().map(String::as_str).collect();
            return refuse(format!("no peak was measured for {dtype}, only for {}", known.join(", ")));
        };
        Ok(Self { flops_per_s: gflops_per_s * 1e9, bytes_per_s: ceilings.read_gbytes_per_s * 1e9 })
    }
}

/// Where a computation stands under its roof.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Roofline {
    /// The ceiling that binds.
    pub bound: Bound,
    /// Operations for each byte moved; infinite where nothing is moved, which JSON shows as null.
    pub flops_per_byte: f64,
    /// Intensity at which both ceilings bind.
    pub ridge_flops_per_byte: f64,
    /// Least time, in seconds.
    pub attainable_s: f64,
    /// Most operations a second at this intensity.
    pub attainable_flops_per_s: f64,
    /// Least time over measured time, where one was given: 1 is the roof.
    pub share: Option<f64>,
    /// The roof itself.
    pub roof: Roof,
}

/// Sets a cost, and a measured time if there is one, against a roof.
///
/// The least time is the larger of moving all bytes and doing all operations: they overlap at best. A share above 1
/// means that a ceiling or the cost is wrong, or that the data came from a cache; it is not cut off.
/// Errors: no work at all, ceilings or a time that are not positive.
pub fn roofline(cost: Cost, roof: Roof, measured_s: Option<f64>) -> Result<Roofline, LabError> {
    if cost == Cost::default() {
        return refuse("no bytes and no operations: nothing to bound");
    }
    positive("the peak", roof.flops_per_s)?;
    positive("the bandwidth", roof.bytes_per_s)?;
    let measured_s = measured_s.map(|seconds| positive("the measured time", seconds)).transpose()?;
    let compute_s = cost.flops as f64 / roof.flops_per_s;
    let memory_s = cost.bytes as f64 / roof.bytes_per_s;
    let attainable_s = compute_s.max(memory_s);
    Ok(Roofline {
        bound: if memory_s >= compute_s { Bound::Memory } else { Bound::Compute },
        flops_per_byte: cost.flops as f64 / cost.bytes as f64,
        ridge_flops_per_byte: roof.flops_per_s / roof.bytes_per_s,
        attainable_s,
        attainable_flops_per_s: cost.flops as f64 / attainable_s,
        share: measured_s.map(|seconds| attainable_s / seconds),
        roof,
    })
}

impl fmt::Display for Roofline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (binds, rate) = match self.bound {
            Bound::Memory => ("memory", units::bandwidth(self.roof.bytes_per_s)),
            Bound::Compute => ("compute", units::flop_rate(self.roof.flops_per_s)),
        };
        writeln!(f, "binds       {binds} ({rate})")?;
        let (intensity, ridge) = (units::digits(self.flops_per_byte), units::digits(self.ridge_flops_per_byte));
        writeln!(f, "intensity   {intensity} FLOP/B; both ceilings meet at {ridge}")?;
        let (least, rate) = (units::seconds(self.attainable_s), units::flop_rate(self.attainable_flops_per_s));
        writeln!(f, "attainable  {least} = {rate}")?;
        match self.share {
            Some(share) => writeln!(f, "reached     {:.1} % of the roof", share * 100.0),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOF: Roof = Roof { flops_per_s: 200e9, bytes_per_s: 25e9 };

    #[test]
    fn the_larger_time_binds() {
        // 1 GB at 25 GB/s is 40 ms; 2 GFLOP at 200 GFLOP/s is 10 ms.
        let decode = roofline(Cost { bytes: 1_000_000_000, flops: 2_000_000_000 }, ROOF, Some(0.08)).unwrap();
        assert_eq!((decode.bound, decode.attainable_s, decode.share), (Bound::Memory, 0.04, Some(0.5)));
        assert_eq!((decode.flops_per_byte, decode.ridge_flops_per_byte), (2.0, 8.0));
        assert_eq!(decode.attainable_flops_per_s, 50e9);

        // 20 GFLOP take 100 ms, the bytes still 40 ms.
        let prefill = roofline(Cost { bytes: 1_000_000_000, flops: 20_000_000_000 }, ROOF, None).unwrap();
        assert_eq!((prefill.bound, prefill.attainable_s, prefill.share), (Bound::Compute, 0.1, None));
        assert_eq!(prefill.attainable_flops_per_s, 200e9);
    }

    #[test]
    fn one_sided_work_has_a_roof_too() {
        let copy = roofline(Cost { bytes: 25, flops: 0 }, ROOF, None).unwrap();
        assert_eq!((copy.bound, copy.attainable_s, copy.attainable_flops_per_s), (Bound::Memory, 1e-9, 0.0));
        let spin = roofline(Cost { bytes: 0, flops: 200 }, ROOF, None).unwrap();
        assert_eq!((spin.bound, spin.flops_per_byte), (Bound::Compute, f64::INFINITY));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(roofline(Cost::default(), ROOF, None).is_err());
        let cost = Cost { bytes: 1, flops: 1 };
        assert!(roofline(cost, Roof { flops_per_s: 0.0, ..ROOF }, None).is_err());
        assert!(roofline(cost, ROOF, Some(-1.0)).is_err());
    }
}
