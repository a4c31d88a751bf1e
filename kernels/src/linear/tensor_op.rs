//! A packed layer between candle tensors: for a model whose other ops are candle's.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Tensor};

use super::{Activations, PackedLinear};
use crate::team::Team;

/// A packed layer with the threads and the workspace that it runs with. Clones share the workspace.
#[derive(Clone)]
pub(super) struct TensorOp {
    packed: Arc<PackedLinear>,
    team: Arc<dyn Team>,
    activations: Arc<Mutex<Activations>>,
}

impl TensorOp {
    pub(super) fn new(packed: PackedLinear, team: Arc<dyn Team>) -> Self {
        Self { packed: Arc::new(packed), team, activations: Arc::default() }
    }

    pub(super) fn packed(&self) -> &PackedLinear {
        &self.packed
    }

    /// Shapes: `x [num_rows, in_features]` f32, result `[num_rows, out_features]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (num_rows, in_features) = x.dims2()?;
        if in_features != self.packed.in_features() {
            candle_core::bail!("rows of {in_features} for a layer of {}", self.packed.in_features());
        }
        let values = x.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
        // A panic while the workspace was held left nothing that the next load does not replace.
        let mut activations = self.activations.lock().unwrap_or_else(PoisonError::into_inner);
        let (packed, team) = (&self.packed, self.team.as_ref());
        activations.load(&values, in_features, packed.form(), packed.isa(), team);
        let mut y = vec![0f32; num_rows * packed.out_features()];
        packed.forward(&activations, &mut y, team);
        Tensor::from_vec(y, (num_rows, packed.out_features()), x.device())
    }
}

impl fmt::Debug for TensorOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TensorOp").field(&self.packed).finish()
    }
}
