//! Memory of the device, and memory of the host that the device copies from without a detour.
#![allow(unsafe_code, reason = "allocation and copies are foreign")]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;

use super::error::CudaError;
use super::ffi;
use super::gpu::{Gpu, check, check_allocation};

/// Values in the device's memory, zeroed when allocated. Ops write through a shared reference: the host never holds a
/// reference to the values, and the stream orders whoever reads and writes them.
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    gpu: Arc<Gpu>,
    ptr: *mut c_void,
    len: usize,
    values: PhantomData<T>,
}

// SAFETY: the pointer is an address on the device; no host thread dereferences it.
unsafe impl<T: Pod> Send for DeviceBuffer<T> {}
// SAFETY: as above.
unsafe impl<T: Pod> Sync for DeviceBuffer<T> {}

/// What memory is for, and the flag that makes it smaller.
pub type Purpose = (&'static str, &'static str);

impl<T: Pod> DeviceBuffer<T> {
    /// Room for `len` values, zeroed; at least one byte, so that there is an address.
    ///
    /// Errors: out of memory, with the sizes and the flag of `purpose`.
    pub fn zeroed(gpu: &Arc<Gpu>, len: usize, purpose: Purpose) -> Result<Self, CudaError> {
        let bytes = (len * size_of::<T>()).max(16);
        let mut ptr = std::ptr::null_mut();
        // SAFETY: `ptr` is a place for the result.
        let code = unsafe { ffi::aisp_malloc(&mut ptr, bytes) };
        check_allocation(gpu, purpose.0, purpose.1, bytes, code)?;
        let buffer = Self { gpu: gpu.clone(), ptr, len, values: PhantomData };
        // SAFETY: the allocation has this many bytes.
        check("clearing memory", unsafe { ffi::aisp_memset(ptr, 0, bytes, gpu.stream()) })?;
        Ok(buffer)
    }

    /// The values of a slice of the host.
    ///
    /// Errors: as [`DeviceBuffer::zeroed`].
    pub fn of(gpu: &Arc<Gpu>, values: &[T], purpose: Purpose) -> Result<Self, CudaError> {
        let buffer = Self::zeroed(gpu, values.len(), purpose)?;
        buffer.upload(0, values)?;
        Ok(buffer)
    }

    /// Values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of it.
    pub fn slice(&self, range: Range<usize>) -> DeviceSlice<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of a buffer of {}", self.len);
        // SAFETY: the start lies in the allocation.
        let ptr = unsafe { self.ptr.byte_add(range.start * size_of::<T>()) };
        DeviceSlice { ptr, len: range.len(), values: PhantomData }
    }

    /// All of it.
    pub fn all(&self) -> DeviceSlice<'_, T> {
        self.slice(0..self.len)
    }

    /// Copies values to it, from the value at `start`; done when it returns.
    ///
    /// Errors: a failed copy.
    pub fn upload(&self, start: usize, values: &[T]) -> Result<(), CudaError> {
        let target = self.slice(start..start + values.len());
        let bytes = size_of_val(values);
        // SAFETY: source and target have this many bytes; the wait below ends the copy before `values` can go.
        let code = unsafe { ffi::aisp_memcpy_h2d(target.ptr, values.as_ptr().cast(), bytes, self.gpu.stream()) };
        check("copying to the device", code)?;
        self.gpu.synchronize()
    }

    /// Copies all values to the host; waits for what is on the stream.
    ///
    /// Errors: a failed op or copy.
    pub fn download(&self) -> Result<Vec<T>, CudaError> {
        let mut values = vec![T::zeroed(); self.len];
        let bytes = size_of_val(values.as_slice());
        // SAFETY: source and target have this many bytes; the wait below ends the copy before anybody reads.
        let code = unsafe { ffi::aisp_memcpy_d2h(values.as_mut_ptr().cast(), self.ptr, bytes, self.gpu.stream()) };
        check("copying from the device", code)?;
        self.gpu.synchronize()?;
        Ok(values)
    }

    pub(super) fn ptr(&self) -> *mut c_void {
        self.ptr
    }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed`, freed once; the run-time waits for ops that still use it.
        unsafe { ffi::aisp_free(self.ptr) };
    }
}

/// A part of a [`DeviceBuffer`].
#[derive(Debug, Clone, Copy)]
pub struct DeviceSlice<'a, T> {
    ptr: *mut c_void,
    len: usize,
    values: PhantomData<&'a T>,
}

impl<'a, T> DeviceSlice<'a, T> {
    /// What follows the first `start` values.
    pub fn from(&self, start: usize) -> DeviceSlice<'a, T> {
        assert!(start <= self.len, "{start} of a slice of {}", self.len);
        // SAFETY: the start lies in the allocation.
        let ptr = unsafe { self.ptr.byte_add(start * size_of::<T>()) };
        DeviceSlice { ptr, len: self.len - start, values: PhantomData }
    }

    /// Values in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its address, after a look at its size.
    pub(super) fn at_least(&self, op: &'static str, what: &'static str, needed: usize) -> Result<*mut T, CudaError> {
        match self.len {
            actual if actual < needed => Err(CudaError::TooSmall { op, what, actual, needed }),
            _ => Ok(self.ptr.cast()),
        }
    }
}

/// The address of a buffer that may be left out, after a look at its size.
pub(super) fn at_least_or_null<T: Pod>(
    buffer: Option<&DeviceBuffer<T>>,
    op: &'static str,
    what: &'static str,
    needed: usize,
) -> Result<*const T, CudaError> {
    match buffer {
        Some(buffer) => buffer.all().at_least(op, what, needed).map(<*mut T>::cast_const),
        None => Ok(std::ptr::null()),
    }
}

/// Pinned memory of the host: copies to and from the device run beside the host.
#[derive(Debug)]
pub struct PinnedBuffer<T> {
    gpu: Arc<Gpu>,
    ptr: *mut T,
    len: usize,
}

// SAFETY: it owns its memory as a `Vec` does.
unsafe impl<T: Pod> Send for PinnedBuffer<T> {}

impl<T: Pod> PinnedBuffer<T> {
    /// Room for `len` values, zeroed.
    ///
    /// Errors: the system refuses pinned memory; with the flag of `purpose`.
    pub fn zeroed(gpu: &Arc<Gpu>, len: usize, purpose: Purpose) -> Result<Self, CudaError> {
        let bytes = (len * size_of::<T>()).max(16);
        let mut ptr = std::ptr::null_mut();
        // SAFETY: `ptr` is a place for the result.
        let code = unsafe { ffi::aisp_malloc_host(&mut ptr, bytes) };
        check_allocation(gpu, purpose.0, purpose.1, bytes, code)?;
        // SAFETY: the allocation has this many bytes, and zeros are a value of `T`.
        unsafe { ptr.cast::<u8>().write_bytes(0, bytes) };
        Ok(Self { gpu: gpu.clone(), ptr: ptr.cast(), len })
    }

    /// The values.
    pub fn values(&self) -> &[T] {
        // SAFETY: `len` values, initialised by `zeroed`, aligned to a page.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }

    /// The same, to be changed. A copy under way still reads them: wait for it first.
    pub fn values_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr, self.len) }
    }

    /// Puts a copy of the first `len` values on the stream.
    ///
    /// Errors: a target that is too small; a failed copy.
    pub fn copy_to(&self, target: DeviceSlice<'_, T>, len: usize) -> Result<(), CudaError> {
        let to = target.at_least("copying to the device", "target", len)?;
        assert!(len <= self.len, "{len} of {} values", self.len);
        // SAFETY: both sides have this many bytes.
        let code = unsafe { ffi::aisp_memcpy_h2d(to.cast(), self.ptr.cast(), len * size_of::<T>(), self.gpu.stream()) };
        check("copying to the device", code)
    }

    /// Puts a copy of `len` values of the device to the value at `start` on the stream; [`Gpu::synchronize`] ends it.
    ///
    /// Errors: a source that is too small; a failed copy.
    pub fn copy_from(&mut self, start: usize, source: DeviceSlice<'_, T>, len: usize) -> Result<(), CudaError> {
        let from = source.at_least("copying from the device", "source", len)?;
        assert!(start + len <= self.len, "{start}+{len} of {} values", self.len);
        // SAFETY: both sides have this many bytes.
        let code = unsafe {
            let to = self.ptr.add(start);
            ffi::aisp_memcpy_d2h(to.cast(), from.cast(), len * size_of::<T>(), self.gpu.stream())
        };
        check("copying from the device", code)
    }
}

impl<T> Drop for PinnedBuffer<T> {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed`, freed once.
        unsafe { ffi::aisp_free_host(self.ptr.cast()) };
    }
}
