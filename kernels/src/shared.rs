//! A slice that the threads of a team write disjoint parts of.
#![allow(unsafe_code, reason = "parts of one slice for several threads")]

use std::marker::PhantomData;

use crate::team::Team;

/// Hands out parts of a slice from a shared reference.
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out `&mut [T]`, which may cross threads when `T` may.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The part `start..start + len`.
    ///
    /// # Safety
    /// No two parts that live at the same time may overlap.
    #[expect(clippy::mut_from_ref, reason = "the caller keeps parts disjoint")]
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start, "part {start}+{len} of {}", self.len);
        // SAFETY: inside the slice by the check, and disjoint from other parts by contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

/// Rows of one slice.
pub(crate) struct Rows<'a> {
    pub values: &'a mut [f32],
    pub row_len: usize,
}

/// Work with fewer values than this is done by the calling thread: a barrier would cost more.
const LEAST_SHARED: usize = 1 << 14;

/// Gives each thread of a team a run of rows of N slices: `work(first row, parts)`.
pub(crate) fn for_row_parts<const N: usize>(
    team: &dyn Team,
    num_rows: usize,
    slices: [Rows; N],
    work: &(dyn Fn(usize, [&mut [f32]; N]) + Sync),
) {
    let threads = team.num_threads().min(num_rows);
    let values: usize = slices.iter().map(|rows| rows.values.len()).sum();
    if threads <= 1 || values < LEAST_SHARED {
        return work(0, slices.map(|rows| rows.values));
    }
    let slices = slices.map(|rows| (Shared::new(rows.values), rows.row_len));
    team.run(&|thread| {
        if thread < threads {
            let (start, end) = (num_rows * thread / threads, num_rows * (thread + 1) / threads);
            let parts = slices.each_ref().map(|(shared, row_len)| {
                // SAFETY: runs of rows of different threads are disjoint.
                unsafe { shared.part(start * row_len, (end - start) * row_len) }
            });
            work(start, parts);
        }
    });
}
