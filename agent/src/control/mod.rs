//! The loop that wires the rooms: objects in, plans executed, questions answered.
//!
//! | file | what |
//! |---|---|
//! | `agent` | what the loop holds, and what it does with each thing that happens |
//! | `enforce` | plans into the kernel; new generations |
//! | `attach` | pods that the CNI plugin attaches before they start |
//! | `endpoints`, `bind` | local pods on their way to an enforced interface |
//! | `hooks` | programs that somebody else has taken off a pod's interface |
//! | `settle` | what attaching pods in a hurry has left to be done |
//! | `removals` | what plans want removed, kept for the grace period |
//! | `hits` | how often each rule was hit |
//! | `staging` | staged policies |
//! | `condition` | the condition on the agent's Node |
//! | `troubles` | Events on local pods that are not enforced |
//! | `uninstall` | taking everything away when the agent's DaemonSet is removed |
//! | `wait` | who waits until everything is enforced |
//! | `status`, `observe`, `dump`, `explain` | the answers to questions about the whole |
//! | `options` | what `weir agent` was told |
//! | `query` | the questions that the loop answers, and the shapes of the answers |

mod agent;
mod attach;
mod bind;
mod condition;
mod departed;
mod dump;
mod endpoints;
mod enforce;
pub mod explain;
mod forwarding;
mod hits;
mod hooks;
mod observe;
pub mod options;
pub mod query;
mod readiness;
mod removals;
mod settle;
mod staging;
mod status;
mod troubles;
mod uninstall;
mod wait;

use std::{future::Future, pin::Pin, sync::Arc, time::Instant};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};
use tracing::{info, warn};

use self::{
    agent::{Agent, Parts},
    attach::Attachments,
    options::{AgentOptions, AttachMode},
    query::{DetachReport, Query, QueryError},
};
use crate::{
    cli::{
        health,
        server::{self, ControlHandle},
    },
    cni::{
        attachment::PodName,
        install::{Installer, PluginReport},
        store::Store,
    },
    datapath::{self, Datapath},
    endpoint::{self, Discovery},
    flow::{
        directory::Directory,
        hub::Hub,
        sink::Sink,
        task::{FlowTask, Shared},
    },
    metrics::Instruments,
    source::{Source, kubernetes::ReadError},
};

/// Events of the source that are taken in at once.
const BATCH: usize = 4096;
/// Questions that may wait.
const QUESTIONS: usize = 64;

/// Runs the agent until it is told to end. What it enforces stays in force.
///
/// # Errors
/// What keeps it from starting, or ends it.
pub async fn run(options: AgentOptions) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    // Before anything in the kernel changes.
    Source::check(&options.source).await?;
    let datapath_options = datapath_options(&options);
    let capacity = datapath_options.capacity;
    let claim = datapath::Claim::take(datapath_options)?;
    // The source is read on other threads while this one waits for the kernel to verify the programs.
    let instruments = Arc::new(Instruments::default());
    let (source, mut source_events) =
        Source::start(&options.source, &options.run_dir, &options.node, &instruments).await?;
    let (datapath, inherited) = Datapath::build(claim)?;

    let node: Arc<str> = options.node.as_str().into();
    let sink = match &options.flow_log {
        Some(flow_log) => Some(Sink::start(flow_log, &node).context("cannot write the flow log")?),
        None => None,
    };
    let hub = Hub::new(sink);
    let directory = Arc::new(Directory::default());
    let (questions, mut asked) = mpsc::channel(QUESTIONS);
    let handle = ControlHandle {
        queries: questions,
        flows: Arc::clone(&hub),
        node: Arc::clone(&node),
        instruments: Arc::clone(&instruments),
    };
    let condition_handle = handle.clone();
    let troubles_handle = handle.clone();
    let socket = server::bind_socket(&options.run_dir)
        .with_context(|| format!("cannot listen in the run directory {}", options.run_dir.display()))?;
    let _server = Task::spawn(server::serve(socket, handle.clone()));
    let _health = match options.health_addr {
        Some(address) => {
            let listener = health::bind(address).await?;
            Some(Task::spawn(async move {
                if let Err(error) = health::serve(listener, handle).await {
                    warn!(%error, "health is no longer served");
                }
            }))
        }
        None => None,
    };
    let shared = Shared {
        hub: Arc::clone(&hub),
        directory: Arc::clone(&directory),
        node: Arc::clone(&node),
        audit: options.audit,
        period: options.flow_period,
    };
    let flows = FlowTask::start(datapath.events()?, datapath.sweeper()?, shared).context("cannot wait for events")?;
    let (discovery, mut discovered) = Discovery::spawn().context("cannot watch interfaces and routes")?;
    let attachments = match Store::open(&options.run_dir) {
        Ok(store) => Attachments::new(Some(store)),
        Err(error) => {
            warn!(%error, "cannot keep attachments in the run directory: the CNI plugin will be told to try again");
            Attachments::new(None)
        }
    };
    let installer = match &options.cni {
        Some(cni) => Some(Installer::start(cni, &options.run_dir).context("cannot install the CNI plugin")?),
        None => None,
    };
    let mut plugin_reports = installer.as_ref().map(Installer::reports);
    let reader = source.pod_reader();
    let (read, mut pods_read) = mpsc::unbounded_channel::<(PodName, Result<bool, ReadError>)>();
    info!(node = options.node, source = %options.source, "started");

    let condition = source.condition().cloned().map(|condition| {
        let handle = condition_handle;
        Task::spawn(condition::keep(condition, handle))
    });

    let _troubles = source.pod_events().cloned().map(|events| {
        let handle = troubles_handle;
        Task::spawn(troubles::tell(events, handle))
    });

    let mut wanted = hub.wanted();
    let mut agent = Agent::new(Parts {
        options,
        capacity,
        datapath,
        inherited,
        discovery,
        directory,
        hub: Arc::clone(&hub),
        flows,
        attachments,
        installer,
        instruments,
    });
    agent.want_events(*wanted.borrow_and_update());

    // The node's own addresses come first: without them its probes would be judged like a stranger's.
    if let Some(event) = first_addresses(&mut discovered).await {
        agent.discovery_event(event);
    }
    let mut batch = Vec::with_capacity(BATCH);
    // The loop goes on deciding what pods may do while the API server is asked why the agent is to end.
    let mut removal: Option<Pin<Box<dyn Future<Output = bool> + Send + '_>>> = None;
    let removed = loop {
        let tick = agent.next_tick();
        tokio::select! {
            biased;
            _ = terminate.recv(), if removal.is_none() => removal = Some(Box::pin(source.is_removed())),
            _ = interrupt.recv() => break false,
            removed = ended(&mut removal) => break removed,
            count = source_events.recv_many(&mut batch, BATCH) => {
                anyhow::ensure!(count > 0, "the source has ended by itself");
                agent.source_events(std::mem::take(&mut batch));
            }
            event = discovered.recv() => match event {
                Some(event) => agent.discovery_event(event),
                None => anyhow::bail!("the watch of interfaces has ended by itself"),
            },
            query = asked.recv() => {
                let Some(query) = query else { break false };
                if let Some(reply) = answer(&mut agent, &source, query) {
                    drop(condition);
                    return detach(agent, &source, reply).await;
                }
            }
            changed = wanted.changed() => {
                if changed.is_ok() {
                    agent.want_events(*wanted.borrow_and_update());
                }
            }
            Some((pod, answer)) = pods_read.recv() => agent.pod_read(&pod, answer),
            report = next_report(&mut plugin_reports) => agent.plugin_report(report),
            () = sleep_until(tick) => agent.tick(Instant::now()),
        }
        for pod in agent.take_wanted() {
            let Some(reader) = reader.clone() else {
                // What comes of reading everything again wakes those who wait.
                source.refresh();
                agent.pod_read(&pod, Ok::<_, String>(false));
                continue;
            };
            let read = read.clone();
            tokio::spawn(async move {
                let answer = reader.read(&pod.namespace, &pod.name).await;
                // Nobody waits any more only while everything ends.
                let _ = read.send((pod, answer.map(|found| found.is_some())));
            });
        }
    };
    drop(removal);
    if removed {
        drop(condition);
        return uninstall::run(agent, &source).await;
    }
    info!("ending; what is enforced stays in force");
    agent.want_events(false);
    agent.flows.stop().await;
    Ok(())
}

/// Answers a question. Given back: the wish to be detached, which ends the loop.
fn answer(agent: &mut Agent, source: &Source, query: Query) -> Option<query::Reply<Result<DetachReport, QueryError>>> {
    // Whoever asked and no longer waits misses nothing.
    match query {
        Query::Readiness(reply) => drop(reply.send(agent.readiness())),
        Query::Troubles(reply) => drop(reply.send(agent.troubles())),
        Query::Status(reply) => {
            let mut report = agent.status();
            report.watches = source.watches();
            drop(reply.send(report));
        }
        Query::Observe(reply) => drop(reply.send(agent.observe().map_err(|error| QueryError::new(error.to_string())))),
        Query::Wait { deadline, reply } => {
            agent.waits.add(source.refresh(), deadline, reply);
        }
        Query::Explain { request, reply } => drop(reply.send(agent.explain(&request))),
        Query::Dump { what, reply } => drop(reply.send(agent.dump(what))),
        Query::Cni {
            request,
            deadline,
            reply,
        } => agent.cni(request, deadline, reply),
        Query::Detach(reply) => return Some(reply),
    }
    None
}

/// Removes every trace, tells who asked, and ends the agent.
async fn detach(
    agent: Agent,
    source: &Source,
    reply: query::Reply<Result<DetachReport, QueryError>>,
) -> anyhow::Result<()> {
    info!("detaching from every interface, as asked");
    let result = uninstall::take_away(agent).await;
    let answer = match &result {
        Ok(report) => Ok(report.clone()),
        Err(error) => Err(QueryError::new(format!("{error:#}"))),
    };
    let _ = reply.send(answer);
    uninstall::remove_condition(source).await;
    // The answer has to leave by the socket's task before the runtime ends.
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    result?;
    Ok(())
}

fn datapath_options(options: &AgentOptions) -> datapath::Options {
    let mut datapath = datapath::Options::new(&options.bpffs, &options.run_dir);
    datapath.attach = match options.attach {
        AttachMode::Auto => datapath::AttachMode::Auto,
        AttachMode::Tcx => datapath::AttachMode::Tcx,
        AttachMode::Tc => datapath::AttachMode::Tc,
    };
    datapath.forward = options.forward;
    datapath
}

/// The first thing that discovery says is which addresses the node has.
async fn first_addresses(discovered: &mut mpsc::Receiver<endpoint::Event>) -> Option<endpoint::Event> {
    tokio::time::timeout(std::time::Duration::from_secs(2), discovered.recv())
        .await
        .unwrap_or_else(|_| {
            warn!("the node's addresses are not known yet: going on without");
            None
        })
}

async fn next_report(reports: &mut Option<watch::Receiver<Option<PluginReport>>>) -> PluginReport {
    while let Some(receiver) = reports {
        if receiver.changed().await.is_err() {
            break;
        }
        if let Some(report) = receiver.borrow_and_update().clone() {
            return report;
        }
    }
    std::future::pending().await
}

async fn ended(removal: &mut Option<Pin<Box<dyn Future<Output = bool> + Send + '_>>>) -> bool {
    match removal {
        Some(removal) => removal.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// A task that ends with its owner.
struct Task(tokio::task::JoinHandle<()>);

impl Task {
    fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
