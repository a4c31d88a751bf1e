//! One repository's part of the cache that all Hugging Face tools share: `blobs/<etag>` hold content,
//! `snapshots/<commit>/<file>` link to them, `refs/<revision>` name commits.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::super::error::{LoadError, printable};
use super::client::is_plain_id;

/// One repository at one revision.
#[derive(Debug)]
pub(crate) struct RepoCache {
    repo: CacheRepo,
    root: PathBuf,
    revision: String,
}

impl RepoCache {
    /// `repo` and `revision` are plain.
    pub(crate) fn new(cache: &Path, repo: &str, revision: &str) -> Self {
        let repo = Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned());
        let root = cache.join(repo.folder_name());
        Self { repo: Cache::new(cache.to_path_buf()).repo(repo), root, revision: revision.to_owned() }
    }

    /// The commit that the revision meant when it was last fetched.
    pub(crate) fn known_commit(&self) -> Option<String> {
        let commit = fs::read_to_string(self.root.join("refs").join(&self.revision)).ok();
        let commit = commit.map(|text| text.trim().to_owned());
        // A revision that is a commit needs no ref.
        commit.or_else(|| Some(self.revision.clone())).filter(|commit| is_plain_id(commit))
    }

    /// Remembers which commit the revision means.
    pub(crate) fn remember(&self, commit: &str) -> Result<(), LoadError> {
        if self.revision == commit {
            return Ok(());
        }
        self.repo.create_ref(commit).map_err(|error| self.io("write", &self.root.join("refs"), &error))
    }

    /// Folder of a commit's files.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    /// The file that holds an etag's content.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.repo.blob_path(etag)
    }

    /// Waits until no other process downloads this content; the lock goes with the returned file.
    pub(crate) fn lock(&self, etag: &str) -> Result<File, LoadError> {
        let path = self.blob(etag).with_extension("lock");
        let lock = || {
            fs::create_dir_all(self.root.join("blobs"))?;
            let file = File::create(&path)?;
            file.lock()?;
            Ok(file)
        };
        lock().map_err(|error| self.io("lock", &path, &error))
    }

    /// Makes a blob appear as a file of a commit.
    pub(crate) fn link(&self, etag: &str, commit: &str, file: &str) -> Result<(), LoadError> {
        let pointer = self.snapshot(commit).join(file);
        let link = || {
            if let Some(folder) = pointer.parent() {
                fs::create_dir_all(folder)?;
            }
            match fs::remove_file(&pointer) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            // Out of `snapshots/<commit>/` and out of the file's own folders.
            let up = "../".repeat(2 + file.matches('/').count());
            link_file(&format!("{up}blobs/{etag}"), &self.blob(etag), &pointer)
        };
        link().map_err(|error| self.io("write", &pointer, &error))
    }

    /// A file operation that failed.
    pub(crate) fn io(&self, action: &'static str, path: &Path, error: &io::Error) -> LoadError {
        LoadError::Io {
            file: printable(&path.display().to_string()),
            action,
            reason: format!("{} (the cache folder is set by HF_HUB_CACHE)", printable(&error.to_string())),
        }
    }
}

#[cfg(unix)]
fn link_file(relative: &str, _blob: &Path, pointer: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(relative, pointer)
}

#[cfg(not(unix))]
fn link_file(_relative: &str, blob: &Path, pointer: &Path) -> io::Result<()> {
    fs::hard_link(blob, pointer).or_else(|_| fs::copy(blob, pointer).map(drop))
}
