//! The OpenAI-compatible HTTP server of aisp: requests become token ids, tokens become text, in a stream or whole.
//!
//! ```
//! use aisp_engine::Engine;
//! use aisp_serve::{App, AppConfig, router};
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! let app = App::new(AppConfig { served_model_names: vec!["story-12m".into()], ..AppConfig::default() })?;
//! app.load(|| Engine::builder().build()).await?;
//! let service = router(app); // an axum `Router`: call it, nest it, or give it to `aisp_serve::serve`
//! # drop(service);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod admission;
mod app;
pub mod args;
pub mod banner;
mod connection;
pub mod engine_thread;
mod error;
mod fields;
mod generation;
mod lifecycle;
mod limits;
pub mod metrics;
pub mod mock;
mod openai;
mod routes;
mod server;
mod stall;
mod text_pool;
pub mod threads;

pub use app::{App, AppConfig, AppError, LoadedModel};
pub use error::{ApiError, ErrorBody};
pub use lifecycle::{Lifecycle, Phase};
pub use limits::Limits;
pub use routes::{Arrival, router};
pub use server::{ServeError, serve};
pub use text_pool::TextPool;
