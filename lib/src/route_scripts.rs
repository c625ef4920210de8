//! The scripts that keep and search the route table in Redis, and what each is called with.
//!
//! There are two tables of one form: routes lead from a topic filter to nodes, subscriptions from a topic filter to
//! persistent clients with their options. Every filter has its set of destinations and stands in the index of
//! filters; a wildcard or shared filter has its place in the trie too, so that a match costs the levels of the
//! topic name and not the number of filters. Every change is told in the shard's feed. The scripts' headers say
//! the rest.

use crate::keys::Keys;
use crate::outcome::TypedKeys;
use crate::scripts::Script;
use crate::topic::Filter;

/// Entries that the feeds of all shards hold together, at least.
const FEED_LENGTH: usize = 100_000;
/// Bytes that they may take about, where entries are large.
const FEED_BYTES: usize = 64 * 1024 * 1024;
/// What an entry takes beside its filter, destination and options.
const ENTRY_BYTES: usize = 128;

/// Which of the two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Space {
    /// Filter to node.
    Routes,
    /// Filter to persistent client, with the subscription's options.
    Subscriptions,
}

/// What EVALSHA takes behind the script: the keys with their number, then the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptCall {
    /// The script.
    pub script: Script,
    /// The keys that the script declares; those that it derives share their slot.
    pub keys: Vec<Vec<u8>>,
    /// The other arguments.
    pub args: Vec<Vec<u8>>,
}

/// Who writes a change, and when.
#[derive(Debug, Clone, Default)]
pub struct Stamp {
    /// Microseconds since 1970 on Redis's clock.
    pub micros: i64,
    /// A number that no other change has.
    pub once: u64,
}

/// A change of one of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change<'a> {
    /// The table.
    pub space: Space,
    /// Adds; or deletes.
    pub adds: bool,
    /// Of a subscription: its options. One to be deleted must have them, unless they are empty.
    pub options: &'a [u8],
    /// The node or client. Of a node: a [valid](crate::keys::valid_node) one.
    pub destination: &'a [u8],
    /// Of an added route the life of the node that adds it for itself, of a deleted one the beat that the node's lease
    /// must still have; else empty.
    pub proof: &'a [u8],
}

/// The call that makes a change. It answers whether it changed anything (2: the node is alive), and the version and
/// nonce of the feed's last entry. Calling it again changes nothing.
pub fn change(keys: &Keys, filter: &Filter, change: &Change<'_>, stamp: &Stamp) -> ScriptCall {
    let full = filter.full.as_bytes();
    let real = filter.real.as_bytes();
    let shard = keys.shard(real);
    let script = match (change.space, change.adds) {
        (Space::Routes, true) => Script::AddRoute,
        (Space::Routes, false) => Script::DeleteRoute,
        (Space::Subscriptions, true) => Script::AddSubscription,
        (Space::Subscriptions, false) => Script::DeleteSubscription,
    };
    let last = match change.space {
        Space::Routes => change.proof,
        Space::Subscriptions => change.options,
    };
    let size = full.len() + change.destination.len() + change.options.len();
    let number = |number: i64| number.to_string().into_bytes();
    let mut args = vec![
        full.to_vec(),
        change.destination.to_vec(),
        number((stamp.micros / 1000).max(0)),
        number(stamp.micros),
        stamp.once.to_string().into_bytes(),
        feed_length(keys, size).to_string().into_bytes(),
        last.to_vec(),
    ];
    let mut all: Vec<Vec<u8>> = change_keys(keys, shard, change.space, filter)
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    if filter.needs_trie() {
        if change.space == Space::Routes {
            args.push(keys.wildcard_member(full, change.destination));
        }
        args.push(real.to_vec());
    } else {
        all.truncate(all.len() - if change.space == Space::Routes { 3 } else { 2 });
    }
    ScriptCall {
        script,
        keys: all,
        args,
    }
}

/// The call that puts back what the trie has lost of a filter.
pub(crate) fn restore(keys: &Keys, shard: u16, space: Space, filter: &Filter) -> ScriptCall {
    let all = change_keys(keys, shard, space, filter);
    let all: Vec<Vec<u8>> = all.into_iter().map(|(key, _)| key).collect();
    let (trie, destinations) = (&all[all.len() - 2..], &all[..1]);
    let kind = match space {
        Space::Routes => "r",
        Space::Subscriptions => "s",
    };
    ScriptCall {
        script: Script::RestoreFilter,
        keys: [destinations, trie].concat(),
        args: [kind, filter.full, filter.real]
            .map(|it| it.as_bytes().to_vec())
            .to_vec(),
    }
}

/// The trie of a space, and what the keys of its parts begin with.
pub(crate) fn trie_keys(keys: &Keys, space: Space, shard: u16) -> (Vec<u8>, Vec<u8>) {
    match space {
        Space::Routes => (keys.trie(shard), keys.trie_routes(shard, b"")),
        Space::Subscriptions => (
            keys.subscriptions_trie(shard),
            keys.trie_filters(shard, b""),
        ),
    }
}

/// All keys that a change of this filter can touch, in the order in which the scripts take them.
pub(crate) fn change_keys(keys: &Keys, shard: u16, space: Space, filter: &Filter) -> TypedKeys {
    let (full, real) = (filter.full.as_bytes(), filter.real.as_bytes());
    match space {
        Space::Routes => vec![
            (keys.route(shard, full), "set"),
            (keys.routes_index(shard), "zset"),
            (keys.feed(shard), "stream"),
            (keys.leases(shard), "hash"),
            (keys.wildcards(shard), "zset"),
            (keys.trie(shard), "hash"),
            (keys.trie_routes(shard, real), "set"),
        ],
        Space::Subscriptions => vec![
            (keys.subscriptions(shard, full), "hash"),
            (keys.subscriptions_index(shard), "zset"),
            (keys.feed(shard), "stream"),
            (keys.subscriptions_trie(shard), "hash"),
            (keys.trie_filters(shard, real), "set"),
        ],
    }
}

/// How many entries a feed keeps behind one of this size: fewer where they are large, so that it takes no more memory
/// than it may. A shorter history only costs those that are far behind a new start.
fn feed_length(keys: &Keys, size: usize) -> usize {
    let most = FEED_LENGTH.min(FEED_BYTES / (size + ENTRY_BYTES));
    (most / keys.shards().len()).max(500)
}

/// The call that finds some of what matches a valid topic name in one route shard. It answers where to go on (`from` of
/// the next call; empty at the end, as at the beginning), and filter, node and so on, or filter, client, options and so
/// on: each once, in no order.
///
/// `limit` bounds the work about: nodes of the trie, and results. A single filter's are not parted.
pub fn find(
    keys: &Keys,
    space: Space,
    shard: u16,
    name: &str,
    from: &[u8],
    limit: usize,
) -> ScriptCall {
    let name = name.as_bytes();
    let mut call = match space {
        Space::Routes => ScriptCall {
            script: Script::MatchRoutes,
            keys: vec![keys.route(shard, name), keys.trie(shard)],
            args: vec![name.to_vec(), keys.trie_routes(shard, b"")],
        },
        Space::Subscriptions => ScriptCall {
            script: Script::MatchSubscriptions,
            keys: vec![
                keys.subscriptions(shard, name),
                keys.subscriptions_trie(shard),
            ],
            args: vec![
                name.to_vec(),
                keys.trie_filters(shard, b""),
                keys.subscriptions(shard, b""),
            ],
        },
    };
    call.args.push(from.to_vec());
    call.args.push(limit.to_string().into_bytes());
    call
}
