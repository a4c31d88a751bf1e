//! Processes that must not outlive the lab: killed when their handle drops, and before Ctrl-C ends the lab.

use std::io;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Every process under way. A signal handler's thread must find them, so they are the process's own.
static RUNNING: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// A process that dies with this handle.
#[derive(Debug)]
pub struct Supervised {
    pid: u32,
}

impl Supervised {
    /// Starts it; `take` gets it first, to take its pipes.
    ///
    /// Errors: it cannot be started.
    pub fn spawn<T>(command: &mut Command, take: impl FnOnce(&mut Child) -> T) -> io::Result<(Self, T)> {
        let mut child = command.spawn()?;
        let (pid, taken) = (child.id(), take(&mut child));
        running().push(child);
        Ok((Self { pid }, taken))
    }

    /// Whether it is still under way.
    pub fn is_alive(&self) -> bool {
        let mut running = running();
        let own = running.iter_mut().find(|child| child.id() == self.pid);
        own.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        let mut running = running();
        if let Some(at) = running.iter().position(|child| child.id() == self.pid) {
            kill(&mut running.swap_remove(at));
        }
    }
}

/// Ends every process that is still under way.
pub fn kill_all() {
    running().drain(..).for_each(|mut child| kill(&mut child));
}

fn kill(child: &mut Child) {
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
}

fn running() -> MutexGuard<'static, Vec<Child>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn is_alive(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    #[test]
    fn a_process_dies_with_its_handle_or_with_the_lab() {
        let sleep = || Supervised::spawn(Command::new("sleep").arg("60"), |_| ()).unwrap().0;
        let (first, second) = (sleep(), sleep());
        let (first_pid, second_pid) = (first.pid(), second.pid());
        assert!(is_alive(first_pid) && is_alive(second_pid));
        drop(first);
        assert!(!is_alive(first_pid) && is_alive(second_pid));
        kill_all();
        assert!(!is_alive(second_pid));
    }
}
