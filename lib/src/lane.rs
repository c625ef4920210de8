//! One connection's task: takes requests up, writes them coalesced, reads replies, keeps deadlines,
//! and connects again when the connection is lost.
//!
//! Everything about a request happens on this one task, so that "pending", "sent", "answered" need
//! no locks: a deadline, a cancellation and a reply can't meet halfway.

mod entry;
mod flight;
mod holds;
mod wire;

use std::collections::HashSet;
use std::future::{poll_fn, Future};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

use crate::config::Config;
use crate::connection::{self, Identity, Opened};
use crate::context::Context;
use crate::error::{Error, Why};
use crate::metrics::Counter;
use crate::queue::{Control, Queue, Taken};
use crate::request::Request;
use crate::server::ServerReport;
use crate::tls::Connector;

use flight::Flight;
use wire::Wire;

/// The first pause before connecting again; doubles up to the longest.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Without one byte for this long although answers are due, a server counts as hung.
const HUNG_AFTER: Duration = Duration::from_secs(5);
/// A connection that ended sooner was of no use: pause before the next.
const STABLE_AFTER: Duration = Duration::from_secs(1);
/// Rounds in a row before other tasks get their turn.
const ROUNDS: usize = 64;
/// How often an idle connection is tried, and the clock measured.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What a connection is doing, for `status/0`.
#[derive(Debug, Clone)]
pub struct LaneStatus {
    /// Which requests it carries.
    pub name: &'static str,
    /// `Ok` when connected, else what is wrong.
    pub state: Result<(), Why>,
    /// Since when.
    pub since: Instant,
    /// What the server said of itself when it was last connected to.
    pub report: ServerReport,
}

/// Which requests a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Operations on sessions, messages and routes. None of them is slow.
    Data,
    /// Commands of users, which may be slow: the server counts as hung only past their deadlines.
    Query,
}

impl Role {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Role::Data => "data",
            Role::Query => "query",
        }
    }
}

/// A connection's task.
pub(crate) struct Lane {
    role: Role,
    queue: Arc<Queue>,
    context: Arc<Context>,
    config: Config,
    tls: Option<Connector>,
    status: Arc<Mutex<LaneStatus>>,
    flight: Flight,
    /// Taken from the queue in one go; kept for its memory.
    taken: Vec<Request>,
    controls: Vec<Control>,
    cancelled: HashSet<u64>,
    timer: Pin<Box<Sleep>>,
    armed_for: Instant,
    /// Since when there is no connection.
    down_since: Option<Instant>,
    failing: bool,
    new_config: Option<Box<Config>>,
    /// The server may still have bytes of it to read.
    lost_connection: Option<Identity>,
    jitter: u64,
}

/// Why a connection is given up.
enum End {
    Broken(Why),
    /// Everything sent is answered and the settings have changed.
    Reconnect,
    Stopped,
}

impl Lane {
    pub(crate) fn new(
        role: Role,
        queue: Arc<Queue>,
        context: Arc<Context>,
        config: Config,
        status: Arc<Mutex<LaneStatus>>,
    ) -> Self {
        let now = Instant::now();
        Lane {
            role,
            queue,
            tls: Connector::new(&config.redis.ssl, "redis.ssl"),
            config,
            status,
            flight: Flight::new(context.clone()),
            context,
            taken: Vec::new(),
            controls: Vec::new(),
            cancelled: HashSet::new(),
            timer: Box::pin(tokio::time::sleep(HEARTBEAT)),
            armed_for: now + HEARTBEAT,
            down_since: Some(now),
            failing: false,
            new_config: None,
            lost_connection: None,
            jitter: now.elapsed().as_nanos() as u64 ^ std::process::id() as u64 ^ role as u64,
        }
    }

    /// Runs until the queue is stopped; every request is answered by then.
    pub(crate) async fn run(mut self) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            self.adopt_config();
            let (config, context) = (self.config.redis.clone(), self.context.clone());
            let (tls, lost) = (self.tls.clone(), self.lost_connection.clone());
            let opening = connection::open(&config, tls.as_ref(), &context, lost.as_ref());
            let opened = self.serve_while(opening).await;
            let begun = Instant::now();
            match opened {
                None => break,
                Some(Ok(opened)) => {
                    if self.connected(opened).await {
                        break;
                    }
                    if self.new_config.is_some() || begun.elapsed() >= STABLE_AFTER {
                        pause = SHORTEST_PAUSE;
                        continue;
                    }
                }
                Some(Err(why)) => {
                    self.context.metrics.add(Counter::ConnectFailures, 1);
                    self.lost(why);
                }
            }
            let jittered = pause.mul_f64(0.5 + self.random());
            pause = (pause * 2).min(LONGEST_PAUSE);
            if self
                .serve_while(tokio::time::sleep(jittered))
                .await
                .is_none()
            {
                break;
            }
        }
        self.flight.stop();
        self.set_state(Err(Why::Stopped));
    }

    /// Uses a connection until it ends; true when the lane is stopped.
    async fn connected(&mut self, opened: Opened) -> bool {
        self.context.metrics.add(Counter::Connects, 1);
        self.down_since = None;
        self.failing = false;
        self.lost_connection = None;
        self.note_report(opened.report);
        self.set_state(Ok(()));
        self.queue.open();
        let mut wire = Wire::new(opened.stream, self.context.clone());
        let end = poll_fn(|task| self.poll_connected(&mut wire, task)).await;
        let written = wire.written();
        drop(wire);
        match end {
            End::Stopped => {
                self.flight.abort_sent(written, &Why::Stopped);
                true
            }
            End::Reconnect => {
                self.down_since = Some(Instant::now());
                false
            }
            End::Broken(why) => {
                self.context.metrics.add(Counter::Disconnects, 1);
                self.flight.abort_sent(written, &why);
                self.lost_connection = opened.identity;
                self.lost(why);
                false
            }
        }
    }

    /// Reads and writes as long as there is anything to do.
    fn poll_connected(&mut self, wire: &mut Wire, task: &mut TaskContext<'_>) -> Poll<End> {
        for _ in 0..ROUNDS {
            let mut busy = false;
            match wire.poll_read(task, &mut self.flight) {
                Ok(read) => busy |= read,
                Err(why) => return Poll::Ready(End::Broken(why)),
            }
            match self.take(task) {
                Taken::Stopped => return Poll::Ready(End::Stopped),
                Taken::Something => busy = true,
                Taken::Nothing => {}
            }
            if self.new_config.is_none() {
                busy |= self.flight.send_pending(wire);
            } else if self.flight.nothing_sent() {
                return Poll::Ready(End::Reconnect);
            }
            match wire.poll_write(task) {
                Ok(wrote) => busy |= wrote,
                Err(why) => return Poll::Ready(End::Broken(why)),
            }
            busy |= self.poll_timer(task);
            let now = Instant::now();
            if self
                .flight
                .is_hung(now, wire.last_read(), HUNG_AFTER, self.role == Role::Query)
            {
                return Poll::Ready(End::Broken(Why::Hung));
            }
            if !busy {
                return Poll::Pending;
            }
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }

    /// Awaits `future` without a connection; requests wait, fail or are cancelled meanwhile.
    /// `None`: the lane was stopped.
    async fn serve_while<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        poll_fn(|task| {
            for _ in 0..ROUNDS {
                if let Poll::Ready(value) = future.as_mut().poll(task) {
                    return Poll::Ready(Some(value));
                }
                let taken = self.take(task);
                if taken == Taken::Stopped {
                    return Poll::Ready(None);
                }
                self.fail_after_grace();
                let due = self.poll_timer(task);
                if taken == Taken::Nothing && !due {
                    return Poll::Pending;
                }
            }
            task.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    /// Moves what callers left into flight.
    fn take(&mut self, task: &mut TaskContext<'_>) -> Taken {
        let taken = self
            .queue
            .take(&mut self.taken, &mut self.controls, task.waker());
        for request in self.taken.drain(..) {
            self.flight.accept(request);
        }
        for control in self.controls.drain(..) {
            match control {
                Control::Cancel(id) => drop(self.cancelled.insert(id)),
                Control::Reconfigure(config) => self.new_config = Some(config),
            }
        }
        if !self.cancelled.is_empty() {
            self.flight.cancel(&self.cancelled);
            self.cancelled = HashSet::new();
        }
        taken
    }

    /// Keeps deadlines and sends heartbeats; true when something was due. The clock decides what is due
    /// and the timer only wakes the task: to arm it anew makes it forget that it fired.
    fn poll_timer(&mut self, task: &mut TaskContext<'_>) -> bool {
        let now = Instant::now();
        let due = self.armed_for <= now;
        if due {
            self.flight.expire(now);
            if self.down_since.is_none() {
                self.flight.heartbeat(now, HEARTBEAT, HUNG_AFTER);
            }
        }
        let mut wanted = self.flight.next_deadline().min(now + HEARTBEAT);
        if self.down_since.is_some() && !self.failing {
            wanted = wanted.min(self.grace_end());
        }
        if due || wanted < self.armed_for {
            self.timer.as_mut().reset(wanted.into());
            self.armed_for = wanted;
        }
        self.timer.as_mut().poll(task).is_ready() || due
    }

    fn grace_end(&self) -> Instant {
        self.down_since.unwrap_or_else(Instant::now) + self.config.redis.outage_grace
    }

    /// Once the grace is over, what waits fails and what comes is refused at the door.
    fn fail_after_grace(&mut self) {
        if self.down_since.is_some() && (self.failing || Instant::now() >= self.grace_end()) {
            let why = self.state().err().unwrap_or(Why::Connecting);
            if !self.failing {
                self.failing = true;
                tracing::warn!(connection = self.role.name(), why = %why, "Redis is unavailable; requests fail at once");
            }
            self.queue.fail(why.clone());
            self.flight.fail_pending(&Error::Unavailable(why));
        }
    }

    fn lost(&mut self, why: Why) {
        if self.down_since.is_none() {
            self.down_since = Some(Instant::now());
        }
        if self.state().as_ref().err() != Some(&why) {
            tracing::warn!(connection = self.role.name(), why = %why, "no connection to Redis");
            self.set_state(Err(why));
        }
    }

    fn adopt_config(&mut self) {
        if let Some(config) = self.new_config.take() {
            if self.config.redis.ssl != config.redis.ssl {
                self.tls = Connector::new(&config.redis.ssl, "redis.ssl");
            }
            self.config = *config;
        }
    }

    fn note_report(&mut self, report: ServerReport) {
        let warnings = report.warnings(&self.config.persistence);
        let known =
            self.with_status(|status| std::mem::replace(&mut status.report, report.clone()));
        if self.role == Role::Data && known != report {
            for warning in warnings {
                tracing::warn!("{warning}");
            }
        }
    }

    fn state(&self) -> Result<(), Why> {
        self.with_status(|status| status.state.clone())
    }

    fn set_state(&self, state: Result<(), Why>) {
        if state.is_ok() {
            tracing::info!(connection = self.role.name(), "connected to Redis");
        }
        self.with_status(|status| {
            status.state = state;
            status.since = Instant::now();
        });
    }

    fn with_status<T>(&self, look: impl FnOnce(&mut LaneStatus) -> T) -> T {
        look(
            &mut self
                .status
                .lock()
                .unwrap_or_else(|broken| broken.into_inner()),
        )
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
