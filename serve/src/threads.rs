//! How many threads compute. candle reads the number from the environment once, and a program cannot safely change its
//! own environment, so `aisp-serve` starts itself again with it: same process id, same arguments.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Threads that compute when nobody says: one core is left to HTTP and to whoever else lives here, because candle's
/// threads wait for one another without giving way, and a step takes ten times as long when one is held up.
pub fn default_num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1))
}

/// Makes sure that `num_threads` compute, or the default number; what the environment says already counts too. Call it
/// before anything else.
///
/// Errors: the program could not be started again.
pub fn ensure(num_threads: Option<usize>) -> io::Result<()> {
    let current = std::env::var(VARIABLE).ok();
    let wanted = match (num_threads, &current) {
        (Some(asked), _) => asked.to_string(),
        (None, Some(_)) => return Ok(()),
        (None, None) => default_num_threads().to_string(),
    };
    if current.as_ref() == Some(&wanted) {
        return Ok(());
    }
    let program = std::env::current_exe()?;
    Err(Command::new(program).args(std::env::args_os().skip(1)).env(VARIABLE, wanted).exec())
}
