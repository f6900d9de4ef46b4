//! Adapters that taper saved, as PEFT 0.21.2 reads them: the same logits here and there, and the same bytes when saved again.
//! `oracle/peft_reads.py` asked PEFT.

use std::path::Path;

use taper_base::Batch;
use taper_lora::LoraAdapter;

use crate::support::{LOGITS, assert_close, fixtures, open, tensors, values};

fn check(folder: &Path) {
    let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
    let case = std::fs::read_to_string(folder.join("base.txt")).expect("base.txt");
    let base = open(&fixtures().join("oracle").join(case.trim()).join("model"));
    let adapter = LoraAdapter::load(folder, &base).expect("an adapter that loads");
    let expected = tensors(&folder.join("logits.safetensors"));
    let ids: Vec<u32> =
        expected["input_ids"].to_vec1::<i64>().expect("ids").iter().map(|&id| id as u32).collect();
    let hidden = base.model.hidden(&Batch::new([&ids]), &mut [], &adapter).expect("hidden states");
    let logits = base.model.head().forward(&hidden, &adapter).expect("logits");
    assert_close(&name, &values(&logits), &values(&expected["logits"]), LOGITS);

    let again = tempfile::tempdir().expect("a folder");
    adapter.save(again.path()).expect("a saved adapter");
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let [found, expected] =
            [again.path(), folder].map(|dir| std::fs::read(dir.join(file)).expect("a file"));
        assert!(found == expected, "{name}: {file} has other bytes");
    }
}

#[test]
fn peft_computes_the_same_with_what_taper_saved() {
    let mut checked = 0;
    for entry in std::fs::read_dir(fixtures().join("peft_reads")).expect("the fixtures") {
        check(&entry.expect("a folder").path());
        checked += 1;
    }
    assert_eq!(checked, 26);
}
