//! The vocabulary in AVX2, FMA and F16C: a vector is two ymm registers.
#![allow(unsafe_code, reason = "intrinsics")]

use std::arch::x86_64::*;

use super::{Kernel, LANES, Simd};

/// Proof that the machine has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        let found =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline(never)]
fn enter<K: Kernel>(s: Avx2, kernel: K) -> K::Output {
    kernel.run(s)
}

/// Lanes 0 to 7 and 8 to 15.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pair(__m256, __m256);

/// Intrinsics by value: safe once the machine has the features.
macro_rules! intrinsic {
    ($call:expr) => {
        // SAFETY: an `Avx2` exists only where its features were detected, and references are valid for their length.
        unsafe { $call }
    };
}

macro_rules! both {
    ($op:ident, $a:expr, $b:expr) => {
        intrinsic!(Pair($op($a.0, $b.0), $op($a.1, $b.1)))
    };
}

impl Simd for Avx2 {
    type F = Pair;
    const WIDE: bool = false;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        intrinsic!(enter(self, kernel))
    }

    #[inline(always)]
    fn splat(self, x: f32) -> Pair {
        intrinsic!(Pair(_mm256_set1_ps(x), _mm256_set1_ps(x)))
    }

    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Pair {
        intrinsic!(Pair(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32; LANES], x: Pair) {
        intrinsic!({
            _mm256_storeu_ps(to.as_mut_ptr(), x.0);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x.1);
        });
    }

    #[inline(always)]
    fn add(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_add_ps, a, b)
    }

    #[inline(always)]
    fn sub(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_sub_ps, a, b)
    }

    #[inline(always)]
    fn mul(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_mul_ps, a, b)
    }

    #[inline(always)]
    fn div(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_div_ps, a, b)
    }

    #[inline(always)]
    fn fma(self, a: Pair, b: Pair, c: Pair) -> Pair {
        intrinsic!(Pair(_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)))
    }

    #[inline(always)]
    fn max(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_max_ps, a, b)
    }

    #[inline(always)]
    fn min(self, a: Pair, b: Pair) -> Pair {
        both!(_mm256_min_ps, a, b)
    }

    #[inline(always)]
    fn select(self, mask: u16, x: Pair, other: Pair) -> Pair {
        intrinsic!({
            let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let test = |m: u16| _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(i32::from(m)), bits), bits);
            let (low, high) = (_mm256_castsi256_ps(test(mask & 0xff)), _mm256_castsi256_ps(test(mask >> 8)));
            Pair(_mm256_blendv_ps(other.0, x.0, low), _mm256_blendv_ps(other.1, x.1, high))
        })
    }

    #[inline(always)]
    fn zero_unless_ge(self, a: Pair, b: Pair, x: Pair) -> Pair {
        intrinsic!(Pair(
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a.0, b.0), x.0),
            _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a.1, b.1), x.1)
        ))
    }

    #[inline(always)]
    fn add_to_exponent(self, x: Pair, n: Pair) -> Pair {
        intrinsic!({
            let add = |x: __m256, n: __m256| {
                let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(n));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), shifted))
            };
            Pair(add(x.0, n.0), add(x.1, n.1))
        })
    }

    #[inline(always)]
    fn reduce_add(self, x: Pair) -> f32 {
        intrinsic!({
            let x = _mm256_add_ps(x.0, x.1);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn reduce_max(self, x: Pair) -> f32 {
        intrinsic!({
            let x = _mm256_max_ps(x.0, x.1);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
        })
    }

    #[inline(always)]
    fn load_f16(self, x: &[u8; 32]) -> Pair {
        intrinsic!({
            let p = x.as_ptr().cast::<__m128i>();
            Pair(_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1))))
        })
    }

    #[inline(always)]
    fn load_bf16(self, x: &[u8; 32]) -> Pair {
        intrinsic!({
            let p = x.as_ptr().cast::<__m128i>();
            let (low, high) =
                (_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(1))));
            Pair(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(low)), _mm256_castsi256_ps(_mm256_slli_epi32::<16>(high)))
        })
    }

    #[inline(always)]
    fn load_e4m3(self, x: &[u8; 16]) -> Pair {
        // Sign-extended and shifted, the code stands in the fields of a half: the copy of the sign over the exponent's
        // top bit is masked away.
        intrinsic!({
            let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().cast()));
            let half = _mm256_and_si256(_mm256_slli_epi16::<7>(wide), _mm256_set1_epi16(0xbf80_u16 as i16));
            let (low, high) = (_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            Pair(_mm256_cvtph_ps(low), _mm256_cvtph_ps(high))
        })
    }

    #[inline(always)]
    fn load_e2m1(self, x: &[u8; 16]) -> (Pair, Pair) {
        intrinsic!({
            let table = _mm_setr_epi8(0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12);
            let codes = _mm_loadu_si128(x.as_ptr().cast());
            let nibble = _mm_set1_epi8(15);
            let widen = |v: __m128i| {
                let (low, high) = (_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(v)));
                Pair(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
            };
            let low = _mm_shuffle_epi8(table, _mm_and_si128(codes, nibble));
            let high = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16::<4>(codes), nibble));
            (widen(low), widen(high))
        })
    }

    #[inline(always)]
    fn prefetch(self, bytes: &[u8]) {
        for line in bytes.chunks(64) {
            intrinsic!(_mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()));
        }
    }
}
