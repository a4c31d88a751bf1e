//! Gates of weights that are converted at load: the layer against an f64 reference over the values that the blocks
//! stand for, and those values against the weights.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};

use super::packed_tests::{quantized_values, run, to_bits, wide};
use super::quantize::e4m3_row;
use super::{ActivationForm, LinearSource, PackedLinear, WeightType, reference};
use crate::Isa;
use crate::team::{PinnedPool, RayonTeam, SingleThread, Team};
use crate::testing::{activations, gaussian, nmse};

const TYPES: [WeightType; 4] = [WeightType::Int8, WeightType::Int4, WeightType::Fp8, WeightType::Fp4];
/// Widths that are whole groups of all types, and some that are not.
const SHAPES: [(usize, usize); 7] = [(128, 1), (256, 50), (192, 33), (768, 100), (7, 3), (50, 17), (145, 31)];

/// The value of an e4m3 code by its definition.
fn e4m3(code: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The values that a converted row stands for, those of block `i` with the scale of block `i + shift`.
fn dequantized(weight_type: WeightType, row: &[f32], shift: usize) -> Vec<f64> {
    const E2M1: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    if weight_type == WeightType::Fp8 {
        let (codes, scale) = e4m3_row(row);
        return codes.into_iter().map(|code| e4m3(code) * f64::from(scale) / 256.0).collect();
    }
    let blocks = weight_type.blocks(row);
    let value = |i: usize| {
        let (block, scales) = (&blocks[i / 32], blocks[(i / 32 + shift) % blocks.len()].scales);
        let quant = block.quants[i % 32];
        let quant = match weight_type {
            WeightType::Int8 => f64::from(quant) - 128.0,
            WeightType::Fp4 => E2M1[usize::from(quant & 7)] * if quant & 8 == 0 { 2.0 } else { -2.0 },
            _ => f64::from(quant),
        };
        f64::from(scales[i % 32 / 16]) * quant + f64::from(block.min)
    };
    (0..row.len()).map(value).collect()
}

fn matrix(weights: &[f32], in_features: usize) -> Result<Tensor> {
    Tensor::from_slice(weights, (weights.len() / in_features, in_features), &Device::Cpu)
}

fn pack(weight: &Tensor, weight_type: WeightType, isa: Isa) -> Result<PackedLinear> {
    Ok(PackedLinear::pack_as(&[LinearSource::Dense(weight, None)], weight_type, isa, &SingleThread)?)
}

#[test]
fn agrees_with_the_reference() -> Result<()> {
    for (in_features, out_features) in SHAPES {
        for weights in [gaussian(in_features * out_features, 3), activations(in_features * out_features, 4)] {
            let weight = matrix(&weights, in_features)?;
            let x = activations(11 * in_features, 1);
            for weight_type in TYPES {
                let values: Vec<f64> =
                    weights.chunks(in_features).flat_map(|row| dequantized(weight_type, row, 0)).collect();
                let exact = reference(&wide(&x), &values, in_features);
                let rounded = reference(&quantized_values(&x, in_features), &values, in_features);
                for isa in Isa::available() {
                    let layer = pack(&weight, weight_type, isa)?;
                    let y = wide(&run(&layer, &x, &SingleThread));
                    let name = format!("{weight_type:?} {isa} {in_features}->{out_features}");
                    if layer.form() == ActivationForm::Dense {
                        let distance = nmse(&y, &exact);
                        assert!(distance < 1e-10, "{name}: nmse {distance:e}");
                    } else {
                        let distance = nmse(&y, &rounded);
                        assert!(distance < 1e-9, "{name}: nmse {distance:e} with quantized activations");
                        // Few outputs have no average to speak of.
                        let distance = nmse(&y, &exact);
                        assert!(out_features < 30 || distance < 5e-4, "{name}: nmse {distance:e}");
                    }
                }
            }
        }
    }
    Ok(())
}

/// Squared error over squared weights, for normal values and for values with outliers.
#[test]
fn little_is_lost() {
    for (weight_type, normal_bound, outlier_bound, bits) in [
        (WeightType::Int8, 3.5e-5, 2e-4, 8.5),
        (WeightType::Int4, 1e-2, 5.5e-2, 5.0),
        (WeightType::Fp8, 8e-4, 8e-4, 8.0),
        (WeightType::Fp4, 8e-3, 1.2e-2, 5.0),
    ] {
        for (name, weights, bound) in
            [("normal", gaussian(64 * 768, 5), normal_bound), ("outlier", activations(64 * 768, 6), outlier_bound)]
        {
            let values: Vec<f64> = weights.chunks(768).flat_map(|row| dequantized(weight_type, row, 0)).collect();
            let loss = nmse(&values, &wide(&weights));
            println!("{weight_type:?} {name}: {loss:.2e}");
            assert!(loss < bound, "{weight_type:?} {name}: {loss:e}");
        }
        let layer = pack(&matrix(&gaussian(64 * 768, 5), 768).unwrap(), weight_type, Isa::Portable).unwrap();
        let measured = 8.0 * layer.weight_bytes() as f64 / (64.0 * 768.0);
        assert!((bits..bits + 0.1).contains(&measured), "{weight_type:?}: {measured} bits");
    }
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_nor_on_threads() -> Result<()> {
    let pool = PinnedPool::new(2)?;
    let teams: [&dyn Team; 3] = [&SingleThread, &RayonTeam, &pool];
    for (in_features, out_features) in SHAPES {
        let weight = matrix(&gaussian(in_features * out_features, 7), in_features)?;
        for weight_type in TYPES {
            for isa in Isa::available() {
                let source = [LinearSource::Dense(&weight, None)];
                let layer = PackedLinear::pack_as(&source, weight_type, isa, &pool)?;
                let x = activations(150 * in_features, 13);
                let all = to_bits(&run(&layer, &x, &SingleThread));
                for (start, count) in [(0, 150), (0, 1), (149, 1), (1, 2), (3, 7), (2, 13), (5, 145)] {
                    for team in teams {
                        let part = run(&layer, &x[start * in_features..(start + count) * in_features], team);
                        let whole = &all[start * out_features..(start + count) * out_features];
                        let name = format!("{weight_type:?} {isa} {in_features}->{out_features}");
                        assert!(to_bits(&part) == whole, "{name}: rows {start}+{count} differ");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn every_level_has_the_same_bits_over_blocks() -> Result<()> {
    let weight = matrix(&activations(768 * 50, 7), 768)?;
    let x = activations(5 * 768, 21);
    for weight_type in [WeightType::Int8, WeightType::Int4, WeightType::Fp4] {
        let mut expected = None;
        for isa in Isa::available() {
            let y = to_bits(&run(&pack(&weight, weight_type, isa)?, &x, &SingleThread));
            assert_eq!(*expected.get_or_insert_with(|| y.clone()), y, "{weight_type:?} {isa}");
        }
    }
    Ok(())
}

/// The integer sums reach their largest magnitude without a carry: all weights and activations at their extremes.
#[test]
fn extremes_do_not_overflow() -> Result<()> {
    for sign in [1.0, -1.0] {
        let weight = matrix(&[sign; 2 * 128], 128)?;
        for weight_type in TYPES {
            for isa in Isa::available() {
                let y = run(&pack(&weight, weight_type, isa)?, &[-1.0; 128], &SingleThread);
                assert!(y.iter().all(|y| (y + sign * 128.0).abs() < 0.1), "{weight_type:?} {isa}: {y:?}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_wrong_scale_is_seen() -> Result<()> {
    let weights = activations(64 * 768, 9);
    let weight = matrix(&weights, 768)?;
    let x = activations(3 * 768, 1);
    for weight_type in TYPES {
        let rows = weights.chunks(768);
        // The scale of the next group; of e4m3, whose groups are rows, one row's scale is off by an eighth.
        let shift = if weight_type == WeightType::Int4 { 4 } else { 1 };
        let values: Vec<f64> = if weight_type == WeightType::Fp8 {
            let factor = |at: usize| if at == 0 { 1.125 } else { 1.0 };
            rows.enumerate()
                .flat_map(|(at, row)| dequantized(weight_type, row, 0).into_iter().map(move |v| v * factor(at)))
                .collect()
        } else {
            rows.flat_map(|row| dequantized(weight_type, row, shift)).collect()
        };
        let (bound, x_values) = match weight_type {
            WeightType::Fp8 => (1e-10, wide(&x)),
            _ => (5e-4, quantized_values(&x, 768)),
        };
        let expected = reference(&x_values, &values, 768);
        for isa in Isa::available() {
            let y = wide(&run(&pack(&weight, weight_type, isa)?, &x, &SingleThread));
            assert!(nmse(&y, &expected) > bound, "{weight_type:?} {isa}");
        }
    }
    Ok(())
}

#[test]
fn only_dense_parts_are_converted() -> Result<()> {
    let weight = matrix(&gaussian(32 * 256, 7), 256)?;
    let half = QTensor::quantize(&weight, GgmlDType::F16)?;
    let quantized = QTensor::quantize(&weight, GgmlDType::Q4_0)?;
    let bf16 = weight.to_dtype(DType::BF16)?;
    let bias = matrix(&gaussian(32, 1), 32)?.squeeze(0)?;
    let x = activations(3 * 256, 1);
    for isa in Isa::available() {
        for weight_type in TYPES {
            let parts = [
                LinearSource::Quantized(&half, None),
                LinearSource::Quantized(&quantized, Some(&bias)),
                LinearSource::Dense(&bf16, None),
            ];
            let layer = PackedLinear::pack_as(&parts, weight_type, isa, &SingleThread)?;
            assert_eq!(layer.num_converted(), 2);
            let y = run(&layer, &x, &SingleThread);
            let stored = PackedLinear::pack(&parts, isa, &SingleThread)?;
            assert_eq!(stored.num_converted(), 0);
            let stored = run(&stored, &x, &SingleThread);
            for (y, stored) in y.chunks_exact(96).zip(stored.chunks_exact(96)) {
                assert_ne!(to_bits(&y[..32]), to_bits(&stored[..32]));
                assert_eq!(to_bits(&y[32..64]), to_bits(&stored[32..64]));
                assert_ne!(to_bits(&y[64..]), to_bits(&stored[64..]));
            }
        }
    }
    Ok(())
}

#[test]
fn what_is_not_finite_shows_and_what_is_tiny_stays() -> Result<()> {
    let x = activations(256, 1);
    for weight_type in TYPES {
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut weights = gaussian(20 * 256, 2);
                weights[5 * 256 + 100] = bad;
                let y = run(&pack(&matrix(&weights, 256)?, weight_type, isa)?, &x, &SingleThread);
                assert!(!y[5].is_finite(), "{weight_type:?} {isa}");
                assert!(y[..5].iter().chain(&y[6..]).all(|y| y.is_finite()), "{weight_type:?} {isa}");
            }
            for (value, bound) in [(0.0, 0.0), (f32::from_bits(1), 0.0), (1e-5, 1e-4)] {
                let y = run(&pack(&matrix(&[value; 2 * 256], 256)?, weight_type, isa)?, &[1.0; 256], &SingleThread);
                let distance = (y[0] - 256.0 * value).abs();
                assert!(distance <= bound + 1e-30, "{weight_type:?} {isa} {value:e}: {distance:e}");
            }
        }
    }
    Ok(())
}
