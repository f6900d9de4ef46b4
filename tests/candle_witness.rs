//! candle-transformers' own Llama, which shares no code with taper's decoder, on a model that taper merged: a second witness
//! beside PyTorch that the merged folder is a plain model that others can run.

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use taper_base::Batch;
use taper_lora::LoraAdapter;
use taper_merge::Weighted;

use crate::support::{LOGITS, assert_close, fixtures, open, values};

#[test]
fn candle_transformers_runs_a_merged_model_to_the_logits_of_base_and_adapter() {
    let case = fixtures().join("oracle/llama");
    let base = open(&case.join("model"));
    let adapter = LoraAdapter::load(&case.join("adapter"), &base).expect("the adapter");
    let room = tempfile::tempdir().expect("a folder");
    let out = room.path().join("merged");
    let weighted = [Weighted { adapter: &adapter, weight: 1.0 }];
    taper_merge::merge(&base, &weighted, taper_merge::Out::new(&out), &mut |_| {
        std::ops::ControlFlow::Continue(())
    })
    .expect("a merge");

    let tokens: Vec<u32> = (7..29).collect();
    let hidden = base.model.hidden(&Batch::new([&tokens]), &mut [], &adapter).expect("hidden states");
    let logits = values(&base.model.head().forward(&hidden, &adapter).expect("logits"));
    let expected = &logits[logits.len() - base.model.sizes().vocab_size..];

    let text = std::fs::read_to_string(out.join("config.json")).expect("config.json");
    let mut config: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    config["rope_theta"] = config["rope_parameters"]["rope_theta"].clone();
    let config = serde_json::from_value::<LlamaConfig>(config).expect("a Llama").into_config(false);
    let weights =
        candle_core::safetensors::load(out.join("model.safetensors"), &Device::Cpu).expect("weights");
    let weights = VarBuilder::from_tensors(weights, DType::F32, &Device::Cpu);
    let llama = Llama::load(weights, &config).expect("candle's Llama");
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).expect("a cache");
    let ids = Tensor::new(tokens.as_slice(), &Device::Cpu).and_then(|ids| ids.unsqueeze(0)).expect("ids");
    let found = llama.forward(&ids, 0, &mut cache).expect("logits");
    assert_close("logits", &values(&found), expected, LOGITS);
}
