//! Operations on a client whose slot is on its way from one master to another: whatever has moved already, and
//! whichever of the two is asked, nothing is lost, and when the slot has arrived the same operation does its work.

mod support;

use std::sync::Arc;

use emqx_redis_core::config::Ttl;
use emqx_redis_core::error::Error;
use emqx_redis_core::message::{
    AckMessages, DeleteMessages, GetMessages, Limit, Message, OnFull, StoreMessages,
};
use emqx_redis_core::request::{Answer, Operation};
use emqx_redis_core::session::{LoadSession, SaveSession};
use support::cluster::Cluster;

const CLIENT: &[u8] = b"c1";
/// The messages that it has.
const ALL: [&str; 3] = ["a", "b", "c"];

fn save() -> SaveSession {
    SaveSession {
        client: CLIENT.to_vec(),
        data: b"data".to_vec(),
        ttl: None,
        epoch: None,
    }
}

fn store(ids: &[&str], ttl: Option<Ttl>, limit: Option<Limit>) -> StoreMessages {
    let messages = ids.iter().map(|id| Message {
        id: (*id).into(),
        timestamp: Some(i64::from(id.as_bytes()[0])),
        value: Arc::from(id.as_bytes()),
    });
    StoreMessages::new(CLIENT.to_vec(), messages.collect(), ttl, limit)
}

fn get() -> GetMessages {
    GetMessages::new(CLIENT.to_vec(), 0, 10)
}

/// Says of a key whether it has moved.
type HasMoved = fn(&str) -> bool;

/// Which keys have moved when an operation comes.
const MOVED: [(&str, HasMoved); 7] = [
    ("nothing", |_| false),
    ("a message", |key| key == "msg:{c1}:b"),
    ("all but a message", |key| key != "msg:{c1}:b"),
    ("all but the oldest message", |key| key != "msg:{c1}:a"),
    ("all but the messages", |key| !key.starts_with("msg:")),
    ("the messages", |key| key.starts_with("msg:")),
    ("all", |_| true),
];

/// Does `operation` at both masters for each state of the migration, and again when it is over; `check` is given
/// its last answer.
fn while_the_slot_moves(
    messages: &[&str],
    expired: bool,
    operation: impl Fn() -> Box<dyn Operation>,
    check: impl Fn(&mut Cluster, Result<Answer, Error>, &str),
) {
    let mut cluster = Cluster::start();
    let slot = cluster.context.keys.client_slot(CLIENT);
    for (what, is_moved) in MOVED {
        for at_target in [false, true] {
            let name = format!("{what} has moved, at the target: {at_target}");
            cluster.run(save()).unwrap();
            cluster.run(store(messages, None, None)).unwrap();
            if expired {
                // One that the queue still holds.
                cluster
                    .run(store(&["0"], Some(Ttl::Seconds(1)), None))
                    .unwrap();
                std::thread::sleep(std::time::Duration::from_millis(1050));
            }
            let from = usize::from(cluster.context.slots.owner(slot));
            let to = (from + 1) % 3;
            cluster.begin_migration(slot, from, to);
            cluster.migrate(slot, from, to, is_moved);
            let node = if at_target { to } else { from };
            let _ = cluster.run_at(node, operation());
            cluster.migrate(slot, from, to, |_| true);
            cluster.end_migration(slot, to);
            let answer = cluster.run_boxed(operation());
            check(&mut cluster, answer, &name);
            cluster.flush();
        }
    }
}

fn ids(answer: Result<Answer, Error>) -> Vec<String> {
    match answer {
        Ok(Answer::Messages(all)) => {
            let ids = all
                .iter()
                .map(|(id, _)| String::from_utf8_lossy(id).into_owned());
            ids.collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn reading_loses_nothing() {
    // A single message is looked for by a command of one key, which the target does not refuse.
    for (messages, expired) in [(&ALL[..], false), (&ALL[..], true), (&["b"][..], false)] {
        while_the_slot_moves(
            messages,
            expired,
            || Box::new(get()),
            |_, answer, name| assert_eq!(ids(answer), messages, "{name}"),
        );
    }
}

#[test]
fn a_full_queue_drops_no_more_than_it_must() {
    let limit = Some(Limit {
        most: 3,
        on_full: OnFull::DropOldest,
    });
    for expired in [false, true] {
        while_the_slot_moves(
            &ALL,
            expired,
            || Box::new(store(&["d"], None, limit)),
            |cluster, answer, name| {
                assert!(answer.is_ok(), "{name}: {answer:?}");
                assert_eq!(ids(cluster.run(get())), ["b", "c", "d"], "{name}");
                let left = cluster.keys();
                let is_message = |key: &&Vec<u8>| key.starts_with(b"msg:");
                assert_eq!(
                    left.iter().filter(is_message).count(),
                    3,
                    "{name}: {left:?}"
                );
            },
        );
    }
}

#[test]
fn what_is_removed_leaves_nothing() {
    let is_clean = |cluster: &mut Cluster, answer, name: &str| {
        assert_eq!(answer, Ok(Answer::Ok), "{name}");
        let mut left = cluster.keys();
        left.retain(|key| {
            !key.windows(8).any(|part| part == b"sessions") && !key.starts_with(b"session:")
        });
        assert!(left.is_empty(), "{name}: {left:?}");
    };
    let (client, epoch) = (CLIENT.to_vec(), None);
    while_the_slot_moves(
        &ALL,
        false,
        || {
            Box::new(DeleteMessages {
                client: client.clone(),
                epoch,
            })
        },
        is_clean,
    );
    let all = || ["a", "b", "c"].map(|id| id.into()).to_vec();
    while_the_slot_moves(
        &ALL,
        false,
        || Box::new(AckMessages::new(client.clone(), all(), None)),
        is_clean,
    );
}

#[test]
fn a_session_stays_where_it_is_listed() {
    use emqx_redis_core::session::ListSessions;
    let is_whole = |cluster: &mut Cluster, answer, name: &str| {
        assert_eq!(answer, Ok(Answer::Ok), "{name}");
        let listed = cluster.run(ListSessions::new(10, 0));
        assert_eq!(listed, Ok(Answer::Binaries(vec![CLIENT.into()])), "{name}");
        let client = CLIENT.to_vec();
        let loaded = cluster.run(LoadSession { client });
        assert_eq!(loaded, Ok(Answer::Term("data".into())), "{name}");
    };
    while_the_slot_moves(&ALL, false, || Box::new(save()), is_whole);
    while_the_slot_moves(
        &ALL,
        false,
        || Box::new(support::cluster::ListSlot(CLIENT.to_vec())),
        |cluster, _, name| is_whole(cluster, Ok(Answer::Ok), name),
    );
}
