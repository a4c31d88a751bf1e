//! GGUF: one file with weights, tokenizer and chat template. Read by our own code from the first byte to the last; only
//! blocks of a checked size reach the tensor library.

mod bytes;
mod config;
mod header;
mod metadata;
mod names;
mod tensor_type;
mod tensors;
mod value;
mod vocab;

use std::fs::File;
use std::io::{BufReader, Cursor, Read, Seek};
use std::path::Path;
use std::sync::Arc;

use aisp_kernels::MappedFile;

use crate::model::{FileBytes, ModelConfig, Weights};

use super::checkpoint::Checkpoint;
use super::error::{FieldError, LoadError, printable};
use super::layout::tensor_specs;
use super::memory;
use super::options::LoadOptions;
use super::source::ModelSource;
use super::tally::Tally;
use crate::text::{GgufVocab, TokenizerSource};
use config::{TensorFacts, read_config};
use header::Header;
use names::gguf_name;
use tensors::TensorReader;
use vocab::{eos_token_ids, take_vocab};

/// Tensors that no config field announces: rotary factors, and tables that converters of old wrote.
const ROPE_FREQS: &str = "rope_freqs.weight";
const IGNORED_SUFFIX: &str = ".attn_rot_embd.weight";

/// Loads a file.
pub(crate) fn load_file(path: &Path, source: ModelSource, options: &LoadOptions) -> Result<Checkpoint, LoadError> {
    let name = printable(&path.display().to_string());
    let open = || {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(std::io::Error::other("not a regular file"));
        }
        Ok((file, metadata.len()))
    };
    let (file, length) = open().map_err(|error| LoadError::io(&name, "open", &error))?;
    if options.maps() && length > 0 {
        let mapped = MappedFile::open(path).map_err(|error| LoadError::io(&name, "map", &error))?;
        return load_mapped(FileBytes::Mapped(Arc::new(mapped)), name, source, options);
    }
    load_reader(file, length, None, name, source, options)
}

/// Loads a file that is part of the program.
pub(crate) fn load_static(
    bytes: &'static [u8],
    source: ModelSource,
    options: &LoadOptions,
) -> Result<Checkpoint, LoadError> {
    match options.maps() {
        true => load_mapped(FileBytes::Static(bytes), source.to_string(), source, options),
        false => load_bytes(bytes, source, options),
    }
}

fn load_mapped(
    file: FileBytes,
    name: String,
    source: ModelSource,
    options: &LoadOptions,
) -> Result<Checkpoint, LoadError> {
    let length = file.as_ref().len() as u64;
    load_reader(Cursor::new(file.clone()), length, Some(file), name, source, options)
}

/// Loads a file that is in memory.
pub(crate) fn load_bytes(bytes: &[u8], source: ModelSource, options: &LoadOptions) -> Result<Checkpoint, LoadError> {
    load_reader(Cursor::new(bytes), bytes.len() as u64, None, source.to_string(), source, options)
}

/// Reads only the vocabulary and the chat template.
pub(crate) fn read_vocab(bytes: &[u8], name: &str) -> Result<(Option<GgufVocab>, Option<String>), LoadError> {
    let parse = || {
        let mut header = Header::read(bytes, bytes.len() as u64)?;
        let vocab = take_vocab(&mut header.metadata)?;
        Ok((vocab, chat_template(&header)?))
    };
    parse().map_err(|error: FieldError| error.in_file(name))
}

fn load_reader<R: Read + Seek>(
    mut reader: R,
    length: u64,
    map: Option<FileBytes>,
    file: String,
    source: ModelSource,
    options: &LoadOptions,
) -> Result<Checkpoint, LoadError> {
    let in_file = |error: FieldError| error.in_file(&file);
    let mut header = Header::read(BufReader::with_capacity(1 << 16, &mut reader), length).map_err(in_file)?;
    let chat_template = chat_template(&header).map_err(in_file)?;
    let vocab = take_vocab(&mut header.metadata).map_err(in_file)?;
    let mut tensors = TensorReader::new(reader, map, file.clone(), std::mem::take(&mut header.tensors));
    let facts = tensor_facts(&mut tensors, &file)?;
    let (eos, bos) = vocab.as_ref().map_or((Vec::new(), None), |v| (eos_token_ids(v), v.bos_token_id));
    let config = read_config(&header.metadata, facts, eos, bos).map_err(in_file)?;
    if let Some(vocab) = vocab.as_ref().filter(|vocab| vocab.tokens.len() != config.vocab_size) {
        let problem = format!("has {} tokens, token_embd.weight has {} rows", vocab.tokens.len(), config.vocab_size);
        return Err(FieldError::malformed("tokenizer.ggml.tokens", problem).in_file(&file));
    }
    let (weights, tally) = read_weights(&mut tensors, &config, &file, options)?;
    Ok(Checkpoint {
        name: source.name(),
        source,
        config,
        weights,
        tokenizer: vocab.map_or(TokenizerSource::None, TokenizerSource::Gguf),
        chat_template,
        weight_format: tally.weight_format(),
        num_parameters: tally.num_parameters,
        weight_bytes: tally.weight_bytes,
    })
}

fn chat_template(header: &Header) -> Result<Option<String>, FieldError> {
    Ok(header.metadata.string("tokenizer.chat_template")?.map(Into::into))
}

/// What the config takes from the tensors.
fn tensor_facts<R: Read + Seek>(tensors: &mut TensorReader<R>, file: &str) -> Result<TensorFacts, LoadError> {
    let embeddings = "token_embd.weight";
    let vocab_size = match tensors.shape(embeddings) {
        Some([rows, _]) => *rows,
        Some(shape) => {
            let problem = format!("must have 2 dimensions, got {shape:?}");
            return Err(FieldError::malformed(format!("tensor {embeddings}"), problem).in_file(file));
        }
        None => return Err(LoadError::MissingTensor { file: file.to_owned(), name: embeddings.into() }),
    };
    Ok(TensorFacts {
        vocab_size,
        has_output_head: tensors.contains("output.weight"),
        has_qkv_bias: tensors.contains("blk.0.attn_q.bias"),
        rope_freqs: tensors.take_floats(ROPE_FREQS)?,
    })
}

/// Checks every tensor, then the memory, then reads.
fn read_weights<R: Read + Seek>(
    tensors: &mut TensorReader<R>,
    config: &ModelConfig,
    file: &str,
    options: &LoadOptions,
) -> Result<(Weights, Tally), LoadError> {
    let dtype = options.compute_dtype()?;
    let mut specs = Vec::new();
    let mut needed_bytes = 0_u64;
    for spec in tensor_specs(config) {
        let Some(name) = gguf_name(&spec.name) else {
            return Err(LoadError::MissingTensor { file: file.to_owned(), name: spec.name });
        };
        // Each is at most twice as large as in the file, so the sum cannot overflow.
        needed_bytes += tensors.check(&name, &spec, dtype)?;
        specs.push((name, spec));
    }
    let expected: std::collections::HashSet<&str> = specs.iter().map(|(name, _)| name.as_str()).collect();
    if let Some(name) = tensors.unread(|name| expected.contains(name) || name.ends_with(IGNORED_SUFFIX)) {
        let field = format!("tensor {name}");
        let supported = "the decoder has no place for it".to_owned();
        return Err(FieldError::unsupported(field, "(unexpected)", supported).in_file(file));
    }
    memory::check_fits(file, needed_bytes, dtype, options)?;
    let mut weights = Weights::default();
    let mut tally = Tally::default();
    for (name, spec) in &specs {
        let (weight, format) = tensors.take(name, spec, dtype, &options.device)?;
        tally.add(spec, &weight, format);
        weights.insert(&spec.name, weight);
    }
    Ok((weights, tally))
}
