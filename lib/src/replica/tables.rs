//! The tables of one route shard in memory, and the lock that readers on schedulers never wait for.

use std::time::Duration;

use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard};

use super::feed::FeedChange;
use crate::route_scripts::Space;
use crate::table::Table;
use crate::topic::parse_filter;

/// Attempts to get the lock without waiting for it.
const ATTEMPTS: u32 = 200;

/// Both tables of a shard.
#[derive(Default)]
pub struct Tables {
    routes: Table,
    subscriptions: Table,
}

impl Tables {
    /// One of them.
    pub fn of(&self, space: Space) -> &Table {
        match space {
            Space::Routes => &self.routes,
            Space::Subscriptions => &self.subscriptions,
        }
    }

    fn of_mut(&mut self, space: Space) -> &mut Table {
        match space {
            Space::Routes => &mut self.routes,
            Space::Subscriptions => &mut self.subscriptions,
        }
    }

    /// Puts a destination in. What is no filter can't match anything.
    pub fn add(&mut self, space: Space, filter: &[u8], destination: &[u8], options: &[u8]) {
        if let Ok(filter) = parse_filter(filter) {
            self.of_mut(space).add(&filter, destination, options);
        }
    }

    /// Takes a destination out.
    pub fn remove(&mut self, space: Space, filter: &[u8], destination: &[u8]) {
        if let Ok(filter) = parse_filter(filter) {
            self.of_mut(space).remove(&filter, destination);
        }
    }

    /// Does what an entry of the feed says.
    pub fn apply(&mut self, change: &FeedChange) {
        let (filter, destination) = (&change.filter, &change.destination);
        match change.adds {
            true => self.add(change.space, filter, destination, &change.options),
            false => self.remove(change.space, filter, destination),
        }
    }

    /// Whether the route is there.
    pub fn contains(&self, space: Space, filter: &[u8], destination: &[u8]) -> bool {
        parse_filter(filter).is_ok_and(|it| self.of(space).contains(&it, destination))
    }

    /// How many destinations a filter has.
    pub fn destinations(&self, space: Space, filter: &[u8]) -> Option<usize> {
        Some(self.of(space).destinations(&parse_filter(filter).ok()?))
    }
}

/// Writes. Readers that meet a writer turn away at once, so this looks for a moment when none reads before it makes
/// them.
pub fn write<T>(tables: &ShardedLock<Tables>, change: impl FnOnce(&mut Tables) -> T) -> T {
    for attempt in 0..ATTEMPTS {
        if let Ok(mut tables) = tables.try_write() {
            return change(&mut tables);
        }
        match attempt {
            0..=100 => std::hint::spin_loop(),
            _ => std::thread::sleep(Duration::from_micros(5)),
        }
    }
    change(&mut tables.write().unwrap_or_else(|broken| broken.into_inner()))
}

/// For a scheduler, which may not wait for a writer: reads, unless it meets one for longer than a slice takes.
pub fn try_read(tables: &ShardedLock<Tables>) -> Option<ShardedLockReadGuard<'_, Tables>> {
    (0..ATTEMPTS).find_map(|_| {
        let tables = tables.try_read().ok();
        if tables.is_none() {
            std::thread::yield_now();
        }
        tables
    })
}
