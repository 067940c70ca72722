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
    let (features, mut dir): (&[&str], _) = if next_layout {
        (&["next-layout"], "bpf-next".to_owned())
    } else {
        (&[], "bpf".to_owned())
    };
    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    if env::var("TARGET")? != env::var("HOST")? {
        // Objects of two architectures have one file name.
        dir = format!("{dir}-{arch}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target_dir = target_directory(&out).unwrap_or(&out).join(dir);

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
    let tagged = |dir: &&Path| dir.join("CACHEDIR.TAG").exists();
    let found = out.ancestors().find(tagged)?;
    // With `--target`, cargo builds in a directory of that name in the target directory, and tags both.
    let of_target = env::var_os("TARGET").is_some_and(|target| found.file_name() == Some(&target));
    Some(found.parent().filter(|dir| of_target && tagged(dir)).unwrap_or(found))
}
