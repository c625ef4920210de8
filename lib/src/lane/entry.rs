//! A request on its way through a connection.

use crate::error::Error;
use crate::request::{Answer, Request, Responder};

/// A request that is not sent.
pub(super) struct Entry {
    pub(super) request: Request,
    /// It has done a step, or usually takes several: others on the same things wait until it is over.
    pub(super) holds: bool,
    pub(super) purpose: Purpose,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Caller,
    Heartbeat,
    Scripts,
}

impl Entry {
    pub(super) fn id(&self) -> u64 {
        self.request.id
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
