//! The pre-tokenizers that `tokenizer.ggml.pre` names: how a byte-level BPE vocabulary cuts text into words before it
//! merges within them.
//!
//! Source: <https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp>, `llm_tokenizer_bpe`. Listed are
//! those checked against llama.cpp's ids, those that share every expression with one of them, and three (`tekken`,
//! `gpt-4o`, `deepseek-v3`) with the expressions of the models' own `tokenizer.json`, which llama.cpp approximates.

use tokenizers::pre_tokenizers::{PreTokenizerWrapper, byte_level::ByteLevel, sequence::Sequence, split::Split};
use tokenizers::{SplitDelimiterBehavior, pre_tokenizers::split::SplitPattern};

use super::error::{TextError, one_line};

/// What a name in `tokenizer.ggml.pre` implies.
#[derive(Debug, Clone, Copy)]
pub(super) struct PreTokenizerSpec {
    names: &'static [&'static str],
    /// Applied one after the other; each match, and each gap between matches, becomes a word of its own.
    expressions: &'static [&'static str],
    /// A word that is itself a token is not merged up to.
    pub ignore_merges: bool,
    /// Texts begin with the bos token unless the file says otherwise.
    pub add_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3_WORDS: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const SPECS: &[PreTokenizerSpec] = &[
    PreTokenizerSpec {
        names: &["default"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizerSpec {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "granite-docling", "modern-bert"],
        expressions: &[GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizerSpec {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        expressions: &[r"\p{N}", GPT2],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizerSpec {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        expressions: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
    },
    PreTokenizerSpec {
        names: &["dbrx", "smaug-bpe", "chatglm-bpe"],
        expressions: &[LLAMA3],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizerSpec { names: &["glm4", "glm5"], expressions: &[LLAMA3], ignore_merges: true, add_bos: false },
    PreTokenizerSpec {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "solar-open", "grok-2", "kormo"],
        expressions: &[QWEN2],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizerSpec { names: &["qwen35"], expressions: &[QWEN35], ignore_merges: false, add_bos: false },
    PreTokenizerSpec { names: &["tekken"], expressions: &[TEKKEN], ignore_merges: true, add_bos: true },
    PreTokenizerSpec {
        names: &["gpt-4o", "llama4", "kanana2"],
        expressions: &[GPT4O],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizerSpec {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        expressions: &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3_WORDS],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizerSpec {
        names: &["deepseek-coder"],
        expressions: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        ignore_merges: false,
        add_bos: false,
    },
    PreTokenizerSpec {
        names: &["falcon"],
        expressions: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        ignore_merges: false,
        add_bos: false,
    },
];

impl PreTokenizerSpec {
    /// The pre-tokenizer of that name; a file without one gets `default`.
    ///
    /// Errors: an unknown name, with the known ones.
    pub(super) fn by_name(name: Option<&str>) -> Result<Self, TextError> {
        let name = name.unwrap_or("default");
        SPECS.iter().find(|spec| spec.names.contains(&name)).copied().ok_or_else(|| TextError::Unsupported {
            what: "tokenizer.ggml.pre",
            name: one_line(name),
            known: SPECS.iter().flat_map(|spec| spec.names).copied().collect::<Vec<_>>().join(", "),
        })
    }

    /// A name of each.
    #[cfg(test)]
    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        SPECS.iter().filter_map(|spec| spec.names.first()).copied()
    }

    /// The words, spelled one character a byte.
    pub(super) fn build(&self) -> Result<PreTokenizerWrapper, TextError> {
        let mut stages = Vec::new();
        for expression in self.expressions {
            let pattern = SplitPattern::Regex((*expression).to_string());
            let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
                .map_err(|error| TextError::MalformedTokenizer(one_line(&error.to_string())))?;
            stages.push(split.into());
        }
        stages.push(ByteLevel::new(false, false, false).into());
        Ok(Sequence::new(stages).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spec_builds_and_every_name_is_there_once() {
        let mut names: Vec<_> = SPECS.iter().flat_map(|spec| spec.names).collect();
        for spec in SPECS {
            spec.build().unwrap();
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let message = PreTokenizerSpec::by_name(Some("nope")).unwrap_err().to_string();
        assert!(message.contains("'nope'") && message.contains("smollm"), "{message}");
    }
}
