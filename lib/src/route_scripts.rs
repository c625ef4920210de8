//! The scripts that keep and search the route table in Redis, and what each is called with.
//!
//! A route is a topic filter and a node. Every filter has its set of nodes and stands in the index of
//! filters; a wildcard or shared filter has its place in the trie too, so that a match costs the levels of the
//! topic name and not the number of filters. The scripts' headers say the rest.

use crate::keys::Keys;
use crate::topic::Filter;

/// What EVALSHA takes behind the script: the keys with their number, then the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptCall {
    /// The keys that the script declares; those that it derives share their slot.
    pub keys: Vec<Vec<u8>>,
    /// The other arguments.
    pub args: Vec<Vec<u8>>,
}

/// The call of [`Script::AddRoute`](crate::scripts::Script::AddRoute) for a [valid node](crate::keys::valid_node), at `now` in milliseconds.
///
/// It answers 1 if the route is new and 0 if it was there; calling it again changes nothing.
pub fn add_route(keys: &Keys, filter: &Filter, node: &[u8], now: u64) -> ScriptCall {
    let now = itoa::Buffer::new().format(now).as_bytes().to_vec();
    change_route(keys, filter, node, Some(now))
}

/// The call of [`Script::DeleteRoute`](crate::scripts::Script::DeleteRoute).
///
/// It answers 1 if the route was there and 0 if not; calling it again changes nothing.
pub fn delete_route(keys: &Keys, filter: &Filter, node: &[u8]) -> ScriptCall {
    change_route(keys, filter, node, None)
}

/// The call of [`Script::MatchRoutes`](crate::scripts::Script::MatchRoutes) for a valid topic name, in one route
/// shard.
///
/// It answers filter, node, filter, node and so on: each matching route once, in no order.
pub fn match_routes(keys: &Keys, shard: u16, name: &str) -> ScriptCall {
    let name = name.as_bytes();
    ScriptCall {
        keys: vec![keys.route(shard, name), keys.trie(shard)],
        args: vec![name.to_vec(), keys.trie_routes(shard, b"")],
    }
}

fn change_route(keys: &Keys, filter: &Filter, node: &[u8], now: Option<Vec<u8>>) -> ScriptCall {
    let full = filter.full.as_bytes();
    let shard = keys.shard(filter.real.as_bytes());
    let mut call = ScriptCall {
        keys: vec![keys.route(shard, full), keys.routes_index(shard)],
        args: vec![full.to_vec(), node.to_vec()],
    };
    call.args.extend(now);
    if filter.needs_trie() {
        let real = filter.real.as_bytes();
        call.keys.extend([
            keys.wildcards(shard),
            keys.trie(shard),
            keys.trie_routes(shard, real),
        ]);
        call.args
            .extend([keys.wildcard_member(full, node), real.to_vec()]);
    }
    call
}
