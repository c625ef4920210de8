//! The match of a topic name: a look-up, and a walk through the trie without recursion.
//!
//! A node is reached on one way only, so none is visited twice: the work is at most the trie and the results.

use super::slab::NONE;
use super::text::Text;
use super::trie::{first_level, ROOT};
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
        let mut filter = Text::default();
        // Nodes to be visited, and where in the name their levels begin: behind its end, if it has no more.
        let mut next = Some((ROOT, 0));
        let mut later = Vec::new();
        while let Some((id, start)) = next.take().or_else(|| later.pop()) {
            let node = self.trie.node(id);
            budget.spend(1)?;
            let levels = match (id, name.get(start..)) {
                (ROOT, levels) => levels,
                (_, None) => continue,
                (_, Some(levels)) => match strip(levels, node.label.as_bytes(), &mut budget)? {
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
            }
            if let Some(entry) = here {
                self.give(
                    entry,
                    filter.filter(false),
                    &mut shared,
                    &mut budget,
                    &mut visit,
                )?;
            }
            if let Some(entry) = multi {
                self.give(
                    entry,
                    filter.filter(true),
                    &mut shared,
                    &mut budget,
                    &mut visit,
                )?;
            }
            let Some(levels) = levels else {
                continue;
            };
            let start = name.len() - levels.len();
            if node.literals > 0 {
                let level = first_level(levels);
                budget.spend(level.len() / STEP_BYTES)?;
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

/// Where in a name's levels those of a label end, if they match.
fn strip(levels: &str, label: &[u8], budget: &mut Budget) -> Result<Option<usize>, OverBudget> {
    let levels = levels.as_bytes();
    budget.spend(label.len() / STEP_BYTES)?;
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
                    budget.spend(level / STEP_BYTES)?;
                    end += level;
                } else if levels.get(end) == Some(wanted) {
                    end += 1;
                } else {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some(end).filter(|end| matches!(levels.get(*end), None | Some(b'/'))))
}
