//! Models of the Hugging Face hub.

use std::path::PathBuf;

use super::error::LoadError;
use super::options::LoadOptions;

/// Where downloads come from and go to.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {}

impl HubOptions {
    /// As the environment says.
    pub fn from_env() -> Self {
        Self {}
    }
}

/// What was fetched.
pub(crate) enum Fetched {
    /// A snapshot in Hugging Face layout.
    Folder(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
}

pub(crate) fn fetch(
    repo: &str,
    _file: Option<&str>,
    _revision: Option<&str>,
    _options: &LoadOptions,
) -> Result<Fetched, LoadError> {
    Err(LoadError::FeatureOff { what: repo.into(), feature: "hub" })
}
