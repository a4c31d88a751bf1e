//! A safetensors file, read tensor by tensor so that no more than one is in memory twice. The `safetensors` crate checks
//! the header: tensors cover the data without gap or overlap, and shapes agree with sizes.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;

use aisp_kernels::MappedFile;
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::super::error::{FieldError, LoadError, printable};
use super::super::mapped::mapped_weight;
use crate::model::{FileBytes, Weight};

/// Largest header; real ones have a few hundred bytes a tensor.
const MAX_HEADER_BYTES: u64 = 32 << 20;
const LENGTH_BYTES: u64 = 8;

/// An open file with a checked header.
#[derive(Debug)]
pub(crate) struct SafetensorsFile {
    file: File,
    /// For messages.
    pub(crate) name: String,
    header: Metadata,
    data_start: u64,
    /// The same file, if its matrices stay there.
    map: Option<FileBytes>,
}

impl SafetensorsFile {
    /// Opens it and checks the header against the file's length.
    pub(crate) fn open(path: &Path, mapped: bool) -> Result<Self, LoadError> {
        let name = printable(&path.display().to_string());
        let io = |action, error: &std::io::Error| LoadError::io(&name, action, error);
        let mut file = File::open(path).map_err(|error| io("open", &error))?;
        let metadata = file.metadata().map_err(|error| io("open", &error))?;
        let malformed = |field: &str, problem: String| FieldError::malformed(field, problem).in_file(&name);
        if !metadata.is_file() || metadata.len() < LENGTH_BYTES {
            return Err(malformed("header length", "is cut off: the file is too short, download it again".into()));
        }
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length).map_err(|error| io("read", &error))?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES || header_bytes > metadata.len() - LENGTH_BYTES {
            let problem =
                format!("is {header_bytes}: a file of {} bytes cannot hold that, download it again", metadata.len());
            return Err(malformed("header length", problem));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact(&mut header).map_err(|error| io("read", &error))?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| malformed("header", format!("is not valid: {}", printable(&error.to_string()))))?;
        let data_start = LENGTH_BYTES + header_bytes;
        let (declared, present) = (header.data_len() as u64, metadata.len() - data_start);
        if declared != present {
            let problem = format!("end at byte {declared}, the file holds {present}: download it again");
            return Err(malformed("data_offsets", problem));
        }
        let map = mapped.then(|| MappedFile::open(path)).transpose().map_err(|error| io("map", &error))?;
        Ok(Self { map: map.map(|map| FileBytes::Mapped(Arc::new(map))), file, name, header, data_start })
    }

    /// The tensors it holds.
    pub(crate) fn tensor_names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Shape and type of a tensor.
    pub(crate) fn info(&self, tensor: &str) -> Option<&TensorInfo> {
        self.header.info(tensor)
    }

    /// A matrix left where it is, with its type in the file; `None` if this file's are read.
    pub(crate) fn mapped(&self, tensor: &str) -> Result<Option<(Weight, &'static str)>, LoadError> {
        let Some(map) = &self.map else { return Ok(None) };
        let (info, file_dtype) = self.floats(tensor)?;
        let ggml = match file_dtype {
            DType::BF16 => GgmlDType::BF16,
            DType::F16 => GgmlDType::F16,
            _ => GgmlDType::F32,
        };
        let (start, end) = info.data_offsets;
        let range = self.data_start as usize + start..self.data_start as usize + end;
        Ok(Some((mapped_weight(map, &self.name, range, ggml, &info.shape)?, file_dtype.as_str())))
    }

    /// Reads a tensor and converts it. Returns it with its type in the file.
    pub(crate) fn read(
        &self,
        tensor: &str,
        dtype: DType,
        device: &Device,
    ) -> Result<(Tensor, &'static str), LoadError> {
        let (info, file_dtype) = self.floats(tensor)?;
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(self.data_start + start as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| LoadError::io(&self.name, "read", &error))?;
        let tensor = Tensor::from_raw_buffer(&bytes, file_dtype, &info.shape, device)
            .and_then(|tensor| tensor.to_dtype(dtype))
            .map_err(|error| LoadError::tensor(format!("{}: {tensor}", self.name), &error))?;
        Ok((tensor, file_dtype.as_str()))
    }

    /// Where a tensor lies, and the type of its values.
    fn floats(&self, tensor: &str) -> Result<(&TensorInfo, DType), LoadError> {
        let missing = || LoadError::MissingTensor { file: self.name.clone(), name: printable(tensor) };
        let info = self.header.info(tensor).ok_or_else(missing)?;
        let file_dtype = float_dtype(info, tensor).map_err(|error| error.in_file(&self.name))?;
        Ok((info, file_dtype))
    }
}

/// The tensor library's name for a type that weights may have.
fn float_dtype(info: &TensorInfo, tensor: &str) -> Result<DType, FieldError> {
    match info.dtype {
        Dtype::F32 => Ok(DType::F32),
        Dtype::F16 => Ok(DType::F16),
        Dtype::BF16 => Ok(DType::BF16),
        other => {
            let supported = "weights are F32, F16 or BF16; for quantized ones give a .gguf";
            Err(FieldError::unsupported(format!("tensor {tensor} dtype"), format!("{other:?}"), supported))
        }
    }
}
