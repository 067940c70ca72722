//! Kubernetes' own programs, built from Go modules.
//!
//! `tests/cluster/go.mod` pins every version, `go.sum` every byte. What is built lies in the target directory, under a name
//! that follows from both files, so a build happens once per change of versions: some minutes on two cores the first time.

use std::{
    collections::hash_map::DefaultHasher,
    env,
    fs::{self, File},
    hash::{Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};

#[path = "../../../xtask/src/go_search.rs"]
mod go_search;

/// A program of the module's `tool` lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
    Kubelet,
    Proxy,
    Kubectl,
    Agnhost,
    CoreDns,
    Helm,
}

impl Tool {
    pub const ALL: [Self; 10] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::Proxy,
        Self::Kubectl,
        Self::Agnhost,
        Self::CoreDns,
        Self::Helm,
    ];
    /// What a control plane without nodes consists of.
    pub const CONTROL_PLANE: [Self; 5] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubectl,
    ];

    /// The file name of the program.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::Proxy => "kube-proxy",
            Self::Kubectl => "kubectl",
            Self::Agnhost => "agnhost",
            Self::CoreDns => "coredns",
            Self::Helm => "helm",
        }
    }

    const fn package(self) -> &'static str {
        match self {
            Self::Etcd => "go.etcd.io/etcd/server/v3",
            Self::ApiServer => "k8s.io/kubernetes/cmd/kube-apiserver",
            Self::ControllerManager => "k8s.io/kubernetes/cmd/kube-controller-manager",
            Self::Scheduler => "k8s.io/kubernetes/cmd/kube-scheduler",
            Self::Kubelet => "k8s.io/kubernetes/cmd/kubelet",
            Self::Proxy => "k8s.io/kubernetes/cmd/kube-proxy",
            Self::Kubectl => "k8s.io/kubernetes/cmd/kubectl",
            Self::Agnhost => "k8s.io/kubernetes/test/images/agnhost",
            Self::CoreDns => "github.com/coredns/coredns",
            Self::Helm => "helm.sh/helm/v3/cmd/helm",
        }
    }
}

/// Where the programs of one set of versions lie.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

impl Binaries {
    /// Builds those of the programs that have not been built. Others who build at the same time are waited for.
    ///
    /// # Errors
    /// Without Go, or what the compiler says.
    pub fn ensure(tools: &[Tool]) -> Result<Self> {
        let key = key()?;
        let directory = target_directory()?.join("kubernetes").join(key);
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let binaries = Self { directory };
        let _lock = binaries.lock()?;
        for tool in tools {
            let path = binaries.path(*tool);
            if !path.is_file() {
                eprintln!("cluster: building {} (some minutes for the first)", tool.name());
                let half = path.with_extension("new");
                compile(&module(), &["build", "-trimpath"], tool.package(), &half)?;
                fs::rename(&half, &path).with_context(|| format!("move {}", half.display()))?;
            }
        }
        Ok(binaries)
    }

    /// Held by who builds: of two at a time, the other one finds the program built.
    fn lock(&self) -> Result<Flock<File>> {
        let lock = File::create(self.directory.join(".lock")).context("make the lock of Kubernetes' programs")?;
        Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .context("lock the directory of Kubernetes' programs")
    }

    /// The directory that holds them all.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    #[must_use]
    pub fn path(&self, tool: Tool) -> PathBuf {
        self.directory.join(tool.name())
    }

    /// Kubernetes' own end-to-end suite, built on the first call. Others who build at the same time are waited for.
    ///
    /// # Errors
    /// Without Go, or what the compiler says.
    pub fn upstream_suite(&self) -> Result<PathBuf> {
        let _lock = self.lock()?;
        let path = self.directory.join("e2e.test");
        if !path.is_file() {
            eprintln!("cluster: building Kubernetes' e2e suite (some minutes)");
            let half = path.with_extension("new");
            // Its tests import more than the programs do: versions follow from the same requirements, in a copy that may
            // be written to.
            let copy = self.directory.join("e2e-module");
            fs::create_dir_all(&copy).with_context(|| format!("make {}", copy.display()))?;
            for name in ["go.mod", "go.sum"] {
                fs::write(copy.join(name), read(name)?).with_context(|| format!("copy {name}"))?;
            }
            compile(&copy, &["test", "-mod=mod", "-c"], "k8s.io/kubernetes/test/e2e", &half)?;
            fs::rename(&half, &path).with_context(|| format!("move {}", half.display()))?;
        }
        Ok(path)
    }
}

/// The version of Kubernetes that `go.mod` names.
///
/// # Errors
/// If it names none.
pub fn kubernetes_version() -> Result<String> {
    let text = read("go.mod")?;
    text.lines()
        .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "))
        .and_then(|rest| rest.split_whitespace().next())
        .map(str::to_owned)
        .context("tests/cluster/go.mod requires no k8s.io/kubernetes")
}

/// `tests/cluster` of the sources that this program was built from.
fn module() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster")
}

fn read(name: &str) -> Result<String> {
    let path = module().join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

fn key() -> Result<String> {
    let mut hasher = DefaultHasher::new();
    read("go.mod")?.hash(&mut hasher);
    read("go.sum")?.hash(&mut hasher);
    Ok(format!("{:016x}", hasher.finish()))
}

fn compile(module: &Path, verb: &[&str], package: &str, output: &Path) -> Result<()> {
    // Servers and clients refuse each other, or break, on the version of a build without one.
    let version = kubernetes_version()?;
    let (major, rest) = version.trim_start_matches('v').split_once('.').context("a version")?;
    let minor = rest.split('.').next().unwrap_or_default();
    let mut flags = "-s -w".to_owned();
    for place in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        flags += &format!(" -X {place}.gitVersion={version} -X {place}.gitMajor={major} -X {place}.gitMinor={minor}");
    }
    let go = go_search::find()
        .context("there is no Go here, which builds Kubernetes' programs: `cargo xtask setup` names the remedy")?;
    let mut go = Command::new(go);
    go.current_dir(module)
        .env("CGO_ENABLED", "0")
        .args(verb)
        .arg(format!("-ldflags={flags}"))
        .arg("-o")
        .arg(output)
        .arg(package)
        .stdin(Stdio::null());
    let done = go.output().context("start go")?;
    ensure!(
        done.status.success(),
        "go cannot build {package}: {}",
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(())
}

/// Where cargo builds, as the running program lies in it.
fn target_directory() -> Result<PathBuf> {
    let program = env::current_exe().context("find the running program")?;
    program
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").is_file())
        .map(Path::to_owned)
        .with_context(|| format!("{} lies in no cargo target directory", program.display()))
}

#[cfg(test)]
mod tests {
    use super::{Tool, kubernetes_version, read};

    #[test]
    fn every_tool_is_pinned_by_the_module() {
        let module = read("go.mod").unwrap();
        for tool in Tool::ALL {
            let line = format!("\t{}\n", tool.package());
            assert!(module.contains(&line), "{} is no tool of go.mod", tool.package());
        }
        assert!(kubernetes_version().unwrap().starts_with("v1."));
    }
}
