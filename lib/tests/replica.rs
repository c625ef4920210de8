//! Nodes with the routes of one Redis in memory: each knows what Redis holds, whatever happened meanwhile.

mod support;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::time::{Duration, Instant};

use emqx_redis_core::config::{Config, Server, Topology};
use emqx_redis_core::engine::Engine;
use emqx_redis_core::error::Error;
use emqx_redis_core::metrics::Counter;
use emqx_redis_core::request::{Answer, Request, Responder};
use emqx_redis_core::route_scripts::Space;
use emqx_redis_core::router::Changes;
use support::RedisServer;

/// For what should take milliseconds, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(10);
const NAMES: usize = 12;
const STEPS: usize = 1_000_000;

/// Filter, destination, options.
type Known = BTreeSet<(String, String, String)>;
type Items = Vec<(Vec<u8>, Vec<u8>, Vec<u8>)>;

struct Node {
    name: String,
    engine: Arc<Engine>,
}

struct Reply(Sender<Result<Answer, Error>>);

impl Responder for Reply {
    fn respond(self: Box<Self>, result: Result<Answer, Error>) {
        let _ = self.0.send(result);
    }

    fn is_abandoned(&self) -> bool {
        false
    }
}

impl Node {
    fn start(name: &str, config: &Config) -> Self {
        let node = name.as_bytes().to_vec();
        let engine = Engine::start(config.clone(), node, Arc::default(), async {}, || {});
        let engine = engine.expect("a thread");
        engine.context().replica.want();
        Node {
            name: name.to_owned(),
            engine,
        }
    }

    fn submit(&self, space: Space, adds: bool, items: Items) -> Receiver<Result<Answer, Error>> {
        let changes = Changes::new(space, adds, items, false).expect("valid filters");
        let (sender, receiver) = channel();
        let deadline = Instant::now() + Duration::from_secs(20);
        let request = Request::new(Box::new(changes), deadline, Box::new(Reply(sender)));
        self.engine.submit(request).expect("room for a request");
        receiver
    }

    fn change(&self, space: Space, adds: bool, filter: &str, of: &str) -> Result<Answer, Error> {
        let options = if space == Space::Subscriptions {
            b"o".to_vec()
        } else {
            Vec::new()
        };
        let item = (filter.as_bytes().to_vec(), of.as_bytes().to_vec(), options);
        let reply = self.submit(space, adds, vec![item]);
        reply.recv().expect("an answer")
    }

    /// What its memory answers for these names; `None` while it does not trust it.
    fn knows(&self, space: Space, names: &[String]) -> Option<Known> {
        let context = self.engine.context();
        let mut known = Known::new();
        for name in names {
            let found = context
                .replica
                .find(&context.keys, space, name, STEPS, false, |found| {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    let (of, options) = (text(found.destination), text(found.value));
                    known.insert((
                        String::from_utf8_lossy(found.filter).into_owned(),
                        of,
                        options,
                    ));
                });
            found.ok()?;
        }
        Some(known)
    }

    fn count(&self, space: Space) -> usize {
        loop {
            let status = self.engine.context().replica.status();
            let counts = status.iter().map(|it| {
                let sizes = it.sizes.as_ref()?;
                Some(match space {
                    Space::Routes => sizes.routes,
                    Space::Subscriptions => sizes.subscriptions,
                })
            });
            // None while a table is being changed.
            if let Some(count) = counts.sum() {
                return count;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.engine.stop();
        self.engine.join();
    }
}

fn config(server: &RedisServer) -> Config {
    let mut config = Config::default();
    config.redis.servers = vec![Server::Unix(server.socket())];
    config
}

fn nodes(config: &Config, count: usize) -> Vec<Node> {
    let names = (1..=count).map(|number| format!("n{number}"));
    names.map(|name| Node::start(&name, config)).collect()
}

fn names() -> Vec<String> {
    (0..NAMES).map(|number| format!("t/{number}")).collect()
}

/// What Redis holds.
fn stored(server: &RedisServer, node: &Node, space: Space) -> Known {
    let keys = &node.engine.context().keys;
    let mut connection = server.connection();
    let mut known = Known::new();
    for shard in keys.shards() {
        let (index, read) = match space {
            Space::Routes => (keys.routes_index(shard), "SMEMBERS"),
            Space::Subscriptions => (keys.subscriptions_index(shard), "HGETALL"),
        };
        let filters = redis::cmd("ZRANGE")
            .arg(index)
            .arg(0)
            .arg(-1)
            .query(&mut connection);
        let filters: Vec<String> = filters.expect("an index");
        for filter in filters {
            let key = match space {
                Space::Routes => keys.route(shard, filter.as_bytes()),
                Space::Subscriptions => keys.subscriptions(shard, filter.as_bytes()),
            };
            let members = redis::cmd(read).arg(key).query(&mut connection);
            let members: Vec<String> = members.expect("members");
            match space {
                Space::Routes => known.extend(
                    members
                        .into_iter()
                        .map(|it| (filter.clone(), it, String::new())),
                ),
                Space::Subscriptions => known.extend(
                    members
                        .chunks(2)
                        .map(|it| (filter.clone(), it[0].clone(), it[1].clone())),
                ),
            }
        }
    }
    known
}

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until every node knows what Redis holds, no less and no more.
#[track_caller]
fn wait_until_agreed(server: &RedisServer, nodes: &[Node], names: &[String]) {
    for space in [Space::Routes, Space::Subscriptions] {
        for node in nodes {
            let mut seen = (None, Known::new());
            let deadline = Instant::now() + SOON;
            loop {
                let held = stored(server, node, space);
                let known = node.knows(space, names);
                if known.as_ref() == Some(&held) && node.count(space) == held.len() {
                    break;
                }
                seen = (known, held);
                let status = node.engine.context().replica.status();
                assert!(
                    Instant::now() < deadline,
                    "{} {space:?}: {seen:?} {status:?}",
                    node.name
                );
                std::thread::sleep(Duration::from_millis(5));
            }
            drop(seen);
        }
    }
}

fn shell(server: &RedisServer, command: &str) {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().expect("a command"));
    words.for_each(|word| {
        cmd.arg(word);
    });
    cmd.exec(&mut server.connection()).expect("an answer");
}

/// Numbers that are the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

fn becomes_known_to_all(server: &RedisServer, nodes: &[Node]) {
    for (number, node) in nodes.iter().enumerate() {
        let known = wait_for_memory(node);
        assert!(known.is_empty() || number > 0);
    }
    for filter in ["t/1", "t/+", "#", "$share/g/t/1"] {
        let (one, others) = nodes.split_first().expect("nodes");
        one.change(Space::Routes, true, filter, &one.name)
            .expect("an added route");
        let route = (filter.to_owned(), one.name.clone(), String::new());
        let has_it = |node: &Node| {
            let known = node.knows(Space::Routes, &names());
            known.is_some_and(|it| it.contains(&route))
        };
        assert!(has_it(one), "{filter} is not seen at once");
        for other in others {
            wait_until("a route does not become known", || has_it(other));
        }
        one.change(Space::Routes, false, filter, &one.name)
            .expect("a deleted route");
        assert!(!has_it(one), "{filter} is seen after it was deleted");
        for other in others {
            let lacks_it = || {
                other
                    .knows(Space::Routes, &names())
                    .is_some_and(|it| !it.contains(&route))
            };
            wait_until("a route does not go", lacks_it);
        }
    }
    wait_until_agreed(server, nodes, &names());
}

fn wait_for_memory(node: &Node) -> Known {
    wait_until("the table is not read", || {
        node.knows(Space::Routes, &names()).is_some()
    });
    node.knows(Space::Routes, &names()).unwrap_or_default()
}

#[test]
fn a_change_becomes_known_to_all_nodes() {
    let server = RedisServer::start();
    becomes_known_to_all(&server, &nodes(&config(&server), 3));
}

#[test]
fn a_change_becomes_known_to_all_nodes_in_a_cluster() {
    // A cluster is found by its servers' addresses.
    let port = support::cluster::free_port();
    let port_text = port.to_string();
    let server = RedisServer::start_cluster_node_at(&port_text);
    let mut config = Config::default();
    config.redis.topology = Topology::Cluster;
    config.redis.servers = vec![Server::Tcp {
        host: "127.0.0.1".to_owned(),
        port,
    }];
    let nodes = nodes(&config, 2);
    becomes_known_to_all(&server, &nodes);
    meanwhile(&server, &nodes, &["FLUSHALL"], 150);
}

/// All nodes change routes and subscriptions while something happens to the server; then they agree, and own
/// routes are there.
fn meanwhile(server: &RedisServer, nodes: &[Node], accidents: &[&str], rounds: usize) -> Known {
    let is_over = AtomicBool::new(false);
    let work = |node: &Node, seed: u64| {
        let mut dice = Dice(seed);
        let mut own = BTreeSet::new();
        for round in 0.. {
            if round >= rounds && is_over.load(Relaxed) {
                break;
            }
            let filter = match dice.roll(NAMES + 4) {
                0 => "#".to_owned(),
                1 => "t/+".to_owned(),
                2 => "$share/g/t/1".to_owned(),
                3 => "$share/g/+/2".to_owned(),
                number => format!("t/{}", number - 4),
            };
            let adds = dice.roll(5) < 3;
            if dice.roll(3) == 0 {
                // The same clients come to all nodes.
                let client = format!("c{}", dice.roll(3));
                let _ = node.change(Space::Subscriptions, adds, &filter, &client);
                continue;
            }
            match node.change(Space::Routes, adds, &filter, &node.name) {
                Ok(_) if adds => own.insert(filter),
                // Of a change that may have been done nobody promises anything.
                _ => own.remove(&filter),
            };
        }
        own
    };
    let own: Vec<(String, BTreeSet<String>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = nodes
            .iter()
            .enumerate()
            .map(|(seed, node)| scope.spawn(move || (node.name.clone(), work(node, seed as u64))))
            .collect();
        for accident in accidents {
            std::thread::sleep(Duration::from_millis(100));
            shell(server, accident);
        }
        std::thread::sleep(Duration::from_millis(100));
        is_over.store(true, Relaxed);
        workers
            .into_iter()
            .map(|it| it.join().expect("a worker"))
            .collect()
    });
    let wanted: Known = own
        .into_iter()
        .flat_map(|(node, filters)| {
            filters
                .into_iter()
                .map(move |it| (it, node.clone(), String::new()))
        })
        .collect();
    wait_until("own routes are lost", || {
        wanted.is_subset(&stored(server, &nodes[0], Space::Routes))
    });
    wait_until_agreed(server, nodes, &names());
    assert!(wanted.is_subset(&stored(server, &nodes[0], Space::Routes)));
    wanted
}

#[test]
fn nodes_agree_with_redis_after_whatever_happened() {
    let server = RedisServer::start();
    let nodes = nodes(&config(&server), 3);
    for node in &nodes {
        wait_for_memory(node);
    }
    meanwhile(
        &server,
        &nodes,
        &["DEL feed", "CLIENT KILL TYPE normal", "DEL feed"],
        600,
    );
    let wanted = meanwhile(
        &server,
        &nodes,
        &["FLUSHALL", "CLIENT KILL TYPE normal", "FLUSHALL"],
        600,
    );
    assert!(!wanted.is_empty());
    shell(&server, "FLUSHALL");
    wait_until("own routes are not added again", || {
        wanted.is_subset(&stored(&server, &nodes[0], Space::Routes))
    });
    wait_until_agreed(&server, &nodes, &names());
    let resyncs = |node: &Node| node.engine.context().metrics.get(Counter::Resyncs);
    assert!(nodes.iter().all(|node| resyncs(node) > 3));
}

#[test]
fn a_burst_of_changes_stays_correct() {
    const EACH: usize = 1_000;
    let server = RedisServer::start();
    let nodes = nodes(&config(&server), 2);
    for node in &nodes {
        wait_for_memory(node);
    }
    let items = |part: usize| -> Items {
        let filters = (0..EACH).map(|number| format!("burst/{part}/{number}"));
        filters
            .map(|it| (it.into_bytes(), b"n1".to_vec(), Vec::new()))
            .collect()
    };
    let mut replies = Vec::new();
    for part in 0..55 {
        replies.push(nodes[0].submit(Space::Routes, true, items(part)));
        // Each but the last ten is deleted again while others are added.
        if part >= 10 {
            replies.push(nodes[0].submit(Space::Routes, false, items(part - 10)));
        }
    }
    for reply in replies {
        reply.recv().expect("an answer").expect("a bulk of changes");
    }
    let names: Vec<String> = items(45)
        .into_iter()
        .chain(items(44))
        .chain(items(54))
        .map(|(filter, ..)| String::from_utf8_lossy(&filter).into_owned())
        .collect();
    for node in &nodes {
        wait_until("the burst is not known", || {
            node.count(Space::Routes) == 10 * EACH
        });
        wait_until("not what was added last", || {
            node.knows(Space::Routes, &names)
                .is_some_and(|known| known.len() == 2 * EACH)
        });
    }
    assert_eq!(stored(&server, &nodes[0], Space::Routes).len(), 10 * EACH);
}

/// The feed is cut off for ten nodes at once: each reads 20,000 routes anew, and Redis serves others meanwhile.
#[test]
fn many_nodes_that_read_the_table_at_once_leave_redis_to_others() {
    const ROUTES: usize = 20_000;
    let server = RedisServer::start();
    let nodes = nodes(&config(&server), 10);
    let items: Items = (0..ROUTES)
        .map(|number| format!("site/{number}/+"))
        .map(|filter| (filter.into_bytes(), b"n0".to_vec(), Vec::new()))
        .collect();
    for some in items.chunks(1_000) {
        let reply = nodes[0].submit(Space::Routes, true, some.to_vec());
        reply.recv().expect("an answer").expect("added routes");
    }
    let all_know = || {
        let knows = |node: &Node| node.count(Space::Routes) == ROUTES;
        nodes
            .iter()
            .all(|node| knows(node) && node.knows(Space::Routes, &names()).is_some())
    };
    wait_until("the routes are not known", all_know);
    let resyncs = || -> u64 {
        let count = |node: &Node| node.engine.context().metrics.get(Counter::Resyncs);
        nodes.iter().map(count).sum()
    };
    let before = resyncs();
    let mut connection = server.connection();
    shell(&server, "DEL feed");
    let (start, mut pings) = (Instant::now(), Vec::new());
    while resyncs() < before + 10 || !all_know() {
        let sent = Instant::now();
        redis::cmd("PING").exec(&mut connection).expect("an answer");
        pings.push(sent.elapsed());
        assert!(start.elapsed() < SOON, "{} of 10", resyncs() - before);
        std::thread::sleep(Duration::from_millis(2));
    }
    pings.sort();
    let (median, most) = (pings[pings.len() / 2], pings[pings.len() - 1]);
    assert!(pings.len() > 20, "{}", pings.len());
    assert!(median < Duration::from_millis(20), "{median:?}");
    assert!(most < Duration::from_millis(500), "{most:?}");
    println!(
        "ten tables in {:?}, pings {median:?}, {most:?}",
        start.elapsed()
    );
}
