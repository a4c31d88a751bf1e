//! The workloads that an A/B can take: mixes of lengths by name.

use clap::ValueEnum;

use crate::labs::{Answers, RequestMix, mixed_requests, scaled};

/// A mix of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum AbWorkload {
    /// Prompts and answers of all lengths
    #[default]
    Mixed,
    /// Short prompts; one answer in eight is long
    FewLong,
    /// Long prompts, short answers
    LongPrompts,
}

impl AbWorkload {
    /// The mix for a model of this many parameters.
    pub fn mix(self) -> fn(u64) -> RequestMix {
        match self {
            Self::Mixed => mixed_requests,
            Self::FewLong => few_long_answers,
            Self::LongPrompts => long_prompts,
        }
    }
}

/// One answer in eight is long: a static batch waits for it.
pub fn few_long_answers(num_parameters: u64) -> RequestMix {
    let full = RequestMix {
        num_requests: 48,
        max_prompt_tokens: 32,
        max_answer_tokens: 96,
        answers: Answers::FewLong,
        arrivals_per_step: 48,
        allowed_tokens: None,
    };
    scaled(full, num_parameters)
}

fn long_prompts(num_parameters: u64) -> RequestMix {
    let full = RequestMix {
        num_requests: 24,
        max_prompt_tokens: 200,
        max_answer_tokens: 12,
        answers: Answers::Even,
        arrivals_per_step: 2,
        allowed_tokens: None,
    };
    scaled(full, num_parameters)
}
