//! One device and the stream that everything runs on.
#![allow(unsafe_code, reason = "every call into the CUDA run-time is foreign")]

use std::ffi::{CStr, c_int};
use std::sync::Arc;

use super::error::CudaError;
use super::ffi;

/// `cudaErrorMemoryAllocation`.
const OUT_OF_MEMORY: c_int = 2;

/// A device, opened. Cheap to share; ops of all sharers run one after the other.
#[derive(Debug)]
pub struct Gpu {
    index: i32,
    ctx: *mut ffi::Ctx,
    stream: ffi::Stream,
    info: GpuInfo,
}

// SAFETY: the interface promises that a context is usable from any thread, and streams are handles of the driver, which
// locks for itself.
unsafe impl Send for Gpu {}
// SAFETY: as above; nothing here changes after `open`.
unsafe impl Sync for Gpu {}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// As the driver names it.
    pub name: String,
    /// Compute capability.
    pub compute: (i32, i32),
    /// Multiprocessors.
    pub num_sms: usize,
    /// Bytes of the last cache.
    pub l2_bytes: usize,
    /// Bytes of memory.
    pub total_bytes: u64,
}

impl Gpu {
    /// Opens `cuda:{index}`.
    ///
    /// Errors: no driver, one too old, no such device.
    pub fn open(index: usize) -> Result<Arc<Self>, CudaError> {
        let raw = raw_info(index)?;
        let device = index as i32;
        set_device("opening the device", device)?;
        let mut ctx = std::ptr::null_mut();
        // SAFETY: `ctx` is a place for the result.
        check("opening the device", unsafe { ffi::aisp_ctx_create(device, ffi::CTX_PDL, &mut ctx) })?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: `stream` is a place for the result.
        check("opening a stream", unsafe { ffi::aisp_stream_create(&mut stream) })?;
        // SAFETY: the interface fills the name with a C string.
        let name = unsafe { CStr::from_ptr(raw.name.as_ptr()) }.to_string_lossy().into_owned();
        let info = GpuInfo {
            name,
            compute: (raw.compute_major, raw.compute_minor),
            num_sms: raw.sm_count as usize,
            l2_bytes: raw.l2_bytes as usize,
            total_bytes: raw.total_bytes,
        };
        Ok(Arc::new(Self { index: device, ctx, stream, info }))
    }

    /// What it is.
    pub fn info(&self) -> &GpuInfo {
        &self.info
    }

    /// Whether cuBLASLt was found, which [`super::Gemm`] needs.
    pub fn has_cublaslt(&self) -> bool {
        // SAFETY: the context is open.
        unsafe { ffi::aisp_ctx_has_cublaslt(self.ctx) != 0 }
    }

    /// Whether [`Gpu::wide_linear`] has code for this card: Hopper alone.
    pub fn has_wide_linear(&self) -> bool {
        // SAFETY: the context lives as long as `self`.
        unsafe { ffi::aisp_has_wide_linear(self.ctx) != 0 }
    }

    /// Bytes that can be allocated now.
    ///
    /// Errors: the device does not answer.
    pub fn free_bytes(&self) -> Result<u64, CudaError> {
        Ok(raw_info(self.index as usize)?.free_bytes)
    }

    /// Makes it the calling thread's device. Every thread does this before its first op.
    ///
    /// Errors: the device does not answer.
    pub fn make_current(&self) -> Result<(), CudaError> {
        set_device("choosing the device", self.index)
    }

    /// Waits until everything put on the stream is done, and reports what failed meanwhile.
    ///
    /// Errors: an op that failed on the device.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is open.
        check("a step", unsafe { ffi::aisp_stream_synchronize(self.stream) })
    }

    pub(super) fn ctx(&self) -> *mut ffi::Ctx {
        self.ctx
    }

    pub(super) fn stream(&self) -> ffi::Stream {
        self.stream
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // SAFETY: both were opened by `open` and are closed once; whoever holds memory of the device holds the device.
        unsafe {
            ffi::aisp_device_set(self.index);
            ffi::aisp_stream_destroy(self.stream);
            ffi::aisp_ctx_destroy(self.ctx);
        }
    }
}

fn set_device(op: &'static str, device: i32) -> Result<(), CudaError> {
    // SAFETY: any number may be asked for.
    check(op, unsafe { ffi::aisp_device_set(device) })
}

fn raw_info(index: usize) -> Result<ffi::DeviceInfo, CudaError> {
    let mut count = 0;
    // SAFETY: `count` is a place for the result.
    let counted = unsafe { ffi::aisp_device_count(&mut count) };
    let mut info = ffi::DeviceInfo {
        name: [0; 128],
        compute_major: 0,
        compute_minor: 0,
        sm_count: 0,
        l2_bytes: 0,
        shared_bytes_per_block: 0,
        driver_version: 0,
        runtime_version: 0,
        total_bytes: 0,
        free_bytes: 0,
    };
    // SAFETY: `info` is a place for the result.
    let described = unsafe { ffi::aisp_device_get_info(index as i32, &mut info) };
    let version = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
    if counted != 0 {
        return Err(match info.driver_version {
            driver if driver > 0 && driver < info.runtime_version => {
                CudaError::OldDriver { driver: version(driver), needed: version(info.runtime_version) }
            }
            // The run-time calls a missing driver one that is too old.
            0 => CudaError::NoDriver { message: "libcuda.so.1 is not found".into() },
            _ => CudaError::NoDriver { message: error_text(counted) },
        });
    }
    if index >= count as usize {
        return Err(CudaError::NoDevice { index, count: count as usize });
    }
    check("describing the device", described)?;
    Ok(info)
}

pub(super) fn error_text(code: c_int) -> String {
    // SAFETY: never null and lives forever, by the interface.
    unsafe { CStr::from_ptr(ffi::aisp_error_string(code)) }.to_string_lossy().into_owned()
}

pub(super) fn check(op: &'static str, code: c_int) -> Result<(), CudaError> {
    match code {
        0 => Ok(()),
        code => Err(CudaError::Failed { op, code, message: error_text(code) }),
    }
}

/// The same for an allocation.
pub(super) fn check_allocation(
    gpu: &Gpu,
    what: &'static str,
    flag: &'static str,
    bytes: usize,
    code: c_int,
) -> Result<(), CudaError> {
    match code {
        OUT_OF_MEMORY => Err(CudaError::OutOfMemory {
            what,
            needed_bytes: bytes as u64,
            free_bytes: gpu.free_bytes().unwrap_or(0),
            flag,
        }),
        code => check(what, code),
    }
}

/// A moment on the stream.
#[derive(Debug)]
pub struct Event {
    gpu: Arc<Gpu>,
    event: ffi::Event,
}

// SAFETY: a handle of the driver, which locks for itself.
unsafe impl Send for Event {}

impl Event {
    /// An event that can be timed.
    ///
    /// Errors: the device does not answer.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Self, CudaError> {
        let mut event = std::ptr::null_mut();
        // SAFETY: `event` is a place for the result.
        check("making an event", unsafe { ffi::aisp_event_create(&mut event, 1) })?;
        Ok(Self { gpu: gpu.clone(), event })
    }

    /// Stands at the end of what is on the stream now.
    ///
    /// Errors: the device does not answer.
    pub fn record(&self) -> Result<(), CudaError> {
        // SAFETY: both handles are open.
        check("recording an event", unsafe { ffi::aisp_event_record(self.event, self.gpu.stream()) })
    }

    /// Waits for what is on the stream before it.
    ///
    /// Errors: an op before it failed.
    pub fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the handle is open.
        check("waiting for an event", unsafe { ffi::aisp_event_synchronize(self.event) })
    }

    /// Milliseconds from `earlier` to this one; waits for both.
    ///
    /// Errors: an op before them failed.
    pub fn ms_since(&self, earlier: &Self) -> Result<f32, CudaError> {
        let mut ms = 0.0;
        // SAFETY: both handles are open and `ms` is a place for the result.
        let code = unsafe {
            match ffi::aisp_event_synchronize(self.event) {
                0 => ffi::aisp_event_elapsed_ms(&mut ms, earlier.event, self.event),
                code => code,
            }
        };
        check("timing", code)?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`, closed once.
        unsafe { ffi::aisp_event_destroy(self.event) };
    }
}
