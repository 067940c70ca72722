//! The process that the container runtime runs (CNI spec 0.3.0 to 1.1.0).
//!
//! | file | what |
//! |---|---|
//! | `environment` | what the runtime says through variables |
//! | `configuration` | what it says on standard input |
//! | `link` | the host's side of the container's interface |
//! | `ask` | a question to the agent |
//! | `error` | how a command can fail, with the codes of the specification |
//!
//! It starts no threads and no runtime: it adds to the start of every pod. An agent that is not there is waited for;
//! then ADD fails and the kubelet tries again, but for pods of exempt namespaces, which start without policy (at once
//! where there is no agent, after a moment where there is one that cannot attach them) and are taken over by the agent
//! later. DEL and GC never fail for lack of an agent: what it has missed it finds out by itself.

mod ask;
mod configuration;
mod environment;
mod error;
mod link;

use std::{
    ffi::OsStr,
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

pub use self::configuration::{EXEMPT, MAX_WAIT, VERSIONS, WAIT};
use self::{
    ask::{Unanswered, ask},
    configuration::{Configuration, LATEST},
    environment::{Command, Environment},
    error::{CniError, Code},
};
use super::{
    PLUGIN,
    attachment::{Attachment, AttachmentId, CniAnswer, CniRequest},
};

/// Longest configuration, bytes. Results of plugins are some kilobytes.
const MAX_INPUT: u64 = 4 << 20;

/// How soon an agent that is not there is looked for again, and one that answers "later" is asked again at first:
const RETRY: Duration = Duration::from_millis(25);
/// then less and less often, until this.
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// How long a pod of an exempt namespace waits at most, for an agent that is there but cannot attach it: such pods are what a
/// node comes up with, and the agent may be waiting for one of them. A longer `waitSeconds` is meant for the others, and
/// can exceed what the kubelet gives its runtime (2 minutes), which would then give up before the pod is let through.
const EXEMPT_WAIT: Duration = Duration::from_secs(10);

/// How long DEL, GC and STATUS wait for an answer. None of them waits for an agent to come.
const SHORT: Duration = Duration::from_secs(2);

/// Whether this process was started under the plugin's name: runtimes give no arguments.
#[must_use]
pub fn is_called(program: Option<&OsStr>) -> bool {
    program.and_then(|program| Path::new(program).file_name()) == Some(OsStr::new(PLUGIN))
}

/// Does what the runtime asks for. Exit code 0: done; 1: an error, as JSON on standard output.
#[must_use]
pub fn main() -> ExitCode {
    let environment: Environment = std::env::vars_os().collect();
    let mut version = LATEST.to_owned();
    let output = match run(&environment, &mut version) {
        Ok(output) => output.map(|output| (output, ExitCode::SUCCESS)),
        Err(error) => Some((error.json(&version), ExitCode::FAILURE)),
    };
    let Some((output, code)) = output else {
        return ExitCode::SUCCESS;
    };
    match writeln!(io::stdout(), "{output}") {
        Ok(()) => code,
        // Whoever cannot read the result must not take it for a success.
        Err(_) => ExitCode::FAILURE,
    }
}

/// `version`: set as soon as it is known, for errors.
fn run(environment: &Environment, version: &mut String) -> Result<Option<String>, CniError> {
    let Some(command) = environment.command()? else {
        note(format_args!(
            "{PLUGIN} {}: a chained CNI plugin, run by container runtimes. CNI protocol versions supported: {}",
            env!("CARGO_PKG_VERSION"),
            VERSIONS.join(", ")
        ));
        return Ok(None);
    };
    let mut input = Vec::new();
    io::stdin().take(MAX_INPUT).read_to_end(&mut input).map_err(|error| {
        CniError::new(
            Code::Io,
            "cannot read the network configuration",
            format!("standard input: {error}"),
        )
    })?;
    if let Some(said) = version_of(&input) {
        *version = said;
    }
    if command == Command::Version {
        return Ok(Some(
            json!({"cniVersion": *version, "supportedVersions": VERSIONS}).to_string(),
        ));
    }
    let configuration = Configuration::parse(&input)?;
    let since = |first: &str, name: &str| {
        if configuration.speaks(first) {
            return Ok(());
        }
        Err(CniError::new(
            Code::IncompatibleVersion,
            format!("there is no {name} in this version"),
            format!(
                "the configuration is of version {}; {name} came with {first}",
                configuration.cni_version
            ),
        ))
    };
    match command {
        Command::Add => {
            add(&configuration, environment)?;
            return Ok(Some(configuration.output().to_string()));
        }
        Command::Del => del(&configuration, environment.attachment()?),
        Command::Check => {
            since("0.4.0", "CHECK")?;
            check(&configuration, environment)?;
        }
        Command::Gc => {
            since("1.1.0", "GC")?;
            gc(&configuration);
        }
        Command::Status => {
            since("1.1.0", "STATUS")?;
            status(&configuration)?;
        }
        Command::Version => {}
    }
    Ok(None)
}

/// The version that the runtime speaks, wherever it can be read.
fn version_of(input: &[u8]) -> Option<String> {
    let value: serde_json::Value = serde_json::from_slice(input).ok()?;
    let version = value.get("cniVersion")?.as_str()?;
    Some(version.to_owned()).filter(|version| !version.is_empty())
}

/// Everything that policy demands is enforced when this returns; or else the pod is of an exempt namespace, or none of
/// Kubernetes'.
fn add(configuration: &Configuration, environment: &Environment) -> Result<(), CniError> {
    let id = environment.attachment()?;
    let netns = environment.netns()?;
    let pod = environment.pod()?;
    let result = configuration.result()?;
    let Some(pod) = pod else {
        note(format_args!(
            "{id} is of no pod (CNI_ARGS names none): no policy applies to it"
        ));
        return Ok(());
    };
    let enforced = (|| {
        let addresses = result.addresses(&id.interface)?;
        let (host, netns) = link::host_side(&netns, &id.interface, result.host_interfaces())?;
        let attachment = Attachment {
            id,
            network: configuration.name.clone(),
            pod: pod.clone(),
            host,
            addresses,
        };
        let exempt = configuration.is_exempt(&pod.namespace);
        persist(configuration, exempt, |left| CniRequest::Add {
            attachment: attachment.clone(),
            netns,
            timeout_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        })
    })();
    match enforced {
        Err(error) if configuration.is_exempt(&pod.namespace) => {
            note(format_args!(
                "pod {pod} starts without policy, as its namespace is exempt: {error}"
            ));
            Ok(())
        }
        enforced => enforced,
    }
}

fn check(configuration: &Configuration, environment: &Environment) -> Result<(), CniError> {
    let id = environment.attachment()?;
    let pod = environment.pod()?;
    configuration.result()?;
    let Some(pod) = pod else { return Ok(()) };
    let exempt = configuration.is_exempt(&pod.namespace);
    let checked = persist(configuration, exempt, |_| CniRequest::Check {
        id: id.clone(),
        pod: pod.clone(),
    });
    match checked {
        Err(_) if exempt => Ok(()),
        checked => checked,
    }
}

/// Asks until the answer is final, as long as the configuration allows. `exempt`: without an agent there is nothing to
/// wait for, and not for long with one.
fn persist(
    configuration: &Configuration,
    exempt: bool,
    request: impl Fn(Duration) -> CniRequest,
) -> Result<(), CniError> {
    let wait = if exempt {
        configuration.wait().min(EXEMPT_WAIT)
    } else {
        configuration.wait()
    };
    let later = |reason: &str| later(configuration, wait, reason);
    let deadline = Instant::now() + wait;
    let mut pause = RETRY;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = ask(&configuration.run_dir, request(left), deadline);
        let reason = match answer {
            Ok(CniAnswer::Done) => return Ok(()),
            Ok(CniAnswer::Refused { reason, remedy }) => {
                return Err(CniError::new(Code::NotEnforced, reason, remedy));
            }
            Ok(CniAnswer::Later { reason }) => {
                pause = LONGEST_RETRY.min(2 * pause);
                reason
            }
            Err(Unanswered::NoAgent(reason)) if exempt => return Err(later(&reason)),
            Err(unanswered) => unanswered.reason().to_owned(),
        };
        if Instant::now() + pause >= deadline {
            return Err(later(&reason));
        }
        thread::sleep(pause);
    }
}

fn later(configuration: &Configuration, wait: Duration, reason: &str) -> CniError {
    CniError::new(
        Code::TryAgainLater,
        "the Weir agent does not enforce the pod's policy yet",
        format!(
            "waited up to {} s (waitSeconds) for it with run directory {}: {reason}; see the weir pod of this node",
            wait.as_secs_f64(),
            configuration.run_dir.display()
        ),
    )
}

fn del(configuration: &Configuration, id: AttachmentId) {
    tell(configuration, CniRequest::Del { id });
}

fn gc(configuration: &Configuration) {
    if let Some(valid) = configuration.valid_attachments() {
        let network = configuration.name.clone();
        tell(configuration, CniRequest::Gc { network, valid });
    }
}

/// Tells the agent, if it is there.
fn tell(configuration: &Configuration, request: CniRequest) {
    let told = ask(&configuration.run_dir, request, Instant::now() + SHORT);
    if let Err(unanswered) = told {
        note(format_args!("not told to the agent: {}", unanswered.reason()));
    }
}

fn status(configuration: &Configuration) -> Result<(), CniError> {
    if !configuration.status_needs_agent {
        return Ok(());
    }
    let deadline = Instant::now() + configuration.wait().min(SHORT);
    let reason = match ask(&configuration.run_dir, CniRequest::Status, deadline) {
        Ok(CniAnswer::Done) => return Ok(()),
        Ok(CniAnswer::Later { reason } | CniAnswer::Refused { reason, .. }) => reason,
        Err(unanswered) => unanswered.reason().to_owned(),
    };
    Err(CniError::new(
        Code::NotAvailable,
        "the Weir agent cannot attach pods",
        reason,
    ))
}

/// For the runtime's log, which takes standard error in.
fn note(text: std::fmt::Arguments<'_>) {
    // Where standard error is closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "{text}");
}
