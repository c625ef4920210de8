//! Adding this node's own routes again where Redis has lost them.

use std::collections::VecDeque;

use super::ask::submit;
use super::follow::Follower;
use crate::error::Error;
use crate::metrics::Counter;
use crate::route_scripts::Space;
use crate::router::Changes;
use crate::topic::parse_filter;

/// Own routes that are looked for, or added again, in one go.
const ASSERTED: usize = 200;

/// What is yet to be done of it.
#[derive(Default)]
pub(super) struct Assertion {
    /// All are looked for in the table: behind this one.
    check: Option<Vec<u8>>,
    missing: VecDeque<Vec<u8>>,
}

impl Assertion {
    /// The table was read anew: any may be missing.
    pub(super) fn check_all(&mut self) {
        self.check = Some(Vec::new());
    }

    /// Somebody has deleted these.
    pub(super) fn add(&mut self, deleted: Vec<Vec<u8>>) {
        self.missing.extend(deleted);
    }
}

impl Follower {
    /// Adds own routes again; true where there is more to do for it.
    pub(super) async fn assert_own(&mut self) -> Result<bool, Error> {
        if self.state().lease().is_superseded() {
            self.assertion = Assertion::default();
        }
        if self.assertion.missing.is_empty() {
            self.find_missing();
        }
        let count = self.assertion.missing.len().min(ASSERTED);
        if count > 0 {
            let filters: Vec<Vec<u8>> = self.assertion.missing.drain(..count).collect();
            let changes = Changes::assert(&self.context, filters.clone());
            if let Err(error) = submit(&self.engine, Box::new(changes)).await {
                self.assertion.missing.extend(filters);
                return Err(error);
            }
            self.context.metrics.add(Counter::Reasserted, count as u64);
        }
        Ok(self.assertion.check.is_some() || !self.assertion.missing.is_empty())
    }

    /// Looks for some of this node's routes in the table.
    fn find_missing(&mut self) {
        let Some(after) = self.assertion.check.take() else {
            return;
        };
        let (shard, keys) = (self.shard, &self.context.keys);
        let (wanted, is_last) = self.context.replica.own.wanted(Some(&after), ASSERTED);
        if !is_last {
            self.assertion.check = wanted.last().cloned();
        }
        let node = &self.context.node;
        let missing: Vec<Vec<u8>> = {
            let tables = &self.state().tables;
            let tables = tables.read();
            let is_missing = |filter: &Vec<u8>| {
                parse_filter(filter).is_ok_and(|it| keys.shard(it.real.as_bytes()) == shard)
                    && !tables.contains(Space::Routes, filter, node)
            };
            wanted.into_iter().filter(is_missing).collect()
        };
        self.assertion.missing.extend(missing);
    }
}
