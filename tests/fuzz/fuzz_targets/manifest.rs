//! Any text is read without panic.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use weir::api::{Parser, objects};

fuzz_target!(|text: &str| {
    for file in ["fuzz.yaml", "fuzz.json"] {
        let _ = objects(Path::new(file), text, &mut Parser::new());
    }
});
