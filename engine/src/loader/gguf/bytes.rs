//! Little-endian numbers and strings out of a file of known length: every length is compared with what is left of the
//! file before anything is allocated.

use std::io::Read;

use super::super::error::FieldError;

/// A reader that knows where it is and where the file ends.
pub(crate) struct ByteReader<R> {
    inner: R,
    position: u64,
    length: u64,
}

impl<R: Read> ByteReader<R> {
    /// Starts at the first of `length` bytes.
    pub(crate) fn new(inner: R, length: u64) -> Self {
        Self { inner, position: 0, length }
    }

    /// Bytes read so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes left.
    pub(crate) fn remaining(&self) -> u64 {
        self.length - self.position
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], FieldError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, field)?;
        Ok(bytes)
    }

    /// A `u32`.
    pub(crate) fn u32(&mut self, field: &str) -> Result<u32, FieldError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// A `u64`.
    pub(crate) fn u64(&mut self, field: &str) -> Result<u64, FieldError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A count of things of which each takes at least `min_bytes` of the file.
    pub(crate) fn count(&mut self, field: &str, max: u64, min_bytes: u64) -> Result<usize, FieldError> {
        let count = self.u64(field)?;
        if count > max {
            return Err(FieldError::malformed(field, format!("is {count}, at most {max} are allowed")));
        }
        // `max` keeps the product small.
        if count * min_bytes > self.remaining() {
            let problem = format!("is {count}, the {} bytes left in the file cannot hold that", self.remaining());
            return Err(FieldError::malformed(field, problem));
        }
        Ok(count as usize)
    }

    /// A string's bytes behind their `u64` length.
    pub(crate) fn string_bytes(&mut self, field: &str, max_bytes: u64) -> Result<Vec<u8>, FieldError> {
        let length = self.u64(field)?;
        if length > max_bytes {
            let problem = format!("is a string of {length} bytes, at most {max_bytes} are allowed");
            return Err(FieldError::malformed(field, problem));
        }
        if length > self.remaining() {
            let problem = format!("is a string of {length} bytes, {} are left in the file", self.remaining());
            return Err(FieldError::malformed(field, problem));
        }
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes, field)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8], field: &str) -> Result<(), FieldError> {
        if bytes.len() as u64 > self.remaining() {
            return Err(FieldError::malformed(field, "is cut off: the file ends there, download it again"));
        }
        self.inner
            .read_exact(bytes)
            .map_err(|error| FieldError::malformed(field, format!("cannot be read: {}", error.kind())))?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}
