//! One vocabulary of 16 f32 lanes for the CPU kernels: written once, compiled for each instruction set.
//!
//! A kernel is generic over [`Simd`] and is entered through [`dispatch`], which compiles it with the features of the
//! set. Reductions have one fixed order, so AVX2 and AVX-512 give the same bits; plain Rust has no fused multiply-add
//! and differs in the last place.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(crate) mod encode;
mod portable;
#[cfg(test)]
mod tests;

use crate::isa::Isa;

/// Lanes of a vector on every instruction set.
pub(crate) const LANES: usize = 16;

/// Code that runs with the features of one instruction set. Mark `run` and all it calls `#[inline(always)]`.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// Runs a kernel on an instruction set; on one that this machine lacks, in plain Rust.
pub(crate) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => match avx512::Avx512::detect() {
            Some(s) => s.vectorize(kernel),
            None => portable::Portable.vectorize(kernel),
        },
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => match avx2::Avx2::detect() {
            Some(s) => s.vectorize(kernel),
            None => portable::Portable.vectorize(kernel),
        },
        _ => portable::Portable.vectorize(kernel),
    }
}

/// The vocabulary. A value of the implementing type is proof that the machine has the instruction set.
pub(crate) trait Simd: Copy + Send + Sync {
    /// 16 f32 lanes.
    type F: Copy;
    /// 32 registers of 16 lanes: register tiles may hold 24 sums.
    const WIDE: bool;

    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;
    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; LANES]) -> Self::F;
    fn store(self, to: &mut [f32; LANES], x: Self::F);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// Lanes of `x` whose bit in `mask` is set, `other` elsewhere.
    fn select(self, mask: u16, x: Self::F, other: Self::F) -> Self::F;
    /// `x` where `a >= b`, zero elsewhere and where either is not a number.
    fn zero_unless_ge(self, a: Self::F, b: Self::F, x: Self::F) -> Self::F;
    /// Adds the low bits of `n`, as an integer, to the exponent of `x`.
    fn add_to_exponent(self, x: Self::F, n: Self::F) -> Self::F;
    /// Halves are folded: lanes 8 apart, then 4, 2 and 1.
    fn reduce_add(self, x: Self::F) -> f32;
    /// Same order as [`Simd::reduce_add`].
    fn reduce_max(self, x: Self::F) -> f32;
    /// Widens 16 IEEE halves.
    fn load_f16(self, x: &[u8; 32]) -> Self::F;
    /// Widens 16 bfloat16.
    fn load_bf16(self, x: &[u8; 32]) -> Self::F;
    /// Widens 16 e4m3 values, each times 2^-8.
    fn load_e4m3(self, x: &[u8; 16]) -> Self::F;
    /// Widens 32 e2m1 values, each times 2: the low halves of the bytes, then the high halves.
    fn load_e2m1(self, x: &[u8; 16]) -> (Self::F, Self::F);

    /// Asks for memory that is read soon.
    #[inline(always)]
    fn prefetch(self, _bytes: &[u8]) {}

    #[inline(always)]
    fn zero(self) -> Self::F {
        self.splat(0.0)
    }

    /// `e^x` with a relative error below 2e-7; 0 below -87 and for NaN, `e^88` above 88.
    ///
    /// `x = n ln 2 + f` with `|f| <= ln 2 / 2`; `e^f = 1 + f + f^2 P(f)`, P by interpolation at Chebyshev points.
    #[inline(always)]
    fn exp(self, x: Self::F) -> Self::F {
        const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: the sum holds the rounded integer in its low bits
        let low = self.splat(-87.0);
        let t = self.min(self.max(x, low), self.splat(88.0));
        let shifted = self.fma(t, self.splat(std::f32::consts::LOG2_E), self.splat(ROUND));
        let n = self.sub(shifted, self.splat(ROUND));
        let f = self.fma(n, self.splat(-0.693_145_75), t);
        let f = self.fma(n, self.splat(-1.428_606_8e-6), f);
        let mut p = self.splat(1.392_621_3e-3);
        p = self.fma(p, f, self.splat(8.363_203e-3));
        p = self.fma(p, f, self.splat(4.166_655_4e-2));
        p = self.fma(p, f, self.splat(0.166_665_77));
        p = self.fma(p, f, self.splat(0.5));
        p = self.fma(self.mul(p, f), f, f);
        p = self.add(p, self.splat(1.0));
        self.zero_unless_ge(x, low, self.add_to_exponent(p, shifted))
    }
}
