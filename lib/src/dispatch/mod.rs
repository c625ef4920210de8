//! The task that all requests pass through: it takes them up, writes them coalesced to the connections
//! that they take, reads replies, keeps deadlines, and connects again when connections are lost.
//!
//! Everything about a request happens on this one task, so that "pending", "sent", "answered" need
//! no locks: a deadline, a cancellation, a redirection and a reply can't meet halfway.

mod confirm;
mod entry;
mod exchange;
mod flight;
mod fork;
mod holds;
mod link;
mod links;
mod redirect;
mod track;
mod upkeep;
mod wire;

use std::collections::{BTreeMap, HashSet};
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::config::{Config, Server, Topology};
use crate::connection::Identity;
use crate::context::Context;
use crate::error::{Error, Why};
use crate::queue::{Control, Queue, Taken};
use crate::request::Request;
use crate::tls::Connector;
use crate::topology::{Lookout, View};

use flight::Flight;
use holds::TrackId;
use link::{Link, State};

pub use link::LinkStatus;
pub use track::Kind;

/// Rounds in a row before other tasks get their turn.
const ROUNDS: usize = 64;
/// How often an idle connection is tried, and the clock measured.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Without one byte for this long although answers are due, a server counts as hung.
const HUNG_AFTER: Duration = Duration::from_secs(5);

/// The task's state.
pub(crate) struct Dispatcher {
    queue: Arc<Queue>,
    context: Arc<Context>,
    config: Arc<Config>,
    /// Counts the settings that were applied.
    version: u64,
    tls: Option<Connector>,
    lookout: Lookout,
    status: Arc<Mutex<Vec<LinkStatus>>>,
    flight: Flight,
    /// The connections, by the number of their track.
    links: BTreeMap<TrackId, Link>,
    /// Connections that servers may still have bytes of to read.
    lost: Vec<(Server, Identity)>,
    /// A server refused to close one: what may have been done is not repeated from then on.
    kill_refused: bool,
    /// Since when some requests can go nowhere, and why.
    nowhere: Option<(Instant, Why)>,
    /// Up to which question the lookout has answered who the master is.
    looked: u64,
    /// Why requests are refused at the door.
    closed: Option<Why>,
    /// Taken from the queue in one go; kept for its memory.
    taken: Vec<Request>,
    controls: Vec<Control>,
    cancelled: HashSet<u64>,
    timer: Pin<Box<Sleep>>,
    armed_for: Instant,
    jitter: u64,
}

impl Dispatcher {
    pub(crate) fn new(
        queue: Arc<Queue>,
        context: Arc<Context>,
        config: Config,
        lookout: Lookout,
        status: Arc<Mutex<Vec<LinkStatus>>>,
    ) -> Self {
        let now = Instant::now();
        let mut dispatcher = Dispatcher {
            queue,
            flight: Flight::new(context.clone()),
            context,
            version: 0,
            tls: None,
            lookout,
            status,
            links: BTreeMap::new(),
            lost: Vec::new(),
            kill_refused: false,
            nowhere: Some((now, Why::Connecting)),
            looked: 0,
            closed: None,
            taken: Vec::new(),
            controls: Vec::new(),
            cancelled: HashSet::new(),
            timer: Box::pin(tokio::time::sleep(HEARTBEAT)),
            armed_for: now + HEARTBEAT,
            jitter: now.elapsed().as_nanos() as u64 ^ u64::from(std::process::id()),
            config: Arc::new(config.clone()),
        };
        dispatcher.apply(config);
        dispatcher
    }

    /// Runs until the queue is stopped; every request is answered by then.
    pub(crate) async fn run(mut self) {
        poll_fn(|task| self.poll(task)).await;
        self.close_all();
        self.flight.stop();
        self.publish();
    }

    /// Does as long as there is anything to do.
    fn poll(&mut self, task: &mut TaskContext<'_>) -> Poll<()> {
        for _ in 0..ROUNDS {
            let mut busy = self.read_all(task);
            match self.take(task) {
                Taken::Stopped => return Poll::Ready(()),
                Taken::Something => busy = true,
                Taken::Nothing => {}
            }
            // What is late is not sent.
            self.flight.expire(Instant::now());
            if self.flight.must_reroute {
                self.flight.reroute();
            }
            if !self.flight.reports.is_empty() {
                self.note_replicas();
            }
            self.adopt_tracks();
            busy |= self.write_all(task);
            self.fail_after_grace();
            busy |= self.poll_timer(task);
            if std::mem::take(&mut self.flight.is_outdated) {
                self.lookout.hurry();
            }
            if !busy && !self.flight.must_reroute {
                return Poll::Pending;
            }
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }

    /// Moves what callers left into flight.
    fn take(&mut self, task: &mut TaskContext<'_>) -> Taken {
        let taken = self
            .queue
            .take(&mut self.taken, &mut self.controls, task.waker());
        let mut requests = std::mem::take(&mut self.taken);
        for request in requests.drain(..) {
            self.flight.accept(request);
        }
        self.taken = requests;
        for control in std::mem::take(&mut self.controls) {
            match control {
                Control::Cancel(id) => drop(self.cancelled.insert(id)),
                Control::Reconfigure(config) => self.apply(*config),
                // Settings that name the server may have come after it was looked for.
                Control::View(_) if self.config.redis.topology == Topology::Single => {}
                Control::View(view) => self.adopt(view, false),
                Control::Looked(number) => self.looked = number,
            }
        }
        if !self.cancelled.is_empty() {
            self.flight.cancel(&self.cancelled);
            self.cancelled = HashSet::new();
        }
        taken
    }

    /// Applies settings. Connections that were made with others are made anew when what was sent on them
    /// is answered.
    fn apply(&mut self, config: Config) {
        if self.version > 0 && self.config.redis == config.redis {
            // What is expected of the servers may have changed.
            self.config = Arc::new(config);
            return self.warn_all();
        }
        self.version += 1;
        self.kill_refused = false;
        self.flight.grace = config.redis.outage_grace;
        self.flight.tracks.shares_query = config.redis.pool_size == 1;
        if self.config.redis.ssl != config.redis.ssl || self.version == 1 {
            self.tls = Connector::new(&config.redis.ssl, "redis.ssl");
        }
        self.config = Arc::new(config);
        self.lookout.reconfigure(self.config.clone());
        let config = &self.config;
        let view = match (config.redis.topology, config.redis.servers.first()) {
            (Topology::Single, Some(server)) => Some(View::Master(server.clone())),
            _ => None,
        };
        match view {
            Some(view) => self.adopt(view, true),
            None => self.publish(),
        }
    }

    /// Takes a view of who serves what in. Where the settings say so, connections to other servers answer
    /// what they have sent; after a fail-over they are given up at once, since what an old master still
    /// acknowledges may be lost.
    fn adopt(&mut self, view: View, drains: bool) {
        // What serves goes on until those that new settings name have said who does.
        if matches!(view, View::Unknown(_)) && self.flight.tracks.is_served() {
            return;
        }
        self.nowhere = match &view {
            View::Unknown(why) => {
                let since = self.nowhere.as_ref().map_or_else(Instant::now, |it| it.0);
                Some((since, why.clone()))
            }
            View::Master(_) => None,
            View::Cluster(map) if map.unserved == 0 => None,
            View::Cluster(map) => {
                let since = self.nowhere.as_ref().map_or_else(Instant::now, |it| it.0);
                let text = format!("{} slots are not served", map.unserved);
                Some((since, Why::ClusterDown(text)))
            }
        };
        let leave = self.flight.adopt(&view);
        for (id, link) in &mut self.links {
            link.is_draining &= !self.flight.tracks.leads_to_master(*id);
        }
        for id in leave {
            match self.links.get_mut(&id) {
                Some(link) if drains && link.is_up() => link.is_draining = true,
                _ => self.retire(id),
            }
        }
        self.adopt_tracks();
        self.publish();
    }

    /// Keeps deadlines and sends heartbeats; true when something was due. The clock decides what is due
    /// and the timer only wakes the task: to arm it anew makes it forget that it fired.
    fn poll_timer(&mut self, task: &mut TaskContext<'_>) -> bool {
        let now = Instant::now();
        let due = self.armed_for <= now;
        if due {
            self.flight.send_delayed(now);
            for (id, link) in &self.links {
                if link.is_up() {
                    self.flight.heartbeat(*id, now, HEARTBEAT, HUNG_AFTER);
                }
            }
            self.close_idle(now);
        }
        let grace = self.config.redis.outage_grace;
        let mut wanted = self.flight.next_deadline().min(now + HEARTBEAT);
        for link in self.links.values() {
            if let State::Pausing(until) = link.state {
                wanted = wanted.min(until);
            }
            if let (Some(end), false) = (link.grace_end(grace), link.is_failing) {
                wanted = wanted.min(end);
            }
        }
        if let Some((since, _)) = &self.nowhere {
            // Once it is over there is nothing to wait for.
            wanted = wanted.min((*since + grace).max(now + Duration::from_millis(50)));
        }
        if due || wanted < self.armed_for {
            self.timer.as_mut().reset(wanted.into());
            self.armed_for = wanted;
        }
        self.timer.as_mut().poll(task).is_ready() || due
    }

    /// Once the grace is over, what waits for a connection fails. Where nothing is served at all, what comes
    /// is refused at the door.
    fn fail_after_grace(&mut self) {
        let (now, grace) = (Instant::now(), self.config.redis.outage_grace);
        let mut is_served = false;
        let mut door = None;
        for (id, link) in &mut self.links {
            let is_data = link.kind == Kind::Data && !link.is_draining;
            if link.grace_end(grace).is_none_or(|end| now < end) {
                is_served |= is_data;
                continue;
            }
            let why = link.result.clone().err().unwrap_or(Why::Connecting);
            if !link.is_failing {
                link.is_failing = true;
                tracing::warn!(connection = link.kind.name(), server = %link.server, why = %why, "Redis is unavailable; requests fail at once");
            }
            let error = Error::Unavailable(why.clone());
            self.flight.fail_pending(*id, &error);
            if is_data {
                door = Some(why);
            }
        }
        if let Some((since, why)) = &self.nowhere {
            if now >= *since + grace {
                let error = Error::Unavailable(why.clone());
                self.flight.fail_pending(track::NOWHERE, &error);
                door = door.or(Some(why.clone()));
            } else {
                is_served = true;
            }
        }
        let closed = door.filter(|_| !is_served);
        if closed != self.closed {
            match closed.clone() {
                Some(why) => self.queue.fail(why),
                None => self.queue.open(),
            }
            self.closed = closed;
        }
    }

    /// A number from 0 to 1, for jitter alone (xorshift).
    fn random(&mut self) -> f64 {
        self.jitter |= 1;
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        (self.jitter >> 11) as f64 / (1u64 << 53) as f64
    }
}
