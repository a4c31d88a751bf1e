//! Ceilings of the card: memory, the link to the host, products, launches. All buffers hold noise or were written before,
//! so that neither pages of zeros nor products of zeros flatter a figure.
#![allow(unsafe_code, reason = "the probes are foreign")]

use std::sync::Arc;
use std::time::Instant;

use half::bf16;

use super::buffer::{DeviceBuffer, PinnedBuffer};
use super::error::CudaError;
use super::ffi;
use super::gpu::{Event, Gpu, check};
use super::graph::Graph;
use crate::probe::{ProbeKind, ProbeRow};

const NUM_ROUNDS: usize = 9;
/// Far beyond any L2.
const MEMORY_BYTES: usize = 4 << 30;
const LINK_BYTES: usize = 256 << 20;
const WORKSPACE_BYTES: usize = 32 << 20;
/// Rows, columns and depth of the products.
const PRODUCT_SIZE: usize = 8192;
/// Products in a round.
const NUM_PRODUCTS: usize = 4;
const NUM_LAUNCHES: usize = 1000;

const PURPOSE: (&str, &str) = ("the probe", "what else runs on this card");

/// Measures all that [`ProbeKind`] names; tells `next` what comes.
///
/// Cost: about 1 s, 4 GiB of the card (a quarter of what is free, if that is less) and 256 MiB of pinned host memory.
/// Errors: out of memory; a card that fails. What the card or the installation lacks is a row that says so.
pub fn probe(gpu: &Arc<Gpu>, next: &mut dyn FnMut(ProbeKind)) -> Result<Vec<ProbeRow>, CudaError> {
    gpu.make_current()?;
    let mut rows = Vec::new();
    for kind in ProbeKind::ALL {
        next(kind);
        rows.push(match kind {
            ProbeKind::Read | ProbeKind::Copy => memory(gpu, kind)?,
            ProbeKind::HostToDevice | ProbeKind::DeviceToHost => link(gpu, kind)?,
            ProbeKind::ProductBf16 | ProbeKind::ProductFp8 => product(gpu, kind)?,
            ProbeKind::LaunchEager | ProbeKind::LaunchGraph => launches(gpu, kind)?,
        });
    }
    Ok(rows)
}

/// Seconds of each round of `work` on the stream, after one that does not count.
fn rounds(gpu: &Arc<Gpu>, mut work: impl FnMut() -> Result<(), CudaError>) -> Result<Vec<f64>, CudaError> {
    let (start, end) = (Event::new(gpu)?, Event::new(gpu)?);
    work()?;
    let round = |_| {
        start.record()?;
        work()?;
        end.record()?;
        Ok(f64::from(end.ms_since(&start)?) / 1e3)
    };
    (0..NUM_ROUNDS).map(round).collect()
}

fn noise(gpu: &Arc<Gpu>, count: usize, seed: u64) -> Result<DeviceBuffer<bf16>, CudaError> {
    let buffer = DeviceBuffer::zeroed(gpu, count, PURPOSE)?;
    // SAFETY: the buffer has this many values.
    let code = unsafe { ffi::aisp_fill_normal(gpu.ctx(), buffer.ptr(), count, seed, 0.0, 1.0, gpu.stream()) };
    check("filling with noise", code)?;
    Ok(buffer)
}

fn memory(gpu: &Arc<Gpu>, kind: ProbeKind) -> Result<ProbeRow, CudaError> {
    // Whole MiB, so that halves are aligned.
    let bytes = MEMORY_BYTES.min(gpu.free_bytes()? as usize / 4) >> 20 << 20;
    let set = noise(gpu, bytes / 2, 1)?;
    let sum = DeviceBuffer::<f32>::zeroed(gpu, 1, PURPOSE)?;
    let seconds = rounds(gpu, || {
        // SAFETY: the set has this many bytes, and its halves do not overlap; the sum has its value.
        check("reading memory", unsafe {
            match kind {
                ProbeKind::Read => ffi::aisp_probe_read(gpu.ctx(), set.ptr(), bytes, sum.ptr().cast(), gpu.stream()),
                _ => ffi::aisp_probe_copy(gpu.ctx(), set.ptr(), set.ptr().byte_add(bytes / 2), bytes / 2, gpu.stream()),
            }
        })
    })?;
    Ok(ProbeRow { kind, work: bytes as f64, seconds: Ok(seconds) })
}

fn link(gpu: &Arc<Gpu>, kind: ProbeKind) -> Result<ProbeRow, CudaError> {
    let mut host = PinnedBuffer::<u8>::zeroed(gpu, LINK_BYTES, PURPOSE)?;
    let device = DeviceBuffer::<u8>::zeroed(gpu, LINK_BYTES, PURPOSE)?;
    let seconds = rounds(gpu, || match kind {
        ProbeKind::HostToDevice => host.copy_to(device.all(), LINK_BYTES),
        _ => host.copy_from(0, device.all(), LINK_BYTES),
    })?;
    Ok(ProbeRow { kind, work: LINK_BYTES as f64, seconds: Ok(seconds) })
}

fn product(gpu: &Arc<Gpu>, kind: ProbeKind) -> Result<ProbeRow, CudaError> {
    let work = 2.0 * (PRODUCT_SIZE as f64).powi(3) * NUM_PRODUCTS as f64;
    let seconds = match products(gpu, kind) {
        Ok(seconds) => Ok(seconds),
        // Of a library that is not there, or a type that this card does not multiply.
        Err(error @ (CudaError::MissingLibrary { .. } | CudaError::Failed { .. })) => Err(error.to_string()),
        Err(error) => return Err(error),
    };
    Ok(ProbeRow { kind, work, seconds })
}

/// cuBLASLt's plan, closed with it.
struct Plan(*mut ffi::Gemm);

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: made by `aisp_gemm_create`, closed once.
        unsafe { ffi::aisp_gemm_destroy(self.0) };
    }
}

fn products(gpu: &Arc<Gpu>, kind: ProbeKind) -> Result<Vec<f64>, CudaError> {
    const OP: &str = "a matrix product";
    const N: i32 = PRODUCT_SIZE as i32;
    if !gpu.has_cublaslt() {
        let message = "it multiplies for the probe".into();
        return Err(CudaError::MissingLibrary { library: "libcublasLt.so".into(), message });
    }
    let count = PRODUCT_SIZE * PRODUCT_SIZE;
    let fp8 = kind == ProbeKind::ProductFp8;
    let operands = [noise(gpu, count, 1)?, noise(gpu, count, 2)?];
    let num_codes = if fp8 { count } else { 0 };
    let codes =
        [DeviceBuffer::<u8>::zeroed(gpu, num_codes, PURPOSE)?, DeviceBuffer::<u8>::zeroed(gpu, num_codes, PURPOSE)?];
    let scales = [
        DeviceBuffer::<f32>::zeroed(gpu, PRODUCT_SIZE, PURPOSE)?,
        DeviceBuffer::<f32>::zeroed(gpu, PRODUCT_SIZE, PURPOSE)?,
    ];
    let out = DeviceBuffer::<bf16>::zeroed(gpu, count, PURPOSE)?;
    let workspace = DeviceBuffer::<u8>::zeroed(gpu, WORKSPACE_BYTES, PURPOSE)?;
    let mut plan = Plan(std::ptr::null_mut());
    let format = if fp8 { ffi::FP8 } else { ffi::BF16 };
    // SAFETY: `plan` is a place for the result.
    check(OP, unsafe { ffi::aisp_gemm_create(gpu.ctx(), format, ffi::BF16, N, N, &mut plan.0) })?;
    if fp8 {
        for ((from, to), scales) in operands.iter().zip(&codes).zip(&scales) {
            // SAFETY: both sides have N rows of N values, and there is a scale for each row.
            check("rounding to fp8", unsafe {
                let (to, scales) = (to.ptr().cast(), scales.ptr().cast());
                ffi::aisp_quantize_rows(gpu.ctx(), from.ptr(), N, N, to, scales, gpu.stream())
            })?;
        }
    }
    let at = |i: usize| if fp8 { codes[i].ptr() } else { operands[i].ptr() };
    let scales_at = |i: usize| if fp8 { scales[i].ptr().cast::<f32>().cast_const() } else { std::ptr::null() };
    let (x, w, x_scales, w_scales) = (at(0), at(1), scales_at(0), scales_at(1));
    let mut best_us = 0.0;
    // SAFETY: operands, scales and the result have the sizes of the plan; there is no flush.
    check(OP, unsafe {
        ffi::aisp_gemm_tune(
            plan.0,
            N,
            x,
            x_scales,
            w,
            w_scales,
            out.ptr(),
            workspace.ptr(),
            WORKSPACE_BYTES,
            std::ptr::null_mut(),
            0,
            gpu.stream(),
            &mut best_us,
        )
    })?;
    rounds(gpu, || {
        (0..NUM_PRODUCTS).try_for_each(|_| {
            // SAFETY: as above.
            check(OP, unsafe {
                ffi::aisp_gemm_run(
                    plan.0,
                    N,
                    x,
                    x_scales,
                    w,
                    w_scales,
                    out.ptr(),
                    workspace.ptr(),
                    WORKSPACE_BYTES,
                    gpu.stream(),
                )
            })
        })
    })
}

fn launches(gpu: &Arc<Gpu>, kind: ProbeKind) -> Result<ProbeRow, CudaError> {
    let launch_all = || {
        // SAFETY: it touches nothing.
        (0..NUM_LAUNCHES)
            .try_for_each(|_| check("launching", unsafe { ffi::aisp_probe_empty(gpu.ctx(), gpu.stream()) }))
    };
    let seconds = if kind == ProbeKind::LaunchGraph {
        launch_all()?;
        let graph = Graph::capture(gpu, launch_all)?;
        rounds(gpu, || graph.launch())?
    } else {
        let round = |_| {
            gpu.synchronize()?;
            let start = Instant::now();
            launch_all()?;
            gpu.synchronize()?;
            Ok(start.elapsed().as_secs_f64())
        };
        (0..NUM_ROUNDS + 1).map(round).skip(1).collect::<Result<_, CudaError>>()?
    };
    Ok(ProbeRow { kind, work: NUM_LAUNCHES as f64, seconds: Ok(seconds) })
}
