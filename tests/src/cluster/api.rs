//! The API server as tests talk to it: objects as JSON, one call after the other.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};

/// A client with its own run time, so that tests need none.
pub struct Api {
    runtime: Runtime,
    client: Client,
}

impl Api {
    /// The cluster of a kubeconfig's current context. Connects with the first call.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn new(kubeconfig: &Path) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("api-client")
            .enable_all()
            .build()
            .context("start the client's run time")?;
        let client = runtime.block_on(client(kubeconfig))?;
        Ok(Self { runtime, client })
    }

    /// The same without a thread of its own: a call does everything on the caller's, which is the only one to be woken when the
    /// answer comes. For measurements.
    ///
    /// # Errors
    /// If the file cannot be read or understood.
    pub fn on_the_callers_thread(kubeconfig: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("make the client's run time")?;
        let client = runtime.block_on(client(kubeconfig))?;
        Ok(Self { runtime, client })
    }

    /// The same client for asynchronous use, on [`Self::block_on`]'s run time.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// An object or list by its path; None where there is none.
    ///
    /// # Errors
    /// The API server's.
    pub fn get(&self, path: &str) -> Result<Option<Value>> {
        match self.call(Method::GET, path, "", Vec::new()) {
            Ok(value) => Ok(Some(value)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error).with_context(|| format!("get {path}")),
        }
    }

    /// The items of a list.
    ///
    /// # Errors
    /// The API server's; also where the list does not exist.
    pub fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut list = self.get(path)?.with_context(|| format!("the cluster has no {path}"))?;
        match list["items"].take() {
            Value::Array(items) => Ok(items),
            _ => bail!("{path} is no list"),
        }
    }

    /// Makes an object, or makes it what it should be (server-side apply).
    ///
    /// # Errors
    /// The API server's.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let path = format!("{}?fieldManager=weir-tests&force=true", path(object)?);
        self.call(Method::PATCH, &path, "application/apply-patch+yaml", bytes(object))
            .with_context(|| format!("apply {path}"))
    }

    /// Makes a new object.
    ///
    /// # Errors
    /// The API server's; if it is there already.
    pub fn create(&self, object: &Value) -> Result<Value> {
        self.post(&collection(object)?, object)
    }

    /// Makes a new object as another user would.
    ///
    /// # Errors
    /// The API server's; if that user may not.
    pub fn create_as(&self, user: &str, object: &Value) -> Result<Value> {
        let path = collection(object)?;
        let request = Request::post(&path)
            .header("Content-Type", "application/json")
            .header("Impersonate-User", user)
            .body(bytes(object))
            .with_context(|| format!("a request as {user}"))?;
        self.block_on(self.client.request(request))
            .with_context(|| format!("create in {path} as {user}"))
    }

    /// Posts to a path: what is asked for by an object, and answered by it.
    ///
    /// # Errors
    /// The API server's.
    pub fn post(&self, path: &str, object: &Value) -> Result<Value> {
        self.call(Method::POST, path, "application/json", bytes(object))
            .with_context(|| format!("create in {path}"))
    }

    /// Changes an object by a JSON merge patch.
    ///
    /// # Errors
    /// The API server's.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        self.call(Method::PATCH, path, "application/merge-patch+json", bytes(patch))
            .with_context(|| format!("patch {path}"))
    }

    /// Deletes an object without grace; that it is gone already is fine.
    ///
    /// # Errors
    /// The API server's.
    pub fn delete(&self, path: &str) -> Result<()> {
        self.delete_within(path, 0)
    }

    /// Deletes an object, leaving a pod so many seconds to end; that it is gone already is fine.
    ///
    /// # Errors
    /// The API server's.
    pub fn delete_within(&self, path: &str, seconds: u32) -> Result<()> {
        let query = format!("{path}?gracePeriodSeconds={seconds}&propagationPolicy=Background");
        match self.call(Method::DELETE, &query, "", Vec::new()) {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| format!("delete {path}")),
        }
    }

    /// What a path without an object says, such as `/readyz`.
    ///
    /// # Errors
    /// If the server is not there or says no.
    pub fn text(&self, path: &str) -> Result<String> {
        let request = Request::get(path).body(Vec::new()).context("a request")?;
        Ok(self.block_on(self.client.request_text(request))?)
    }

    /// Follows a watch until it is to stop. Reads nothing of it: says when each piece came.
    ///
    /// # Errors
    /// The API server's; if it ends the watch.
    pub fn follow(&self, watch: &str, stop: &AtomicBool, mut seen: impl FnMut(Instant)) -> Result<()> {
        const LOOK: Duration = Duration::from_millis(50);
        let request = Request::get(watch).body(Body::empty()).context("a request")?;
        self.block_on(async {
            let mut body = self.client.send(request).await?.into_body();
            while !stop.load(Ordering::Relaxed) {
                let Ok(next) = tokio::time::timeout(LOOK, body.frame()).await else {
                    continue;
                };
                let frame = next.with_context(|| format!("{watch} has ended"))?;
                if frame.with_context(|| format!("follow {watch}"))?.is_data() {
                    seen(Instant::now());
                }
            }
            Ok(())
        })
    }

    /// Waits for an object to be as a condition asks.
    ///
    /// # Errors
    /// If it is not in time, with what it was at last.
    pub fn wait(&self, path: &str, patience: Duration, mut done: impl FnMut(Option<&Value>) -> bool) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let found = self.get(path);
            match &found {
                Ok(found) if done(found.as_ref()) => return Ok(()),
                _ if Instant::now() < deadline => thread::sleep(Duration::from_millis(100)),
                Ok(found) => bail!("{path} is not as it should be after {patience:?}: {found:?}"),
                Err(error) => bail!("{path} cannot be read after {patience:?}: {error:#}"),
            }
        }
    }

    fn call(&self, method: Method, path: &str, content: &str, body: Vec<u8>) -> Result<Value, kube::Error> {
        let mut request = Request::builder().method(method).uri(path);
        if !content.is_empty() {
            request = request.header("Content-Type", content);
        }
        let request = request.body(body).map_err(kube::Error::HttpError)?;
        self.block_on(self.client.request(request))
    }
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let file = Kubeconfig::read_from(kubeconfig).with_context(|| format!("read {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(|| format!("the configuration in {}", kubeconfig.display()))?;
    Client::try_from(config).context("make a client of the API")
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// The path of an object: `/api/v1/namespaces/NAMESPACE/pods/NAME`.
///
/// # Errors
/// If it lacks its version, kind or name.
pub fn path(object: &Value) -> Result<String> {
    let text = |value: &Value, what: &str| {
        value
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("an object without {what}: {object}"))
    };
    let version = text(&object["apiVersion"], "apiVersion")?;
    let kind = text(&object["kind"], "kind")?;
    let name = text(&object["metadata"]["name"], "name")?;
    let root = if version.contains('/') { "apis" } else { "api" };
    let plural = plural(&kind);
    Ok(match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/{root}/{version}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("/{root}/{version}/{plural}/{name}"),
    })
}

/// The path of the list that an object is or will be in.
fn collection(object: &Value) -> Result<String> {
    let path = path(object)?;
    let (collection, _) = path.rsplit_once('/').context("a path")?;
    Ok(collection.to_owned())
}

/// The resource of a kind, as the API's paths have it.
#[must_use]
pub fn plural(kind: &str) -> String {
    let kind = kind.to_lowercase();
    match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None if kind == "endpoints" => kind,
        None if kind.ends_with('s') => format!("{kind}es"),
        None => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{path, plural};

    #[test]
    fn paths_are_those_of_the_api() {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "x", "name": "a"}});
        assert_eq!(path(&pod).unwrap(), "/api/v1/namespaces/x/pods/a");
        let tier = json!({"apiVersion": "crd.projectcalico.org/v1", "kind": "Tier", "metadata": {"name": "t"}});
        assert_eq!(path(&tier).unwrap(), "/apis/crd.projectcalico.org/v1/tiers/t");
        assert!(path(&json!({"kind": "Pod"})).is_err());
        assert_eq!(plural("NetworkPolicy"), "networkpolicies");
        assert_eq!(plural("Endpoints"), "endpoints");
    }
}
