//! What `--model` names: built in, a folder, a GGUF file, a hub id, a made-up shape.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::dummy::DummyShape;
use super::error::{LoadError, printable};

/// The name of the built-in model.
pub const BUILTIN_NAME: &str = "story-12m";

/// Where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The model embedded in the binary (cargo feature `builtin-model`).
    Builtin,
    /// A repository of the Hugging Face hub.
    Hub {
        /// `org/name`.
        repo: String,
        /// A GGUF file inside it, for repositories that hold several.
        file: Option<String>,
        /// Branch, tag or commit; `None` is `main`.
        revision: Option<String>,
    },
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// A GGUF file.
    Gguf(PathBuf),
    /// Seeded random weights.
    Dummy(DummyShape),
}

impl FromStr for ModelSource {
    type Err = LoadError;

    /// Reads the forms that [`LoadError::UnknownSource`] lists. What exists on disk wins over a hub id.
    fn from_str(text: &str) -> Result<Self, LoadError> {
        if text.is_empty() || text == BUILTIN_NAME {
            return Ok(Self::Builtin);
        }
        if let Some(shape) = text.strip_prefix("dummy:") {
            return shape.parse().map(Self::Dummy);
        }
        let path = Path::new(text);
        let is_gguf_name = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if path.is_dir() {
            return Ok(Self::Folder(path.into()));
        }
        if path.is_file() && is_gguf_name {
            return Ok(Self::Gguf(path.into()));
        }
        let unknown = |reason| Err(LoadError::UnknownSource { given: printable(text), reason });
        if path.is_file() {
            return unknown("this file is not a .gguf");
        }
        if let Some(hub) = hub_id(text) {
            return Ok(hub);
        }
        if is_gguf_name {
            return Ok(Self::Gguf(path.into()));
        }
        unknown("no such folder or file, and not a hub id")
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin => f.write_str(BUILTIN_NAME),
            Self::Hub { repo, file, revision } => {
                f.write_str(repo)?;
                if let Some(file) = file {
                    write!(f, "/{file}")?;
                }
                match revision {
                    Some(revision) => write!(f, "@{revision}"),
                    None => Ok(()),
                }
            }
            Self::Folder(path) | Self::Gguf(path) => write!(f, "{}", path.display()),
            Self::Dummy(shape) => write!(f, "dummy:{shape}"),
        }
    }
}

impl ModelSource {
    /// The id that `/v1/models` shows: no path of this machine.
    pub fn name(&self) -> String {
        let last = |path: &Path| {
            let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
            let stem = if path.is_dir() { path.file_name() } else { path.file_stem() };
            stem.map_or_else(|| "model".to_owned(), |name| printable(&name.to_string_lossy()))
        };
        match self {
            Self::Builtin | Self::Dummy(_) => self.to_string(),
            Self::Hub { repo, .. } => repo.clone(),
            Self::Folder(path) | Self::Gguf(path) => last(path),
        }
    }
}

/// `org/name`, `org/name@revision`, `org/name/file.gguf`, `org/name/file.gguf@revision`.
fn hub_id(text: &str) -> Option<ModelSource> {
    let (id, revision) = match text.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (text, None),
    };
    let mut parts = id.splitn(3, '/');
    let (org, name, file) = (parts.next()?, parts.next()?, parts.next());
    let file_fits =
        |file: &str| is_plain_path(file) && Path::new(file).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    // `models/x.gguf` is a file that is not there, not a repository.
    let name_fits = is_plain_name(name) && !(file.is_none() && file_fits(name));
    if !is_plain_name(org) || !name_fits || !file.is_none_or(file_fits) || !revision.is_none_or(is_plain_path) {
        return None;
    }
    Some(ModelSource::Hub {
        repo: format!("{org}/{name}"),
        file: file.map(Into::into),
        revision: revision.map(Into::into),
    })
}

/// One component that names a file and nothing else: letters, digits, `-`, `_`, `.`; not starting with a dot.
pub(crate) fn is_plain_name(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// Plain names joined by `/`.
pub(crate) fn is_plain_path(path: &str) -> bool {
    path.len() <= 512 && path.split('/').all(is_plain_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, file: Option<&str>, revision: Option<&str>) -> ModelSource {
        ModelSource::Hub { repo: repo.into(), file: file.map(Into::into), revision: revision.map(Into::into) }
    }

    #[test]
    fn every_form_is_read_and_shown_again() {
        let folder = tempfile::tempdir().unwrap();
        let gguf = folder.path().join("m.gguf");
        std::fs::write(&gguf, b"").unwrap();
        let (folder_text, gguf_text) = (folder.path().display().to_string(), gguf.display().to_string());
        for (text, expected) in [
            ("story-12m", ModelSource::Builtin),
            ("dummy:tiny", ModelSource::Dummy(DummyShape::Tiny)),
            ("dummy:llama-3.1-8b", ModelSource::Dummy(DummyShape::Llama3_1_8b)),
            (&folder_text, ModelSource::Folder(folder.path().into())),
            (&gguf_text, ModelSource::Gguf(gguf.clone())),
            ("missing.gguf", ModelSource::Gguf("missing.gguf".into())),
            ("models/missing.gguf", ModelSource::Gguf("models/missing.gguf".into())),
            ("/nowhere/at/all.gguf", ModelSource::Gguf("/nowhere/at/all.gguf".into())),
            ("Qwen/Qwen2.5-0.5B", hub("Qwen/Qwen2.5-0.5B", None, None)),
            ("a/b@main", hub("a/b", None, Some("main"))),
            ("a/b@refs/pr/1", hub("a/b", None, Some("refs/pr/1"))),
            ("a/b/c-Q4_0.gguf@v1", hub("a/b", Some("c-Q4_0.gguf"), Some("v1"))),
        ] {
            let source: ModelSource = text.parse().unwrap();
            assert_eq!(source, expected, "{text}");
            assert_eq!(source.to_string(), text);
        }
        assert_eq!("".parse::<ModelSource>().unwrap(), ModelSource::Builtin);
    }

    #[test]
    fn anything_else_lists_the_forms_on_one_line() {
        for text in ["gpt2", "a/b/c", "../x", "a/../b", "a/..", "/a/b", "a/b@../c", "a b/c", "a/b@", "a\n/b", "~/x"] {
            let message = text.parse::<ModelSource>().unwrap_err().to_string();
            assert!(message.contains("org/name") && message.contains("dummy:<shape>"), "{text}: {message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
        let message = "dummy:huge".parse::<ModelSource>().unwrap_err().to_string();
        assert!(message.contains("huge") && message.contains("llama-3.2-1b"), "{message}");
    }
}
