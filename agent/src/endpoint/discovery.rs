//! Keeps looking for the interfaces of local pods, and says when one is found or gone.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    time::Duration,
};

use netlink_packet_route::RouteNetlinkMessage;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{
    locate::{Place, locate},
    netlink::{Asker, Heard, Monitor},
    tables::{Link, Tables},
};
use crate::policy::change::PeerKey;

/// How long news of the kernel is gathered before pods are looked for again: a container runtime makes an interface,
/// its addresses and routes in one go.
const GATHER: Duration = Duration::from_millis(2);
/// Pauses between attempts for a pod that is not found, if nothing that the kernel says changes anything.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What there is to say of interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The host's side of a pod's interface.
    Found {
        pod: PeerKey,
        ifindex: u32,
        name: String,
        /// Packets on it have no Ethernet header.
        layer3: bool,
        /// Addresses of the pod that lead nowhere (yet), and why.
        unlocated: Vec<(IpAddr, String)>,
    },
    /// The interface is gone, or another one is the pod's now (then `Found` follows).
    Lost { pod: PeerKey, ifindex: u32 },
    /// No interface was found. It is looked for further on; said again only with another reason.
    Missing { pod: PeerKey, reason: String },
    /// The node's own addresses (without loopback and link-local ones), sorted: once at first, then on every change.
    NodeAddresses(Vec<IpAddr>),
    /// Somebody has removed a queueing discipline or a filter from an interface, whosever it is. Said of nothing else that can take
    /// programs away, and not at all where the kernel had too much to say.
    Unhooked { ifindex: u32 },
}

enum Command {
    Watch(PeerKey, Vec<IpAddr>),
    Assume(PeerKey, u32),
    Pin(PeerKey, u32, String),
    Forget(PeerKey),
}

/// Finds the interfaces of pods in one network namespace. Stops when it and its events' receiver are dropped.
#[derive(Clone, Debug)]
pub struct Discovery {
    commands: mpsc::UnboundedSender<Command>,
}

impl Discovery {
    /// Starts looking, in the network namespace of the calling thread, which must be within a tokio runtime.
    ///
    /// # Errors
    /// Where a netlink socket cannot be opened.
    pub fn spawn() -> io::Result<(Self, mpsc::Receiver<Event>)> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let (events, receiver) = mpsc::channel(1024);
        let monitor = Monitor::open()?;
        let asker = Asker::open()?;
        let task = Task {
            tables: Tables::default(),
            pods: HashMap::new(),
            asker,
            events,
            own_addresses: None,
        };
        tokio::spawn(task.run(monitor, inbox));
        Ok((Self { commands }, receiver))
    }

    /// Looks for the interface of a pod with these addresses, until [`Self::forget`]. Again with other addresses: the
    /// pod has those now.
    pub fn watch(&self, pod: PeerKey, addresses: Vec<IpAddr>) {
        // Nobody listens any more only while everything ends.
        let _ = self.commands.send(Command::Watch(pod, addresses));
    }

    /// A watched pod had this interface when somebody knew for certain: an earlier agent, whose enforcement goes on
    /// there. It is found at once, also where a quiet pod has been forgotten by its bridge, and counts until
    /// the interface is gone or a route leads elsewhere.
    pub fn assume(&self, pod: PeerKey, ifindex: u32) {
        let _ = self.commands.send(Command::Assume(pod, ifindex));
    }

    /// A watched pod has this interface, as the container runtime says: it is not looked for, whatever routes say, until
    /// the interface is gone. It need not be known yet: the runtime can be faster than the kernel's news.
    pub fn pin(&self, pod: PeerKey, ifindex: u32, name: String) {
        let _ = self.commands.send(Command::Pin(pod, ifindex, name));
    }

    /// The pod is gone. No event follows.
    pub fn forget(&self, pod: PeerKey) {
        let _ = self.commands.send(Command::Forget(pod));
    }
}

struct Pod {
    addresses: Vec<IpAddr>,
    found: Option<u32>,
    /// The interface that the runtime says it has, by index and name.
    pinned: Option<(u32, String)>,
    /// Some address of it is not located.
    incomplete: bool,
    /// The last reason that was reported for not finding it.
    missed: Option<String>,
    /// The interface that was reported, and what was said of addresses that do not lead there.
    told: Option<(u32, String)>,
    pause: Duration,
    retry: Instant,
}

struct Task {
    tables: Tables,
    pods: HashMap<PeerKey, Pod>,
    asker: Asker,
    events: mpsc::Sender<Event>,
    own_addresses: Option<Vec<IpAddr>>,
}

/// Nobody receives events any more.
struct Closed;

/// What has happened since pods were looked for the last time.
#[derive(Default)]
struct News {
    /// When the first of it came.
    since: Option<Instant>,
    any: bool,
    link: bool,
    host_routes: HashSet<IpAddr>,
    gone: HashSet<u32>,
    unhooked: HashSet<u32>,
    overrun: bool,
}

impl Task {
    async fn run(mut self, mut monitor: Monitor, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut news = News {
            since: Some(Instant::now()),
            overrun: true,
            ..News::default()
        };
        loop {
            let due = news.since.map(|since| since + GATHER);
            let retry = self.pods.values().filter(|pod| pod.waits()).map(|pod| pod.retry).min();
            let wake = due.into_iter().chain(retry).min();
            tokio::select! {
                biased;
                command = inbox.recv() => {
                    let Some(command) = command else { return };
                    let mut pending = vec![command];
                    while let Ok(command) = inbox.try_recv() {
                        pending.push(command);
                    }
                    news.overrun |= self.obey(pending);
                    // What the pods are looked for in must have been read once.
                    news.since.get_or_insert_with(Instant::now);
                    news.any = true;
                }
                () = until(wake), if wake.is_some() => {
                    if self.look(std::mem::take(&mut news)).await.is_err() {
                        return;
                    }
                }
                heard = monitor.next() => match heard {
                    Ok(heard) => self.hear(heard, &mut news),
                    Err(error) => {
                        warn!(%error, "listening to netlink");
                        news.overrun = true;
                        news.since = Some(Instant::now() + FIRST_RETRY);
                    }
                },
            }
        }
    }

    /// True: everything has to be read again.
    fn obey(&mut self, commands: Vec<Command>) -> bool {
        let mut unknown = false;
        for command in commands {
            match command {
                Command::Forget(pod) => {
                    self.pods.remove(&pod);
                }
                Command::Watch(key, addresses) => {
                    let old = self.pods.remove(&key);
                    let (found, pinned, told) = old.map_or((None, None, None), |pod| (pod.found, pod.pinned, pod.told));
                    let pod = Pod {
                        addresses,
                        found,
                        pinned,
                        incomplete: true,
                        missed: None,
                        told,
                        pause: FIRST_RETRY,
                        retry: Instant::now(),
                    };
                    self.pods.insert(key, pod);
                }
                Command::Assume(key, ifindex) => {
                    if let Some(pod) = self.pods.get_mut(&key) {
                        pod.found.get_or_insert(ifindex);
                    }
                }
                Command::Pin(key, ifindex, name) => {
                    unknown |= !self.tables.links.contains_key(&ifindex);
                    if let Some(pod) = self.pods.get_mut(&key) {
                        pod.pinned = Some((ifindex, name));
                    }
                }
            }
        }
        unknown
    }

    fn hear(&mut self, heard: Heard, news: &mut News) {
        let messages = match heard {
            Heard::Messages(messages) => messages,
            Heard::Overrun => {
                debug!("netlink said more than there was room for; reading everything again");
                news.overrun = true;
                news.since.get_or_insert_with(Instant::now);
                return;
            }
        };
        for (message, replace) in messages {
            if let RouteNetlinkMessage::DelQueueDiscipline(gone) | RouteNetlinkMessage::DelTrafficFilter(gone) =
                &message
            {
                news.unhooked.extend(u32::try_from(gone.header.index));
                news.since.get_or_insert_with(Instant::now);
                continue;
            }
            let touched = self.tables.apply(&message, replace);
            if touched != super::tables::Touched::default() {
                news.since.get_or_insert_with(Instant::now);
            }
            news.any |= touched.any;
            news.link |= touched.link;
            news.host_routes.extend(touched.host_route);
            news.gone.extend(touched.gone);
        }
    }

    async fn look(&mut self, news: News) -> Result<(), Closed> {
        let now = Instant::now();
        // First: a pod may be open until somebody has looked.
        for ifindex in &news.unhooked {
            self.tell(Event::Unhooked { ifindex: *ifindex }).await?;
        }
        let retry = self
            .pods
            .values()
            .any(|pod| pod.waits() && pod.retry <= now && pod.pause > FIRST_RETRY);
        let mut renewed = news.overrun;
        if news.overrun || retry {
            // IPv4 routes that go with an address are not announced, and a full socket loses news.
            match self.asker.dump().await {
                Ok(tables) => self.tables = tables,
                Err(error) => {
                    warn!(%error, "reading links, routes and neighbours");
                    renewed = false;
                }
            }
        }
        self.tell_own_addresses().await?;
        if news.link {
            for pod in self.pods.values_mut().filter(|pod| pod.waits()) {
                pod.pause = FIRST_RETRY;
                pod.retry = now;
            }
        }
        let keys: Vec<PeerKey> = self
            .pods
            .iter()
            .filter(|(_, pod)| {
                if let Some((ifindex, _)) = &pod.pinned {
                    let told = pod.told.as_ref().is_some_and(|(told, _)| told == ifindex);
                    return !told || news.gone.contains(ifindex) || renewed;
                }
                let due = pod.waits() && (news.any || renewed || pod.retry <= now);
                let moved = pod.addresses.iter().any(|address| news.host_routes.contains(address));
                let lost = pod
                    .found
                    .is_some_and(|ifindex| news.gone.contains(&ifindex) || !self.tables.links.contains_key(&ifindex));
                due || moved || lost || renewed
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            self.look_for(key, &news, renewed, now).await?;
        }
        Ok(())
    }

    async fn tell_own_addresses(&mut self) -> Result<(), Closed> {
        let own = self.tables.own_addresses();
        if self.own_addresses.as_ref() == Some(&own) {
            return Ok(());
        }
        self.own_addresses = Some(own.clone());
        self.tell(Event::NodeAddresses(own)).await
    }

    async fn look_for(&mut self, key: PeerKey, news: &News, renewed: bool, now: Instant) -> Result<(), Closed> {
        let Some(mut pod) = self.pods.remove(&key) else {
            return Ok(());
        };
        if self.look_at_pin(&key, &mut pod, news, renewed).await? {
            self.pods.insert(key, pod);
            return Ok(());
        }
        if let Some(ifindex) = pod.found
            && (news.gone.contains(&ifindex) || !self.tables.links.contains_key(&ifindex))
        {
            pod.found = None;
            if pod.told.take().is_some() {
                self.tell(Event::Lost {
                    pod: key.clone(),
                    ifindex,
                })
                .await?;
            }
        }
        let search = self.search(&pod, now).await;
        let result = self.conclude(&key, &mut pod, search, now).await;
        self.pods.insert(key, pod);
        result
    }

    /// Tells of the interface that a pod is pinned to. False: there is none, or it is gone, and the pod is looked for.
    async fn look_at_pin(&self, key: &PeerKey, pod: &mut Pod, news: &News, renewed: bool) -> Result<bool, Closed> {
        let Some((ifindex, name)) = pod.pinned.clone() else {
            return Ok(false);
        };
        let told = pod.told.as_ref().map(|(told, _)| *told);
        // The name tells a later interface of that index; one that was found may be renamed.
        let same = |link: &&Link| told == Some(ifindex) || link.name == name;
        let link = self.tables.links.get(&ifindex).filter(same).cloned();
        // What is not known yet can be new; after reading everything it is not there.
        let gone = news.gone.contains(&ifindex) || (renewed && link.is_none());
        if let Some(old) = told.filter(|told| gone || *told != ifindex) {
            pod.told = None;
            self.tell(Event::Lost {
                pod: key.clone(),
                ifindex: old,
            })
            .await?;
        }
        if gone {
            pod.pinned = None;
            pod.found = None;
            if told != Some(ifindex) {
                self.tell(Event::Lost {
                    pod: key.clone(),
                    ifindex,
                })
                .await?;
            }
            return Ok(false);
        }
        pod.found = Some(ifindex);
        if let Some(link) = link.filter(|_| told != Some(ifindex)) {
            pod.told = Some((ifindex, String::new()));
            pod.missed = None;
            self.tell(Event::Found {
                pod: key.clone(),
                ifindex,
                name: link.name,
                layer3: link.layer3,
                unlocated: Vec::new(),
            })
            .await?;
        }
        Ok(true)
    }

    async fn search(&self, pod: &Pod, now: Instant) -> Search {
        let mut search = Search::default();
        for address in &pod.addresses {
            let mut place = locate(&self.tables, *address, None);
            if place == Place::AskKernel {
                let asked = self.asker.route(*address).await;
                place = locate(&self.tables, *address, Some(&asked));
            }
            match place {
                Place::Interface(ifindex) => {
                    search.interfaces.insert(ifindex);
                    search.routed = true;
                }
                Place::Port(ifindex) => {
                    search.interfaces.insert(ifindex);
                }
                Place::Unresolved { bridge, reason } => {
                    // At most once per pause, so an address that nobody has costs next to nothing.
                    if pod.retry <= now
                        && let Err(error) = self.solicit(bridge, *address).await
                    {
                        debug!(%address, %error, "asking for a neighbour");
                    }
                    search.unlocated.push((*address, reason));
                }
                Place::Nowhere(reason) => search.unlocated.push((*address, reason)),
                Place::AskKernel => search.unlocated.push((*address, "no route leads to it".into())),
            }
        }
        search
    }

    async fn solicit(&self, bridge: u32, address: IpAddr) -> Result<(), rtnetlink::Error> {
        let forget = self.tables.is_learnt(bridge, address);
        self.asker.solicit(bridge, address, forget).await
    }

    async fn conclude(&self, key: &PeerKey, pod: &mut Pod, search: Search, now: Instant) -> Result<(), Closed> {
        pod.incomplete = !search.unlocated.is_empty() || search.interfaces.len() != 1;
        if pod.waits() && pod.retry <= now {
            pod.retry = now + pod.pause;
            pod.pause = (pod.pause * 2).min(LAST_RETRY);
        } else if !pod.waits() {
            pod.pause = FIRST_RETRY;
        }
        let mut interfaces = search.interfaces.iter().copied();
        let ifindex = match (interfaces.next(), interfaces.next(), pod.found) {
            // Another pod on the bridge may claim its address: only a route takes an interface away that is there.
            (Some(ifindex), None, Some(old)) if ifindex != old && !search.routed => {
                debug!(pod = %key, ifindex, "a bridge port claims the address of a pod that has its interface");
                old
            }
            (Some(ifindex), None, _) => ifindex,
            // A route that flaps, or addresses that disagree, do not either: the pod would be open for that time.
            (_, _, Some(old)) => old,
            (first, _, None) => {
                let reason = if first.is_none() {
                    search.reason()
                } else {
                    self.disagreement(&search)
                };
                return self.miss(key, pod, reason).await;
            }
        };
        let remark = search.reason();
        let again = pod.told.as_ref().is_some_and(|(told, said)| {
            // What is said while nothing leads there at all is only said of a new interface.
            *told == ifindex && (*said == remark || search.interfaces.is_empty())
        });
        let Some(link) = self.tables.links.get(&ifindex).cloned() else {
            return Ok(());
        };
        if again {
            return Ok(());
        }
        if let Some((old, _)) = pod.told.take().filter(|(old, _)| *old != ifindex) {
            self.tell(Event::Lost {
                pod: key.clone(),
                ifindex: old,
            })
            .await?;
        }
        pod.found = Some(ifindex);
        pod.told = Some((ifindex, remark));
        pod.missed = None;
        self.tell(Event::Found {
            pod: key.clone(),
            ifindex,
            name: link.name,
            layer3: link.layer3,
            unlocated: search.unlocated,
        })
        .await
    }

    async fn miss(&self, key: &PeerKey, pod: &mut Pod, reason: String) -> Result<(), Closed> {
        if pod.missed.as_ref() == Some(&reason) {
            return Ok(());
        }
        pod.missed = Some(reason.clone());
        self.tell(Event::Missing {
            pod: key.clone(),
            reason,
        })
        .await
    }

    fn disagreement(&self, search: &Search) -> String {
        let mut names: Vec<&str> = search
            .interfaces
            .iter()
            .map(|ifindex| self.tables.links.get(ifindex).map_or("?", |link| link.name.as_str()))
            .collect();
        names.sort_unstable();
        format!("its addresses lead to different interfaces ({})", names.join(", "))
    }

    async fn tell(&self, event: Event) -> Result<(), Closed> {
        self.events.send(event).await.map_err(|_| Closed)
    }
}

impl Pod {
    /// It is worth looking again.
    fn waits(&self) -> bool {
        self.pinned.is_none() && (self.found.is_none() || self.incomplete)
    }
}

/// What was found out about one pod.
#[derive(Default)]
struct Search {
    interfaces: HashSet<u32>,
    /// A route says so, which only root can have made.
    routed: bool,
    unlocated: Vec<(IpAddr, String)>,
}

impl Search {
    fn reason(&self) -> String {
        if self.unlocated.is_empty() && self.interfaces.is_empty() {
            return "it has no address".into();
        }
        let lines: Vec<String> = self
            .unlocated
            .iter()
            .map(|(address, reason)| format!("{address}: {reason}"))
            .collect();
        lines.join("; ")
    }
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}
