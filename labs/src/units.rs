//! How figures are written for people: bytes, rates, durations, money. JSON keeps plain numbers.

/// `bytes` with a binary unit: `1.50 GiB`.
pub fn bytes(bytes: f64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

/// `bytes_per_s` with a decimal unit, as data sheets give bandwidth: `24.5 GB/s`.
pub fn bandwidth(bytes_per_s: f64) -> String {
    scaled(bytes_per_s, 1000.0, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s"])
}

/// `flops_per_s` with a decimal unit: `117 GFLOP/s`.
pub fn flop_rate(flops_per_s: f64) -> String {
    scaled(flops_per_s, 1000.0, &["FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s"])
}

/// `seconds` in the unit that leaves one to three digits before the point: `3.40 ms`.
pub fn seconds(seconds: f64) -> String {
    let (factor, unit) = match seconds.abs() {
        s if s >= 1.0 || s == 0.0 => (1.0, "s"),
        s if s >= 1e-3 => (1e3, "ms"),
        s if s >= 1e-6 => (1e6, "µs"),
        _ => (1e9, "ns"),
    };
    format!("{} {unit}", digits(seconds * factor))
}

/// `dollars` with enough digits to tell cheap rows apart: `$0.0356`, `$12.40`.
pub fn dollars(dollars: f64) -> String {
    if dollars != 0.0 && dollars.abs() < 1.0 { format!("${dollars:.4}") } else { format!("${dollars:.2}") }
}

/// `value` with three significant digits and no exponent: `0.0312`, `24.5`, `1830`.
pub fn digits(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    let magnitude = if value == 0.0 { 0 } else { value.abs().log10().floor() as i32 };
    let decimals = (2 - magnitude).clamp(0, 9) as usize;
    format!("{value:.decimals$}")
}

/// `value` as an axis shows it: no trailing zeros, thousands as k: `0.5`, `2`, `1.5k`.
pub fn short(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        v if v >= 1e9 => (value / 1e9, "G"),
        v if v >= 1e6 => (value / 1e6, "M"),
        v if v >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let text = format!("{value:.3}");
    format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.'))
}

fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut at = 0;
    while value.abs() >= step && at + 1 < units.len() {
        value /= step;
        at += 1;
    }
    format!("{} {}", digits(value), units[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(bytes(0.0), "0.00 B");
        assert_eq!(bytes(1536.0), "1.50 KiB");
        assert_eq!(bytes(5.0 * 1024f64.powi(3)), "5.00 GiB");
        assert_eq!(bandwidth(24.51e9), "24.5 GB/s");
        assert_eq!(flop_rate(117.2e9), "117 GFLOP/s");
        assert_eq!(seconds(0.0034), "3.40 ms");
        assert_eq!(seconds(2.5e-7), "250 ns");
        assert_eq!(dollars(0.035_556), "$0.0356");
        assert_eq!(dollars(12.4), "$12.40");
        assert_eq!(digits(1830.4), "1830");
        assert_eq!(digits(0.03125), "0.0312");
        assert_eq!(digits(f64::INFINITY), "inf");
        let shorts = [0.0, 0.5, 2.0, 1500.0, 15_000.0, 2.5e6].map(short);
        assert_eq!(shorts, ["0", "0.5", "2", "1500", "15k", "2.5M"]);
    }
}
