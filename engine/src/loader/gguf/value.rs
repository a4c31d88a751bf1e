//! Metadata values. Numbers widen to 64 bits; arrays keep only the element types that some key uses, the others are
//! walked and dropped.

use std::io::Read;

use super::super::error::FieldError;
use super::bytes::ByteReader;

/// Longest string value; chat templates are the longest real ones.
const MAX_STRING_BYTES: u64 = 4 << 20;
/// Longest string in an array: a token or a merge.
const MAX_ELEMENT_BYTES: u64 = 64 << 10;
/// Most elements in an array; the largest real vocabularies have a quarter of a million tokens.
const MAX_ELEMENTS: u64 = 1 << 24;
/// Deepest array in an array.
const MAX_DEPTH: usize = 4;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    /// Any unsigned type.
    Unsigned(u64),
    /// Any signed type.
    Signed(i64),
    /// Either float type.
    Float(f64),
    /// 0 or 1.
    Bool(bool),
    /// Valid UTF-8; invalid bytes became U+FFFD.
    String(String),
    /// Strings.
    Strings(Vec<String>),
    /// `u32` or `i32` elements.
    Integers(Vec<i64>),
    /// `f32` elements.
    Floats(Vec<f32>),
    /// An array of elements that no key here uses.
    OtherArray,
}

impl Value {
    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Unsigned(_) | Self::Signed(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::String(_) => "a string",
            Self::Strings(_) => "an array of strings",
            Self::Integers(_) => "an array of integers",
            Self::Floats(_) => "an array of floats",
            Self::OtherArray => "an array",
        }
    }
}

/// The types of the format, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn from_number(number: u32, key: &str) -> Result<Self, FieldError> {
        use ValueType::{Array, Bool, F32, F64, I8, I16, I32, I64, String, U8, U16, U32, U64};
        [U8, I8, U16, I16, U32, I32, F32, Bool, String, Array, U64, I64, F64]
            .get(number as usize)
            .copied()
            .ok_or_else(|| FieldError::malformed(key, format!("has value type {number}, types go from 0 to 12")))
    }

    /// Fewest bytes that a value takes.
    fn min_bytes(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// Reads a value behind its type number.
pub(crate) fn read_value<R: Read>(reader: &mut ByteReader<R>, key: &str) -> Result<Value, FieldError> {
    let value_type = ValueType::from_number(reader.u32(key)?, key)?;
    match value_type {
        ValueType::Array => read_array(reader, key, 1),
        scalar => read_scalar(reader, key, scalar, MAX_STRING_BYTES),
    }
}

fn read_scalar<R: Read>(
    reader: &mut ByteReader<R>,
    key: &str,
    value_type: ValueType,
    max_string_bytes: u64,
) -> Result<Value, FieldError> {
    Ok(match value_type {
        ValueType::U8 => Value::Unsigned(u8::from_le_bytes(reader.array(key)?).into()),
        ValueType::I8 => Value::Signed(i8::from_le_bytes(reader.array(key)?).into()),
        ValueType::U16 => Value::Unsigned(u16::from_le_bytes(reader.array(key)?).into()),
        ValueType::I16 => Value::Signed(i16::from_le_bytes(reader.array(key)?).into()),
        ValueType::U32 => Value::Unsigned(reader.u32(key)?.into()),
        ValueType::I32 => Value::Signed(i32::from_le_bytes(reader.array(key)?).into()),
        ValueType::U64 => Value::Unsigned(reader.u64(key)?),
        ValueType::I64 => Value::Signed(i64::from_le_bytes(reader.array(key)?)),
        ValueType::F32 => Value::Float(f32::from_le_bytes(reader.array(key)?).into()),
        ValueType::F64 => Value::Float(f64::from_le_bytes(reader.array(key)?)),
        ValueType::Bool => match reader.array::<1>(key)? {
            [0] => Value::Bool(false),
            [1] => Value::Bool(true),
            [other] => return Err(FieldError::malformed(key, format!("is a boolean of value {other}"))),
        },
        ValueType::String => Value::String(read_text(reader, key, max_string_bytes)?),
        ValueType::Array => return Err(FieldError::malformed(key, "is an array where a single value belongs")),
    })
}

fn read_text<R: Read>(reader: &mut ByteReader<R>, key: &str, max_bytes: u64) -> Result<String, FieldError> {
    let bytes = reader.string_bytes(key, max_bytes)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

fn read_array<R: Read>(reader: &mut ByteReader<R>, key: &str, depth: usize) -> Result<Value, FieldError> {
    if depth > MAX_DEPTH {
        return Err(FieldError::malformed(key, format!("nests arrays deeper than {MAX_DEPTH}")));
    }
    let element_type = ValueType::from_number(reader.u32(key)?, key)?;
    let count = reader.count(key, MAX_ELEMENTS, element_type.min_bytes())?;
    match element_type {
        ValueType::String => {
            // A token of one byte takes nine in the file and four times that here.
            (0..count).map(|_| read_text(reader, key, MAX_ELEMENT_BYTES)).collect::<Result<_, _>>().map(Value::Strings)
        }
        ValueType::U32 => {
            (0..count).map(|_| Ok(reader.u32(key)?.into())).collect::<Result<_, _>>().map(Value::Integers)
        }
        ValueType::I32 => (0..count)
            .map(|_| Ok(i32::from_le_bytes(reader.array(key)?).into()))
            .collect::<Result<_, _>>()
            .map(Value::Integers),
        ValueType::F32 => {
            (0..count).map(|_| Ok(f32::from_le_bytes(reader.array(key)?))).collect::<Result<_, _>>().map(Value::Floats)
        }
        ValueType::Array => {
            (0..count).try_for_each(|_| read_array(reader, key, depth + 1).map(drop))?;
            Ok(Value::OtherArray)
        }
        scalar => {
            (0..count).try_for_each(|_| read_scalar(reader, key, scalar, MAX_ELEMENT_BYTES).map(drop))?;
            Ok(Value::OtherArray)
        }
    }
}
