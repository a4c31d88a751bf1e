//! Calculators: small pure functions from the figures of a model, a machine and a load to what follows from them.

pub(crate) mod checks;
pub mod cluster_size;
pub mod cost_per_token;
pub mod dtype;
pub mod kv_cache;
pub mod roofline;
