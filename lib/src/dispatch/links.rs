//! What the dispatcher does with its connections: opening, reading, writing, losing and closing them.

use std::collections::HashSet;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use super::holds::TrackId;
use super::link::{Link, LinkStatus, Opening, State};
use super::track::Kind;
use super::wire::Wire;
use super::{Dispatcher, HUNG_AFTER};
use crate::config::{Server, Topology};
use crate::connection::{self, Identity, Opened};
use crate::error::Why;
use crate::metrics::Counter;
use crate::server::ServerReport;

/// Where no sentinel has answered for so long, a server that has lived on is taken for the master that it
/// says it is.
const BLIND_AFTER: Duration = Duration::from_millis(1500);
/// How long a connection stands before another one that waits for room takes its place.
const TURN: Duration = Duration::from_millis(200);
/// A connection that is made on demand is closed when it was not used for so long.
const IDLE_AFTER: Duration = Duration::from_secs(60);

impl Dispatcher {
    /// Gives every track its connection.
    pub(super) fn adopt_tracks(&mut self) {
        let mut is_new = false;
        for (id, track) in self.flight.tracks.iter() {
            if let (Some(server), false) = (&track.server, self.links.contains_key(&id)) {
                self.links.insert(id, Link::new(track.kind, server.clone()));
                is_new = true;
            }
        }
        if is_new {
            self.publish();
        }
    }

    /// Opens connections that are wanted, and reads from those that stand; true when anything happened.
    pub(super) fn read_all(&mut self, task: &mut TaskContext<'_>) -> bool {
        let mut busy = false;
        let ids: Vec<TrackId> = self.links.keys().copied().collect();
        for id in ids {
            let Some(link) = self.links.get_mut(&id) else {
                continue;
            };
            match &mut link.state {
                State::Idle => busy |= self.open(id),
                State::Pausing(until) if *until <= Instant::now() => {
                    // It may not be wanted any more, or have no room: nothing is due then.
                    link.state = State::Idle;
                    busy |= self.open(id);
                }
                State::Pausing(_) => {}
                State::Opening(opening) => match opening.as_mut().poll(task) {
                    Poll::Ready(Ok(opened)) => {
                        self.connected(id, opened);
                        busy = true;
                    }
                    Poll::Ready(Err(why)) => {
                        self.context.metrics.add(Counter::ConnectFailures, 1);
                        self.lose(id, why);
                        busy = true;
                    }
                    Poll::Pending => {}
                },
                State::Up(wire) => match wire.poll_read(task, &mut self.flight, id) {
                    Ok(read) => busy |= read,
                    Err(why) => {
                        self.lose(id, why);
                        busy = true;
                    }
                },
            }
        }
        busy
    }

    /// Sends what waits for connections that stand; true when anything was written.
    pub(super) fn write_all(&mut self, task: &mut TaskContext<'_>) -> bool {
        let mut busy = false;
        let mut ended = Vec::new();
        let now = Instant::now();
        for (id, link) in &mut self.links {
            let State::Up(wire) = &mut link.state else {
                continue;
            };
            let track = self.flight.tracks.peek(*id);
            let is_answered =
                track.is_none_or(|track| track.sent.is_empty() && track.confirmation.is_empty());
            if !link.is_draining && !link.gives_way && link.version == self.version {
                busy |= self.flight.send_pending(*id, wire);
            } else if is_answered {
                ended.push((*id, None));
                continue;
            } else if track.is_some_and(|track| !track.confirmation.is_empty()) {
                // What is done may still have to be confirmed.
                busy |= self.flight.ask_to_confirm(*id, wire);
            }
            match wire.poll_write(task) {
                Ok(wrote) => busy |= wrote,
                Err(why) => ended.push((*id, Some(why))),
            }
            if self.flight.is_hung(*id, now, wire.last_read(), HUNG_AFTER) {
                ended.push((*id, Some(Why::Hung)));
            }
        }
        busy |= !ended.is_empty();
        for (id, why) in ended {
            match why {
                Some(why) => self.lose(id, why),
                None => self.reopen(id),
            }
        }
        busy
    }

    /// Everything sent is answered: the connection is made anew, or is not needed any more.
    fn reopen(&mut self, id: TrackId) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        link.set_idle();
        self.flight.set_up(id, false);
        if link.is_draining {
            self.retire(id);
        }
    }

    /// Begins to open a connection, if it is wanted and there may be one more.
    fn open(&mut self, id: TrackId) -> bool {
        let is_cluster = self.config.redis.topology == Topology::Cluster;
        let Some(link) = self.links.get(&id) else {
            return false;
        };
        let has_pending = |id| {
            let track = self.flight.tracks.peek(id);
            track.is_some_and(|track| !track.pending.is_empty())
        };
        // Where requests fail at once none would ever wait for the connection.
        let is_wanted = link.is_failing
            || match link.kind {
                Kind::Data => self.flight.tracks.leads_to_master(id),
                Kind::Query => !is_cluster && !self.flight.tracks.shares_query,
                Kind::Durable(_) => false,
            };
        // What only might be used takes no other's place: the two would close each other in turns.
        let is_needed = link.is_failing || has_pending(id);
        if !is_wanted && !is_needed {
            if let Some(link) = self.links.get_mut(&id) {
                link.down_since = None;
            }
            return false;
        }
        let is_asked = self.config.redis.topology == Topology::Sentinel;
        let life = match link.asked {
            Some((number, since)) if is_asked && number > self.looked => match &link.life {
                Some(life) if since.elapsed() >= BLIND_AFTER && self.lookout.blind().is_some() => {
                    Some(life.clone())
                }
                _ => return false,
            },
            _ => None,
        };
        let server = link.server.clone();
        if !self.has_room(&server, is_needed) {
            if is_needed {
                self.give_way(&server);
            }
            return false;
        }
        let (config, context) = (self.config.clone(), self.context.clone());
        let tls = self.tls.clone();
        let version = self.version;
        // A server may have several addresses: its `run_id` says which are its own.
        let closing: Vec<Identity> = self.lost.iter().map(|(_, it)| it.clone()).collect();
        let Some(link) = self.links.get_mut(&id) else {
            return false;
        };
        link.closing.clone_from(&closing);
        link.version = version;
        let opening: Opening = Box::pin(async move {
            connection::open(
                &config.redis,
                tls.as_ref(),
                &context,
                &server,
                &closing,
                life.as_deref(),
            )
            .await
        });
        link.set_opening(opening);
        true
    }

    /// Whether one more connection to a server may be made. Of those that are idle, the one that was not
    /// used for longest makes room where it `is_needed`.
    fn has_room(&mut self, server: &Server, is_needed: bool) -> bool {
        let its = || self.links.iter().filter(|(_, link)| link.server == *server);
        if its().filter(|(_, link)| link.is_open()).count() < self.config.redis.pool_size {
            return true;
        }
        let is_idle = |id: &TrackId| {
            let track = self.flight.tracks.peek(*id);
            track.is_none_or(|track| track.is_idle())
        };
        let last_used = |id: &TrackId| self.flight.tracks.peek(*id).map(|track| track.last_used);
        let idle = its()
            .filter(|(id, link)| is_needed && link.is_up() && is_idle(id))
            .min_by_key(|(id, _)| last_used(id));
        let Some(id) = idle.map(|(id, _)| *id) else {
            return false;
        };
        self.reopen(id);
        true
    }

    /// Where connections are fewer than what is never idle, they take turns.
    fn give_way(&mut self, server: &Server) {
        let its = || self.links.values().filter(|link| link.server == *server);
        if its().any(|link| link.gives_way || !link.is_up() && link.is_open()) {
            return;
        }
        let had_its_turn = |link: &&mut Link| {
            link.server == *server && link.is_up() && link.since.elapsed() >= TURN
        };
        let links = self.links.values_mut().filter(had_its_turn);
        if let Some(oldest) = links.min_by_key(|link| link.since) {
            oldest.gives_way = true;
        }
    }

    fn connected(&mut self, id: TrackId, opened: Opened) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        self.context.metrics.add(Counter::Connects, 1);
        let closed = std::mem::take(&mut link.closing);
        link.identity = opened.identity;
        link.life = link.identity.as_ref().map(|it| it.run.clone());
        link.asked = None;
        link.set_up(Wire::new(opened.stream, self.context.clone()));
        let server = link.server.clone();
        let run = link.identity.as_ref().map(|it| it.run.clone());
        tracing::info!(connection = link.kind.name(), server = %server, "connected to Redis");
        self.flight.set_up(id, true);
        self.flight.note_time(id, &opened.times, true);
        self.kill_refused |= !opened.closed_lost;
        if self.kill_refused {
            self.flight.give_doubtful_up(id, &Why::Closed);
        }
        // What was lost meanwhile is closed on this connection, ahead of everything else.
        // Those of an earlier life of the server at this address are gone with it.
        self.lost.retain(|(at, identity)| {
            let is_its = *at == server || Some(&identity.run) == run.as_ref();
            !is_its || !closed.contains(identity)
        });
        for (_, identity) in &self.lost {
            if Some(&identity.run) == run.as_ref() {
                self.flight.kill(id, identity.client);
            }
        }
        self.note_report(id, opened.report);
        self.publish();
    }

    /// A connection is gone, or could not be made.
    pub(super) fn lose(&mut self, id: TrackId, why: Why) {
        let chance = self.random();
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        let written = match &link.state {
            State::Up(wire) => Some(wire.written()),
            _ => None,
        };
        link.set_down(chance);
        let identity = link.identity.take();
        if self.config.redis.topology == Topology::Sentinel {
            // A server that comes back may have been deposed meanwhile, and not know it yet.
            let since = link.asked.map_or_else(Instant::now, |(_, since)| since);
            link.asked = Some((self.lookout.ask(), since));
        }
        let (server, is_draining) = (link.server.clone(), link.is_draining);
        let is_news = link.result.as_ref().err() != Some(&why);
        if is_news {
            tracing::warn!(connection = link.kind.name(), server = %server, why = %why, "no connection to Redis");
            link.set_result(Err(why.clone()));
        }
        if let Some(written) = written {
            self.context.metrics.add(Counter::Disconnects, 1);
            self.flight.set_up(id, false);
            let may_repeat = identity.is_some() && !self.kill_refused;
            if let Some(identity) = identity {
                self.kill_beside(&identity);
                self.lost.push((server, identity));
            }
            self.flight.abort_sent(id, written, &why, may_repeat);
        }
        if is_draining {
            self.retire(id);
        }
        if self.config.redis.topology != Topology::Single {
            self.lookout.hurry();
        }
        if is_news {
            self.publish();
        }
    }

    /// The server may still have bytes of a lost connection to read, and so would do older writes after newer
    /// ones that come on its other connections: these close it there first.
    fn kill_beside(&mut self, lost: &Identity) {
        for (id, link) in &self.links {
            let run = link.identity.as_ref().map(|it| &it.run);
            if link.is_up() && run == Some(&lost.run) {
                self.flight.kill(*id, lost.client);
            }
        }
    }

    /// A track leads to no master any more, or is not needed. What was sent is repeated elsewhere.
    pub(super) fn retire(&mut self, id: TrackId) {
        if let Some(link) = self.links.remove(&id) {
            if let State::Up(wire) = &link.state {
                self.context.metrics.add(Counter::Disconnects, 1);
                self.flight.set_up(id, false);
                let may_repeat = link.identity.is_some() && !self.kill_refused;
                if let Some(identity) = link.identity {
                    self.kill_beside(&identity);
                    self.lost.push((link.server, identity));
                }
                self.flight
                    .abort_sent(id, wire.written(), &Why::Closed, may_repeat);
            }
        }
        self.flight.remove(id);
    }

    /// Closes what was made on demand and is not used.
    pub(super) fn close_idle(&mut self, now: Instant) {
        let is_cluster = self.config.redis.topology == Topology::Cluster;
        let idle: Vec<TrackId> = self
            .links
            .iter()
            .filter(|(id, link)| {
                let track = self.flight.tracks.peek(**id);
                let is_unused = track.is_none_or(|track| {
                    track.is_idle() && now.duration_since(track.last_used) >= IDLE_AFTER
                });
                let on_demand = match link.kind {
                    Kind::Data => !self.flight.tracks.leads_to_master(**id),
                    Kind::Query => is_cluster,
                    Kind::Durable(_) => true,
                };
                on_demand && is_unused
            })
            .map(|(id, _)| *id)
            .collect();
        for id in &idle {
            self.links.remove(id);
            self.flight.set_up(*id, false);
            self.flight.remove(*id);
        }
        if !idle.is_empty() {
            self.publish();
        }
        let servers: HashSet<&Server> = self.links.values().map(|link| &link.server).collect();
        // Who is never connected to again needs no remembering; a server that comes back was asked to
        // close all of ours when it stopped being a master, or has another `run_id`.
        if self.lost.len() > 1000 {
            self.lost.retain(|(server, _)| servers.contains(server));
        }
    }

    /// Ends every connection; what was sent is not answered any more.
    pub(super) fn close_all(&mut self) {
        for (id, link) in std::mem::take(&mut self.links) {
            if let State::Up(wire) = link.state {
                self.flight
                    .abort_sent(id, wire.written(), &Why::Stopped, false);
            }
        }
        self.nowhere = Some((Instant::now(), Why::Stopped));
    }

    fn note_report(&mut self, id: TrackId, report: ServerReport) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if let (Kind::Durable(level), Some(track)) = (link.kind, self.flight.tracks.get(id)) {
            track.unsupported = report.lacks(level);
        }
        self.warn(id, report);
    }

    /// Takes in what servers say of their replicas.
    pub(super) fn note_replicas(&mut self) {
        for (id, info) in std::mem::take(&mut self.flight.reports) {
            if let Some(link) = self.links.get(&id) {
                let mut report = link.report.clone();
                report.note_replication(&String::from_utf8_lossy(&info));
                if report != link.report {
                    self.warn(id, report);
                    self.publish();
                }
            }
        }
    }

    /// Logs what the settings newly make of what servers said.
    pub(super) fn warn_all(&mut self) {
        let said = |link: &&mut Link| link.report != ServerReport::default();
        for link in self.links.values_mut().filter(said) {
            link.warn(&self.config);
        }
    }

    /// Keeps what a server says, and logs the warnings that are new.
    fn warn(&mut self, id: TrackId, report: ServerReport) {
        if let Some(link) = self.links.get_mut(&id) {
            link.report = report;
            link.warn(&self.config);
        }
    }

    /// Shows `status/0` what there is.
    pub(super) fn publish(&self) {
        let mut all: Vec<LinkStatus> = self.links.values().map(Link::status).collect();
        // The data's connections first: they say whether anything is served.
        all.sort_by_key(|link| match link.kind {
            Kind::Data => 0,
            Kind::Query => 1,
            Kind::Durable(_) => 2,
        });
        if let (Some((since, why)), true) = (&self.nowhere, all.is_empty()) {
            all.push(LinkStatus::nowhere(why.clone(), *since));
        }
        let mut status = self
            .status
            .lock()
            .unwrap_or_else(|broken| broken.into_inner());
        *status = all;
    }
}
