//! Opens the CUDA libraries that candle calls. They are no dependency of the binary: without them it starts, runs on
//! the CPU and says what is missing when the GPU is asked for (`build/trampolines.rs`).
#![allow(unsafe_code, reason = "the loader is C")]

use std::ffi::{CStr, CString, c_char, c_int};

use super::CudaError;
use super::ffi;

/// Major version of the toolkit that this was built with.
const MAJOR: &str = env!("AISP_CUDA_MAJOR");

/// File names in the order of `build/cuda_functions.txt`; `{}` stands for the toolkit's version.
const LIBRARIES: [&str; 5] =
    ["libcuda.so.1", "libnvrtc.so.{}", "libcurand.so.10", "libcublasLt.so.{}", "libcublas.so.{}"];

/// Opens all that candle needs; later calls cost little and change nothing.
///
/// Errors: the first library that is not found.
pub fn open_candle_libraries() -> Result<(), CudaError> {
    for (index, name) in LIBRARIES.iter().enumerate() {
        open(index, &name.replace("{}", MAJOR))?;
    }
    Ok(())
}

fn open(index: usize, library: &str) -> Result<(), CudaError> {
    let name = CString::new(library).unwrap_or_default();
    let candidates: [*const c_char; 2] = [name.as_ptr(), std::ptr::null()];
    // SAFETY: a null-terminated list of C strings that outlives the call; `index` is one of the sections.
    let message = unsafe { ffi::aisp_open_library(index as c_int, candidates.as_ptr()) };
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the loader's message is a C string until the thread's next call of it.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    if index == 0 {
        return Err(CudaError::NoDriver { message });
    }
    Err(CudaError::MissingLibrary { library: library.to_owned(), message })
}
