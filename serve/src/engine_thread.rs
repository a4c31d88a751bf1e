//! The one OS thread that owns the engine. Requests go in through a bounded channel; tokens come out through a channel
//! of each HTTP request. Knows nothing of HTTP or JSON.
//!
//! The engine thread never waits for a client: a request's own channel holds at most its `max_tokens` outputs, so it
//! needs no bound of its own. A receiver that is dropped aborts its sequences and frees their cache at the next step.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aisp_engine::{
    Engine, EngineError, OptimizationStatus, Request, RequestError, RequestId, RequestOutput, SamplingParams,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::error::ApiError;
use crate::lifecycle::{Lifecycle, Phase};
use crate::metrics::Metrics;

/// An idle engine beats this often; readiness allows two seconds.
const IDLE_BEAT: Duration = Duration::from_millis(250);

/// The optimization table is renewed this often while steps run, and whenever a sequence ends.
const PUBLISH_INTERVAL: Duration = Duration::from_millis(250);

/// What the engine says to one HTTP request.
#[derive(Debug)]
pub enum Event {
    /// Every sequence is queued.
    Accepted,
    /// One of the sequences can never run, so none was queued.
    Refused(RequestError),
    /// A step added something to a sequence.
    Output {
        /// Its place in the submission.
        sequence: usize,
        /// What was added.
        output: RequestOutput,
    },
    /// Nothing more will come.
    Lost(ApiError),
}

/// Names one submission.
type SubmissionId = u64;

enum Command {
    Add { id: SubmissionId, prompts: Vec<Prompt>, events: UnboundedSender<Event> },
    Abort { id: SubmissionId, sequence: Option<usize> },
    ResetPrefixCache { reply: oneshot::Sender<bool> },
}

/// A prompt and a set of parameters for each of its answers.
#[derive(Debug, Clone)]
pub struct Prompt {
    /// The prompt; its own parameters do not count.
    pub request: Request,
    /// One set an answer.
    pub params: Vec<SamplingParams>,
}

/// The way to the engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    commands: SyncSender<Command>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    next_id: AtomicU64,
    /// Whom to tell when everything is lost. The engine thread does not touch it, so it works during a long step too.
    listeners: Mutex<HashMap<SubmissionId, UnboundedSender<Event>>>,
    optimizations: Mutex<Arc<[OptimizationStatus]>>,
}

impl EngineHandle {
    /// Queues sequences that belong together. What becomes of them is the first event.
    ///
    /// Errors: the engine is gone, or has more commands waiting than it has room for.
    pub fn submit(&self, prompts: Vec<Prompt>) -> Result<Submission, ApiError> {
        let id = self.shared.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, events) = unbounded_channel();
        lock(&self.shared.listeners).insert(id, sender.clone());
        // From here on dropping the submission cleans up.
        let submission = Submission { id, events, handle: self.clone() };
        match self.commands.try_send(Command::Add { id, prompts, events: sender }) {
            Ok(()) => Ok(submission),
            Err(std::sync::mpsc::TrySendError::Full(_)) => Err(ApiError::Busy { what: "--max-num-queued-reqs" }),
            Err(std::sync::mpsc::TrySendError::Disconnected(_)) => Err(ApiError::EngineFailed),
        }
    }

    /// Requested and engaged, as of the last step that ended a sequence or a quarter of a second ago.
    pub fn optimizations(&self) -> Arc<[OptimizationStatus]> {
        Arc::clone(&lock(&self.shared.optimizations))
    }

    /// Forgets every known prompt beginning; false while requests run.
    ///
    /// Errors: the engine is gone, or has more commands waiting than it has room for.
    pub async fn reset_prefix_cache(&self) -> Result<bool, ApiError> {
        let (reply, answer) = oneshot::channel();
        match self.commands.try_send(Command::ResetPrefixCache { reply }) {
            Ok(()) => answer.await.map_err(|_| ApiError::EngineFailed),
            Err(std::sync::mpsc::TrySendError::Full(_)) => Err(ApiError::Busy { what: "--max-num-queued-reqs" }),
            Err(std::sync::mpsc::TrySendError::Disconnected(_)) => Err(ApiError::EngineFailed),
        }
    }

    /// Ends every submission with this error, whatever the engine is doing.
    pub fn lose_all(&self, error: &ApiError) {
        self.shared.lose_all(error);
    }
}

impl Shared {
    fn lose_all(&self, error: &ApiError) {
        for (_, listener) in lock(&self.listeners).drain() {
            // A listener that is gone has nothing to lose.
            let _ = listener.send(Event::Lost(error.clone()));
        }
    }
}

/// Sequences under way. Dropping it aborts them.
#[derive(Debug)]
pub struct Submission {
    id: SubmissionId,
    /// What the engine says, in order.
    pub events: UnboundedReceiver<Event>,
    handle: EngineHandle,
}

impl Submission {
    /// Aborts one of the sequences, as after a stop string.
    pub fn abort(&self, sequence: usize) {
        self.send_abort(Some(sequence));
    }

    fn send_abort(&self, sequence: Option<usize>) {
        // The channel has room for an abort of every admitted sequence. Should it be full or closed all the same, the
        // engine thread notices the dropped receiver at the next output.
        let _ = self.handle.commands.try_send(Command::Abort { id: self.id, sequence });
    }
}

impl Drop for Submission {
    fn drop(&mut self) {
        if lock(&self.handle.shared.listeners).remove(&self.id).is_some() {
            self.send_abort(None);
        }
    }
}

/// Starts the thread. `build` runs on it; what it comes to arrives through `built`.
///
/// Errors: the system refuses a thread.
pub fn spawn(
    build: impl FnOnce() -> Result<Engine, EngineError> + Send + 'static,
    built: impl FnOnce(Result<(&Engine, EngineHandle), EngineError>) + Send + 'static,
    max_sequences: usize,
    lifecycle: Arc<Lifecycle>,
    metrics: Metrics,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    let (commands, inbox) = sync_channel(max_sequences.saturating_mul(3).saturating_add(64));
    let handle = EngineHandle { commands, shared: Arc::new(Shared::default()) };
    let shared = Arc::clone(&handle.shared);
    std::thread::Builder::new().name("aisp-engine".into()).spawn(move || {
        let (own_shared, own_lifecycle) = (Arc::clone(&shared), Arc::clone(&lifecycle));
        let outcome = catch_unwind(AssertUnwindSafe(move || {
            let engine = match build() {
                Ok(engine) => engine,
                Err(error) => {
                    built(Err(error));
                    return Ok(());
                }
            };
            let mut thread = EngineThread::new(engine, inbox, own_shared, own_lifecycle, metrics);
            built(Ok((&thread.engine, handle)));
            thread.run()
        }));
        match outcome {
            Ok(Ok(())) => return,
            Ok(Err(error)) => tracing::error!("the engine failed: {error}"),
            Err(_) => tracing::error!("the engine thread panicked"),
        }
        // The inbox is gone by now: whoever listens already is told here, whoever comes later is refused.
        lifecycle.advance(Phase::Failed);
        shared.lose_all(&ApiError::EngineFailed);
    })
}

struct EngineThread {
    engine: Engine,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    lifecycle: Arc<Lifecycle>,
    metrics: Metrics,
    routes: HashMap<RequestId, Route>,
    submissions: HashMap<SubmissionId, Vec<RequestId>>,
    published: Instant,
    num_steps: u64,
}

/// Where a sequence's outputs go.
struct Route {
    submission: SubmissionId,
    sequence: usize,
    events: UnboundedSender<Event>,
}

impl EngineThread {
    fn new(
        engine: Engine,
        commands: Receiver<Command>,
        shared: Arc<Shared>,
        lifecycle: Arc<Lifecycle>,
        metrics: Metrics,
    ) -> Self {
        let thread = Self {
            engine,
            commands,
            shared,
            lifecycle,
            metrics,
            routes: HashMap::new(),
            submissions: HashMap::new(),
            published: Instant::now(),
            num_steps: 0,
        };
        thread.publish_optimizations();
        thread.lifecycle.beat();
        thread
    }

    /// Runs until every handle is gone, or the process ends.
    fn run(&mut self) -> Result<(), EngineError> {
        loop {
            if !self.take_commands() || self.lifecycle.phase() == Phase::Ended {
                return Ok(());
            }
            self.lifecycle.beat();
            if self.engine.has_unfinished() {
                let outputs = self.engine.step()?;
                self.lifecycle.beat();
                self.publish(&outputs);
                self.dispatch(outputs);
            }
        }
    }

    /// Takes everything that waits; when idle, waits for something a little while. False when nobody is left.
    fn take_commands(&mut self) -> bool {
        let mut changed = false;
        if !self.engine.has_unfinished() {
            self.set_gauges();
            match self.commands.recv_timeout(IDLE_BEAT) {
                Ok(command) => self.take(command),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
            changed = true;
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.take(command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
            changed = true;
        }
        if changed {
            self.set_gauges();
        }
        true
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Add { id, prompts, events } => self.add(id, prompts, events),
            Command::Abort { id, sequence } => self.abort(id, sequence),
            Command::ResetPrefixCache { reply } => {
                // A client that is gone does not want to know.
                let _ = reply.send(self.engine.reset_prefix_cache());
            }
        }
    }

    fn add(&mut self, submission: SubmissionId, prompts: Vec<Prompt>, events: UnboundedSender<Event>) {
        let mut ids = Vec::with_capacity(prompts.len());
        for Prompt { request, params } in prompts {
            match self.engine.add_parallel(request, params) {
                Ok(parallel) => ids.extend(parallel),
                Err(error) => {
                    for id in ids {
                        self.engine.abort(id);
                    }
                    let _ = events.send(Event::Refused(error));
                    return;
                }
            }
        }
        for (sequence, &id) in ids.iter().enumerate() {
            self.routes.insert(id, Route { submission, sequence, events: events.clone() });
        }
        self.submissions.insert(submission, ids);
        // A client that is already gone has sent its abort.
        let _ = events.send(Event::Accepted);
    }

    fn abort(&mut self, submission: SubmissionId, sequence: Option<usize>) {
        let Some(ids) = self.submissions.get(&submission) else { return };
        let ids: Vec<RequestId> = match sequence {
            Some(sequence) => ids.get(sequence).copied().into_iter().collect(),
            None => ids.clone(),
        };
        for id in ids {
            self.engine.abort(id);
            self.forget(id);
        }
    }

    /// Drops a sequence's route, and its submission with the last of them.
    fn forget(&mut self, id: RequestId) {
        let Some(route) = self.routes.remove(&id) else { return };
        let routes = &self.routes;
        if let Some(ids) = self.submissions.get(&route.submission)
            && !ids.iter().any(|id| routes.contains_key(id))
        {
            self.submissions.remove(&route.submission);
        }
    }

    fn dispatch(&mut self, outputs: Vec<RequestOutput>) {
        for output in outputs {
            let (id, ended) = (output.id, output.finish.is_some());
            let Some(route) = self.routes.get(&id) else { continue };
            let gone = route.events.send(Event::Output { sequence: route.sequence, output }).is_err();
            if gone {
                self.engine.abort(id);
            }
            if gone || ended {
                self.forget(id);
            }
        }
    }

    fn set_gauges(&self) {
        self.metrics.set_engine(&self.engine.stats());
    }

    /// Renews what `/metrics` and `/v1/optimizations` show, before a client learns that its answer is complete.
    fn publish(&mut self, outputs: &[RequestOutput]) {
        let stats = self.engine.stats();
        self.metrics.set_engine(&stats);
        if let Some(step) = stats.last_step.filter(|_| stats.work.num_steps > self.num_steps) {
            self.metrics.record_step(step.num_tokens);
            self.num_steps = stats.work.num_steps;
        }
        if outputs.iter().any(|output| output.finish.is_some()) || self.published.elapsed() > PUBLISH_INTERVAL {
            self.published = Instant::now();
            self.publish_optimizations();
        }
    }

    fn publish_optimizations(&self) {
        let statuses = self.engine.optimizations();
        self.metrics.set_optimizations(&statuses);
        *lock(&self.shared.optimizations) = statuses.into();
    }
}

/// A panic while one of these locks is held leaves nothing half-changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
