//! How far the run under way is, in one small file that a run keeps and the dashboard follows.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::LabError;
use crate::progress::Progress;

/// Iterations may be shorter than a page can show.
const WRITE_EVERY: Duration = Duration::from_millis(250);

/// Where a run is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// The run.
    pub run_id: String,
    /// The lab at work, `chapter:name`.
    pub lab: String,
    /// Iterations done of this lab.
    pub done: u64,
    /// Iterations of this lab.
    pub total: u64,
    /// The process that runs: a file whose process has gone is stale.
    pub pid: u32,
}

fn path(artifacts: &Path) -> PathBuf {
    artifacts.join("live.json")
}

/// Tells where a run is. The file is replaced as a whole: a reader sees the old one or the new one.
///
/// Errors: a folder that cannot be written.
pub fn write_live(artifacts: &Path, live: &Live) -> Result<(), LabError> {
    let (path, fresh) = (path(artifacts), artifacts.join("live.json.new"));
    crate::artifacts::write_json(&fresh, live)?;
    fs::rename(&fresh, &path).map_err(LabError::io(path))
}

/// Where the run under way is; none when there is none. A file that a killed run left behind is removed.
pub fn read_live(artifacts: &Path) -> Option<Live> {
    let path = path(artifacts);
    let live: Live = crate::artifacts::read_json(&path).ok()?;
    if is_alive(live.pid) {
        return Some(live);
    }
    let _ = fs::remove_file(path);
    None
}

/// Where the system does not show processes, all are taken for alive.
fn is_alive(pid: u32) -> bool {
    !Path::new("/proc/self").exists() || Path::new(&format!("/proc/{pid}")).exists()
}

/// Keeps the file while a run lasts, and passes all on to `inner`; dropping it says that the run is over.
///
/// A file that cannot be written never stops a run.
pub struct LiveFile<P> {
    artifacts: PathBuf,
    inner: P,
    state: RefCell<(Live, Instant)>,
}

impl<P: Progress> LiveFile<P> {
    /// Follows the run `run_id`, in a folder that is made if need be.
    pub fn new(artifacts: &Path, run_id: &str, inner: P) -> Self {
        let _ = fs::create_dir_all(artifacts);
        let live = Live { run_id: run_id.to_owned(), lab: String::new(), done: 0, total: 0, pid: std::process::id() };
        Self { artifacts: artifacts.to_owned(), inner, state: RefCell::new((live, Instant::now())) }
    }

    fn write(&self) {
        let (live, written) = &mut *self.state.borrow_mut();
        *written = Instant::now();
        let _ = write_live(&self.artifacts, live);
    }
}

impl<P: Progress> Progress for LiveFile<P> {
    fn lab_started(&self, id: &str, num_iterations: u64) {
        let live = &mut self.state.borrow_mut().0;
        (live.lab, live.done, live.total) = (id.to_owned(), 0, num_iterations);
        let _ = write_live(&self.artifacts, live);
        self.inner.lab_started(id, num_iterations);
    }

    fn iteration_done(&self) {
        self.state.borrow_mut().0.done += 1;
        if self.state.borrow().1.elapsed() >= WRITE_EVERY {
            self.write();
        }
        self.inner.iteration_done();
    }

    fn lab_finished(&self) {
        self.write();
        self.inner.lab_finished();
    }
}

impl<P> Drop for LiveFile<P> {
    fn drop(&mut self) {
        // A file that is already gone is what was wanted.
        let _ = fs::remove_file(path(&self.artifacts));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn a_run_is_followed_until_it_is_over() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read_live(folder.path()), None);
        let file = LiveFile::new(folder.path(), "r", Silent);
        file.lab_started("a:b", 4);
        file.iteration_done();
        file.lab_finished();
        let live = Live { run_id: "r".into(), lab: "a:b".into(), done: 1, total: 4, pid: std::process::id() };
        assert_eq!(read_live(folder.path()), Some(live));
        drop(file);
        assert_eq!(read_live(folder.path()), None);
    }

    #[test]
    fn what_a_killed_run_left_behind_is_cleaned() {
        let folder = tempfile::tempdir().unwrap();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let live = Live { run_id: "r".into(), lab: "a:b".into(), done: 1, total: 4, pid: gone.id() };
        write_live(folder.path(), &live).unwrap();
        assert_eq!(read_live(folder.path()), None);
        assert!(!path(folder.path()).exists());
    }

    #[test]
    fn a_folder_that_cannot_be_written_stops_no_run() {
        let no_folder = tempfile::NamedTempFile::new().unwrap();
        let file = LiveFile::new(no_folder.path(), "r", Silent);
        file.lab_started("a:b", 1);
        file.lab_finished();
    }
}
