//! Real models through the whole loader: built in, Hugging Face layout, a second GGUF file.
// A test ends where it fails; clippy's own exception does not reach helper functions.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use aisp_engine::loader::{Checkpoint, LoadOptions, ModelSource, TokenizerSource, load};
use aisp_engine::model::{HeapWeight, ModelConfig, RopeStyle, Weight};
use candle_core::{DType, Device, Tensor};

fn load_text(text: &str) -> Checkpoint {
    load(&text.parse().unwrap(), &LoadOptions::default()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn story_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/story-12m")
}

fn values(checkpoint: &mut Checkpoint, name: &str) -> Tensor {
    match checkpoint.weights.take(name).unwrap_or_else(|| panic!("{name} is there")).into_heap().unwrap() {
        HeapWeight::Dense(tensor) => tensor,
        HeapWeight::Quantized(tensor) => tensor.dequantize(&Device::Cpu).unwrap(),
    }
}

#[cfg(feature = "builtin-model")]
#[test]
fn builtin_is_complete() {
    let mut checkpoint = load_text("");
    assert_eq!((checkpoint.name.as_str(), checkpoint.source.clone()), ("story-12m", ModelSource::Builtin));
    assert_eq!((checkpoint.weight_format.as_str(), checkpoint.num_parameters), ("Q8_0", 11_798_976));
    assert!((12_000_000..14_000_000).contains(&checkpoint.weight_bytes), "{}", checkpoint.weight_bytes);
    let config = &checkpoint.config;
    assert_eq!((config.hidden_size, config.num_layers, config.vocab_size), (192, 6, 49_152));
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-5, 100_000.0));
    assert_eq!((config.rope_style, config.tie_word_embeddings), (RopeStyle::Interleaved, true));
    assert_eq!((config.bos_token_id, config.eos_token_ids.as_slice()), (Some(1), [2, 0].as_slice()));
    assert!(checkpoint.chat_template.as_deref().is_some_and(|template| template.contains("<|im_start|>")));
    let TokenizerSource::Gguf(vocab) = &checkpoint.tokenizer else { panic!("a GGUF vocabulary") };
    assert_eq!((vocab.model.as_str(), vocab.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!((vocab.tokens.len(), vocab.token_types.len(), vocab.merges.len()), (49_152, 49_152, 48_900));
    assert_eq!((vocab.add_bos_token, vocab.add_space_prefix), (Some(false), Some(false)));
    assert_eq!(checkpoint.weights.names().len(), 56);
    let table = checkpoint.weights.take("model.embed_tokens.weight").unwrap();
    assert!(matches!(&table, Weight::Quantized(table) if table.shape().dims() == [49_152, 192]));
    assert!(
        matches!(checkpoint.weights.take("model.norm.weight"), Some(Weight::Dense(norm)) if norm.dtype() == DType::F32)
    );
}

#[cfg(feature = "builtin-model")]
#[test]
fn folder_is_complete_and_holds_the_same_model() {
    let mut folder = load_text(story_folder().to_str().unwrap());
    let mut builtin = load_text("story-12m");
    assert_eq!((folder.name.as_str(), folder.weight_format.as_str()), ("story-12m", "bf16 as f32"));
    assert_eq!((folder.num_parameters, folder.weight_bytes), (11_798_976, 4 * 11_798_976));
    assert_eq!(folder.chat_template, builtin.chat_template);
    assert!(matches!(&folder.tokenizer, TokenizerSource::Json(bytes) if bytes.len() == 3_522_656));
    let as_folder = ModelConfig { rope_style: RopeStyle::Neox, eos_token_ids: vec![2], ..builtin.config.clone() };
    assert_eq!(folder.config, as_folder);
    assert_eq!(folder.weights.names(), builtin.weights.names());
    for name in ["model.embed_tokens.weight", "model.layers.3.mlp.down_proj.weight", "model.norm.weight"] {
        let (exact, quantized) = (values(&mut folder, name), values(&mut builtin, name));
        assert_eq!(exact.dims(), quantized.dims());
        let power = exact.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        let error = (exact - quantized).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(error <= 1e-4 * power, "{name}: mean square error {error} of {power}");
    }
}

#[cfg(feature = "builtin-model")]
#[test]
fn query_rows_are_permuted_in_llama_ggufs() {
    let (mut folder, mut builtin) = (load_text(story_folder().to_str().unwrap()), load_text(""));
    let name = "model.layers.0.self_attn.q_proj.weight";
    let (neox, interleaved) = (values(&mut folder, name), values(&mut builtin, name));
    // Row `h * 64 + i + 32 * half` of a head lies at `h * 64 + 2 * i + half` in the GGUF.
    let permuted = neox.reshape((3, 2, 32, 192)).unwrap().transpose(1, 2).unwrap().reshape((192, 192)).unwrap();
    let power = permuted.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    let error = (permuted - interleaved).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(error <= 1e-4 * power, "mean square error {error} of {power}");
}

#[test]
fn folder_loads_in_its_own_type() {
    let options = LoadOptions { dtype: Some(DType::BF16), ..LoadOptions::default() };
    let mut checkpoint = load(&ModelSource::Folder(story_folder()), &options).unwrap();
    assert_eq!((checkpoint.weight_format.as_str(), checkpoint.weight_bytes), ("bf16", 2 * 11_798_976));
    assert_eq!(values(&mut checkpoint, "model.norm.weight").dtype(), DType::BF16);
}

#[test]
fn mapped_files_hold_the_same_values() {
    let mapped = LoadOptions { mapped: true, ..LoadOptions::default() };
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/story-12m-q8_0.gguf");
    for (source, num_mapped, format) in [
        (ModelSource::Builtin, 43, "Q8_0"),
        (ModelSource::Gguf(gguf), 43, "Q8_0"),
        (ModelSource::Folder(story_folder()), 43, "bf16"),
    ] {
        let (mut read, mut left) = (load(&source, &LoadOptions::default()).unwrap(), load(&source, &mapped).unwrap());
        assert_eq!((read.weights.num_mapped(), left.weights.num_mapped()), (0, num_mapped), "{source}");
        assert_eq!((left.weight_format.as_str(), left.num_parameters), (format, read.num_parameters));
        let names: Vec<String> = left.weights.names().into_iter().map(Into::into).collect();
        assert_eq!(names, read.weights.names());
        for name in names {
            let bits = |checkpoint: &mut Checkpoint| {
                let values = values(checkpoint, &name).to_dtype(DType::F32).unwrap();
                values
                    .flatten_all()
                    .unwrap()
                    .to_vec1::<f32>()
                    .unwrap()
                    .into_iter()
                    .map(f32::to_bits)
                    .collect::<Vec<_>>()
            };
            assert_eq!(bits(&mut read), bits(&mut left), "{source}: {name}");
        }
    }
}

#[test]
fn a_mapped_file_that_ends_early_is_one_line() {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/story-12m-q8_0.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mapped = LoadOptions { mapped: true, ..LoadOptions::default() };
    for length in [0, 3, 4_000, bytes.len() - 1] {
        let path = folder.path().join(format!("{length}.gguf"));
        std::fs::write(&path, &bytes[..length]).unwrap();
        let source = ModelSource::Gguf(path);
        let message = load(&source, &mapped).unwrap_err().to_string();
        assert_eq!(message, load(&source, &LoadOptions::default()).unwrap_err().to_string());
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn smollm2_is_complete() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.is_file(), "{} is missing: run scripts/get-model.sh", path.display());
    let mut checkpoint = load_text(path.to_str().unwrap());
    assert_eq!(checkpoint.name, "SmolLM2-135M-Instruct.Q4_1");
    assert_eq!((checkpoint.weight_format.as_str(), checkpoint.num_parameters), ("Q4_1+Q8_0", 134_515_008));
    assert_eq!((checkpoint.config.num_layers, checkpoint.config.num_kv_heads), (30, 3));
    assert_eq!(checkpoint.config.eos_token_ids, [2, 0]);
    let down = values(&mut checkpoint, "model.layers.29.mlp.down_proj.weight");
    assert_eq!(down.dims(), [576, 1536]);
    let mean_square = down.sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!(mean_square.is_finite() && mean_square > 0.0);
}
