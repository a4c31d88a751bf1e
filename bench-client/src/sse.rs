//! Server-sent events out of a byte stream that may be cut anywhere. Knows nothing of JSON or HTTP.

/// The longest event accepted; a longer one is a broken or hostile server.
pub const MAX_EVENT_BYTES: usize = 16 << 20;

/// An event grew beyond [`MAX_EVENT_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {MAX_EVENT_BYTES} bytes")]
pub struct EventTooLong;

/// An incremental parser. Lines end in LF or CRLF; only `data` fields are kept, other fields and comments are ignored.
///
/// Cost: an event that lies whole in one input slice, as almost all do, is handed on without a copy.
#[derive(Debug, Default)]
pub struct SseParser {
    /// The start of a line whose end has not arrived.
    partial_line: Vec<u8>,
    /// The data lines of the current event, joined by LF, once a copy is needed.
    data: Vec<u8>,
    has_data: bool,
}

impl SseParser {
    /// A parser at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether bytes of an unfinished event are held: at the end of a stream that means it was cut off.
    pub fn is_mid_event(&self) -> bool {
        self.has_data || !self.partial_line.is_empty()
    }

    /// Feeds bytes and calls `on_event` with the data of each event that they complete.
    ///
    /// Errors: [`EventTooLong`]; the parser is then of no further use.
    pub fn push(&mut self, mut input: &[u8], mut on_event: impl FnMut(&[u8])) -> Result<(), EventTooLong> {
        while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = (&input[..end], &input[end + 1..]);
            if !self.partial_line.is_empty() {
                let mut whole = std::mem::take(&mut self.partial_line);
                whole.extend_from_slice(line);
                self.line(&whole, &mut on_event)?;
                whole.clear();
                self.partial_line = whole;
                input = rest;
                continue;
            }
            // The common case: one data line and the blank line after it, both here.
            let blank = if rest.first() == Some(&b'\n') {
                1
            } else if rest.starts_with(b"\r\n") {
                2
            } else {
                0
            };
            if let (true, false, Some(data)) = (blank > 0, self.has_data, data_field(line)) {
                on_event(data);
                input = &rest[blank..];
                continue;
            }
            self.line(line, &mut on_event)?;
            input = rest;
        }
        self.partial_line.extend_from_slice(input);
        self.check_size()
    }

    fn line(&mut self, line: &[u8], on_event: &mut impl FnMut(&[u8])) -> Result<(), EventTooLong> {
        if without_cr(line).is_empty() {
            if self.has_data {
                on_event(&self.data);
                self.data.clear();
                self.has_data = false;
            }
        } else if let Some(data) = data_field(line) {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data);
            self.has_data = true;
        }
        self.check_size()
    }

    fn check_size(&self) -> Result<(), EventTooLong> {
        if self.data.len() + self.partial_line.len() > MAX_EVENT_BYTES { Err(EventTooLong) } else { Ok(()) }
    }
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The value of a `data` line, without the one space that may follow the colon.
fn data_field(line: &[u8]) -> Option<&[u8]> {
    let line = without_cr(line);
    if line == b"data" {
        return Some(&[]);
    }
    let value = line.strip_prefix(b"data:")?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(pieces: &[&[u8]]) -> Vec<String> {
        let mut parser = SseParser::new();
        let mut events = Vec::new();
        for piece in pieces {
            parser.push(piece, |data| events.push(String::from_utf8_lossy(data).into_owned())).unwrap();
        }
        events
    }

    #[test]
    fn fields_comments_and_line_ends() {
        let check = |input: &str, wanted: &[&str]| assert_eq!(parse(&[input.as_bytes()]), wanted, "{input:?}");
        check("data: a\n\ndata: b\n\n", &["a", "b"]);
        check("data:a\r\n\r\ndata:  b\r\n\r\n", &["a", " b"]);
        check(": ping\n\nevent: x\nid: 3\ndata: a\n\n", &["a"]);
        check("data: a\ndata: b\n\n", &["a\nb"]);
        check("data\n\n", &[""]);
        check("database: no\n\n\n\n", &[]);
        check("data: never ended\n", &[]);
    }

    #[test]
    fn an_unfinished_event_is_noticed() {
        let mut parser = SseParser::new();
        parser.push(b"data: a\n\n", |_| {}).unwrap();
        assert!(!parser.is_mid_event());
        parser.push(b"data: b\n", |_| {}).unwrap();
        assert!(parser.is_mid_event());
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut parser = SseParser::new();
        let block = vec![b'x'; 1 << 20];
        let failed = (0..17).find_map(|_| parser.push(&block, |_| {}).err());
        assert_eq!(failed, Some(EventTooLong));
    }

    proptest! {
        #[test]
        fn cuts_never_change_the_events(
            texts in prop::collection::vec("[a-z {}:\"é]{0,12}", 0..12),
            line_ends in prop::collection::vec(any::<bool>(), 12),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let mut wire = Vec::new();
            for (text, crlf) in texts.iter().zip(&line_ends) {
                let end = if *crlf { "\r\n" } else { "\n" };
                wire.extend(format!(": c{end}data: {text}{end}{end}").into_bytes());
            }
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            at.extend([0, wire.len()]);
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &wire[pair[0]..pair[1]]).collect();
            prop_assert_eq!(parse(&pieces), texts);
        }
    }
}
