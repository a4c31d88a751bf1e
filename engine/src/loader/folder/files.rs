//! Small files of a model folder: read whole, but only up to a limit.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use super::super::error::{FieldError, LoadError, printable};

/// The text files of a folder and the most bytes that each may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextFile {
    /// Its name in the folder.
    pub(crate) name: &'static str,
    /// Units: bytes.
    pub(crate) max_bytes: u64,
}

/// The model's shape.
pub(crate) const CONFIG: TextFile = TextFile { name: "config.json", max_bytes: 1 << 20 };
/// More end-of-text tokens.
pub(crate) const GENERATION_CONFIG: TextFile = TextFile { name: "generation_config.json", max_bytes: 1 << 20 };
/// Vocabulary and merges.
pub(crate) const TOKENIZER: TextFile = TextFile { name: "tokenizer.json", max_bytes: 64 << 20 };
/// Special tokens and the chat template.
pub(crate) const TOKENIZER_CONFIG: TextFile = TextFile { name: "tokenizer_config.json", max_bytes: 8 << 20 };
/// The chat template, where it has its own file.
pub(crate) const CHAT_TEMPLATE: TextFile = TextFile { name: "chat_template.jinja", max_bytes: 1 << 20 };
/// Which shard holds which tensor.
pub(crate) const INDEX: TextFile = TextFile { name: "model.safetensors.index.json", max_bytes: 16 << 20 };

impl TextFile {
    /// Reads it from `folder`; `None` when it is not there.
    ///
    /// Errors: larger than the limit, not a regular file.
    pub(crate) fn read(self, folder: &Path) -> Result<Option<Vec<u8>>, LoadError> {
        let path = folder.join(self.name);
        let shown = self.shown(folder);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LoadError::io(shown, "open", &error)),
        };
        let too_large = |num_bytes| {
            let problem = format!("is {num_bytes} bytes, at most {} are read", self.max_bytes);
            FieldError::malformed("file size", problem).in_file(&shown)
        };
        let length = file.metadata().map_err(|error| LoadError::io(&shown, "open", &error))?.len();
        if length > self.max_bytes {
            return Err(too_large(length));
        }
        let mut bytes = Vec::new();
        // One byte more than allowed shows a file that grew meanwhile.
        file.take(self.max_bytes + 1).read_to_end(&mut bytes).map_err(|error| LoadError::io(&shown, "read", &error))?;
        if bytes.len() as u64 > self.max_bytes { Err(too_large(bytes.len() as u64)) } else { Ok(Some(bytes)) }
    }

    /// Reads it from `folder`, where it must be.
    pub(crate) fn require(self, folder: &Path) -> Result<Vec<u8>, LoadError> {
        self.read(folder)?.ok_or_else(|| LoadError::Malformed {
            file: printable(&folder.display().to_string()),
            field: self.name.into(),
            problem: "is missing: a model folder has config.json, tokenizer.json and model.safetensors".into(),
        })
    }

    /// Reads its JSON.
    pub(crate) fn parse<T: DeserializeOwned>(self, folder: &Path, bytes: &[u8]) -> Result<T, LoadError> {
        serde_json::from_slice(bytes).map_err(|error| {
            let problem = format!("is not what belongs there: {}", printable(&error.to_string()));
            FieldError::malformed("JSON", problem).in_file(&self.shown(folder))
        })
    }

    /// Its path, for messages.
    pub(crate) fn shown(self, folder: &Path) -> String {
        printable(&folder.join(self.name).display().to_string())
    }
}
