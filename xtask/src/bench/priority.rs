//! Whoever measures goes first: other work on the machine would be measured too.

use std::fs;

const AUTOGROUP: &str = "/proc/self/autogroup";

/// Gives this terminal's processes (the scheduler's "autogroup") precedence over everything else, until dropped. Among
/// themselves, generator and agent share the CPUs as ever. Does nothing where the kernel has no such groups.
pub struct Precedence {
    before: Option<String>,
}

impl Precedence {
    pub fn take() -> Self {
        // "/autogroup-16 nice 0"
        let before = fs::read_to_string(AUTOGROUP)
            .ok()
            .and_then(|text| Some(text.rsplit(' ').next()?.trim().to_owned()));
        let before = before.filter(|_| fs::write(AUTOGROUP, "-20").is_ok());
        Self { before }
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(AUTOGROUP, before)
        {
            eprintln!("bench: setting {AUTOGROUP} back to {before}: {error}");
        }
    }
}
