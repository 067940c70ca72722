//! The Helm chart, rendered by Helm itself.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::binaries::{Binaries, Tool};

/// The version of Kubernetes that is rendered for, where a test does not say.
pub const KUBERNETES: &str = "1.34.0";

/// The chart of this repository.
pub struct Chart {
    helm: PathBuf,
}

impl Chart {
    /// # Errors
    /// If Helm cannot be built.
    pub fn new() -> Result<Self> {
        Ok(Self {
            helm: Binaries::ensure(&[Tool::Helm])?.path(Tool::Helm),
        })
    }

    /// The objects that it makes with these values, hooks included.
    ///
    /// # Errors
    /// What Helm says: also of values that the chart's schema refuses.
    pub fn render(&self, values: &Value) -> Result<Vec<Value>> {
        self.render_for(KUBERNETES, values)
    }

    /// The same for a certain version of Kubernetes.
    ///
    /// # Errors
    /// As of [`Chart::render`].
    pub fn render_for(&self, kubernetes: &str, values: &Value) -> Result<Vec<Value>> {
        let text = self.template(kubernetes, values, &[])?;
        serde_saphyr::from_multiple(&text).context("what Helm renders is no YAML")
    }

    /// The text of `deploy/kustomize/weir.yaml`: what the chart makes with its defaults, without what is Helm's.
    ///
    /// # Errors
    /// What Helm says.
    pub fn kustomize(&self) -> Result<String> {
        let text = self.template(KUBERNETES, &Value::Null, &["--no-hooks"])?;
        let helms = ["# Source:", "app.kubernetes.io/managed-by: Helm", "helm.sh/chart:"];
        let kept = text
            .lines()
            .filter(|line| !helms.iter().any(|start| line.trim_start().starts_with(start)));
        let mut out = "# Made from the chart by `cargo xtask kustomize`.\n".to_owned();
        for line in kept {
            out.push_str(line.trim_end());
            out.push('\n');
        }
        Ok(out)
    }

    fn template(&self, kubernetes: &str, values: &Value, options: &[&str]) -> Result<String> {
        let mut helm = Command::new(&self.helm);
        helm.args(["template", "weir", "deploy/helm/weir", "--namespace", "kube-system"])
            .args(["--kube-version", kubernetes, "--values", "-"])
            .args(options)
            .current_dir(root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = helm.spawn().context("start helm")?;
        let mut input = child.stdin.take().context("helm has no standard input")?;
        // JSON is YAML. Less than a pipe holds.
        if !values.is_null() {
            input.write_all(values.to_string().as_bytes())?;
        }
        drop(input);
        let output = child.wait_with_output().context("wait for helm")?;
        ensure!(
            output.status.success(),
            "helm template: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        String::from_utf8(output.stdout).context("what Helm renders is no text")
    }
}

/// The repository that this program was built from.
#[must_use]
pub fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}
