//! Models of the Hugging Face hub, kept in the cache that all its tools share. The `hf-hub` crate knows that cache's
//! layout; transfers are our own, because its client joins names and etags to paths unchecked, panics on a redirect
//! without a target and waits without limit.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
#[cfg(feature = "hub")]
mod download;
mod options;
#[cfg(feature = "hub")]
mod snapshot;

use std::path::PathBuf;

pub use options::HubOptions;

#[cfg(feature = "hub")]
pub(crate) use snapshot::fetch;

/// What was fetched.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "nothing is fetched without a client"))]
pub(crate) enum Fetched {
    /// A snapshot in Hugging Face layout.
    Folder(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
}

/// Refuses: this build has no hub client.
#[cfg(not(feature = "hub"))]
pub(crate) fn fetch(
    repo: &str,
    _file: Option<&str>,
    _revision: Option<&str>,
    _options: &super::options::LoadOptions,
) -> Result<Fetched, super::error::LoadError> {
    let what = format!("downloading {}", super::error::printable(repo));
    Err(super::error::LoadError::FeatureOff { what, feature: "hub" })
}
