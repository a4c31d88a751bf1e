//! An engine without a model: the real engine, scheduler and cache over the mock runner, with a vocabulary of printable
//! characters. For tests, and to measure what the front end costs.

use std::time::Duration;

use aisp_engine::kv_cache::PagedManager;
use aisp_engine::model::ModelWork;
use aisp_engine::prefix_cache::BlockChain;
use aisp_engine::runner::{MockFault, MockRunner};
use aisp_engine::sampler::CandidateSampler;
use aisp_engine::scheduler::{ChunkedPrefill, ContinuousBatching, SchedulerConfig, SchedulerPolicies};
use aisp_engine::text::{ChatTemplate, GgufVocab, TextError, Tokenizer};
use aisp_engine::{Engagement, Engine, EngineError, EngineParts, ModelInfo, Selection};

/// Name of the token that ends an answer.
const END: &str = "<|end|>";

const TEMPLATE: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
    {% if add_generation_prompt %}assistant: {% endif %}";

/// Settings of the mock engine.
#[derive(Debug, Clone)]
pub struct MockEngine {
    /// Every step takes this long.
    pub step_time: Duration,
    /// What goes wrong, and when.
    pub fault: Option<MockFault>,
    /// Sequences in a step.
    pub max_num_seqs: usize,
    /// Tokens in a step.
    pub max_num_batched_tokens: usize,
    /// Tokens of prompt and answer.
    pub max_model_len: usize,
    /// Token slots of the cache.
    pub num_kv_slots: usize,
}

impl Default for MockEngine {
    fn default() -> Self {
        Self {
            step_time: Duration::ZERO,
            fault: None,
            max_num_seqs: 64,
            max_num_batched_tokens: 2048,
            max_model_len: 1024,
            num_kv_slots: 64 * 1024,
        }
    }
}

impl MockEngine {
    /// Builds the engine.
    ///
    /// Errors: never in practice; the vocabulary and the template are constants.
    pub fn build(self) -> Result<Engine, EngineError> {
        let tokens = vocabulary();
        let vocab_size = tokens.len();
        let end = vocab_size as u32 - 1;
        let tokenizer = tokenizer(tokens)?;
        let mut runner = MockRunner::new(vocab_size).with_step_time(self.step_time);
        if let Some(fault) = self.fault {
            runner = runner.with_fault(fault);
        }
        Ok(Engine::from_parts(EngineParts {
            info: ModelInfo {
                name: "mock".into(),
                weight_format: "none".into(),
                num_parameters: 0,
                weight_bytes: 0,
                vocab_size,
                max_model_len: self.max_model_len,
                eos_token_ids: vec![end],
                num_kv_slots: self.num_kv_slots,
                kv_cache_bytes: 0,
                device: "mock".into(),
                work: ModelWork::default(),
            },
            runner: Box::new(runner),
            kv: Box::new(PagedManager::new(self.num_kv_slots, Box::new(BlockChain::default()))),
            policies: SchedulerPolicies {
                admission: Box::new(ContinuousBatching),
                prefill: Box::new(ChunkedPrefill { chunk_tokens: 64 }),
            },
            sampler: Box::new(CandidateSampler::default()),
            scheduler: SchedulerConfig {
                max_num_seqs: self.max_num_seqs,
                max_num_batched_tokens: self.max_num_batched_tokens,
            },
            selection: Selection::exact(),
            engagement: Engagement::default(),
            tokenizer: Some(tokenizer),
            chat_template: Some(ChatTemplate::new(TEMPLATE)?),
            seed: 0,
            clock: Box::new(std::time::Instant::now),
        }))
    }
}

/// Space to `~`, newline, end. Byte-level vocabularies write space and newline as `Ġ` and `Ċ`.
fn vocabulary() -> Vec<String> {
    let printable = ('!'..='~').map(String::from);
    ["Ġ".to_owned()].into_iter().chain(printable).chain(["Ċ".to_owned(), END.to_owned()]).collect()
}

fn tokenizer(tokens: Vec<String>) -> Result<Tokenizer, TextError> {
    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    let mut token_types = vec![NORMAL; tokens.len()];
    if let Some(end) = token_types.last_mut() {
        *end = CONTROL;
    }
    let eos_token_id = Some(tokens.len() as u32 - 1);
    Tokenizer::from_gguf(&GgufVocab {
        model: "gpt2".into(),
        pre: Some("smollm".into()),
        tokens,
        token_types,
        eos_token_id,
        ..GgufVocab::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aisp_engine::SamplingParams;

    #[test]
    fn text_comes_back_and_answers_repeat() {
        let mut engine = MockEngine::default().build().unwrap();
        let tokenizer = engine.tokenizer().unwrap().clone();
        let text = "Hello, world!\n";
        assert_eq!(tokenizer.decode(&tokenizer.encode(text, true).unwrap(), true), text);
        let params = SamplingParams { ignore_eos: true, ..SamplingParams::greedy(50) };
        let answer = engine.generate(text, &params).unwrap();
        assert_eq!(answer.token_ids.len(), 50);
        assert_eq!(engine.generate(text, &params).unwrap(), answer);
    }
}
