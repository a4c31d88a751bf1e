use super::{Kernel, LANES, Simd, dispatch, encode};
use crate::isa::Isa;

struct Exp<'a>(&'a mut [[f32; LANES]]);

impl Kernel for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for x in self.0 {
            let y = s.exp(s.load(x));
            s.store(x, y);
        }
    }
}

#[test]
fn exp_is_within_its_bound_on_every_isa() {
    for isa in Isa::available() {
        let x: Vec<[f32; LANES]> =
            (0..100_000).map(|i| std::array::from_fn(|l| -87.0 + (i * LANES + l) as f32 * (175.0 / 1.6e6))).collect();
        let mut y = x.clone();
        dispatch(isa, Exp(&mut y));
        let mut worst = 0.0f64;
        for (x, y) in x.as_flattened().iter().zip(y.as_flattened()) {
            worst = worst.max((f64::from(*y) / f64::from(*x).exp() - 1.0).abs());
        }
        assert!(worst <= 2e-7, "{isa:?}: {worst:e}");
        let mut edge = [[0.0; LANES]];
        edge[0][..5].copy_from_slice(&[0.0, -88.0, f32::NEG_INFINITY, f32::NAN, 1e30]);
        dispatch(isa, Exp(&mut edge));
        assert_eq!(edge[0][..4], [1.0, 0.0, 0.0, 0.0]);
        assert!(edge[0][4] > 1e38);
    }
}

struct Widen {
    codes: [u8; 32],
}

impl Kernel for Widen {
    type Output = [[f32; LANES]; 5];

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Self::Output {
        let mut out = [[0.0; LANES]; 5];
        let half: &[u8; 16] = self.codes.first_chunk().unwrap();
        let (low, high) = s.load_e2m1(half);
        for (to, x) in
            out.iter_mut().zip([s.load_f16(&self.codes), s.load_bf16(&self.codes), s.load_e4m3(half), low, high])
        {
            s.store(to, x);
        }
        out
    }
}

fn e4m3_value(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude =
        if exponent == 0 { mantissa / 8.0 * 2f64.powi(-6) } else { (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7) };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[test]
fn every_code_is_widened_exactly_on_every_isa() {
    for isa in Isa::available() {
        for first in (0..=255u8).step_by(16) {
            let codes: [u8; 32] = std::array::from_fn(|i| first.wrapping_add(i as u8 % 16));
            let wide = dispatch(isa, Widen { codes });
            for i in 0..16 {
                assert_eq!(f64::from(wide[2][i]) * 256.0, e4m3_value(codes[i]), "{isa:?}: e4m3 {:#x}", codes[i]);
                assert_eq!(wide[3][i], super::portable::E2M1[usize::from(codes[i] & 15)]);
                assert_eq!(wide[4][i], super::portable::E2M1[usize::from(codes[i] >> 4)]);
            }
        }
        for value in [0.0f32, -0.5, 1.0, 65504.0, 6e-8, -3e-5, 0.333_251_95] {
            let codes: [u8; 32] = std::array::from_fn(|i| encode::f16(value).to_ne_bytes()[i % 2]);
            let wide = dispatch(isa, Widen { codes })[0][7];
            assert!((wide - value).abs() <= 3e-8, "{isa:?}: f16 {value} became {wide}");
        }
    }
}

#[test]
fn narrowing_rounds_to_the_nearest_code() {
    for code in (0..=0xffu8).filter(|code| code & 0x7f != 0x7f) {
        let value = e4m3_value(code) / 256.0;
        assert_eq!(encode::e4m3(value as f32), code);
        if code & 0x7f < 0x7e {
            let next = e4m3_value(code + 1) / 256.0;
            assert_eq!(encode::e4m3((value + 0.49 * (next - value)) as f32), code);
            assert_eq!(encode::e4m3((value + 0.51 * (next - value)) as f32), code + 1);
        }
    }
    for (value, code) in [(0.4, 0), (0.6, 1), (2.6, 3), (-4.9, 12), (-5.1, 13), (9.9, 6), (1e9, 7), (f32::NAN, 0)] {
        assert_eq!(encode::e2m1(value) & if value.is_nan() { 7 } else { 15 }, code, "{value}");
    }
    assert_eq!(encode::f16(1e6), 0x7bff);
    assert_eq!(encode::f16(f32::NEG_INFINITY), 0xfbff);
    assert_eq!(encode::f16(1.0 + 1.0 / 2048.0), 0x3c00);
    assert_eq!(encode::f16(1.0 + 3.0 / 2048.0), 0x3c02);
    assert_eq!(encode::bf16(1.0 + 1.0 / 256.0), 0x3f80);
    assert_eq!(encode::bf16_above(1.001), 0x3f81);
    assert!(encode::f16(f32::NAN) > 0x7c00 && encode::bf16(f32::NAN) == 0x7fc0);
}
