//! One connection, from being wanted to being lost, and what `status/0` tells of it.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use super::track::Kind;
use super::wire::Wire;
use crate::config::{Config, Durability, Server};
use crate::connection::{Identity, Opened};
use crate::error::Why;
use crate::server::{ServerReport, Warning};

/// The first pause before connecting again; doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// A connection that ended sooner was of no use: pause before the next.
const STABLE_AFTER: Duration = Duration::from_secs(1);

/// So long another connection has to begin in the place of one that gave way.
const WAY: Duration = Duration::from_millis(50);

/// What a connection is doing, for `status/0`.
#[derive(Debug, Clone)]
pub struct LinkStatus {
    /// Which requests it carries.
    pub kind: Kind,
    /// Where it leads; `None` as long as no master is known.
    pub server: Option<Server>,
    /// `Ok` when connected, else what is wrong.
    pub state: Result<(), Why>,
    /// Since when.
    pub since: Instant,
    /// What the server said of itself when it was last connected to.
    pub report: ServerReport,
}

impl LinkStatus {
    /// As long as nobody knows more.
    pub(crate) fn connecting() -> Self {
        LinkStatus::nowhere(Why::Connecting, Instant::now())
    }

    /// No master is known.
    pub(super) fn nowhere(why: Why, since: Instant) -> Self {
        LinkStatus {
            kind: Kind::Data,
            server: None,
            state: Err(why),
            since,
            report: ServerReport::default(),
        }
    }

    /// The level of durability that the connection is for.
    pub fn durability(&self) -> Option<Durability> {
        match self.kind {
            Kind::Durable(level) => Some(level),
            Kind::Data | Kind::Query => None,
        }
    }
}

pub(super) type Opening = Pin<Box<dyn Future<Output = Result<Opened, Why>> + Send>>;

pub(super) enum State {
    /// Not wanted yet, or to be opened right away.
    Idle,
    Opening(Opening),
    Up(Box<Wire>),
    /// To be opened at that time.
    Pausing(Instant),
}

pub(super) struct Link {
    pub(super) kind: Kind,
    pub(super) server: Server,
    pub(super) state: State,
    /// What the server calls it.
    pub(super) identity: Option<Identity>,
    /// The lost connections that are closed as it is opened.
    pub(super) closing: Vec<Identity>,
    /// The version of the settings that it was opened with.
    pub(super) version: u64,
    /// The server's `run_id` when it was last connected to.
    pub(super) life: Option<String>,
    /// Which answer of the lookout says whether the server is still the master, and since when it is
    /// waited for.
    pub(super) asked: Option<(u64, Instant)>,
    /// It sends nothing any more, and goes when everything sent is answered.
    pub(super) is_draining: bool,
    /// It sends nothing any more, and another one takes its place when everything sent is answered.
    pub(super) gives_way: bool,
    /// Since when it is wanted and not there.
    pub(super) down_since: Option<Instant>,
    /// The grace is over: requests fail at once.
    pub(super) is_failing: bool,
    pub(super) result: Result<(), Why>,
    pub(super) report: ServerReport,
    /// What was logged of it and still holds.
    warned: Vec<Warning>,
    pub(super) since: Instant,
    pause: Duration,
}

impl Link {
    pub(super) fn new(kind: Kind, server: Server) -> Self {
        let now = Instant::now();
        Link {
            kind,
            server,
            state: State::Idle,
            identity: None,
            closing: Vec::new(),
            version: 0,
            life: None,
            asked: None,
            is_draining: false,
            gives_way: false,
            down_since: None,
            is_failing: false,
            result: Err(Why::Connecting),
            report: ServerReport::default(),
            warned: Vec::new(),
            since: now,
            pause: SHORTEST_PAUSE,
        }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// Whether it counts as a connection at the server.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Up(_) | State::Opening(_))
    }

    pub(super) fn set_result(&mut self, result: Result<(), Why>) {
        self.result = result;
        self.since = Instant::now();
    }

    /// It is there.
    pub(super) fn set_up(&mut self, wire: Wire) {
        self.state = State::Up(Box::new(wire));
        self.down_since = None;
        self.is_failing = false;
        self.set_result(Ok(()));
    }

    /// It is gone, or could not be made: when it is tried again. `chance` is from 0 to 1.
    pub(super) fn set_down(&mut self, chance: f64) {
        let now = Instant::now();
        let was_up = self.is_up();
        self.down_since.get_or_insert(now);
        if was_up && self.since.elapsed() >= STABLE_AFTER {
            self.pause = SHORTEST_PAUSE;
            self.state = State::Idle;
        } else {
            self.state = State::Pausing(now + self.pause.mul_f64(0.5 + chance));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// It was closed, and is opened when it is wanted: without a pause, unless it gave way.
    pub(super) fn set_idle(&mut self) {
        self.pause = SHORTEST_PAUSE;
        self.down_since = None;
        self.state = match std::mem::take(&mut self.gives_way) {
            true => State::Pausing(Instant::now() + WAY),
            false => State::Idle,
        };
    }

    pub(super) fn set_opening(&mut self, opening: Opening) {
        self.gives_way = false;
        self.down_since.get_or_insert_with(Instant::now);
        self.state = State::Opening(opening);
    }

    /// Until when its requests wait.
    pub(super) fn grace_end(&self, grace: Duration) -> Option<Instant> {
        self.down_since.map(|since| since + grace)
    }

    /// Logs the warnings that are new. Every server has a connection for data: that one speaks for it.
    pub(super) fn warn(&mut self, config: &Config) {
        if self.kind != Kind::Data {
            return;
        }
        let warnings = self.report.warnings(config);
        for warning in &warnings {
            if !self.warned.contains(warning) {
                tracing::warn!(server = %self.server, "{}", warning.text);
            }
        }
        self.warned = warnings;
    }

    pub(super) fn status(&self) -> LinkStatus {
        LinkStatus {
            kind: self.kind,
            server: Some(self.server.clone()),
            state: self.result.clone(),
            since: self.since,
            report: self.report.clone(),
        }
    }
}
