//! `cargo xtask setup`: is this machine fit, and if not, make it so.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{
    bpf::{NoToolchain, Toolchain},
    cargo_tool::{self, CargoTool},
    go, image, machine, packages, process, workspace,
};

#[derive(clap::Args)]
pub struct Arguments {}

/// The verbs that need something of the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    Build,
    Demo,
    Test,
    Lint,
    Bench,
    Image,
    Cluster,
}

const ALL: [Verb; 7] = [
    Verb::Build,
    Verb::Demo,
    Verb::Test,
    Verb::Lint,
    Verb::Bench,
    Verb::Image,
    Verb::Cluster,
];

/// Checks everything and says what it finds.
pub fn run(_arguments: &Arguments) -> Result<()> {
    let mut check = Check {
        talkative: true,
        problems: Vec::new(),
    };
    check.verbs(&ALL);
    check.note("images also for", image::ensure_cross());
    check.finish()?;
    println!("This machine is ready.");
    Ok(())
}

/// Makes sure that the machine has what one verb needs. Says nothing when it has.
pub fn ensure(verb: Verb) -> Result<()> {
    let mut check = Check {
        talkative: false,
        problems: Vec::new(),
    };
    check.verbs(&[verb]);
    check.finish()
}

/// One walk over the machine. Problems are collected, so that all of them are named at once.
struct Check {
    talkative: bool,
    problems: Vec<String>,
}

impl Check {
    fn verbs(&mut self, verbs: &[Verb]) {
        let runs = |verb| verbs.contains(&verb);
        if runs(Verb::Demo) || runs(Verb::Test) || runs(Verb::Bench) || runs(Verb::Cluster) {
            self.note("kernel", machine::kernel());
            self.privileges();
        }
        self.programs(verbs);
        self.bpf_toolchain(runs(Verb::Lint));
        if runs(Verb::Test) || runs(Verb::Cluster) {
            self.note("Go", go::ensure());
        }
        if runs(Verb::Lint) {
            self.cargo_tool(&cargo_tool::TYPOS);
            self.cargo_tool(&cargo_tool::DENY);
        }
    }

    fn privileges(&mut self) {
        if !machine::is_root() {
            self.problem(
                "not root: network namespaces and eBPF need it; run: sudo -E env \"PATH=$PATH\" cargo xtask VERB",
            );
            return;
        }
        self.note("privileges", Ok("root".into()));
        self.note("bpf file system", machine::bpffs().map(|()| "mounted".into()));
    }

    fn programs(&mut self, verbs: &[Verb]) {
        let programs = || verbs.iter().flat_map(|verb| packages::programs(*verb));
        let missing = packages::missing(programs());
        let installed = if missing.is_empty() {
            Ok(())
        } else {
            packages::install(&missing)
        };
        let mut names: Vec<_> = programs().map(|program| program.name).collect();
        names.sort_unstable();
        names.dedup();
        self.note("programs", installed.map(|()| names.join(" ")));
    }

    fn bpf_toolchain(&mut self, with_clippy: bool) {
        let toolchain = bpf_toolchain();
        let clippy = toolchain.as_ref().ok().filter(|_| with_clippy).map(bpf_clippy);
        self.note("eBPF toolchain", toolchain.map(|toolchain| toolchain.to_string()));
        if let Some(clippy) = clippy {
            self.note("clippy for eBPF", clippy);
        }
    }

    fn cargo_tool(&mut self, tool: &CargoTool) {
        self.note(tool.program, tool.ensure().map(|path| path.display().to_string()));
    }

    /// Says that something is there, or keeps the reason why it cannot be.
    fn note(&mut self, what: &str, found: Result<String>) {
        match found {
            Ok(found) if self.talkative => println!("{what:>16}  {found}"),
            Ok(_) => {}
            Err(error) => self.problem(&format!("{what}: {error:#}")),
        }
    }

    fn problem(&mut self, problem: &str) {
        self.problems.push(problem.to_owned());
    }

    fn finish(self) -> Result<()> {
        if self.problems.is_empty() {
            return Ok(());
        }
        let list: String = self
            .problems
            .iter()
            .map(|problem| format!("\n  - {}", problem.trim_end()))
            .collect();
        bail!("this machine is not ready:{list}")
    }
}

/// The toolchain for the eBPF programs. What is missing of it is installed: the library sources through rustup where
/// it can download them, else a compiler of the distribution that has them.
pub fn bpf_toolchain() -> Result<Toolchain> {
    let NoToolchain { linker, compiler, .. } = match Toolchain::find() {
        Ok(toolchain) => return Ok(toolchain),
        Err(missing) => missing,
    };
    if !linker {
        cargo_tool::BPF_LINKER.ensure()?;
    }
    if !compiler {
        install_compiler()?;
    }
    Ok(Toolchain::find()?)
}

fn install_compiler() -> Result<()> {
    eprintln!("setup: asking rustup for the library sources (component rust-src)");
    let rustup = process::output(rustup().args(["component", "add", "rust-src"]));
    if Toolchain::find().is_err_and(|missing| !missing.compiler) {
        let rustup = rustup.map_or_else(|error| format!("{error:#}"), |_| "they do not help".into());
        eprintln!("setup: rustup has none ({rustup}); trying the distribution's compiler");
        packages::install(&["rustc-web", "cargo-web", "rust-web-src"]).context(
            "the eBPF programs need a Rust compiler with its library sources, from `rustup component add rust-src` or \
             Debian's rustc-web, cargo-web and rust-web-src; neither can be installed",
        )?;
    }
    Ok(())
}

/// Rustup, given up on after a while: where it cannot reach its server, it tries for long.
fn rustup() -> Command {
    let mut rustup = Command::new("timeout");
    rustup.args(["120", "rustup"]).current_dir(workspace::root());
    rustup
}

/// Clippy of the compiler that builds the eBPF programs: another compiler's would not accept its `core`.
fn bpf_clippy(toolchain: &Toolchain) -> Result<String> {
    let clippy = toolchain.cargo_clippy();
    if !clippy.exists() {
        if clippy.starts_with("/usr") {
            packages::install(&["rust-web-clippy"])?;
        } else {
            process::output(rustup().args(["component", "add", "clippy"]))
                .context("the Rust toolchain has no clippy")?;
        }
    }
    Ok(clippy.display().to_string())
}
