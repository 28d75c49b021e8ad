//! Bytes for the parsers of the format: the first one says which.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pagefence_proofs::hostile::{Fuzzed, Recipe, recipes};

thread_local! {
    static IMAGE: Fuzzed = image();
}

fn image() -> Fuzzed {
    let recipes = recipes();
    let is_it = |recipe: &&Recipe| recipe.name == "ext4" && recipe.block_size == 1024;
    let recipe = recipes.iter().find(is_it).expect("it is listed");
    Fuzzed::new(recipe).expect("it is made here")
}

fuzz_target!(|bytes: &[u8]| IMAGE.with(|image| image.parse(bytes)));
