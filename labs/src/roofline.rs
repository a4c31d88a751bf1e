//! Achieved rates against the ceilings of the machine: memory read and peak arithmetic, as `aisp tools roofline` has them.
//! A share above 1 is a finding about the cost model, or the data came from a cache.

use aisp_engine::Engine;
use aisp_engine::model::WorkTotals;
use aisp_kernels::{Arithmetic, Cost};

use crate::record::{Bound, Ceilings, RooflineRecord, Workload};

/// What had to be moved and computed at least, and in which numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArmWork {
    /// Bytes and operations.
    pub cost: Cost,
    /// Whose peak the operations are held against.
    pub arithmetic: Arithmetic,
}

impl ArmWork {
    /// What an engine did since its totals were `before`.
    pub fn since(before: &WorkTotals, engine: &Engine) -> Self {
        Self::of(&(engine.stats().work - *before), engine)
    }

    /// What these totals are on an engine.
    pub fn of(totals: &WorkTotals, engine: &Engine) -> Self {
        let work = &engine.model_info().work;
        Self { cost: work.cost(totals), arithmetic: work.arithmetic() }
    }

    /// What every arm of a workload does, in f32; none if neither bytes nor operations are known.
    pub fn of_workload(workload: &Workload) -> Option<Self> {
        workload.bytes.or(workload.flops)?;
        let cost = Cost { bytes: workload.bytes.unwrap_or(0), flops: workload.flops.unwrap_or(0) };
        Some(Self { cost, arithmetic: Arithmetic::F32 })
    }
}

/// Seconds that work takes at least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LeastTime {
    /// To move all bytes.
    pub memory_s: f64,
    /// To do all operations.
    pub compute_s: f64,
}

impl LeastTime {
    /// By the ceilings, with the peak of the work's own arithmetic; without any peak operations take no time.
    pub fn of(work: &ArmWork, ceilings: &Ceilings) -> Self {
        let peak = ceilings.peak_of(work.arithmetic).unwrap_or(f64::INFINITY);
        Self {
            memory_s: work.cost.bytes as f64 / (ceilings.read_gbytes_per_s * 1e9),
            compute_s: work.cost.flops as f64 / (peak * 1e9),
        }
    }

    /// The larger one: moving and computing overlap at best.
    pub fn seconds(&self) -> f64 {
        self.memory_s.max(self.compute_s)
    }

    /// The ceiling that binds.
    pub fn bound(&self) -> Bound {
        if self.memory_s >= self.compute_s { Bound::Memory } else { Bound::Compute }
    }
}

/// Places an iteration of `seconds` on the roofline.
pub fn place(work: ArmWork, seconds: f64, ceilings: Option<&Ceilings>) -> RooflineRecord {
    let least = ceilings.map(|ceilings| LeastTime::of(&work, ceilings));
    RooflineRecord {
        bytes: work.cost.bytes,
        flops: work.cost.flops,
        gbytes_per_s: work.cost.bytes as f64 / seconds / 1e9,
        gflops_per_s: work.cost.flops as f64 / seconds / 1e9,
        arithmetic: Some(work.arithmetic.name().to_owned()),
        bound: least.map(|least| least.bound()),
        share: least.map(|least| least.seconds() / seconds),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn ceilings(peaks: &[(&str, f64)]) -> Ceilings {
        Ceilings {
            device: "cpu".into(),
            host: "host".into(),
            date: "2026-01-01T00:00:00Z".into(),
            read_gbytes_per_s: 20.0,
            copy_gbytes_per_s: 16.0,
            peak_gflops_per_s: peaks.iter().map(|(name, peak)| ((*name).to_owned(), *peak)).collect(),
        }
    }

    fn check(work: (u64, u64, Arithmetic), peaks: &[(&str, f64)], bound: Bound, share: f64) {
        let (gbytes, gflops, arithmetic) = work;
        let cost = Cost { bytes: gbytes * 1_000_000_000, flops: gflops * 1_000_000_000 };
        let placed = place(ArmWork { cost, arithmetic }, 1.0, Some(&ceilings(peaks)));
        assert_eq!((placed.bound, placed.arithmetic.as_deref()), (Some(bound), Some(arithmetic.name())));
        assert!((placed.share.unwrap() - share).abs() < 1e-9, "{placed:?}");
    }

    #[test]
    fn the_nearer_ceiling_binds() {
        let peaks = [("f32", 100.0), ("int8", 400.0)];
        check((10, 10, Arithmetic::F32), &peaks, Bound::Memory, 0.5);
        check((1, 80, Arithmetic::F32), &peaks, Bound::Compute, 0.8);
        check((1, 80, Arithmetic::Int8), &peaks, Bound::Compute, 0.2);
        // Nobody measured bf16, as in files from before it was.
        check((1, 80, Arithmetic::Bf16), &peaks, Bound::Compute, 0.8);
        check((1, 80, Arithmetic::F32), &[], Bound::Memory, 0.05);
    }

    #[test]
    fn without_ceilings_there_are_rates_and_no_share() {
        let work = ArmWork { cost: Cost { bytes: 8, flops: 0 }, arithmetic: Arithmetic::F32 };
        let placed = place(work, 2.0, None);
        assert_eq!((placed.gbytes_per_s, placed.share, placed.bound), (4e-9, None, None));
    }

    #[test]
    fn ceilings_of_before_load() {
        let text = r#"{"device":"cpu","host":"h","date":"d","read_gbytes_per_s":20.0,"copy_gbytes_per_s":16.0,
            "peak_gflops_per_s":{"f32":100.0}}"#;
        let old: Ceilings = serde_json::from_str(text).unwrap();
        assert_eq!(old.peak_gflops_per_s, BTreeMap::from([("f32".to_owned(), 100.0)]));
        assert_eq!(old.peak_of(Arithmetic::Int8), Some(100.0));
    }
}
