//! Bytes that arrive in pieces, as text: an incomplete character waits for the rest of it.

/// Turns a stream of bytes into exactly the text that `String::from_utf8_lossy` makes of all of them at once.
#[derive(Debug, Clone, Default)]
pub(super) struct Utf8Stream {
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Appends the text that `bytes` complete to `text`.
    ///
    /// Cost: linear in `bytes`.
    pub(super) fn push(&mut self, bytes: &[u8], text: &mut String) {
        self.pending.extend_from_slice(bytes);
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    // No length: the bytes end within a character that more bytes may complete.
                    let Some(invalid_bytes) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[invalid_bytes..];
                }
            }
        }
        let kept = rest.len();
        self.pending.drain(..self.pending.len() - kept);
    }

    /// Appends what waits: the replacement character for an incomplete one.
    pub(super) fn finish(&mut self, text: &mut String) {
        text.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.pending)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_split_equals_the_lossy_whole(
            chunks in prop::collection::vec(prop::collection::vec(prop_oneof![
                any::<u8>(), Just(0xf0), Just(0x9f), Just(0x98), Just(0x80), Just(0xe2), Just(0xc3), Just(b'a'),
            ], 0..5), 0..20),
        ) {
            let mut stream = Utf8Stream::default();
            let mut text = String::new();
            for chunk in &chunks {
                stream.push(chunk, &mut text);
                prop_assert!(stream.pending.len() <= 3);
            }
            stream.finish(&mut text);
            let whole = chunks.concat();
            prop_assert_eq!(text, String::from_utf8_lossy(&whole).into_owned());
        }
    }
}
