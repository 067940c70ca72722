//! Calling CNI plugins as a container runtime does: a process with variables, a configuration on standard input, a
//! result or an error on standard output.

use std::{
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{NetNs, PodLink};
use crate::binary;

/// The name that the plugin is run under.
pub const PLUGIN: &str = "weir-cni";

/// What a plugin said.
#[derive(Clone, Debug)]
pub struct Answer {
    pub success: bool,
    /// Standard output; null where it was empty.
    pub output: Value,
    /// Standard error.
    pub notes: String,
    pub took: Duration,
}

impl Answer {
    /// The code of an error.
    #[must_use]
    pub fn code(&self) -> Option<u64> {
        self.output.get("code")?.as_u64()
    }

    /// The plugin has succeeded.
    ///
    /// # Errors
    /// It has not.
    pub fn succeeded(&self) -> Result<()> {
        ensure!(self.success, "the plugin says {} ({})", self.output, self.notes.trim());
        Ok(())
    }

    /// The plugin has failed with this code.
    ///
    /// # Errors
    /// It has not.
    pub fn failed(&self, code: u64) -> Result<()> {
        ensure!(
            !self.success && self.code() == Some(code),
            "not the error {code}: {} ({})",
            self.output,
            self.notes.trim()
        );
        for field in ["cniVersion", "msg", "details"] {
            let text = self.output.get(field).and_then(Value::as_str).unwrap_or_default();
            ensure!(!text.is_empty(), "the error has no {field}: {}", self.output);
        }
        Ok(())
    }
}

/// One call of a plugin.
#[derive(Clone, Debug)]
pub struct Call {
    /// None: the weir binary, under the plugin's name.
    pub program: Option<PathBuf>,
    /// The runtime's network namespace. None: that of this process.
    pub node: Option<Arc<NetNs>>,
    pub variables: Vec<(String, String)>,
    pub input: Vec<u8>,
}

impl Call {
    /// A call with a configuration and without an attachment: STATUS, GC, VERSION.
    #[must_use]
    pub fn new(command: &str, configuration: &Value) -> Self {
        Self {
            program: None,
            node: None,
            variables: vec![("CNI_COMMAND".to_owned(), command.to_owned())],
            input: configuration.to_string().into_bytes(),
        }
    }

    /// About the sandbox of a pod.
    #[must_use]
    pub fn pod(mut self, pod: &str, container: &str, netns: &str) -> Self {
        let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
        self.set("CNI_CONTAINERID", container);
        self.set("CNI_NETNS", netns);
        self.set("CNI_IFNAME", "eth0");
        self.set(
            "CNI_ARGS",
            &format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container}"),
        );
        self
    }

    /// Sets a variable, or replaces it.
    pub fn set(&mut self, name: &str, value: &str) {
        self.variables.retain(|(known, _)| known != name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    /// Runs in this namespace.
    #[must_use]
    pub fn on(mut self, node: &Arc<NetNs>) -> Self {
        self.node = Some(Arc::clone(node));
        self
    }

    /// Runs this plugin instead.
    #[must_use]
    pub fn of(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// Starts the plugin.
    ///
    /// # Errors
    /// If there is no such program.
    pub fn start(&self) -> Result<Running> {
        let mut command = match &self.program {
            Some(program) => Command::new(program),
            None => {
                let mut command = Command::new(binary::weir()?);
                // As libcni runs plugins: by their path, and without arguments.
                command.arg0(format!("/opt/cni/bin/{PLUGIN}"));
                command
            }
        };
        command
            .env_clear()
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(node) = &self.node {
            node.command(&mut command)?;
        }
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| format!("run {command:?}"))?;
        let mut input = child.stdin.take().context("standard input")?;
        // A plugin that fails before it has read everything closes its end.
        let _ = input.write_all(&self.input);
        drop(input);
        Ok(Running { child, began })
    }

    /// Runs the plugin to its end.
    ///
    /// # Errors
    /// If it cannot be run, or says something that is no JSON.
    pub fn run(&self) -> Result<Answer> {
        self.start()?.end()
    }
}

/// A plugin that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    began: Instant,
}

impl Running {
    /// True: it has ended.
    ///
    /// # Errors
    /// As of `waitpid`.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it says something that is no JSON.
    pub fn end(self) -> Result<Answer> {
        let output = self.child.wait_with_output()?;
        let took = self.began.elapsed();
        let text = String::from_utf8(output.stdout).context("the plugin's output")?;
        Ok(Answer {
            success: output.status.success(),
            output: if text.trim().is_empty() {
                Value::Null
            } else {
                serde_json::from_str(&text).with_context(|| format!("the plugin said {text:?}"))?
            },
            notes: String::from_utf8_lossy(&output.stderr).into_owned(),
            took,
        })
    }
}

/// Our entry of a network configuration, as a runtime hands it over after the plugins before it.
#[must_use]
pub fn configuration(version: &str, run_dir: &Path, result: Option<&Value>) -> Value {
    let mut entry = json!({
        "cniVersion": version,
        "name": "lab",
        "type": PLUGIN,
        "runDir": run_dir,
        "waitSeconds": 30,
    });
    if let Some(result) = result {
        entry["prevResult"] = result.clone();
    }
    entry
}

/// The result of the plugins before ours for a pod that the lab has linked.
#[must_use]
pub fn result(version: &str, pod: &PodLink) -> Value {
    let ips: Vec<Value> = pod
        .addresses
        .iter()
        .map(|address| {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let mut entry = json!({"address": format!("{address}/{bits}"), "interface": 1});
            // Versions before 1.0.0 say the family.
            if version.starts_with("0.") {
                entry["version"] = json!(if address.is_ipv4() { "4" } else { "6" });
            }
            entry
        })
        .collect();
    json!({
        "cniVersion": version,
        "interfaces": [
            {"name": pod.interface, "mac": "ee:ee:ee:ee:ee:ee"},
            {"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": pod.netns.path()},
        ],
        "ips": ips,
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.96.0.10"], "options": ["ndots:5"]},
    })
}

/// A network configuration list, run as a runtime does: plugin after plugin, each with the result of the one before.
#[derive(Debug)]
pub struct Chain {
    list: Value,
    /// Where plugins are looked for.
    directories: Vec<PathBuf>,
    node: Arc<NetNs>,
}

impl Chain {
    /// Reads a list.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(file: &Path, directories: &[&Path], node: &Arc<NetNs>) -> Result<Self> {
        let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
        Ok(Self {
            list: serde_json::from_slice(&text).with_context(|| file.display().to_string())?,
            directories: directories.iter().map(|directory| (*directory).to_owned()).collect(),
            node: Arc::clone(node),
        })
    }

    fn plugins(&self) -> Result<Vec<&Value>> {
        Ok(self.list["plugins"]
            .as_array()
            .context("a list of plugins")?
            .iter()
            .collect())
    }

    fn call(&self, command: &str, plugin: &Value, result: Option<&Value>, template: &Call) -> Result<Call> {
        let mut configuration = plugin.clone();
        configuration["cniVersion"] = self.list["cniVersion"].clone();
        configuration["name"] = self.list["name"].clone();
        if let Some(result) = result {
            configuration["prevResult"] = result.clone();
        }
        let name = plugin["type"].as_str().context("a type")?;
        let program = self
            .directories
            .iter()
            .map(|directory| directory.join(name))
            .find(|program| program.is_file())
            .with_context(|| format!("no plugin {name} in {:?}", self.directories))?;
        let mut call = template.clone().of(&program).on(&self.node);
        call.input = configuration.to_string().into_bytes();
        call.set("CNI_COMMAND", command);
        let directories: Vec<String> = self.directories.iter().map(|path| path.display().to_string()).collect();
        call.set("CNI_PATH", &directories.join(":"));
        Ok(call)
    }

    /// ADD, to the end or to the first error. `sandbox`: a call about the pod.
    ///
    /// # Errors
    /// If a plugin cannot be run.
    pub fn add(&self, sandbox: &Call) -> Result<Answer> {
        let mut last: Option<Answer> = None;
        for plugin in self.plugins()? {
            let result = last.as_ref().map(|answer| &answer.output);
            let answer = self.call("ADD", plugin, result, sandbox)?.run()?;
            if !answer.success {
                return Ok(answer);
            }
            last = Some(answer);
        }
        last.context("a list without plugins")
    }

    /// DEL, in reverse. `result`: of the last ADD.
    ///
    /// # Errors
    /// If a plugin cannot be run, or fails.
    pub fn del(&self, sandbox: &Call, result: &Value) -> Result<()> {
        for plugin in self.plugins()?.into_iter().rev() {
            self.call("DEL", plugin, Some(result), sandbox)?.run()?.succeeded()?;
        }
        Ok(())
    }
}
