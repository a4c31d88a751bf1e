//! `aisp tools kv-cache`: how much memory the keys and values of a batch take.

use std::fmt;

use serde::Serialize;

use super::checks::{positive, refuse};
use super::dtype::Dtype;
use crate::{LabError, units};

/// What most models with a hidden size of 2048 and more use; taken only when nothing says otherwise, and then said.
const USUAL_HEAD_DIM: u64 = 128;

/// Shape of a model's attention and of the batch that it keeps.
#[derive(Debug, Clone, clap::Args)]
pub struct KvCacheArgs {
    /// Decoder layers
    #[arg(long)]
    pub layers: u64,
    /// Hidden size of the model
    #[arg(long)]
    pub hidden: u64,
    /// Key/value heads (equal to --heads without grouped queries)
    #[arg(long)]
    pub kv_heads: u64,
    /// Query heads; gives head_dim = hidden / heads
    #[arg(long)]
    pub heads: Option<u64>,
    /// Elements of one head; 128 where neither this nor --heads is given
    #[arg(long)]
    pub head_dim: Option<u64>,
    /// Tokens kept for each sequence: prompt and answer
    #[arg(long)]
    pub tokens: u64,
    /// Sequences kept at once
    #[arg(long, default_value_t = 1)]
    pub batch: u64,
    /// Format of the cache
    #[arg(long, value_enum, default_value_t = Dtype::Bf16)]
    pub dtype: Dtype,
}

/// Where the head dimension came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadDimSource {
    /// `--head-dim`.
    Given,
    /// `--hidden` over `--heads`.
    HiddenOverHeads,
    /// The usual 128.
    Assumed,
}

/// Memory of a KV cache.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KvCacheSize {
    /// All sequences, all layers.
    pub total_bytes: u64,
    /// One token, all layers, keys and values.
    pub bytes_per_token: u64,
    /// One sequence of `tokens`.
    pub bytes_per_sequence: u64,
    /// Elements of one head.
    pub head_dim: u64,
    /// Where `head_dim` came from.
    pub head_dim_source: HeadDimSource,
    /// The product with its factors.
    pub formula: String,
}

/// Size of the cache: keys and values x layers x KV heads x head dimension x bytes, for each token of each sequence.
///
/// Scales of 8- and 4-bit formats, and the unused rest of a last block, come on top.
/// Errors: a size of zero, heads that do not divide the hidden size, more KV heads than fit, a product beyond 64 bits.
pub fn kv_cache_size(args: &KvCacheArgs) -> Result<KvCacheSize, LabError> {
    let sizes = [("--layers", args.layers), ("--hidden", args.hidden), ("--kv-heads", args.kv_heads)];
    for (name, value) in sizes.into_iter().chain([("--tokens", args.tokens), ("--batch", args.batch)]) {
        positive(name, value as f64)?;
    }
    let (head_dim, head_dim_source) = head_dim(args)?;
    let elements_per_token = product(&[2, args.layers, args.kv_heads, head_dim])?;
    let bits_per_token = product(&[elements_per_token, args.dtype.bits()])?;
    let bytes_per_token = bits_per_token.div_ceil(8);
    let bytes_per_sequence = product(&[bytes_per_token, args.tokens])?;
    let total_bytes = product(&[bytes_per_sequence, args.batch])?;
    let formula = format!(
        "2 (K, V) x {} layers x {} kv heads x {head_dim} head dim x {} B ({}) = {bytes_per_token} B a token; \
         x {} tokens x {} sequences = {total_bytes} B",
        args.layers,
        args.kv_heads,
        args.dtype.bytes(),
        args.dtype.name(),
        args.tokens,
        args.batch
    );
    Ok(KvCacheSize { total_bytes, bytes_per_token, bytes_per_sequence, head_dim, head_dim_source, formula })
}

fn head_dim(args: &KvCacheArgs) -> Result<(u64, HeadDimSource), LabError> {
    if let Some(heads) = args.heads.filter(|heads| *heads == 0 || !heads.is_multiple_of(args.kv_heads)) {
        return refuse(format!("{heads} query heads cannot share {} KV heads evenly", args.kv_heads));
    }
    match (args.head_dim, args.heads) {
        (Some(0), _) => refuse("--head-dim must be above 0"),
        (Some(head_dim), _) => Ok((head_dim, HeadDimSource::Given)),
        (None, Some(heads)) if args.hidden.is_multiple_of(heads) => {
            Ok((args.hidden / heads, HeadDimSource::HiddenOverHeads))
        }
        (None, Some(heads)) => {
            refuse(format!("{heads} heads do not divide a hidden size of {}: give --head-dim", args.hidden))
        }
        (None, None) if args.hidden.is_multiple_of(USUAL_HEAD_DIM) && args.kv_heads <= args.hidden / USUAL_HEAD_DIM => {
            Ok((USUAL_HEAD_DIM, HeadDimSource::Assumed))
        }
        (None, None) => refuse(format!(
            "the usual head dimension {USUAL_HEAD_DIM} does not fit {} KV heads in a hidden size of {}: give --head-dim or --heads",
            args.kv_heads, args.hidden
        )),
    }
}

fn product(factors: &[u64]) -> Result<u64, LabError> {
    let checked = factors.iter().try_fold(1u64, |product, factor| product.checked_mul(*factor));
    checked.map_or_else(|| refuse("the size of the KV cache does not fit 64 bits: check the sizes"), Ok)
}

impl fmt::Display for KvCacheSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "KV cache      {}", units::bytes(self.total_bytes as f64))?;
        writeln!(f, "per sequence  {}", units::bytes(self.bytes_per_sequence as f64))?;
        writeln!(f, "per token     {}", units::bytes(self.bytes_per_token as f64))?;
        match self.head_dim_source {
            HeadDimSource::Given => {}
            HeadDimSource::HiddenOverHeads => writeln!(f, "head dim      {} = hidden / heads", self.head_dim)?,
            HeadDimSource::Assumed => {
                writeln!(f, "head dim      {} assumed: --head-dim or --heads says better", self.head_dim)?;
            }
        }
        writeln!(f, "formula       {}", self.formula)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama_70b() -> KvCacheArgs {
        KvCacheArgs {
            layers: 80,
            hidden: 8192,
            kv_heads: 8,
            heads: Some(64),
            head_dim: None,
            tokens: 4096,
            batch: 8,
            dtype: Dtype::Fp8,
        }
    }

    #[test]
    fn sizes_are_those_computed_by_hand() {
        let size = kv_cache_size(&llama_70b()).unwrap();
        // 2 x 80 x 8 x 128 x 1 B = 163 840 B a token; x 4096 x 8 = 5 GiB.
        assert_eq!((size.bytes_per_token, size.total_bytes), (163_840, 5_368_709_120));
        assert_eq!((size.head_dim, size.head_dim_source), (128, HeadDimSource::HiddenOverHeads));
        assert_eq!(size.bytes_per_sequence * 8, size.total_bytes);

        // Llama-3.1-8B in bf16: 131 072 B a token.
        let llama_8b = KvCacheArgs { layers: 32, hidden: 4096, heads: Some(32), dtype: Dtype::Bf16, ..llama_70b() };
        assert_eq!(kv_cache_size(&llama_8b).unwrap().bytes_per_token, 131_072);

        // SmolLM2-135M in f16: 2 x 30 x 3 x 64 x 2.
        let smol =
            KvCacheArgs { layers: 30, hidden: 576, kv_heads: 3, heads: Some(9), dtype: Dtype::F16, ..llama_70b() };
        assert_eq!(kv_cache_size(&smol).unwrap().bytes_per_token, 23_040);

        // Half a byte an element, and never less than what is needed.
        let tiny =
            KvCacheArgs { layers: 1, kv_heads: 1, heads: None, head_dim: Some(1), dtype: Dtype::Int4, ..llama_70b() };
        assert_eq!(kv_cache_size(&tiny).unwrap().bytes_per_token, 1);
    }

    #[test]
    fn an_assumed_head_dim_is_said() {
        let size = kv_cache_size(&KvCacheArgs { heads: None, ..llama_70b() }).unwrap();
        assert_eq!(size.head_dim_source, HeadDimSource::Assumed);
        assert!(size.to_string().contains("assumed"), "{size}");
    }

    #[test]
    fn impossible_shapes_are_refused_in_one_line() {
        let refused = |args: KvCacheArgs, part: &str| {
            let error = kv_cache_size(&args).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{error}");
        };
        refused(KvCacheArgs { layers: 0, ..llama_70b() }, "--layers must be above 0");
        refused(KvCacheArgs { heads: Some(63), ..llama_70b() }, "cannot share 8 KV heads");
        refused(KvCacheArgs { kv_heads: 1, heads: Some(3), ..llama_70b() }, "give --head-dim");
        refused(KvCacheArgs { hidden: 576, kv_heads: 3, heads: None, ..llama_70b() }, "give --head-dim or --heads");
        refused(KvCacheArgs { head_dim: Some(0), ..llama_70b() }, "--head-dim must be above 0");
        refused(KvCacheArgs { tokens: u64::MAX, ..llama_70b() }, "does not fit");
    }
}
