//! Which files hold the weights: one `model.safetensors`, or the shards that the index names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::super::error::{FieldError, LoadError};
use super::super::source::is_plain_name;
use super::files::INDEX;

/// The only shard of an unsharded checkpoint.
pub(crate) const SINGLE: &str = "model.safetensors";
const MAX_SHARDS: usize = 4096;

/// The parts of the index that matter here.
#[derive(Debug, Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Names of the weight files in `folder`. As in transformers, a single file wins over an index.
///
/// Errors: a name that is not a plain file name in the folder.
pub(crate) fn shard_names(folder: &Path) -> Result<Vec<String>, LoadError> {
    if folder.join(SINGLE).exists() {
        return Ok(vec![SINGLE.to_owned()]);
    }
    match INDEX.read(folder)? {
        Some(bytes) => parse_index(folder, &bytes),
        None => Ok(vec![SINGLE.to_owned()]),
    }
}

/// Names of the shards in the text of an index.
pub(crate) fn parse_index(folder: &Path, bytes: &[u8]) -> Result<Vec<String>, LoadError> {
    let index: Index = INDEX.parse(folder, bytes)?;
    let in_file = |error: FieldError| error.in_file(&INDEX.shown(folder));
    let mut names = BTreeSet::new();
    for (tensor, name) in index.weight_map {
        if !is_plain_name(&name) || !name.ends_with(".safetensors") {
            let shown = super::super::error::printable(&name);
            let problem = format!("names '{shown}': shards are .safetensors files in the same folder");
            return Err(in_file(FieldError::malformed(format!("weight_map.{tensor}"), problem)));
        }
        names.insert(name);
        if names.len() > MAX_SHARDS {
            return Err(in_file(FieldError::malformed("weight_map", format!("names more than {MAX_SHARDS} files"))));
        }
    }
    if names.is_empty() {
        return Err(in_file(FieldError::malformed("weight_map", "is empty")));
    }
    Ok(names.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_in_the_folder_pass() {
        let parse = |name: &str| {
            let json = serde_json::json!({"metadata": {}, "weight_map": {"a": name, "b": name}}).to_string();
            parse_index(Path::new("m"), json.as_bytes())
        };
        assert_eq!(parse("model-00001-of-00002.safetensors").unwrap(), ["model-00001-of-00002.safetensors"]);
        for name in [
            "../x.safetensors",
            "/etc/x.safetensors",
            "a/b.safetensors",
            "..\\x.safetensors",
            "C:x.safetensors",
            ".x.safetensors",
            "x.bin",
            "a\nb.safetensors",
            "",
        ] {
            let message = parse(name).unwrap_err().to_string();
            assert!(message.contains("weight_map.a") && message.lines().count() == 1, "{name}: {message}");
        }
    }
}
