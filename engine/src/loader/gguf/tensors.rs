//! Tensors of a GGUF file whose header has been checked.

use std::collections::HashMap;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use aisp_kernels::linear::StoredTensor;
use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device};

use crate::model::{FileBytes, Weight};

use super::super::error::LoadError;
use super::super::layout::TensorSpec;
use super::super::mapped::mapped_weight;
use super::header::TensorInfo;

/// Reads tensors by their GGUF name, each at most once.
pub(crate) struct TensorReader<R> {
    reader: R,
    /// The same file, if its matrices stay there.
    map: Option<FileBytes>,
    file: String,
    infos: HashMap<String, TensorInfo>,
}

impl<R: Read + Seek> TensorReader<R> {
    /// `file` stands for the file in messages.
    pub(crate) fn new(reader: R, map: Option<FileBytes>, file: String, infos: Vec<TensorInfo>) -> Self {
        let infos = infos.into_iter().map(|info| (info.name.clone(), info)).collect();
        Self { reader, map, file, infos }
    }

    /// Whether the tensor is there and not read yet.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.infos.contains_key(name)
    }

    /// Shape of a tensor that is there, outer dimension first.
    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.infos.get(name).map(|info| info.shape.as_slice())
    }

    /// The first name not read, in order of the alphabet.
    pub(crate) fn unread(&self, is_expected: impl Fn(&str) -> bool) -> Option<&str> {
        self.infos.keys().map(String::as_str).filter(|name| !is_expected(name)).min()
    }

    /// Checks that a tensor is there in the shape that the config gives it, without reading it. Returns its size in
    /// memory. Units: bytes.
    pub(crate) fn check(&self, name: &str, spec: &TensorSpec, dtype: DType) -> Result<u64, LoadError> {
        let info = self
            .infos
            .get(name)
            .ok_or_else(|| LoadError::MissingTensor { file: self.file.clone(), name: name.to_owned() })?;
        if info.shape != spec.shape {
            return Err(LoadError::WrongShape {
                file: self.file.clone(),
                name: name.to_owned(),
                expected: spec.shape.clone(),
                got: info.shape.clone(),
            });
        }
        Ok(if stays_quantized(info, spec) { info.num_bytes } else { spec.num_values() * dtype.size_in_bytes() as u64 })
    }

    /// Reads a tensor that [`Self::check`] passed: quantized matrices stay so, everything else becomes `dtype`.
    /// Returns it with the name of its type in the file.
    pub(crate) fn take(
        &mut self,
        name: &str,
        spec: &TensorSpec,
        dtype: DType,
        device: &Device,
    ) -> Result<(Weight, &'static str), LoadError> {
        let info = self
            .infos
            .remove(name)
            .ok_or_else(|| LoadError::MissingTensor { file: self.file.clone(), name: name.to_owned() })?;
        if let Some(map) = self.map.as_ref().filter(|_| !spec.is_vector()) {
            let range = info.offset as usize..(info.offset + info.num_bytes) as usize;
            let weight = mapped_weight(map, &self.file, range, info.tensor_type.ggml(), &info.shape)?;
            return Ok((weight, info.tensor_type.name()));
        }
        let words = self.read_words(&info)?;
        let stored = stored(&info, &words);
        let weight = if stays_quantized(&info, spec) {
            stored.to_qtensor(device).map(|tensor| Weight::Quantized(Arc::new(tensor)))
        } else {
            stored.to_tensor(device).and_then(|tensor| tensor.to_dtype(dtype)).map(Weight::Dense)
        };
        let weight = weight.map_err(|error| LoadError::tensor(format!("{}: {name}", self.file), &error))?;
        Ok((weight, info.tensor_type.name()))
    }

    /// Reads a small tensor as plain numbers, whatever its shape.
    pub(crate) fn take_floats(&mut self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        let Some(info) = self.infos.remove(name) else { return Ok(None) };
        let words = self.read_words(&info)?;
        stored(&info, &words)
            .to_tensor(&Device::Cpu)
            .and_then(|tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1())
            .map(Some)
            .map_err(|error| LoadError::tensor(format!("{}: {name}", self.file), &error))
    }

    /// The tensor's bytes, in words so that they are aligned for every block type. The header check has compared the
    /// size with the file's.
    fn read_words(&mut self, info: &TensorInfo) -> Result<Vec<u32>, LoadError> {
        let num_bytes = info.num_bytes as usize;
        let mut words = vec![0_u32; num_bytes.div_ceil(size_of::<u32>())];
        let bytes = &mut bytemuck::cast_slice_mut(&mut words)[..num_bytes];
        self.reader
            .seek(SeekFrom::Start(info.offset))
            .and_then(|_| self.reader.read_exact(bytes))
            .map_err(|error| LoadError::io(&self.file, "read", &error))?;
        Ok(words)
    }
}

fn stays_quantized(info: &TensorInfo, spec: &TensorSpec) -> bool {
    !matches!(info.tensor_type.ggml(), GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16) && !spec.is_vector()
}

fn stored<'a>(info: &'a TensorInfo, words: &'a [u32]) -> StoredTensor<'a> {
    let bytes = &bytemuck::cast_slice(words)[..info.num_bytes as usize];
    StoredTensor { bytes, dtype: info.tensor_type.ggml(), dims: &info.shape }
}
