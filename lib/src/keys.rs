//! The names of all keys in Redis. No other file spells one.
//!
//! Each kind of key begins with a word that no other kind begins with, and what follows is encoded so that
//! two different items never share a key, whatever bytes their names hold. Only bytes that could confuse are
//! percent-encoded, so that an ordinary item is found under its plain name:
//!
//! | key | encoding |
//! |---|---|
//! | `session:{client}`, `msgq:{client}`, `epoch:{client}` | the client id as it is: it ends the key |
//! | `msg:{client}:{id}` | `%` and `:` of the client id encoded, the message id as it is |
//! | `route:{filter}` | `%` encoded; the filter `wildcards` is `%77ildcards`, since `route:wildcards` is an index |
//! | `trie:{filter}` | the filter as it is |
//!
//! A layout with hash tags (a cluster's) belongs here: [`Keys`] makes every name, from the prefix up.

use std::borrow::Cow;

/// Makes the names of keys, each behind the configured prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    prefix: Vec<u8>,
}

impl Keys {
    /// Names behind `prefix`, which may be empty. Which prefixes can share one Redis:
    /// `docs/configuration.md`, key_prefix.
    pub fn new(prefix: impl Into<Vec<u8>>) -> Self {
        Keys {
            prefix: prefix.into(),
        }
    }

    /// What stands before every key.
    pub fn prefix(&self) -> &[u8] {
        &self.prefix
    }

    /// Hash: a client's session.
    pub fn session(&self, client: &[u8]) -> Vec<u8> {
        self.key(b"session:", client)
    }

    /// String: one encoded message.
    pub fn message(&self, client: &[u8], id: &[u8]) -> Vec<u8> {
        let mut key = self.key_with_room(b"msg:", client.len() + 1 + id.len());
        push_message_member(&mut key, client, id);
        key
    }

    /// Sorted set: a client's message ids by publish time.
    pub fn queue(&self, client: &[u8]) -> Vec<u8> {
        self.key(b"msgq:", client)
    }

    /// String: the fencing epoch of a client's session. It outlives the session for a while.
    pub fn epoch(&self, client: &[u8]) -> Vec<u8> {
        self.key(b"epoch:", client)
    }

    /// Sorted set: client ids by the time of the last save.
    pub fn sessions_index(&self) -> Vec<u8> {
        self.key(b"sync:sessions", b"")
    }

    /// Sorted set: client ids by the time at which their session expires.
    pub fn sessions_expiry(&self) -> Vec<u8> {
        self.key(b"expiry:sessions", b"")
    }

    /// Sorted set: messages (see [`Keys::message_member`]) by time.
    pub fn messages_index(&self) -> Vec<u8> {
        self.key(b"sync:messages", b"")
    }

    /// Sorted set: messages (see [`Keys::message_member`]) by the time at which they expire.
    pub fn messages_expiry(&self) -> Vec<u8> {
        self.key(b"expiry:messages", b"")
    }

    /// What stands for a message in the messages' indexes: its key without the prefix and `msg:`.
    pub fn message_member(&self, client: &[u8], id: &[u8]) -> Vec<u8> {
        let mut member = Vec::with_capacity(client.len() + 1 + id.len());
        push_message_member(&mut member, client, id);
        member
    }

    /// The client id and message id of a member of the messages' indexes, or `None` if it is none of ours.
    pub fn split_message_member<'a>(&self, member: &'a [u8]) -> Option<(Cow<'a, [u8]>, &'a [u8])> {
        let colon = member.iter().position(|&byte| byte == b':')?;
        Some((decode_client(&member[..colon])?, &member[colon + 1..]))
    }

    /// Set: the nodes that hold a route for exactly this topic filter.
    pub fn route(&self, filter: &[u8]) -> Vec<u8> {
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
    pub fn routes_index(&self) -> Vec<u8> {
        self.key(b"sync:routes", b"")
    }

    /// Sorted set: `filter|node` of every wildcard or shared route.
    pub fn wildcards(&self) -> Vec<u8> {
        self.key(b"route:wildcards", b"")
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
    pub fn trie(&self) -> Vec<u8> {
        self.key(b"trie", b"")
    }

    /// Set: the `filter|node` routes whose filter, without a `$share/Group/` before it, is this one.
    pub fn trie_routes(&self, real_filter: &[u8]) -> Vec<u8> {
        self.key(b"trie:", real_filter)
    }

    /// Hash: the versions of layout and encoding.
    pub fn meta(&self) -> Vec<u8> {
        self.key(b"meta", b"")
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

fn push_message_member(out: &mut Vec<u8>, client: &[u8], id: &[u8]) {
    for &byte in client {
        match byte {
            b'%' => out.extend_from_slice(b"%25"),
            b':' => out.extend_from_slice(b"%3A"),
            _ => out.push(byte),
        }
    }
    out.push(b':');
    out.extend_from_slice(id);
}

/// The inverse of the encoding in [`push_message_member`]; `None` for what it never yields.
fn decode_client(encoded: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !encoded.contains(&b'%') {
        return Some(Cow::Borrowed(encoded));
    }
    let mut client = Vec::with_capacity(encoded.len());
    let mut rest = encoded;
    while let [first, tail @ ..] = rest {
        (rest, _) = match (first, tail) {
            (b'%', [b'2', b'5', tail @ ..]) => (tail, client.push(b'%')),
            (b'%', [b'3', b'A', tail @ ..]) => (tail, client.push(b':')),
            (b'%', _) => return None,
            (&byte, tail) => (tail, client.push(byte)),
        };
    }
    Some(Cow::Owned(client))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Any item that has a key.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Item {
        Session(Vec<u8>),
        Message(Vec<u8>, Vec<u8>),
        Queue(Vec<u8>),
        Epoch(Vec<u8>),
        Route(Vec<u8>),
        TrieRoutes(Vec<u8>),
        SessionsIndex,
        SessionsExpiry,
        MessagesIndex,
        MessagesExpiry,
        RoutesIndex,
        Wildcards,
        Trie,
        Meta,
    }

    fn key_of(keys: &Keys, item: &Item) -> Vec<u8> {
        match item {
            Item::Session(client) => keys.session(client),
            Item::Message(client, id) => keys.message(client, id),
            Item::Queue(client) => keys.queue(client),
            Item::Epoch(client) => keys.epoch(client),
            Item::Route(filter) => keys.route(filter),
            Item::TrieRoutes(filter) => keys.trie_routes(filter),
            Item::SessionsIndex => keys.sessions_index(),
            Item::SessionsExpiry => keys.sessions_expiry(),
            Item::MessagesIndex => keys.messages_index(),
            Item::MessagesExpiry => keys.messages_expiry(),
            Item::RoutesIndex => keys.routes_index(),
            Item::Wildcards => keys.wildcards(),
            Item::Trie => keys.trie(),
            Item::Meta => keys.meta(),
        }
    }

    /// Bytes made of whatever an encoding might stumble over, so that near misses are frequent.
    fn tricky_bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            8 => prop::sample::select(vec![
                ":", "%", "3", "A", "a", "2", "5", "7", "{", "}", "*", "|", "/", "+", "#", "\0", "\r\n", " ", "é",
            ]),
            4 => prop::sample::select(vec![
                "%3A", "%25", "%77ildcards", "wildcards", "%2577ildcards", "ildcards", "w", "q", "sessions",
                "messages", "routes", "msg:", "route:", "session:", "trie", "trie:", "sync:", "meta", "c1",
            ]),
        ]
        .prop_map(|piece: &str| piece.as_bytes().to_vec());
        let raw = any::<u8>().prop_map(|byte| vec![byte]);
        // So few and so short that two of them are often nearly the same.
        let near_miss =
            prop::collection::vec(prop::sample::select(vec![":", "%", "3A", "a"]), 0..4)
                .prop_map(|pieces| pieces.concat().into_bytes());
        let names = prop::sample::select(vec!["wildcards", "%77ildcards", "%2577ildcards"])
            .prop_map(|name: &str| name.as_bytes().to_vec());
        prop_oneof![
            4 => prop::collection::vec(prop_oneof![9 => piece, 1 => raw], 0..5)
                .prop_map(|pieces| pieces.concat()),
            4 => near_miss,
            1 => names,
        ]
    }

    fn item() -> impl Strategy<Value = Item> {
        prop_oneof![
            1 => tricky_bytes().prop_map(Item::Session),
            4 => (tricky_bytes(), tricky_bytes()).prop_map(|(client, id)| Item::Message(client, id)),
            1 => tricky_bytes().prop_map(Item::Queue),
            1 => tricky_bytes().prop_map(Item::Epoch),
            3 => tricky_bytes().prop_map(Item::Route),
            1 => tricky_bytes().prop_map(Item::TrieRoutes),
            1 => prop::sample::select(vec![
                Item::SessionsIndex,
                Item::SessionsExpiry,
                Item::MessagesIndex,
                Item::MessagesExpiry,
                Item::RoutesIndex,
                Item::Wildcards,
                Item::Trie,
                Item::Meta,
            ]),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn no_two_items_share_a_key(items in prop::collection::vec(item(), 2..24), prefix in tricky_bytes()) {
            let keys = Keys::new(prefix.clone());
            let mut seen = std::collections::HashMap::new();
            for item in items {
                let key = key_of(&keys, &item);
                prop_assert!(key.starts_with(&prefix));
                if let Some(other) = seen.insert(key.clone(), item.clone()) {
                    prop_assert_eq!(other, item, "share {:?}", String::from_utf8_lossy(&key));
                }
            }
        }

        #[test]
        fn message_members_split_into_what_they_were_made_of(client in tricky_bytes(), id in tricky_bytes()) {
            let keys = Keys::new("p:");
            let member = keys.message_member(&client, &id);
            prop_assert_eq!([&b"p:msg:"[..], &member].concat(), keys.message(&client, &id));
            let (split_client, split_id) = keys.split_message_member(&member).unwrap();
            prop_assert_eq!((&*split_client, split_id), (&client[..], &id[..]));
        }

        /// A foreign member is refused, or it is exactly what we would have written.
        #[test]
        fn only_our_own_message_members_are_split(member in tricky_bytes()) {
            let keys = Keys::default();
            if let Some((client, id)) = keys.split_message_member(&member) {
                prop_assert_eq!(keys.message_member(&client, id), member);
            }
        }

        #[test]
        fn wildcard_members_split_into_what_they_were_made_of(filter in tricky_bytes(), node in tricky_bytes()) {
            prop_assume!(valid_node(&node));
            let keys = Keys::default();
            let member = keys.wildcard_member(&filter, &node);
            prop_assert_eq!(keys.split_wildcard_member(&member), Some((&filter[..], &node[..])));
        }

        #[test]
        fn ordinary_ids_appear_as_they_are(client in "[A-Za-z0-9_.@-]{0,23}", id in "[A-Za-z0-9_.:@-]{0,23}") {
            let keys = Keys::default();
            let (client, id) = (client.as_bytes(), id.as_bytes());
            prop_assert_eq!(keys.message(client, id), [b"msg:", client, b":", id].concat());
            prop_assert_eq!(keys.session(client), [b"session:", client].concat());
        }
    }

    #[test]
    fn keys_are_those_of_the_documented_layout() {
        let keys = Keys::new("p/");
        let cases: [(Vec<u8>, &str); 20] = [
            (keys.session(b"c1"), "p/session:c1"),
            (keys.session(b"00:1A:%"), "p/session:00:1A:%"),
            (keys.message(b"c1", b"m1"), "p/msg:c1:m1"),
            (keys.message(b"a:b%", b"i:%"), "p/msg:a%3Ab%25:i:%"),
            (keys.queue(b"c1"), "p/msgq:c1"),
            (keys.epoch(b"c1"), "p/epoch:c1"),
            (keys.sessions_index(), "p/sync:sessions"),
            (keys.sessions_expiry(), "p/expiry:sessions"),
            (keys.messages_index(), "p/sync:messages"),
            (keys.messages_expiry(), "p/expiry:messages"),
            (keys.message_member(b"a:b", b"m1"), "a%3Ab:m1"),
            (keys.route(b"a/+/{x}|#"), "p/route:a/+/{x}|#"),
            (keys.route(b"100%"), "p/route:100%25"),
            (keys.route(b"wildcards"), "p/route:%77ildcards"),
            (keys.routes_index(), "p/sync:routes"),
            (keys.wildcards(), "p/route:wildcards"),
            (keys.wildcard_member(b"a/#", b"n@h"), "a/#|n@h"),
            (keys.trie(), "p/trie"),
            (keys.trie_routes(b"a/#"), "p/trie:a/#"),
            (keys.meta(), "p/meta"),
        ];
        for (key, expected) in cases {
            assert_eq!(String::from_utf8(key).unwrap(), expected);
        }
    }

    #[test]
    fn a_bar_in_a_node_name_is_refused() {
        assert!(valid_node(b"emqx@127.0.0.1"));
        assert!(!valid_node(b"a|b"));
        assert!(!valid_node(b""));
    }
}
