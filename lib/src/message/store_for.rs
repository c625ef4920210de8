//! Storing one message for many clients.

use bytes::Bytes;

use super::store::{Limit, Message, StoreMessages};
use crate::config::Ttl;
use crate::context::Context;
use crate::error::Error;
use crate::metrics::OperationKind;
use crate::outcome::TypedKeys;
use crate::request::{Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};

/// Stores one message for many clients: an atomic unit for each, all sent at once.
pub struct StoreMessageFor {
    stores: Vec<StoreMessages>,
    affinity: Vec<u64>,
    /// How many replies each unfinished store was sent for.
    expected: Vec<usize>,
    dropped: Vec<(Vec<u8>, Vec<Bytes>)>,
    failed: Vec<(Vec<u8>, Error)>,
    repairs: TypedKeys,
}

impl StoreMessageFor {
    /// Stores the message for each of the clients.
    pub fn new(
        clients: Vec<Vec<u8>>,
        message: Message,
        ttl: Option<Ttl>,
        limit: Option<Limit>,
    ) -> Self {
        let stores: Vec<_> = clients
            .into_iter()
            .map(|client| {
                let copy = Message {
                    id: message.id.clone(),
                    timestamp: message.timestamp,
                    value: message.value.clone(),
                };
                StoreMessages::new(client, vec![copy], ttl, limit)
            })
            .collect();
        StoreMessageFor {
            affinity: stores.iter().map(|store| store.affinity).collect(),
            stores,
            expected: Vec::new(),
            dropped: Vec::new(),
            failed: Vec::new(),
            repairs: Vec::new(),
        }
    }

    fn done(&mut self) -> Step {
        if self.failed.is_empty() {
            return Step::Done(Ok(match std::mem::take(&mut self.dropped) {
                none if none.is_empty() => Answer::Ok,
                dropped => Answer::DroppedByClient(dropped),
            }));
        }
        let error = Error::PartialBatch(std::mem::take(&mut self.failed));
        match std::mem::take(&mut self.repairs) {
            none if none.is_empty() => Step::Done(Err(error)),
            mut keys => {
                keys.sort();
                keys.dedup();
                Step::Repair(keys, error)
            }
        }
    }
}

impl Operation for StoreMessageFor {
    fn kind(&self) -> OperationKind {
        OperationKind::StoreMessage
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::Many(&self.affinity)
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        self.expected.clear();
        for store in &mut self.stores {
            let before = commands.count();
            store.encode(context, commands);
            self.expected.push(commands.count() - before);
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let mut replies = replies.into_iter();
        let mut load_scripts = false;
        let mut unfinished = Vec::new();
        for (mut store, expected) in std::mem::take(&mut self.stores)
            .into_iter()
            .zip(std::mem::take(&mut self.expected))
        {
            match store.decode(context, replies.by_ref().take(expected).collect()) {
                Step::Done(Ok(Answer::Dropped(ids))) => self.dropped.push((store.client, ids)),
                Step::Done(Ok(_)) => {}
                Step::Done(Err(error)) => self.failed.push((store.client, error)),
                Step::Again => unfinished.push(store),
                Step::LoadScripts => {
                    load_scripts = true;
                    unfinished.push(store);
                }
                Step::Repair(keys, error) => {
                    self.repairs.extend(keys);
                    self.failed.push((store.client, error));
                }
            }
        }
        self.stores = unfinished;
        match (self.stores.is_empty(), load_scripts) {
            (true, _) => self.done(),
            (false, true) => Step::LoadScripts,
            (false, false) => Step::Again,
        }
    }

    fn is_write(&self) -> bool {
        true
    }

    fn may_repeat(&self) -> bool {
        self.stores.iter().all(Operation::may_repeat)
    }

    fn size(&self) -> usize {
        self.stores.iter().map(Operation::size).sum()
    }
}
