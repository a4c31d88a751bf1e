//! Memory of an arm: every allocation is counted, and the system is asked for the resident peak. No lab can turn it off.

use std::alloc::System;
use std::fs;

use peakmem_alloc::{PeakMemAlloc, PeakMemAllocTrait};

/// Counts the heap of the whole process: two atomic operations an allocation, the same for every arm. Zeroed and grown
/// blocks go through to the system as they are, so that counting changes no page fault.
#[global_allocator]
static HEAP: PeakMemAlloc<System> = PeakMemAlloc::new(System);

/// Runs `work` and returns the most heap that it held on top of what was allocated before.
pub fn peak_growth<T>(work: impl FnOnce() -> T) -> (T, u64) {
    HEAP.reset_peak_memory();
    let result = work();
    (result, HEAP.get_peak_memory() as u64)
}

/// Starts the resident peak anew; it stays what it was where the system does not allow that.
pub fn reset_peak_rss() {
    // The peak then covers more than one arm: an upper bound, never too low.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Most resident memory since [`reset_peak_rss`]; none where the system does not say.
pub fn peak_rss_bytes() -> Option<u64> {
    kibibytes_of(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// Memory of the machine; none where the system does not say.
pub fn total_bytes() -> Option<u64> {
    kibibytes_of(&fs::read_to_string("/proc/meminfo").ok()?, "MemTotal:")
}

/// A line such as `VmHWM:     1234 kB`, in bytes.
pub fn kibibytes_of(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_counted() {
        let (kept, growth) = peak_growth(|| {
            drop(vec![1u8; 3 << 20]);
            vec![1u8; 1 << 20]
        });
        assert!((3 << 20..4 << 20).contains(&growth), "{growth}");
        let ((), nothing) = peak_growth(|| drop(kept));
        assert!(nothing < 1 << 19, "{nothing}");
    }

    #[test]
    fn the_system_tells_the_resident_peak() {
        reset_peak_rss();
        let before = peak_rss_bytes().unwrap();
        let touched = vec![1u8; 64 << 20];
        assert!(peak_rss_bytes().unwrap() >= before + touched.len() as u64 / 2);
        assert_eq!(kibibytes_of("A: 1 kB\nVmHWM:\t 12 kB\n", "VmHWM:"), Some(12 * 1024));
        assert_eq!(kibibytes_of("A: 1 kB\n", "VmHWM:"), None);
    }
}
