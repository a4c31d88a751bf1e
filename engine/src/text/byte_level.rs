//! The spelling of bytes as printable characters that byte-level BPE vocabularies use.
//!
//! Source: <https://github.com/openai/gpt-2/blob/master/src/encoder.py>, `bytes_to_unicode`.

/// The byte that a character of a byte-level token stands for.
pub(super) fn byte_of_char(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        // The 68 bytes without a printable Latin-1 character follow each other from U+0100.
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The character that stands for a byte in a byte-level token.
pub(super) fn char_of_byte(byte: u8) -> char {
    let code = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
        0..=0x20 => 0x100 + u32::from(byte),
        0x7f..=0xa0 => 0x121 + u32::from(byte - 0x7f),
        0xad => 0x143,
    };
    char::from_u32(code).unwrap_or_default()
}

/// The bytes that a byte-level token stands for; `None` when it holds another character.
pub(super) fn bytes_of_token(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of_char).collect()
}

/// The byte of a SentencePiece byte token, `<0x0A>`.
pub(super) fn byte_of_fallback(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let hexadecimal = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    u8::from_str_radix(digits, 16).ok().filter(|_| hexadecimal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut seen = [0_u32; 256];
        for c in (0..0x2000).filter_map(char::from_u32) {
            if let Some(byte) = byte_of_char(c) {
                seen[byte as usize] += 1;
            }
        }
        assert_eq!(seen, [1; 256]);
        for byte in 0..=u8::MAX {
            assert_eq!(byte_of_char(char_of_byte(byte)), Some(byte));
        }
    }

    #[test]
    fn known_spellings() {
        assert_eq!(bytes_of_token("Ġhello"), Some(b" hello".to_vec()));
        assert_eq!(bytes_of_token("Ċ"), Some(b"\n".to_vec()));
        assert_eq!(bytes_of_token("Ã©"), Some("é".as_bytes().to_vec()));
        assert_eq!(bytes_of_token("▁hello"), None);
        assert_eq!(byte_of_fallback("<0x0A>"), Some(b'\n'));
        assert_eq!(byte_of_fallback("<0x+A>"), None);
        assert_eq!(byte_of_fallback("<s>"), None);
    }
}
