//! Requests to the API server: bounded in time and size, failures sorted by what follows from them.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::{
    Client, Config,
    client::Body,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::Deserialize;
use tokio::time::timeout;

use super::Error;

/// For a connection to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// For an answer to begin, and for each further piece of a list.
const ANSWER: Duration = Duration::from_secs(30);
/// Longest text of an error that is read.
const LONGEST_ERROR: usize = 64 * 1024;

/// The API's own JSON, and nothing that needs decoding before it can be read in pieces.
pub(super) const JSON: &str = "application/json";
/// Objects without spec and status,
pub(super) const METADATA_ONLY: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
/// and lists of them. An API server takes the first form named that it knows, and then refuses a list that is asked for as
/// one object: they cannot be named together.
pub(super) const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";

/// Why a request did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::source) enum Failure {
    /// No API server answers.
    Unreachable(String),
    /// 401: who we are is not known (any more).
    Unauthorized(String),
    /// 403: permission is missing.
    Forbidden(String),
    /// 404: there is no such object, or no such kind.
    Missing,
    /// 410, or a version from the future: the watch cannot go on from where it was.
    Expired(String),
    /// 400 or 422: the server does not know this kind of request.
    Unsupported(String),
    /// 409: an object of that name is there already, or has changed.
    Conflict(String),
    /// Anything else that the server says; it is tried again.
    Server(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable(why) => write!(f, "the API server cannot be reached: {why}"),
            Self::Unauthorized(why) => write!(f, "the API server does not know the agent's credentials (401): {why}"),
            Self::Forbidden(why) => write!(f, "permission is missing (403): {why}"),
            Self::Missing => f.write_str("not found (404)"),
            Self::Expired(why) => write!(f, "the watch has fallen behind: {why}"),
            Self::Unsupported(why) => write!(f, "the API server does not take the request: {why}"),
            Self::Conflict(why) => write!(f, "conflict (409): {why}"),
            Self::Server(why) => write!(f, "the API server answers: {why}"),
        }
    }
}

/// As the API server says what went wrong (meta/v1 Status).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    code: u16,
    message: String,
    reason: String,
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let Status {
            code, message, reason, ..
        } = &status;
        let text = if message.is_empty() { reason } else { message }.clone();
        let from_the_future = status.details.as_ref().is_some_and(|details| {
            details
                .causes
                .iter()
                .any(|cause| cause.reason == "ResourceVersionTooLarge")
        });
        match code {
            _ if from_the_future => Self::Expired(text),
            401 => Self::Unauthorized(text),
            403 => Self::Forbidden(text),
            404 => Self::Missing,
            409 => Self::Conflict(text),
            410 => Self::Expired(text),
            400 | 406 | 422 => Self::Unsupported(text),
            code => Self::Server(format!("{code} {text}")),
        }
    }
}

/// The API server, as one of its users.
#[derive(Clone)]
pub(in crate::source) struct Api {
    client: Client,
    /// Its URL, for messages.
    pub(super) server: Arc<str>,
}

impl Api {
    /// Reads the configuration; connects with the first request. None: that of the pod that this runs in
    /// (`KUBERNETES_SERVICE_HOST`, `KUBERNETES_SERVICE_PORT`, the service account's token).
    pub(super) async fn new(kubeconfig: Option<&Path>) -> Result<Self, Error> {
        let mut config = match kubeconfig {
            Some(path) => {
                let wrong = |error: kube::config::KubeconfigError| Error::Kubeconfig {
                    path: path.to_owned(),
                    message: chain(&error),
                };
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(wrong)?
            }
            None => Config::incluster().map_err(|error| Error::InCluster(chain(&error)))?,
        };
        config.connect_timeout = Some(CONNECT);
        // How soon to try again depends on what for.
        config.default_retry = false;
        let server = config.cluster_url.to_string().trim_end_matches('/').into();
        let client = Client::try_from(config).map_err(|error| Error::Client(chain(&error)))?;
        Ok(Self { client, server })
    }

    /// The text of an answer to GET.
    pub(super) async fn get(&self, path: &str) -> Result<Vec<u8>, Failure> {
        self.open(path, JSON).await?.all().await
    }

    /// An answer to GET, to be read piece by piece.
    pub(super) async fn open(&self, path: &str, accept: &str) -> Result<Answer, Failure> {
        let request = Request::get(path).header(header::ACCEPT, accept).body(Body::empty());
        self.send(request).await
    }

    /// Sends an object.
    pub(super) async fn write(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<(), Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, JSON)
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::from(body));
        self.send(request).await?.all().await.map(drop)
    }

    async fn send(&self, request: http::Result<Request<Body>>) -> Result<Answer, Failure> {
        let request = request.map_err(|error| Failure::Unsupported(error.to_string()))?;
        let response = match timeout(ANSWER, self.client.send(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(kube::Error::Auth(error))) => return Err(Failure::Unauthorized(chain(&error))),
            Ok(Err(error)) => return Err(Failure::Unreachable(chain(&error))),
            Err(_) => return Err(Failure::Unreachable(format!("no answer within {} s", ANSWER.as_secs()))),
        };
        let status = response.status();
        let mut answer = Answer {
            body: response.into_body(),
        };
        if status.is_success() {
            Ok(answer)
        } else {
            Err(answer.refusal(status).await)
        }
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// What the server sends, as it comes.
pub(super) struct Answer {
    body: Body,
}

impl Answer {
    /// The next bytes. None: that was all.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data.into()));
                    }
                }
                Some(Err(error)) => return Err(Failure::Unreachable(chain(&error))),
            }
        }
    }

    pub(super) async fn all(mut self) -> Result<Vec<u8>, Failure> {
        let mut text = Vec::new();
        while let Some(bytes) = timeout(ANSWER, self.next())
            .await
            .map_err(|_| Failure::Unreachable("the answer does not go on".to_owned()))??
        {
            text.extend_from_slice(&bytes);
        }
        Ok(text)
    }

    async fn refusal(&mut self, code: StatusCode) -> Failure {
        let mut text = Vec::new();
        while let Ok(Ok(Some(bytes))) = timeout(ANSWER, self.next()).await {
            text.extend_from_slice(&bytes);
            if text.len() > LONGEST_ERROR {
                break;
            }
        }
        let mut status = serde_json::from_slice::<Status>(&text).unwrap_or_else(|_| Status {
            message: String::from_utf8_lossy(&text).trim().chars().take(200).collect(),
            ..Status::default()
        });
        status.code = code.as_u16();
        if status.message.is_empty() {
            status.message = code.to_string();
        }
        status.into()
    }
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
