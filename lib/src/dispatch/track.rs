//! Tracks: what is on its way through each connection, and which connection a request takes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::confirm::Confirmation;
use super::entry::{Entry, EntryId};
use super::holds::TrackId;
use crate::config::{Durability, Server};
use crate::context::Context;
use crate::error::Why;
use crate::metrics::OperationKind;
use crate::resp::Frame;
use crate::slots::{NOBODY, SLOTS};
use crate::topology::View;

/// Where requests wait while nobody knows who serves them. No connection belongs to it.
pub(super) const NOWHERE: TrackId = 0;
/// How often a server that refuses is tried with a request.
const PROBE_EVERY: Duration = Duration::from_millis(300);

/// What a server said so long ago says nothing about now.
const STALE_AFTER: Duration = Duration::from_secs(1);

/// Which requests a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Operations on sessions, messages and routes. None of them is slow.
    Data,
    /// Commands of users, which may be slow: the server counts as hung only past their deadlines.
    Query,
    /// Writes of a level of durability. While one waits to be confirmed, so does what is behind it.
    Durable(Durability),
}

impl Kind {
    /// The name that `status/0` shows.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Data => "data",
            Kind::Query => "query",
            Kind::Durable(_) => "durable",
        }
    }
}

/// The requests of one connection.
pub(super) struct Track {
    pub(super) server: Option<Server>,
    pub(super) kind: Kind,
    /// Not sent yet, in the order submitted.
    pub(super) pending: VecDeque<Entry>,
    /// Sent and not answered by the server yet, in the order of the bytes.
    pub(super) sent: VecDeque<Sent>,
    pub(super) confirmation: Confirmation,
    pub(super) heartbeat_sent: Instant,
    pub(super) heartbeat_due: bool,
    pub(super) heartbeats: u32,
    pub(super) loading_scripts: bool,
    pub(super) is_up: bool,
    /// Numbers the connections.
    pub(super) life: u64,
    /// The server's clock minus the reference clock, in microseconds.
    pub(super) skew: i64,
    /// Why the server can't do what this track is for.
    pub(super) unsupported: Option<String>,
    pub(super) last_used: Instant,
    refusal: Option<Refusal>,
}

/// A server that answers, but does not serve.
struct Refusal {
    why: Why,
    since: Instant,
    last: Instant,
    next_probe: Instant,
}

/// A request whose bytes were handed to the connection.
pub(super) struct Sent {
    pub(super) entry: Entry,
    pub(super) replies: Vec<Frame>,
    pub(super) expected: usize,
    /// Where its bytes begin in the connection's life.
    pub(super) begin: u64,
    pub(super) at: Instant,
    /// An earlier operation on the same thing has to be sent again, and this one after it.
    pub(super) again: bool,
}

impl Track {
    fn new(server: Option<Server>, kind: Kind) -> Self {
        let now = Instant::now();
        Track {
            server,
            kind,
            pending: VecDeque::new(),
            sent: VecDeque::new(),
            confirmation: Confirmation::default(),
            heartbeat_sent: now,
            heartbeat_due: false,
            heartbeats: 0,
            loading_scripts: false,
            is_up: false,
            life: 0,
            skew: 0,
            unsupported: None,
            last_used: now,
            refusal: None,
        }
    }

    /// Puts an entry among those that wait, by its id.
    pub(super) fn insert(&mut self, entry: Entry) {
        let id = entry.id();
        if self.pending.back().is_none_or(|last| last.id() <= id) {
            return self.pending.push_back(entry);
        }
        let at = self.pending.partition_point(|other| other.id() <= id);
        self.pending.insert(at, entry);
    }

    /// The entries of one request that wait.
    pub(super) fn of_request(&mut self, id: u64) -> impl Iterator<Item = &mut Entry> {
        let from = self.pending.partition_point(|it| it.id() < (id, 0));
        let behind: EntryId = (id, u32::MAX);
        self.pending
            .range_mut(from..)
            .take_while(move |it| it.id() <= behind)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.sent.is_empty() && self.confirmation.is_empty()
    }

    /// Notes that the server refused; since when it does.
    pub(super) fn refused(&mut self, why: Why, now: Instant) -> Instant {
        let refusal = self.refusal.get_or_insert_with(|| Refusal {
            why: why.clone(),
            since: now,
            last: now,
            next_probe: now,
        });
        refusal.why = why;
        refusal.last = now;
        refusal.since
    }

    pub(super) fn served(&mut self) {
        self.refusal = None;
    }

    /// Why a request is not even tried: the server has refused for longer than the grace. One now and then
    /// is let through, to see whether it still does.
    pub(super) fn refuses(&mut self, grace: Duration) -> Option<Why> {
        let refusal = self.refusal.as_mut()?;
        let now = Instant::now();
        // Nobody has tried since.
        if now > refusal.last + STALE_AFTER {
            self.refusal = None;
            return None;
        }
        if now < refusal.since + grace {
            return None;
        }
        if now >= refusal.next_probe {
            refusal.next_probe = now + PROBE_EVERY;
            return None;
        }
        Some(refusal.why.clone())
    }
}

/// A server, and the tracks that lead there.
struct Road {
    server: Server,
    tracks: Vec<(Kind, TrackId)>,
    /// Whether it is a master.
    is_master: bool,
}

/// Who serves what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Serving {
    Nobody,
    /// One master serves everything, the one of this number.
    One(u16),
    /// The masters of a cluster, by slot.
    BySlot,
}

pub(super) struct Tracks {
    all: Vec<Option<Track>>,
    /// Servers by number. A number that nothing refers to is given anew.
    roads: Vec<Option<Road>>,
    serving: Serving,
    /// Whether callers' own commands share the connection of the data.
    pub(super) shares_query: bool,
}

impl Tracks {
    pub(super) fn new() -> Self {
        Tracks {
            all: vec![Some(Track::new(None, Kind::Data))],
            roads: Vec::new(),
            serving: Serving::Nobody,
            shares_query: false,
        }
    }

    pub(super) fn get(&mut self, id: TrackId) -> Option<&mut Track> {
        self.all.get_mut(id)?.as_mut()
    }

    pub(super) fn peek(&self, id: TrackId) -> Option<&Track> {
        self.all.get(id)?.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (TrackId, &Track)> {
        let all = self.all.iter().enumerate();
        all.filter_map(|(id, track)| Some((id, track.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (TrackId, &mut Track)> {
        let all = self.all.iter_mut().enumerate();
        all.filter_map(|(id, track)| Some((id, track.as_mut()?)))
    }

    /// Whether it is known who serves anything.
    pub(super) fn is_served(&self) -> bool {
        self.serving != Serving::Nobody
    }

    /// The track that a request takes as things are.
    pub(super) fn route(&mut self, context: &Context, entry: &Entry) -> TrackId {
        let operation = entry.request.operation.as_ref();
        let kind = match entry.request.durability {
            _ if operation.kind() == OperationKind::Query && !self.shares_query => Kind::Query,
            Some(level) if operation.is_write() && level != Durability::None => {
                Kind::Durable(level)
            }
            _ => Kind::Data,
        };
        if let Some(server) = &entry.asking {
            let number = self.number(&server.clone());
            return self.track(number, kind);
        }
        let number = match self.serving {
            Serving::Nobody => NOBODY,
            Serving::One(number) => number,
            Serving::BySlot => match operation.slot(context) {
                Some(slot) => context.slots.owner(slot),
                None => self.any_master(context),
            },
        };
        match number {
            NOBODY => NOWHERE,
            number => self.track(number, kind),
        }
    }

    /// A master that is connected, if there is one.
    fn any_master(&self, context: &Context) -> u16 {
        let is_up = |road: &Road| {
            road.tracks.iter().any(|(_, id)| {
                let track = self.all.get(*id).and_then(Option::as_ref);
                track.is_some_and(|track| track.is_up)
            })
        };
        let mut roads = self.roads.iter().enumerate();
        let up =
            roads.position(|(_, road)| road.as_ref().is_some_and(|it| it.is_master && is_up(it)));
        let owners = (0..SLOTS)
            .step_by(1024)
            .map(|slot| context.slots.owner(slot));
        up.map(|number| number as u16)
            .or_else(|| owners.into_iter().find(|owner| *owner != NOBODY))
            .unwrap_or(NOBODY)
    }

    /// The number of a server.
    fn number(&mut self, server: &Server) -> u16 {
        let is_it = |road: &Option<Road>| road.as_ref().is_some_and(|it| it.server == *server);
        if let Some(number) = self.roads.iter().position(is_it) {
            return number as u16;
        }
        let road = Some(Road {
            server: server.clone(),
            tracks: Vec::new(),
            is_master: false,
        });
        match self.roads.iter().position(Option::is_none) {
            Some(free) => {
                self.roads[free] = road;
                free as u16
            }
            None => {
                self.roads.push(road);
                (self.roads.len() - 1) as u16
            }
        }
    }

    /// The track of this kind to the server of this number.
    fn track(&mut self, number: u16, kind: Kind) -> TrackId {
        let Some(Some(road)) = self.roads.get_mut(usize::from(number)) else {
            return NOWHERE;
        };
        if let Some((_, id)) = road.tracks.iter().find(|(its, _)| *its == kind) {
            return *id;
        }
        let track = Some(Track::new(Some(road.server.clone()), kind));
        let id = match self.all.iter().position(Option::is_none) {
            Some(free) => {
                self.all[free] = track;
                free
            }
            None => {
                self.all.push(track);
                self.all.len() - 1
            }
        };
        road.tracks.push((kind, id));
        id
    }

    /// Takes a view of who serves what in. Answers the tracks that lead to no master any more; they stay
    /// until they are removed.
    pub(super) fn adopt(&mut self, context: &Context, view: &View) -> Vec<TrackId> {
        for road in self.roads.iter_mut().flatten() {
            road.is_master = false;
        }
        match view {
            View::Unknown(_) => self.serving = Serving::Nobody,
            View::Master(server) => {
                let number = self.number(server);
                self.set_master(number);
                self.serving = Serving::One(number);
                self.track(number, Kind::Data);
                if !self.shares_query {
                    self.track(number, Kind::Query);
                }
            }
            View::Cluster(map) => {
                (0..SLOTS).for_each(|slot| context.slots.set(slot, NOBODY));
                for (server, ranges) in &map.masters {
                    let number = self.number(server);
                    self.set_master(number);
                    self.track(number, Kind::Data);
                    for range in ranges {
                        range
                            .clone()
                            .for_each(|slot| context.slots.set(slot, number));
                    }
                }
                self.serving = Serving::BySlot;
            }
        }
        let others = self.roads.iter().flatten().filter(|road| !road.is_master);
        others
            .flat_map(|road| road.tracks.iter().map(|(_, id)| *id))
            .collect()
    }

    /// The number of the server that a track leads to.
    pub(super) fn number_of(&self, id: TrackId) -> Option<u16> {
        let its = |road: &Option<Road>| {
            road.as_ref()
                .is_some_and(|it| it.tracks.iter().any(|(_, track)| *track == id))
        };
        self.roads.iter().position(its).map(|number| number as u16)
    }

    fn set_master(&mut self, number: u16) {
        if let Some(Some(road)) = self.roads.get_mut(usize::from(number)) {
            road.is_master = true;
        }
    }

    /// A server says that this one owns the slot.
    pub(super) fn moved(&mut self, context: &Context, slot: u16, server: &Server) {
        let number = self.number(server);
        self.set_master(number);
        context.slots.set(slot, number);
    }

    /// Whether a track leads to a master.
    pub(super) fn leads_to_master(&self, id: TrackId) -> bool {
        let mut roads = self.roads.iter().flatten();
        roads.any(|road| road.is_master && road.tracks.iter().any(|(_, its)| *its == id))
    }

    /// Forgets a track, and its server when nothing else leads there.
    pub(super) fn remove(&mut self, context: &Context, id: TrackId) -> Option<Track> {
        for (number, road) in self.roads.iter_mut().enumerate() {
            let Some(its) = road else { continue };
            its.tracks.retain(|(_, track)| *track != id);
            let is_owner = || (0..SLOTS).any(|slot| context.slots.owner(slot) == number as u16);
            let is_served = matches!(self.serving, Serving::One(one) if usize::from(one) == number);
            if its.tracks.is_empty() && !its.is_master && !is_served && !is_owner() {
                *road = None;
            }
        }
        self.all.get_mut(id)?.take()
    }
}
