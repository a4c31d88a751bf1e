//! The header of a GGUF file, read and checked before any tensor is. The tensor library's own reader divides by the
//! file's alignment and multiplies its dimensions unchecked, so it never sees a file.
//!
//! Source: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::collections::HashSet;
use std::io::Read;

use super::super::error::FieldError;
use super::bytes::ByteReader;
use super::metadata::Metadata;
use super::tensor_type::TensorType;
use super::value::read_value;

const MAX_TENSORS: u64 = 1 << 16;
const MAX_KEYS: u64 = 1 << 16;
const MAX_KEY_BYTES: u64 = 1 << 12;
const MAX_NAME_BYTES: u64 = 256;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Length, one-byte name, dimension count, one dimension, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 8 + 4 + 8;
/// Length, one-byte key, type, one-byte value.
const MIN_KEY_BYTES: u64 = 8 + 1 + 4 + 1;

/// A checked header: every tensor lies inside the file and overlaps no other.
#[derive(Debug)]
pub(crate) struct Header {
    /// Keys and values.
    pub(crate) metadata: Metadata,
    /// Tensors in the file's order; names are distinct.
    pub(crate) tensors: Vec<TensorInfo>,
}

/// Where a tensor is and what it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorInfo {
    /// GGUF name.
    pub(crate) name: String,
    /// Type of its values.
    pub(crate) tensor_type: TensorType,
    /// Outer dimension first: the file's order reversed.
    pub(crate) shape: Vec<usize>,
    /// From the start of the file. Units: bytes.
    pub(crate) offset: u64,
    /// Units: bytes.
    pub(crate) num_bytes: u64,
}

impl Header {
    /// Reads the header of a file of `length` bytes from its first byte.
    ///
    /// Errors: the first field that no valid file has.
    pub(crate) fn read(reader: impl Read, length: u64) -> Result<Self, FieldError> {
        let mut reader = ByteReader::new(reader, length);
        let num_tensors = read_preamble(&mut reader)?;
        let num_keys = reader.count("metadata_kv_count", MAX_KEYS, MIN_KEY_BYTES)?;
        let mut metadata = Metadata::default();
        for _ in 0..num_keys {
            let key = read_name(&mut reader, "metadata key", MAX_KEY_BYTES)?;
            let value = read_value(&mut reader, &key)?;
            metadata.insert(key, value)?;
        }
        let alignment = read_alignment(&metadata)?;
        let mut tensors =
            (0..num_tensors).map(|_| read_tensor_info(&mut reader, alignment)).collect::<Result<Vec<_>, _>>()?;
        let data_start = reader.position().next_multiple_of(alignment);
        place_tensors(&mut tensors, data_start, length)?;
        Ok(Self { metadata, tensors })
    }
}

/// Magic, version and tensor count.
fn read_preamble<R: Read>(reader: &mut ByteReader<R>) -> Result<usize, FieldError> {
    let magic = reader.array::<4>("magic")?;
    if &magic != b"GGUF" {
        let shown = String::from_utf8_lossy(&magic).escape_debug().to_string();
        return Err(FieldError::malformed("magic", format!("is '{shown}', a GGUF file starts with 'GGUF'")));
    }
    match reader.u32("version")? {
        2 | 3 => reader.count("tensor_count", MAX_TENSORS, MIN_TENSOR_BYTES),
        1 => Err(FieldError::unsupported("version", "1", "versions are 2 and 3, convert the file again")),
        big if matches!(big.swap_bytes(), 1..=3) => {
            Err(FieldError::unsupported("byte order", "big-endian", "convert the file to little-endian"))
        }
        other => Err(FieldError::unsupported("version", other.to_string(), "versions are 2 and 3")),
    }
}

/// A key or tensor name: valid UTF-8, not empty.
fn read_name<R: Read>(reader: &mut ByteReader<R>, field: &str, max_bytes: u64) -> Result<String, FieldError> {
    let bytes = reader.string_bytes(field, max_bytes)?;
    match String::from_utf8(bytes) {
        Ok(name) if !name.is_empty() => Ok(name),
        Ok(_) => Err(FieldError::malformed(field, "is empty")),
        Err(_) => Err(FieldError::malformed(field, "is not UTF-8")),
    }
}

fn read_alignment(metadata: &Metadata) -> Result<u64, FieldError> {
    let key = "general.alignment";
    match metadata.unsigned(key)? {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => Ok(alignment),
        Some(other) => {
            let problem = format!("must be a power of two up to {MAX_ALIGNMENT}, got {other}");
            Err(FieldError::malformed(key, problem))
        }
    }
}

/// Name, dimensions, type and offset; the offset still counts from the start of the data.
fn read_tensor_info<R: Read>(reader: &mut ByteReader<R>, alignment: u64) -> Result<TensorInfo, FieldError> {
    let name = read_name(reader, "tensor name", MAX_NAME_BYTES)?;
    let field = |part: &str| format!("tensor {name} {part}");
    let num_dims = reader.u32(&field("dimension count"))?;
    if !(1..=MAX_DIMS).contains(&num_dims) {
        let problem = format!("must be between 1 and {MAX_DIMS}, got {num_dims}");
        return Err(FieldError::malformed(field("dimension count"), problem));
    }
    let dims_field = field("dimensions");
    let dims = (0..num_dims).map(|_| reader.u64(&dims_field)).collect::<Result<Vec<_>, _>>()?;
    let tensor_type = TensorType::from_number(reader.u32(&field("type"))?, &field("type"))?;
    let num_bytes = tensor_bytes(&dims, tensor_type).map_err(|problem| FieldError::malformed(&dims_field, problem))?;
    let offset = reader.u64(&field("offset"))?;
    if !offset.is_multiple_of(alignment) {
        let problem = format!("must be a multiple of the alignment {alignment}, got {offset}");
        return Err(FieldError::malformed(field("offset"), problem));
    }
    // Each dimension fits: their product was checked.
    let shape = dims.iter().rev().map(|dim| *dim as usize).collect();
    Ok(TensorInfo { name, tensor_type, shape, offset, num_bytes })
}

/// Bytes of a tensor, with every product checked.
fn tensor_bytes(dims: &[u64], tensor_type: TensorType) -> Result<u64, String> {
    if dims.contains(&0) {
        return Err(format!("are {dims:?}: none may be zero"));
    }
    let block_values = tensor_type.block_values();
    if !dims[0].is_multiple_of(block_values) {
        let name = tensor_type.name();
        return Err(format!("are {dims:?}: rows of {name} are multiples of {block_values} values"));
    }
    dims.iter()
        .try_fold(1_u64, |product, dim| product.checked_mul(*dim))
        .and_then(|num_values| (num_values / block_values).checked_mul(tensor_type.block_bytes()))
        .filter(|num_bytes| usize::try_from(*num_bytes).is_ok_and(|bytes| isize::try_from(bytes).is_ok()))
        .ok_or_else(|| format!("are {dims:?}: more bytes than any file has"))
}

/// Makes offsets count from the start of the file, and checks that tensors lie inside it, apart from each other, under
/// distinct names.
fn place_tensors(tensors: &mut [TensorInfo], data_start: u64, length: u64) -> Result<(), FieldError> {
    let mut names = HashSet::with_capacity(tensors.len());
    for tensor in tensors.iter_mut() {
        let field = format!("tensor {} offset", tensor.name);
        let end = data_start.checked_add(tensor.offset).and_then(|start| start.checked_add(tensor.num_bytes));
        if end.is_none_or(|end| end > length) {
            let problem = format!(
                "{} plus {} bytes reaches beyond the end of the file ({length} bytes): download it again",
                tensor.offset, tensor.num_bytes
            );
            return Err(FieldError::malformed(field, problem));
        }
        tensor.offset += data_start;
        if !names.insert(tensor.name.as_str()) {
            return Err(FieldError::malformed(format!("tensor {}", tensor.name), "appears twice"));
        }
    }
    let mut by_offset: Vec<_> = tensors.iter().collect();
    by_offset.sort_unstable_by_key(|tensor| tensor.offset);
    for pair in by_offset.windows(2) {
        let [first, second] = pair else { continue };
        if first.offset + first.num_bytes > second.offset {
            let problem = format!("lies inside tensor {}", super::super::error::printable(&first.name));
            return Err(FieldError::malformed(format!("tensor {} offset", second.name), problem));
        }
    }
    Ok(())
}
