//! Narrowing of f32 to the KV types, without branches so that the compiler vectorizes loops over it.
//!
//! Round to nearest even throughout. What does not fit saturates: an infinite key would turn scores into NaN.

/// Largest magnitude that [`e4m3`] takes: 448 / 2^8.
pub(crate) const E4M3_MAX: f32 = 1.75;
/// Largest magnitude that [`e2m1`] takes: 2 * 6.
pub(crate) const E2M1_MAX: f32 = 12.0;

/// 2^-112: moves the exponent of an f32 to the bias of a half.
const HALF_BIAS: f32 = f32::from_bits(0x0780_0000);

/// IEEE half; saturates at 65504, keeps NaN.
#[inline(always)]
pub(crate) fn f16(x: f32) -> u16 {
    let sign = (x.to_bits() >> 16) as u16 & 0x8000;
    let bits = (x.abs() * HALF_BIAS).to_bits();
    let rounded = bits.wrapping_add(0xfff + (bits >> 13 & 1)) >> 13;
    let magnitude = if bits > 0x7f80_0000 { 0x7e00 } else { rounded.min(0x7bff) };
    sign | magnitude as u16
}

/// bfloat16.
#[inline(always)]
pub(crate) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fc0 } else { rounded as u16 }
}

/// The e4m3 code of `x * 2^8`; saturates, NaN included.
#[inline(always)]
pub(crate) fn e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let bits = (x.abs() * HALF_BIAS).to_bits();
    sign | (bits.wrapping_add(0x7ffff + (bits >> 20 & 1)) >> 20).min(0x7e) as u8
}

/// The e2m1 code of `x / 2`; saturates, NaN gives zero.
#[inline(always)]
pub(crate) fn e2m1(x: f32) -> u8 {
    let a = x.abs();
    let mut code = (x.to_bits() >> 28) as u8 & 8;
    for midpoint in [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0] {
        code = code.wrapping_add(u8::from(a > midpoint));
    }
    code
}

/// The smallest bfloat16 that is at least `x >= 0`, for scales that must not overflow what they scale.
#[inline(always)]
pub(crate) fn bf16_above(x: f32) -> u16 {
    (x.to_bits().wrapping_add(0xffff) >> 16).min(0x7f7f) as u16
}
