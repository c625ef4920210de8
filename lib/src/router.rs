//! Routes: which nodes have subscribers to what.

mod topics;

pub use topics::Topics;

use crate::context::Context;
use crate::error::Error;
use crate::keys::Keys;
use crate::metrics::OperationKind;
use crate::outcome::{done, script_reply, strings, TypedKeys};
use crate::request::{hash, Affinity, Answer, Operation, Step};
use crate::resp::{Commands, Frame};
use crate::route_scripts::{self, ScriptCall};
use crate::scripts::{self, Script};
use crate::topic::{parse_filter, validate_name, TopicError};

pub(crate) fn encode(
    context: &Context,
    commands: &mut Commands<'_>,
    script: Script,
    call: &ScriptCall,
) {
    let keys: Vec<&[u8]> = call.keys.iter().map(Vec::as_slice).collect();
    let out = scripts::call(context, commands, script, &keys, call.args.len());
    for argument in &call.args {
        out.arg(argument);
    }
}

/// The types of the keys that a change of this filter's routes, or a match of this name, touches in a shard.
fn typed_keys(keys: &Keys, shard: u16, filter: &[u8]) -> TypedKeys {
    let mut typed = vec![
        (keys.route(shard, filter), "set"),
        (keys.routes_index(shard), "zset"),
        (keys.wildcards(shard), "zset"),
        (keys.trie(shard), "hash"),
    ];
    if let Ok(filter) = parse_filter(filter) {
        typed.push((keys.trie_routes(shard, filter.real.as_bytes()), "set"));
    }
    typed
}

/// What a script of the route table answered, or how to go on after its error. A trie that holds what no
/// script wrote is moved away as a whole.
fn table_reply(
    context: &Context,
    shard: u16,
    filter: &[u8],
    replies: Vec<Frame>,
) -> Result<Frame, Step> {
    let error = replies.last().and_then(Frame::error);
    let text = String::from_utf8_lossy(error.unwrap_or_default()).into_owned();
    let is_damaged =
        text.contains("trie is damaged") || text.contains("hash value is not an integer");
    script_reply(replies, || {
        let mut keys = typed_keys(&context.keys, shard, filter);
        if is_damaged {
            let trie = context.keys.trie(shard);
            keys.retain(|(key, _)| *key != trie);
            keys.push((trie, "none"));
        }
        keys
    })
}

/// Adds or deletes a route.
pub struct ChangeRoute {
    filter: Vec<u8>,
    node: Vec<u8>,
    adds: bool,
}

impl ChangeRoute {
    /// Routes what matches `filter` to `node`, which must be a [valid
    /// node](crate::keys::valid_node).
    pub fn add(filter: Vec<u8>, node: Vec<u8>) -> Result<Self, TopicError> {
        parse_filter(&filter)?;
        Ok(ChangeRoute {
            filter,
            node,
            adds: true,
        })
    }

    /// Takes that route back.
    pub fn delete(filter: Vec<u8>, node: Vec<u8>) -> Result<Self, TopicError> {
        let route = ChangeRoute::add(filter, node)?;
        Ok(ChangeRoute {
            adds: false,
            ..route
        })
    }

    fn shard(&self, keys: &Keys) -> u16 {
        let real = parse_filter(&self.filter).map_or("", |filter| filter.real);
        keys.shard(real.as_bytes())
    }
}

impl Operation for ChangeRoute {
    fn kind(&self) -> OperationKind {
        match self.adds {
            true => OperationKind::AddRoute,
            false => OperationKind::DeleteRoute,
        }
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.filter))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let Ok(filter) = parse_filter(&self.filter) else {
            return;
        };
        if self.adds {
            let now = (context.clock.now_micros() / 1000).max(0) as u64;
            let call = route_scripts::add_route(&context.keys, &filter, &self.node, now);
            encode(context, commands, Script::AddRoute, &call);
        } else {
            let call = route_scripts::delete_route(&context.keys, &filter, &self.node);
            encode(context, commands, Script::DeleteRoute, &call);
        }
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let shard = self.shard(&context.keys);
        match table_reply(context, shard, &self.filter, replies) {
            Ok(Frame::Integer(_)) => done(),
            Ok(_) => Step::Done(Err(Error::unexpected_reply("change_route"))),
            Err(step) => step,
        }
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        let keys = &context.keys;
        Some(keys.shard_slot(self.shard(keys)))
    }

    fn is_write(&self) -> bool {
        true
    }

    fn size(&self) -> usize {
        self.filter.len() + self.node.len()
    }
}

/// Finds the routes that match a topic name. In a cluster they are in two shards: that of the name's first
/// level, and that of the filters that begin with a wildcard.
pub struct MatchRoutes {
    name: Vec<u8>,
    asked: Asked,
}

/// Which shards are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    All,
    OfName,
    OfWildcards,
}

impl MatchRoutes {
    /// For the topic name `name`.
    pub fn new(name: Vec<u8>) -> Result<Self, TopicError> {
        validate_name(&name)?;
        Ok(MatchRoutes {
            name,
            asked: Asked::All,
        })
    }

    fn shard(&self, keys: &Keys) -> u16 {
        match self.asked {
            Asked::All | Asked::OfName => keys.shard(&self.name),
            Asked::OfWildcards => keys.wildcard_shard(),
        }
    }
}

impl Operation for MatchRoutes {
    fn kind(&self) -> OperationKind {
        OperationKind::MatchRoutes
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::One(hash(&self.name))
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let Ok(name) = validate_name(&self.name) else {
            return;
        };
        let shard = self.shard(&context.keys);
        let call = route_scripts::match_routes(&context.keys, shard, name);
        encode(context, commands, Script::MatchRoutes, &call);
    }

    fn decode(&mut self, context: &Context, replies: Vec<Frame>) -> Step {
        let shard = self.shard(&context.keys);
        let reply = match table_reply(context, shard, &self.name, replies) {
            Ok(reply) => strings(reply),
            Err(step) => return step,
        };
        if let Some([filter]) = reply.as_deref() {
            let key = context.keys.trie_routes(shard, filter);
            let error = Error::Partial(format!("WRONGTYPE at {}", key.escape_ascii()));
            return Step::Repair(vec![(key, "set")], error);
        }
        Step::Done(match reply {
            Some(flat) if flat.len() % 2 == 0 => Ok(Answer::Routes(
                flat.chunks_exact(2)
                    .map(|pair| (pair[0].clone(), pair[1].clone()))
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
            let name = self.name.clone();
            Box::new(MatchRoutes { name, asked }) as Box<dyn Operation>
        };
        Some(vec![part(Asked::OfName), part(Asked::OfWildcards)])
    }

    fn join(&mut self, results: Vec<Result<Answer, Error>>) -> Result<Answer, Error> {
        let mut all = Vec::new();
        for result in results {
            match result? {
                Answer::Routes(routes) => all.extend(routes),
                _ => return Err(Error::unexpected_reply("match_routes")),
            }
        }
        Ok(Answer::Routes(all))
    }

    fn size(&self) -> usize {
        self.name.len()
    }
}
