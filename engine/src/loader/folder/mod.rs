//! A folder in Hugging Face layout: `config.json`, `tokenizer.json`, `tokenizer_config.json`, safetensors.

mod config;
pub(crate) mod files;
mod safetensors_file;
pub(crate) mod shards;
mod special_tokens;

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use crate::model::{ModelConfig, Weight, Weights};

use super::checkpoint::Checkpoint;
use super::error::{FieldError, LoadError, printable};
use super::layout::{TensorSpec, tensor_specs};
use super::memory;
use super::options::LoadOptions;
use super::source::ModelSource;
use super::tally::Tally;
use crate::text::TokenizerSource;
use safetensors_file::SafetensorsFile;

/// Loads it.
pub(crate) fn load(folder: &Path, source: ModelSource, options: &LoadOptions) -> Result<Checkpoint, LoadError> {
    let json: Value = files::CONFIG.parse(folder, &files::CONFIG.require(folder)?)?;
    let mut config = config::read_config(&json).map_err(|error| error.in_file(&files::CONFIG.shown(folder)))?;
    let tokenizer = files::TOKENIZER.read(folder)?;
    let chat_template = special_tokens::read_special_tokens(folder, tokenizer.as_deref(), &mut config)?;
    let (weights, tally) = read_weights(folder, &config, options)?;
    Ok(Checkpoint {
        name: source.name(),
        source,
        config,
        weights,
        tokenizer: tokenizer.map_or(TokenizerSource::None, TokenizerSource::Json),
        chat_template,
        weight_format: tally.weight_format(),
        num_parameters: tally.num_parameters,
        weight_bytes: tally.weight_bytes,
    })
}

/// Checks every tensor in every shard, then the memory, then reads.
fn read_weights(folder: &Path, config: &ModelConfig, options: &LoadOptions) -> Result<(Weights, Tally), LoadError> {
    let dtype = options.compute_dtype()?;
    let shown = printable(&folder.display().to_string());
    let mut shards = Vec::new();
    let mut shard_of = HashMap::new();
    for (index, name) in shards::shard_names(folder)?.iter().enumerate() {
        let shard = SafetensorsFile::open(&folder.join(name), options.maps())?;
        for tensor in shard.tensor_names() {
            if let Some(first) = shard_of.insert(tensor.clone(), index) {
                let problem = format!("is in shard {} too", first + 1);
                return Err(FieldError::malformed(format!("tensor {tensor}"), problem).in_file(&shard.name));
            }
        }
        shards.push(shard);
    }
    let specs = tensor_specs(config);
    for spec in &specs {
        let shard = shard_of.get(&spec.name).and_then(|index| shards.get(*index));
        check_tensor(shard, spec, &shown)?;
    }
    check_all_expected(&shard_of, &specs, config, &shown)?;
    let num_values: u64 = specs.iter().map(TensorSpec::num_values).sum();
    memory::check_fits(&shown, num_values * dtype.size_in_bytes() as u64, dtype, options)?;

    let mut weights = Weights::default();
    let mut tally = Tally::default();
    for spec in &specs {
        let shard = shard_of.get(&spec.name).and_then(|index| shards.get(*index));
        let Some(shard) = shard else {
            return Err(LoadError::MissingTensor { file: shown, name: spec.name.clone() });
        };
        let (weight, file_format) = match shard.mapped(&spec.name)?.filter(|_| !spec.is_vector()) {
            Some(mapped) => mapped,
            None => {
                let (tensor, file_format) = shard.read(&spec.name, dtype, &options.device)?;
                (Weight::Dense(tensor), file_format)
            }
        };
        tally.add(spec, &weight, file_format);
        weights.insert(&spec.name, weight);
    }
    Ok((weights, tally))
}

fn check_tensor(shard: Option<&SafetensorsFile>, spec: &TensorSpec, folder: &str) -> Result<(), LoadError> {
    let Some((shard, info)) = shard.and_then(|shard| Some((shard, shard.info(&spec.name)?))) else {
        return Err(LoadError::MissingTensor { file: folder.to_owned(), name: spec.name.clone() });
    };
    if info.shape == spec.shape {
        return Ok(());
    }
    Err(LoadError::WrongShape {
        file: shard.name.clone(),
        name: spec.name.clone(),
        expected: spec.shape.clone(),
        got: info.shape.clone(),
    })
}

/// A tensor that the decoder has no place for means that it would compute another model. Copies of a tied head and
/// tables that old files carry are harmless.
fn check_all_expected(
    shard_of: &HashMap<String, usize>,
    specs: &[TensorSpec],
    config: &ModelConfig,
    folder: &str,
) -> Result<(), LoadError> {
    let expected: std::collections::HashSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
    let harmless =
        |name: &str| name.ends_with(".rotary_emb.inv_freq") || (name == "lm_head.weight" && config.tie_word_embeddings);
    let unexpected = shard_of.keys().filter(|name| !expected.contains(name.as_str()) && !harmless(name)).min();
    match unexpected {
        None => Ok(()),
        Some(name) => {
            let field = format!("tensor {name}");
            Err(FieldError::unsupported(field, "(unexpected)", "the decoder has no place for it").in_file(folder))
        }
    }
}
