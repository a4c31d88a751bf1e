//! One file from the hub into the cache. A file appears there only when its size, and its checksum where the hub gives
//! one, are right; what a broken transfer leaves is a `.part` that no reader looks at.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sha2::{Digest, Sha256};

use super::super::error::{LoadError, printable};
use super::cache::RepoCache;
use super::client::{Client, FileInfo};

/// A file to fetch.
pub(crate) struct Wanted<'a> {
    /// Plain path in the repository.
    pub(crate) file: &'a str,
    /// The commit it belongs to.
    pub(crate) commit: &'a str,
    /// Most bytes it may have; `None` for weights.
    pub(crate) max_bytes: Option<u64>,
    /// Show a progress bar.
    pub(crate) progress: bool,
}

/// Fetches a file unless the cache holds it.
pub(crate) fn download(client: &Client, cache: &RepoCache, wanted: &Wanted<'_>) -> Result<(), LoadError> {
    // Links are made last, so what they lead to is whole.
    if cache.snapshot(wanted.commit).join(wanted.file).is_file() {
        return Ok(());
    }
    let info = client.file_info(wanted.commit, wanted.file)?;
    if let Some(max_bytes) = wanted.max_bytes.filter(|max_bytes| info.num_bytes > *max_bytes) {
        let problem = format!("is {} bytes, at most {max_bytes} are read", info.num_bytes);
        return Err(client.bad_answer(wanted.file, "size", problem));
    }
    let _lock = cache.lock(&info.etag)?;
    let blob = cache.blob(&info.etag);
    let is_whole = fs::metadata(&blob).is_ok_and(|metadata| metadata.len() == info.num_bytes);
    if !is_whole {
        let part = blob.with_extension("part");
        transfer(client, cache, wanted, &info, &part)?;
        fs::rename(&part, &blob).map_err(|error| cache.io("write", &blob, &error))?;
    }
    cache.link(&info.etag, wanted.commit, wanted.file)
}

/// Fills `part` and checks it.
fn transfer(
    client: &Client,
    cache: &RepoCache,
    wanted: &Wanted<'_>,
    info: &FileInfo,
    part: &Path,
) -> Result<(), LoadError> {
    let io = |error: &io::Error| cache.io("write", part, error);
    // Without a checksum nobody could tell whether the two halves belong together.
    let present = fs::metadata(part).map_or(0, |metadata| metadata.len());
    let resume_at = if sha256_of_etag(&info.etag).is_some() && present < info.num_bytes { present } else { 0 };
    let (body, resumed) = client.open(wanted.commit, wanted.file, resume_at)?;
    let start = if resumed { resume_at } else { 0 };
    let mut file = OpenOptions::new().create(true).append(true).open(part).map_err(|error| io(&error))?;
    file.set_len(start).map_err(|error| io(&error))?;

    let bar = progress_bar(wanted, info, start);
    let (copied, ended) = copy(body, &mut file, info.num_bytes - start, &bar).map_err(|error| io(&error))?;
    bar.finish_and_clear();
    file.sync_all().map_err(|error| io(&error))?;
    drop(file);
    let total = start + copied;
    if total > info.num_bytes {
        remove(part);
        let problem = format!("is more than the {} bytes announced: try again", info.num_bytes);
        return Err(client.bad_answer(wanted.file, "size", problem));
    }
    if total < info.num_bytes {
        let why = ended.map(|error| format!(" ({})", printable(&error.to_string()))).unwrap_or_default();
        let problem = format!("is {total} bytes of {}, then the transfer ended{why}: try again", info.num_bytes);
        return Err(client.bad_answer(wanted.file, "size", problem));
    }
    match sha256_of_etag(&info.etag) {
        Some(expected) if !sha256_of_file(part).map_err(|error| io(&error))?.eq_ignore_ascii_case(expected) => {
            remove(part);
            Err(client.bad_answer(wanted.file, "sha256", "is not the one announced: try again".into()))
        }
        _ => Ok(()),
    }
}

/// Copies until the end, an error of the source, or one byte more than `limit`. Errors of the target are the caller's.
fn copy(body: impl Read, file: &mut File, limit: u64, bar: &ProgressBar) -> io::Result<(u64, Option<io::Error>)> {
    let mut body = body.take(limit.saturating_add(1));
    let mut buffer = vec![0; 1 << 16];
    let mut copied = 0;
    loop {
        match body.read(&mut buffer) {
            Ok(0) => return Ok((copied, None)),
            Ok(count) => {
                file.write_all(&buffer[..count])?;
                copied += count as u64;
                bar.inc(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Ok((copied, Some(error))),
        }
    }
}

/// A leftover that cannot be removed does no harm: the next transfer overwrites it.
fn remove(part: &Path) {
    let _ = fs::remove_file(part);
}

/// Etags of large files are the sha256 of their content; those of small files are git's.
fn sha256_of_etag(etag: &str) -> Option<&str> {
    (etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit())).then_some(etag)
}

fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn progress_bar(wanted: &Wanted<'_>, info: &FileInfo, start: u64) -> ProgressBar {
    let target = if wanted.progress { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(info.num_bytes), target).with_message(wanted.file.to_owned());
    let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} eta {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_position(start);
    bar
}
