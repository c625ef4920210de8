//! Which server of a cluster owns which hash slot, as far as this node knows.

use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

/// How many hash slots a Redis Cluster has.
pub const SLOTS: u16 = 16_384;

/// The owner of every slot, as a number that stands for a server.
#[derive(Debug)]
pub struct SlotOwners(Box<[AtomicU16]>);

/// Nobody is known to own the slot.
pub const NOBODY: u16 = u16::MAX;

impl Default for SlotOwners {
    fn default() -> Self {
        SlotOwners((0..SLOTS).map(|_| AtomicU16::new(NOBODY)).collect())
    }
}

impl SlotOwners {
    /// The number of the server that owns the slot, or [`NOBODY`].
    pub fn owner(&self, slot: u16) -> u16 {
        self.0[usize::from(slot % SLOTS)].load(Relaxed)
    }

    /// Notes who owns the slot.
    pub fn set(&self, slot: u16, owner: u16) {
        self.0[usize::from(slot % SLOTS)].store(owner, Relaxed);
    }
}
