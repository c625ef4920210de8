//! A request on its way through the dispatcher.

use std::time::Instant;

use super::holds::TrackId;
use crate::config::Server;
use crate::error::Error;
use crate::request::{Answer, Request, Responder};

/// Orders requests as they were submitted, and the parts of one request.
pub(super) type EntryId = (u64, u32);

/// A request that is not sent.
pub(super) struct Entry {
    pub(super) request: Request,
    /// It has done a step, or usually takes several: others on the same things wait until it is over.
    pub(super) holds: bool,
    pub(super) purpose: Purpose,
    /// The track that the things that it is on are bound to.
    pub(super) placed_on: Option<TrackId>,
    /// It was sent on a connection that was lost, and nobody knows whether it was done.
    pub(super) is_doubtful: bool,
    /// For one step: the server to be asked instead of the slot's owner.
    pub(super) asking: Option<Server>,
    /// How often it was sent elsewhere.
    pub(super) redirects: u32,
    /// Since when servers refuse to serve it.
    pub(super) refused_since: Option<Instant>,
    /// The connection for durable writes on which steps of it are done, see `Track::life`. A wait on another one
    /// would not cover them.
    pub(super) stepped_on: Option<u64>,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Caller,
    Heartbeat,
    Scripts,
    /// Closes a lost connection at the server.
    Kill,
    /// Asks how far the writes before it have got.
    Confirm,
}

impl Entry {
    pub(super) fn new(request: Request, purpose: Purpose) -> Self {
        Entry {
            request,
            holds: false,
            purpose,
            placed_on: None,
            is_doubtful: false,
            asking: None,
            redirects: 0,
            refused_since: None,
            stepped_on: None,
        }
    }

    pub(super) fn id(&self) -> EntryId {
        (self.request.id, self.request.part)
    }

    /// What the operation is on.
    pub(super) fn things(&self) -> Vec<u64> {
        self.request.operation.affinity().each().to_vec()
    }

    /// Whether others wait for its end.
    pub(super) fn must_let_go(&self) -> bool {
        self.holds || self.purpose != Purpose::Caller
    }
}

/// Nobody waits for an internal request.
pub(super) struct Nobody;

impl Responder for Nobody {
    fn respond(self: Box<Self>, _: Result<Answer, Error>) {}
    fn is_abandoned(&self) -> bool {
        false
    }
}
