//! How each KV type is read: widened in registers to f32, exactly.

use crate::simd::{LANES, Simd};

use super::Record;

/// One KV type. Indices count vectors of 16 lanes.
pub(crate) trait Format: Copy + Default + Send + Sync {
    /// Scores and weights are multiplied by a scale for each position.
    const POSITION_SCALES: bool = false;

    /// Takes long to widen: done once for all panels of a prompt. Not with scales for each position.
    const EXPAND: bool = false;

    /// Factor of the keys in a group of 16 dimensions.
    #[inline(always)]
    fn key_scale<S: Simd>(s: S, _record: &Record, _group: usize) -> S::F {
        s.zero()
    }

    /// Dimensions `2 pair` and `2 pair + 1` of the keys of 16 positions.
    fn keys<S: Simd>(s: S, record: &Record, pair: usize, scale: S::F) -> (S::F, S::F);

    /// Dimensions `32 pair..32 pair + 32` of the value at a position; `pairs` make a row.
    fn values<S: Simd>(s: S, record: &Record, position: usize, pair: usize, pairs: usize) -> (S::F, S::F);

    /// Scales of the keys of 16 positions.
    #[inline(always)]
    fn key_scales<S: Simd>(s: S, _record: &Record) -> S::F {
        s.splat(1.0)
    }

    /// Scales of the values of 16 positions.
    #[inline(always)]
    fn value_scales<S: Simd>(s: S, _record: &Record) -> S::F {
        s.splat(1.0)
    }
}

#[inline(always)]
fn chunk<const N: usize>(bytes: &[u8], index: usize) -> &[u8; N] {
    &bytes.as_chunks::<N>().0[index]
}

#[inline(always)]
fn floats(bytes: &[u8], index: usize) -> &[f32; LANES] {
    &bytemuck::cast_slice::<u8, f32>(bytes).as_chunks::<LANES>().0[index]
}

macro_rules! two_bytes {
    ($name:ident, $load:ident) => {
        #[derive(Debug, Clone, Copy, Default)]
        pub(crate) struct $name;

        impl Format for $name {
            #[inline(always)]
            fn keys<S: Simd>(s: S, record: &Record, pair: usize, _scale: S::F) -> (S::F, S::F) {
                let both: &[u8; 64] = chunk(record.k, pair);
                (s.$load(chunk(both, 0)), s.$load(chunk(both, 1)))
            }

            #[inline(always)]
            fn values<S: Simd>(s: S, record: &Record, position: usize, pair: usize, pairs: usize) -> (S::F, S::F) {
                let both: &[u8; 64] = chunk(record.v, position.wrapping_mul(pairs).wrapping_add(pair));
                (s.$load(chunk(both, 0)), s.$load(chunk(both, 1)))
            }
        }
    };
}

two_bytes!(F16, load_f16);
two_bytes!(Bf16, load_bf16);

/// f32.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct F32;

impl Format for F32 {
    #[inline(always)]
    fn keys<S: Simd>(s: S, record: &Record, pair: usize, _scale: S::F) -> (S::F, S::F) {
        let both: &[u8; 128] = chunk(record.k, pair);
        (s.load(floats(both, 0)), s.load(floats(both, 1)))
    }

    #[inline(always)]
    fn values<S: Simd>(s: S, record: &Record, position: usize, pair: usize, pairs: usize) -> (S::F, S::F) {
        let both: &[u8; 128] = chunk(record.v, position.wrapping_mul(pairs).wrapping_add(pair));
        (s.load(floats(both, 0)), s.load(floats(both, 1)))
    }
}

/// e4m3, whose scales (times 2^8) are applied to 16 scores or weights at once.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fp8;

impl Format for Fp8 {
    const POSITION_SCALES: bool = true;

    #[inline(always)]
    fn keys<S: Simd>(s: S, record: &Record, pair: usize, _scale: S::F) -> (S::F, S::F) {
        let both: &[u8; 32] = chunk(record.k, pair);
        (s.load_e4m3(chunk(both, 0)), s.load_e4m3(chunk(both, 1)))
    }

    #[inline(always)]
    fn values<S: Simd>(s: S, record: &Record, position: usize, pair: usize, pairs: usize) -> (S::F, S::F) {
        let both: &[u8; 32] = chunk(record.v, position.wrapping_mul(pairs).wrapping_add(pair));
        (s.load_e4m3(chunk(both, 0)), s.load_e4m3(chunk(both, 1)))
    }

    #[inline(always)]
    fn key_scales<S: Simd>(s: S, record: &Record) -> S::F {
        s.load_bf16(chunk(record.k_scales, 0))
    }

    #[inline(always)]
    fn value_scales<S: Simd>(s: S, record: &Record) -> S::F {
        s.load_bf16(chunk(record.v_scales, 0))
    }
}

/// e2m1, whose scales (half of the factor) multiply values as they are widened: 2 by 8 significant bits, exact.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fp4;

impl Format for Fp4 {
    const EXPAND: bool = true;

    #[inline(always)]
    fn key_scale<S: Simd>(s: S, record: &Record, group: usize) -> S::F {
        s.load_bf16(chunk(record.k_scales, group))
    }

    #[inline(always)]
    fn keys<S: Simd>(s: S, record: &Record, pair: usize, scale: S::F) -> (S::F, S::F) {
        let (even, odd) = s.load_e2m1(chunk(record.k, pair));
        (s.mul(even, scale), s.mul(odd, scale))
    }

    #[inline(always)]
    fn values<S: Simd>(s: S, record: &Record, position: usize, pair: usize, pairs: usize) -> (S::F, S::F) {
        let index = position.wrapping_mul(pairs).wrapping_add(pair);
        let (low, high) = s.load_e2m1(chunk(record.v, index));
        let [a, b, c, d] = *chunk::<4>(record.v_scales, index);
        let scale = |low: u8, high: u8| f32::from_bits(u32::from(u16::from_ne_bytes([low, high])) << 16);
        (s.mul(low, s.splat(scale(a, b))), s.mul(high, s.splat(scale(c, d))))
    }
}
