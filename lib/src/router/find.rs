//! Matching in Redis: where the tables in memory can't be trusted.

use bytes::Bytes;

use super::{encode, table_reply};
use crate::context::Context;
use crate::error::Error;
use crate::keys::Keys;
use crate::metrics::OperationKind;
use crate::outcome::strings;
use crate::request::{hash, Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::route_scripts::{self, Space};
use crate::topic::{validate_name, TopicError};

/// Finds in Redis the routes, or the subscriptions, that match a topic name. In a cluster they are in two shards: that of
/// the name's first level, and that of the filters that begin with a wildcard.
pub struct Find {
    space: Space,
    name: Vec<u8>,
    asked: Asked,
    /// Where to go on.
    from: Bytes,
    found: Vec<Bytes>,
}

/// Nodes of the trie and results that are looked at in one go, one filter's own more at most: Redis does nothing else
/// meanwhile, for some milliseconds where no filter has very many.
const LIMIT: usize = 2_000;

/// Which shards are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    All,
    OfName,
    OfWildcards,
}

impl Find {
    /// For the topic name `name`.
    pub fn new(space: Space, name: Vec<u8>) -> Result<Self, TopicError> {
        validate_name(&name)?;
        Ok(Find {
            space,
            name,
            asked: Asked::All,
            from: Bytes::new(),
            found: Vec::new(),
        })
    }

    fn shard(&self, keys: &Keys) -> u16 {
        match self.asked {
            Asked::All | Asked::OfName => keys.shard(&self.name),
            Asked::OfWildcards => keys.wildcard_shard(),
        }
    }
}

impl Operation for Find {
    fn kind(&self) -> OperationKind {
        match self.space {
            Space::Routes => OperationKind::MatchRoutes,
            Space::Subscriptions => OperationKind::MatchSubscriptions,
        }
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.name))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let Ok(name) = validate_name(&self.name) else {
            return;
        };
        let shard = self.shard(&context.keys);
        let call = route_scripts::find(&context.keys, self.space, shard, name, &self.from, LIMIT);
        encode(context, commands, &call);
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let shard = self.shard(&context.keys);
        let reply = match table_reply(context, self.space, shard, &self.name, replies) {
            Ok(reply) => strings(reply),
            Err(step) => return step,
        };
        let Some((place, found)) = reply.as_deref().and_then(<[Bytes]>::split_first) else {
            return Step::Done(Err(Error::unexpected_reply("match_routes")));
        };
        if let (b"!", [key]) = (&place[..], found) {
            let error = Error::Partial(format!("WRONGTYPE at {}", key.escape_ascii()));
            let clients = context.keys.subscriptions(shard, b"");
            let kind = if key.starts_with(&clients) {
                "hash"
            } else {
                "set"
            };
            return Step::Repair(vec![(key.to_vec(), kind)], error);
        }
        self.found.extend_from_slice(found);
        if !place.is_empty() {
            self.from = place.clone();
            return Step::Again;
        }
        let found = std::mem::take(&mut self.found);
        Step::Done(match self.space {
            Space::Routes if found.len().is_multiple_of(2) => Ok(Answer::Routes(
                found
                    .chunks_exact(2)
                    .map(|it| (it[0].clone(), it[1].clone()))
                    .collect(),
            )),
            Space::Subscriptions if found.len().is_multiple_of(3) => Ok(Answer::Subscriptions(
                found
                    .chunks_exact(3)
                    .map(|it| (it[0].clone(), it[1].clone(), it[2].clone()))
                    .collect(),
            )),
            _ => Err(Error::unexpected_reply("match_routes")),
        })
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        let keys = &context.keys;
        Some(keys.shard_slot(self.shard(keys)))
    }

    fn split(&mut self, context: &Context) -> Option<Vec<Box<dyn Operation>>> {
        // No filter that begins with a wildcard matches a name that begins with `$`.
        let is_all = self.asked == Asked::All && !self.name.starts_with(b"$");
        if !context.keys.is_clustered() || !is_all {
            return None;
        }
        let part = |asked| {
            Box::new(Find {
                space: self.space,
                name: self.name.clone(),
                asked,
                from: Bytes::new(),
                found: Vec::new(),
            }) as Box<dyn Operation>
        };
        Some(vec![part(Asked::OfName), part(Asked::OfWildcards)])
    }

    fn join(&mut self, results: Vec<Result<Answer, Error>>) -> Result<Answer, Error> {
        let (mut all, mut clients) = (Vec::new(), Vec::new());
        for result in results {
            match result? {
                Answer::Routes(routes) => all.extend(routes),
                Answer::Subscriptions(found) => clients.extend(found),
                _ => return Err(Error::unexpected_reply("match_routes")),
            }
        }
        Ok(match self.space {
            Space::Routes => Answer::Routes(all),
            Space::Subscriptions => Answer::Subscriptions(clients),
        })
    }

    fn size(&self) -> usize {
        self.name.len()
    }
}
