//! The socket and the health port, with real sockets and a small control loop in the same process.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, task::spawn_blocking};

use super::{
    client::Client,
    error::CliError,
    health,
    protocol::{MAX_REQUEST, Response, Verb, socket_path},
    server::{ControlHandle, bind_socket, serve},
};
use crate::{
    control::query::{Dump, DumpKind, Query, QueryError, Readiness, WaitReport},
    flow::{
        filter::Filter,
        hub::Hub,
        json::{Line, LossSource, Verdict},
        testing::denied,
    },
};

/// An agent without a kernel: answers what the tests ask.
struct Agent {
    run_dir: tempfile::TempDir,
    handle: ControlHandle,
}

impl Agent {
    fn start(ready: bool) -> Self {
        let run_dir = tempfile::tempdir().expect("a temporary directory");
        let (queries, mut asked) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(query) = asked.recv().await {
                match query {
                    Query::Readiness(reply) => {
                        let reason = (!ready).then(|| "the first sync is not over".to_owned());
                        let _ = reply.send(Readiness { ready, reason });
                    }
                    Query::Wait { deadline, reply } => {
                        tokio::time::sleep_until(deadline.into()).await;
                        let _ = reply.send(WaitReport {
                            enforced: false,
                            reason: Some("time is over".to_owned()),
                            problems: Vec::new(),
                        });
                    }
                    Query::Dump {
                        what: DumpKind::Tables,
                        reply,
                    } => {
                        let rows = vec![serde_json::Map::from_iter([("table".to_owned(), 7.into())])];
                        let _ = reply.send(Ok(Dump {
                            columns: vec!["table".to_owned()],
                            rows,
                            omitted: 0,
                        }));
                    }
                    Query::Dump { reply, .. } => {
                        let _ = reply.send(Err(QueryError::new("no such map").remedy("load it")));
                    }
                    Query::Observe(reply) => {
                        let _ = reply.send(Err(QueryError::new("the kernel is silent")));
                    }
                    // Dropped: the client hears that the agent is ending.
                    _ => {}
                }
            }
        });
        let handle = ControlHandle {
            queries,
            flows: Hub::new(None),
            node: "n1".into(),
            instruments: Arc::default(),
        };
        let listener = bind_socket(run_dir.path()).expect("binds");
        tokio::spawn(serve(listener, handle.clone()));
        Self { run_dir, handle }
    }

    fn path(&self) -> &Path {
        self.run_dir.path()
    }

    /// Runs a blocking verb.
    async fn with_client<T: Send + 'static>(&self, verb: impl FnOnce(&mut Client) -> T + Send + 'static) -> T {
        let run_dir = self.path().to_owned();
        spawn_blocking(move || verb(&mut Client::connect(&run_dir).expect("connects")))
            .await
            .expect("the verb ends")
    }

    /// Sends bytes and reads one line.
    async fn raw(&self, request: Vec<u8>) -> Response {
        let path = socket_path(self.path());
        spawn_blocking(move || {
            let mut stream = UnixStream::connect(path).expect("connects");
            // The agent may hang up on too much before all of it is written.
            let _ = stream.write_all(&request);
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).expect("reads");
            serde_json::from_str(&line).expect("a response")
        })
        .await
        .expect("ends")
    }
}

fn message(response: Response) -> String {
    match response {
        Response::Error(error) => error.message,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_socket_is_for_its_owner_alone_and_replaces_a_stale_one() {
    let run_dir = tempfile::tempdir().expect("a temporary directory");
    drop(bind_socket(run_dir.path()).expect("binds"));
    let path = socket_path(run_dir.path());
    assert!(path.exists(), "a socket outlives its listener");
    assert!(matches!(Client::connect(run_dir.path()), Err(CliError::NoAgent { .. })));
    let _listener = bind_socket(run_dir.path()).expect("binds again");
    let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_said_so() {
    let run_dir = Path::new("/nonexistent").join("x".repeat(120));
    let error = bind_socket(&run_dir).expect_err("too long").to_string();
    assert!(error.contains("--run-dir"), "{error}");
}

#[tokio::test]
async fn answers_and_errors_reach_the_client() {
    let agent = Agent::start(true);
    let dump = |what| move |client: &mut Client| client.ask(Verb::Dump { what });
    match agent.with_client(dump(DumpKind::Tables)).await {
        Ok(Response::Dump(dump)) => assert_eq!(dump.rows[0]["table"], 7),
        other => panic!("{other:?}"),
    }
    match agent.with_client(dump(DumpKind::Identities)).await {
        Err(CliError::Failed { message, remedy }) => {
            assert_eq!((message.as_str(), remedy.as_deref()), ("no such map", Some("load it")));
        }
        other => panic!("{other:?}"),
    }
    match agent.with_client(|client| client.ask(Verb::Status)).await {
        Err(CliError::Failed { message, .. }) => assert!(message.contains("shutting down"), "{message}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn wait_is_answered_at_its_deadline() {
    let agent = Agent::start(true);
    let waited = agent
        .with_client(|client| client.ask(Verb::Wait { timeout_ms: 30 }))
        .await;
    match waited {
        Ok(Response::Wait(report)) => assert_eq!(report.reason.as_deref(), Some("time is over")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_is_no_request_is_answered_with_why() {
    let agent = Agent::start(true);
    for (request, expected) in [
        ("nonsense\n", "cannot understand"),
        ("{\"version\":1,\"verb\":\"dance\"}\n", "dance"),
        ("{\"version\":2,\"verb\":\"dance\"}\n", "version 1"),
        ("{\"verb\":\"status\"}\n", "version"),
    ] {
        let answer = message(agent.raw(request.into()).await);
        assert!(answer.contains(expected), "{request} -> {answer}");
    }
    let endless = vec![b'x'; MAX_REQUEST as usize + 1];
    let answer = message(agent.raw(endless).await);
    assert!(answer.contains("no line"), "{answer}");
}

#[tokio::test]
async fn a_reader_gets_the_recent_records_and_then_the_live_ones() {
    let agent = Agent::start(true);
    let hub = agent.handle.flows.clone();
    let mut wanted = hub.wanted();
    assert!(!*wanted.borrow(), "nobody reads");
    hub.publish(vec![denied(1), denied(2)]);

    let run_dir = agent.path().to_owned();
    let reader = spawn_blocking(move || {
        let mut client = Client::connect(&run_dir).expect("connects");
        let verb = Verb::Flows {
            follow: true,
            last: 10,
            filter: Filter {
                ports: vec![2, 3],
                ..Filter::default()
            },
        };
        let answer = client.ask(verb).expect("an answer");
        assert_eq!(
            answer,
            Response::Flows {
                recent: 1,
                recording: false
            }
        );
        let ports: Vec<u16> = (0..2)
            .map(|_| {
                let line = client.line().expect("a line").expect("no end");
                match serde_json::from_str(&line).expect("a record") {
                    Line::Flow(flow) => flow.l4.and_then(|l4| l4.ports()).expect("ports").1,
                    Line::Lost(lost) => panic!("{lost:?}"),
                }
            })
            .collect();
        ports
    });
    wanted.wait_for(|wanted| *wanted).await.expect("the hub lives");
    assert_eq!(hub.report().readers, 1);
    hub.publish(vec![denied(1), denied(3)]);
    assert_eq!(reader.await.expect("the reader ends"), [2, 3]);
    // It has hung up: events are switched off again.
    wanted.wait_for(|wanted| !*wanted).await.expect("the hub lives");
    assert_eq!(hub.report().readers, 0);
}

#[tokio::test]
async fn without_following_a_reader_gets_the_last_ones_and_an_end() {
    let agent = Agent::start(true);
    agent.handle.flows.publish((1..=5).map(denied).collect());
    let lines = agent
        .with_client(|client| {
            let verb = Verb::Flows {
                follow: false,
                last: 2,
                filter: Filter {
                    verdicts: vec![Verdict::Dropped],
                    ..Filter::default()
                },
            };
            client.ask(verb).expect("an answer");
            std::iter::from_fn(|| client.line().expect("lines until the end")).count()
        })
        .await;
    assert_eq!(lines, 2);
}

#[tokio::test]
async fn a_slow_reader_loses_records_and_is_told_how_many() {
    let hub = Hub::new(None);
    let (_, mut reader) = hub.subscribe(Filter::default(), 0);
    hub.publish(vec![denied(80); 5000]);
    let mut records = 0;
    let lost = loop {
        match reader.next().await.expect("the hub lives") {
            crate::flow::hub::Item::Record(_) => records += 1,
            crate::flow::hub::Item::Lost { lost, .. } => break lost,
        }
    };
    assert_eq!(lost.source, LossSource::HubbleRingBuffer);
    assert_eq!(records + lost.num_events_lost, 5000);
    assert_eq!(hub.report().lost_readers, lost.num_events_lost);
}

async fn get(address: std::net::SocketAddr, path: &'static str) -> String {
    spawn_blocking(move || {
        let mut stream = std::net::TcpStream::connect(address).expect("connects");
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("sets the time-out");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n").expect("writes");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("reads");
        text
    })
    .await
    .expect("ends")
}

#[tokio::test]
async fn health_is_the_control_loops() {
    for (ready, status) in [(true, "200"), (false, "503")] {
        let agent = Agent::start(ready);
        let listener = health::bind(([127, 0, 0, 1], 0).into()).await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let taken = health::bind(address).await.expect_err("taken").to_string();
        assert!(taken.contains("--health-addr"), "{taken}");
        tokio::spawn(health::serve(listener, agent.handle.clone()));
        let live = get(address, "/livez").await;
        assert!(live.starts_with("HTTP/1.1 200"), "{live}");
        let answer = get(address, "/readyz").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert_eq!(answer.contains("first sync"), !ready, "{answer}");
        let answer = get(address, "/metrics").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("the kernel is silent"),
            "{answer}"
        );
    }
    // A loop that has ended is not alive.
    let (queries, _) = mpsc::channel(1);
    let handle = ControlHandle {
        queries,
        flows: Hub::new(None),
        node: Arc::from("n1"),
        instruments: Arc::default(),
    };
    let listener = health::bind(([127, 0, 0, 1], 0).into()).await.expect("binds");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(health::serve(listener, handle));
    let answer = get(address, "/livez").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory;
    super::Cli::command().debug_assert();
}
