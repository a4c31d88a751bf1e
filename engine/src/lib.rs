//! An embeddable LLM inference engine in which every optimization is a switch with a plain baseline on the other side.
#![forbid(unsafe_code)]

pub mod loader;
pub mod model;
mod request;
pub mod text;

pub use request::{
    FinishReason, GeneratedToken, MAX_LOGPROBS, Request, RequestError, RequestId, RequestOutput, RequestTimings,
    SamplingParams, TokenId, TokenLogprobs,
};
