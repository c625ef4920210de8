//! The trie of wildcard filters. A node stands for one or more levels: one exists where a filter ends or
//! where filters part, so that there are at most two for each filter, however many levels it has.

use std::hash::{BuildHasher, Hasher};

use ahash::RandomState;

use super::index::Index;
use super::label::Label;
use super::slab::{Slab, NONE};

/// The node of no levels. It is there from the first filter to the last.
pub(super) const ROOT: u32 = 0;

#[derive(Default)]
pub(super) struct Trie {
    nodes: Slab<Node>,
    /// The literal children of all nodes, by parent and first level.
    edges: Index,
    heap: usize,
}

/// All numbers are [`NONE`] where there is none.
pub(super) struct Node {
    /// The levels between the parent and here, with the slashes between them. Only the root has none.
    pub(super) label: Label,
    pub(super) parent: u32,
    /// The child whose levels begin with `+`.
    pub(super) plus: u32,
    /// The number of children that begin with any other level.
    pub(super) literals: u32,
    /// Their numbers, combined by exclusive or: where there is one, it is that.
    only: u32,
    /// The entry of the filter that ends here.
    pub(super) here: u32,
    /// The entry of the filter that goes on with `#` and ends.
    pub(super) multi: u32,
}

/// A filter's levels, without the `#` at its end, and whether there is one. The filter `#` has no levels, which
/// is not the same as a single empty one.
#[derive(Clone, Copy)]
pub(super) struct Path<'a> {
    levels: Option<&'a str>,
    pub(super) multi: bool,
}

impl<'a> Path<'a> {
    pub(super) fn of(filter: &'a str) -> Self {
        let (levels, multi) = match filter {
            "#" => (None, true),
            _ => match filter.strip_suffix("/#") {
                Some(levels) => (Some(levels), true),
                None => (Some(filter), false),
            },
        };
        Path { levels, multi }
    }
}

impl Trie {
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.nodes.bytes() + self.edges.bytes() + self.heap
    }

    pub(super) fn get(&self, id: u32) -> Option<&Node> {
        self.nodes.get(id)
    }

    pub(super) fn node(&self, id: u32) -> &Node {
        &self.nodes[id]
    }

    /// The entry of a filter.
    pub(super) fn entry(&self, state: &RandomState, path: Path<'_>) -> Option<u32> {
        let (mut id, mut rest) = (ROOT, path.levels);
        while let Some(levels) = rest {
            id = self.child(state, id, first_level(levels))?;
            let label = self.node(id).label.as_bytes();
            match common(label, levels.as_bytes()) {
                end if end == label.len() => rest = levels.get(end + 1..),
                _ => return None,
            }
        }
        let node = self.nodes.get(id)?;
        let entry = if path.multi { node.multi } else { node.here };
        Some(entry).filter(|entry| *entry != NONE)
    }

    /// Makes a filter's node and sets its entry.
    pub(super) fn insert(&mut self, state: &RandomState, path: Path<'_>, entry: u32) -> u32 {
        if self.nodes.len() == 0 {
            self.nodes.insert(Node::new(Label::new(b""), NONE));
        }
        let (mut id, mut rest) = (ROOT, path.levels);
        while let Some(levels) = rest {
            let Some(child) = self.child(state, id, first_level(levels)) else {
                let label = self.label(levels.as_bytes());
                let child = self.nodes.insert(Node::new(label, id));
                self.link(state, child);
                id = child;
                break;
            };
            let label = self.node(child).label.as_bytes();
            let end = common(label, levels.as_bytes());
            id = match end == label.len() {
                true => child,
                false => self.split(state, child, end),
            };
            rest = levels.get(end + 1..);
        }
        let node = &mut self.nodes[id];
        match path.multi {
            true => node.multi = entry,
            false => node.here = entry,
        }
        id
    }

    /// Removes an entry from its node, and the nodes that nothing needs then.
    pub(super) fn remove(&mut self, state: &RandomState, id: u32, multi: bool) {
        let node = &mut self.nodes[id];
        match multi {
            true => node.multi = NONE,
            false => node.here = NONE,
        }
        let parent = node.parent;
        if node.is_needless() && id != ROOT {
            self.unlink(state, id);
            self.free(id);
            self.join(state, parent);
        } else {
            self.join(state, id);
        }
        if self.nodes.len() == 1 && self.node(ROOT).multi == NONE {
            *self = Trie::default();
        }
    }

    /// The child of a node on the way to a level of a filter.
    pub(super) fn child(&self, state: &RandomState, id: u32, level: &str) -> Option<u32> {
        match level {
            "+" => Some(self.nodes.get(id)?.plus).filter(|plus| *plus != NONE),
            _ => self.literal(state, id, level),
        }
    }

    /// The child of a node that begins with this very level.
    pub(super) fn literal(&self, state: &RandomState, parent: u32, level: &str) -> Option<u32> {
        let is_it = |id| {
            let child = self.node(id);
            let rest = child.label.as_bytes().strip_prefix(level.as_bytes());
            child.parent == parent && rest.is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
        };
        self.edges
            .find(hash(state, parent, level.as_bytes()), is_it)
    }

    /// Parts a node's levels in two at a slash. The lower part keeps the number, for the sake of its children and
    /// entries; that of the upper part is returned.
    fn split(&mut self, state: &RandomState, lower: u32, end: usize) -> u32 {
        let Node { label, parent, .. } = &self.nodes[lower];
        let (head, tail) = (&label.as_bytes()[..end], &label.as_bytes()[end + 1..]);
        let (parent, head, tail) = (*parent, Label::new(head), Label::new(tail));
        self.heap = self.heap - label.heap() + head.heap() + tail.heap();
        let upper = self.nodes.insert(Node::new(head, parent));
        self.relink(state, lower, upper);
        let node = &mut self.nodes[lower];
        (node.label, node.parent) = (tail, upper);
        self.link(state, lower);
        upper
    }

    /// Puts a node that nothing but its one child needs together with that child, which keeps its number.
    fn join(&mut self, state: &RandomState, upper: u32) {
        let node = self.node(upper);
        let children = node.literals + u32::from(node.plus != NONE);
        if upper == ROOT || children != 1 || (node.here, node.multi) != (NONE, NONE) {
            return;
        }
        let (lower, parent) = (
            if node.plus != NONE {
                node.plus
            } else {
                node.only
            },
            node.parent,
        );
        self.unlink(state, lower);
        self.relink(state, upper, lower);
        let upper = self.free(upper);
        let (head, tail) = (upper.label.as_bytes(), self.node(lower).label.as_bytes());
        let label = Label::new(&[head, b"/", tail].concat());
        self.heap = self.heap - self.node(lower).label.heap() + label.heap();
        let node = &mut self.nodes[lower];
        (node.label, node.parent) = (label, parent);
    }

    /// Makes a node known to its parent.
    fn link(&mut self, state: &RandomState, id: u32) {
        let parent = self.node(id).parent;
        match self.edge(state, id) {
            None => self.nodes[parent].plus = id,
            Some(hash) => {
                self.edges.insert(hash, id);
                let parent = &mut self.nodes[parent];
                parent.literals += 1;
                parent.only ^= id;
            }
        }
    }

    fn unlink(&mut self, state: &RandomState, id: u32) {
        let parent = self.node(id).parent;
        match self.edge(state, id) {
            None => self.nodes[parent].plus = NONE,
            Some(hash) => {
                self.edges.remove(hash, id);
                let parent = &mut self.nodes[parent];
                parent.literals -= 1;
                parent.only ^= id;
            }
        }
    }

    /// Has a node's parent know another one in its place, which begins with the same level.
    fn relink(&mut self, state: &RandomState, old: u32, new: u32) {
        let parent = self.node(old).parent;
        match self.edge(state, old) {
            None => self.nodes[parent].plus = new,
            Some(hash) => {
                self.edges.replace(hash, old, new);
                self.nodes[parent].only ^= old ^ new;
            }
        }
    }

    /// The hash of a node's edge, unless it begins with `+`.
    fn edge(&self, state: &RandomState, id: u32) -> Option<u32> {
        let node = self.node(id);
        let mut levels = node.label.as_bytes().split(|byte| *byte == b'/');
        match levels.next().unwrap_or_default() {
            b"+" => None,
            level => Some(hash(state, node.parent, level)),
        }
    }

    fn label(&mut self, text: &[u8]) -> Label {
        let label = Label::new(text);
        self.heap += label.heap();
        label
    }

    fn free(&mut self, id: u32) -> Node {
        let node = self.nodes.remove(id).expect("the node is there");
        self.heap -= node.label.heap();
        node
    }
}

impl Node {
    fn new(label: Label, parent: u32) -> Self {
        Node {
            label,
            parent,
            plus: NONE,
            literals: 0,
            only: 0,
            here: NONE,
            multi: NONE,
        }
    }

    fn is_needless(&self) -> bool {
        (self.here, self.multi, self.plus, self.literals) == (NONE, NONE, NONE, 0)
    }
}

/// What stands before the first slash.
pub(super) fn first_level(levels: &str) -> &str {
    let end = levels.bytes().position(|byte| byte == b'/');
    &levels[..end.unwrap_or(levels.len())]
}

/// Where the levels that two lists begin with end. The first one is common to them.
pub(super) fn common(a: &[u8], b: &[u8]) -> usize {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let ends = |levels: &[u8]| matches!(levels.get(same), None | Some(b'/'));
    match ends(a) && ends(b) {
        true => same,
        false => a[..same]
            .iter()
            .rposition(|byte| *byte == b'/')
            .unwrap_or(0),
    }
}

fn hash(state: &RandomState, parent: u32, level: &[u8]) -> u32 {
    let mut hasher = state.build_hasher();
    hasher.write_u32(parent);
    hasher.write(level);
    (hasher.finish() >> 32) as u32
}
