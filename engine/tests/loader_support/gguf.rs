//! Writes GGUF files, right ones and wrong ones.

/// A tensor to write.
pub struct TensorToWrite {
    pub name: String,
    /// In the file's order: innermost first.
    pub dims: Vec<u64>,
    pub type_number: u32,
    /// From the start of the data; `None` puts it behind the tensor before.
    pub offset: Option<u64>,
}

/// A file in the making. Public fields so that tests can spoil any of them.
pub struct GgufFile {
    pub magic: [u8; 4],
    pub version: u32,
    pub alignment: u64,
    /// Key and encoded value with its type.
    pub keys: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<TensorToWrite>,
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
}

pub fn u32_value(value: u32) -> Vec<u8> {
    [4_u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub fn f32_value(value: f32) -> Vec<u8> {
    [6_u32.to_le_bytes(), value.to_le_bytes()].concat()
}

pub fn bool_value(value: bool) -> Vec<u8> {
    [&7_u32.to_le_bytes()[..], &[value.into()]].concat()
}

pub fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

pub fn string_value(value: &str) -> Vec<u8> {
    [&8_u32.to_le_bytes()[..], &text(value)].concat()
}

pub fn array_value(element_type: u32, elements: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes =
        [&9_u32.to_le_bytes()[..], &element_type.to_le_bytes(), &(elements.len() as u64).to_le_bytes()].concat();
    bytes.extend(elements.concat());
    bytes
}

pub fn strings_value(values: &[&str]) -> Vec<u8> {
    array_value(8, &values.iter().map(|value| text(value)).collect::<Vec<_>>())
}

/// Values and bytes of a block.
fn block(type_number: u32) -> (u64, u64) {
    match type_number {
        0 => (1, 4),
        1 | 30 => (1, 2),
        2 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        _ => (1, 1),
    }
}

impl GgufFile {
    /// No keys, no tensors.
    pub fn empty() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            alignment: 32,
            keys: Vec::new(),
            tensors: Vec::new(),
            tensor_count: None,
            key_count: None,
        }
    }

    /// A model of one layer. `types` are those of embeddings, attention, feed-forward and norms.
    pub fn model(arch: &str, hidden: u32, types: [u32; 4]) -> Self {
        let mut file = Self::empty();
        let key = |name: &str| format!("{arch}.{name}");
        file.set("general.architecture", string_value(arch));
        for (name, value) in [
            ("context_length", 64),
            ("embedding_length", hidden),
            ("block_count", 1),
            ("feed_forward_length", hidden),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("rope.dimension_count", hidden / 2),
        ] {
            file.set(&key(name), u32_value(value));
        }
        file.set(&key("attention.layer_norm_rms_epsilon"), f32_value(1e-5));
        file.set(&key("rope.freq_base"), f32_value(10_000.0));
        file.add_vocabulary();
        let (wide, half) = (u64::from(hidden), u64::from(hidden / 2));
        let [embed, attention, feed_forward, norm] = types;
        file.tensor("token_embd.weight", &[wide, 8], embed);
        file.tensor("output_norm.weight", &[wide], norm);
        for (name, dims, type_number) in [
            ("attn_norm.weight", vec![wide], norm),
            ("attn_q.weight", vec![wide, wide], attention),
            ("attn_k.weight", vec![wide, half], attention),
            ("attn_v.weight", vec![wide, half], attention),
            ("attn_output.weight", vec![wide, wide], attention),
            ("ffn_norm.weight", vec![wide], norm),
            ("ffn_gate.weight", vec![wide, wide], feed_forward),
            ("ffn_up.weight", vec![wide, wide], feed_forward),
            ("ffn_down.weight", vec![wide, wide], feed_forward),
        ] {
            file.tensor(&format!("blk.0.{name}"), &dims, type_number);
        }
        if arch == "qwen2" {
            for (name, width) in [("q", wide), ("k", half), ("v", half)] {
                file.tensor(&format!("blk.0.attn_{name}.bias"), &[width], 0);
            }
        }
        if arch == "qwen3" {
            for name in ["q", "k"] {
                file.tensor(&format!("blk.0.attn_{name}_norm.weight"), &[half], 0);
            }
        }
        file
    }

    /// A Llama of width 32 in Q8_0 and Q4_1.
    pub fn tiny() -> Self {
        Self::model("llama", 32, [8, 3, 8, 0])
    }

    /// Models that between them use every architecture, tensor type and value type.
    pub fn variety() -> Vec<Self> {
        let mut untied = Self::model("llama", 32, [1, 30, 2, 1]);
        untied.tensor("output.weight", &[32, 8], 6);
        untied.tensor("rope_freqs.weight", &[8], 0);
        untied.set("general.alignment", u32_value(64));
        untied.alignment = 64;
        let mut k_quants = Self::model("llama", 256, [12, 13, 14, 0]);
        k_quants.version = 2;
        k_quants.set("nested", array_value(9, &[array_value(0, &[vec![1], vec![2]])[4..].to_vec()]));
        let mut qwen2 = Self::model("qwen2", 32, [7, 0, 3, 0]);
        qwen2.set("qwen2.rope.scaling.type", string_value("linear"));
        qwen2.set("qwen2.rope.scaling.factor", f32_value(2.0));
        qwen2.set("tokenizer.ggml.add_bos_token", bool_value(true));
        vec![Self::tiny(), untied, k_quants, qwen2, Self::model("qwen3", 256, [10, 11, 8, 0])]
    }

    fn add_vocabulary(&mut self) {
        let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "<|im_end|>", "c"];
        self.set("tokenizer.ggml.model", string_value("gpt2"));
        self.set("tokenizer.ggml.pre", string_value("smollm"));
        self.set("tokenizer.ggml.tokens", strings_value(&tokens));
        self.set("tokenizer.ggml.merges", strings_value(&["a b"]));
        let types = [2, 3, 3, 1, 1, 1, 3, 1].map(|t: i32| t.to_le_bytes().to_vec());
        self.set("tokenizer.ggml.token_type", array_value(5, &types));
        let scores = [0.0_f32; 8].map(|score| score.to_le_bytes().to_vec());
        self.set("tokenizer.ggml.scores", array_value(6, &scores));
        self.set("tokenizer.ggml.bos_token_id", u32_value(1));
        self.set("tokenizer.ggml.eos_token_id", u32_value(2));
        self.set("tokenizer.chat_template", string_value("{{ messages }}"));
    }

    /// Sets or replaces a key.
    pub fn set(&mut self, key: &str, value: Vec<u8>) {
        self.keys.retain(|(old, _)| old != key);
        self.keys.push((key.into(), value));
    }

    /// Removes a key.
    pub fn unset(&mut self, key: &str) {
        self.keys.retain(|(old, _)| old != key);
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, name: &str, dims: &[u64], type_number: u32) {
        self.tensors.push(TensorToWrite { name: name.into(), dims: dims.into(), type_number, offset: None });
    }

    /// The tensor of that name.
    pub fn tensor_mut(&mut self, name: &str) -> &mut TensorToWrite {
        self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
    }

    /// The file, and where its header's counts, lengths, dimensions, types and offsets are: position and width.
    pub fn write(&self) -> (Vec<u8>, Vec<(usize, usize)>) {
        let mut bytes = self.magic.to_vec();
        let mut fields = vec![(4, 4), (8, 8), (16, 8)];
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.key_count.unwrap_or(self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            fields.push((bytes.len(), 8));
            bytes.extend(text(key));
            // Type, then the value or its length.
            fields.push((bytes.len(), 4));
            fields.push((bytes.len() + 4, value.len().saturating_sub(4).clamp(1, 8)));
            if value.len() >= 16 {
                fields.push((bytes.len() + 8, 8));
            }
            bytes.extend(value);
        }
        let mut data_size = 0_u64;
        let mut plain = Vec::new();
        for tensor in &self.tensors {
            fields.push((bytes.len(), 8));
            bytes.extend(text(&tensor.name));
            fields.push((bytes.len(), 4));
            bytes.extend((tensor.dims.len() as u32).to_le_bytes());
            for dim in &tensor.dims {
                fields.push((bytes.len(), 8));
                bytes.extend(dim.to_le_bytes());
            }
            fields.push((bytes.len(), 4));
            bytes.extend(tensor.type_number.to_le_bytes());
            fields.push((bytes.len(), 8));
            bytes.extend(tensor.offset.unwrap_or(data_size).to_le_bytes());
            let (block_values, block_bytes) = block(tensor.type_number);
            let num_values = tensor.dims.iter().fold(1_u64, |product, dim| product.saturating_mul(*dim));
            let num_bytes = (num_values / block_values).saturating_mul(block_bytes);
            if num_bytes < 1 << 24 {
                if tensor.type_number == 0 {
                    plain.push((data_size, num_bytes));
                }
                data_size += num_bytes.next_multiple_of(self.alignment.max(1));
            }
        }
        if !self.tensors.is_empty() {
            bytes.resize(bytes.len().next_multiple_of(self.alignment.max(1) as usize), 0);
        }
        // Bytes that make small finite numbers in every block type; ones where the numbers are plain.
        let data_start = bytes.len();
        bytes.extend((0..data_size).map(|i| (i % 53) as u8));
        for (start, num_bytes) in plain {
            for word in bytes[data_start + start as usize..][..num_bytes as usize].chunks_exact_mut(4) {
                word.copy_from_slice(&1.0_f32.to_le_bytes());
            }
        }
        (bytes, fields)
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        self.write().0
    }
}
