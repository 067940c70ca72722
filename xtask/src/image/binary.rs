//! The static `weir` that goes into images.

use std::{env, path::PathBuf, process::Command};

use anyhow::Result;
use weir_oci::Platform;

use crate::{bpf, packages, process, setup, workspace};

/// Rust's name of a platform. The GNU C library, linked in: no other library has to be in the image.
const fn triple(platform: Platform) -> &'static str {
    match platform {
        Platform::LinuxAmd64 => "x86_64-unknown-linux-gnu",
        Platform::LinuxArm64 => "aarch64-unknown-linux-gnu",
    }
}

/// What compiles and links C for a platform on machines of another one: the prefix of the programs, and Debian's
/// packages of them.
const fn cross_compiler(platform: Platform) -> (&'static str, [&'static str; 2]) {
    match platform {
        Platform::LinuxAmd64 => ("x86_64-linux-gnu", ["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"]),
        Platform::LinuxArm64 => ("aarch64-linux-gnu", ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"]),
    }
}

/// Builds `weir` with optimisations and without dynamic libraries, in `target/TRIPLE/release`, and returns where it lies.
pub fn build(platform: Platform) -> Result<PathBuf> {
    let triple = triple(platform);
    let crossing = Platform::host() != Some(platform);
    let mut cargo = if crossing { cross(platform)? } else { workspace::cargo() };
    let mut rustflags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    rustflags.extend(bpf::remap_paths(workspace::root()));
    cargo
        .args(["build", "--locked", "--release", "--package", "weir", "--bin", "weir"])
        .args(["--target", triple])
        .arg("--target-dir")
        .arg(workspace::target_dir()?)
        .args(crossing.then_some("-Zbuild-std=std,panic_abort"))
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"));
    process::run(&mut cargo)?;
    Ok(workspace::target_dir()?.join(triple).join("release/weir"))
}

/// A cargo for another platform: that of the compiler which has the sources of its library, because there need not be
/// a prebuilt one.
fn cross(platform: Platform) -> Result<Command> {
    let (prefix, packages) = cross_compiler(platform);
    let gcc = format!("{prefix}-gcc");
    if process::find(&gcc).is_none() {
        packages::install(&packages)?;
    }
    let toolchain = setup::bpf_toolchain()?;
    let mut cargo = Command::new(toolchain.cargo());
    // Of the cargo that runs this xtask: they would lead to its compiler.
    let inherited = env::vars_os().map(|(key, _)| key);
    for key in inherited.filter(|key| bpf::inherited_setting(key)) {
        cargo.env_remove(key);
    }
    let triple = triple(platform);
    let variable = triple.replace('-', "_");
    cargo
        .current_dir(workspace::root())
        .env("RUSTC", toolchain.rustc())
        .env("RUSTC_BOOTSTRAP", "1")
        .env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), &gcc)
        .env(format!("CC_{variable}"), &gcc)
        .env(format!("AR_{variable}"), format!("{prefix}-ar"));
    Ok(cargo)
}
