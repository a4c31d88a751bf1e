//! The `tojson` filter as Hugging Face defines it: Python's `json.dumps`, not Jinja's HTML-safe one.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use super::template_budget::charge_deep;

const MAX_INDENT: usize = 16;

/// `tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(state: &mut State, value: Value, indent: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    // Quotes and escapes may double the text, indentation multiplies the nodes.
    charge_deep(state, &value)?;
    charge_deep(state, &value)?;
    let failed = |message: String| Error::new(ErrorKind::InvalidOperation, message);
    let indent = indent.or(options.get("indent")?);
    let indent = indent.filter(|indent| !indent.is_none() && !indent.is_undefined());
    let indent = indent.map(|indent| indent.as_usize().filter(|n| *n <= MAX_INDENT).ok_or(indent)).transpose();
    let indent = indent.map_err(|got| failed(format!("tojson: indent is at most {MAX_INDENT}, got {got}")))?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let (sort_keys, ensure_ascii) =
        (options.get::<Option<bool>>("sort_keys")?, options.get::<Option<bool>>("ensure_ascii")?);
    options.assert_all_used()?;
    let mut json = serde_json::to_value(&value).map_err(|error| failed(format!("tojson: {error}")))?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let mut bytes = Vec::new();
    let written = match (indent, separators.as_deref()) {
        (Some(indent), _) => write(&json, &mut bytes, PrettyFormatter::with_indent(" ".repeat(indent).as_bytes())),
        (None, Some([item, key])) => write(&json, &mut bytes, Separated { item, key }),
        (None, Some(_)) => return Err(failed("tojson: separators are two strings".into())),
        (None, None) => write(&json, &mut bytes, Separated { item: ", ", key: ": " }),
    };
    written.map_err(|error| failed(format!("tojson: {error}")))?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(Value::from(if ensure_ascii == Some(true) { ascii(&text) } else { text.into_owned() }))
}

fn write<F: Formatter>(json: &serde_json::Value, into: &mut Vec<u8>, formatter: F) -> serde_json::Result<()> {
    json.serialize(&mut Serializer::with_formatter(into, formatter))
}

/// JSON on one line with Python's separators.
struct Separated<'s> {
    item: &'s str,
    key: &'s str,
}

impl Formatter for Separated<'_> {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(self.item.as_bytes()) }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.key.as_bytes())
    }
}

/// Escapes everything beyond ASCII as UTF-16 units, as Python does.
fn ascii(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            escaped.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}
