//! A JSON object read field by field, so that an error names the field, and unknown or unsupported fields are refused
//! instead of passed over. Knows no field itself.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::error::{ApiError, shorten};

/// Fields of one object; no request has this many.
const MAX_FIELDS: usize = 128;

/// What an object may contain.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    /// Fields that are read.
    pub known: &'static [&'static [&'static str]],
    /// Fields that change nothing in the answer.
    pub ignored: &'static [&'static str],
    /// Fields that would change the answer: each with the values, as JSON, that ask for nothing.
    pub unsupported: &'static [(&'static str, &'static [&'static str])],
}

/// The fields of an object, not yet read.
#[derive(Debug)]
pub struct Fields<'a> {
    entries: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Fields<'a> {
    /// Splits an object and checks its keys against the schema.
    ///
    /// Errors: not a JSON object, a field twice, an unknown or an unsupported one.
    pub fn parse(json: &'a [u8], schema: &Schema) -> Result<Self, ApiError> {
        let fields: Self = serde_json::from_slice(json).map_err(|error| ApiError::Invalid {
            param: None,
            message: format!("the request body is not a JSON object: {error}"),
        })?;
        fields.check(schema)?;
        Ok(fields)
    }

    /// As [`Fields::parse`], of an object inside another.
    ///
    /// Errors: as [`Fields::parse`], blamed on `param`.
    pub fn nested(raw: &'a RawValue, param: &'static str, schema: &Schema) -> Result<Self, ApiError> {
        let fields: Self = read(raw, param)?;
        fields.check(schema)?;
        Ok(fields)
    }

    fn check(&self, schema: &Schema) -> Result<(), ApiError> {
        for (at, (name, raw)) in self.entries.iter().enumerate() {
            if self.entries[..at].iter().any(|(other, _)| other == name) {
                let message = format!("the field `{}` occurs twice", shorten(name));
                return Err(ApiError::Invalid { param: None, message });
            }
            if is_null(raw)
                || schema.ignored.contains(&name.as_ref())
                || schema.known.iter().any(|names| names.contains(&name.as_ref()))
            {
                continue;
            }
            let Some((param, off)) = schema.unsupported.iter().find(|(param, _)| param == name) else {
                return Err(ApiError::UnknownField { name: shorten(name) });
            };
            if !off.iter().any(|off| same_json(off, raw.get())) {
                let hint = off.first().map(|off| format!(" or set it to {off}")).unwrap_or_default();
                return Err(ApiError::Unsupported { param, hint });
            }
        }
        Ok(())
    }

    /// The raw value of a field; none when it is missing or null.
    pub fn raw(&self, name: &str) -> Option<&'a RawValue> {
        let (_, raw) = self.entries.iter().find(|(key, _)| key == name)?;
        (!is_null(raw)).then_some(*raw)
    }

    /// A field's value; none when it is missing or null.
    ///
    /// Errors: a value of another type.
    pub fn get<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, ApiError> {
        self.raw(name).map(|raw| read(raw, name)).transpose()
    }

    /// A list of at most `max` values; empty when it is missing or null.
    ///
    /// Errors: not a list, too long, or a value of another type.
    pub fn list<T: Deserialize<'a>>(&self, name: &'static str, max: usize) -> Result<Vec<T>, ApiError> {
        self.raw(name).map_or_else(|| Ok(Vec::new()), |raw| read_list(raw, name, max))
    }

    /// A field's value if its JSON has at most `max_bytes` bytes.
    ///
    /// Errors: longer JSON, or a value of another type.
    pub fn small<T: DeserializeOwned>(&self, name: &'static str, max_bytes: usize) -> Result<Option<T>, ApiError> {
        match self.raw(name) {
            Some(raw) if raw.get().len() > max_bytes => {
                Err(ApiError::invalid(name, format!("must have at most {max_bytes} bytes of JSON")))
            }
            _ => self.get(name),
        }
    }
}

/// Reads one value.
///
/// Errors: a value of another type, blamed on `param`.
pub fn read<'a, T: Deserialize<'a>>(raw: &'a RawValue, param: &'static str) -> Result<T, ApiError> {
    serde_json::from_str(raw.get()).map_err(|error| {
        // The position counts from the field's start, which would mislead.
        let message = error.to_string();
        let end = message.find(" at line ").unwrap_or(message.len());
        ApiError::invalid(param, shorten_message(&message[..end]))
    })
}

/// Reads a list of at most `max` values.
///
/// Errors: not a list, too long, or a value of another type, blamed on `param`.
pub fn read_list<'a, T: Deserialize<'a>>(
    raw: &'a RawValue,
    param: &'static str,
    max: usize,
) -> Result<Vec<T>, ApiError> {
    struct Capped<T> {
        max: usize,
        values: PhantomData<T>,
    }
    impl<'de, T: Deserialize<'de>> Visitor<'de> for Capped<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut values = Vec::new();
            while let Some(value) = list.next_element()? {
                if values.len() == self.max {
                    return Err(A::Error::custom(format!("must have at most {} entries", self.max)));
                }
                values.push(value);
            }
            Ok(values)
        }
    }
    let mut json = serde_json::Deserializer::from_str(raw.get());
    json.deserialize_seq(Capped { max, values: PhantomData }).map_err(|error| {
        let message = error.to_string();
        let end = message.find(" at line ").unwrap_or(message.len());
        ApiError::invalid(param, shorten_message(&message[..end]))
    })
}

/// serde repeats the value it did not like, however long.
fn shorten_message(message: &str) -> String {
    const MAX_CHARS: usize = 200;
    message.chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect()
}

fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

/// Whether two JSON texts mean the same; only short ones are worth asking about.
fn same_json(off: &str, given: &str) -> bool {
    const MAX_BYTES: usize = 128;
    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    given.len() <= MAX_BYTES && value(off) == value(given)
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if entries.len() == MAX_FIELDS {
                        return Err(A::Error::custom(format!("more than {MAX_FIELDS} fields")));
                    }
                    entries.push((Cow::Owned(name), map.next_value::<&RawValue>()?));
                }
                Ok(Fields { entries })
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: Schema = Schema {
        known: &[&["n", "stop"]],
        ignored: &["user"],
        unsupported: &[("best_of", &["1"]), ("response_format", &[r#"{"type":"text"}"#]), ("suffix", &[])],
    };

    fn check(json: &str, expected: Result<(), &str>) {
        let result = Fields::parse(json.as_bytes(), &SCHEMA).and_then(|fields| {
            fields.get::<u32>("n")?;
            fields.list::<String>("stop", 2)?;
            Ok(())
        });
        match (result, expected) {
            (Ok(()), Ok(())) => {}
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{json}: {error}"),
            (result, _) => panic!("{json}: {result:?}"),
        }
    }

    #[test]
    fn what_is_known_ignored_or_off_passes() {
        for json in [
            "{}",
            r#"{"n":3,"user":{"a":[1]}}"#,
            r#"{"n":null,"best_of":null,"suffix":null,"anything":null}"#,
            r#"{"best_of":1,"response_format":{ "type" : "text" },"stop":["a","b"]}"#,
        ] {
            check(json, Ok(()));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        check("[]", Err("not a JSON object"));
        check("", Err("not a JSON object"));
        check("{", Err("not a JSON object"));
        check("{} x", Err("not a JSON object"));
        check(r#"{"n":-1}"#, Err("n: invalid value"));
        check(r#"{"n":"a"}"#, Err("n: invalid type"));
        check(r#"{"n":1e99}"#, Err("n: invalid type"));
        check(r#"{"n":1,"n":2}"#, Err("`n` occurs twice"));
        check(r#"{"temprature":1}"#, Err("unrecognized request argument: temprature"));
        check(r#"{"best_of":2}"#, Err("`best_of` is not supported by this server: leave it out or set it to 1"));
        check(r#"{"suffix":"x"}"#, Err("`suffix` is not supported by this server: leave it out"));
        check(r#"{"stop":["a","b","c"]}"#, Err("stop: must have at most 2 entries"));
        check(r#"{"stop":"a"}"#, Err("stop: invalid type"));
        let many: Vec<String> = (0..200).map(|i| format!("\"f{i}\":0")).collect();
        check(&format!("{{{}}}", many.join(",")), Err("more than 128 fields"));
    }
}
