//! The invariants of key names, for both layouts.

use super::*;
use crate::hash_slot::hash_slot;
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
    Subscriptions(Vec<u8>),
    TrieFilters(Vec<u8>),
    SessionsIndex,
    SessionsExpiry,
    MessagesIndex,
    MessagesExpiry,
    RoutesIndex,
    Wildcards,
    Trie,
    SubscriptionsIndex,
    SubscriptionsTrie,
    Feed,
    Leases,
    Durable,
    Meta,
}

/// The item's key; those of indexes for the given slot and route shard.
fn key_of(keys: &Keys, item: &Item, slot: u16, shard: u16) -> Vec<u8> {
    match item {
        Item::Session(client) => keys.session(client),
        Item::Message(client, id) => keys.message(client, id),
        Item::Queue(client) => keys.queue(client),
        Item::Epoch(client) => keys.epoch(client),
        Item::Route(filter) => keys.route(keys.shard(filter), filter),
        Item::TrieRoutes(filter) => keys.trie_routes(keys.shard(filter), filter),
        Item::Subscriptions(filter) => keys.subscriptions(keys.shard(filter), filter),
        Item::TrieFilters(filter) => keys.trie_filters(keys.shard(filter), filter),
        Item::SubscriptionsIndex => keys.subscriptions_index(shard),
        Item::SubscriptionsTrie => keys.subscriptions_trie(shard),
        Item::Feed => keys.feed(shard),
        Item::Leases => keys.leases(shard),
        Item::SessionsIndex => keys.sessions_index(slot),
        Item::SessionsExpiry => keys.sessions_expiry(slot),
        Item::MessagesIndex => keys.messages_index(slot),
        Item::MessagesExpiry => keys.messages_expiry(slot),
        Item::RoutesIndex => keys.routes_index(shard),
        Item::Wildcards => keys.wildcards(shard),
        Item::Trie => keys.trie(shard),
        Item::Durable => keys.durable(slot),
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
            "%3A", "%25", "%77ildcards", "wildcards", "%2577ildcards", "ildcards", "%7D", "}:", "}:{", "w", "q", "sessions",
            "messages", "routes", "msg:", "route:", "session:", "trie", "trie:", "psub:", "ptrie:", "feed", "leases", "sync:", "meta", "c1",
        ]),
    ]
    .prop_map(|piece: &str| piece.as_bytes().to_vec());
    let raw = any::<u8>().prop_map(|byte| vec![byte]);
    // So few and so short that two of them are often nearly the same.
    let near_miss = prop::collection::vec(
        prop::sample::select(vec![":", "%", "3A", "7D", "}", "{", "a"]),
        0..4,
    )
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
        1 => tricky_bytes().prop_map(Item::Subscriptions),
        1 => tricky_bytes().prop_map(Item::TrieFilters),
        1 => prop::sample::select(vec![
            Item::SessionsIndex,
            Item::SessionsExpiry,
            Item::MessagesIndex,
            Item::MessagesExpiry,
            Item::RoutesIndex,
            Item::Wildcards,
            Item::Trie,
            Item::SubscriptionsIndex,
            Item::SubscriptionsTrie,
            Item::Feed,
            Item::Leases,
            Item::Durable,
            Item::Meta,
        ]),
    ]
}

/// Keys of either layout, and their prefix. A cluster's has no brace: it would begin a hash tag.
fn keys(mut prefix: Vec<u8>, clustered: bool) -> (Keys, Vec<u8>) {
    if !clustered {
        return (Keys::new(prefix.clone()), prefix);
    }
    prefix.retain(|&byte| byte != b'{');
    (Keys::clustered(prefix.clone()), prefix)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_two_items_share_a_key(
        items in prop::collection::vec((item(), 0..4u16), 2..24),
        prefix in tricky_bytes(),
        clustered in any::<bool>(),
    ) {
        let (keys, prefix) = keys(prefix, clustered);
        let mut seen = std::collections::HashMap::new();
        for (item, at) in items {
            let key = key_of(&keys, &item, at, at);
            prop_assert!(key.starts_with(&prefix));
            // In a cluster, an index is another one for each slot.
            let is_one_of_many = clustered && key != key_of(&keys, &item, at + 1, at + 1);
            let item = (item, if is_one_of_many { at } else { 0 });
            if let Some(other) = seen.insert(key.clone(), item.clone()) {
                prop_assert_eq!(other, item, "share {:?}", String::from_utf8_lossy(&key));
            }
        }
    }

    #[test]
    fn all_of_a_client_is_in_one_slot(client in tricky_bytes(), id in tricky_bytes(), prefix in tricky_bytes()) {
        let (keys, _) = keys(prefix, true);
        let slot = keys.client_slot(&client);
        for key in [
            keys.session(&client),
            keys.epoch(&client),
            keys.queue(&client),
            keys.message(&client, &id),
            keys.sessions_index(slot),
            keys.sessions_expiry(slot),
            keys.messages_index(slot),
            keys.messages_expiry(slot),
            keys.durable(slot),
        ] {
            prop_assert_eq!(hash_slot(&key), slot, "{:?}", String::from_utf8_lossy(&key));
        }
    }

    #[test]
    fn all_of_a_route_shard_is_in_one_slot(filter in tricky_bytes(), prefix in tricky_bytes(), shards in 1..1025u16) {
        let (keys, _) = keys(prefix, true);
        prop_assert!(keys.learn_shards(shards));
        let shard = keys.shard(&filter);
        let slot = keys.shard_slot(shard);
        prop_assert_eq!(keys.shard_in(slot), Some(shard));
        for key in [
            keys.route(shard, &filter),
            keys.trie_routes(shard, &filter),
            keys.trie(shard),
            keys.wildcards(shard),
            keys.routes_index(shard),
            keys.durable(slot),
        ] {
            prop_assert_eq!(hash_slot(&key), slot, "{:?}", String::from_utf8_lossy(&key));
        }
    }

    /// RENAME needs it.
    #[test]
    fn what_is_moved_stays_in_its_slot(item in item(), prefix in tricky_bytes()) {
        let (keys, _) = keys(prefix, true);
        let key = key_of(&keys, &item, 7, 3);
        let moved = [keys.foreign(&key), b"1700000000.5".to_vec()].concat();
        prop_assert_eq!(hash_slot(&moved), hash_slot(&key));
    }

    #[test]
    fn message_members_split_into_what_they_were_made_of(
        client in tricky_bytes(),
        id in tricky_bytes(),
        clustered in any::<bool>(),
    ) {
        let (keys, _) = keys(b"p:".to_vec(), clustered);
        let member = keys.message_member(&client, &id);
        prop_assert_eq!([&b"p:msg:"[..], &member].concat(), keys.message(&client, &id));
        let (split_client, split_id) = keys.split_message_member(&member).unwrap();
        prop_assert_eq!((&*split_client, split_id), (&client[..], &id[..]));
    }

    /// As scripts find the queue of a message that has expired.
    #[test]
    fn a_clustered_member_names_its_queue(client in tricky_bytes(), id in tricky_bytes()) {
        let keys = Keys::clustered("p:");
        let member = keys.message_member(&client, &id);
        let end = member.iter().position(|&byte| byte == b'}').unwrap();
        prop_assert_eq!([&b"p:msgq:"[..], &member[..=end]].concat(), keys.queue(&client));
    }

    /// A foreign member is refused, or it is exactly what we would have written.
    #[test]
    fn only_our_own_message_members_are_split(member in tricky_bytes(), clustered in any::<bool>()) {
        let member = if clustered { [b"{", &member[..]].concat() } else { member };
        let (keys, _) = keys(Vec::new(), clustered);
        if let Some((client, id)) = keys.split_message_member(&member) {
            prop_assert_eq!(keys.message_member(&client, id), member);
        }
    }

    #[test]
    fn wildcard_members_split_into_what_they_were_made_of(filter in tricky_bytes(), node in tricky_bytes()) {
        prop_assume!(valid_node(&node));
        let keys = Keys::new("");
        let member = keys.wildcard_member(&filter, &node);
        prop_assert_eq!(keys.split_wildcard_member(&member), Some((&filter[..], &node[..])));
    }

    #[test]
    fn ordinary_ids_appear_as_they_are(client in "[A-Za-z0-9_.@-]{0,23}", id in "[A-Za-z0-9_.:@-]{0,23}") {
        let keys = Keys::new("");
        let (client, id) = (client.as_bytes(), id.as_bytes());
        prop_assert_eq!(keys.message(client, id), [b"msg:", client, b":", id].concat());
        prop_assert_eq!(keys.session(client), [b"session:", client].concat());
    }
}

#[test]
fn keys_are_those_of_the_documented_layout() {
    let keys = Keys::new("p/");
    let cases: [(Vec<u8>, &str); 22] = [
        (keys.session(b"c1"), "p/session:c1"),
        (keys.session(b"00:1A:%"), "p/session:00:1A:%"),
        (keys.message(b"c1", b"m1"), "p/msg:c1:m1"),
        (keys.message(b"a:b%", b"i:%"), "p/msg:a%3Ab%25:i:%"),
        (keys.queue(b"c1"), "p/msgq:c1"),
        (keys.epoch(b"c1"), "p/epoch:c1"),
        (keys.sessions_index(0), "p/sync:sessions"),
        (keys.sessions_expiry(0), "p/expiry:sessions"),
        (keys.messages_index(0), "p/sync:messages"),
        (keys.messages_expiry(0), "p/expiry:messages"),
        (keys.message_member(b"a:b", b"m1"), "a%3Ab:m1"),
        (keys.route(0, b"a/+/{x}|#"), "p/route:a/+/{x}|#"),
        (keys.route(0, b"100%"), "p/route:100%25"),
        (keys.route(0, b"wildcards"), "p/route:%77ildcards"),
        (keys.routes_index(0), "p/sync:routes"),
        (keys.wildcards(0), "p/route:wildcards"),
        (keys.wildcard_member(b"a/#", b"n@h"), "a/#|n@h"),
        (keys.trie(0), "p/trie"),
        (keys.trie_routes(0, b"a/#"), "p/trie:a/#"),
        (keys.meta(), "p/meta"),
        (keys.durable(0), "p/durable"),
        (keys.foreign(b"p/trie"), "p/foreign:p/trie:"),
    ];
    for (key, expected) in cases {
        assert_eq!(String::from_utf8(key).unwrap(), expected);
    }
}

#[test]
fn clustered_keys_are_those_of_the_documented_layout() {
    let keys = Keys::clustered("p/");
    let slot = keys.client_slot(b"c1");
    let tag = std::str::from_utf8(hash_slot::tag(slot)).unwrap();
    let of_slot = |kind: &str| format!("p/{kind}:{{{tag}}}");
    let shard = keys.shard(b"a/+");
    let tag = std::str::from_utf8(hash_slot::tag(keys.shard_slot(shard))).unwrap();
    let cases: [(Vec<u8>, &str); 21] = [
        (keys.session(b"c1"), "p/session:{c1}"),
        (keys.session(b"00:1A:%{}"), "p/session:{00:1A:%25{%7D}"),
        (keys.session(b""), "p/session:{%}"),
        (keys.session_prefix(), "p/session:"),
        (keys.message(b"c1", b"m}1"), "p/msg:{c1}:m}1"),
        (keys.queue(b"c1"), "p/msgq:{c1}"),
        (keys.epoch(b"c1"), "p/epoch:{c1}"),
        (keys.sessions_index(slot), &of_slot("sync:sessions")),
        (keys.sessions_expiry(slot), &of_slot("expiry:sessions")),
        (keys.messages_index(slot), &of_slot("sync:messages")),
        (keys.messages_expiry(slot), &of_slot("expiry:messages")),
        (keys.durable(slot), &of_slot("durable")),
        (keys.message_member(b"a:b", b"m1"), "{a:b}:m1"),
        (
            keys.route(shard, b"a/%/{x}|#"),
            &format!("p/route:{{{tag}}}:a/%/{{x}}|#"),
        ),
        (
            keys.routes_index(shard),
            &format!("p/sync:routes:{{{tag}}}"),
        ),
        (
            keys.wildcards(shard),
            &format!("p/route:wildcards:{{{tag}}}"),
        ),
        (keys.trie(shard), &format!("p/trie:{{{tag}}}")),
        (
            keys.trie_routes(shard, b"a/#"),
            &format!("p/trie:{{{tag}}}:a/#"),
        ),
        (keys.meta(), "p/meta"),
        (keys.foreign(b"p/msgq:{c1}"), "p/foreign:p/msgq:{c1}:"),
        (keys.foreign(b"p/meta"), "p/foreign:{53p}:p/meta:"),
    ];
    for (key, expected) in cases {
        assert_eq!(String::from_utf8(key).unwrap(), expected);
    }
}

#[test]
fn filters_share_a_shard_by_their_first_level() {
    let keys = Keys::clustered("");
    assert_eq!(keys.shards(), 0..17);
    assert_eq!(keys.shard(b"a"), keys.shard(b"a/+/b"));
    assert_eq!(keys.shard(b"/x"), keys.shard(b"/"));
    for filter in [&b"+"[..], b"#", b"+/a", b"+/#"] {
        assert_eq!(keys.shard(filter), keys.wildcard_shard());
    }
    // They are part of the layout.
    let shards = [&b"a"[..], b"", b"$SYS", b"sport"].map(|level| keys.shard(level));
    assert_eq!(shards, [7, 0, 0, 3]);
    let used: std::collections::BTreeSet<_> = (0..1000)
        .map(|number| keys.shard(format!("{number}/a").as_bytes()))
        .collect();
    assert_eq!(used.len(), 16);
}

#[test]
fn each_route_shard_has_a_slot_of_its_own() {
    let keys = Keys::clustered("");
    assert_eq!(
        [0, 1, 15, 16].map(|shard| keys.shard_slot(shard)),
        [512, 1536, 15872, 8192]
    );
    for shards in 1..=MAX_ROUTE_SHARDS {
        assert!(keys.learn_shards(shards));
        let slots: std::collections::BTreeSet<_> =
            keys.shards().map(|shard| keys.shard_slot(shard)).collect();
        assert_eq!(slots.len(), usize::from(shards) + 1);
        assert!(slots.last() < Some(&SLOTS));
    }
    assert!(!keys.learn_shards(0));
    assert!(!keys.learn_shards(MAX_ROUTE_SHARDS + 1));
    assert_eq!(keys.shards(), 0..MAX_ROUTE_SHARDS + 1);
}

#[test]
fn a_bar_in_a_node_name_is_refused() {
    assert!(valid_node(b"emqx@127.0.0.1"));
    assert!(!valid_node(b"a|b"));
    assert!(!valid_node(b""));
}
