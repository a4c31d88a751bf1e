//! Writing keys and values into the pool.
#![allow(unsafe_code, reason = "threads write different blocks of the pool")]

use candle_core::{Result, bail};

use crate::isa::Isa;
use crate::shared::Shared;
use crate::simd::{Kernel, Simd, dispatch, encode};
use crate::team::Team;

use super::{BLOCK_SIZE, KvBuffer, KvType, Layout};

/// One record for writing.
struct RecordMut<'a> {
    k: &'a mut [u8],
    v: &'a mut [u8],
    k_scales: &'a mut [u8],
    v_scales: &'a mut [u8],
}

/// Records of one layer that several threads write, each its own blocks.
pub(crate) struct LayerWriter<'a> {
    records: Shared<'a, u8>,
    num_kv_heads: usize,
    head_dim: usize,
    kv_type: KvType,
    layout: Layout,
}

impl KvBuffer {
    /// Converts rows and writes each to its slot (`block * 16 + position in the block`) of a layer.
    ///
    /// A slot of `u32::MAX` is padding and is skipped. Shapes: `k` and `v [slots.len(), num_kv_heads, head_dim]`.
    /// Errors: lengths that do not fit, a layer or slot outside the pool.
    pub fn store(
        &mut self,
        layer: usize,
        k: &[f32],
        v: &[f32],
        slots: &[u32],
        isa: Isa,
        team: &dyn Team,
    ) -> Result<()> {
        let row = self.shape.num_kv_heads * self.shape.head_dim;
        if k.len() != slots.len() * row || v.len() != k.len() {
            bail!("{} keys and {} values for {} slots of {row}", k.len(), v.len(), slots.len());
        }
        let writer = self.layer_writer(layer, slots)?;
        let threads = team.num_threads();
        let work = |thread: usize| dispatch(isa, StoreRows { writer: &writer, k, v, slots, part: (thread, threads) });
        if slots.len() < 8 * threads {
            dispatch(isa, StoreRows { writer: &writer, k, v, slots, part: (0, 1) });
        } else {
            team.run(&work);
        }
        Ok(())
    }

    /// Checks slots once for all rows that will be written.
    pub(crate) fn layer_writer(&mut self, layer: usize, slots: &[u32]) -> Result<LayerWriter<'_>> {
        let super::KvShape { num_layers, num_blocks, num_kv_heads, head_dim } = self.shape;
        let num_slots = num_blocks * BLOCK_SIZE;
        if let Some(slot) = slots.iter().find(|slot| **slot as usize >= num_slots && **slot != u32::MAX) {
            bail!("slot {slot} is outside a pool of {num_slots}");
        }
        if layer >= num_layers {
            bail!("layer {layer} is outside a pool of {num_layers}");
        }
        let (kv_type, layout) = (self.kv_type, self.layout);
        let len = num_blocks * num_kv_heads * layout.record;
        let records = Shared::new(&mut self.records()[layer * len..][..len]);
        Ok(LayerWriter { records, num_kv_heads, head_dim, kv_type, layout })
    }
}

/// Rows whose block belongs to thread `part.0` of `part.1`.
struct StoreRows<'a> {
    writer: &'a LayerWriter<'a>,
    k: &'a [f32],
    v: &'a [f32],
    slots: &'a [u32],
    part: (usize, usize),
}

impl Kernel for StoreRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _s: S) {
        let dim = self.writer.head_dim;
        let row = self.writer.num_kv_heads * dim;
        for (at, &slot) in self.slots.iter().enumerate() {
            if slot != u32::MAX && owner(slot, self.part.1) == self.part.0 {
                let (k, v) = (&self.k[at * row..(at + 1) * row], &self.v[at * row..(at + 1) * row]);
                for (head, (k, v)) in k.chunks_exact(dim).zip(v.chunks_exact(dim)).enumerate() {
                    // SAFETY: threads own different blocks.
                    unsafe { self.writer.write(slot, head, k, v) };
                }
            }
        }
    }
}

/// The one of `threads` threads that writes a slot: the same for all slots of a block. Padding goes to the first.
#[inline(always)]
pub(crate) fn owner(slot: u32, threads: usize) -> usize {
    if slot == u32::MAX { 0 } else { slot as usize / BLOCK_SIZE % threads }
}

impl LayerWriter<'_> {
    pub(crate) fn num_kv_heads(&self) -> usize {
        self.num_kv_heads
    }

    /// Writes one kv head of one position.
    ///
    /// # Safety
    /// No other thread writes to the slot's block at the same time.
    #[inline(always)]
    pub(crate) unsafe fn write(&self, slot: u32, head: usize, k: &[f32], v: &[f32]) {
        let (block, position) = (slot as usize / BLOCK_SIZE, slot as usize % BLOCK_SIZE);
        let Layout { data, scales, record, .. } = self.layout;
        // SAFETY: the block belongs to the caller.
        let bytes = unsafe { self.records.part((block * self.num_kv_heads + head) * record, record) };
        let (k_data, rest) = bytes.split_at_mut(data);
        let (v_data, rest) = rest.split_at_mut(data);
        let (k_scales, rest) = rest.split_at_mut(scales);
        let record = RecordMut { k: k_data, v: v_data, k_scales, v_scales: &mut rest[..scales] };
        match self.kv_type {
            KvType::F32 => {
                let to = (bytemuck::cast_slice_mut(record.k), bytemuck::cast_slice_mut(record.v));
                plain(to, position, (k, v), |x: f32| x);
            }
            KvType::F16 | KvType::Bf16 => {
                let to: (&mut [u16], &mut [u16]) =
                    (bytemuck::cast_slice_mut(record.k), bytemuck::cast_slice_mut(record.v));
                if self.kv_type == KvType::F16 {
                    plain(to, position, (k, v), encode::f16);
                } else {
                    plain(to, position, (k, v), encode::bf16);
                }
            }
            KvType::Fp8 => fp8(record, position, k, v),
            KvType::Fp4 => fp4(record, position, k, v),
        }
    }
}

/// 16 values of a row from dimension `16 group` on; zeros beyond its end.
#[inline(always)]
fn group_of(row: &[f32], group: usize) -> [f32; 16] {
    let rest = &row[16 * group..];
    if let Some(whole) = rest.first_chunk::<16>() {
        return *whole;
    }
    let mut out = [0.0; 16];
    for (to, x) in out.iter_mut().zip(rest) {
        *to = *x;
    }
    out
}

/// A row of values from `position` on.
#[inline(always)]
fn write_row<T>(to: &mut [T], position: usize, row: &[f32], narrow: impl Fn(f32) -> T) {
    let padded_dim = to.len() / BLOCK_SIZE;
    for (to, &x) in to[position * padded_dim..].iter_mut().zip(row) {
        *to = narrow(x);
    }
}

/// A column of keys, converted 16 at a time in registers and then scattered.
#[inline(always)]
fn write_column<T: Copy + Default>(to: &mut [T], position: usize, column: &[f32], narrow: impl Fn(f32) -> T) {
    for (group, to) in to.as_chunks_mut::<256>().0.iter_mut().enumerate().take(column.len().div_ceil(16)) {
        let (values, mut codes) = (group_of(column, group), [T::default(); 16]);
        for i in 0..16 {
            codes[i] = narrow(values[i]);
        }
        for i in 0..16 {
            to[16 * i + position] = codes[i];
        }
    }
}

#[inline(always)]
fn plain<T: Copy + Default>(
    to: (&mut [T], &mut [T]),
    position: usize,
    (k, v): (&[f32], &[f32]),
    narrow: impl Fn(f32) -> T + Copy,
) {
    write_column(to.0, position, k, narrow);
    write_row(to.1, position, v, narrow);
}

#[inline(always)]
fn largest(lanes: &[f32; 16]) -> f32 {
    let mut m = *lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            m[i] = if m[i + half] > m[i] { m[i + half] } else { m[i] };
        }
    }
    m[0]
}

/// The scale's code and the factor to multiply by before rounding.
#[inline(always)]
fn scale_for(largest: f32, limit: f32) -> (u16, f32) {
    let code = encode::bf16_above(largest / limit);
    let scale = f32::from_bits(u32::from(code) << 16);
    (code, if scale > 1e-30 { 1.0 / scale } else { 0.0 })
}

#[inline(always)]
fn fp8_scale(row: &[f32]) -> (u16, f32) {
    let mut lanes = [0.0f32; 16];
    for group in 0..row.len().div_ceil(16) {
        let values = group_of(row, group);
        for i in 0..16 {
            let a = values[i].abs();
            lanes[i] = if a > lanes[i] { a } else { lanes[i] };
        }
    }
    scale_for(largest(&lanes), encode::E4M3_MAX)
}

#[inline(always)]
fn fp8(to: RecordMut, position: usize, k: &[f32], v: &[f32]) {
    let ((k_scale, k_factor), (v_scale, v_factor)) = (fp8_scale(k), fp8_scale(v));
    write_column(to.k, position, k, |x| encode::e4m3(x * k_factor));
    write_row(to.v, position, v, |x| encode::e4m3(x * v_factor));
    bytemuck::cast_slice_mut::<u8, u16>(to.k_scales)[position] = k_scale;
    bytemuck::cast_slice_mut::<u8, u16>(to.v_scales)[position] = v_scale;
}

/// Scale and codes of 16 values.
#[inline(always)]
fn fp4_group(values: &[f32; 16]) -> (u16, [u8; 16]) {
    let (mut magnitudes, mut codes) = ([0.0f32; 16], [0u8; 16]);
    for i in 0..16 {
        magnitudes[i] = values[i].abs();
    }
    let (scale, factor) = scale_for(largest(&magnitudes), encode::E2M1_MAX);
    for i in 0..16 {
        codes[i] = encode::e2m1(values[i] * factor);
    }
    (scale, codes)
}

#[inline(always)]
fn fp4(to: RecordMut, position: usize, k: &[f32], v: &[f32]) {
    let groups = k.len().div_ceil(16);
    let k_scales: &mut [u16] = bytemuck::cast_slice_mut(to.k_scales);
    let v_scales: &mut [u16] = bytemuck::cast_slice_mut(to.v_scales);
    let row_groups = v_scales.len() / BLOCK_SIZE;
    let v_row = &mut to.v[position * row_groups * 8..][..row_groups * 8];
    for group in 0..groups {
        let (scale, codes) = fp4_group(&group_of(k, group));
        k_scales[group * BLOCK_SIZE + position] = scale;
        for pair in 0..8 {
            to.k[(group * 8 + pair) * BLOCK_SIZE + position] = codes[2 * pair] | codes[2 * pair + 1] << 4;
        }
        let (scale, codes) = fp4_group(&group_of(v, group));
        v_scales[position * row_groups + group] = scale;
        let (shift, kept) = if group % 2 == 0 { (0, 0xf0) } else { (4, 0x0f) };
        for (to, code) in v_row[group / 2 * 16..][..16].iter_mut().zip(codes) {
            *to = *to & kept | code << shift;
        }
    }
}
