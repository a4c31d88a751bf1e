//! What can go wrong outside a single request.

use crate::loader::LoadError;
use crate::optimizations::SelectionError;
use crate::text::TextError;
use crate::{RequestError, RequestId};

/// Why an engine could not be built or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The checkpoint could not be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The set of optimizations makes no sense.
    #[error(transparent)]
    Selection(#[from] SelectionError),
    /// A request was refused; only the calls that take text report it this way.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Text could not be turned into tokens.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The checkpoint has no tokenizer (`dummy:` shapes), so the engine takes token ids only.
    #[error("this model has no tokenizer: use add_request with token ids")]
    NoTokenizer,
    /// The checkpoint has no chat template.
    #[error("this model has no chat template: pass --chat-template, or send a plain prompt")]
    NoChatTemplate,
    /// A setting is out of range.
    #[error("{name} {message}")]
    InvalidSetting {
        /// The setting as users write it.
        name: &'static str,
        /// What it takes and what it got.
        message: String,
    },
    /// The cache would not hold one request of full length.
    #[error(
        "the KV cache would hold {total_tokens} tokens, a full context needs {max_model_len}: \
         raise --kv-cache-memory-bytes above {needed_bytes} or lower --max-model-len"
    )]
    KvCacheTooSmall {
        /// Tokens that fit.
        total_tokens: usize,
        /// Tokens of a full context.
        max_model_len: usize,
        /// Bytes that a full context takes.
        needed_bytes: u64,
    },
    /// A tensor is missing or has the wrong shape.
    #[error("tensor {name}: {message}")]
    Weight {
        /// The tensor's Hugging Face name.
        name: String,
        /// What was expected.
        message: String,
    },
    /// The GPU failed or is not there.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] aisp_kernels::cuda::CudaError),
    /// An op failed.
    #[error("the model failed: {0}")]
    Candle(#[from] candle_core::Error),
    /// The sampler met a logit that is not a number.
    #[error("request {id}: the model returned logits that are not numbers")]
    NotANumber {
        /// Whose logits.
        id: RequestId,
    },
    /// The runner failed in a way it describes itself; the mock runner's injected faults arrive here.
    #[error("the step failed: {0}")]
    Runner(String),
}

impl EngineError {
    /// Whether a device had no memory left for a step; a smaller one may fit.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda(error) => error.is_out_of_memory(),
            // candle keeps what the driver said as text alone.
            Self::Candle(error) => error.to_string().contains("OUT_OF_MEMORY"),
            _ => false,
        }
    }
}
