//! GGUF tensor names and the Hugging Face names that the decoder uses.

/// Outside the layers: GGUF, Hugging Face.
const GLOBAL: [(&str, &str); 3] = [
    ("token_embd.weight", "model.embed_tokens.weight"),
    ("output_norm.weight", "model.norm.weight"),
    ("output.weight", "lm_head.weight"),
];

/// Inside layer N: `blk.N.` GGUF, `model.layers.N.` Hugging Face.
const LAYER: [(&str, &str); 14] = [
    ("attn_norm.weight", "input_layernorm.weight"),
    ("attn_q.weight", "self_attn.q_proj.weight"),
    ("attn_k.weight", "self_attn.k_proj.weight"),
    ("attn_v.weight", "self_attn.v_proj.weight"),
    ("attn_output.weight", "self_attn.o_proj.weight"),
    ("attn_q.bias", "self_attn.q_proj.bias"),
    ("attn_k.bias", "self_attn.k_proj.bias"),
    ("attn_v.bias", "self_attn.v_proj.bias"),
    ("attn_q_norm.weight", "self_attn.q_norm.weight"),
    ("attn_k_norm.weight", "self_attn.k_norm.weight"),
    ("ffn_norm.weight", "post_attention_layernorm.weight"),
    ("ffn_gate.weight", "mlp.gate_proj.weight"),
    ("ffn_up.weight", "mlp.up_proj.weight"),
    ("ffn_down.weight", "mlp.down_proj.weight"),
];

/// The GGUF name of a decoder tensor.
pub(crate) fn gguf_name(hf_name: &str) -> Option<String> {
    if let Some((gguf, _)) = GLOBAL.iter().find(|(_, hf)| *hf == hf_name) {
        return Some((*gguf).to_owned());
    }
    let (layer, rest) = hf_name.strip_prefix("model.layers.")?.split_once('.')?;
    LAYER.iter().find(|(_, hf)| *hf == rest).map(|(gguf, _)| format!("blk.{layer}.{gguf}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_translate() {
        for (hf, gguf) in [
            ("model.embed_tokens.weight", Some("token_embd.weight")),
            ("model.layers.12.self_attn.q_proj.weight", Some("blk.12.attn_q.weight")),
            ("model.layers.0.mlp.down_proj.weight", Some("blk.0.ffn_down.weight")),
            ("lm_head.weight", Some("output.weight")),
            ("model.layers.0.other.weight", None),
            ("other", None),
        ] {
            assert_eq!(gguf_name(hf).as_deref(), gguf);
        }
    }
}
