//! Where text becomes tokens: a bounded number of blocking threads, so that long prompts do not hold up the sockets,
//! and a panic costs one request.

use std::num::NonZeroUsize;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::error::ApiError;

/// Runs closures on blocking threads, a few at a time. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TextPool {
    permits: Arc<Semaphore>,
}

impl Default for TextPool {
    /// As many threads as there are cores.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self { permits: Arc::new(Semaphore::new(cores)) }
    }
}

impl TextPool {
    /// Runs `work` and waits for it.
    ///
    /// Errors: those of `work`; a panic in it is [`ApiError::Internal`].
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| ApiError::Internal)?;
        let task = tokio::task::spawn_blocking(move || {
            // Held by the thread, not by the waiter: a client that leaves does not free a thread that still works.
            let _permit = permit;
            work()
        });
        task.await.unwrap_or(Err(ApiError::Internal))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_pool_lives_on() {
        let pool = TextPool { permits: Arc::new(Semaphore::new(1)) };
        for _ in 0..3 {
            assert_eq!(pool.run::<()>(|| panic!("injected")).await, Err(ApiError::Internal));
        }
        assert_eq!(pool.run(|| Ok(7)).await, Ok(7));
    }
}
