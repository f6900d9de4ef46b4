//! Names of tensors: llama.cpp's and the checkpoint's (`gguf-py/gguf/tensor_mapping.py` of llama.cpp).

/// Of a whole model.
const WHOLE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Of a block, after `blk.N.` and `model.layers.N.`.
const BLOCK: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The checkpoint's name of a tensor that llama.cpp calls `name`; none of one that no checkpoint has.
pub fn tensor_name(name: &str) -> Option<String> {
    let (module, parameter) = name.rsplit_once('.')?;
    if let Some((_, whole)) = WHOLE.iter().find(|(theirs, _)| *theirs == module) {
        return Some(format!("{whole}.{parameter}"));
    }
    let (layer, module) = module.strip_prefix("blk.")?.split_once('.')?;
    let (_, part) = BLOCK.iter().find(|(theirs, _)| *theirs == module)?;
    layer.parse::<u32>().ok().map(|layer| format!("model.layers.{layer}.{part}.{parameter}"))
}

/// llama.cpp's name of a tensor that a checkpoint calls `name`.
pub fn stored_name(name: &str) -> Option<String> {
    let (module, parameter) = name.rsplit_once('.')?;
    if let Some((theirs, _)) = WHOLE.iter().find(|(_, whole)| *whole == module) {
        return Some(format!("{theirs}.{parameter}"));
    }
    let (layer, module) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let (theirs, _) = BLOCK.iter().find(|(_, part)| *part == module)?;
    layer.parse::<u32>().ok().map(|layer| format!("blk.{layer}.{theirs}.{parameter}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for (theirs, ours) in [
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("blk.12.attn_output.weight", "model.layers.12.self_attn.o_proj.weight"),
            ("blk.0.attn_q.bias", "model.layers.0.self_attn.q_proj.bias"),
            ("blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
        ] {
            assert_eq!(tensor_name(theirs).as_deref(), Some(ours));
            assert_eq!(stored_name(ours).as_deref(), Some(theirs));
        }
        for odd in ["rope_freqs.weight", "blk.x.attn_q.weight", "blk.0.ffn_gate_inp.weight", "weight", ""] {
            assert_eq!(tensor_name(odd), None, "{odd}");
        }
    }
}
