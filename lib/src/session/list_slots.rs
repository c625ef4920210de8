//! Listing sessions in a cluster, where each slot has an index of its own.

use bytes::Bytes;

use super::count::{decode_count, encode_count};
use super::list::{decode_page, encode_page, LIST_STEP};
use crate::context::Context;
use crate::metrics::OperationKind;
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::scripts;
use crate::slots::SLOTS;
use crate::walk::{InSlot, Walk};

/// Lists client ids slot by slot, within a slot the oldest save first: it counts the sessions of all slots, which
/// says in which slots the page is, and reads it from those.
pub(super) struct ListSlots {
    limit: u64,
    /// Where in which slot the part of the page begins that is not planned yet.
    slot: u16,
    offset: u64,
    /// How many sessions each slot had.
    counts: Vec<u64>,
    /// The planned parts, in order.
    found: Vec<Vec<Bytes>>,
    phase: Phase,
}

enum Phase {
    Count(Walk<u16>),
    Read(Walk<Part>),
}

/// A part of the page.
#[derive(Debug, Clone, Copy)]
struct Part {
    slot: u16,
    offset: u64,
    limit: u64,
    /// Its place in the page.
    place: usize,
}

impl InSlot for Part {
    fn slot(&self) -> u16 {
        self.slot
    }
}

impl ListSlots {
    pub(super) fn new(limit: u64, offset: u64) -> Self {
        ListSlots {
            limit,
            slot: 0,
            offset,
            counts: vec![0; usize::from(SLOTS)],
            found: Vec::new(),
            phase: Phase::Count(Walk::over(0..SLOTS)),
        }
    }

    /// Plans the parts that what is still missing consists of.
    fn plan(&mut self) -> Walk<Part> {
        let found: usize = self.found.iter().map(Vec::len).sum();
        let mut missing = self.limit.saturating_sub(found as u64);
        let mut parts = Vec::new();
        while missing > 0 && self.slot < SLOTS {
            let count = self.counts[usize::from(self.slot)];
            if self.offset >= count {
                self.offset -= count;
                self.slot += 1;
                continue;
            }
            let limit = missing.min(count - self.offset).min(LIST_STEP);
            parts.push(Part {
                slot: self.slot,
                offset: self.offset,
                limit,
                place: self.found.len(),
            });
            self.found.push(Vec::new());
            self.offset += limit;
            missing -= limit;
        }
        Walk::over(parts)
    }

    /// Reads on: some of the sessions that were counted may be gone.
    fn read(&mut self) -> Step {
        let parts = self.plan();
        if parts.is_over() {
            let found = std::mem::take(&mut self.found);
            return Step::Done(Ok(Answer::Binaries(found.into_iter().flatten().collect())));
        }
        self.phase = Phase::Read(parts);
        Step::Again
    }
}

impl Operation for ListSlots {
    fn kind(&self) -> OperationKind {
        OperationKind::ListSessions
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        if self.limit == 0 {
            return;
        }
        match &mut self.phase {
            Phase::Count(walk) => {
                for slot in walk.step(context) {
                    encode_count(context, commands, *slot);
                }
            }
            Phase::Read(walk) => {
                for part in walk.step(context) {
                    encode_page(context, commands, part.slot, part.offset, part.limit);
                }
            }
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        if self.limit == 0 {
            return Step::Done(Ok(Answer::Binaries(Vec::new())));
        }
        if replies.iter().any(scripts::is_unknown) {
            return Step::LoadScripts;
        }
        let is_over = match &mut self.phase {
            Phase::Count(walk) => {
                for (slot, reply) in walk.answered(replies) {
                    match decode_count(context, slot, reply) {
                        Ok(count) => self.counts[usize::from(slot)] = count,
                        Err(step) => return step,
                    }
                }
                walk.is_over()
            }
            Phase::Read(walk) => {
                for (part, reply) in walk.answered(replies) {
                    match decode_page(context, part.slot, vec![reply]) {
                        Ok(Some(page)) => self.found[part.place] = page,
                        Ok(None) => walk.ask(part),
                        Err(step) => return step,
                    }
                }
                walk.is_over()
            }
        };
        if is_over {
            return self.read();
        }
        Step::Again
    }

    fn slot(&self, _: &Context) -> Option<u16> {
        match &self.phase {
            Phase::Count(walk) => walk.slot(),
            Phase::Read(walk) => walk.slot(),
        }
    }

    fn takes_redirects(&self) -> bool {
        match &self.phase {
            Phase::Count(walk) => walk.takes_redirects(),
            Phase::Read(walk) => walk.takes_redirects(),
        }
    }

    fn size(&self) -> usize {
        self.counts.len() * std::mem::size_of::<u64>()
    }
}
