//! Is a binary what an image without anything else in it can run?

use anyhow::{Context as _, Result, ensure};
use weir_oci::Platform;

/// Values of the ELF header (System V ABI; `elf.h`).
const MACHINE_X86_64: u16 = 62;
const MACHINE_AARCH64: u16 = 183;
const INTERPRETER: u32 = 3;

/// Makes sure that a program is of this platform, and needs no dynamic linker.
///
/// # Errors
/// What it is instead.
pub fn check(program: &[u8], platform: Platform) -> Result<()> {
    ensure!(
        program.starts_with(b"\x7fELF\x02\x01"),
        "it is no ELF file of 64 bits, little endian"
    );
    let machine = u16::from_le_bytes(field(program, 18)?);
    let wanted = match platform {
        Platform::LinuxAmd64 => MACHINE_X86_64,
        Platform::LinuxArm64 => MACHINE_AARCH64,
    };
    ensure!(
        machine == wanted,
        "it is for machine {machine} of ELF's list, where {platform} is {wanted}"
    );
    let table = usize::try_from(u64::from_le_bytes(field(program, 32)?))?;
    let size = usize::from(u16::from_le_bytes(field(program, 54)?));
    let count = usize::from(u16::from_le_bytes(field(program, 56)?));
    for index in 0..count {
        let at = size.checked_mul(index).and_then(|offset| offset.checked_add(table));
        let kind = u32::from_le_bytes(field(program, at.context("an offset beyond all files")?)?);
        ensure!(
            kind != INTERPRETER,
            "it is linked dynamically, and the image has no libraries"
        );
    }
    Ok(())
}

fn field<const N: usize>(program: &[u8], at: usize) -> Result<[u8; N]> {
    let bytes = program.get(at..).and_then(|rest| rest.first_chunk());
    bytes.copied().with_context(|| format!("it ends before byte {at}"))
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use weir_oci::Platform;

    use super::check;

    /// Tests are linked dynamically, for the machine that they run on.
    #[test]
    fn a_program_for_another_machine_or_with_libraries_is_refused() {
        let Some(host) = Platform::host() else { return };
        let mut program = fs::read(env::current_exe().unwrap()).unwrap();
        let refusal = |program: &[u8], platform| format!("{:#}", check(program, platform).unwrap_err());
        assert!(refusal(&program, host).contains("dynamically"));
        let other = match host {
            Platform::LinuxAmd64 => Platform::LinuxArm64,
            Platform::LinuxArm64 => Platform::LinuxAmd64,
        };
        assert!(refusal(&program, other).contains("for machine"));
        // No segments: nothing asks for a dynamic linker.
        program[56..58].fill(0);
        check(&program, host).unwrap();
        assert!(refusal(&program[..40], host).contains("ends before byte 54"));
        assert!(refusal(b"#!/bin/sh", host).contains("no ELF"));
    }
}
