//! What tests ask of etcd itself, through its JSON gateway.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::control::ETCD_PORT;
use crate::lab::netns::NetNs;

/// Forgets all revisions before the current one: whoever watches from an older one gets "410 Gone" from an API server
/// that does not have it in memory any more. Returns the revision.
///
/// # Errors
/// If etcd is not there or refuses.
pub fn compact(control: &NetNs) -> Result<u64> {
    let status = call(control, "/v3/maintenance/status", &json!({}))?;
    let revision = status["header"]["revision"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .with_context(|| format!("etcd tells no revision: {status}"))?;
    call(
        control,
        "/v3/kv/compaction",
        &json!({"revision": format!("{revision}"), "physical": true}),
    )?;
    Ok(revision)
}

/// Whether etcd serves.
#[must_use]
pub fn answers(control: &NetNs) -> bool {
    call(control, "/v3/maintenance/status", &json!({})).is_ok()
}

fn call(control: &NetNs, path: &str, body: &Value) -> Result<Value> {
    let answer = control.run(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, ETCD_PORT)).context("connect to etcd")?;
        let body = body.to_string();
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .context("ask etcd")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("read etcd's answer")?;
        Ok(answer)
    })?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("etcd's answer has no end of its head")?;
    ensure!(
        head.split_whitespace().nth(1) == Some("200"),
        "etcd refuses {path}: {answer}"
    );
    serde_json::from_str(body).with_context(|| format!("etcd's answer {body}"))
}
