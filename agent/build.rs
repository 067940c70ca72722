//! Builds the eBPF object, which is embedded in the binary: `env!("WEIR_BPF_OBJECT")` is its path.

use std::{
    env,
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

#[path = "../xtask/src/bpf.rs"]
#[expect(dead_code, reason = "what only `cargo xtask setup` asks")]
mod bpf;

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("..");
    let root = root.canonicalize()?;
    for input in ["ebpf", "common", "Cargo.toml", "Cargo.lock", "xtask/src/bpf.rs"] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }

    let next_layout = env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some();
    let (features, dir): (&[&str], _) = if next_layout {
        (&["next-layout"], "bpf-next")
    } else {
        (&[], "bpf")
    };
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target_dir = target_directory(&out).unwrap_or(&out).join(dir);
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;

    let toolchain = bpf::Toolchain::find()?;
    let status = toolchain
        .command("build", &root, &target_dir, &arch, features)
        .status()?;
    if !status.success() {
        return Err(format!("building the eBPF object with {toolchain} failed ({status})").into());
    }
    let built = bpf::Toolchain::object(&target_dir);
    let object = out.join("weir.bpf.o");
    fs::copy(&built, &object).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", built.display())))?;
    println!("cargo::rustc-env=WEIR_BPF_OBJECT={}", object.display());
    Ok(())
}

/// The workspace's target directory, found from the build script's own: cargo tags it. The eBPF object gets a
/// directory beside `debug` and `release`, so that all profiles share it and no two cargos wait for one lock.
fn target_directory(out: &Path) -> Option<&Path> {
    out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists())
}
