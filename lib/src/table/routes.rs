//! The routes of one filter: mostly one, seldom a few, now and then a million.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use ahash::RandomState;

use super::index::Index;
use super::label::allocated;
use super::slab::Slab;

/// No two have one number, be it in two tables of which one takes the place of the other.
static BORN: AtomicU64 = AtomicU64::new(0);

/// As many are looked through one by one.
const FEW: usize = 32;

/// All three by their numbers in the pool; no group and no value are [`super::slab::NONE`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) group: u32,
    pub(super) destination: u32,
    pub(super) value: u32,
}

pub(super) enum Routes {
    One(Route),
    #[expect(clippy::box_collection, reason = "it keeps the enum at 16 bytes")]
    Few(Box<Vec<Route>>),
    Many(Box<Many>),
}

/// Routes in numbered slots, with indexes that find one, and the number of a group's.
pub(super) struct Many {
    pub(super) slots: Slab<Route>,
    index: Index,
    groups: Slab<(u32, usize)>,
    groups_index: Index,
    /// Tells a scan whether its slots are still those of its last slice.
    pub(super) born: u64,
}

impl Route {
    fn is(&self, group: u32, destination: u32) -> bool {
        (self.group, self.destination) == (group, destination)
    }

    pub(super) fn hash(&self, state: &RandomState) -> u32 {
        hash(state, self.group, self.destination)
    }
}

impl Routes {
    pub(super) fn get(&self, state: &RandomState, group: u32, destination: u32) -> Option<&Route> {
        let is_it = |route: &&Route| route.is(group, destination);
        match self {
            Routes::One(route) => Some(route).filter(is_it),
            Routes::Few(routes) => routes.iter().find(is_it),
            Routes::Many(many) => many.slots.get(many.find(state, group, destination)?),
        }
    }

    /// Changes the value of a route and returns the old one.
    pub(super) fn set(&mut self, state: &RandomState, new: Route) -> Option<u32> {
        let route = match self {
            Routes::One(route) => Some(route),
            Routes::Few(routes) => routes
                .iter_mut()
                .find(|it| it.is(new.group, new.destination)),
            Routes::Many(many) => {
                let slot = many.find(state, new.group, new.destination)?;
                Some(&mut many.slots[slot])
            }
        };
        let route = route.filter(|it| it.is(new.group, new.destination))?;
        Some(std::mem::replace(&mut route.value, new.value))
    }

    /// Adds a route that is not there.
    pub(super) fn insert(&mut self, state: &RandomState, route: Route) {
        match self {
            Routes::One(first) => *self = Routes::Few(Box::new(vec![*first, route])),
            Routes::Few(routes) if routes.len() < FEW => routes.push(route),
            Routes::Few(routes) => {
                let mut many = Many::new();
                for route in routes.iter().chain([&route]) {
                    many.insert(state, *route);
                }
                *self = Routes::Many(Box::new(many));
            }
            Routes::Many(many) => many.insert(state, route),
        }
    }

    /// Removes a route; the last one stays, for the caller to remove with the filter.
    pub(super) fn remove(&mut self, state: &RandomState, route: Route) {
        match self {
            Routes::One(_) => {}
            Routes::Few(routes) => {
                if let Some(at) = routes.iter().position(|it| *it == route) {
                    routes.swap_remove(at);
                }
                match routes[..] {
                    [last] => *self = Routes::One(last),
                    _ if routes.len() < routes.capacity() / 4 => routes.shrink_to(routes.len() * 2),
                    _ => {}
                }
            }
            Routes::Many(many) => {
                many.remove(state, route);
                // Not at 32 again, where one client could have them moved to and fro.
                if many.slots.len() <= FEW / 2 {
                    let slots = 0..many.slots.end();
                    let rest = slots.filter_map(|slot| many.slots.get(slot).copied());
                    *self = Routes::Few(Box::new(rest.collect()));
                }
            }
        }
    }

    /// How many belong to a group.
    pub(super) fn count(&self, state: &RandomState, group: u32) -> usize {
        match self {
            Routes::One(route) => usize::from(route.group == group),
            Routes::Few(routes) => routes.iter().filter(|it| it.group == group).count(),
            Routes::Many(many) => many.group(state, group).map_or(0, |id| many.groups[id].1),
        }
    }

    /// Goes through all, until one fails.
    pub(super) fn try_each<E>(
        &self,
        mut each: impl FnMut(&Route) -> Result<(), E>,
    ) -> Result<(), E> {
        match self {
            Routes::One(route) => each(route),
            Routes::Few(routes) => routes.iter().try_for_each(each),
            Routes::Many(many) => {
                let slots = 0..many.slots.end();
                slots
                    .filter_map(|slot| many.slots.get(slot))
                    .try_for_each(each)
            }
        }
    }

    /// What is allocated beside the enum itself.
    pub(super) fn heap(&self) -> usize {
        match self {
            Routes::One(_) => 0,
            Routes::Few(routes) => {
                allocated(size_of::<Vec<Route>>())
                    + allocated(routes.capacity() * size_of::<Route>())
            }
            Routes::Many(many) => {
                let groups = many.groups.bytes() + many.groups_index.bytes();
                allocated(size_of::<Many>()) + many.slots.bytes() + many.index.bytes() + groups
            }
        }
    }
}

impl Many {
    fn new() -> Self {
        Many {
            slots: Slab::default(),
            index: Index::default(),
            groups: Slab::default(),
            groups_index: Index::default(),
            born: BORN.fetch_add(1, Relaxed),
        }
    }

    fn find(&self, state: &RandomState, group: u32, destination: u32) -> Option<u32> {
        let is_it = |slot| self.slots[slot].is(group, destination);
        self.index.find(hash(state, group, destination), is_it)
    }

    fn group(&self, state: &RandomState, group: u32) -> Option<u32> {
        let is_it = |id| self.groups[id].0 == group;
        self.groups_index.find(hash(state, group, 0), is_it)
    }

    fn insert(&mut self, state: &RandomState, route: Route) {
        let slot = self.slots.insert(route);
        self.index.insert(route.hash(state), slot);
        match self.group(state, route.group) {
            Some(id) => self.groups[id].1 += 1,
            None => {
                let id = self.groups.insert((route.group, 1));
                self.groups_index.insert(hash(state, route.group, 0), id);
            }
        }
    }

    fn remove(&mut self, state: &RandomState, route: Route) {
        let Some(slot) = self.find(state, route.group, route.destination) else {
            return;
        };
        self.index.remove(route.hash(state), slot);
        self.slots.remove(slot);
        if let Some(id) = self.group(state, route.group) {
            self.groups[id].1 -= 1;
            if self.groups[id].1 == 0 {
                self.groups_index.remove(hash(state, route.group, 0), id);
                self.groups.remove(id);
            }
        }
    }
}

fn hash(state: &RandomState, group: u32, destination: u32) -> u32 {
    (state.hash_one((group, destination)) >> 32) as u32
}
