//! An embeddable LLM inference engine in which every optimization is a switch with a plain baseline on the other side.
//!
//! ```
//! use aisp_engine::{Engine, Request, SamplingParams, Selection};
//!
//! // The built-in model; `Selection::none()` is the plain baseline of everything.
//! let mut engine = Engine::builder().optimizations(Selection::all()).build()?;
//!
//! // Text in, text out.
//! let answer = engine.generate("The little dog", &SamplingParams::greedy(12))?;
//! println!("{}", answer.text);
//!
//! // Or many requests at once, step by step, in token ids.
//! let id = engine.add_request(Request::new(vec![504, 2365, 2767], SamplingParams::greedy(4)))?;
//! let mut tokens = Vec::new();
//! while engine.has_unfinished() {
//!     for output in engine.step()? {
//!         assert_eq!(output.id, id);
//!         tokens.extend(output.tokens.iter().map(|token| token.id));
//!     }
//! }
//! assert_eq!(tokens.len(), 4);
//! # Ok::<(), aisp_engine::EngineError>(())
//! ```
#![forbid(unsafe_code)]

mod builder;
mod builder_cuda;
mod components;
mod compute;
mod device;
mod engine;
mod error;
mod generate;
pub mod kv_cache;
pub mod loader;
pub mod model;
pub mod optimizations;
mod plan;
pub mod prefix_cache;
mod request;
pub mod runner;
pub mod sampler;
pub mod scheduler;
mod sequence;
pub mod text;

pub use builder::EngineBuilder;
pub use components::{BuildContext, Components, Engagement, KvParts};
pub use compute::Compute;
pub use device::{DeviceChoice, DeviceKind, UnknownDevice, probe_gpu};
pub use engine::{Clock, Engine, EngineParts, EngineStats, ModelInfo, OptimizationStatus, StepStats};
pub use error::EngineError;
pub use generate::{Completion, CompletionDelta, CompletionStream};
pub use loader::ModelSource;
pub use optimizations::{Optimization, Selection, SelectionError};
pub use plan::{
    ActivationKind, AttentionKind, DecodeSplitsKind, ExecutionKind, KvLayout, KvTypeKind, LinearKind, LoadingKind,
    Plan, PointwiseKind, PrefillKind, PrefixReuse, Products, ProductsKind, SamplerKind, SchedulerKind, TeamKind,
    WeightKind, WideProductsKind,
};
pub use request::{
    FinishReason, GeneratedToken, MAX_LOGPROBS, Request, RequestError, RequestId, RequestOutput, RequestTimings,
    SamplingParams, TokenId, TokenLogprobs,
};
pub use sequence::Sequence;
