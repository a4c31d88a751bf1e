//! Gates of the packed layers: distance to an f64 reference, bitwise equality over batches, threads and levels, and
//! faults that these must notice.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Result, Tensor};

use super::{ActivationForm, Activations, LinearSource, PackedLinear, reference};
use crate::Isa;
use crate::team::{PinnedPool, RayonTeam, SingleThread, Team};
use crate::testing::{activations, nmse, tensor, values};

const SHAPES: [(usize, usize); 5] = [(32, 1), (64, 50), (192, 33), (256, 160), (768, 100)];
const BLOCK_TYPES: [GgmlDType; 8] = [
    GgmlDType::Q4_0,
    GgmlDType::Q4_1,
    GgmlDType::Q5_0,
    GgmlDType::Q5_1,
    GgmlDType::Q8_0,
    GgmlDType::Q4K,
    GgmlDType::Q5K,
    GgmlDType::Q6K,
];

enum Weight {
    Quantized(Box<QTensor>),
    Dense(Tensor),
}

struct Case {
    name: String,
    weight: Weight,
    dequantized: Tensor,
}

impl Case {
    fn source<'a>(&'a self, bias: Option<&'a Tensor>) -> LinearSource<'a> {
        match &self.weight {
            Weight::Quantized(weight) => LinearSource::Quantized(weight, bias),
            Weight::Dense(weight) => LinearSource::Dense(weight, bias),
        }
    }
}

fn cases(in_features: usize, out_features: usize) -> Result<Vec<Case>> {
    let weight = tensor(&[out_features, in_features], 9)?;
    let mut cases = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let weight = weight.to_dtype(dtype)?;
        let dequantized = weight.to_dtype(DType::F32)?;
        cases.push(Case { name: format!("{dtype:?}"), weight: Weight::Dense(weight), dequantized });
    }
    let file_types = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16];
    for dtype in file_types.into_iter().chain(BLOCK_TYPES) {
        if in_features.is_multiple_of(dtype.block_size()) {
            let quantized = QTensor::quantize(&weight, dtype)?;
            let dequantized = quantized.dequantize(&Device::Cpu)?;
            cases.push(Case {
                name: format!("gguf {dtype:?}"),
                weight: Weight::Quantized(Box::new(quantized)),
                dequantized,
            });
        }
    }
    Ok(cases)
}

pub(super) fn run(layer: &PackedLinear, x: &[f32], team: &dyn Team) -> Vec<f32> {
    let mut workspace = Activations::default();
    workspace.load(x, layer.in_features(), layer.form(), layer.isa(), team);
    let mut y = vec![f32::NAN; workspace.num_rows() * layer.out_features()];
    layer.forward(&workspace, &mut y, team);
    y
}

pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

pub(super) fn to_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The values that the 8-bit blocks of `x` stand for.
pub(super) fn quantized_values(x: &[f32], in_features: usize) -> Vec<f64> {
    let mut workspace = Activations::default();
    workspace.load(x, in_features, ActivationForm::Blocks, Isa::Portable, &SingleThread);
    let row = |row| {
        let blocks = workspace.block_row(row).iter();
        let values = blocks.flat_map(|b| b.quants.map(|quant| f64::from(quant) * f64::from(b.scale)));
        values.take(in_features).collect::<Vec<_>>()
    };
    (0..workspace.num_rows()).flat_map(row).collect()
}

#[test]
fn agrees_with_the_reference() -> Result<()> {
    for (in_features, out_features) in SHAPES {
        for case in cases(in_features, out_features)? {
            let weight = values(&case.dequantized);
            for isa in Isa::available() {
                let layer = PackedLinear::pack(&[case.source(None)], isa, &SingleThread)?;
                assert_eq!((layer.in_features(), layer.out_features()), (in_features, out_features));
                for seed in 1..4 {
                    let x = activations(11 * in_features, seed);
                    let y = wide(&run(&layer, &x, &SingleThread));
                    let name = format!("{} {isa} {in_features}->{out_features}", case.name);
                    let distance = nmse(&y, &reference(&wide(&x), &weight, in_features));
                    let bound = if layer.form() == ActivationForm::Dense { 1e-10 } else { 5e-4 };
                    // One output of a few features has no average to speak of.
                    assert!(out_features == 1 || distance < bound, "{name}: nmse {distance:e}");
                    if layer.form() == ActivationForm::Blocks {
                        let expected = reference(&quantized_values(&x, in_features), &weight, in_features);
                        let distance = nmse(&y, &expected);
                        assert!(distance < 1e-9, "{name}: nmse {distance:e} with quantized activations");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn any_width_of_dense_weights_fits() -> Result<()> {
    for (in_features, out_features) in [(1, 1), (7, 3), (33, 17), (100, 31)] {
        let weight = tensor(&[out_features, in_features], 5)?;
        let x = activations(9 * in_features, 2);
        let expected = reference(&wide(&x), &values(&weight), in_features);
        for isa in Isa::available() {
            let layer = PackedLinear::pack(&[LinearSource::Dense(&weight, None)], isa, &SingleThread)?;
            assert!(nmse(&wide(&run(&layer, &x, &SingleThread)), &expected) < 1e-10);
        }
    }
    Ok(())
}

#[test]
fn a_row_does_not_depend_on_its_neighbours_nor_on_threads() -> Result<()> {
    let pool = PinnedPool::new(2)?;
    let teams: [&dyn Team; 3] = [&SingleThread, &RayonTeam, &pool];
    for (in_features, out_features) in SHAPES {
        for case in cases(in_features, out_features)? {
            for isa in Isa::available() {
                let layer = PackedLinear::pack(&[case.source(None)], isa, &pool)?;
                let num_rows = if isa == Isa::Portable { 20 } else { 150 };
                let x = activations(num_rows * in_features, 13);
                let all = to_bits(&run(&layer, &x, &SingleThread));
                let parts = [(0, num_rows), (0, 1), (num_rows - 1, 1), (1, 2), (3, 7), (2, 13), (5, num_rows - 5)];
                for (start, count) in parts {
                    for team in teams {
                        let part = run(&layer, &x[start * in_features..(start + count) * in_features], team);
                        let whole = &all[start * out_features..(start + count) * out_features];
                        let name = format!("{} {isa} {in_features}->{out_features}", case.name);
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
    for (in_features, out_features) in SHAPES {
        for case in cases(in_features, out_features)? {
            let x = activations(5 * in_features, 21);
            let mut expected = None;
            for isa in Isa::available() {
                let layer = PackedLinear::pack(&[case.source(None)], isa, &SingleThread)?;
                if layer.form() == ActivationForm::Blocks {
                    let y = to_bits(&run(&layer, &x, &SingleThread));
                    assert_eq!(*expected.get_or_insert_with(|| y.clone()), y, "{} {isa}", case.name);
                }
            }
        }
    }
    Ok(())
}

#[test]
fn stacked_parts_of_several_types_are_the_parts_side_by_side() -> Result<()> {
    let (in_features, num_rows) = (256, 9);
    let x = activations(num_rows * in_features, 3);
    let bias = tensor(&[50], 77)?;
    let parts = cases(in_features, 50)?;
    for isa in Isa::available() {
        for pair in parts.windows(2) {
            let stacked = PackedLinear::pack(&[pair[0].source(Some(&bias)), pair[1].source(None)], isa, &SingleThread)?;
            let y = run(&stacked, &x, &SingleThread);
            let first = run(&PackedLinear::pack(&[pair[0].source(None)], isa, &SingleThread)?, &x, &SingleThread);
            let second = run(&PackedLinear::pack(&[pair[1].source(None)], isa, &SingleThread)?, &x, &SingleThread);
            let bias = bias.to_vec1::<f32>()?;
            for (row, y) in y.chunks_exact(100).enumerate() {
                let biased: Vec<f32> = first[50 * row..][..50].iter().zip(&bias).map(|(y, b)| y + b).collect();
                assert_eq!(to_bits(&y[..50]), to_bits(&biased));
                assert_eq!(to_bits(&y[50..]), to_bits(&second[50 * row..][..50]));
            }
        }
    }
    Ok(())
}

#[test]
fn a_shifted_scale_is_seen() -> Result<()> {
    let in_features = 192;
    let weight = tensor(&[64, in_features], 9)?;
    let x = activations(3 * in_features, 1);
    for (dtype, scale_bytes) in [(GgmlDType::Q4_0, 2), (GgmlDType::Q4_1, 2), (GgmlDType::Q8_0, 2)] {
        let quantized = QTensor::quantize(&weight, dtype)?;
        let expected = reference(&wide(&x), &values(&quantized.dequantize(&Device::Cpu)?), in_features);
        let mut data = quantized.data()?.into_owned();
        let size = dtype.type_size();
        let first_scale = data[..scale_bytes].to_vec();
        for block in 0..data.len() / size - 1 {
            data.copy_within((block + 1) * size..(block + 1) * size + scale_bytes, block * size);
        }
        let last = data.len() - size;
        data[last..last + scale_bytes].copy_from_slice(&first_scale);
        let storage = candle_core::quantized::QStorage::from_data(data.into(), &Device::Cpu, dtype)?;
        let shifted = QTensor::new(storage, (64, in_features))?;
        for isa in Isa::available() {
            let layer = PackedLinear::pack(&[LinearSource::Quantized(&shifted, None)], isa, &SingleThread)?;
            assert!(nmse(&wide(&run(&layer, &x, &SingleThread)), &expected) > 5e-4, "{dtype:?} {isa}");
        }
    }
    Ok(())
}

#[test]
fn what_is_not_finite_shows() -> Result<()> {
    let case = &cases(64, 20)?[6];
    for isa in Isa::available() {
        let layer = PackedLinear::pack(&[case.source(None)], isa, &SingleThread)?;
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = activations(3 * 64, 1);
            x[64 + 40] = bad;
            let y = run(&layer, &x, &SingleThread);
            assert!(y[20..40].iter().all(|y| !y.is_finite()));
            assert!(y[..20].iter().chain(&y[40..]).all(|y| y.is_finite()));
        }
        let tiny = vec![f32::from_bits(1); 64];
        assert!(run(&layer, &tiny, &SingleThread).iter().all(|&y| y == 0.0));
    }
    Ok(())
}

#[test]
fn wrong_parts_are_refused() -> Result<()> {
    let (a, b) = (tensor(&[4, 64], 1)?, tensor(&[4, 32], 1)?);
    let pack = |parts: &[LinearSource<'_>]| PackedLinear::pack(parts, Isa::Portable, &SingleThread);
    let error = pack(&[LinearSource::Dense(&a, None), LinearSource::Dense(&b, None)]).unwrap_err().to_string();
    assert_eq!(error, "part 1 of a packed layer is [4, 32], expected [_, 64] like the first");
    let error = pack(&[LinearSource::Dense(&a, Some(&a))]).unwrap_err().to_string();
    assert_eq!(error, "part 0 of a packed layer is [4, 64], expected a bias of [4]");
    let whole = a.to_dtype(DType::U8)?;
    let error = pack(&[LinearSource::Dense(&whole, None)]).unwrap_err().to_string();
    assert!(error.contains("cannot be packed"), "{error}");
    Ok(())
}
