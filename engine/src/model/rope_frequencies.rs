//! Rotary frequencies with the stretching that a checkpoint asks for.

use std::f64::consts::TAU;

use super::config::{ModelConfig, RopeScaling};

/// Radians a position for each pair, `[head_dim / 2]`.
pub fn rope_frequencies(config: &ModelConfig) -> Vec<f64> {
    let pairs = config.head_dim / 2;
    let plain = (0..pairs).map(|i| config.rope_theta.powf(-(i as f64) / pairs as f64));
    match &config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|f| f / factor).collect(),
        RopeScaling::PerFrequency(factors) => plain.zip(factors).map(|(f, factor)| f / f64::from(*factor)).collect(),
        &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => plain
            .map(|frequency| {
                let wavelengths = original_context as f64 * frequency / TAU;
                let keep = ((wavelengths - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                frequency * (keep + (1.0 - keep) / factor)
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Architecture, RopeStyle};

    fn config(rope_scaling: RopeScaling) -> ModelConfig {
        ModelConfig {
            architecture: Architecture::Llama,
            hidden_size: 64,
            intermediate_size: 64,
            num_layers: 1,
            num_heads: 1,
            num_kv_heads: 1,
            head_dim: 64,
            vocab_size: 32,
            max_position_embeddings: 131_072,
            rms_norm_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_style: RopeStyle::Neox,
            rope_scaling,
            sliding_window: None,
            qkv_bias: false,
            qk_norm: false,
            tie_word_embeddings: true,
            eos_token_ids: vec![],
            bos_token_id: None,
        }
    }

    #[test]
    fn llama3_keeps_high_frequencies_and_divides_low_ones() {
        let plain = rope_frequencies(&config(RopeScaling::None));
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let scaled = rope_frequencies(&config(scaling));
        assert_eq!(scaled[0], 1.0);
        assert!((scaled[31] - plain[31] / 8.0).abs() < 1e-18);
        // A wavelength of 4096 positions turns twice in the original context: a third of the way from 1 to 4.
        let frequency = TAU / 4096.0;
        let at = plain.iter().position(|f| *f < frequency).unwrap();
        let turns = 8192.0 * plain[at] / TAU;
        let keep = (turns - 1.0) / 3.0;
        assert!((scaled[at] - plain[at] * (keep + (1.0 - keep) / 8.0)).abs() < 1e-15);
        assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]));
    }

    #[test]
    fn factors_divide() {
        let factors: Vec<f32> = (0..32).map(|i| 1.0 + i as f32).collect();
        let plain = rope_frequencies(&config(RopeScaling::None));
        let scaled = rope_frequencies(&config(RopeScaling::PerFrequency(factors)));
        assert_eq!(scaled[31], plain[31] / 32.0);
        assert_eq!(rope_frequencies(&config(RopeScaling::Linear { factor: 2.0 }))[3], plain[3] / 2.0);
    }
}
