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
    /// Whose stores were split off.
    split_off: Vec<Vec<u8>>,
}

impl StoreMessageFor {
    /// Stores the message for each of the clients.
    pub fn new(
        clients: Vec<Vec<u8>>,
        message: Message,
        ttl: Option<Ttl>,
        limit: Option<Limit>,
        needs_session: bool,
    ) -> Self {
        let stores: Vec<_> = clients
            .into_iter()
            .map(|client| {
                let copy = Message {
                    id: message.id.clone(),
                    timestamp: message.timestamp,
                    value: message.value.clone(),
                };
                StoreMessages::new(client, vec![copy], ttl, limit).needs_session(needs_session)
            })
            .collect();
        StoreMessageFor {
            affinity: stores.iter().map(|store| store.affinity).collect(),
            stores,
            expected: Vec::new(),
            dropped: Vec::new(),
            failed: Vec::new(),
            repairs: Vec::new(),
            split_off: Vec::new(),
        }
    }

    fn result(&mut self) -> Result<Answer, Error> {
        if !self.failed.is_empty() {
            return Err(Error::PartialBatch(std::mem::take(&mut self.failed)));
        }
        Ok(match std::mem::take(&mut self.dropped) {
            none if none.is_empty() => Answer::Ok,
            dropped => Answer::DroppedByClient(dropped),
        })
    }

    fn done(&mut self) -> Step {
        match (self.result(), std::mem::take(&mut self.repairs)) {
            (Err(error), mut keys) if !keys.is_empty() => {
                keys.sort();
                keys.dedup();
                Step::Repair(keys, error)
            }
            (result, _) => Step::Done(result),
        }
    }

    /// The error that all stores failed with, where it is not one of the clients' own.
    fn common_failure(&self) -> Option<Error> {
        let (_, first) = self.failed.first()?;
        let is_common = matches!(
            first,
            Error::Timeout
                | Error::Overloaded
                | Error::Stopped
                | Error::Cancelled
                | Error::Unknown(_)
                | Error::Unavailable(_)
        );
        let is_everyones = self.failed.len() == self.split_off.len()
            && self.failed.iter().all(|(_, error)| error == first);
        (is_common && is_everyones).then(|| first.clone())
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

    fn split(&mut self, context: &Context) -> Option<Vec<Box<dyn Operation>>> {
        if !context.keys.is_clustered() || self.stores.is_empty() {
            return None;
        }
        let stores = std::mem::take(&mut self.stores);
        self.split_off = stores.iter().map(|store| store.client.clone()).collect();
        let part = |store| Box::new(store) as Box<dyn Operation>;
        Some(stores.into_iter().map(part).collect())
    }

    fn join(&mut self, results: Vec<Result<Answer, Error>>) -> Result<Answer, Error> {
        for (client, result) in self.split_off.iter().zip(results) {
            match result {
                Ok(Answer::Dropped(ids)) => self.dropped.push((client.clone(), ids)),
                Ok(_) => {}
                Err(error) => self.failed.push((client.clone(), error)),
            }
        }
        self.common_failure().map_or_else(|| self.result(), Err)
    }

    fn size(&self) -> usize {
        self.stores.iter().map(Operation::size).sum()
    }
}
