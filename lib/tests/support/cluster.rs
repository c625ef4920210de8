//! A cluster of three masters that share the slots in turns, and a driver of operations that knows no more
//! of clusters than it must: so what an operation leaves to the engine shows.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use emqx_redis_core::config::{Config, Topology};
use emqx_redis_core::context::Context;
use emqx_redis_core::error::Error;
use emqx_redis_core::metrics::OperationKind;
use emqx_redis_core::repair::Repair;
use emqx_redis_core::request::{Affinity, Answer, Operation, Step};
use emqx_redis_core::resp::{Commands, Frame, Scanner};
use emqx_redis_core::scripts::{self, Script};
use emqx_redis_core::slots::SLOTS;

use super::RedisServer;

const NODES: u16 = 3;

/// A running cluster.
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub context: Context,
    /// Steps that were sent.
    pub steps: usize,
}

/// One master.
pub struct Node {
    pub server: RedisServer,
    port: u16,
    stream: UnixStream,
}

impl Cluster {
    pub fn start() -> Self {
        Self::start_with(&Config::default())
    }

    /// Starts a cluster for this configuration, which need not name one.
    pub fn start_with(config: &Config) -> Self {
        let mut config = config.clone();
        config.redis.topology = Topology::Cluster;
        let mut cluster = Cluster {
            nodes: (0..NODES).map(|_| Node::start()).collect(),
            context: Context::new(&config, b"n1".to_vec(), Default::default()),
            steps: 0,
        };
        let first = cluster.nodes[0].port.to_string();
        for (number, node) in cluster.nodes.iter_mut().enumerate() {
            let own = (0..SLOTS).filter(|slot| slot % NODES == number as u16);
            let own: Vec<String> = own.map(|slot| slot.to_string()).collect();
            let words = ["CLUSTER", "ADDSLOTS"].into_iter();
            node.ask_words(words.chain(own.iter().map(String::as_str)));
            node.expect_ok(&format!("CLUSTER SET-CONFIG-EPOCH {}", number + 1));
        }
        for node in &mut cluster.nodes {
            node.ask(&format!("CLUSTER MEET 127.0.0.1 {first}"));
        }
        cluster.wait_until_formed();
        cluster.load_scripts();
        let now = cluster.nodes[0].ask("TIME");
        let Frame::Array(time) = now else {
            panic!("TIME: {now:?}");
        };
        let number = |frame: &Frame| match frame {
            Frame::Bulk(text) => std::str::from_utf8(text).unwrap().parse::<i64>().unwrap(),
            _ => panic!("TIME: {frame:?}"),
        };
        let micros = number(&time[0]) * 1_000_000 + number(&time[1]);
        let instant = Instant::now();
        cluster.context.clock.measure(micros, instant, instant);
        for slot in 0..SLOTS {
            cluster.context.slots.set(slot, slot % NODES);
        }
        cluster
    }

    fn wait_until_formed(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let is_formed = |node: &mut Node| {
            let Frame::Bulk(info) = node.ask("CLUSTER INFO") else {
                return false;
            };
            let info = String::from_utf8_lossy(&info).into_owned();
            [
                "cluster_state:ok",
                "cluster_slots_ok:16384",
                "cluster_known_nodes:3",
            ]
            .iter()
            .all(|line| info.contains(line))
        };
        while !self.nodes.iter_mut().all(is_formed) {
            assert!(Instant::now() < deadline, "the cluster does not form");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.wait_until_agreed();
    }

    fn load_scripts(&mut self) {
        for node in &mut self.nodes {
            let mut bytes = Vec::new();
            scripts::load_all(&mut Commands::new(&mut bytes));
            let replies = node.exchange(&bytes, Script::ALL.len());
            for ((script, _), reply) in Script::ALL.iter().zip(&replies) {
                assert!(self.context.scripts.learn(*script, reply), "{reply:?}");
            }
        }
    }

    /// Runs an operation as the engine does.
    pub fn run(&mut self, operation: impl Operation + 'static) -> Result<Answer, Error> {
        self.run_boxed(Box::new(operation))
    }

    /// The same for one of any kind.
    pub fn run_boxed(&mut self, mut operation: Box<dyn Operation>) -> Result<Answer, Error> {
        if let Some(parts) = operation.split(&self.context) {
            let results = parts.into_iter().map(|part| self.run_boxed(part));
            let results = results.collect();
            return operation.join(results);
        }
        loop {
            let replies = self.step(operation.as_mut());
            match operation.decode(&self.context, replies) {
                Step::Done(result) => return result,
                Step::Again => {}
                Step::LoadScripts => self.load_scripts(),
                Step::Repair(keys, error) => {
                    let kind = operation.kind();
                    operation = Box::new(Repair::new(kind, Vec::new(), keys, error));
                }
            }
        }
    }

    /// Sends a step to where it says that it belongs.
    fn step(&mut self, operation: &mut dyn Operation) -> Vec<Frame> {
        let mut bytes = Vec::new();
        let slot = operation.slot(&self.context);
        let mut commands = Commands::new(&mut bytes);
        operation.encode(&self.context, &mut commands);
        let count = commands.count();
        if count == 0 {
            return Vec::new();
        }
        self.steps += 1;
        let owner = slot.map_or(0, |slot| self.context.slots.owner(slot) % NODES);
        let mut replies = self.nodes[usize::from(owner)].exchange(&bytes, count);
        let takes_redirects = operation.takes_redirects();
        for _ in 0..100 {
            let Some((slot_moved, port)) =
                replies.iter().find_map(moved).filter(|_| !takes_redirects)
            else {
                break;
            };
            // Everything that is not dealt with by the operation itself is in the slot that it named. A slot that
            // was migrated may be known to some sooner than to others.
            assert_eq!(Some(slot_moved), slot, "{replies:?}");
            let node = self.nodes.iter_mut().find(|node| node.port == port);
            replies = node.expect("one of ours").exchange(&bytes, count);
            if replies.iter().any(|reply| moved(reply).is_some()) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        replies
    }

    /// Does an operation at one master, whatever it knows of the slot, until it is over or anything fails.
    pub fn run_at(
        &mut self,
        node: usize,
        mut operation: Box<dyn Operation>,
    ) -> Result<Answer, Error> {
        for _ in 0..20 {
            let mut bytes = Vec::new();
            // Without it, the target of a migration sends everyone back.
            Commands::new(&mut bytes).command(&[b"ASKING"]);
            let mut commands = Commands::new(&mut bytes);
            operation.encode(&self.context, &mut commands);
            let count = commands.count();
            let mut replies = self.nodes[node].exchange(&bytes, count + 1);
            replies.remove(0);
            match operation.decode(&self.context, replies) {
                Step::Done(result) => return result,
                Step::Again => {}
                Step::LoadScripts => self.load_scripts(),
                Step::Repair(_, error) => return Err(error),
            }
        }
        Err(Error::Timeout)
    }

    pub fn begin_migration(&mut self, slot: u16, from: usize, to: usize) {
        let ids = [from, to].map(|node| self.id_of(node));
        self.nodes[to].expect_ok(&format!("CLUSTER SETSLOT {slot} IMPORTING {}", ids[0]));
        self.nodes[from].expect_ok(&format!("CLUSTER SETSLOT {slot} MIGRATING {}", ids[1]));
    }

    /// Moves those of the slot's keys that are chosen.
    pub fn migrate(&mut self, slot: u16, from: usize, to: usize, which: impl Fn(&str) -> bool) {
        let Frame::Array(keys) =
            self.nodes[from].ask(&format!("CLUSTER GETKEYSINSLOT {slot} 1000"))
        else {
            panic!("no keys");
        };
        let port = self.nodes[to].port.to_string();
        for key in keys {
            let Frame::Bulk(key) = key else {
                panic!("{key:?}");
            };
            if which(&String::from_utf8_lossy(&key)) {
                let host = b"127.0.0.1";
                let migrate: [&[u8]; 7] = [
                    b"MIGRATE",
                    host,
                    port.as_bytes(),
                    &key,
                    b"0",
                    b"5000",
                    b"REPLACE",
                ];
                self.nodes[from].ask_bytes(&migrate);
            }
        }
    }

    /// Tells everyone that the slot has arrived.
    pub fn end_migration(&mut self, slot: u16, to: usize) {
        let id = self.id_of(to);
        for node in [to, (to + 1) % 3, (to + 2) % 3] {
            self.nodes[node].expect_ok(&format!("CLUSTER SETSLOT {slot} NODE {id}"));
        }
        self.context.slots.set(slot, to as u16);
        self.wait_until_agreed();
    }

    /// A master that takes the next slot over too soon claims it with an epoch that another has, and they
    /// dispute it: waits until all know of each other's.
    fn wait_until_agreed(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let views = self.nodes.iter_mut().map(Node::epochs);
            let views: BTreeSet<_> = views.collect();
            if let [view] = &Vec::from_iter(views)[..] {
                let epochs: BTreeSet<_> = view.iter().map(|(_, epoch)| epoch).collect();
                if epochs.len() == view.len() {
                    return;
                }
            }
            assert!(Instant::now() < deadline, "the masters do not agree");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn id_of(&mut self, node: usize) -> String {
        match self.nodes[node].ask("CLUSTER MYID") {
            Frame::Bulk(id) => String::from_utf8_lossy(&id).into_owned(),
            other => panic!("CLUSTER MYID: {other:?}"),
        }
    }

    /// Who has this key, unless its slot has moved.
    pub fn node_of(&mut self, key: &[u8]) -> &mut Node {
        let slot = emqx_redis_core::hash_slot::hash_slot(key);
        &mut self.nodes[usize::from(slot % NODES)]
    }

    /// Does one command where its first argument is.
    pub fn ask(&mut self, command: &[&[u8]]) -> Frame {
        self.node_of(command[1]).ask_bytes(command)
    }

    /// All keys.
    pub fn keys(&mut self) -> Vec<Vec<u8>> {
        let keys_of = |node: &mut Node| match node.ask("KEYS *") {
            Frame::Array(keys) => keys,
            other => panic!("KEYS: {other:?}"),
        };
        let all = self.nodes.iter_mut().flat_map(keys_of);
        all.map(|key| match key {
            Frame::Bulk(key) => key.to_vec(),
            other => panic!("KEYS: {other:?}"),
        })
        .collect()
    }

    pub fn flush(&mut self) {
        for node in &mut self.nodes {
            node.ask("FLUSHALL");
        }
    }
}

impl Node {
    fn start() -> Self {
        let port = free_port();
        let server = RedisServer::start_with(&[
            "--port",
            &port.to_string(),
            "--cluster-enabled",
            "yes",
            "--cluster-node-timeout",
            "20000",
        ]);
        let stream = UnixStream::connect(server.socket()).expect("a connection");
        Node {
            server,
            port,
            stream,
        }
    }

    /// The masters' ids and config epochs, as this one knows them.
    fn epochs(&mut self) -> BTreeSet<(String, String)> {
        let Frame::Bulk(nodes) = self.ask("CLUSTER NODES") else {
            panic!("CLUSTER NODES");
        };
        let nodes = String::from_utf8_lossy(&nodes).into_owned();
        let fields = nodes
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        fields
            .map(|it| (it[0].to_owned(), it[6].to_owned()))
            .collect()
    }

    fn expect_ok(&mut self, command: &str) {
        assert_eq!(self.ask(command), Frame::Simple("OK".into()), "{command}");
    }

    /// Does one command, of words without blanks.
    pub fn ask(&mut self, command: &str) -> Frame {
        self.ask_words(command.split(' '))
    }

    fn ask_words<'a>(&mut self, words: impl Iterator<Item = &'a str>) -> Frame {
        let words: Vec<&[u8]> = words.map(str::as_bytes).collect();
        self.ask_bytes(&words)
    }

    pub fn ask_bytes(&mut self, command: &[&[u8]]) -> Frame {
        let mut bytes = Vec::new();
        Commands::new(&mut bytes).command(command);
        self.exchange(&bytes, 1).remove(0)
    }

    /// Sends bytes of commands and reads as many replies.
    pub fn exchange(&mut self, bytes: &[u8], count: usize) -> Vec<Frame> {
        self.stream.write_all(bytes).expect("a server that reads");
        let (mut scanner, mut input) = (Scanner::default(), Vec::new());
        let mut replies = Vec::new();
        while replies.len() < count {
            match scanner.scan(&input).expect("RESP") {
                Some(length) => {
                    let rest = input.split_off(length);
                    let reply = Bytes::from(std::mem::replace(&mut input, rest));
                    replies.push(Frame::parse(&reply, &mut 0).expect("RESP"));
                }
                None => {
                    let mut chunk = [0; 64 * 1024];
                    let read = self.stream.read(&mut chunk).expect("a server that answers");
                    assert!(read > 0, "the server closed the connection");
                    input.extend_from_slice(&chunk[..read]);
                }
            }
        }
        assert!(input.is_empty(), "more replies than commands");
        replies
    }
}

/// The slot and the port that a reply says it has moved to.
fn moved(reply: &Frame) -> Option<(u16, u16)> {
    let text = std::str::from_utf8(reply.error()?.strip_prefix(b"MOVED ")?).ok()?;
    let (slot, address) = text.split_once(' ')?;
    let (_, port) = address.rsplit_once(':')?;
    Some((slot.parse().ok()?, port.parse().ok()?))
}

/// Lists a client's slot.
pub struct ListSlot(pub Vec<u8>);

impl Operation for ListSlot {
    fn kind(&self) -> OperationKind {
        OperationKind::ListSessions
    }

    fn affinity(&self) -> Affinity<'_> {
        Affinity::None
    }

    fn encode(&mut self, context: &Context, commands: &mut Commands<'_>) {
        let keys = &context.keys;
        let slot = keys.client_slot(&self.0);
        let (index, expiry) = (keys.sessions_index(slot), keys.sessions_expiry(slot));
        scripts::call(
            context,
            commands,
            Script::ListSessions,
            &[&index, &expiry],
            3,
        )
        .arg(&keys.session_prefix())
        .int(0)
        .int(10);
    }

    fn decode(&mut self, _: &Context, mut replies: Vec<Frame>) -> Step {
        Step::Done(match replies.remove(0) {
            Frame::Error(text) => Err(Error::from_reply(&text)),
            _ => Ok(Answer::Ok),
        })
    }

    fn slot(&self, context: &Context) -> Option<u16> {
        Some(context.keys.client_slot(&self.0))
    }

    fn size(&self) -> usize {
        0
    }
}

/// A port that is free, as is the one 10,000 above, which is the cluster bus's.
pub fn free_port() -> u16 {
    use std::hash::{BuildHasher, RandomState};
    use std::net::TcpListener;
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let candidates = std::iter::repeat_with(|| RandomState::new().hash_one(0) % 12_000 + 20_000);
    let mut ports = candidates.take(1000).map(|port| port as u16);
    ports
        .find(|port| is_free(*port) && is_free(port + 10_000))
        .expect("a free port")
}
