//! Where a model comes from: built in, a folder, a GGUF file, the hub, or made up. Everything read here is hostile until
//! checked: a bad file is a one-line [`LoadError`] that names the field, never a panic, and never an allocation out of
//! proportion to the file.

mod builtin;
mod checkpoint;
mod dummy;
mod error;
mod folder;
mod gguf;
mod hub;
mod layout;
mod limits;
mod mapped;
mod memory;
mod options;
mod source;
mod tally;

pub use crate::text::TokenizerSource;
pub use checkpoint::Checkpoint;
pub use dummy::DummyShape;
pub use error::LoadError;
pub use hub::HubOptions;
pub use memory::available_bytes as available_memory_bytes;
pub use options::LoadOptions;
pub use source::{BUILTIN_NAME, ModelSource};

/// Loads a model.
///
/// ```
/// use aisp_engine::loader::{LoadOptions, ModelSource, load};
///
/// let source: ModelSource = "dummy:tiny".parse()?;
/// let checkpoint = load(&source, &LoadOptions::default())?;
/// assert_eq!(checkpoint.config.num_layers, 2);
/// # Ok::<(), aisp_engine::loader::LoadError>(())
/// ```
///
/// Errors: see [`LoadError`].
pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<Checkpoint, LoadError> {
    match source {
        ModelSource::Builtin => builtin::load(options),
        ModelSource::Dummy(shape) => dummy::load(*shape, options),
        ModelSource::Gguf(path) => gguf::load_file(path, source.clone(), options),
        ModelSource::Folder(path) => folder::load(path, source.clone(), options),
        ModelSource::Hub { repo, file, revision } => {
            let fetched = hub::fetch(repo, file.as_deref(), revision.as_deref(), options)?;
            match fetched {
                hub::Fetched::Folder(path) => folder::load(&path, source.clone(), options),
                hub::Fetched::Gguf(path) => gguf::load_file(&path, source.clone(), options),
            }
        }
    }
}

/// Loads a GGUF file that is already in memory; `name` stands for it in messages.
///
/// Errors: see [`LoadError`].
pub fn load_gguf_bytes(bytes: &[u8], name: &str, options: &LoadOptions) -> Result<Checkpoint, LoadError> {
    gguf::load_bytes(bytes, ModelSource::Gguf(name.into()), options)
}
