//! What the runtime says on standard input: our entry of the network configuration, with what it adds.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::error::{CniError, Code};
use crate::cni::attachment::AttachmentId;

/// Versions of the specification that we speak: all that have chains. Which of them a network uses is up to its
/// configuration. (0.3.1, which has neither CHECK nor STATUS nor GC, is what kind, flannel and Calico write.)
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// For answers where the runtime named none that can be read.
pub const LATEST: &str = "1.1.0";

/// How long an ADD waits for an agent, where the entry does not say. Kubelet tries again after an error.
pub const WAIT: Duration = Duration::from_secs(10);

/// The longest time that may be named.
pub const MAX_WAIT: Duration = Duration::from_secs(600);

/// Pods of these namespaces start without an agent, where the entry does not say.
pub const EXEMPT: &str = "kube-system";

/// Our entry. Fields that others put there are none of ours.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Configuration {
    #[serde(default)]
    pub cni_version: String,
    #[serde(default)]
    pub name: String,
    /// What the plugins before us have made.
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// The agent's run directory.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// How long to wait for an agent, seconds.
    #[serde(default = "default_wait")]
    pub wait_seconds: f64,
    /// Pods of these namespaces start whether an agent is there or not.
    #[serde(default = "default_exempt")]
    pub exempt_namespaces: Vec<String>,
    /// `STATUS` fails while no agent is there. The kubelet then takes the node for not ready, and all its pods too.
    #[serde(default = "default_status")]
    pub status_needs_agent: bool,
    /// `GC`: what is still there.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Option<Vec<ValidAttachment>>,
    /// What an earlier text of the specification called it; libcni gives both.
    #[serde(default, rename = "cni.dev/attachments")]
    attachments: Option<Vec<ValidAttachment>>,
}

#[derive(Clone, Debug, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

fn default_run_dir() -> PathBuf {
    crate::cli::args::DEFAULT_RUN_DIR.into()
}

fn default_wait() -> f64 {
    WAIT.as_secs_f64()
}

fn default_exempt() -> Vec<String> {
    vec![EXEMPT.to_owned()]
}

fn default_status() -> bool {
    true
}

impl Configuration {
    /// Reads an entry.
    ///
    /// # Errors
    /// No JSON, no configuration, a version that we do not speak.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        // By way of an object, as serde would take a list of our fields' values for them.
        let configuration: Self = serde_json::from_slice(text)
            .and_then(|fields| serde_json::from_value(Value::Object(fields)))
            .map_err(|error| {
                CniError::new(
                    Code::Decoding,
                    "cannot read the network configuration",
                    format!("standard input: {error}"),
                )
            })?;
        let version = &configuration.cni_version;
        if !VERSIONS.contains(&version.as_str()) {
            return Err(CniError::new(
                Code::IncompatibleVersion,
                "incompatible CNI versions",
                format!(
                    "the configuration is of version {version:?}; weir-cni speaks {}",
                    VERSIONS.join(", ")
                ),
            ));
        }
        if configuration.name.is_empty() {
            return Err(invalid("the network has no name"));
        }
        if !configuration.run_dir.is_absolute() {
            return Err(invalid(format!(
                "runDir {:?} is no absolute path",
                configuration.run_dir.display()
            )));
        }
        let wait = configuration.wait_seconds;
        if !(0.0..=MAX_WAIT.as_secs_f64()).contains(&wait) {
            return Err(invalid(format!(
                "waitSeconds {wait} is not between 0 and {}",
                MAX_WAIT.as_secs()
            )));
        }
        Ok(configuration)
    }

    /// How long to wait for an agent.
    #[must_use]
    pub fn wait(&self) -> Duration {
        Duration::try_from_secs_f64(self.wait_seconds).unwrap_or(WAIT)
    }

    #[must_use]
    pub fn is_exempt(&self, namespace: &str) -> bool {
        self.exempt_namespaces.iter().any(|exempt| exempt == namespace)
    }

    /// The configuration is of this version or a later one. (They compare as texts.)
    #[must_use]
    pub fn speaks(&self, version: &str) -> bool {
        self.cni_version.as_str() >= version
    }

    /// What the plugins before us have made.
    ///
    /// # Errors
    /// There is none.
    pub fn result(&self) -> Result<PrevResult<'_>, CniError> {
        match &self.prev_result {
            Some(result) if result.is_object() => Ok(PrevResult(result)),
            _ => Err(invalid(
                "there is no prevResult: weir-cni makes no interfaces, it is chained after a plugin that does",
            )),
        }
    }

    /// The result as we give it through.
    #[must_use]
    pub fn output(&self) -> Value {
        let mut result = self
            .prev_result
            .clone()
            .unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        if let Value::Object(fields) = &mut result {
            fields.insert("cniVersion".to_owned(), self.cni_version.clone().into());
        }
        result
    }

    /// Attachments that are still there. None: the runtime does not say.
    #[must_use]
    pub fn valid_attachments(&self) -> Option<Vec<AttachmentId>> {
        let list = self.valid_attachments.as_ref().or(self.attachments.as_ref())?;
        Some(
            list.iter()
                .map(|attachment| AttachmentId {
                    container: attachment.container_id.clone(),
                    interface: attachment.ifname.clone(),
                })
                .collect(),
        )
    }
}

fn invalid(details: impl Into<String>) -> CniError {
    CniError::new(Code::InvalidConfiguration, "invalid network configuration", details)
}

/// A result of the plugins before us (CNI spec, section 5, "ADD Success"). Read leniently: it is not ours to judge.
#[derive(Clone, Copy, Debug)]
pub struct PrevResult<'a>(&'a Value);

impl<'a> PrevResult<'a> {
    fn interfaces(self) -> impl Iterator<Item = &'a Value> {
        self.0.get("interfaces").and_then(Value::as_array).into_iter().flatten()
    }

    /// Addresses on the container's interface of this name: those that the result gives to it, or to none in particular.
    ///
    /// # Errors
    /// An address that is none; none at all.
    pub fn addresses(self, interface: &str) -> Result<Vec<IpAddr>, CniError> {
        let mut addresses = Vec::new();
        for entry in self.0.get("ips").and_then(Value::as_array).into_iter().flatten() {
            let of = entry.get("interface").and_then(Value::as_u64);
            let ours = match of.and_then(|index| self.interfaces().nth(usize::try_from(index).unwrap_or(usize::MAX))) {
                Some(of) => in_sandbox(of) && of.get("name").and_then(Value::as_str) == Some(interface),
                None => true,
            };
            if !ours {
                continue;
            }
            let text = entry.get("address").and_then(Value::as_str).unwrap_or_default();
            let address = text
                .parse::<IpNet>()
                .map(|net| net.addr())
                .or_else(|_| text.parse::<IpAddr>());
            match address {
                Ok(address) => addresses.push(address.to_canonical()),
                Err(_) => return Err(invalid(format!("prevResult: {text:?} is no address in CIDR notation"))),
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(invalid(format!("prevResult names no address of {interface}")));
        }
        Ok(addresses)
    }

    /// Names of the interfaces that the result has on the host.
    pub fn host_interfaces(self) -> impl Iterator<Item = &'a str> {
        self.interfaces()
            .filter(|interface| !in_sandbox(interface))
            .filter_map(|interface| interface.get("name")?.as_str())
    }
}

fn in_sandbox(interface: &Value) -> bool {
    interface
        .get("sandbox")
        .and_then(Value::as_str)
        .is_some_and(|sandbox| !sandbox.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<Configuration, CniError> {
        Configuration::parse(value.to_string().as_bytes())
    }

    #[test]
    fn the_defaults_are_those_that_are_documented() {
        let configuration = parse(&json!({"cniVersion": "1.0.0", "name": "n", "type": "weir-cni"})).expect("parses");
        assert_eq!(configuration.run_dir, PathBuf::from("/run/weir"));
        assert_eq!(configuration.wait(), Duration::from_secs(10));
        assert!(configuration.is_exempt("kube-system") && !configuration.is_exempt("default"));
        assert!(configuration.status_needs_agent);
        assert_eq!(configuration.valid_attachments(), None);
        assert!(configuration.speaks("0.4.0") && !configuration.speaks("1.1.0"));
    }

    #[test]
    fn what_cannot_be_worked_with_has_the_code_of_the_specification() {
        let code = |value: &Value| parse(value).map(|_| ()).map_err(|error| error.code);
        assert_eq!(Configuration::parse(b"{").expect_err("no JSON").code, Code::Decoding);
        assert_eq!(code(&json!({"cniVersion": 1, "name": "n"})), Err(Code::Decoding));
        for version in ["", "0.2.0", "0.5.0", "2.0.0"] {
            let value = json!({"cniVersion": version, "name": "n"});
            assert_eq!(code(&value), Err(Code::IncompatibleVersion), "{version}");
        }
        let with = |field: &str, value: Value| {
            let mut entry = json!({"cniVersion": "1.0.0", "name": "n"});
            entry[field] = value;
            entry
        };
        assert_eq!(code(&with("name", json!(""))), Err(Code::InvalidConfiguration));
        assert_eq!(code(&with("runDir", json!("run"))), Err(Code::InvalidConfiguration));
        assert_eq!(code(&with("waitSeconds", json!(-1))), Err(Code::InvalidConfiguration));
        assert_eq!(code(&with("waitSeconds", json!(0.5))), Ok(()));
        for result in [json!(null), json!([])] {
            let configuration = parse(&with("prevResult", result)).expect("parses");
            let error = configuration.result().expect_err("no result");
            assert_eq!(error.code, Code::InvalidConfiguration);
        }
    }

    #[test]
    fn addresses_are_those_of_the_interface_in_the_sandbox() {
        let addresses = |result: &Value| {
            let configuration =
                parse(&json!({"cniVersion": "1.0.0", "name": "n", "prevResult": result})).expect("parses");
            configuration.result().expect("is there").addresses("eth0")
        };
        // As the AWS VPC CNI says it: the host's side, the pod's, and a made-up interface that carries a number.
        let aws = json!({
            "interfaces": [
                {"name": "eni1"},
                {"name": "eth0", "sandbox": "/run/netns/p"},
                {"name": "dummy1", "mac": "0", "sandbox": "0"},
            ],
            "ips": [{"version": "4", "address": "10.0.0.7/32", "interface": 1}, {"address": "10.9.9.9/32", "interface": 0}],
        });
        assert_eq!(addresses(&aws), Ok(vec![IpAddr::from([10, 0, 0, 7])]));
        let unassigned = json!({"ips": [{"address": "fd00::2/64"}, {"address": "10.0.0.2/24"}]});
        assert_eq!(
            addresses(&unassigned),
            Ok(vec![IpAddr::from([10, 0, 0, 2]), "fd00::2".parse().expect("literal")])
        );
        for broken in [
            json!({}),
            json!({"ips": []}),
            json!({"ips": [{"address": "10.0.0/24"}]}),
        ] {
            let error = addresses(&broken).expect_err("no address");
            assert_eq!(error.code, Code::InvalidConfiguration, "{broken}");
        }
    }

    #[test]
    fn both_names_of_valid_attachments_are_understood() {
        let list = json!([{"containerID": "a", "ifname": "eth0"}]);
        for fields in [
            json!({"cni.dev/valid-attachments": list}),
            json!({"cni.dev/attachments": list}),
            json!({"cni.dev/valid-attachments": list, "cni.dev/attachments": list}),
        ] {
            let mut value = json!({"cniVersion": "1.1.0", "name": "n"});
            for (key, list) in fields.as_object().expect("an object") {
                value[key] = list.clone();
            }
            let valid = parse(&value).expect("parses").valid_attachments().expect("is said");
            assert_eq!(valid.len(), 1, "{fields}");
            assert_eq!(
                (valid[0].container.as_str(), valid[0].interface.as_str()),
                ("a", "eth0")
            );
        }
    }
}
