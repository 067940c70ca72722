//! Liveness, readiness and metrics over HTTP, for the kubelet and for Prometheus.
//!
//! All ask the control loop itself: an agent whose loop hangs is not alive, whatever its other tasks do.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::Mutex};

use super::server::ControlHandle;
use crate::{control::query::Query, metrics::exposition};

/// For the control loop to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer to a scrape is given again for so long: who scrapes without pause must not keep the loop from its work.
const FRESH: Duration = Duration::from_millis(250);

/// Listens for [`serve`].
///
/// # Errors
/// As of `bind`, with the address named.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot serve health at {address}: {error}; choose another --health-addr"),
        )
    })
}

/// Answers until it is dropped.
///
/// # Errors
/// As of `accept`.
pub async fn serve(listener: TcpListener, handle: ControlHandle) -> io::Result<()> {
    axum::serve(listener, router(handle)).await
}

#[derive(Clone)]
struct Port {
    handle: ControlHandle,
    /// The last answer to a scrape, and when it was made. Locked while one is made, so that there is one at a time.
    scraped: Arc<Mutex<Option<(Instant, String)>>>,
}

fn router(handle: ControlHandle) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Port {
            handle,
            scraped: Arc::default(),
        })
}

/// 200 if the control loop answers, else 503 with the reason.
async fn livez(State(port): State<Port>) -> (StatusCode, String) {
    match port.handle.ask(PATIENCE, Query::Readiness).await {
        Ok(_) => (StatusCode::OK, "ok\n".to_owned()),
        Err(error) => unavailable(error),
    }
}

/// 200 if everything that the source holds is enforced, else 503 with the reason.
async fn readyz(State(port): State<Port>) -> (StatusCode, String) {
    match port.handle.ask(PATIENCE, Query::Readiness).await {
        Ok(readiness) if readiness.ready => (StatusCode::OK, "ok\n".to_owned()),
        Ok(readiness) => unavailable(readiness.reason.unwrap_or_else(|| "not ready".to_owned())),
        Err(error) => unavailable(error),
    }
}

/// Metrics, or 503 with the reason why there are none.
async fn metrics(State(port): State<Port>) -> Response {
    let mut scraped = port.scraped.lock().await;
    let text = match &*scraped {
        Some((at, text)) if at.elapsed() < FRESH => text.clone(),
        _ => match scrape(&port.handle).await {
            Ok(text) => scraped.insert((Instant::now(), text)).1.clone(),
            Err(reason) => return unavailable(reason).into_response(),
        },
    };
    ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], text).into_response()
}

async fn scrape(handle: &ControlHandle) -> Result<String, String> {
    let observed = handle.ask(PATIENCE, Query::Observe).await;
    let observation = observed.flatten().map_err(|error| error.to_string())?;
    exposition::expose(observation, handle.flows.report(), &handle.instruments)
        .map_err(|_| "metrics cannot be written as text".to_owned())
}

fn unavailable(reason: impl ToString) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", reason.to_string()))
}
