//! A tile widened to f32 in memory, for prompts over a type that takes long to widen.

use std::marker::PhantomData;

use super::tile::TILE_BLOCKS;
use crate::kv::Record;
use crate::kv::format::Format;
use crate::simd::{Kernel, LANES, Simd};

/// Widens a tile to the layout of f32 records, which hold exactly what panels would widen in registers.
pub(super) struct Expand<'a, 'b, F> {
    pub records: &'a [Record<'b>; TILE_BLOCKS],
    /// For each block its keys, then its values: `2 * 16 * D` floats each.
    pub to: &'a mut [f32],
    pub format: PhantomData<F>,
}

impl<F: Format> Kernel for Expand<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let len = self.to.len() / TILE_BLOCKS;
        let pairs = len / 2 / LANES / (2 * LANES);
        for (record, to) in self.records.iter().zip(self.to.chunks_exact_mut(len)) {
            let (k, v) = to.split_at_mut(len / 2);
            for (pair, to) in k.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let (even, odd) = F::keys(s, record, pair, F::key_scale(s, record, pair / 8));
                s.store(&mut to[0], even);
                s.store(&mut to[1], odd);
            }
            for (at, to) in v.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let (low, high) = F::values(s, record, at / pairs, at % pairs, pairs);
                s.store(&mut to[0], low);
                s.store(&mut to[1], high);
            }
        }
    }
}

/// The records that [`Expand`] wrote.
#[inline(always)]
pub(super) fn expanded(floats: &[f32]) -> [Record<'_>; TILE_BLOCKS] {
    let len = floats.len() / TILE_BLOCKS;
    let record = |b: usize| {
        let (k, v) = floats[b * len..(b + 1) * len].split_at(len / 2);
        Record { k: bytemuck::cast_slice(k), v: bytemuck::cast_slice(v), k_scales: &[], v_scales: &[] }
    };
    [record(0), record(1), record(2), record(3)]
}
