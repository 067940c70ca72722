//! Finding what compiles the eBPF object, and compiling it.
//!
//! Rust's BPF target has no prebuilt `core`, so the compiler must come with the sources of its own library; and the
//! linker, `bpf-linker`, loads the compiler's LLVM at run time, so the two must speak the same LLVM. This file finds
//! such a pair. It uses the standard library only, because `agent/build.rs` includes it too.

use std::{
    env,
    ffi::{OsStr, OsString},
    fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The version of `bpf-linker` that `cargo xtask setup` installs.
pub const LINKER_VERSION: &str = "0.10.3";

/// The LLVM which that linker loads: rustc 1.95 to 1.97 are built with it.
pub const LLVM_MAJOR: u32 = 22;

/// The package, and the binary in it, that is the eBPF object.
const PACKAGE: &str = "weir-ebpf";

/// A profile of the workspace: optimised, with the debug information that becomes BTF.
const PROFILE: &str = "bpf";

/// Where a compiler has the sources of its own library, in its sysroot.
const LIBRARY: &str = "lib/rustlib/src/rust";

const TARGET: &str = if cfg!(target_endian = "big") {
    "bpfeb-unknown-none"
} else {
    "bpfel-unknown-none"
};

/// A compiler with its library sources, a linker, and the LLVM that both speak.
#[derive(Debug)]
pub struct Toolchain {
    rustc: PathBuf,
    cargo: PathBuf,
    release: String,
    linker: PathBuf,
    /// The directory with the `libLLVM` that the linker loads.
    llvm: PathBuf,
}

/// Why the eBPF object cannot be built on this machine.
#[derive(Debug)]
pub struct NoToolchain {
    /// Whether there is a compiler that fits.
    pub compiler: bool,
    /// Whether there is a linker that fits.
    pub linker: bool,
    /// One line for each thing that was looked at and found wanting.
    tried: Vec<String>,
}

/// One rustc found on this machine, and what it is good for.
#[derive(Debug)]
struct Compiler {
    rustc: PathBuf,
    sysroot: PathBuf,
    release: String,
    llvm_major: Option<u32>,
}

impl Toolchain {
    /// Looks for a toolchain: the active Rust toolchain, other rustup toolchains, then the distribution's. A compiler
    /// without library sources can still lend its `libLLVM` to the linker.
    pub fn find() -> Result<Self, NoToolchain> {
        let mut tried = Vec::new();
        let compilers: Vec<Compiler> = candidates()
            .into_iter()
            .filter_map(|rustc| match Compiler::ask(&rustc) {
                Ok(compiler) => Some(compiler),
                Err(reason) => {
                    tried.push(format!("{}: {reason}", rustc.display()));
                    None
                }
            })
            .collect();

        let compiler = compilers.iter().find(|compiler| match compiler.unfit() {
            None => true,
            Some(reason) => {
                tried.push(format!(
                    "rustc {} ({}): {reason}",
                    compiler.release,
                    compiler.rustc.display()
                ));
                false
            }
        });
        if compilers.is_empty() {
            tried.push("no rustc found".into());
        }

        let linker = find_linker().map_err(|misfits| tried.extend(misfits)).ok();

        let llvm = compiler.and_then(|fit| fit.llvm()).or_else(|| {
            compilers
                .iter()
                .filter(|c| c.llvm_major == Some(LLVM_MAJOR))
                .find_map(Compiler::llvm)
        });
        if llvm.is_none() {
            tried.push(format!(
                "libLLVM {LLVM_MAJOR} for bpf-linker: no rustup toolchain has it; `rustup toolchain install 1.95.0` does"
            ));
        }

        match (compiler, linker, llvm) {
            (Some(compiler), Some(linker), Some(llvm)) => Ok(Self {
                rustc: compiler.rustc.clone(),
                cargo: compiler.rustc.with_file_name("cargo"),
                release: compiler.release.clone(),
                linker,
                llvm,
            }),
            (compiler, linker, _) => Err(NoToolchain {
                compiler: compiler.is_some(),
                linker: linker.is_some(),
                tried,
            }),
        }
    }

    /// A cargo command (`build`, `clippy`) for the eBPF package of the workspace at `root`, with nothing inherited from
    /// a cargo that may be running around it. `arch` is the architecture whose kernel the object is for, as Rust names
    /// it.
    pub fn command(&self, verb: &str, root: &Path, target_dir: &Path, arch: &str, features: &[&str]) -> Command {
        // `cargo clippy` would run the first cargo-clippy in PATH, which belongs to some other compiler.
        let mut cargo = Command::new(if verb == "clippy" {
            self.cargo_clippy()
        } else {
            self.cargo.clone()
        });
        for (key, _) in env::vars_os() {
            if inherited_setting(&key) {
                cargo.env_remove(key);
            }
        }
        let mut libraries = self.llvm.clone().into_os_string();
        if let Some(others) = env::var_os("LD_LIBRARY_PATH").filter(|others| !others.is_empty()) {
            libraries.push(":");
            libraries.push(others);
        }
        let mut rustflags = vec![
            format!("--cfg=bpf_target_arch=\"{}\"", kernel_arch(arch)),
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
        ];
        rustflags.extend(remap_paths(root, target_dir, &self.library()));
        cargo
            .current_dir(root)
            .env("CARGO", &self.cargo)
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("LD_LIBRARY_PATH", libraries)
            .env("CARGO_ENCODED_RUSTFLAGS", rustflags.join("\x1f"))
            .env(linker_variable(), &self.linker)
            .args([verb, "--locked", "--package", PACKAGE, "--bin", PACKAGE, "--lib"])
            .args(["--profile", PROFILE, "--target", TARGET, "-Zbuild-std=core"])
            .arg("--target-dir")
            .arg(target_dir)
            .args(features.iter().map(|feature| format!("--features={feature}")));
        cargo
    }

    /// The compiler; it has the sources of its own library.
    pub fn rustc(&self) -> &Path {
        &self.rustc
    }

    /// The cargo beside it.
    pub fn cargo(&self) -> &Path {
        &self.cargo
    }

    /// The sources of its own library, and what is beside them.
    pub fn library(&self) -> PathBuf {
        let sysroot = self.rustc.ancestors().nth(2).unwrap_or(Path::new("/usr"));
        sysroot.join(LIBRARY)
    }

    /// The clippy that belongs to this compiler; it may not be installed.
    pub fn cargo_clippy(&self) -> PathBuf {
        self.rustc.with_file_name("cargo-clippy")
    }

    /// Where [`Toolchain::command`] with the verb `build` leaves the object.
    pub fn object(target_dir: &Path) -> PathBuf {
        target_dir.join(TARGET).join(PROFILE).join(PACKAGE)
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rustc,
            cargo: _,
            release,
            linker,
            llvm: _,
        } = self;
        write!(f, "rustc {release} ({}), {}", rustc.display(), linker.display())
    }
}

impl fmt::Display for NoToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "no toolchain for the eBPF programs on this machine; run `cargo xtask setup`. Looked at:"
        )?;
        for line in &self.tried {
            writeln!(f, "  - {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for NoToolchain {}

impl Compiler {
    fn ask(rustc: &Path) -> Result<Self, String> {
        let version = output(Command::new(rustc).arg("-vV"))?;
        let sysroot = output(Command::new(rustc).args(["--print", "sysroot"]))?;
        let field = |name: &str| version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let sysroot = PathBuf::from(sysroot.trim());
        // `rustc` in PATH is usually rustup's proxy; the compiler itself lies in the sysroot, with its own cargo.
        let own = sysroot.join("bin/rustc");
        Ok(Self {
            rustc: if own.exists() { own } else { rustc.to_owned() },
            sysroot,
            release: field("release:").unwrap_or("of unknown version").to_owned(),
            llvm_major: field("LLVM version:").and_then(|v| v.split('.').next()?.parse().ok()),
        })
    }

    /// What keeps this compiler from building the object.
    fn unfit(&self) -> Option<String> {
        if self.llvm_major != Some(LLVM_MAJOR) {
            let major = self
                .llvm_major
                .map_or("an unknown LLVM".into(), |major| format!("LLVM {major}"));
            return Some(format!(
                "speaks {major}, but bpf-linker {LINKER_VERSION} needs LLVM {LLVM_MAJOR}"
            ));
        }
        if !self.sysroot.join(LIBRARY).join("library/core/Cargo.toml").exists() {
            return Some("has no library sources (component rust-src)".into());
        }
        if !self.rustc.with_file_name("cargo").exists() {
            return Some("has no cargo beside it".into());
        }
        None
    }

    /// The directory of this compiler's shared LLVM; a distribution may have linked it in instead.
    fn llvm(&self) -> Option<PathBuf> {
        let lib = self.sysroot.join("lib");
        let named = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with(&format!("libLLVM.so.{LLVM_MAJOR}"))
                    || name.starts_with(&format!("libLLVM-{LLVM_MAJOR}"))
            })
        };
        fs::read_dir(&lib).ok()?.any(named).then_some(lib)
    }
}

/// Every rustc worth asking, best first, each once.
fn candidates() -> Vec<PathBuf> {
    let mut found = vec![env::var_os("RUSTC").map_or("rustc".into(), PathBuf::from)];
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(home()?.join(".rustup")));
    if let Some(Ok(toolchains)) = rustup.map(|dir| fs::read_dir(dir.join("toolchains"))) {
        let mut toolchains: Vec<_> = toolchains
            .flatten()
            .map(|entry| entry.path().join("bin/rustc"))
            .collect();
        toolchains.sort();
        found.extend(toolchains);
    }
    found.push("/usr/bin/rustc".into());
    found.retain(|rustc| rustc.components().count() == 1 || rustc.exists());
    found
}

/// Where `cargo xtask setup` puts the tools that it builds: outside of PATH, shared by all copies of the repository.
pub fn tools() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|dir| dir.is_absolute());
    Some(cache.or_else(|| Some(home()?.join(".cache")))?.join("weir/tools"))
}

/// Compiler flags by which what is built does not show where it was built: two checkouts of one commit give the same
/// bytes. `library` is where a compiler has the sources of its own library, for builds that compile that too.
pub fn remap_paths(root: &Path, target_dir: &Path, library: &Path) -> Vec<String> {
    // Of several that fit, rustc takes the last: the target directory may lie in the checkout.
    let places = [
        // Debian has a link there, and some paths are taken behind it.
        (library.canonicalize().unwrap_or_default(), "/rustc"),
        (library.to_owned(), "/rustc"),
        (cargo_home().unwrap_or_default(), "/cargo"),
        (root.to_owned(), "/weir"),
        (target_dir.to_owned(), "/target"),
    ];
    places
        .iter()
        .filter(|(place, _)| place.is_absolute())
        .map(|(place, name)| format!("--remap-path-prefix={}={name}", place.display()))
        .collect()
}

/// Where cargo keeps what it downloads.
pub fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(home()?.join(".cargo")))
}

/// The first `bpf-linker` of a series that fits, in the tools directory, cargo's own, or PATH.
fn find_linker() -> Result<PathBuf, Vec<String>> {
    const NAME: &str = "bpf-linker";
    let series = |version: &str| version.rsplit_once('.').map(|(series, _)| series.to_owned());
    let tools = tools().map(|dir| dir.join("bin"));
    let cargo = cargo_home().map(|dir| dir.join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();

    let mut misfits = Vec::new();
    for dir in tools.into_iter().chain(cargo).chain(env::split_paths(&path)) {
        let linker = dir.join(NAME);
        if !linker.is_file() {
            continue;
        }
        match output(Command::new(&linker).arg("--version")) {
            Ok(text) => match text.split_whitespace().nth(1) {
                Some(version) if series(version) == series(LINKER_VERSION) => return Ok(linker),
                version => misfits.push(format!(
                    "bpf-linker {} ({}): {LINKER_VERSION} is what fits LLVM {LLVM_MAJOR}",
                    version.unwrap_or("of unknown version"),
                    linker.display()
                )),
            },
            Err(reason) => misfits.push(format!("{}: {reason}", linker.display())),
        }
    }
    misfits.dedup();
    if misfits.is_empty() {
        misfits.push("bpf-linker: not found".into());
    }
    Err(misfits)
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").map(PathBuf::from)
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(complaint.lines().next().unwrap_or("failed without a word").to_owned());
    }
    String::from_utf8(output.stdout).map_err(|error| error.to_string())
}

/// Whether a variable carries the settings of a surrounding build, made for another compiler and target.
pub fn inherited_setting(key: &OsStr) -> bool {
    const EXACT: [&str; 10] = [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC",
        "RUSTDOC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_LINKER",
        "RUSTUP_TOOLCHAIN",
        "CARGO_TARGET_DIR",
        "CARGO_INCREMENTAL",
    ];
    const PREFIXES: [&str; 5] = [
        "CARGO_FEATURE_",
        "CARGO_CFG_",
        "CARGO_PKG_",
        "CARGO_PROFILE_",
        "CARGO_BUILD_",
    ];
    let key = key.to_string_lossy();
    EXACT.contains(&&*key) || PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

/// Rust's name of an architecture as aya-ebpf's bindings spell it.
fn kernel_arch(arch: &str) -> &str {
    if arch.starts_with("riscv64") { "riscv64" } else { arch }
}

fn linker_variable() -> OsString {
    format!("CARGO_TARGET_{}_LINKER", TARGET.replace('-', "_").to_uppercase()).into()
}
