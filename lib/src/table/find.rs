//! The match of a topic name: a look-up, and a walk through the trie without recursion.
//!
//! A node is reached on one way only, so none is visited twice: the work is at most the trie and the results. The walk
//! is in order (a node before those below it, what goes on with the name's own level before what goes on with `+`), so
//! that a match can be cut anywhere and go on behind that place, whatever has become of the nodes meanwhile.

use super::index::Index;
use super::routes::{Many, Route, Routes};
use super::slab::{Slab, NONE};
use super::text::Text;
use super::trie::{common, first_level, ROOT};
use super::{Found, OverBudget, Table};

/// A long label or filter counts a step more for each such number of bytes.
const STEP_BYTES: usize = 256;

/// Where a match goes on that was cut. The default is the beginning.
#[derive(Default)]
pub struct Position {
    place: Place,
    within: Option<Within>,
}

#[derive(Default)]
enum Place {
    /// The look-up of the name.
    #[default]
    Exact,
    Root,
    /// What filters that begin with these levels, or come later in the order, have their nodes.
    Levels(String),
}

/// A filter, not all of whose routes have been visited.
struct Within {
    filter: Vec<u8>,
    slot: u32,
    born: u64,
    seen: Seen,
}

/// Groups and destinations that were visited: a route that is taken out and added again can get a slot that is still
/// to come. Grows without ever moving what it holds.
#[derive(Default)]
struct Seen {
    pairs: Slab<(u32, u32)>,
    index: Index,
}

/// A match on its way.
struct Walk<'a> {
    table: &'a Table,
    /// The steps that are left.
    left: usize,
    within: Option<Within>,
    /// The full filter of a shared one.
    shared: Vec<u8>,
}

/// The steps that are left are not enough.
struct Cut;

impl Table {
    /// Visits every route whose filter matches a topic name, each once, in no order.
    ///
    /// `steps` bounds the work: the look-up, each node of the trie that is visited and each result is one, and
    /// there is one more for each 256 bytes of a long label or filter. Beyond it what was found so far has been
    /// visited, and there is more.
    pub fn find(
        &self,
        name: &str,
        steps: usize,
        visit: impl FnMut(Found<'_>),
    ) -> Result<(), OverBudget> {
        match self.find_from(name, Position::default(), steps, visit) {
            None => Ok(()),
            Some(_) => Err(OverBudget),
        }
    }

    /// Visits some of the routes whose filters match a topic name, by about `steps` steps, and returns where to go on,
    /// or `None` at the end.
    ///
    /// The table may change before the match goes on: a route that is there all the time is visited once; one that came
    /// or went meanwhile may be, or not, or again when it came back.
    pub fn find_from(
        &self,
        name: &str,
        from: Position,
        steps: usize,
        mut visit: impl FnMut(Found<'_>),
    ) -> Option<Position> {
        let Position { place, within } = from;
        let mut walk = Walk {
            table: self,
            left: steps.max(1),
            within,
            shared: Vec::new(),
        };
        let (mut next, mut later) = (Some((ROOT, 0)), Vec::new());
        match place {
            Place::Exact => {
                walk.spend(1);
                let entry = self.exact(name);
                if entry.is_some_and(|entry| walk.give(entry, name.as_bytes(), &mut visit).is_err())
                {
                    return Some(walk.cut(Place::Exact));
                }
            }
            Place::Root => {}
            Place::Levels(levels) => (next, later) = (None, self.resume(name, &levels)),
        }
        self.trie.get(ROOT)?;
        let mut filter = Text::default();
        // Nodes to be visited, and where in the name their levels begin: behind its end, if it has no more.
        while let Some((id, start)) = next.take().or_else(|| later.pop()) {
            if walk.left == 0 {
                return Some(walk.cut(self.place(id, &mut filter)));
            }
            let node = self.trie.node(id);
            walk.spend(1);
            let levels = match (id, name.get(start..)) {
                (ROOT, levels) => levels,
                (_, None) => continue,
                (_, Some(levels)) => match strip(levels, node.label.as_bytes(), &mut walk.left) {
                    Some(end) => name.get(start + end + 1..),
                    None => continue,
                },
            };
            // Neither + nor # is a first level that begins with $ [MQTT-4.7.2-1].
            let wildcards = id != ROOT || !name.starts_with('$');
            let here = Some(node.here).filter(|entry| *entry != NONE && levels.is_none());
            let multi = Some(node.multi).filter(|entry| *entry != NONE && wildcards);
            if here.is_some() || multi.is_some() {
                filter.write(&self.trie, id);
                let mut give = |entry: Option<u32>, real| match entry {
                    Some(entry) => walk.give(entry, real, &mut visit),
                    None => Ok(()),
                };
                let given = give(here, filter.filter(false))
                    .and_then(|()| give(multi, filter.filter(true)));
                if given.is_err() {
                    let place = match id {
                        ROOT => Place::Root,
                        _ => Place::Levels(text_of(filter.filter(false))),
                    };
                    return Some(walk.cut(place));
                }
            }
            let Some(levels) = levels else {
                continue;
            };
            let start = name.len() - levels.len();
            if node.literals > 0 {
                let level = first_level(levels);
                walk.spend(level.len() / STEP_BYTES);
                next = self
                    .trie
                    .literal(&self.state, id, level)
                    .map(|child| (child, start));
            }
            if node.plus != NONE && wildcards {
                match next {
                    None => next = Some((node.plus, start)),
                    Some(_) => later.push((node.plus, start)),
                }
            }
        }
        None
    }

    /// Where a match goes on whose next node is this one.
    fn place(&self, id: u32, text: &mut Text) -> Place {
        if id == ROOT {
            return Place::Root;
        }
        text.write(&self.trie, id);
        let text = text.filter(false);
        let label = self.trie.node(id).label.as_str();
        let end = text.len() - label.len() + first_level(label).len();
        Place::Levels(text_of(&text[..end]))
    }

    /// The nodes that a walk still has to visit, and where in the name their levels begin, the next one last, when it
    /// is to visit what begins with these levels. They match the beginning of the name.
    fn resume(&self, name: &str, levels: &str) -> Vec<(u32, usize)> {
        let (mut id, mut rest, mut start) = (ROOT, levels, 0);
        let mut later = Vec::new();
        while let Some(node) = self.trie.get(id) {
            // `node` has been visited, and what is looked for is below it.
            let level = first_level(rest);
            if level != "+" && node.plus != NONE && (id != ROOT || !name.starts_with('$')) {
                later.push((node.plus, start));
            }
            let Some(child) = self.trie.child(&self.state, id, level) else {
                break;
            };
            let label = self.trie.node(child).label.as_bytes();
            let end = common(label, rest.as_bytes());
            if end == rest.len() || label.get(end + 1) == Some(&b'+') {
                later.push((child, start));
                break;
            }
            // All that begins like this node comes earlier, or does not match.
            if end < label.len() {
                break;
            }
            let levels = name.get(start..).unwrap_or_default();
            let Some(after) = strip(levels, label, &mut { usize::MAX }) else {
                break;
            };
            (id, rest, start) = (child, &rest[end + 1..], start + after + 1);
        }
        later
    }
}

impl Walk<'_> {
    fn spend(&mut self, steps: usize) {
        self.left = self.left.saturating_sub(steps);
    }

    fn cut(self, place: Place) -> Position {
        Position {
            place,
            within: self.within,
        }
    }

    /// Visits the routes of one entry.
    fn give(
        &mut self,
        entry: u32,
        real: &[u8],
        visit: &mut impl FnMut(Found<'_>),
    ) -> Result<(), Cut> {
        let mut within = None;
        if let Some(it) = &self.within {
            // Of a node's two filters this one came first.
            if it.filter.strip_suffix(b"/#") == Some(real) {
                return Ok(());
            }
            if it.filter == real {
                within = self.within.take();
            }
        }
        self.spend(real.len() / STEP_BYTES);
        let table = self.table;
        let mut last = NONE;
        match &table.entries[entry].routes {
            Routes::Many(many) => self.give_many(many, real, within, visit),
            routes => routes.try_each(|route| {
                if within.as_ref().is_none_or(|it| !it.seen.has(table, route)) {
                    self.give_route(route, real, &mut last, visit);
                }
                Ok(())
            }),
        }
    }

    fn give_many(
        &mut self,
        many: &Many,
        real: &[u8],
        within: Option<Within>,
        visit: &mut impl FnMut(Found<'_>),
    ) -> Result<(), Cut> {
        let (table, end) = (self.table, many.slots.end());
        let start = within.as_ref().filter(|it| it.born == many.born);
        let mut slot = start.map_or(0, |it| it.slot);
        let left = (end.saturating_sub(slot) as usize).saturating_mul(1 + real.len() / STEP_BYTES);
        let is_whole = within.is_none() && left <= self.left;
        let mut seen = within.map(|it| it.seen).unwrap_or_default();
        let mut last = NONE;
        while slot < end {
            match many.slots.get(slot) {
                None => self.spend(1),
                Some(route) if is_whole || seen.insert(table, route) => {
                    self.give_route(route, real, &mut last, visit);
                }
                Some(_) => self.spend(1),
            }
            slot += 1;
            if self.left == 0 && slot < end {
                self.within = Some(Within {
                    filter: real.to_vec(),
                    slot,
                    born: many.born,
                    seen,
                });
                return Err(Cut);
            }
        }
        Ok(())
    }

    fn give_route(
        &mut self,
        route: &Route,
        real: &[u8],
        last: &mut u32,
        visit: &mut impl FnMut(Found<'_>),
    ) {
        self.spend(1);
        if route.group != NONE && route.group != *last {
            self.spend(real.len() / STEP_BYTES);
        }
        visit(self.table.found(route, real, &mut self.shared, last));
    }
}

impl Seen {
    fn has(&self, table: &Table, route: &Route) -> bool {
        self.index
            .find(route.hash(&table.state), |id| self.is(id, route))
            .is_some()
    }

    fn is(&self, id: u32, route: &Route) -> bool {
        self.pairs[id] == (route.group, route.destination)
    }

    /// False if it was there.
    fn insert(&mut self, table: &Table, route: &Route) -> bool {
        let is_new = !self.has(table, route);
        if is_new {
            let id = self.pairs.insert((route.group, route.destination));
            self.index.insert(route.hash(&table.state), id);
        }
        is_new
    }
}

/// A filter's text is made of text.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Where in a name's levels those of a label end, if they match. Takes off the steps that looking at it costs.
fn strip(levels: &str, label: &[u8], left: &mut usize) -> Option<usize> {
    let levels = levels.as_bytes();
    *left = left.saturating_sub(label.len() / STEP_BYTES);
    let mut end = 0;
    match levels.starts_with(label) {
        true => end = label.len(),
        false => {
            for wanted in label {
                if *wanted == b'+' {
                    let level = levels[end..]
                        .iter()
                        .take_while(|byte| **byte != b'/')
                        .count();
                    *left = left.saturating_sub(level / STEP_BYTES);
                    end += level;
                } else if levels.get(end) == Some(wanted) {
                    end += 1;
                } else {
                    return None;
                }
            }
        }
    }
    Some(end).filter(|end| matches!(levels.get(*end), None | Some(b'/')))
}
