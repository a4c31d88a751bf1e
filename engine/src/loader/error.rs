//! Why a model did not load. Every message is one line, whatever bytes the file held: text from outside goes through
//! [`printable`].

use std::fmt::Write as _;

/// Why a model did not load. Messages name the file and the field and say what to do.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The text after `--model` has none of the known forms.
    #[error(
        "unknown model '{given}' ({reason}): give a folder, a .gguf file, a hub id (org/name, org/name@revision, org/name/file.gguf), dummy:<shape>, or story-12m (built in)"
    )]
    UnknownSource {
        /// What was given.
        given: String,
        /// Why no form fits.
        reason: &'static str,
    },
    /// There is no such dummy shape.
    #[error("unknown shape '{given}': the dummy shapes are {known}")]
    UnknownShape {
        /// What was given.
        given: String,
        /// The shapes there are.
        known: String,
    },
    /// A file could not be read or written.
    #[error("{file}: cannot {action}: {reason}")]
    Io {
        /// The file.
        file: String,
        /// What was tried: `open`, `read`, `write`.
        action: &'static str,
        /// The system's words.
        reason: String,
    },
    /// A field of a file has a value that no valid file has.
    #[error("{file}: {field} {problem}")]
    Malformed {
        /// The file.
        file: String,
        /// The field: a metadata key, a tensor name, a JSON path.
        field: String,
        /// What is wrong with it and what it takes.
        problem: String,
    },
    /// The file is well-formed but asks for something that this engine does not do.
    #[error("{file}: {field} {got} is not supported: {supported}")]
    Unsupported {
        /// The file.
        file: String,
        /// The field.
        field: String,
        /// Its value.
        got: String,
        /// What is supported, or the way out.
        supported: String,
    },
    /// The config needs a tensor that the checkpoint does not have.
    #[error("{file}: tensor {name} is missing: the download is incomplete or the config belongs to another checkpoint")]
    MissingTensor {
        /// The file or folder.
        file: String,
        /// The tensor's name in that file.
        name: String,
    },
    /// A tensor has another shape than the config gives it.
    #[error("{file}: tensor {name} has shape {got:?}, the config gives it {expected:?}")]
    WrongShape {
        /// The file.
        file: String,
        /// The tensor's name in that file.
        name: String,
        /// Outer dimension first.
        expected: Vec<usize>,
        /// Outer dimension first.
        got: Vec<usize>,
    },
    /// The weights would not fit into memory.
    #[error(
        "{model} needs {needed_bytes} bytes for its weights as {dtype}, {available_bytes} are available: load it as bf16, or choose a smaller or quantized model"
    )]
    NotEnoughMemory {
        /// The model.
        model: String,
        /// The type that the weights would have.
        dtype: String,
        /// Bytes of the weights.
        needed_bytes: u64,
        /// Bytes that the system can give.
        available_bytes: u64,
    },
    /// Weights cannot be computed with in this type.
    #[error("dtype {dtype} is not a compute type: choose f32, bf16 or f16")]
    UnsupportedDtype {
        /// The type asked for.
        dtype: String,
    },
    /// This build lacks a cargo feature.
    #[error("{what} needs the cargo feature '{feature}', which this build lacks: rebuild with it")]
    FeatureOff {
        /// What was asked for.
        what: String,
        /// The feature.
        feature: &'static str,
    },
    /// The hub cannot be reached and the cache does not hold the model.
    #[error(
        "cannot reach {endpoint} for {repo} ({reason}) and the cache does not hold it: check the network or HF_ENDPOINT, or give a folder or a .gguf file"
    )]
    HubUnreachable {
        /// Where we tried.
        endpoint: String,
        /// The model.
        repo: String,
        /// The transport's words.
        reason: String,
    },
    /// `HF_HUB_OFFLINE` is set and the cache does not hold the file.
    #[error("{repo}: {file} is not in the cache {cache} and HF_HUB_OFFLINE is set: unset it once to download")]
    HubOffline {
        /// The model.
        repo: String,
        /// The missing file.
        file: String,
        /// The cache folder.
        cache: String,
    },
    /// The hub answered, but not with the file.
    #[error("{repo}: {endpoint} answered {status} for {file}: {cure}")]
    HubStatus {
        /// The model.
        repo: String,
        /// Who answered.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// The file asked for.
        file: String,
        /// What to do about it.
        cure: &'static str,
    },
    /// What the hub said or sent is wrong: a size, a checksum, a name.
    #[error("{repo}: {file}: {field} {problem}")]
    HubAnswer {
        /// The model.
        repo: String,
        /// The file asked for.
        file: String,
        /// The header or property.
        field: &'static str,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// The device or the tensor library failed.
    #[error("{what}: {reason}")]
    Tensor {
        /// The tensor or step.
        what: String,
        /// The library's words.
        reason: String,
    },
}

impl LoadError {
    /// A read or write that failed.
    pub(crate) fn io(file: impl AsRef<str>, action: &'static str, error: &std::io::Error) -> Self {
        Self::Io { file: printable(file.as_ref()), action, reason: printable(&error.to_string()) }
    }

    /// A tensor library call that failed.
    pub(crate) fn tensor(what: impl AsRef<str>, error: &candle_core::Error) -> Self {
        let text = error.to_string();
        Self::Tensor { what: printable(what.as_ref()), reason: printable(text.lines().next().unwrap_or_default()) }
    }
}

/// A wrong or unsupported field, before the file that holds it is known.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum FieldError {
    /// No valid file has this.
    Malformed { field: String, problem: String },
    /// Valid, but nothing here computes it.
    Unsupported { field: String, got: String, supported: String },
}

impl FieldError {
    /// `field` has a value that no valid file has.
    pub(crate) fn malformed(field: impl AsRef<str>, problem: impl Into<String>) -> Self {
        Self::Malformed { field: printable(field.as_ref()), problem: problem.into() }
    }

    /// `field` has a value that the engine does not handle.
    pub(crate) fn unsupported(field: impl AsRef<str>, got: impl AsRef<str>, supported: impl Into<String>) -> Self {
        Self::Unsupported {
            field: printable(field.as_ref()),
            got: printable(got.as_ref()),
            supported: supported.into(),
        }
    }

    /// Names the file.
    pub(crate) fn in_file(self, file: &str) -> LoadError {
        let file = printable(file);
        match self {
            Self::Malformed { field, problem } => LoadError::Malformed { file, field, problem },
            Self::Unsupported { field, got, supported } => LoadError::Unsupported { file, field, got, supported },
        }
    }

    /// Translates the field's name into the file's own.
    pub(crate) fn rename(mut self, rename: impl FnOnce(&str) -> String) -> Self {
        let (Self::Malformed { field, .. } | Self::Unsupported { field, .. }) = &mut self;
        *field = rename(field);
        self
    }
}

/// Text from a file or a server, safe to show: control characters escaped, cut after 120 characters.
pub(crate) fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 120;
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == MAX_CHARS {
            out.push('…');
            break;
        }
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_on_one_line() {
        assert_eq!(printable("a\nb\u{1b}[2J"), "a\\nb\\u{1b}[2J");
        assert_eq!(printable(&"x".repeat(500)).chars().count(), 121);
        let error = FieldError::malformed("a\nb", "is not a number").in_file("f\r.gguf");
        assert_eq!(error.to_string(), "f\\r.gguf: a\\nb is not a number");
    }
}
