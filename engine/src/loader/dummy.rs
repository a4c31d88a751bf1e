//! Seeded random weights in the shape of a known model: for speed work, where only the shape matters. The same seed
//! gives the same bits on any number of threads.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor, WithDType};
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::model::{Architecture, ModelConfig, RandomWeight, RopeScaling, RopeStyle, Weight, Weights};

use super::checkpoint::Checkpoint;
use super::error::{LoadError, printable};
use super::layout::{TensorRole, TensorSpec, tensor_specs};
use super::options::LoadOptions;
use super::source::ModelSource;
use super::{builtin, memory};

/// A shape that `dummy:<shape>` names. All use the built-in model's 49 152 tokens for text; a larger vocabulary is
/// filled up with tokens that no text produces. None has special tokens, so generation ends at `max_tokens` only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DummyShape {
    /// Llama 3.1 8B: 8.03 G parameters, 16 GB in bf16.
    Llama3_1_8b,
    /// Llama 3.2 1B: 1.24 G parameters, 2.5 GB in bf16.
    Llama3_2_1b,
    /// SmolLM2 135M.
    Smollm2_135m,
    /// 2 layers of width 64 under the built-in vocabulary: 3.2 M parameters, for tests.
    Tiny,
}

impl DummyShape {
    /// Every shape.
    pub const ALL: [Self; 4] = [Self::Llama3_1_8b, Self::Llama3_2_1b, Self::Smollm2_135m, Self::Tiny];

    /// The word after `dummy:`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama3_1_8b => "llama-3.1-8b",
            Self::Llama3_2_1b => "llama-3.2-1b",
            Self::Smollm2_135m => "smollm2-135m",
            Self::Tiny => "tiny",
        }
    }

    /// Its shape.
    pub fn config(self) -> ModelConfig {
        let llama3 = |factor| RopeScaling::Llama3 {
            factor,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192,
        };
        let base = tiny();
        let llama = ModelConfig {
            num_heads: 32,
            num_kv_heads: 8,
            vocab_size: 128_256,
            max_position_embeddings: 131_072,
            rope_theta: 500_000.0,
            ..base.clone()
        };
        match self {
            Self::Llama3_1_8b => ModelConfig {
                hidden_size: 4096,
                intermediate_size: 14_336,
                num_layers: 32,
                head_dim: 128,
                rope_scaling: llama3(8.0),
                tie_word_embeddings: false,
                ..llama
            },
            Self::Llama3_2_1b => ModelConfig {
                hidden_size: 2048,
                intermediate_size: 8192,
                num_layers: 16,
                head_dim: 64,
                rope_scaling: llama3(32.0),
                ..llama
            },
            Self::Smollm2_135m => ModelConfig {
                hidden_size: 576,
                intermediate_size: 1536,
                num_layers: 30,
                num_heads: 9,
                num_kv_heads: 3,
                head_dim: 64,
                max_position_embeddings: 8192,
                ..base
            },
            Self::Tiny => base,
        }
    }
}

/// The smallest shape, which the others change.
fn tiny() -> ModelConfig {
    ModelConfig {
        architecture: Architecture::Llama,
        hidden_size: 64,
        intermediate_size: 128,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 16,
        vocab_size: 49_152,
        max_position_embeddings: 2048,
        rms_norm_eps: 1e-5,
        rope_theta: 100_000.0,
        rope_style: RopeStyle::Neox,
        rope_scaling: RopeScaling::None,
        sliding_window: None,
        qkv_bias: false,
        qk_norm: false,
        tie_word_embeddings: true,
        eos_token_ids: Vec::new(),
        bos_token_id: None,
    }
}

impl fmt::Display for DummyShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DummyShape {
    type Err = LoadError;

    fn from_str(text: &str) -> Result<Self, LoadError> {
        Self::ALL.into_iter().find(|shape| shape.name() == text).ok_or_else(|| LoadError::UnknownShape {
            given: printable(text),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// Makes the weights.
///
/// Cost: one pass over the weights on all cores. Errors: more bytes than memory holds.
pub(crate) fn load(shape: DummyShape, options: &LoadOptions) -> Result<Checkpoint, LoadError> {
    let source = ModelSource::Dummy(shape);
    let config = shape.config();
    let dtype = options.compute_dtype()?;
    let specs = tensor_specs(&config);
    let num_parameters: u64 = specs.iter().map(TensorSpec::num_values).sum();
    let weight_bytes = num_parameters * dtype.size_in_bytes() as u64;
    if !options.drawn_on_device {
        memory::check_fits(&source.to_string(), weight_bytes, dtype, options)?;
    }

    let mut weights = Weights::default();
    for (index, spec) in specs.iter().enumerate() {
        if let Some(half_width) = half_width(spec, &config).filter(|_| options.drawn_on_device) {
            // Of a uniform distribution of this width.
            let deviation = half_width / 3f32.sqrt();
            let seed = options.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(index as u64);
            weights.insert_random(&spec.name, RandomWeight { dims: spec.shape.clone(), seed, deviation });
            continue;
        }
        let tensor = match dtype {
            DType::BF16 => random_tensor(spec, index, &config, options, bf16::from_f32),
            DType::F16 => random_tensor(spec, index, &config, options, f16::from_f32),
            _ => random_tensor(spec, index, &config, options, |value| value),
        };
        weights.insert(&spec.name, Weight::Dense(tensor.map_err(|error| LoadError::tensor(&spec.name, &error))?));
    }
    let (tokenizer, chat_template) = builtin::borrowed_tokenizer(config.vocab_size)?;
    Ok(Checkpoint {
        name: source.name(),
        source,
        config,
        weights,
        tokenizer,
        chat_template,
        weight_format: format!("random {}", dtype.as_str()),
        num_parameters,
        weight_bytes,
    })
}

/// Half-width of the uniform distribution of a tensor, or `None` for constants. Chosen so that every activation and
/// logit keeps a variance near 1: `1 / fan_in` for projections, smaller by the number of residual additions for those
/// that add to the residual stream.
fn half_width(spec: &TensorSpec, config: &ModelConfig) -> Option<f32> {
    let fan_in = spec.shape.last().copied().unwrap_or(1) as f32;
    let additions = match spec.role {
        TensorRole::Vocabulary | TensorRole::Projection => 1.0,
        TensorRole::ResidualProjection => 2.0 * config.num_layers as f32,
        TensorRole::Norm | TensorRole::Bias => return None,
    };
    Some((3.0 / (fan_in * additions)).sqrt())
}

fn random_tensor<T: WithDType>(
    spec: &TensorSpec,
    index: usize,
    config: &ModelConfig,
    options: &LoadOptions,
    convert: impl Fn(f32) -> T,
) -> candle_core::Result<Tensor> {
    let num_values = spec.num_values() as usize;
    let values = match half_width(spec, config) {
        Some(half_width) => {
            // Sixteen random bits a value: converting each of their 65 536 meanings once is several times faster.
            let unit = |bits: i16| f32::from(bits) * (1.0 / 32768.0);
            let table: Vec<T> = (0..=u16::MAX).map(|bits| convert(unit(bits as i16) * half_width)).collect();
            draw(num_values, options.seed, index as u64, &table, convert(0.0))
        }
        None if spec.role == TensorRole::Norm => vec![convert(1.0); num_values],
        None => vec![convert(0.0); num_values],
    };
    Tensor::from_vec(values, spec.shape.as_slice(), &options.device)
}

/// Values drawn from the table. Chunk `c` of tensor `t` is ChaCha8 stream `t << 32 | c`: any thread may fill it.
fn draw<T: Copy + Send + Sync>(num_values: usize, seed: u64, tensor: u64, table: &[T], zero: T) -> Vec<T> {
    const CHUNK: usize = 1 << 18;
    let mut values = vec![zero; num_values];
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from).min(num_values.div_ceil(CHUNK));
    let chunks = Mutex::new(values.chunks_mut(CHUNK).enumerate());
    let fill = || {
        let mut bytes = [0_u8; 4096];
        loop {
            // The lock is held only to hand out a chunk.
            let next = chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, chunk)) = next else { return };
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(tensor << 32 | number as u64);
            for part in chunk.chunks_mut(bytes.len() / 2) {
                rng.fill_bytes(&mut bytes);
                for (value, pair) in part.iter_mut().zip(bytes.as_chunks().0) {
                    *value = table[usize::from(u16::from_le_bytes(*pair))];
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..num_threads {
            scope.spawn(fill);
        }
        fill();
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::TokenizerSource;

    fn values(seed: u64, dtype: DType, name: &str) -> Vec<f32> {
        let options = LoadOptions { seed, dtype: Some(dtype), ..LoadOptions::default() };
        let mut checkpoint = load(DummyShape::Tiny, &options).unwrap();
        match checkpoint.weights.take(name).unwrap() {
            Weight::Dense(tensor) => {
                assert_eq!(tensor.dtype(), dtype);
                tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
            }
            Weight::Quantized(_) | Weight::Mapped(_) => panic!("dummy weights are dense"),
        }
    }

    #[test]
    fn the_seed_decides_every_bit() {
        let name = "model.embed_tokens.weight";
        assert_eq!(values(7, DType::F32, name), values(7, DType::F32, name));
        assert_ne!(values(7, DType::F32, name), values(8, DType::F32, name));
        let (q, k) = ("model.layers.0.self_attn.k_proj.weight", "model.layers.1.self_attn.k_proj.weight");
        assert_ne!(values(7, DType::BF16, q), values(7, DType::BF16, k));
    }

    #[test]
    fn variances_keep_activations_near_one() {
        let all = values(1, DType::F32, "model.embed_tokens.weight");
        let mean = all.iter().map(|v| f64::from(*v)).sum::<f64>() / all.len() as f64;
        let variance = all.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / all.len() as f64;
        assert!(mean.abs() < 1e-3 && (variance * 64.0 - 1.0).abs() < 0.01, "mean {mean}, variance {variance}");
        assert!(values(1, DType::F16, "model.norm.weight").iter().all(|v| *v == 1.0));
    }

    #[test]
    fn the_count_of_parameters_and_bytes_is_right() {
        let checkpoint = load(DummyShape::Tiny, &LoadOptions::default()).unwrap();
        assert_eq!(checkpoint.num_parameters, 3_219_776);
        assert_eq!(checkpoint.weight_bytes, 4 * 3_219_776);
        assert_eq!(checkpoint.name, "dummy:tiny");
        assert_eq!(checkpoint.config.eos_token_ids, Vec::<u32>::new());
        if cfg!(feature = "builtin-model") {
            assert!(matches!(checkpoint.tokenizer, TokenizerSource::Gguf(vocab) if vocab.tokens.len() == 49_152));
        }
    }
}
