//! The clustered layout on real masters, each of which owns every third slot: so a key that strays from the
//! slot of its operation is refused two times out of three.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use emqx_redis_core::command::{Command, Query};
use emqx_redis_core::config::Ttl;
use emqx_redis_core::context::Context;
use emqx_redis_core::error::Error;
use emqx_redis_core::hash_slot::hash_slot;
use emqx_redis_core::message::{
    AckMessages, DeleteMessages, GetMessages, Limit, Message, OnFull, StoreMessageFor,
    StoreMessages,
};
use emqx_redis_core::metrics::OperationKind;
use emqx_redis_core::request::{Affinity, Answer, Operation, Step};
use emqx_redis_core::resp::{Commands, Frame};
use emqx_redis_core::route_scripts::Space;
use emqx_redis_core::router::{Changes, Find, Topics};
use emqx_redis_core::scripts::{self, Script};
use emqx_redis_core::session::{
    ClaimSession, CountSessions, DeleteSession, ListSessions, LoadSession, SaveSession,
};
use emqx_redis_core::topic::TopicError;
use support::cluster::Cluster;

/// Client ids that a careless encoding would confuse, and ordinary ones.
fn clients(ordinary: usize) -> Vec<Vec<u8>> {
    let tricky: [&[u8]; 12] = [
        b"", b"%", b"%%", b"}", b"{", b"{}", b"{a}", b"a}", b"%7D", b"%25", b"a:b", b"\0}\xff",
    ];
    let ordinary = (0..ordinary).map(|number| format!("client-{number}").into_bytes());
    let tricky = tricky.iter().map(|client| client.to_vec());
    tricky.chain(ordinary).collect()
}

fn save(client: &[u8], ttl: Option<Ttl>, epoch: Option<u64>) -> SaveSession {
    SaveSession {
        client: client.to_vec(),
        data: [b"data of ", client].concat(),
        ttl,
        epoch,
    }
}

fn message(id: &str, timestamp: Option<i64>) -> Message {
    Message {
        id: id.into(),
        timestamp,
        value: Arc::from(id.as_bytes()),
    }
}

fn store(client: &[u8], ids: &[&str], ttl: Option<Ttl>, limit: Option<Limit>) -> StoreMessages {
    let messages = ids.iter().enumerate();
    let messages = messages.map(|(at, id)| message(id, Some(1000 + at as i64)));
    StoreMessages::new(client.to_vec(), messages.collect(), ttl, limit)
}

fn change(adds: bool, filter: Vec<u8>, node: Vec<u8>) -> Result<Changes, TopicError> {
    Changes::new(Space::Routes, adds, vec![(filter, node, Vec::new())], false)
}

fn binaries(answer: Result<Answer, Error>) -> Vec<Vec<u8>> {
    match answer {
        Ok(Answer::Binaries(all)) => all.iter().map(|it| it.to_vec()).collect(),
        other => panic!("{other:?}"),
    }
}

fn ids_of(cluster: &mut Cluster, client: &[u8]) -> Vec<String> {
    match cluster.run(GetMessages::new(client.to_vec(), 0, 1000)) {
        Ok(Answer::Messages(all)) => all
            .iter()
            .map(|(id, value)| {
                assert_eq!(id, value);
                String::from_utf8_lossy(id).into_owned()
            })
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// One call of a sweep's script, as the sweeper makes it.
struct Sweep(Script, u16);

impl Operation for Sweep {
    fn kind(&self) -> OperationKind {
        OperationKind::Internal
    }
    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }
    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let (keys, slot) = (&context.keys, self.1);
        let (index, expiry, prefix) = match self.0 {
            Script::SweepSessions => (
                keys.sessions_index(slot),
                keys.sessions_expiry(slot),
                keys.session_prefix(),
            ),
            _ => (
                keys.messages_index(slot),
                keys.messages_expiry(slot),
                keys.prefix().to_vec(),
            ),
        };
        scripts::call(context, commands, self.0, &[&index, &expiry], 1).arg(&prefix);
    }
    fn decode(&mut self, _: &Context, mut replies: Vec<Frame>) -> Step {
        Step::Done(match replies.remove(0) {
            Frame::Integer(seen) => Ok(Answer::Count(seen as u64)),
            other => Err(Error::Internal(format!("{other:?}"))),
        })
    }
    fn slot(&self, _: &Context) -> Option<u16> {
        Some(self.1)
    }
    fn size(&self) -> usize {
        0
    }
}

#[test]
fn slots_are_those_that_the_server_tells() {
    let mut cluster = Cluster::start();
    let mut keys: Vec<Vec<u8>> = Vec::new();
    for client in clients(50) {
        let slot = cluster.context.keys.client_slot(&client);
        keys.push(cluster.context.keys.session(&client));
        keys.push(cluster.context.keys.message(&client, b"{m}"));
        keys.push(cluster.context.keys.sessions_index(slot));
        keys.push(client);
    }
    for key in keys {
        let told = cluster.nodes[0].ask_bytes(&[b"CLUSTER", b"KEYSLOT", &key]);
        assert_eq!(
            told,
            Frame::Integer(hash_slot(&key).into()),
            "{:?}",
            Bytes::from(key)
        );
    }
}

#[test]
fn sessions_are_kept_counted_and_listed() {
    let mut cluster = Cluster::start();
    let clients = clients(300);
    for client in &clients {
        assert_eq!(cluster.run(save(client, None, None)), Ok(Answer::Ok));
    }
    for client in &clients {
        let loaded = cluster.run(LoadSession {
            client: client.clone(),
        });
        assert_eq!(
            loaded,
            Ok(Answer::Term([b"data of ", &client[..]].concat().into()))
        );
    }
    let count = clients.len() as u64;
    cluster.steps = 0;
    assert_eq!(
        cluster.run(CountSessions::default()),
        Ok(Answer::Count(count))
    );
    assert!(
        cluster.steps <= 33,
        "{} round trips for all slots",
        cluster.steps
    );

    // Slot by slot.
    cluster.steps = 0;
    let all = binaries(cluster.run(ListSessions::new(1000, 0)));
    assert!(cluster.steps <= 36, "{} round trips", cluster.steps);
    let mut expected = clients.clone();
    expected.sort_by_key(|client| cluster.context.keys.client_slot(client));
    assert_eq!(all, expected);
    for size in [1, 7, 100] {
        let pages = (0..count.div_ceil(size))
            .flat_map(|page| binaries(cluster.run(ListSessions::new(size, page * size))));
        let step = if size == 1 { 10 } else { 1 };
        if step == 1 {
            assert_eq!(pages.collect::<Vec<_>>(), all, "pages of {size}");
        } else {
            assert_eq!(pages.take(20).collect::<Vec<_>>(), all[..20]);
        }
    }
    assert_eq!(
        binaries(cluster.run(ListSessions::new(10, count))),
        [[0; 0]; 0]
    );
    assert_eq!(binaries(cluster.run(ListSessions::new(0, 0))), [[0; 0]; 0]);

    // Fencing.
    let client = clients[5].clone();
    let claimed = cluster.run(ClaimSession {
        client: client.clone(),
    });
    assert!(
        matches!(claimed, Ok(Answer::Claimed(1, Some(_)))),
        "{claimed:?}"
    );
    assert_eq!(cluster.run(save(&client, None, None)), Err(Error::Fenced));
    assert_eq!(cluster.run(save(&client, None, Some(1))), Ok(Answer::Ok));

    for client in &clients {
        let epoch = Some(1);
        let client = client.clone();
        assert_eq!(cluster.run(DeleteSession { client, epoch }), Ok(Answer::Ok));
    }
    assert_eq!(cluster.run(CountSessions::default()), Ok(Answer::Count(0)));
    let left = cluster.keys();
    let is_epoch = |key: &Vec<u8>| key.starts_with(b"epoch:");
    assert!(left.iter().all(is_epoch), "{left:?}");
}

/// More sessions in one slot than one call lists, and one in the slots around.
#[test]
fn a_slot_is_listed_in_the_order_of_the_last_saves() {
    let mut cluster = Cluster::start();
    let slot = cluster.context.keys.client_slot(b"client-0");
    let mut clients = clients_in(slot, 1100);
    clients.push(b"client-0".to_vec());
    for client in &clients {
        assert_eq!(cluster.run(save(client, None, None)), Ok(Answer::Ok));
    }
    for neighbour in [slot - 1, slot + 1] {
        let client = clients_in(neighbour, 1).remove(0);
        assert_eq!(cluster.run(save(&client, None, None)), Ok(Answer::Ok));
    }
    let all = binaries(cluster.run(ListSessions::new(u64::MAX, 0)));
    assert_eq!(all.len(), clients.len() + 2);
    assert_eq!(all[1..=clients.len()], clients);
    assert_eq!(
        binaries(cluster.run(ListSessions::new(5, 1001))),
        clients[1000..1005]
    );
    let expected = [&clients[1099..], &all[1102..]].concat();
    assert_eq!(binaries(cluster.run(ListSessions::new(5, 1100))), expected);
}

/// Client ids of one slot: CRC16 is linear, so two bytes can be found for each beginning.
fn clients_in(slot: u16, count: usize) -> Vec<Vec<u8>> {
    use emqx_redis_core::hash_slot::crc16;
    let inverse: std::collections::HashMap<u16, u16> = (0..=u16::MAX)
        .map(|pair| (crc16(&pair.to_be_bytes()), pair))
        .collect();
    let ends = |begin: Vec<u8>| {
        let ends = (0..4).map(|high| inverse[&(slot + (high << 14))] ^ crc16(&begin));
        let ids = ends.map(|end| [&begin[..], &end.to_be_bytes()].concat());
        ids.filter(|id| !id.contains(&b'}') && !id.contains(&b'%'))
            .collect::<Vec<_>>()
    };
    let begins = (0..).map(|number: u32| format!("c{number}-").into_bytes());
    let ids: Vec<_> = begins.flat_map(ends).take(count).collect();
    assert!(ids.iter().all(|id| hash_slot(id) == slot));
    ids
}

#[test]
fn what_has_expired_is_gone_from_everywhere() {
    let mut cluster = Cluster::start();
    let clients = clients(100);
    let second = Some(Ttl::Seconds(1));
    for (number, client) in clients.iter().enumerate() {
        let ttl = if number % 2 == 0 { second } else { None };
        cluster.run(save(client, ttl, None)).unwrap();
        cluster.run(store(client, &["a", "b"], ttl, None)).unwrap();
    }
    let lives = clients.len() as u64 / 2;
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(
        cluster.run(CountSessions::default()),
        Ok(Answer::Count(lives))
    );
    // Offsets do not count what has expired.
    let mut alive: Vec<_> = clients.iter().skip(1).step_by(2).cloned().collect();
    alive.sort_by_key(|client| cluster.context.keys.client_slot(client));
    assert_eq!(
        binaries(cluster.run(ListSessions::new(10, 20))),
        alive[20..30]
    );
    assert_eq!(ids_of(&mut cluster, &clients[0]), [""; 0]);
    assert_eq!(ids_of(&mut cluster, &clients[1]), ["a", "b"]);

    for client in &clients {
        let slot = cluster.context.keys.client_slot(client);
        for script in [Script::SweepSessions, Script::SweepMessages] {
            cluster.run(Sweep(script, slot)).unwrap();
        }
    }
    let expired: BTreeSet<Vec<u8>> = clients
        .iter()
        .step_by(2)
        .flat_map(|client| {
            let keys = &cluster.context.keys;
            [
                keys.session(client),
                keys.queue(client),
                keys.message(client, b"a"),
            ]
        })
        .collect();
    let left = cluster.keys();
    assert!(left.iter().all(|key| !expired.contains(key)));
    // Of the living: session, queue, two messages; and their four indexes, unless they share a slot.
    assert!(left.len() as u64 <= lives * 8 && left.len() as u64 >= lives * 4 + 4);
    let count = |cluster: &mut Cluster, key: &[u8]| cluster.ask(&[b"ZCARD", key]);
    let slot = cluster.context.keys.client_slot(&clients[0]);
    let index = cluster.context.keys.messages_expiry(slot);
    assert_eq!(count(&mut cluster, &index), Frame::Integer(0));
}

#[test]
fn messages_are_kept_in_order_limited_and_removed() {
    let mut cluster = Cluster::start();
    for client in clients(20) {
        let drops = |most| {
            Some(Limit {
                most,
                on_full: OnFull::DropOldest,
            })
        };
        let rejects = |most| {
            Some(Limit {
                most,
                on_full: OnFull::Reject,
            })
        };
        cluster
            .run(store(&client, &["a", "b}", "{c"], None, None))
            .unwrap();
        assert_eq!(ids_of(&mut cluster, &client), ["a", "b}", "{c"]);
        // Again: another place for one of them.
        let again = vec![message("a", Some(5000))];
        cluster
            .run(StoreMessages::new(client.clone(), again, None, None))
            .unwrap();
        assert_eq!(ids_of(&mut cluster, &client), ["b}", "{c", "a"]);
        let full = cluster.run(store(&client, &["d"], None, rejects(3)));
        assert_eq!(full, Err(Error::QueueFull));
        let last = vec![message("d", Some(6000)), message("e", Some(6001))];
        let dropped = cluster.run(StoreMessages::new(client.clone(), last, None, drops(3)));
        assert_eq!(dropped, Ok(Answer::Dropped(vec!["b}".into(), "{c".into()])));
        assert_eq!(ids_of(&mut cluster, &client), ["a", "d", "e"]);
        let ids = vec![b"a".to_vec(), b"x".to_vec()];
        cluster
            .run(AckMessages::new(client.clone(), ids, None))
            .unwrap();
        // One whose value went missing is taken out when it is found to be.
        let gone = cluster.context.keys.message(&client, b"d");
        cluster.ask(&[b"DEL", &gone]);
        assert_eq!(ids_of(&mut cluster, &client), ["e"]);
        let many: Vec<String> = (0..450).map(|number| format!("m{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        cluster.run(store(&client, &many, None, None)).unwrap();
        assert_eq!(ids_of(&mut cluster, &client).len(), 451);
        let epoch = None;
        cluster.run(DeleteMessages { client, epoch }).unwrap();
        assert_eq!(cluster.keys(), [[0; 0]; 0]);
    }
}

#[test]
fn a_message_for_many_is_stored_for_each() {
    let mut cluster = Cluster::start();
    let clients = clients(40);
    let limit = Some(Limit {
        most: 1,
        on_full: OnFull::DropOldest,
    });
    let for_all = |id: &str, limit| {
        StoreMessageFor::new(clients.clone(), message(id, None), None, limit, false)
    };
    assert_eq!(cluster.run(for_all("a", None)), Ok(Answer::Ok));
    let dropped: Vec<_> = clients
        .iter()
        .map(|client| (client.clone(), vec![Bytes::from("a")]))
        .collect();
    assert_eq!(
        cluster.run(for_all("b", limit)),
        Ok(Answer::DroppedByClient(dropped))
    );
    for client in &clients {
        assert_eq!(ids_of(&mut cluster, client), ["b"]);
    }
    let limit = Some(Limit {
        most: 1,
        on_full: OnFull::Reject,
    });
    cluster
        .run(DeleteMessages {
            client: clients[3].clone(),
            epoch: None,
        })
        .unwrap();
    let Err(Error::PartialBatch(failed)) = cluster.run(for_all("c", limit)) else {
        panic!("not all have room");
    };
    assert_eq!(failed.len(), clients.len() - 1);
    assert!(failed
        .iter()
        .all(|(client, error)| *client != clients[3] && *error == Error::QueueFull));

    // An outage is not told once for each client.
    let mut all = for_all("d", None);
    let parts = all.split(&cluster.context).unwrap().len();
    assert_eq!(
        all.join(vec![Err(Error::Timeout); parts]),
        Err(Error::Timeout)
    );
}

#[test]
fn routes_are_found_whatever_their_shard() {
    let mut cluster = Cluster::start();
    let filters = [
        "a",
        "a/b",
        "a/+",
        "b/#",
        "+",
        "+/b",
        "#",
        "$share/g/a/+",
        "$share/g/+/b",
        "$SYS/#",
        "wildcards",
        "{x}/}",
        "%",
    ];
    let change = |cluster: &mut Cluster, filter: &str, adds: bool| {
        let (filter, node) = (filter.into(), b"n1".to_vec());
        let change = match adds {
            true => change(true, filter, node),
            false => change(false, filter, node),
        };
        cluster.run(change.unwrap()).unwrap();
    };
    for filter in filters {
        change(&mut cluster, filter, true);
    }
    for (name, expected) in [
        ("a", vec!["#", "+", "a"]),
        (
            "a/b",
            vec!["#", "$share/g/+/b", "$share/g/a/+", "+/b", "a/+", "a/b"],
        ),
        ("b", vec!["#", "+", "b/#"]),
        ("$SYS/x", vec!["$SYS/#"]),
        ("wildcards", vec!["#", "+", "wildcards"]),
        ("{x}/}", vec!["#", "{x}/}"]),
        ("%", vec!["#", "%", "+"]),
        ("$share/g/a/x", vec![]),
    ] {
        let Ok(Answer::Routes(routes)) =
            cluster.run(Find::new(Space::Routes, name.into()).unwrap())
        else {
            panic!("{name}");
        };
        let mut found: Vec<_> = routes
            .iter()
            .map(|(filter, _)| String::from_utf8_lossy(filter).into_owned())
            .collect();
        found.sort();
        assert_eq!(found, expected, "{name}");
    }
    cluster.steps = 0;
    let topics: BTreeSet<_> = binaries(cluster.run(Topics::default()))
        .into_iter()
        .collect();
    assert!(
        cluster.steps <= 3,
        "{} round trips for all shards",
        cluster.steps
    );
    assert_eq!(
        topics,
        filters
            .iter()
            .map(|filter| filter.as_bytes().to_vec())
            .collect()
    );
    for filter in filters {
        change(&mut cluster, filter, false);
    }
    // The feeds keep what has been.
    let mut rest = cluster.keys();
    rest.retain(|key| !key.starts_with(b"feed:"));
    assert_eq!(rest, [[0; 0]; 0]);
}

/// A foreign value at any key fails an operation once, and is moved away within its slot.
#[test]
fn foreign_values_are_moved_away() {
    let mut cluster = Cluster::start();
    type Make = Box<dyn Fn() -> Box<dyn Operation>>;
    let client = b"c}1".to_vec();
    let limit = Some(Limit {
        most: 9,
        on_full: OnFull::Reject,
    });
    let (c1, c2, c3) = (client.clone(), client.clone(), client.clone());
    let makes: [(&str, Make); 5] = [
        ("session", Box::new(move || Box::new(save(&c1, None, None)))),
        (
            "message",
            Box::new(move || Box::new(store(&c2, &["a"], None, None))),
        ),
        (
            "limited",
            Box::new(move || Box::new(store(&c3, &["a"], None, limit))),
        ),
        (
            "shared",
            Box::new(|| Box::new(change(true, b"$share/g/a/+".to_vec(), b"n1".to_vec()).unwrap())),
        ),
        (
            "wild",
            Box::new(|| Box::new(change(true, b"+/b".to_vec(), b"n1".to_vec()).unwrap())),
        ),
    ];
    for (what, make) in makes {
        cluster.flush();
        cluster.run_boxed(make()).unwrap();
        let keys = cluster.keys();
        // A message is overwritten, whatever it was.
        for key in keys.iter().filter(|key| !key.starts_with(b"msg:")) {
            if what == "limited" {
                cluster.flush();
            }
            let name = Bytes::copy_from_slice(key);
            cluster.ask(&[b"DEL", key]);
            cluster.ask(&[b"SETBIT", key, b"7", b"1"]);
            let failed = cluster.run_boxed(make());
            assert!(
                matches!(failed, Err(Error::Partial(_))),
                "{what}, {name:?}: {failed:?}"
            );
            assert_eq!(
                cluster.run_boxed(make()),
                Ok(Answer::Ok),
                "{what}, {name:?}"
            );
            let moved: Vec<_> = cluster
                .keys()
                .into_iter()
                .filter(|it| it.starts_with(b"foreign:"))
                .collect();
            assert_eq!(moved.len(), 1, "{what}, {name:?}");
            assert_eq!(hash_slot(&moved[0]), hash_slot(key));
            cluster.ask(&[b"DEL", &moved[0]]);
        }
    }
    let Ok(Answer::Routes(routes)) =
        cluster.run(Find::new(Space::Routes, b"a/b".to_vec()).unwrap())
    else {
        panic!("no answer");
    };
    assert_eq!(routes, [("+/b".into(), "n1".into())]);
}

/// What a stranger left in an index harms nobody.
#[test]
fn foreign_members_of_indexes_go() {
    let mut cluster = Cluster::start();
    let client = b"client-1".to_vec();
    cluster.run(save(&client, None, None)).unwrap();
    cluster.run(store(&client, &["a"], None, None)).unwrap();
    let keys = &cluster.context.keys;
    let slot = keys.client_slot(&client);
    // One of a slot of this server, one of another's.
    let near = clients_in(slot + 3, 1).remove(0);
    let far = clients_in(slot + 1, 1).remove(0);
    let (sessions, messages) = (keys.sessions_expiry(slot), keys.messages_expiry(slot));
    let index = keys.sessions_index(slot);
    let members = [
        keys.message_member(&near, b"m"),
        keys.message_member(&far, b"m"),
        b"x".to_vec(),
        b"x:y".to_vec(),
        b"{}:y".to_vec(),
        b"{x}y".to_vec(),
        vec![b'x'; 70_000],
    ];
    for other in [&near[..], &far, b"", &[b'}'; 70_000]] {
        cluster.ask(&[b"ZADD", &sessions, b"1", other]);
        cluster.ask(&[b"ZADD", &index, b"1", other]);
    }
    for member in &members {
        cluster.ask(&[b"ZADD", &messages, b"1", member]);
    }
    assert_eq!(
        cluster.run(Sweep(Script::SweepSessions, slot)),
        Ok(Answer::Count(4))
    );
    assert_eq!(ids_of(&mut cluster, &client), ["a"]);
    for key in [&sessions, &messages, &index] {
        assert_eq!(cluster.ask(&[b"ZCARD", key]), Frame::Integer(1));
    }
    // In the list of what does not expire, too.
    cluster.ask(&[b"ZADD", &sessions, b"+inf", &far]);
    cluster.ask(&[b"ZADD", &index, b"1", &far]);
    assert_eq!(
        binaries(cluster.run(ListSessions::new(10, 0))),
        std::slice::from_ref(&client)
    );
    assert_eq!(cluster.ask(&[b"ZCARD", &index]), Frame::Integer(1));
}

#[test]
fn what_is_thought_to_be_elsewhere_is_found() {
    let mut cluster = Cluster::start();
    let clients = clients(100);
    for client in &clients {
        cluster.run(save(client, None, None)).unwrap();
    }
    for filter in ["a", "b/+", "+/c"] {
        let change = change(true, filter.into(), b"n1".to_vec()).unwrap();
        cluster.run(change).unwrap();
    }
    // One of three slots has another owner than is known, or none is known.
    for owner_of in [|slot| if slot % 9 < 3 { 0 } else { slot % 3 }, |_| u16::MAX] {
        for slot in 0..16_384 {
            cluster.context.slots.set(slot, owner_of(slot));
        }
        let count = clients.len();
        assert_eq!(
            cluster.run(CountSessions::default()),
            Ok(Answer::Count(count as u64))
        );
        assert_eq!(
            binaries(cluster.run(ListSessions::new(1000, 0))).len(),
            count
        );
        assert_eq!(binaries(cluster.run(Topics::default())).len(), 3);
    }
}

#[test]
fn commands_of_callers_go_where_their_keys_are() {
    let mut cluster = Cluster::start();
    let commands = |all: &[&str]| -> Vec<Command> {
        let words = |it: &&str| it.split(' ').map(|word| word.into()).collect();
        all.iter().map(words).collect()
    };
    let all = commands(&[
        "SET a 1",
        "SET b 2",
        "INCR a",
        "PING",
        "MULTI",
        "INCR c",
        "INCR {c}d",
        "EXEC",
        "GET a",
        "MGET a b",
        "MULTI",
        "SET a 1",
        "SET b 1",
        "EXEC",
        "EVAL return(KEYS[1]) 1 d",
        "GET b",
    ]);
    for wrong in [false, true] {
        if wrong {
            for slot in 0..16_384 {
                cluster.context.slots.set(slot, (slot + 1) % 3);
            }
        }
        cluster.flush();
        let Ok(Answer::Replies(replies)) = cluster.run(Query::pipeline(all.clone()).unwrap())
        else {
            panic!("no replies");
        };
        let ok = Frame::Simple("OK".into());
        assert_eq!(replies[..3], [ok.clone(), ok.clone(), Frame::Integer(2)]);
        assert_eq!(replies[3], Frame::Simple("PONG".into()));
        assert_eq!(
            replies[7],
            Frame::Array(vec![Frame::Integer(1), Frame::Integer(1)])
        );
        assert_eq!(replies[8], Frame::Bulk("2".into()));
        assert!(replies[9].error().unwrap().starts_with(b"CROSSSLOT"));
        assert!(replies[13].error().unwrap().starts_with(b"CROSSSLOT"));
        assert_eq!(
            replies[14..],
            [Frame::Bulk("d".into()), Frame::Bulk("2".into())]
        );
        let one = cluster.run(Query::one(commands(&["GET b"]).remove(0)).unwrap());
        assert_eq!(one, Ok(Answer::Reply(Frame::Bulk("2".into()))));
    }
}
