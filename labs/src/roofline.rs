//! Achieved rates against the ceilings of the machine: memory read and peak arithmetic, as `aisp tools roofline` has them. A share above 1 is a finding about the cost model.

use crate::record::{Bound, Ceilings, RooflineRecord};

/// Places an iteration of `seconds` on the roofline; none without bytes and operations.
pub fn place(
    bytes: Option<u64>,
    flops: Option<u64>,
    seconds: f64,
    ceilings: Option<&Ceilings>,
) -> Option<RooflineRecord> {
    if bytes.is_none() && flops.is_none() {
        return None;
    }
    let (bytes, flops) = (bytes.unwrap_or(0), flops.unwrap_or(0));
    let gbytes_per_s = bytes as f64 / seconds / 1e9;
    let gflops_per_s = flops as f64 / seconds / 1e9;
    let shares = ceilings.map(|ceilings| {
        let peak = ceilings.peak_gflops_per_s.get("f32").copied().unwrap_or(f64::INFINITY);
        (gbytes_per_s / ceilings.read_gbytes_per_s, gflops_per_s / peak)
    });
    // The ceiling that is nearer is the one that binds.
    let bound = shares.map(|(memory, compute)| if memory >= compute { Bound::Memory } else { Bound::Compute });
    let share = shares.map(|(memory, compute)| memory.max(compute));
    Some(RooflineRecord { bytes, flops, gbytes_per_s, gflops_per_s, bound, share })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_nearer_ceiling_binds() {
        let ceilings = Ceilings {
            device: "cpu".into(),
            host: "host".into(),
            date: "2026-01-01T00:00:00Z".into(),
            read_gbytes_per_s: 20.0,
            copy_gbytes_per_s: 16.0,
            peak_gflops_per_s: BTreeMap::from([("f32".to_owned(), 100.0)]),
        };
        let check = |bytes, flops, bound, share: f64| {
            let placed = place(Some(bytes), Some(flops), 1.0, Some(&ceilings)).unwrap();
            assert_eq!(placed.bound, Some(bound));
            assert!((placed.share.unwrap() - share).abs() < 1e-9);
        };
        check(10_000_000_000, 10_000_000_000, Bound::Memory, 0.5);
        check(1_000_000_000, 80_000_000_000, Bound::Compute, 0.8);
        assert_eq!(place(None, None, 1.0, Some(&ceilings)), None);
        assert_eq!(place(Some(8), None, 2.0, None).unwrap().share, None);
    }
}
