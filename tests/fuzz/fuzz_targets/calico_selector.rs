//! Any text is a selector that reads back as itself, or an error that points into it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir::api::calico::selector::{Scope, lower, parse};

fuzz_target!(|text: &str| {
    match parse(text) {
        Ok(expression) => {
            let _ = lower(&expression, Scope::Entity);
            assert_eq!(parse(&expression.to_string()), Ok(expression));
        }
        Err(error) => assert!((1..=text.chars().count() + 1).contains(&error.character)),
    }
});
