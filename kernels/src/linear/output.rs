//! Disjoint parts of one buffer, written by several threads: the only place where the packed layers share memory.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use crate::team::{Team, for_each_item};

/// A matrix `[num_rows, num_columns]` of which each thread writes elements of its own.
#[derive(Debug)]
pub(crate) struct SharedMatrix<'a, T> {
    start: *mut T,
    len: usize,
    num_columns: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: elements are written through `write` and `slice_mut`, whose callers keep them disjoint.
unsafe impl<T: Send> Sync for SharedMatrix<'_, T> {}

impl<'a, T: Copy> SharedMatrix<'a, T> {
    pub(crate) fn new(values: &'a mut [T], num_columns: usize) -> Self {
        Self { start: values.as_mut_ptr(), len: values.len(), num_columns, borrow: PhantomData }
    }

    /// Stores `values` at `row`, from `column` on.
    ///
    /// # Safety
    /// No other thread accesses these elements while the matrix is shared.
    pub(crate) unsafe fn write(&self, row: usize, column: usize, values: &[T]) {
        assert!(column + values.len() <= self.num_columns);
        // SAFETY: passed on to the caller.
        unsafe { self.slice_mut(row * self.num_columns + column, values.len()) }.copy_from_slice(values);
    }

    /// `len` elements from `at` on, row-major.
    ///
    /// # Safety
    /// No other reference to these elements is alive.
    #[expect(clippy::mut_from_ref, reason = "disjoint by the caller's promise")]
    unsafe fn slice_mut(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at);
        // SAFETY: in bounds by the assertion, exclusive by the caller's promise, and the buffer is borrowed for 'a.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

/// Calls `work(chunk_idx, chunk)` for every `chunk_len` elements of `values`, on all threads.
pub(crate) fn for_each_chunk<T: Copy + Send>(
    team: &dyn Team,
    values: &mut [T],
    chunk_len: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    let len = values.len();
    let shared = SharedMatrix::new(values, len);
    for_each_item(team, len.div_ceil(chunk_len), |chunk_idx| {
        let at = chunk_idx * chunk_len;
        // SAFETY: chunks do not overlap and each index is handed out once.
        work(chunk_idx, unsafe { shared.slice_mut(at, chunk_len.min(len - at)) });
    });
}
