//! `weir agent`: from flags to options, then the control loop.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{
    ArgAction, Args,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};

use super::{
    args::{CniDirectories, DEFAULT_BPFFS, RunDir},
    error::CliError,
    logging::{self, LogFormat, LogLevel},
};
use crate::{
    cni::{install, plugin},
    control::{
        self,
        options::{AgentOptions, AttachMode, FlowLogOptions, FlowLogTarget, Forward},
    },
    memory,
    source::{
        SourceOptions,
        kubernetes::{self, DaemonSetName},
    },
};

/// A size in bytes, written with or without a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

/// A size that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no size: write bytes, or a number with k, M, G (powers of 1000) or Ki, Mi, Gi (powers of 1024)")]
pub struct BadSize(String);

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadSize(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = match unit.trim_start().trim_end_matches(['B', 'b']) {
            "" => 1,
            "k" | "K" => 1000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        number.checked_mul(factor).map(Self).ok_or_else(bad)
    }
}

fn attach_modes() -> impl TypedValueParser<Value = AttachMode> {
    PossibleValuesParser::new([
        PossibleValue::new("auto").help("TCX where the kernel has it (6.6 and later), else clsact filters"),
        PossibleValue::new("tcx").help("TCX links"),
        PossibleValue::new("tc").help("clsact filters"),
    ])
    .map(|mode| match mode.as_str() {
        "tcx" => AttachMode::Tcx,
        "tc" => AttachMode::Tc,
        _ => AttachMode::Auto,
    })
}

fn forward_modes() -> impl TypedValueParser<Value = Forward> {
    PossibleValuesParser::new(["auto", "kernel", "direct"]).map(|how| match how.as_str() {
        "kernel" => Forward::Kernel,
        "direct" => Forward::Direct,
        _ => Forward::Auto,
    })
}

fn flow_period(text: &str) -> Result<Duration, String> {
    let period = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let shortest = Duration::from_secs(5);
    if period < shortest {
        return Err("the connection table is looked through every 5 s: name 5s or more".to_owned());
    }
    Ok(period)
}

fn cni_wait(text: &str) -> Result<Duration, String> {
    let wait = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if wait > plugin::MAX_WAIT {
        return Err(format!(
            "a pod waits {} s at most; after that the kubelet tries again by itself",
            plugin::MAX_WAIT.as_secs()
        ));
    }
    Ok(wait)
}

/// Every container of a cluster's pods has it.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

#[derive(Debug, Args)]
pub struct Agent {
    /// Name of this node's Node object [default: the host's name]
    #[arg(long, value_name = "NAME", env = "WEIR_NODE_NAME")]
    pub node: Option<String>,
    /// Enforce what is in the Kubernetes API that this file leads to [default: that of the cluster whose pod this is]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Enforce what is in this directory instead: every *.yaml, *.yml and *.json below it, watched for changes
    #[arg(long, value_name = "DIR", conflicts_with = "kubeconfig")]
    pub manifests: Option<PathBuf>,
    /// The DaemonSet that the agent belongs to: when it is removed, and only then, the agent takes everything away as it
    /// ends [default: $WEIR_NAMESPACE/$WEIR_DAEMONSET]
    #[arg(long, value_name = "NAMESPACE/NAME", conflicts_with = "manifests")]
    pub daemonset: Option<DaemonSetName>,
    /// Keep a condition WeirReady on this node's Node object
    #[arg(long, conflicts_with = "manifests")]
    pub node_condition: bool,
    #[command(flatten)]
    pub run_dir: RunDir,
    /// Directory on a bpffs for what must outlive the agent
    #[arg(long, value_name = "DIR", default_value = DEFAULT_BPFFS)]
    pub bpffs: PathBuf,
    /// Write flow records as JSON lines to this file, or to standard output
    #[arg(long, value_name = "FILE|-")]
    pub flow_log: Option<PathBuf>,
    /// Start a new flow log file when it would grow beyond this
    #[arg(long, value_name = "SIZE", default_value = "50M", requires = "flow_log")]
    pub flow_log_max_size: Size,
    /// Keep so many flow log files, the one being written included
    #[arg(long, value_name = "NUMBER", default_value_t = 5, requires = "flow_log", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub flow_log_max_files: u32,
    /// Report a flow that lasts, or is denied again and again, so often
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = flow_period)]
    pub flow_period: Duration,
    #[command(flatten)]
    pub cni: CniDirectories,
    /// Keep the CNI plugin installed in these directories; false: take away what was installed there before
    #[arg(long, value_name = "BOOL", requires = "cni_conf_dir", default_value_t = true, action = ArgAction::Set)]
    pub cni_install: bool,
    /// Pods of these namespaces start even where no agent enforces their policy yet, so that a node can always come up
    /// [default: kube-system; empty: none]
    #[arg(long, value_name = "NAMESPACE,...", value_delimiter = ',', requires = "cni_conf_dir", default_value = plugin::EXEMPT, hide_default_value = true)]
    pub cni_exempt_namespaces: Vec<String>,
    /// How long a pod waits for the agent before its start fails, and is tried again by the kubelet; at most 10m. One of an
    /// exempt namespace waits no longer than 10s and starts then
    #[arg(long, value_name = "DURATION", value_parser = cni_wait, requires = "cni_conf_dir", default_value = "10s")]
    pub cni_wait: Duration,
    /// How to attach to interfaces
    #[arg(long, value_name = "MODE", default_value = "auto", value_parser = attach_modes())]
    pub attach: AttachMode,
    /// Who carries packets between local pods: weir directly, unless something on the node (netfilter rules, other
    /// programs, shaping) needs the kernel's forwarding (auto); always the kernel; or directly also past netfilter
    /// rules for forwarded packets
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = forward_modes())]
    pub forward: Forward,
    /// Judge and report everything, but drop nothing: to see what policies would do before they do it
    #[arg(long)]
    pub audit: bool,
    /// Log nothing below this level
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t)]
    pub log_level: LogLevel,
    /// How to log
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub log_format: LogFormat,
    /// Serve /livez, /readyz and /metrics over HTTP at this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub health_addr: Option<SocketAddr>,
}

impl Agent {
    /// Runs until it is told to end.
    ///
    /// # Errors
    /// What keeps the agent from starting, or ends it.
    pub fn run(self) -> Result<(), CliError> {
        logging::init(self.log_level, self.log_format)?;
        if self.manifests.is_none() && self.kubeconfig.is_none() && std::env::var_os(IN_CLUSTER).is_none() {
            return Err(CliError::Misused(
                "no source of objects: this is no pod of a cluster; name one with --manifests DIR or --kubeconfig FILE",
            ));
        }
        let options = self.options()?;
        memory::economize();
        // Two workers: a compilation of milliseconds on one leaves flows and verbs the other.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("weir")
            .enable_all()
            .build()?;
        let ended = runtime.block_on(control::run(options));
        // A thread that waits for a disk must not keep the agent from ending.
        runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        Ok(ended?)
    }

    fn options(self) -> Result<AgentOptions, CliError> {
        let daemonset = self.daemonset.or_else(own_daemonset);
        Ok(AgentOptions {
            node: self.node.map_or_else(hostname, Ok)?,
            source: match self.manifests {
                Some(directory) => SourceOptions::Manifests(directory),
                None => SourceOptions::Kubernetes(kubernetes::Options {
                    kubeconfig: self.kubeconfig,
                    daemonset,
                    node_condition: self.node_condition,
                }),
            },
            run_dir: self.run_dir.run_dir,
            bpffs: self.bpffs,
            attach: self.attach,
            forward: self.forward,
            audit: self.audit,
            flow_log: self.flow_log.map(|path| FlowLogOptions {
                target: if path.as_os_str() == "-" {
                    FlowLogTarget::Stdout
                } else {
                    FlowLogTarget::File(path)
                },
                max_size: self.flow_log_max_size.0,
                max_files: self.flow_log_max_files,
            }),
            flow_period: self.flow_period,
            health_addr: self.health_addr,
            cni: self.cni.directories().map(|directories| install::Options {
                directories,
                install: self.cni_install,
                wait: self.cni_wait,
                exempt_namespaces: self
                    .cni_exempt_namespaces
                    .into_iter()
                    .filter(|namespace| !namespace.is_empty())
                    .collect(),
            }),
        })
    }
}

/// As the chart tells its pods.
fn own_daemonset() -> Option<DaemonSetName> {
    let part = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    Some(DaemonSetName {
        namespace: part("WEIR_NAMESPACE")?,
        name: part("WEIR_DAEMONSET")?,
    })
}

/// The kubelet names its node after the host, in lower case, unless told otherwise.
fn hostname() -> Result<String, CliError> {
    let file = "/proc/sys/kernel/hostname";
    let name = std::fs::read_to_string(file).map_err(|error| CliError::Failed {
        message: format!("cannot tell this node's name: {file}: {error}"),
        remedy: Some("name it with --node".to_owned()),
    })?;
    Ok(name.trim().to_lowercase())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Verb};

    fn parse(args: &[&str]) -> Result<Agent, clap::Error> {
        match Cli::try_parse_from(["weir", "agent"].iter().chain(args))?.verb {
            Verb::Agent(agent) => Ok(agent),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sizes_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("50M", 50_000_000),
            ("1 MiB", 1 << 20),
            ("2k", 2000),
            ("3GB", 3_000_000_000),
        ] {
            assert_eq!(text.parse::<Size>().expect(text).0, bytes, "{text}");
        }
        for text in ["", "M", "1x", "-1", "99999999999G"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_flag_of_the_agent_reaches_its_options() {
        let agent = parse(&[
            "--node",
            "n1",
            "--manifests",
            "/m",
            "--run-dir",
            "/r",
            "--bpffs",
            "/b",
            "--flow-log",
            "-",
            "--attach",
            "tc",
            "--forward",
            "direct",
            "--audit",
            "--log-level",
            "debug",
            "--log-format",
            "json",
            "--health-addr",
            "127.0.0.1:1",
            "--flow-log-max-size",
            "1Ki",
            "--flow-period",
            "2m",
            "--flow-log-max-files",
            "2",
            "--cni-conf-dir",
            "/c",
            "--cni-bin-dir",
            "/p",
            "--cni-install=false",
            "--cni-exempt-namespaces",
            "a,b",
            "--cni-wait",
            "3s",
        ])
        .expect("parses");
        assert_eq!((agent.log_level, agent.log_format), (LogLevel::Debug, LogFormat::Json));
        let options = agent.options().expect("resolves");
        assert_eq!(
            options,
            AgentOptions {
                node: "n1".to_owned(),
                source: SourceOptions::Manifests("/m".into()),
                run_dir: "/r".into(),
                bpffs: "/b".into(),
                attach: AttachMode::Tc,
                forward: Forward::Direct,
                audit: true,
                flow_log: Some(FlowLogOptions {
                    target: FlowLogTarget::Stdout,
                    max_size: 1024,
                    max_files: 2
                }),
                flow_period: Duration::from_secs(120),
                health_addr: Some(([127, 0, 0, 1], 1).into()),
                cni: Some(install::Options {
                    directories: install::Directories {
                        conf: "/c".into(),
                        bin: "/p".into(),
                    },
                    install: false,
                    wait: Duration::from_secs(3),
                    exempt_namespaces: vec!["a".to_owned(), "b".to_owned()],
                }),
            }
        );
    }

    #[test]
    fn the_defaults_are_those_that_are_documented() {
        let options = parse(&["--node", "n", "--manifests", "/m", "--flow-log", "/f"])
            .expect("parses")
            .options()
            .expect("resolves");
        assert_eq!(
            (options.run_dir, options.bpffs),
            ("/run/weir".into(), "/sys/fs/bpf/weir".into())
        );
        assert_eq!(
            (options.attach, options.forward, options.audit),
            (AttachMode::Auto, Forward::Auto, false)
        );
        assert_eq!(options.flow_period, Duration::from_secs(60));
        assert_eq!(
            options.flow_log,
            Some(FlowLogOptions {
                target: FlowLogTarget::File("/f".into()),
                max_size: 50_000_000,
                max_files: 5
            })
        );
    }

    #[test]
    fn the_source_is_the_api_unless_a_directory_is_named() {
        let source = |args: &[&str]| {
            let agent = parse(&[&["--node", "n"], args].concat()).expect("parses");
            agent.options().expect("resolves").source
        };
        let api = |kubeconfig| {
            SourceOptions::Kubernetes(kubernetes::Options {
                kubeconfig,
                ..kubernetes::Options::default()
            })
        };
        assert_eq!(source(&[]), api(None));
        assert_eq!(source(&["--kubeconfig", "/k"]), api(Some("/k".into())));
        assert_eq!(source(&["--manifests", "/m"]), SourceOptions::Manifests("/m".into()));
        assert!(parse(&["--manifests", "/m", "--kubeconfig", "/k"]).is_err());
        assert!(parse(&["--manifests", "/m", "--daemonset", "a/b"]).is_err());
        assert!(parse(&["--daemonset", "weir"]).is_err());
        let SourceOptions::Kubernetes(options) = source(&["--daemonset", "kube-system/weir", "--node-condition"])
        else {
            panic!("the API");
        };
        assert_eq!(options.daemonset.expect("named").to_string(), "kube-system/weir");
        assert!(options.node_condition);
    }

    #[test]
    fn the_plugin_is_installed_where_both_directories_are_named() {
        let options = |args: &[&str]| parse(args).expect("parses").options().expect("resolves").cni;
        assert_eq!(options(&["--node", "n"]), None);
        let both = ["--node", "n", "--cni-conf-dir", "/c", "--cni-bin-dir", "/p"];
        let cni = options(&both).expect("both are named");
        assert_eq!(
            (cni.install, cni.wait, cni.exempt_namespaces),
            (true, plugin::WAIT, vec![plugin::EXEMPT.to_owned()])
        );
        let none = options(&[&both[..], &["--cni-exempt-namespaces", ""]].concat()).expect("both are named");
        assert_eq!(none.exempt_namespaces, Vec::<String>::new());
        assert!(parse(&["--cni-conf-dir", "/c"]).is_err());
        assert!(parse(&["--cni-bin-dir", "/p"]).is_err());
        assert!(parse(&["--cni-wait", "3s"]).is_err());
        assert!(
            parse(&["--cni-install=false"]).is_err(),
            "from where is it to be taken away?"
        );
    }

    #[test]
    fn a_wait_that_is_too_long_is_refused_and_not_cut() {
        let wait = |wait| parse(&["--cni-conf-dir", "/c", "--cni-bin-dir", "/p", "--cni-wait", wait]);
        assert_eq!(wait("10m").expect("parses").cni_wait, plugin::MAX_WAIT);
        for long in ["601s", "600001ms", "1h"] {
            let error = wait(long).expect_err(long).to_string();
            assert!(error.contains("600 s at most"), "{long}: {error}");
        }
    }

    #[test]
    fn limits_of_a_log_that_there_is_not_are_a_mistake() {
        assert!(parse(&["--manifests", "/m", "--flow-log-max-files", "2"]).is_err());
        assert!(parse(&["--manifests", "/m", "--flow-log", "-", "--flow-log-max-files", "0"]).is_err());
        for short in ["0s", "4999ms", "never"] {
            assert!(
                parse(&["--manifests", "/m", "--flow-period", short]).is_err(),
                "{short}"
            );
        }
    }
}
