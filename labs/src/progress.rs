//! How far the run under way is: one small file that `aisp bench run` keeps and the dashboard follows.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::LabError;

/// Where a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The run.
    pub run_id: String,
    /// The lab at work, `chapter:name`.
    pub lab: String,
    /// What it does: `set-up`, `warm-up`, `measuring paged`, ..
    pub step: String,
    /// Steps done of this run.
    pub done: u64,
    /// Steps of this run.
    pub total: u64,
}

fn path(artifacts: &Path) -> PathBuf {
    artifacts.join("progress.json")
}

/// Tells where a run is. The file is replaced as a whole: a reader sees the old one or the new one.
///
/// Errors: a folder that cannot be written.
pub fn write_progress(artifacts: &Path, progress: &Progress) -> Result<(), LabError> {
    let (path, fresh) = (path(artifacts), artifacts.join("progress.json.new"));
    crate::artifacts::write_json(&fresh, progress)?;
    fs::rename(&fresh, &path).map_err(LabError::io(path))
}

/// Tells that no run is under way.
pub fn clear_progress(artifacts: &Path) {
    // A file that is already gone is what was wanted.
    let _ = fs::remove_file(path(artifacts));
}

/// Where the run under way is; none when there is none.
pub fn read_progress(artifacts: &Path) -> Option<Progress> {
    crate::artifacts::read_json(&path(artifacts)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_until_it_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_progress(folder.path()), None);
        let progress = Progress { run_id: "r".into(), lab: "a:b".into(), step: "warm-up".into(), done: 1, total: 4 };
        write_progress(folder.path(), &progress).unwrap();
        assert_eq!(read_progress(folder.path()), Some(progress));
        clear_progress(folder.path());
        clear_progress(folder.path());
        assert_eq!(read_progress(folder.path()), None);
    }
}
