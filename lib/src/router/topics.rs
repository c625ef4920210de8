//! Listing the filters that have routes.

use bytes::Bytes;

use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::outcome::{read_reply, strings};
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::walk::{InSlot, Walk};

/// Filters listed by one command.
const TOPICS_STEP: u64 = 5000;

/// Lists every filter that has a route: shard by shard, in a shard in the order in which nodes were last added
/// to them.
#[derive(Default)]
pub struct Topics {
    walk: Option<Walk<Page>>,
    /// Those of each shard.
    found: Vec<Vec<Bytes>>,
}

struct Page {
    shard: u16,
    slot: u16,
    from: u64,
}

impl InSlot for Page {
    fn slot(&self) -> u16 {
        self.slot
    }
}

impl Topics {
    fn walk(&mut self, context: &Context) -> &mut Walk<Page> {
        let keys = &context.keys;
        self.walk.get_or_insert_with(|| {
            self.found = vec![Vec::new(); keys.shards().len()];
            Walk::over(keys.shards().map(|shard| Page {
                shard,
                slot: keys.shard_slot(shard),
                from: 0,
            }))
        })
    }

    fn take(&mut self, context: &Context, page: Page, reply: Frame) -> Result<(), Step> {
        let key = || vec![(context.keys.routes_index(page.shard), "zset")];
        let Some(filters) = strings(read_reply(vec![reply], key)?) else {
            return Err(Step::Done(Err(Error::unexpected_reply("ZRANGE"))));
        };
        if filters.len() as u64 == TOPICS_STEP {
            let from = page.from + TOPICS_STEP;
            self.walk(context).ask(Page { from, ..page });
        }
        self.found[usize::from(page.shard)].extend(filters);
        Ok(())
    }
}

impl Operation for Topics {
    fn kind(&self) -> OperationKind {
        OperationKind::Topics
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        for page in self.walk(context).step(context) {
            commands
                .begin(4)
                .arg(b"ZRANGE")
                .arg(&context.keys.routes_index(page.shard))
                .int(page.from)
                .int(page.from + TOPICS_STEP - 1);
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        for (page, reply) in self.walk(context).answered(replies) {
            if let Err(step) = self.take(context, page, reply) {
                return step;
            }
        }
        if !self.walk(context).is_over() {
            return Step::Again;
        }
        let found = std::mem::take(&mut self.found);
        Step::Done(Ok(Answer::Binaries(found.into_iter().flatten().collect())))
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        let first = || Some(context.keys.shard_slot(0));
        self.walk.as_ref().map_or_else(first, Walk::slot)
    }

    fn takes_redirects(&self) -> bool {
        self.walk.as_ref().is_none_or(Walk::takes_redirects)
    }

    fn size(&self) -> usize {
        0
    }
}
