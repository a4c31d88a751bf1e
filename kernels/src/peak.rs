//! Peak rate of dot products: chains that never leave the registers, the ceiling of kernels over int8 and bf16.
//!
//! Each level runs the instructions that its kernels are made of: `vpdpbusd` and `vdpbf16ps` with AVX-512, `vpmaddubsw`
//! and `vpaddw` with AVX2. Operands stay the same; the chains are independent, enough of them to hide the latency.
#![allow(unsafe_code, reason = "intrinsics")]

use crate::Isa;

/// Dot products in flight: latency times issue width of current cores, and with two operands no more than 16 registers.
const CHAINS: usize = 12;

/// Runs `num_steps` rounds of int8 dot products and returns the operations done, a multiply-add being two; none where
/// the level has no such kernel.
///
/// Cost: 12 or 24 instructions a step.
pub fn int8_dots(isa: Isa, num_steps: u32) -> Option<u64> {
    let multiply_adds = match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if isa.is_available() => {
            // SAFETY: the level is available, so its features are.
            unsafe { x86::int8_avx512(num_steps) };
            64
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if isa.is_available() => {
            // SAFETY: the level is available, so its features are.
            unsafe { x86::int8_avx2(num_steps) };
            32
        }
        _ => return None,
    };
    Some(num_operations(multiply_adds, num_steps))
}

/// The same with bf16 dot products, which are summed in f32.
pub fn bf16_dots(isa: Isa, num_steps: u32) -> Option<u64> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if isa.is_available() => {
            // SAFETY: the level is available, so its features are.
            unsafe { x86::bf16_avx512(num_steps) };
            Some(num_operations(32, num_steps))
        }
        _ => None,
    }
}

fn num_operations(multiply_adds: u64, num_steps: u32) -> u64 {
    2 * multiply_adds * CHAINS as u64 * u64::from(num_steps)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use super::CHAINS;

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub(super) fn int8_avx512(num_steps: u32) {
        let (a, b) = (black_box(_mm512_set1_epi8(1)), black_box(_mm512_set1_epi8(1)));
        // Chains whose beginnings are known to be equal could become one.
        let mut chains: [__m512i; CHAINS] = std::array::from_fn(|_| black_box(_mm512_setzero_si512()));
        for _ in 0..num_steps {
            for chain in &mut chains {
                *chain = _mm512_dpbusd_epi32(*chain, a, b);
            }
        }
        black_box(chains);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn bf16_avx512(num_steps: u32) {
        let ones = _mm512_cvtne2ps_pbh(black_box(_mm512_set1_ps(1.0)), black_box(_mm512_set1_ps(1.0)));
        let mut chains: [__m512; CHAINS] = std::array::from_fn(|_| black_box(_mm512_setzero_ps()));
        for _ in 0..num_steps {
            for chain in &mut chains {
                *chain = _mm512_dpbf16_ps(*chain, ones, ones);
            }
        }
        black_box(chains);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn int8_avx2(num_steps: u32) {
        let b = black_box(_mm256_set1_epi8(1));
        let mut chains: [__m256i; CHAINS] = std::array::from_fn(|_| black_box(_mm256_set1_epi8(1)));
        for _ in 0..num_steps {
            for chain in &mut chains {
                // The product depends on the sum, or it would be computed once for all steps.
                *chain = _mm256_add_epi16(*chain, _mm256_maddubs_epi16(*chain, b));
            }
        }
        black_box(chains);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_those_of_the_instructions() {
        for isa in Isa::available() {
            let (int8, bf16) = match isa {
                Isa::Avx512 => (Some(2 * 64 * 12 * 3), Some(2 * 32 * 12 * 3)),
                Isa::Avx2 => (Some(2 * 32 * 12 * 3), None),
                Isa::Portable | Isa::Neon => (None, None),
            };
            assert_eq!((int8_dots(isa, 3), bf16_dots(isa, 3)), (int8, bf16), "{isa}");
        }
    }
}
