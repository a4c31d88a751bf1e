//! Keys and values of a GGUF file, with typed access that names the key when the type is wrong.

use std::collections::HashMap;

use super::super::error::FieldError;
use super::value::Value;

/// Metadata by key.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    values: HashMap<String, Value>,
}

impl Metadata {
    /// Adds a value.
    ///
    /// Errors: the key is there already.
    pub(crate) fn insert(&mut self, key: String, value: Value) -> Result<(), FieldError> {
        if self.values.contains_key(&key) {
            return Err(FieldError::malformed(key, "appears twice"));
        }
        self.values.insert(key, value);
        Ok(())
    }

    /// A non-negative integer of any width.
    pub(crate) fn unsigned(&self, key: &str) -> Result<Option<u64>, FieldError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value)),
            Some(Value::Signed(value)) => match u64::try_from(*value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(FieldError::malformed(key, format!("must not be negative, got {value}"))),
            },
            Some(other) => Err(wrong_type(key, "an integer", other)),
        }
    }

    /// As [`Self::unsigned`], for a count.
    pub(crate) fn size(&self, key: &str) -> Result<Option<usize>, FieldError> {
        let Some(value) = self.unsigned(key)? else { return Ok(None) };
        usize::try_from(value).map(Some).map_err(|_| FieldError::malformed(key, format!("is {value}, too large")))
    }

    /// A count that must be there.
    pub(crate) fn required_size(&self, key: &str) -> Result<usize, FieldError> {
        self.size(key)?.ok_or_else(|| missing(key))
    }

    /// A token id.
    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>, FieldError> {
        let Some(value) = self.unsigned(key)? else { return Ok(None) };
        // llama.cpp writes u32::MAX for "none".
        if value == u64::from(u32::MAX) {
            return Ok(None);
        }
        u32::try_from(value).map(Some).map_err(|_| FieldError::malformed(key, format!("is {value}, not a token id")))
    }

    /// A float of either width, or an integer.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>, FieldError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Float(value)) => Ok(Some(*value)),
            Some(Value::Unsigned(value)) => Ok(Some(*value as f64)),
            Some(Value::Signed(value)) => Ok(Some(*value as f64)),
            Some(other) => Err(wrong_type(key, "a number", other)),
        }
    }

    /// A boolean.
    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, FieldError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(wrong_type(key, "a boolean", other)),
        }
    }

    /// A string.
    pub(crate) fn string(&self, key: &str) -> Result<Option<&str>, FieldError> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(key, "a string", other)),
        }
    }

    /// A string that must be there.
    pub(crate) fn required_string(&self, key: &str) -> Result<&str, FieldError> {
        self.string(key)?.ok_or_else(|| missing(key))
    }

    /// Takes an array of strings out; empty when there is none.
    pub(crate) fn take_strings(&mut self, key: &str) -> Result<Vec<String>, FieldError> {
        match self.values.remove(key) {
            None => Ok(Vec::new()),
            Some(Value::Strings(values)) => Ok(values),
            Some(other) => Err(wrong_type(key, "an array of strings", &other)),
        }
    }

    /// Takes an array of 32-bit integers out; empty when there is none.
    pub(crate) fn take_integers(&mut self, key: &str) -> Result<Vec<i64>, FieldError> {
        match self.values.remove(key) {
            None => Ok(Vec::new()),
            Some(Value::Integers(values)) => Ok(values),
            Some(other) => Err(wrong_type(key, "an array of 32-bit integers", &other)),
        }
    }

    /// Takes an array of floats out; empty when there is none.
    pub(crate) fn take_floats(&mut self, key: &str) -> Result<Vec<f32>, FieldError> {
        match self.values.remove(key) {
            None => Ok(Vec::new()),
            Some(Value::Floats(values)) => Ok(values),
            Some(other) => Err(wrong_type(key, "an array of floats", &other)),
        }
    }
}

fn wrong_type(key: &str, expected: &str, got: &Value) -> FieldError {
    FieldError::malformed(key, format!("must be {expected}, got {}", got.kind()))
}

fn missing(key: &str) -> FieldError {
    FieldError::malformed(key, "is missing: the file is not a complete model")
}
