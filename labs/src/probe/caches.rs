//! Sizes of the caches, as Linux tells them.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// A data cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSize {
    /// 1 is nearest to the core.
    pub level: u32,
    /// Bytes of one such cache.
    pub bytes: u64,
    /// Cores that share it.
    pub shared_by: usize,
}

/// Data caches of the first core, nearest first; empty on systems without `/sys`.
pub fn of_first_core() -> Vec<CacheSize> {
    in_folder(Path::new("/sys/devices/system/cpu/cpu0/cache"))
}

fn in_folder(folder: &Path) -> Vec<CacheSize> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut caches: Vec<CacheSize> = entries.filter_map(|entry| read(&entry.path())).collect();
    caches.sort_by_key(|cache| cache.level);
    caches
}

fn read(folder: &Path) -> Option<CacheSize> {
    let file = |name: &str| fs::read_to_string(folder.join(name)).ok().map(|text| text.trim().to_owned());
    if file("type")? == "Instruction" {
        return None;
    }
    let shared_by = file("shared_cpu_list").map_or(1, |list| count(&list));
    Some(CacheSize { level: file("level")?.parse().ok()?, bytes: size(&file("size")?)?, shared_by })
}

/// `1024K` or `32M` in bytes.
fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M']);
    let unit = if text.ends_with('K') {
        1 << 10
    } else if text.ends_with('M') {
        1 << 20
    } else {
        1
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Cores in a list such as `0-3,8`.
fn count(list: &str) -> usize {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    list.split(',').filter_map(range).sum::<usize>().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_caches_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let rows = [("index0", "1", "Data", "48K", "0"), ("index1", "1", "Instruction", "32K", "0")];
        for (name, level, kind, size, shared) in rows.into_iter().chain([("index3", "3", "Unified", "32M", "0-3,8")]) {
            let index = folder.path().join(name);
            fs::create_dir(&index).unwrap();
            for (file, text) in [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)] {
                fs::write(index.join(file), format!("{text}\n")).unwrap();
            }
        }
        let l1 = CacheSize { level: 1, bytes: 48 << 10, shared_by: 1 };
        let l3 = CacheSize { level: 3, bytes: 32 << 20, shared_by: 5 };
        assert_eq!(in_folder(folder.path()), [l1, l3]);
        assert_eq!(in_folder(Path::new("/nowhere")), []);
    }

    #[test]
    fn strange_lists_do_not_break() {
        assert_eq!((count(""), count("3-1"), count("x"), count("0-1")), (1, 1, 1, 2));
        assert_eq!((size("1024K"), size("x"), size("12")), (Some(1 << 20), None, Some(12)));
    }
}
