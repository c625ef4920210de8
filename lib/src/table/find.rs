//! The match of a topic name: a look-up, and a walk through the trie without recursion.
//!
//! A node is reached on one way only, so none is visited twice: the work is at most the trie and the results.

use super::slab::NONE;
use super::trie::{first_level, Node, Trie, ROOT};
use super::{Found, OverBudget, Table};

/// A long label or filter counts a step more for each such number of bytes.
const STEP_BYTES: usize = 256;

/// The steps that are left.
struct Budget(usize);

impl Budget {
    fn spend(&mut self, steps: usize) -> Result<(), OverBudget> {
        self.0 = self.0.checked_sub(steps).ok_or(OverBudget)?;
        Ok(())
    }
}

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
        mut visit: impl FnMut(Found<'_>),
    ) -> Result<(), OverBudget> {
        let mut budget = Budget(steps);
        budget.spend(1)?;
        let mut shared = String::new();
        if let Some(entry) = self.exact(name) {
            self.give(entry, name, &mut shared, &mut budget, &mut visit)?;
        }
        if self.trie.get(ROOT).is_none() {
            return Ok(());
        }
        let mut filter = String::new();
        // Where a node is to be visited, and the name's levels from its label on.
        let mut next = Some((ROOT, Some(name)));
        let mut later: Vec<(u32, Option<&str>)> = Vec::new();
        while let Some((id, rest)) = next.take().or_else(|| later.pop()) {
            let node = self.trie.node(id);
            let label = node.label.as_bytes();
            budget.spend(1 + label.len() / STEP_BYTES)?;
            let Some(rest) = (match id {
                ROOT => Some(rest),
                _ => rest.and_then(|rest| strip(rest, label)),
            }) else {
                continue;
            };
            // Neither + nor # is a first level that begins with $ [MQTT-4.7.2-1].
            let wildcards = id != ROOT || !name.starts_with('$');
            let here = Some(node.here).filter(|entry| *entry != NONE && rest.is_none());
            let multi = Some(node.multi).filter(|entry| *entry != NONE && wildcards);
            if here.is_some() || multi.is_some() {
                self.trie.write_levels(id, &mut filter);
            }
            if let Some(entry) = here {
                self.give(entry, &filter, &mut shared, &mut budget, &mut visit)?;
            }
            if let Some(entry) = multi {
                filter.push_str(if id == ROOT { "#" } else { "/#" });
                self.give(entry, &filter, &mut shared, &mut budget, &mut visit)?;
            }
            let Some(levels) = rest else {
                continue;
            };
            if node.literals > 0 {
                let child = self.trie.literal(&self.state, id, first_level(levels));
                next = child.map(|child| (child, rest));
            }
            if node.plus != NONE && wildcards {
                later.push((node.plus, rest));
            }
        }
        Ok(())
    }

    /// Visits the routes of one entry.
    fn give(
        &self,
        entry: u32,
        real: &str,
        shared: &mut String,
        budget: &mut Budget,
        visit: &mut impl FnMut(Found<'_>),
    ) -> Result<(), OverBudget> {
        budget.spend(real.len() / STEP_BYTES)?;
        let mut last = NONE;
        self.entries[entry].routes.try_each(|route| {
            budget.spend(1)?;
            if route.group != NONE && route.group != last {
                budget.spend(real.len() / STEP_BYTES)?;
            }
            visit(self.found(route, real, shared, &mut last));
            Ok(())
        })
    }
}

impl Trie {
    /// Writes the levels of a node, from the root's down.
    pub(super) fn write_levels(&self, id: u32, out: &mut String) {
        out.clear();
        let mut parents: Vec<&Node> = Vec::new();
        let mut node = self.node(id);
        while node.parent != ROOT && node.parent != NONE {
            parents.push(node);
            node = self.node(node.parent);
        }
        out.push_str(node.label.as_str());
        for node in parents.into_iter().rev() {
            out.push('/');
            out.push_str(node.label.as_str());
        }
    }
}

/// What is left of a name's levels after those of a label: the levels that follow, or none. `None` where they do
/// not match.
fn strip<'a>(name: &'a str, label: &[u8]) -> Option<Option<&'a str>> {
    let after = |end: usize| match name.as_bytes().get(end) {
        None => Some(None),
        Some(b'/') => Some(Some(&name[end + 1..])),
        Some(_) => None,
    };
    if name.as_bytes().starts_with(label) {
        return after(label.len());
    }
    let mut end = None;
    for wanted in label.split(|byte| *byte == b'/') {
        let start = match end {
            None => 0,
            Some(end) if end < name.len() => end + 1,
            Some(_) => return None,
        };
        let level = first_level(&name[start..]);
        if wanted != b"+" && wanted != level.as_bytes() {
            return None;
        }
        end = Some(start + level.len());
    }
    after(end?)
}
