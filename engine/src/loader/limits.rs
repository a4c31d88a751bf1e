//! Ranges that every model config must keep, wherever it was read from. They bound all later arithmetic: no product of
//! two fields overflows, no division is by zero.

use crate::model::{ModelConfig, RopeScaling};

use super::error::FieldError;

/// Widest residual stream or feed-forward layer.
const MAX_WIDTH: usize = 1 << 20;
/// Most decoder layers.
const MAX_LAYERS: usize = 1024;
/// Most heads, and most values in one.
const MAX_HEADS: usize = 1024;
/// Most tokens in a vocabulary.
const MAX_VOCAB: usize = 1 << 22;
/// Longest context.
const MAX_CONTEXT: usize = 1 << 27;
/// Largest rotary base and stretch.
const MAX_ROPE_THETA: f64 = 1e12;
const MAX_ROPE_FACTOR: f64 = 1e6;

/// Checks every field. Errors name the field of [`ModelConfig`]; the caller translates it into the file's key.
pub(crate) fn check_config(config: &ModelConfig) -> Result<(), FieldError> {
    for (field, value, max) in [
        ("hidden_size", config.hidden_size, MAX_WIDTH),
        ("intermediate_size", config.intermediate_size, MAX_WIDTH),
        ("num_layers", config.num_layers, MAX_LAYERS),
        ("num_heads", config.num_heads, MAX_HEADS),
        ("num_kv_heads", config.num_kv_heads, MAX_HEADS),
        ("head_dim", config.head_dim, MAX_HEADS),
        ("vocab_size", config.vocab_size, MAX_VOCAB),
        ("max_position_embeddings", config.max_position_embeddings, MAX_CONTEXT),
        ("sliding_window", config.sliding_window.unwrap_or(1), MAX_CONTEXT),
    ] {
        if !(1..=max).contains(&value) {
            return Err(FieldError::malformed(field, format!("must be between 1 and {max}, got {value}")));
        }
    }
    if !config.num_heads.is_multiple_of(config.num_kv_heads) {
        let problem = format!("must divide the {} query heads, got {}", config.num_heads, config.num_kv_heads);
        return Err(FieldError::malformed("num_kv_heads", problem));
    }
    if !config.head_dim.is_multiple_of(2) {
        return Err(FieldError::malformed("head_dim", format!("must be even, got {}", config.head_dim)));
    }
    if !(config.rms_norm_eps > 0.0 && config.rms_norm_eps <= 0.1) {
        let problem = format!("must be above 0 and at most 0.1, got {}", config.rms_norm_eps);
        return Err(FieldError::malformed("rms_norm_eps", problem));
    }
    if !(config.rope_theta >= 1.0 && config.rope_theta <= MAX_ROPE_THETA) {
        let problem = format!("must be between 1 and {MAX_ROPE_THETA:e}, got {}", config.rope_theta);
        return Err(FieldError::malformed("rope_theta", problem));
    }
    check_rope_scaling(config)?;
    check_token_ids(config)
}

fn check_rope_scaling(config: &ModelConfig) -> Result<(), FieldError> {
    let in_range = |field: &str, value: f64, min: f64| {
        if (min..=MAX_ROPE_FACTOR).contains(&value) {
            return Ok(());
        }
        let problem = format!("must be between {min} and {MAX_ROPE_FACTOR}, got {value}");
        Err(FieldError::malformed(format!("rope_scaling.{field}"), problem))
    };
    match &config.rope_scaling {
        RopeScaling::None => Ok(()),
        RopeScaling::Linear { factor } => in_range("factor", *factor, 1.0),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            in_range("factor", *factor, 1.0)?;
            in_range("low_freq_factor", *low_freq_factor, 1e-3)?;
            in_range("high_freq_factor", *high_freq_factor, 1e-3)?;
            if high_freq_factor <= low_freq_factor {
                let problem = format!("must be above low_freq_factor ({low_freq_factor}), got {high_freq_factor}");
                return Err(FieldError::malformed("rope_scaling.high_freq_factor", problem));
            }
            if !(1..=MAX_CONTEXT).contains(original_context) {
                let problem = format!("must be between 1 and {MAX_CONTEXT}, got {original_context}");
                return Err(FieldError::malformed("rope_scaling.original_max_position_embeddings", problem));
            }
            Ok(())
        }
        RopeScaling::PerFrequency(factors) => {
            if factors.len() != config.head_dim / 2 {
                let problem = format!("must have {} values (head_dim / 2), got {}", config.head_dim / 2, factors.len());
                return Err(FieldError::malformed("rope_freqs", problem));
            }
            match factors.iter().find(|factor| !(1e-6..=MAX_ROPE_FACTOR as f32).contains(*factor)) {
                Some(bad) => {
                    let problem = format!("values must be between 1e-6 and {MAX_ROPE_FACTOR}, got {bad}");
                    Err(FieldError::malformed("rope_freqs", problem))
                }
                None => Ok(()),
            }
        }
    }
}

fn check_token_ids(config: &ModelConfig) -> Result<(), FieldError> {
    let ids = config.eos_token_ids.iter().map(|id| ("eos_token_id", *id));
    for (field, id) in ids.chain(config.bos_token_id.map(|id| ("bos_token_id", id))) {
        if id as usize >= config.vocab_size {
            let problem = format!("{id} is outside the vocabulary of {}", config.vocab_size);
            return Err(FieldError::malformed(field, problem));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::dummy::DummyShape;
    use super::*;

    #[test]
    fn each_field_is_guarded() {
        let check = |change: &dyn Fn(&mut ModelConfig), field: &str| {
            let mut config = DummyShape::Tiny.config();
            assert_eq!(check_config(&config), Ok(()));
            change(&mut config);
            match check_config(&config) {
                Err(FieldError::Malformed { field: got, .. }) => assert_eq!(got, field),
                other => panic!("{field}: {other:?}"),
            }
        };
        check(&|c| c.hidden_size = 0, "hidden_size");
        check(&|c| c.intermediate_size = usize::MAX, "intermediate_size");
        check(&|c| c.num_layers = 100_000, "num_layers");
        check(&|c| c.num_heads = 0, "num_heads");
        check(&|c| c.num_kv_heads = 0, "num_kv_heads");
        check(&|c| c.num_kv_heads = c.num_heads + 1, "num_kv_heads");
        check(&|c| c.head_dim = 7, "head_dim");
        check(&|c| c.vocab_size = 0, "vocab_size");
        check(&|c| c.max_position_embeddings = 0, "max_position_embeddings");
        check(&|c| c.rms_norm_eps = f64::NAN, "rms_norm_eps");
        check(&|c| c.rms_norm_eps = 0.0, "rms_norm_eps");
        check(&|c| c.rope_theta = f64::INFINITY, "rope_theta");
        check(&|c| c.rope_theta = -1.0, "rope_theta");
        check(&|c| c.sliding_window = Some(0), "sliding_window");
        check(&|c| c.rope_scaling = RopeScaling::Linear { factor: 0.0 }, "rope_scaling.factor");
        check(&|c| c.rope_scaling = RopeScaling::PerFrequency(vec![1.0]), "rope_freqs");
        check(&|c| c.rope_scaling = RopeScaling::PerFrequency(vec![f32::NAN; c.head_dim / 2]), "rope_freqs");
        check(&|c| c.eos_token_ids = vec![u32::MAX], "eos_token_id");
        check(&|c| c.bos_token_id = Some(c.vocab_size as u32), "bos_token_id");
    }
}
