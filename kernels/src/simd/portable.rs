//! The vocabulary in plain Rust: the fallback of every machine.

use super::{Kernel, LANES, Simd};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Portable;

type Lanes = [f32; LANES];

#[inline(always)]
fn each(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn fold(x: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut x = x;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            x[i] = f(x[i], x[i + half]);
        }
    }
    x[0]
}

#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    // The exponent is re-biased by an exact product, which also normalises subnormals.
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    f32::from_bits(magnitude.to_bits() | (u32::from(bits & 0x8000) << 16))
}

#[inline(always)]
fn u16_at(bytes: &[u8; 32], i: usize) -> u16 {
    u16::from_ne_bytes([bytes[2 * i], bytes[2 * i + 1]])
}

/// Twice the values of e2m1.
pub(crate) const E2M1: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

impl Simd for Portable {
    type F = Lanes;
    const WIDE: bool = false;

    #[inline(never)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Lanes {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Lanes {
        *x
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], x: Lanes) {
        *to = x;
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| a / b)
    }

    #[inline(always)]
    fn fma(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            let mut out = c;
            for i in 0..LANES {
                out[i] = a[i].mul_add(b[i], c[i]);
            }
            return out;
        }
        // Without the instruction a fused product is a call into the C library for each lane.
        each(each(a, b, |a, b| a * b), c, |a, b| a + b)
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        each(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn select(self, mask: u16, x: Lanes, other: Lanes) -> Lanes {
        let mut out = other;
        for i in 0..LANES {
            if mask >> i & 1 == 1 {
                out[i] = x[i];
            }
        }
        out
    }

    #[inline(always)]
    fn zero_unless_ge(self, a: Lanes, b: Lanes, x: Lanes) -> Lanes {
        let mut out = [0.0; LANES];
        for i in 0..LANES {
            out[i] = if a[i] >= b[i] { x[i] } else { 0.0 };
        }
        out
    }

    #[inline(always)]
    fn add_to_exponent(self, x: Lanes, n: Lanes) -> Lanes {
        each(x, n, |x, n| f32::from_bits(x.to_bits().wrapping_add(n.to_bits() << 23)))
    }

    #[inline(always)]
    fn reduce_add(self, x: Lanes) -> f32 {
        fold(x, |a, b| a + b)
    }

    #[inline(always)]
    fn reduce_max(self, x: Lanes) -> f32 {
        fold(x, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Lanes {
        let mut out = [0.0; LANES];
        for (i, lane) in out.iter_mut().enumerate() {
            *lane = f16_to_f32(u16_at(x, i));
        }
        out
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Lanes {
        let mut out = [0.0; LANES];
        for (i, lane) in out.iter_mut().enumerate() {
            *lane = f32::from_bits(u32::from(u16_at(x, i)) << 16);
        }
        out
    }

    #[inline(always)]
    fn load_e4m3(self, x: &[u8; 16]) -> Lanes {
        let mut out = [0.0; LANES];
        for (lane, &code) in out.iter_mut().zip(x) {
            // With the exponent field of a half, whose bias is larger by 8.
            *lane = f16_to_f32(u16::from(code & 0x80) << 8 | u16::from(code & 0x7f) << 7);
        }
        out
    }

    #[inline(always)]
    fn load_e2m1(self, x: &[u8; 16]) -> (Lanes, Lanes) {
        let (mut low, mut high) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..LANES {
            low[i] = E2M1[usize::from(x[i] & 15)];
            high[i] = E2M1[usize::from(x[i] >> 4)];
        }
        (low, high)
    }
}
