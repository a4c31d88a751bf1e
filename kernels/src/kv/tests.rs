use candle_core::Result;

use super::format::{Bf16, F16, F32, Format, Fp4, Fp8};
use super::{BLOCK_SIZE, KvBuffer, KvShape, KvType};
use crate::isa::Isa;
use crate::simd::{Kernel, LANES, Simd, dispatch};
use crate::team::SingleThread;
use crate::testing::{Threads, activations, gaussian};

const SHAPE: KvShape = KvShape { num_layers: 2, num_blocks: 6, num_kv_heads: 3, head_dim: 64 };

/// Keys and values of one position and head as attention reads them.
struct Read<'a> {
    kv: &'a KvBuffer,
    layer: usize,
    slot: usize,
    head: usize,
}

impl Kernel for Read<'_> {
    type Output = (Vec<f32>, Vec<f32>);

    fn run<S: Simd>(self, s: S) -> Self::Output {
        match self.kv.kv_type() {
            KvType::F32 => self.read::<S, F32>(s),
            KvType::F16 => self.read::<S, F16>(s),
            KvType::Bf16 => self.read::<S, Bf16>(s),
            KvType::Fp8 => self.read::<S, Fp8>(s),
            KvType::Fp4 => self.read::<S, Fp4>(s),
        }
    }
}

impl Read<'_> {
    fn read<S: Simd, F: Format>(&self, s: S) -> (Vec<f32>, Vec<f32>) {
        let record = self.kv.record(self.layer, self.slot / BLOCK_SIZE, self.head);
        let position = self.slot % BLOCK_SIZE;
        let lanes = |x: S::F| {
            let mut out = [0.0; LANES];
            s.store(&mut out, x);
            out
        };
        let (mut k, mut v) = (Vec::new(), Vec::new());
        let (k_scale, v_scale) =
            (lanes(F::key_scales(s, &record))[position], lanes(F::value_scales(s, &record))[position]);
        let pairs = self.kv.layout().padded_dim / 32;
        for pair in 0..16 * pairs {
            let (even, odd) = F::keys(s, &record, pair, F::key_scale(s, &record, pair / 8));
            k.extend([lanes(even)[position] * k_scale, lanes(odd)[position] * k_scale]);
        }
        for pair in 0..pairs {
            let (low, high) = F::values(s, &record, position, pair, pairs);
            v.extend([lanes(low), lanes(high)].as_flattened().iter().map(|x| x * v_scale));
        }
        let dim = self.kv.shape().head_dim;
        assert!(k[dim..].iter().chain(&v[dim..]).all(|x| *x == 0.0), "padding holds values");
        k.truncate(dim);
        v.truncate(dim);
        (k, v)
    }
}

/// Relative RMS errors of keys and of values after a round trip.
fn errors(shape: KvShape, kv_type: KvType, rows: &[f32], isa: Isa) -> Result<(f64, f64)> {
    let row = shape.num_kv_heads * shape.head_dim;
    let slots: Vec<u32> =
        (0..(rows.len() / row) as u32).map(|i| (i * 37 + 5) % (shape.num_blocks * BLOCK_SIZE) as u32).collect();
    let reversed: Vec<f32> = rows.iter().rev().copied().collect();
    let mut kv = KvBuffer::new(shape, kv_type)?;
    kv.store(1, rows, &reversed, &slots, isa, &Threads(2))?;
    let (mut k_error, mut v_error, mut total) = (0.0, 0.0, 0.0);
    for (at, slot) in slots.iter().enumerate() {
        for head in 0..shape.num_kv_heads {
            let (k, v) = dispatch(isa, Read { kv: &kv, layer: 1, slot: *slot as usize, head });
            let start = at * row + head * shape.head_dim;
            for d in 0..shape.head_dim {
                k_error += f64::from(k[d] - rows[start + d]).powi(2);
                v_error += f64::from(v[d] - reversed[start + d]).powi(2);
                total += f64::from(rows[start + d]).powi(2);
            }
        }
    }
    Ok(((k_error / total).sqrt(), (v_error / total).sqrt()))
}

#[test]
fn a_round_trip_stays_within_the_bound_of_each_type() -> Result<()> {
    for dim in [64, 80, 128, 16] {
        let shape = KvShape { head_dim: dim, ..SHAPE };
        let len = 90 * 3 * dim;
        for (name, rows) in [("gaussian", gaussian(len, 1)), ("outliers", activations(len, 2))] {
            let bounds = [
                (KvType::F32, 0.0),
                (KvType::F16, 3e-4),
                (KvType::Bf16, 2.2e-3),
                (KvType::Fp8, 3e-2),
                (KvType::Fp4, 0.12),
            ];
            for (kv_type, bound) in bounds {
                for isa in Isa::available() {
                    let (k, v) = errors(shape, kv_type, &rows, isa)?;
                    println!("{dim} {name} {kv_type:?} {isa:?}: {k:.2e} {v:.2e}");
                    assert!(k <= bound && v <= bound, "{dim} {name} {kv_type:?} {isa:?}: {k:e}, {v:e}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn compressed_types_save_what_they_promise() -> Result<()> {
    for dim in [64, 128, 256] {
        let bytes =
            |kv_type| KvBuffer::new(KvShape { head_dim: dim, ..SHAPE }, kv_type).map(|kv| kv.bytes_per_token() as f64);
        let half = bytes(KvType::F16)?;
        assert_eq!(half, (2 * 3 * 2 * 2 * dim) as f64);
        assert!(bytes(KvType::Fp8)? <= 0.55 * half && bytes(KvType::Fp4)? <= 0.32 * half);
    }
    Ok(())
}

#[test]
fn a_copied_block_holds_the_same_and_the_source_is_free_again() -> Result<()> {
    let row = 3 * 64;
    for kv_type in KvType::ALL {
        let mut kv = KvBuffer::new(SHAPE, kv_type)?;
        let (rows, others) = (activations(16 * row, 1), activations(16 * row, 2));
        let slots: Vec<u32> = (16..32).collect();
        kv.store(1, &rows, &others, &slots, Isa::detect(), &SingleThread)?;
        let read = |kv: &KvBuffer, slot| dispatch(Isa::detect(), Read { kv, layer: 1, slot, head: 2 });
        let before = read(&kv, 21);
        kv.copy_block(1, 4)?;
        kv.store(1, &others, &rows, &slots, Isa::detect(), &SingleThread)?;
        assert_eq!(read(&kv, 4 * 16 + 5), before);
        assert_ne!(read(&kv, 21), before);
        assert!(kv.copy_block(0, 6).is_err() && kv.copy_block(6, 0).is_err());
    }
    Ok(())
}

#[test]
fn a_slot_outside_the_pool_is_an_error_and_padding_is_skipped() -> Result<()> {
    let mut kv = KvBuffer::new(SHAPE, KvType::F16)?;
    let rows = activations(2 * 192, 1);
    assert!(kv.store(0, &rows, &rows, &[0, 96], Isa::detect(), &SingleThread).is_err());
    assert!(kv.store(2, &rows, &rows, &[0, 1], Isa::detect(), &SingleThread).is_err());
    assert!(kv.store(0, &rows, &rows, &[0], Isa::detect(), &SingleThread).is_err());
    kv.store(0, &rows, &rows, &[u32::MAX, 95], Isa::detect(), &SingleThread)?;
    assert!(KvBuffer::new(KvShape { num_blocks: usize::MAX, ..SHAPE }, KvType::Fp4).is_err());
    Ok(())
}

#[test]
fn a_wrong_scale_is_seen() -> Result<()> {
    for (kv_type, scale_at) in [(KvType::Fp8, 0), (KvType::Fp4, 1)] {
        let rows = gaussian(192, 1);
        let mut kv = KvBuffer::new(SHAPE, kv_type)?;
        kv.store(0, &rows, &rows, &[0], Isa::detect(), &SingleThread)?;
        let read = |kv: &KvBuffer| dispatch(Isa::detect(), Read { kv, layer: 0, slot: 0, head: 0 }).0;
        let before = read(&kv);
        let at = 2 * kv.layout().data + 2 * 16 * scale_at;
        kv.records()[at] ^= 1;
        let after = read(&kv);
        let group = 16 * scale_at;
        let changed = after[group] / before[group] - 1.0;
        assert!(changed.abs() > 1e-3 && changed.abs() < 1e-2, "{kv_type:?}: the last bit of a scale changed {changed}");
    }
    Ok(())
}
