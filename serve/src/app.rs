//! What all handlers share: limits, the key, metrics, and, once it is loaded, the model.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aisp_engine::text::{ChatTemplate, Tokenizer};
use aisp_engine::{Engine, EngineError, ModelInfo};

use crate::admission::{Admission, AdmissionLimits};
use crate::engine_thread::{self, EngineHandle};
use crate::error::ApiError;
use crate::lifecycle::{Lifecycle, Phase};
use crate::limits::Limits;
use crate::metrics::{Metrics, Namespace};
use crate::text_pool::TextPool;

/// Settings of the server that do not concern the engine.
#[derive(Debug, Clone)]
pub struct AppConfig {
    /// Names that clients may call the model by; the first is shown in answers and metrics. At least one.
    pub served_model_names: Vec<String>,
    /// The key that every closed route asks for.
    pub api_key: Option<String>,
    /// Bounds of requests.
    pub limits: Limits,
    /// Bounds of the queue.
    pub admission: AdmissionLimits,
    /// Prefix of metric names.
    pub metrics_namespace: Namespace,
    /// Replaces the model's own chat template.
    pub chat_template: Option<ChatTemplate>,
}

impl Default for AppConfig {
    fn default() -> Self {
        Self {
            served_model_names: vec!["model".into()],
            api_key: None,
            limits: Limits::default(),
            admission: AdmissionLimits { max_num_seqs: 256, max_num_queued_reqs: 1024, max_num_queued_tokens: 4 << 20 },
            metrics_namespace: Namespace::default(),
            chat_template: None,
        }
    }
}

/// The loaded model, as handlers see it.
#[derive(Debug)]
pub struct LoadedModel {
    /// What is served.
    pub info: ModelInfo,
    /// Text to tokens.
    pub tokenizer: Option<Tokenizer>,
    /// Messages to a prompt.
    pub chat_template: Option<ChatTemplate>,
    /// The way to the engine.
    pub engine: EngineHandle,
}

/// State of the server; handlers share it behind an `Arc`.
#[derive(Debug)]
pub struct App {
    config: AppConfig,
    /// Phase and heartbeat.
    pub lifecycle: Arc<Lifecycle>,
    /// Every series.
    pub metrics: Metrics,
    /// The gate in front of the engine.
    pub admission: Admission,
    /// Threads for tokenizing.
    pub text_pool: TextPool,
    model: OnceLock<LoadedModel>,
    engine_thread: Mutex<Option<JoinHandle<()>>>,
    created: u64,
    /// Distinguishes the ids of this process from those of others.
    boot_id: u64,
    next_answer: AtomicU64,
}

/// Why an app could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The metrics exporter refused its settings.
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(&'static str),
    /// The system refused a thread.
    #[error("could not start the engine thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The model could not be loaded.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The engine thread panicked while loading.
    #[error("the engine thread panicked while it loaded the model")]
    LoadPanicked,
}

impl App {
    /// A server without a model.
    ///
    /// Errors: a setting that makes no sense.
    pub fn new(config: AppConfig) -> Result<Arc<Self>, AppError> {
        let name = match config.served_model_names.first() {
            Some(name) if !name.is_empty() => name,
            _ => return Err(AppError::Setting("--served-model-name must not be empty")),
        };
        if config.api_key.as_deref() == Some("") {
            return Err(AppError::Setting("--api-key must not be empty"));
        }
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
        Ok(Arc::new(Self {
            lifecycle: Arc::default(),
            metrics: Metrics::new(config.metrics_namespace, name)?,
            admission: Admission::new(config.admission),
            text_pool: TextPool::default(),
            model: OnceLock::new(),
            engine_thread: Mutex::default(),
            created: unix_seconds(),
            boot_id: random,
            next_answer: AtomicU64::new(0),
            config,
        }))
    }

    /// Starts the engine thread, which builds the engine; returns when it serves.
    ///
    /// Errors: the model could not be loaded.
    pub async fn load(
        self: &Arc<Self>,
        build: impl FnOnce() -> Result<Engine, EngineError> + Send + 'static,
    ) -> Result<(), AppError> {
        let (sender, built) = tokio::sync::oneshot::channel();
        let app = Arc::clone(self);
        let max_sequences = self.config.admission.max_sequences();
        let (lifecycle, metrics) = (Arc::clone(&self.lifecycle), self.metrics.clone());
        let keep = move |result: Result<(&Engine, EngineHandle), EngineError>| {
            let result = result.map(|(engine, handle)| app.set_model(engine, handle));
            // Nobody waits any more when the server was told to stop while it loaded.
            let _ = sender.send(result);
        };
        let thread = engine_thread::spawn(build, keep, max_sequences, lifecycle, metrics)?;
        *self.engine_thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        built.await.map_err(|_| AppError::LoadPanicked)??;
        Ok(())
    }

    /// Ends the engine after its step, once nobody is served any more; whether it had given back what it holds within
    /// `limit`. The driver of a device does not bear that a process ends while a thread still uses it.
    pub fn end(&self, limit: Duration) -> bool {
        const POLL: Duration = Duration::from_millis(5);
        self.lifecycle.advance(Phase::Ended);
        let thread = self.engine_thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let deadline = Instant::now() + limit;
        let is_over = || thread.as_ref().is_none_or(JoinHandle::is_finished);
        while !is_over() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        let is_over = is_over();
        if !is_over {
            *self.engine_thread.lock().unwrap_or_else(PoisonError::into_inner) = thread;
        }
        is_over
    }

    fn set_model(&self, engine: &Engine, handle: EngineHandle) {
        let own_template = self.config.chat_template.clone();
        let model = LoadedModel {
            info: engine.model_info().clone(),
            tokenizer: engine.tokenizer().cloned(),
            chat_template: own_template.or_else(|| engine.chat_template().cloned()),
            engine: handle,
        };
        // Loading happens once.
        let _ = self.model.set(model);
        self.lifecycle.advance(Phase::Serving);
    }

    /// The settings.
    pub fn config(&self) -> &AppConfig {
        &self.config
    }

    /// The bounds of requests.
    pub fn limits(&self) -> &Limits {
        &self.config.limits
    }

    /// The model, if the server takes requests now.
    ///
    /// Errors: loading, draining or failed.
    pub fn accepting_model(&self) -> Result<&LoadedModel, ApiError> {
        self.lifecycle.accepts()?;
        self.model.get().ok_or(ApiError::Loading)
    }

    /// The model, if it is loaded.
    pub fn model(&self) -> Option<&LoadedModel> {
        self.model.get()
    }

    /// The name to answer with: the client's, or the first of ours when it gave none.
    ///
    /// Errors: a model that is not served here.
    pub fn model_name(&self, asked: Option<&str>) -> Result<String, ApiError> {
        let names = &self.config.served_model_names;
        match asked {
            None => Ok(names[0].clone()),
            Some(name) if names.iter().any(|served| served == name) => Ok(name.to_owned()),
            Some(name) => Err(ApiError::ModelNotFound { name: crate::error::shorten(name) }),
        }
    }

    /// When the server started: what `/v1/models` calls `created`.
    pub fn created(&self) -> u64 {
        self.created
    }

    /// An id for an answer, unique among all servers for practical purposes.
    pub fn next_answer_id(&self, prefix: &str, given: Option<&str>) -> String {
        match given {
            Some(given) => format!("{prefix}-{given}"),
            None => format!("{prefix}-{:016x}{:08x}", self.boot_id, self.next_answer.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// Seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
