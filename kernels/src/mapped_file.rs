//! A file as a slice, without a copy in the heap: its pages come from the page cache when they are touched.
#![allow(unsafe_code, reason = "mapping a file is unsafe in Rust: see the block")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A file mapped for reading. Another process that shortens the file meanwhile ends this one with a bus error, as with
/// every mapped file; checkpoints are written once.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps a whole file.
    ///
    /// Errors: a file that cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the map is private and only read, as bytes, for which every content is valid.
        unsafe { Mmap::map(&file) }.map(Self)
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_is_the_file() -> io::Result<()> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert_eq!(&*MappedFile::open(&path)?, std::fs::read(&path)?);
        assert!(MappedFile::open(Path::new("/nowhere")).is_err());
        Ok(())
    }
}
