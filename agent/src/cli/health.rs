//! Liveness and readiness over HTTP, for the kubelet.
//!
//! Both ask the control loop itself: an agent whose loop hangs is not alive, whatever its other tasks do.

use std::{io, net::SocketAddr, time::Duration};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use super::server::ControlHandle;
use crate::control::query::Query;

/// For the control loop to answer.
const PATIENCE: Duration = Duration::from_secs(5);

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

fn router(handle: ControlHandle) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(handle)
}

/// 200 if the control loop answers, else 503 with the reason.
async fn livez(State(handle): State<ControlHandle>) -> (StatusCode, String) {
    match handle.ask(PATIENCE, Query::Readiness).await {
        Ok(_) => (StatusCode::OK, "ok\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

/// 200 if everything that the source holds is enforced, else 503 with the reason.
async fn readyz(State(handle): State<ControlHandle>) -> (StatusCode, String) {
    match handle.ask(PATIENCE, Query::Readiness).await {
        Ok(readiness) if readiness.ready => (StatusCode::OK, "ok\n".to_owned()),
        Ok(readiness) => {
            let reason = readiness.reason.unwrap_or_else(|| "not ready".to_owned());
            (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}
