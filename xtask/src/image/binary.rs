//! The static `weir` that goes into images.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use weir_oci::Platform;

use crate::{bpf, packages, process, setup, workspace};

/// Rust's name of a platform. The GNU C library, linked in: no other library has to be in the image.
pub const fn triple(platform: Platform) -> &'static str {
    match platform {
        Platform::LinuxAmd64 => "x86_64-unknown-linux-gnu",
        Platform::LinuxArm64 => "aarch64-unknown-linux-gnu",
    }
}

/// What compiles and links C for a platform on machines of another one: the prefix of the programs' names, and Debian's
/// name of the architecture.
const fn cross_compiler(platform: Platform) -> (&'static str, &'static str) {
    match platform {
        Platform::LinuxAmd64 => ("x86_64-linux-gnu", "amd64"),
        Platform::LinuxArm64 => ("aarch64-linux-gnu", "arm64"),
    }
}

/// Builds `weir` with optimisations and without dynamic libraries, in `target/TRIPLE/release`, and returns where it lies.
pub fn build(platform: Platform) -> Result<PathBuf> {
    process::run(&mut cargo(platform, &["build", "--release"])?)?;
    Ok(workspace::target_dir()?.join(triple(platform)).join("release/weir"))
}

/// Whether `weir` compiles for a platform; makes nothing.
pub fn check(platform: Platform) -> Result<()> {
    process::run(&mut cargo(platform, &["check"])?)
}

/// What cargo is to do with `weir`, for a platform.
fn cargo(platform: Platform, verb: &[&str]) -> Result<Command> {
    let target_dir = workspace::target_dir()?;
    let toolchain = setup::bpf_toolchain()?;
    let crossing = Platform::host() != Some(platform);
    let mut cargo = if crossing {
        cross(platform, &toolchain)?
    } else {
        workspace::cargo()
    };
    let mut rustflags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    rustflags.extend(bpf::remap_paths(workspace::root(), &target_dir, &toolchain.library()));
    cargo
        .args(verb)
        .args(["--locked", "--package", "weir", "--bin", "weir"])
        .args(["--target", triple(platform)])
        .arg("--target-dir")
        .arg(&target_dir)
        .args(crossing.then_some("-Zbuild-std=std,panic_abort"))
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"));
    Ok(cargo)
}

/// Makes sure that C can be compiled and linked for a platform which is not this machine's; says by what.
pub fn ensure_cross(platform: Platform) -> Result<String> {
    let (prefix, architecture) = cross_compiler(platform);
    let gcc = format!("{prefix}-gcc");
    let library = format!("/usr/{prefix}/lib/libc.a");
    if process::find(&gcc).is_none() || process::find(&library).is_none() {
        let packages = [
            format!("gcc-{prefix}").replace('_', "-"),
            format!("libc6-dev-{architecture}-cross"),
        ];
        packages::install(&packages.each_ref().map(String::as_str))
            .with_context(|| format!("images for {platform} are linked with {gcc} and {library}"))?;
    }
    Ok(gcc)
}

/// A cargo for another platform: that of the compiler which has the sources of its library and builds the eBPF programs.
/// So no prebuilt library of the platform is needed, which a distribution's compiler does not have.
fn cross(platform: Platform, toolchain: &bpf::Toolchain) -> Result<Command> {
    let gcc = ensure_cross(platform)?;
    let (prefix, _) = cross_compiler(platform);
    let mut cargo = Command::new(toolchain.cargo());
    // Of the cargo that runs this xtask: they would lead to its compiler.
    let inherited = env::vars_os().map(|(key, _)| key);
    for key in inherited.filter(|key| bpf::inherited_setting(key)) {
        cargo.env_remove(key);
    }
    let variable = triple(platform).replace('-', "_");
    cargo
        .current_dir(workspace::root())
        .env("RUSTC", toolchain.rustc())
        .env("RUSTC_BOOTSTRAP", "1")
        .env(format!("CARGO_TARGET_{}_LINKER", variable.to_uppercase()), &gcc)
        .env(format!("CC_{variable}"), &gcc)
        .env(format!("AR_{variable}"), format!("{prefix}-ar"));
    Ok(cargo)
}
