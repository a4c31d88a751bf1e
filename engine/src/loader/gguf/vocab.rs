//! The tokenizer inside a GGUF file, as raw material for [`crate::text`].

use super::super::error::FieldError;
use super::metadata::Metadata;
use crate::text::GgufVocab;

/// Control tokens that end an answer by their text, as in llama.cpp: files often name one of several.
/// Source: `llama_vocab::impl::load` in llama.cpp's `src/llama-vocab.cpp`.
const END_OF_GENERATION: [&str; 11] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "<end_of_utterance>",
];

/// `token_type` of control tokens.
const CONTROL: i32 = 3;

/// Takes the vocabulary out of the metadata; `None` when the file has none.
///
/// Errors: lists of different lengths, ids outside the list.
pub(crate) fn take_vocab(metadata: &mut Metadata) -> Result<Option<GgufVocab>, FieldError> {
    let tokens = metadata.take_strings("tokenizer.ggml.tokens")?;
    if tokens.is_empty() {
        return Ok(None);
    }
    let as_many = |key: &str, count: usize| {
        if count == 0 || count == tokens.len() {
            return Ok(());
        }
        Err(FieldError::malformed(key, format!("has {count} entries for {} tokens", tokens.len())))
    };
    let scores = metadata.take_floats("tokenizer.ggml.scores")?;
    as_many("tokenizer.ggml.scores", scores.len())?;
    let types_key = "tokenizer.ggml.token_type";
    let token_types = metadata
        .take_integers(types_key)?
        .into_iter()
        .map(|t| i32::try_from(t).map_err(|_| FieldError::malformed(types_key, format!("contains {t}"))))
        .collect::<Result<Vec<_>, _>>()?;
    as_many(types_key, token_types.len())?;
    let id = |name: &str| {
        let key = format!("tokenizer.ggml.{name}_token_id");
        match metadata.token_id(&key)? {
            Some(id) if id as usize >= tokens.len() => {
                Err(FieldError::malformed(key, format!("{id} is outside the vocabulary of {}", tokens.len())))
            }
            id => Ok(id),
        }
    };
    let (bos, eos, eot, unk, pad) = (id("bos")?, id("eos")?, id("eot")?, id("unknown")?, id("padding")?);
    Ok(Some(GgufVocab {
        model: metadata.required_string("tokenizer.ggml.model")?.to_owned(),
        pre: metadata.string("tokenizer.ggml.pre")?.map(Into::into),
        merges: metadata.take_strings("tokenizer.ggml.merges")?,
        add_bos_token: metadata.boolean("tokenizer.ggml.add_bos_token")?,
        add_space_prefix: metadata.boolean("tokenizer.ggml.add_space_prefix")?,
        tokens,
        scores,
        token_types,
        bos_token_id: bos,
        eos_token_id: eos,
        eot_token_id: eot,
        unknown_token_id: unk,
        padding_token_id: pad,
    }))
}

/// Tokens that end an answer: the declared ones first, then control tokens known by their text.
pub(crate) fn eos_token_ids(vocab: &GgufVocab) -> Vec<u32> {
    let mut ids: Vec<u32> = vocab.eos_token_id.into_iter().chain(vocab.eot_token_id).collect();
    let by_text = vocab.tokens.iter().zip(&vocab.token_types).zip(0_u32..);
    ids.extend(by_text.filter_map(|((text, token_type), id)| {
        (*token_type == CONTROL && END_OF_GENERATION.contains(&text.as_str())).then_some(id)
    }));
    let mut seen = std::collections::HashSet::new();
    ids.retain(|id| seen.insert(*id));
    ids
}

#[cfg(test)]
mod tests {
    use super::super::value::Value;
    use super::*;

    fn metadata(extra: Vec<(&str, Value)>) -> Metadata {
        let mut metadata = Metadata::default();
        let tokens = ["<|endoftext|>", "a", "<|im_end|>"].map(Into::into).to_vec();
        metadata.insert("tokenizer.ggml.tokens".into(), Value::Strings(tokens)).unwrap();
        metadata.insert("tokenizer.ggml.model".into(), Value::String("gpt2".into())).unwrap();
        for (key, value) in extra {
            metadata.insert(key.into(), value).unwrap();
        }
        metadata
    }

    #[test]
    fn every_way_to_end_is_found_once_and_the_declared_one_first() {
        let mut metadata = metadata(vec![
            ("tokenizer.ggml.token_type", Value::Integers(vec![3, 1, 3])),
            ("tokenizer.ggml.eos_token_id", Value::Unsigned(2)),
        ]);
        let vocab = take_vocab(&mut metadata).unwrap().unwrap();
        assert_eq!(eos_token_ids(&vocab), [2, 0]);
    }

    #[test]
    fn lists_and_ids_must_agree_with_the_tokens() {
        for (key, value) in [
            ("tokenizer.ggml.token_type", Value::Integers(vec![3, 1])),
            ("tokenizer.ggml.token_type", Value::Integers(vec![3, 1, i64::MAX])),
            ("tokenizer.ggml.scores", Value::Floats(vec![0.5])),
            ("tokenizer.ggml.merges", Value::Integers(vec![1])),
            ("tokenizer.ggml.bos_token_id", Value::Unsigned(3)),
            ("tokenizer.ggml.eot_token_id", Value::Signed(-1)),
            ("tokenizer.ggml.pre", Value::Bool(true)),
        ] {
            let error = take_vocab(&mut metadata(vec![(key, value)])).unwrap_err().in_file("f").to_string();
            assert!(error.contains(key), "{error}");
        }
        assert_eq!(take_vocab(&mut Metadata::default()), Ok(None));
    }
}
