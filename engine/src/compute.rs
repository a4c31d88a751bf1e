//! What CPU kernels run with: an instruction set level and a team of threads.

use std::sync::Arc;

use aisp_kernels::Isa;
use aisp_kernels::team::Team;

/// Shared by every op of an engine. Cheap to clone.
#[derive(Clone)]
pub struct Compute {
    /// The level that weights are packed for.
    pub isa: Isa,
    /// The threads.
    pub team: Arc<dyn Team>,
}

impl std::fmt::Debug for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} on {} threads", self.isa, self.team.num_threads())
    }
}
