//! The names of all keys in Redis. No other file spells one.
//!
//! Each kind of key begins with a word that no other kind begins with, and what follows is encoded so that
//! two different items never share a key, whatever bytes their names hold. Only bytes that could confuse are
//! percent-encoded, so that an ordinary item is found under its plain name. There are two layouts.
//!
//! The plain one, for a server and its replicas:
//!
//! | key | encoding |
//! |---|---|
//! | `session:{client}`, `msgq:{client}`, `epoch:{client}` | the client id as it is: it ends the key |
//! | `msg:{client}:{id}` | `%` and `:` of the client id encoded, the message id as it is |
//! | `route:{filter}` | `%` encoded; the filter `wildcards` is `%77ildcards`, since `route:wildcards` is an index |
//! | `trie:{filter}`, `psub:{filter}`, `ptrie:{filter}` | the filter as it is |
//!
//! And that of a cluster, where the braces are real ones: they make a hash tag, so that all that one script
//! touches is in one hash slot.
//!
//! | key | encoding |
//! |---|---|
//! | `session:{client}`, `msgq:{client}`, `epoch:{client}`, `msg:{client}:{id}` | `%` and `}` of the client id encoded; the empty client id is `%`, since an empty tag is none |
//! | `sync:sessions:{TAG}` and the other indexes | the [tag](hash_slot::tag) of the slot whose clients they list |
//! | `route:{TAG}:{filter}`, `psub:{TAG}:{filter}` and the other keys of routes | the tag of the slot of the route shard; the filter as it is |
//!
//! Routes are spread over shards by the first level of their filter, without a `$share/Group/` before it;
//! filters that begin with a wildcard have a shard of their own, so that a match asks two.

mod encoding;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};

use crate::hash_slot::{self, crc16, slot_of_tag};
use crate::slots::SLOTS;

use encoding::{clustered_client, decode, encode, push_tag};

/// Route shards of a new cluster, beside the one of filters that begin with a wildcard.
pub const DEFAULT_ROUTE_SHARDS: u16 = 16;
/// The most route shards.
pub const MAX_ROUTE_SHARDS: u16 = 1024;

/// Makes the names of keys, each behind the configured prefix.
#[derive(Debug)]
pub struct Keys {
    prefix: Vec<u8>,
    clustered: bool,
    route_shards: AtomicU16,
}

impl Keys {
    /// Plain names behind `prefix`, which may be empty. Which prefixes can share one Redis:
    /// `docs/configuration.md`, key_prefix.
    pub fn new(prefix: impl Into<Vec<u8>>) -> Self {
        Keys {
            prefix: prefix.into(),
            clustered: false,
            route_shards: DEFAULT_ROUTE_SHARDS.into(),
        }
    }

    /// A cluster's names. The prefix must hold no `{`, which would begin a hash tag.
    pub fn clustered(prefix: impl Into<Vec<u8>>) -> Self {
        Keys {
            clustered: true,
            ..Keys::new(prefix)
        }
    }

    /// What stands before every key.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Whether these are a cluster's names.
    pub fn is_clustered(&self) -> bool {
        self.clustered
    }

    /// The hash slot of all that belongs to a client. The plain layout knows no slots: there it is always 0.
    pub fn client_slot(&self, client: &[u8]) -> u16 {
        match self.clustered {
            true => slot_of_tag(&clustered_client(client)),
            false => 0,
        }
    }

    /// The slots that have indexes of their own.
    pub fn slots(&self) -> Range<u16> {
        match self.clustered {
            true => 0..SLOTS,
            false => 0..1,
        }
    }

    /// Hash: a client's session.
    pub fn session(&self, client: &[u8]) -> Vec<u8> {
        self.client_key(b"session:", client)
    }

    /// What stands before a client id, or its hash tag, in [`Keys::session`].
    pub fn session_prefix(&self) -> Vec<u8> {
        self.key(b"session:", b"")
    }

    /// String: one encoded message.
    pub fn message(&self, client: &[u8], id: &[u8]) -> Vec<u8> {
        let mut key = self.key_with_room(b"msg:", client.len() + 3 + id.len());
        self.push_message_member(&mut key, client, id);
        key
    }

    /// String: the packet id that a message was sent to the client with.
    pub fn sent(&self, client: &[u8], id: &[u8]) -> Vec<u8> {
        let mut key = self.key_with_room(b"sent:", client.len() + 3 + id.len());
        self.push_message_member(&mut key, client, id);
        key
    }

    /// Sorted set: a client's message ids by publish time.
    pub fn queue(&self, client: &[u8]) -> Vec<u8> {
        self.client_key(b"msgq:", client)
    }

    /// String: the fencing epoch of a client's session. It outlives the session for a while.
    pub fn epoch(&self, client: &[u8]) -> Vec<u8> {
        self.client_key(b"epoch:", client)
    }

    /// Sorted set: client ids by the time of the last save.
    pub fn sessions_index(&self, slot: u16) -> Vec<u8> {
        self.slot_key(b"sync:sessions", slot)
    }

    /// Sorted set: client ids by the time at which their session expires.
    pub fn sessions_expiry(&self, slot: u16) -> Vec<u8> {
        self.slot_key(b"expiry:sessions", slot)
    }

    /// Sorted set: messages (see [`Keys::message_member`]) by time.
    pub fn messages_index(&self, slot: u16) -> Vec<u8> {
        self.slot_key(b"sync:messages", slot)
    }

    /// Sorted set: messages (see [`Keys::message_member`]) by the time at which they expire.
    pub fn messages_expiry(&self, slot: u16) -> Vec<u8> {
        self.slot_key(b"expiry:messages", slot)
    }

    /// What stands for a message in the messages' indexes: its key without the prefix and `msg:`.
    pub fn message_member(&self, client: &[u8], id: &[u8]) -> Vec<u8> {
        let mut member = Vec::with_capacity(client.len() + 3 + id.len());
        self.push_message_member(&mut member, client, id);
        member
    }

    /// The client id and message id of a member of the messages' indexes, or `None` if it is none of ours.
    pub fn split_message_member<'a>(&self, member: &'a [u8]) -> Option<(Cow<'a, [u8]>, &'a [u8])> {
        let end = if self.clustered { b'}' } else { b':' };
        let end = member.iter().position(|&byte| byte == end)?;
        if !self.clustered {
            let client = decode(&member[..end], &[(b"25", b'%'), (b"3A", b':')])?;
            return Some((client, &member[end + 1..]));
        }
        let client = match member[..end].strip_prefix(b"{")? {
            b"" => return None,
            b"%" => Cow::Borrowed(&b""[..]),
            encoded => decode(encoded, &[(b"25", b'%'), (b"7D", b'}')])?,
        };
        Some((client, member[end + 1..].strip_prefix(b":")?))
    }

    /// Takes over how many route shards the cluster's `meta` names; false where that can't be.
    pub fn learn_shards(&self, shards: u16) -> bool {
        let can_be = (1..=MAX_ROUTE_SHARDS).contains(&shards);
        if can_be {
            self.route_shards.store(shards, Relaxed);
        }
        can_be
    }

    /// All route shards; the last one is that of filters that begin with a wildcard. The plain layout has one.
    pub fn shards(&self) -> Range<u16> {
        match self.clustered {
            true => 0..self.route_shards.load(Relaxed) + 1,
            false => 0..1,
        }
    }

    /// The shard of a filter, without a `$share/Group/` before it, or of a topic name.
    pub fn shard(&self, real_filter: &[u8]) -> u16 {
        if !self.clustered {
            return 0;
        }
        let mut levels = real_filter.split(|&byte| byte == b'/');
        match levels.next() {
            Some(b"+" | b"#") => self.wildcard_shard(),
            first => crc16(first.unwrap_or_default()) % self.route_shards.load(Relaxed),
        }
    }

    /// The shard of filters that begin with a wildcard.
    pub fn wildcard_shard(&self) -> u16 {
        self.shards().end - 1
    }

    /// The hash slot of a route shard: they are spread evenly, so that each server has its share.
    pub fn shard_slot(&self, shard: u16) -> u16 {
        if !self.clustered {
            return 0;
        }
        let shards = u32::from(self.route_shards.load(Relaxed));
        if u32::from(shard) < shards {
            return ((2 * u32::from(shard) + 1) * u32::from(SLOTS) / (2 * shards)) as u16;
        }
        // Of an odd number the one in the middle is in the middle.
        SLOTS / 2 + (shards % 2) as u16
    }

    /// The route shard in a slot.
    pub fn shard_in(&self, slot: u16) -> Option<u16> {
        self.shards().find(|shard| self.shard_slot(*shard) == slot)
    }

    /// Set: the nodes that hold a route for exactly this topic filter.
    pub fn route(&self, shard: u16, filter: &[u8]) -> Vec<u8> {
        if self.clustered {
            return self.shard_item(b"route:", shard, filter);
        }
        // The only filter whose key would be that of an index. No other one yields a `%77`.
        if filter == b"wildcards" {
            return self.key(b"route:", b"%77ildcards");
        }
        let mut key = self.key_with_room(b"route:", filter.len());
        for &byte in filter {
            match byte {
                b'%' => key.extend_from_slice(b"%25"),
                _ => key.push(byte),
            }
        }
        key
    }

    /// Sorted set: topic filters by the time at which a node was last added.
    pub fn routes_index(&self, shard: u16) -> Vec<u8> {
        self.slot_key(b"sync:routes", self.shard_slot(shard))
    }

    /// Sorted set: `filter|node` of every wildcard or shared route.
    pub fn wildcards(&self, shard: u16) -> Vec<u8> {
        self.slot_key(b"route:wildcards", self.shard_slot(shard))
    }

    /// What stands for a route in [`Keys::wildcards`] and [`Keys::trie_routes`]: split it at the last `|`, which
    /// no [`valid_node`] holds, though a filter may.
    pub fn wildcard_member(&self, filter: &[u8], node: &[u8]) -> Vec<u8> {
        [filter, b"|", node].concat()
    }

    /// The filter and node of a [`Keys::wildcard_member`], or `None` if it is none of ours.
    pub fn split_wildcard_member<'a>(&self, member: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
        let bar = member.iter().rposition(|&byte| byte == b'|')?;
        Some((&member[..bar], &member[bar + 1..]))
    }

    /// Hash: the nodes of the trie of wildcard and shared filters.
    pub fn trie(&self, shard: u16) -> Vec<u8> {
        self.slot_key(b"trie", self.shard_slot(shard))
    }

    /// Set: the `filter|node` routes whose filter, without a `$share/Group/` before it, is this one.
    pub fn trie_routes(&self, shard: u16, real_filter: &[u8]) -> Vec<u8> {
        self.filter_key(b"trie:", shard, real_filter)
    }

    /// Hash: the persistent clients with a subscription to exactly this topic filter, and their options.
    pub fn subscriptions(&self, shard: u16, filter: &[u8]) -> Vec<u8> {
        self.filter_key(b"psub:", shard, filter)
    }

    /// Sorted set: topic filters with subscriptions of persistent clients, by the time of the first.
    pub fn subscriptions_index(&self, shard: u16) -> Vec<u8> {
        self.slot_key(b"sync:psubs", self.shard_slot(shard))
    }

    /// Hash: the trie of wildcard and shared filters with subscriptions.
    pub fn subscriptions_trie(&self, shard: u16) -> Vec<u8> {
        self.slot_key(b"ptrie", self.shard_slot(shard))
    }

    /// Set: the filters with subscriptions that, without a `$share/Group/` before them, are this one.
    pub fn trie_filters(&self, shard: u16, real_filter: &[u8]) -> Vec<u8> {
        self.filter_key(b"ptrie:", shard, real_filter)
    }

    /// Stream: the changes of a shard's routes and subscriptions.
    pub fn feed(&self, shard: u16) -> Vec<u8> {
        self.slot_key(b"feed", self.shard_slot(shard))
    }

    /// Hash: the leases of the nodes on a shard.
    pub fn leases(&self, shard: u16) -> Vec<u8> {
        self.slot_key(b"leases", self.shard_slot(shard))
    }

    /// Hash: the versions of layout and encoding, and the number of route shards.
    pub fn meta(&self) -> Vec<u8> {
        self.key(b"meta", b"")
    }

    /// String: what a write that must reach replicas writes beside its data, since a repeated write that changes
    /// nothing would not be sent to them.
    pub fn durable(&self, slot: u16) -> Vec<u8> {
        self.slot_key(b"durable", slot)
    }

    /// The same under a name that is used once.
    pub fn durable_once(&self, slot: u16, micros: i64) -> Vec<u8> {
        let micros = micros.to_string();
        [&self.durable(slot)[..], b":", micros.as_bytes()].concat()
    }

    /// Where a foreign value that stands at `key` is moved to: a time follows. It is in the same slot.
    pub fn foreign(&self, key: &[u8]) -> Vec<u8> {
        let rest = [key, b":"].concat();
        let name = self.key(b"foreign:", &rest);
        let slot = hash_slot::hash_slot(key);
        if !self.clustered || hash_slot::hash_slot(&name) == slot {
            return name;
        }
        let tag = [b"foreign:{", hash_slot::tag(slot), b"}:"].concat();
        self.key(&tag, &rest)
    }

    fn client_key(&self, kind: &[u8], client: &[u8]) -> Vec<u8> {
        if !self.clustered {
            return self.key(kind, client);
        }
        let mut key = self.key_with_room(kind, client.len() + 2);
        push_tag(&mut key, &clustered_client(client));
        key
    }

    fn slot_key(&self, kind: &[u8], slot: u16) -> Vec<u8> {
        let mut key = self.key_with_room(kind, 8);
        if self.clustered {
            key.push(b':');
            push_tag(&mut key, hash_slot::tag(slot));
        }
        key
    }

    fn shard_item(&self, kind: &[u8], shard: u16, filter: &[u8]) -> Vec<u8> {
        let mut key = self.key_with_room(kind, filter.len() + 8);
        push_tag(&mut key, hash_slot::tag(self.shard_slot(shard)));
        key.push(b':');
        key.extend_from_slice(filter);
        key
    }

    fn filter_key(&self, kind: &[u8], shard: u16, filter: &[u8]) -> Vec<u8> {
        match self.clustered {
            true => self.shard_item(kind, shard, filter),
            false => self.key(kind, filter),
        }
    }

    fn push_message_member(&self, out: &mut Vec<u8>, client: &[u8], id: &[u8]) {
        match self.clustered {
            true => push_tag(out, &clustered_client(client)),
            false => out.extend_from_slice(&encode(client, &[(b'%', b"%25"), (b':', b"%3A")])),
        }
        out.push(b':');
        out.extend_from_slice(id);
    }

    fn key(&self, kind: &[u8], rest: &[u8]) -> Vec<u8> {
        let mut key = self.key_with_room(kind, rest.len());
        key.extend_from_slice(rest);
        key
    }

    fn key_with_room(&self, kind: &[u8], room: usize) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + kind.len() + room);
        key.extend_from_slice(&self.prefix);
        key.extend_from_slice(kind);
        key
    }
}

/// Whether routes can lead to a node of this name: it is not empty, and holds no `|`, which parts filter and
/// node in the indexes.
pub fn valid_node(node: &[u8]) -> bool {
    !node.is_empty() && !node.contains(&b'|')
}

#[cfg(test)]
mod tests;
