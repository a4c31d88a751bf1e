//! Whether the weights fit, asked before they are allocated: the kernel would kill the process otherwise.

use candle_core::DType;

use super::error::LoadError;
use super::options::LoadOptions;

/// Refuses weights that the system's memory cannot hold. Weights for another device than the CPU pass: that device's
/// own allocator reports.
pub(crate) fn check_fits(model: &str, needed_bytes: u64, dtype: DType, options: &LoadOptions) -> Result<(), LoadError> {
    match available_bytes() {
        Some(available_bytes) if options.device.is_cpu() && needed_bytes > available_bytes => {
            Err(LoadError::NotEnoughMemory {
                model: super::error::printable(model),
                dtype: dtype.as_str().into(),
                needed_bytes,
                available_bytes,
            })
        }
        _ => Ok(()),
    }
}

/// Memory that can be allocated without swapping. Units: bytes. `None` where the system does not say.
pub fn available_bytes() -> Option<u64> {
    parse_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read() {
        assert_eq!(parse_available("MemTotal: 9 kB\nMemAvailable:   24 kB\n"), Some(24 * 1024));
        assert_eq!(parse_available("MemTotal: 9 kB\n"), None);
        assert_eq!(parse_available("MemAvailable: x kB"), None);
    }

    #[test]
    fn more_than_there_is_gets_refused() {
        let options = LoadOptions::default();
        assert!(check_fits("m", 1, DType::F32, &options).is_ok());
        if available_bytes().is_some() {
            let message = check_fits("m", u64::MAX, DType::F32, &options).unwrap_err().to_string();
            assert!(message.contains("bf16"), "{message}");
        }
    }
}
