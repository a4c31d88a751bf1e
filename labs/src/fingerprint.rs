//! Short hashes of inputs: two arms did the same work only if they used the same bytes.

use sha2::{Digest, Sha256};

/// Collects inputs into one hash.
#[derive(Debug, Clone, Default)]
pub struct Fingerprint {
    hasher: Sha256,
}

impl Fingerprint {
    /// Adds bytes; where one part ends and the next begins is part of the hash.
    pub fn add(&mut self, part: &[u8]) -> &mut Self {
        self.hasher.update((part.len() as u64).to_le_bytes());
        self.hasher.update(part);
        self
    }

    /// Adds values by their bits.
    pub fn add_f32(&mut self, values: &[f32]) -> &mut Self {
        self.hasher.update((values.len() as u64).to_le_bytes());
        for value in values {
            self.hasher.update(value.to_bits().to_le_bytes());
        }
        self
    }

    /// Adds token ids or counts.
    pub fn add_u32(&mut self, values: &[u32]) -> &mut Self {
        self.hasher.update((values.len() as u64).to_le_bytes());
        for value in values {
            self.hasher.update(value.to_le_bytes());
        }
        self
    }

    /// Sixteen hexadecimal digits.
    pub fn finish(&self) -> String {
        self.hasher.clone().finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart() {
        let of =
            |parts: &[&[u8]]| parts.iter().fold(Fingerprint::default(), |mut f, part| f.add(part).clone()).finish();
        assert_eq!(of(&[b"ab", b"c"]), of(&[b"ab", b"c"]));
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_eq!(of(&[b"ab"]).len(), 16);
        assert_ne!(Fingerprint::default().add_f32(&[0.0]).finish(), Fingerprint::default().add_f32(&[-0.0]).finish());
    }
}
