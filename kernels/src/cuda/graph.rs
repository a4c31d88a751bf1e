//! A recorded step: one launch in place of hundreds.
#![allow(unsafe_code, reason = "capture and launch are foreign")]

use std::sync::Arc;

use super::error::CudaError;
use super::ffi;
use super::gpu::{Gpu, check};

/// Ops recorded with the addresses and shapes that they had. What it uses must outlive it.
#[derive(Debug)]
pub struct Graph {
    gpu: Arc<Gpu>,
    graph: ffi::Graph,
    num_nodes: usize,
}

// SAFETY: a handle of the driver, which locks for itself.
unsafe impl Send for Graph {}

impl Graph {
    /// Records what `ops` puts on the stream, without running it.
    ///
    /// Errors: those of `ops`; an op that cannot be recorded.
    pub fn capture<E: From<CudaError>>(gpu: &Arc<Gpu>, ops: impl FnOnce() -> Result<(), E>) -> Result<Self, E> {
        // SAFETY: the stream is open.
        check("recording a graph", unsafe { ffi::aisp_graph_begin_capture(gpu.stream()) })?;
        let recorded = ops();
        let (mut graph, mut num_nodes) = (std::ptr::null_mut(), 0);
        // SAFETY: the stream is recording; both are places for results. It ends the recording even if `ops` failed.
        let code = unsafe { ffi::aisp_graph_end_capture(gpu.stream(), &mut graph, &mut num_nodes) };
        let ended = check("recording a graph", code).map(|()| Self { gpu: gpu.clone(), graph, num_nodes });
        recorded?;
        let graph = ended?;
        // SAFETY: both handles are open.
        check("uploading a graph", unsafe { ffi::aisp_graph_upload(graph.graph, gpu.stream()) })?;
        Ok(graph)
    }

    /// Runs it.
    ///
    /// Errors: the device refuses.
    pub fn launch(&self) -> Result<(), CudaError> {
        // SAFETY: both handles are open.
        check("launching a graph", unsafe { ffi::aisp_graph_launch(self.graph, self.gpu.stream()) })
    }

    /// Ops in it.
    pub fn num_nodes(&self) -> usize {
        self.num_nodes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, closed once; a launch under way is ended first.
        unsafe {
            ffi::aisp_stream_synchronize(self.gpu.stream());
            ffi::aisp_graph_destroy(self.graph);
        }
    }
}
