//! The model inside the binary: story-12m, a real chat model of 11.8 M parameters (`engine/assets/README.md`).

use super::checkpoint::Checkpoint;
use super::error::LoadError;
use super::gguf;
use super::options::LoadOptions;
use super::source::ModelSource;
use crate::text::{GgufVocab, TokenizerSource};

/// The GGUF file.
#[cfg(feature = "builtin-model")]
const BYTES: &[u8] = include_bytes!("../../assets/story-12m-q8_0.gguf");

/// Loads it.
///
/// Errors: a build without the cargo feature `builtin-model`.
pub(crate) fn load(options: &LoadOptions) -> Result<Checkpoint, LoadError> {
    gguf::load_static(bytes()?, ModelSource::Builtin, options)
}

/// The built-in model's tokenizer and template for a model without its own, filled up to `vocab_size` tokens. Special
/// token ids are dropped: nothing such a model says ends a turn. `None`s when it has more tokens than the model, or
/// is not in this build.
pub(crate) fn borrowed_tokenizer(vocab_size: usize) -> Result<(TokenizerSource, Option<String>), LoadError> {
    let Ok(bytes) = bytes() else { return Ok((TokenizerSource::None, None)) };
    let (vocab, chat_template) = gguf::read_vocab(bytes, &ModelSource::Builtin.to_string())?;
    let Some(mut vocab) = vocab.filter(|vocab| vocab.tokens.len() <= vocab_size) else {
        return Ok((TokenizerSource::None, None));
    };
    const NORMAL: i32 = 1;
    vocab.tokens.extend((vocab.tokens.len()..vocab_size).map(|id| format!("<dummy{id}>")));
    vocab.token_types.resize(vocab_size, NORMAL);
    let vocab =
        GgufVocab { bos_token_id: None, eos_token_id: None, eot_token_id: None, padding_token_id: None, ..vocab };
    Ok((TokenizerSource::Gguf(vocab), chat_template))
}

#[cfg(feature = "builtin-model")]
fn bytes() -> Result<&'static [u8], LoadError> {
    Ok(BYTES)
}

#[cfg(not(feature = "builtin-model"))]
fn bytes() -> Result<&'static [u8], LoadError> {
    Err(LoadError::FeatureOff { what: "the built-in model".into(), feature: "builtin-model" })
}

#[cfg(all(test, feature = "builtin-model"))]
mod tests {
    use super::*;

    #[test]
    fn the_asset_is_the_one_described() {
        use sha2::{Digest, Sha256};
        let digest: String = Sha256::digest(BYTES).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, "0a942939f4b1d8eaac3fcf1bf352539b34ab0064b98d590207d3dff928f459fd");
        let readme = include_str!("../../assets/README.md");
        assert!(readme.contains(&digest) && readme.contains("Apache-2.0"), "engine/assets/README.md is out of date");
    }

    #[test]
    fn a_larger_vocabulary_is_filled_up_with_distinct_tokens() {
        let (tokenizer, template) = borrowed_tokenizer(49_160).unwrap();
        let TokenizerSource::Gguf(vocab) = tokenizer else { panic!("a tokenizer") };
        assert_eq!((vocab.tokens.len(), vocab.token_types.len()), (49_160, 49_160));
        let distinct: std::collections::HashSet<_> = vocab.tokens.iter().collect();
        assert_eq!(distinct.len(), 49_160);
        assert!(template.is_some());
        assert_eq!(borrowed_tokenizer(100).unwrap(), (TokenizerSource::None, None));
    }
}
