//! Which files of a repository make a model, and getting them all at one commit.

use std::path::Path;

use super::super::error::{LoadError, printable};
use super::super::folder::files::{
    CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, INDEX, TOKENIZER, TOKENIZER_CONFIG, TextFile,
};
use super::super::folder::shards::{SINGLE, parse_index};
use super::super::options::LoadOptions;
use super::super::source::{is_plain_name, is_plain_path};
use super::Fetched;
use super::cache::RepoCache;
use super::client::Client;
use super::download::{Wanted, download};

/// Text files in the order of the download. Weights come last, so where they are, everything is.
const TEXT_FILES: [TextFile; 5] = [CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG, CHAT_TEMPLATE];

/// Brings a model into the cache and says where it is. What the cache holds completely under a commit's own name costs
/// no request; under a branch's name it costs one, and none at all when the hub cannot be reached.
pub(crate) fn fetch(
    repo: &str,
    file: Option<&str>,
    revision: Option<&str>,
    options: &LoadOptions,
) -> Result<Fetched, LoadError> {
    let revision = revision.unwrap_or("main");
    check_names(repo, file, revision)?;
    let Some(cache_folder) = options.hub.cache.as_deref() else {
        let problem = "is not known, as there is no home folder: set it".to_owned();
        return Err(LoadError::HubAnswer { repo: repo.into(), file: "-".into(), field: "HF_HUB_CACHE", problem });
    };
    let cache = RepoCache::new(cache_folder, repo, revision);
    let cached = || match cache.known_commit() {
        Some(commit) => find_complete(&cache.snapshot(&commit), file),
        None => Err(file.unwrap_or(CONFIG.name).to_owned()),
    };
    if options.hub.offline {
        return cached().map_err(|missing| LoadError::HubOffline {
            repo: repo.into(),
            file: printable(&missing),
            cache: printable(&cache_folder.display().to_string()),
        });
    }
    if let Ok(fetched) = find_complete(&cache.snapshot(revision), file) {
        return Ok(fetched);
    }
    let client = Client::new(&options.hub, repo)?;
    match fetch_online(&client, &cache, file, revision, options.progress) {
        Err(error @ (LoadError::HubUnreachable { .. } | LoadError::HubStatus { status: 500.., .. })) => {
            match cached() {
                Ok(fetched) => {
                    tracing::warn!(%error, repo, "the hub does not answer: using the cached copy");
                    Ok(fetched)
                }
                Err(_) => Err(error),
            }
        }
        result => result,
    }
}

/// The caller may be a program that did not parse a model source.
fn check_names(repo: &str, file: Option<&str>, revision: &str) -> Result<(), LoadError> {
    let repo_fits = repo.split_once('/').is_some_and(|(org, name)| is_plain_name(org) && is_plain_name(name));
    if repo_fits && file.is_none_or(is_plain_path) && is_plain_path(revision) {
        return Ok(());
    }
    let given = format!("{repo}{}@{revision}", file.map(|file| format!("/{file}")).unwrap_or_default());
    Err(LoadError::UnknownSource { given: printable(&given), reason: "not a hub id" })
}

fn fetch_online(
    client: &Client,
    cache: &RepoCache,
    file: Option<&str>,
    revision: &str,
    progress: bool,
) -> Result<Fetched, LoadError> {
    let info = client.repo_info(revision)?;
    let names: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
    if let Some(name) = names.iter().find(|name| !stays_inside(name)) {
        return Err(client.bad_answer(name, "file name", "leads out of the repository: nothing was fetched".into()));
    }
    let commit = info.sha.as_str();
    let get = |file: &str, max_bytes| download(client, cache, &Wanted { file, commit, max_bytes, progress });
    let snapshot = cache.snapshot(commit);
    let fetched = if let Some(gguf) = choose_gguf(client, &names, file)? {
        get(gguf, None)?;
        Fetched::Gguf(snapshot.join(gguf))
    } else {
        for text in TEXT_FILES.into_iter().filter(|text| names.contains(&text.name)) {
            get(text.name, Some(text.max_bytes))?;
        }
        let shards = if names.contains(&SINGLE) {
            vec![SINGLE.to_owned()]
        } else {
            get(INDEX.name, Some(INDEX.max_bytes))?;
            parse_index(&snapshot, &INDEX.require(&snapshot)?)?
        };
        for shard in &shards {
            get(shard, None)?;
        }
        Fetched::Folder(snapshot)
    };
    cache.remember(commit)?;
    Ok(fetched)
}

/// The GGUF file to fetch, or `None` for a repository of safetensors.
fn choose_gguf<'a>(client: &Client, names: &[&'a str], file: Option<&str>) -> Result<Option<&'a str>, LoadError> {
    if let Some(file) = file {
        return match names.iter().find(|name| **name == file) {
            Some(name) => Ok(Some(*name)),
            None => Err(client.bad_answer(file, "file", "is not in the repository: check the spelling".into())),
        };
    }
    if names.contains(&CONFIG.name) && (names.contains(&SINGLE) || names.contains(&INDEX.name)) {
        return Ok(None);
    }
    let is_gguf = |name: &&str| Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let ggufs: Vec<&str> = names.iter().copied().filter(is_gguf).filter(|name| is_plain_path(name)).collect();
    match ggufs.as_slice() {
        [] => {
            let problem = "are neither safetensors with a config.json nor GGUF: choose another repository".to_owned();
            Err(client.bad_answer("-", "files", problem))
        }
        [single] => Ok(Some(*single)),
        several => {
            let shown = several.iter().take(8).map(|name| printable(name)).collect::<Vec<_>>().join(", ");
            let problem = format!("hold {} GGUFs, name one ({}/FILE): {shown}", several.len(), client.repo);
            Err(client.bad_answer("-", "files", problem))
        }
    }
}

/// A relative path that no file system reads as anything else. Subfolders, spaces and the like may be listed; only
/// plain names are ever fetched.
fn stays_inside(name: &str) -> bool {
    name.len() <= 1024
        && !name.contains(['\\', ':', '\0'])
        && !name.chars().any(char::is_control)
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// Whether a snapshot has everything that loading needs.
///
/// Errors: the first missing file.
fn find_complete(snapshot: &Path, file: Option<&str>) -> Result<Fetched, String> {
    let need = |name: &str| if snapshot.join(name).is_file() { Ok(()) } else { Err(name.to_owned()) };
    if let Some(file) = file {
        need(file)?;
        return Ok(Fetched::Gguf(snapshot.join(file)));
    }
    if let Err(missing) = need(CONFIG.name) {
        let entries = std::fs::read_dir(snapshot).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut ggufs = entries.filter(|path| path.is_file() && path.extension().is_some_and(|e| e == "gguf"));
        return match (ggufs.next(), ggufs.next()) {
            (Some(single), None) => Ok(Fetched::Gguf(single)),
            _ => Err(missing),
        };
    }
    if need(SINGLE).is_err() {
        need(INDEX.name).map_err(|_| SINGLE.to_owned())?;
        let index = INDEX.require(snapshot).map_err(|_| INDEX.name.to_owned())?;
        parse_index(snapshot, &index).map_err(|_| INDEX.name.to_owned())?.iter().try_for_each(|shard| need(shard))?;
    }
    Ok(Fetched::Folder(snapshot.to_path_buf()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_seen() {
        for name in ["config.json", "onnx/model.onnx", "a b.txt", ".gitattributes", "..a"] {
            assert!(stays_inside(name), "{name}");
        }
        for name in ["../x", "a/../x", "/x", "a//x", "", ".", "a\\..\\x", "C:x", "a\nb", "a/./b"] {
            assert!(!stays_inside(name), "{name}");
        }
    }

    #[test]
    fn programs_cannot_pass_other_names() {
        for (repo, file, revision) in [
            ("../x", None, "main"),
            ("a/b/c", None, "main"),
            ("a", None, "main"),
            ("a/b", Some("../c.gguf"), "main"),
            ("a/b", None, "../main"),
            ("a/..", None, "main"),
        ] {
            assert!(check_names(repo, file, revision).is_err(), "{repo} {file:?} {revision}");
        }
        assert!(check_names("a/b", Some("c/d.gguf"), "refs/pr/1").is_ok());
    }
}
