//! The tables of one route shard in memory, and the lock that readers on schedulers never wait for.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::PoisonError;
use std::time::Duration;

use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};

use super::feed::FeedChange;
use crate::route_scripts::Space;
use crate::table::{Found, Position, Table};
use crate::topic::parse_filter;

/// Steps of a search that a writer may be kept waiting for, see [`Table::find`]; to find the place where it goes on takes
/// a step more for each level on the way.
const SLICE: usize = 300;

/// Attempts to get the lock without waiting for it.
const ATTEMPTS: u32 = 200;

/// Both tables of a shard.
#[derive(Default)]
pub struct Tables {
    routes: Table,
    subscriptions: Table,
    /// Changes where other tables are put in the place of these.
    number: u64,
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

/// Other tables were put in the place of those that were searched: half of one and half of another are none.
#[derive(Debug, PartialEq, Eq)]
pub struct Replaced;

/// The tables in use. Schedulers never wait for them, and writers never for long.
#[derive(Default)]
pub struct TableLock {
    lock: ShardedLock<Tables>,
    /// How many writers wait.
    waiting: AtomicUsize,
}

impl TableLock {
    /// Changes them, which should take some microseconds at most: schedulers turn away meanwhile.
    pub fn write<T>(&self, change: impl FnOnce(&mut Tables) -> T) -> T {
        let mut tables = self.lock.try_write().unwrap_or_else(|_| {
            self.waiting.fetch_add(1, SeqCst);
            let tables = self.wait_to_write();
            self.waiting.fetch_sub(1, SeqCst);
            tables
        });
        change(&mut tables)
    }

    /// To wait for the lock turns readers away, so this looks for a moment when none reads first.
    fn wait_to_write(&self) -> ShardedLockWriteGuard<'_, Tables> {
        for attempt in 0..ATTEMPTS {
            match attempt {
                0..=100 => std::hint::spin_loop(),
                _ => std::thread::sleep(Duration::from_micros(5)),
            }
            if let Ok(tables) = self.lock.try_write() {
                return tables;
            }
        }
        self.lock.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts other tables in the place of these, which are returned.
    pub fn replace(&self, mut tables: Tables) -> Tables {
        self.write(|old| {
            tables.number = old.number + 1;
            std::mem::swap(old, &mut tables);
        });
        tables
    }

    /// Reads, if nobody writes.
    pub fn try_read(&self) -> Option<ShardedLockReadGuard<'_, Tables>> {
        self.lock.try_read().ok()
    }

    /// Reads, unless somebody writes for longer than a change takes.
    pub fn try_read_soon(&self) -> Option<ShardedLockReadGuard<'_, Tables>> {
        (0..ATTEMPTS).find_map(|_| {
            let tables = self.try_read();
            if tables.is_none() {
                std::thread::yield_now();
            }
            tables
        })
    }

    /// Reads, once nobody writes: not for a scheduler. Who reads for long does so a slice at a time.
    pub fn read(&self) -> ShardedLockReadGuard<'_, Tables> {
        // One slice after the other would leave a writer hardly a moment.
        while self.waiting.load(SeqCst) > 0 {
            std::thread::yield_now();
        }
        self.lock.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Visits all that matches a topic name, for a thread that may wait: in slices, between which the tables may change.
    /// What is there all the time is visited once.
    pub fn find_in_slices(
        &self,
        space: Space,
        name: &str,
        mut visit: impl FnMut(Found<'_>),
    ) -> Result<(), Replaced> {
        let mut number = None;
        let mut next = Some(Position::default());
        while let Some(from) = next.take() {
            let tables = self.read();
            if *number.get_or_insert(tables.number) != tables.number {
                return Err(Replaced);
            }
            next = tables.of(space).find_from(name, from, SLICE, &mut visit);
        }
        Ok(())
    }
}
