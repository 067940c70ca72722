//! What the runtime says through variables (CNI spec, section 2, "Parameters").

use std::{collections::BTreeMap, ffi::OsString, path::PathBuf};

use super::error::{CniError, Code};
use crate::cni::attachment::{AttachmentId, PodName};

/// Commands of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// The variables of this process, or of a test.
#[derive(Debug, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl FromIterator<(OsString, OsString)> for Environment {
    fn from_iter<T: IntoIterator<Item = (OsString, OsString)>>(variables: T) -> Self {
        Self(variables.into_iter().collect())
    }
}

impl Environment {
    /// A variable; None: it is not set, or empty.
    fn get(&self, name: &str) -> Result<Option<&str>, CniError> {
        let Some(value) = self.0.get(std::ffi::OsStr::new(name)) else {
            return Ok(None);
        };
        match value.to_str() {
            Some(text) => Ok(Some(text).filter(|text| !text.is_empty())),
            None => Err(invalid(format!("{name} is no UTF-8"))),
        }
    }

    fn required(&self, name: &str) -> Result<&str, CniError> {
        self.get(name)?.ok_or_else(|| invalid(format!("{name} is not set")))
    }

    /// None: this is no call of a runtime.
    ///
    /// # Errors
    /// An unknown command.
    pub fn command(&self) -> Result<Option<Command>, CniError> {
        Ok(Some(match self.get("CNI_COMMAND")? {
            None => return Ok(None),
            Some("ADD") => Command::Add,
            Some("DEL") => Command::Del,
            Some("CHECK") => Command::Check,
            Some("GC") => Command::Gc,
            Some("STATUS") => Command::Status,
            Some("VERSION") => Command::Version,
            Some(other) => return Err(invalid(format!("CNI_COMMAND={other} is no command of the protocol"))),
        }))
    }

    /// Which attachment is meant.
    ///
    /// # Errors
    /// It is not named, or its name is none.
    pub fn attachment(&self) -> Result<AttachmentId, CniError> {
        let id = AttachmentId {
            container: self.required("CNI_CONTAINERID")?.to_owned(),
            interface: self.required("CNI_IFNAME")?.to_owned(),
        };
        if id.is_valid() {
            return Ok(id);
        }
        Err(invalid(format!(
            "CNI_CONTAINERID={:?} with CNI_IFNAME={:?} names no container's interface",
            id.container, id.interface
        )))
    }

    /// Path of the container's network namespace.
    ///
    /// # Errors
    /// It is not named.
    pub fn netns(&self) -> Result<PathBuf, CniError> {
        self.required("CNI_NETNS").map(PathBuf::from)
    }

    /// The pod that the container is the sandbox of. None: it is not Kubernetes' (no `K8S_POD_NAME` in `CNI_ARGS`).
    ///
    /// # Errors
    /// A name without a namespace, arguments that are none.
    pub fn pod(&self) -> Result<Option<PodName>, CniError> {
        let mut arguments = BTreeMap::new();
        for argument in self
            .get("CNI_ARGS")?
            .unwrap_or_default()
            .split(';')
            .filter(|argument| !argument.is_empty())
        {
            let (key, value) = argument
                .split_once('=')
                .ok_or_else(|| invalid(format!("CNI_ARGS: {argument:?} is no KEY=VALUE")))?;
            arguments.insert(key, value);
        }
        let get = |key: &str| arguments.get(key).copied().filter(|value| !value.is_empty());
        match (get("K8S_POD_NAMESPACE"), get("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => Ok(Some(PodName {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: get("K8S_POD_UID").map(str::to_owned),
            })),
            (_, None) => Ok(None),
            (None, Some(name)) => Err(invalid(format!(
                "CNI_ARGS: K8S_POD_NAME={name} without K8S_POD_NAMESPACE"
            ))),
        }
    }
}

fn invalid(details: String) -> CniError {
    CniError::new(Code::InvalidEnvironment, "invalid environment variables", details)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables
            .iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect()
    }

    #[test]
    fn a_pod_is_what_the_kubelet_names() {
        let pod = |arguments: &str| environment(&[("CNI_ARGS", arguments)]).pod();
        let known = PodName {
            namespace: "x".to_owned(),
            name: "a".to_owned(),
            uid: Some("u".to_owned()),
        };
        assert_eq!(
            pod("IgnoreUnknown=1;K8S_POD_NAMESPACE=x;K8S_POD_NAME=a;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u"),
            Ok(Some(known.clone()))
        );
        let without_uid = PodName { uid: None, ..known };
        assert_eq!(
            pod("K8S_POD_NAME=a;K8S_POD_NAMESPACE=x;K8S_POD_UID=;"),
            Ok(Some(without_uid))
        );
        assert_eq!(pod(""), Ok(None));
        assert_eq!(pod("IgnoreUnknown=1"), Ok(None));
        assert!(pod("K8S_POD_NAME=a").is_err());
        assert!(pod("nonsense").is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = environment(&[("CNI_CONTAINERID", "c")])
            .attachment()
            .expect_err("no interface");
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.details.contains("CNI_IFNAME"), "{error}");
        assert!(
            environment(&[("CNI_CONTAINERID", "../c"), ("CNI_IFNAME", "eth0")])
                .attachment()
                .is_err()
        );
        assert_eq!(environment(&[]).command(), Ok(None));
        assert!(environment(&[("CNI_COMMAND", "add")]).command().is_err());
    }
}
