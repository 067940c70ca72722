//! Tools that come from the package registry, in the versions that were tried.

use std::{path::PathBuf, process::Command};

use anyhow::{Context as _, Result};

use crate::{bpf, process, workspace};

/// A program from the package registry.
pub struct CargoTool {
    pub program: &'static str,
    package: &'static str,
    version: &'static str,
}

pub const BPF_LINKER: CargoTool = CargoTool {
    program: "bpf-linker",
    package: "bpf-linker",
    version: bpf::LINKER_VERSION,
};
pub const TYPOS: CargoTool = CargoTool {
    program: "typos",
    package: "typos-cli",
    version: "1.52.0",
};
pub const DENY: CargoTool = CargoTool {
    program: "cargo-deny",
    package: "cargo-deny",
    version: "0.20.2",
};

pub const FUZZ: CargoTool = CargoTool {
    program: "cargo-fuzz",
    package: "cargo-fuzz",
    version: "0.13.2",
};

impl CargoTool {
    /// Where the tool lies, after it has been installed if need be.
    pub fn ensure(&self) -> Result<PathBuf> {
        let Self {
            program,
            package,
            version,
        } = self;
        let tools = bpf::tools().context("HOME is not set, so there is no place to install tools to")?;
        let path = tools.join("bin").join(program);
        let current = process::output(Command::new(&path).arg("--version")).is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout)
                .split_whitespace()
                .any(|word| word == *version)
        });
        if current {
            return Ok(path);
        }
        eprintln!(
            "setup: building {package} {version} from the package registry into {} (takes a minute or more)",
            tools.display()
        );
        let mut cargo = workspace::cargo();
        cargo
            .args(["install", "--quiet", "--locked", "--force", "--root"])
            .arg(&tools)
            .arg(format!("{package}@{version}"))
            .env_remove("CARGO_TARGET_DIR")
            // Their release profiles ask for link-time optimisation, which costs more time than it ever saves here.
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
        process::output(&mut cargo)
            .with_context(|| format!("{package} {version} cannot be installed; is the package registry reachable?"))?;
        Ok(path)
    }
}
