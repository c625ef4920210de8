//! A table of routes in memory, by topic filter: what each published message is matched with.
//!
//! Filters without a wildcard are looked up by their text; those with one are in a [`trie`] whose nodes are
//! shared by the filters that begin alike. A filter's text is kept nowhere else. Destinations, values and groups
//! are kept once each and counted, so that a route is three numbers.
//!
//! A change takes time by the length of the filter, not by the size of the table; nothing large is ever moved
//! at once. All hashes are keyed at random, for clients choose what is hashed.

mod find;
mod index;
mod label;
mod pool;
mod routes;
mod scan;
mod slab;
mod text;
mod trie;

use std::fmt;

use ahash::RandomState;

use crate::topic::{is_wildcard, Filter};
pub use find::Position;
use index::Index;
use label::allocated;
use pool::Pool;
use routes::{Route, Routes};
pub use scan::Cursor;
use slab::{Slab, NONE};
use trie::{Path, Trie};

/// Routes by their topic filters: each leads to a destination, and has a value.
#[derive(Default)]
pub struct Table {
    state: RandomState,
    strings: Pool,
    /// One for each filter, where shared ones of the same real filter are one.
    entries: Slab<Entry>,
    /// The entries of filters without a wildcard, by their text.
    exact: Index,
    trie: Trie,
    routes: usize,
    filters: usize,
    /// What the entries hold beside their slots.
    heap: usize,
}

struct Entry {
    place: Place,
    routes: Routes,
}

/// Where an entry is found.
enum Place {
    Exact(Box<str>),
    Node { id: u32, multi: bool },
}

/// A route, as it is shown to a visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found<'a> {
    /// The filter as it was subscribed to, with the `$share/Group/` of a shared one.
    pub filter: &'a [u8],
    /// For instance a client id, or the name of a node.
    pub destination: &'a [u8],
    /// For instance subscription options.
    pub value: &'a [u8],
}

/// A match would have taken more steps than it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverBudget;

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the match takes more steps than allowed")
    }
}

impl std::error::Error for OverBudget {}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("routes", &self.routes)
            .field("filters", &self.filters)
            .finish_non_exhaustive()
    }
}

impl Table {
    /// An empty table.
    pub fn new() -> Self {
        Table::default()
    }

    /// Adds a route or changes its value; true if that changed anything.
    pub fn add(&mut self, filter: &Filter<'_>, destination: &[u8], value: &[u8]) -> bool {
        let entry = self.entry(filter);
        if let Some((entry, route)) =
            entry.and_then(|entry| Some((entry, self.route(entry, filter, destination)?)))
        {
            if self.strings.bytes_of(route.value) == value {
                return false;
            }
            let value = self.strings.take(&self.state, value);
            self.entries[entry]
                .routes
                .set(&self.state, Route { value, ..route });
            self.strings.give_back(&self.state, route.value);
            return true;
        }
        let route = Route {
            group: self.strings.take(&self.state, group(filter).as_bytes()),
            destination: self.strings.take(&self.state, destination),
            value: self.strings.take(&self.state, value),
        };
        self.routes += 1;
        let Some(id) = entry else {
            self.filters += 1;
            self.insert_entry(filter.real, Routes::One(route));
            return true;
        };
        let routes = &mut self.entries[id].routes;
        self.filters += usize::from(routes.count(&self.state, route.group) == 0);
        self.heap -= routes.heap();
        routes.insert(&self.state, route);
        self.heap += routes.heap();
        true
    }

    /// Removes a route; true if it was there.
    pub fn remove(&mut self, filter: &Filter<'_>, destination: &[u8]) -> bool {
        let Some(entry) = self.entry(filter) else {
            return false;
        };
        let Some(route) = self.route(entry, filter, destination) else {
            return false;
        };
        self.remove_route(entry, route);
        true
    }

    /// Makes exactly these destinations, each with its value, those of a filter; true if that changed anything.
    /// Of a destination that is named twice, the last value counts.
    pub fn assign(&mut self, filter: &Filter<'_>, destinations: &[(&[u8], &[u8])]) -> bool {
        let mut changed = false;
        let mut kept = Vec::with_capacity(destinations.len());
        for (destination, value) in destinations {
            changed |= self.add(filter, destination, value);
            kept.extend(self.strings.number(&self.state, destination));
        }
        kept.sort_unstable();
        kept.dedup();
        let group = self.strings.number(&self.state, group(filter).as_bytes());
        let (Some(entry), Some(group)) = (self.entry(filter), group) else {
            return changed;
        };
        let routes = &self.entries[entry].routes;
        if routes.count(&self.state, group) == kept.len() {
            return changed;
        }
        let mut old = Vec::new();
        let _ = routes.try_each(|route| {
            if route.group == group && kept.binary_search(&route.destination).is_err() {
                old.push(*route);
            }
            Ok::<(), ()>(())
        });
        for route in &old {
            self.remove_route(entry, *route);
        }
        changed || !old.is_empty()
    }

    /// Whether a filter has this destination.
    pub fn contains(&self, filter: &Filter<'_>, destination: &[u8]) -> bool {
        self.value(filter, destination).is_some()
    }

    /// The value of a route.
    pub fn value(&self, filter: &Filter<'_>, destination: &[u8]) -> Option<&[u8]> {
        let route = self.route(self.entry(filter)?, filter, destination)?;
        Some(self.strings.bytes_of(route.value))
    }

    /// How many destinations a filter has. Those of a shared filter are its group's.
    pub fn destinations(&self, filter: &Filter<'_>) -> usize {
        let group = self.strings.number(&self.state, group(filter).as_bytes());
        let Some((entry, group)) = self.entry(filter).zip(group) else {
            return 0;
        };
        self.entries[entry].routes.count(&self.state, group)
    }

    /// How many routes there are.
    pub fn routes(&self) -> usize {
        self.routes
    }

    /// How many filters there are; shared ones are as many as their groups.
    pub fn filters(&self) -> usize {
        self.filters
    }

    /// How many nodes the trie of the wildcard filters has: the most that a match visits.
    pub fn nodes(&self) -> usize {
        self.trie.len()
    }

    /// The bytes that the table takes, with what an allocator adds.
    pub fn memory(&self) -> usize {
        let indexes = self.entries.bytes() + self.exact.bytes() + self.trie.bytes();
        size_of::<Table>() + self.strings.bytes() + indexes + self.heap
    }

    fn entry(&self, filter: &Filter<'_>) -> Option<u32> {
        match is_wildcard(filter.real) {
            true => self.trie.entry(&self.state, Path::of(filter.real)),
            false => self.exact(filter.real),
        }
    }

    /// The entry of the filter that has no wildcard and this text.
    fn exact(&self, name: &str) -> Option<u32> {
        if self.exact.len() == 0 {
            return None;
        }
        let is_it = |id| match &self.entries[id].place {
            Place::Exact(text) => **text == *name,
            Place::Node { .. } => false,
        };
        self.exact
            .find(pool::hash(&self.state, name.as_bytes()), is_it)
    }

    fn route(&self, entry: u32, filter: &Filter<'_>, destination: &[u8]) -> Option<Route> {
        let group = self.strings.number(&self.state, group(filter).as_bytes())?;
        let destination = self.strings.number(&self.state, destination)?;
        self.entries[entry]
            .routes
            .get(&self.state, group, destination)
            .copied()
    }

    fn insert_entry(&mut self, real: &str, routes: Routes) {
        if !is_wildcard(real) {
            self.heap += allocated(real.len());
            let place = Place::Exact(real.into());
            let id = self.entries.insert(Entry { place, routes });
            let hash = pool::hash(&self.state, real.as_bytes());
            return self.exact.insert(hash, id);
        }
        let path = Path::of(real);
        let place = Place::Node {
            id: NONE,
            multi: path.multi,
        };
        let entry = self.entries.insert(Entry { place, routes });
        let node = self.trie.insert(&self.state, path, entry);
        if let Place::Node { id, .. } = &mut self.entries[entry].place {
            *id = node;
        }
    }

    fn remove_route(&mut self, id: u32, route: Route) {
        let entry = &mut self.entries[id];
        self.heap -= entry.routes.heap();
        match entry.routes {
            Routes::One(_) => match self.entries.remove(id).map(|entry| entry.place) {
                Some(Place::Exact(name)) => {
                    self.heap -= allocated(name.len());
                    self.exact
                        .remove(pool::hash(&self.state, name.as_bytes()), id);
                    self.filters -= 1;
                }
                Some(Place::Node { id, multi }) => {
                    self.trie.remove(&self.state, id, multi);
                    self.filters -= 1;
                }
                None => {}
            },
            _ => {
                entry.routes.remove(&self.state, route);
                self.heap += entry.routes.heap();
                self.filters -= usize::from(entry.routes.count(&self.state, route.group) == 0);
            }
        }
        self.routes -= 1;
        for id in [route.group, route.destination, route.value] {
            self.strings.give_back(&self.state, id);
        }
    }

    /// A route of a real filter. `shared` holds the full filter of group `last`, to be used again.
    fn found<'a>(
        &'a self,
        route: &Route,
        real: &'a [u8],
        shared: &'a mut Vec<u8>,
        last: &mut u32,
    ) -> Found<'a> {
        if route.group != NONE && route.group != *last {
            let group = self.strings.bytes_of(route.group);
            shared.clear();
            [b"$share/", group, b"/", real]
                .iter()
                .for_each(|part| shared.extend_from_slice(part));
            *last = route.group;
        }
        Found {
            filter: if route.group == NONE { real } else { shared },
            destination: self.strings.bytes_of(route.destination),
            value: self.strings.bytes_of(route.value),
        }
    }
}

/// The group of a shared filter; of another, what stands for none.
fn group<'a>(filter: &Filter<'a>) -> &'a str {
    filter.group.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_small() {
        assert_eq!((size_of::<Place>(), size_of::<Routes>()), (16, 16));
        assert_eq!(size_of::<Entry>(), 32);
        assert_eq!(size_of::<trie::Node>(), 48);
    }
}
