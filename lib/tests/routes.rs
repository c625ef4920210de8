//! The route table's scripts on a real server, against the rules of `topic` applied to a plain list.

mod support;

use std::collections::{BTreeMap, BTreeSet};

use emqx_redis_core::keys::Keys;
use emqx_redis_core::route_scripts::{self, Change, ScriptCall, Space, Stamp};
use emqx_redis_core::topic::{self, parse_filter, validate_name};
use proptest::prelude::*;
use redis::{Connection, FromRedisValue, RedisResult};
use support::RedisServer;

type Route = (String, String);

/// The route table in a Redis.
struct Table {
    keys: Keys,
    redis: Connection,
    now: u64,
    /// Nodes and results of one call of a match.
    limit: usize,
}

impl Table {
    fn new(server: &RedisServer, prefix: &str) -> Self {
        Table {
            keys: Keys::new(prefix),
            redis: server.connection(),
            now: 1_000,
            limit: 100_000,
        }
    }

    fn run<T: FromRedisValue>(&mut self, call: &ScriptCall) -> RedisResult<T> {
        let script = redis::Script::new(call.script.text());
        let mut invocation = script.prepare_invoke();
        for key in &call.keys {
            invocation.key(&key[..]);
        }
        for arg in &call.args {
            invocation.arg(&arg[..]);
        }
        invocation.invoke(&mut self.redis)
    }

    fn change(&mut self, filter: &str, node: &str, adds: bool) -> RedisResult<u8> {
        self.change_with(filter, node, adds, b"")
    }

    fn change_with(
        &mut self,
        filter: &str,
        node: &str,
        adds: bool,
        proof: &[u8],
    ) -> RedisResult<u8> {
        let filter = parse_filter(filter.as_bytes()).expect("a valid filter");
        self.now += 1;
        let change = Change {
            space: Space::Routes,
            adds,
            options: b"",
            destination: node.as_bytes(),
            proof,
        };
        let stamp = Stamp {
            micros: self.now as i64 * 1000,
            once: self.now,
        };
        let call = route_scripts::change(&self.keys, &filter, &change, &stamp);
        let (changed, _, _): (u8, u64, String) = self.run(&call)?;
        Ok(changed)
    }

    fn try_add(&mut self, filter: &str, node: &str) -> RedisResult<u8> {
        self.change(filter, node, true)
    }

    fn try_delete(&mut self, filter: &str, node: &str) -> RedisResult<u8> {
        self.change(filter, node, false)
    }

    fn try_match(&mut self, name: &str) -> RedisResult<Vec<Route>> {
        let name = validate_name(name.as_bytes()).expect("a valid name");
        let mut shards = vec![self.keys.shard(name.as_bytes())];
        if self.keys.is_clustered() && !name.starts_with('$') {
            shards.push(self.keys.wildcard_shard());
        }
        let mut found = Vec::new();
        for shard in shards {
            let mut next = Some(Vec::new());
            while let Some(from) = next {
                let (routes, end) = self.try_match_some(shard, name, &from)?;
                found.extend(routes);
                next = end;
            }
        }
        Ok(found)
    }

    /// Some of them, and where to go on.
    fn try_match_some(
        &mut self,
        shard: u16,
        name: &str,
        from: &[u8],
    ) -> RedisResult<(Vec<Route>, Option<Vec<u8>>)> {
        let call = route_scripts::find(&self.keys, Space::Routes, shard, name, from, self.limit);
        let reply: Vec<String> = self.run(&call)?;
        let (place, found) = reply.split_first().expect("a place");
        if place == "!" {
            let text = format!("WRONGTYPE at {}", found[0]);
            return Err((redis::ErrorKind::Extension, "foreign", text).into());
        }
        let routes = found.chunks(2).map(|it| route(&it[0], &it[1])).collect();
        let place = place.clone().into_bytes();
        Ok((routes, Some(place).filter(|place| !place.is_empty())))
    }

    fn add(&mut self, filter: &str, node: &str) -> bool {
        self.try_add(filter, node).expect("an answer") == 1
    }

    fn delete(&mut self, filter: &str, node: &str) -> bool {
        self.try_delete(filter, node).expect("an answer") == 1
    }

    fn matching(&mut self, name: &str) -> Vec<Route> {
        let mut routes = self.try_match(name).expect("an answer");
        routes.sort();
        routes
    }

    fn command<T: FromRedisValue>(&mut self, command: &[&[u8]]) -> T {
        let mut cmd = redis::Cmd::new();
        for part in command {
            cmd.arg(*part);
        }
        cmd.query(&mut self.redis).expect("an answer")
    }

    fn members(&mut self, index: &[u8]) -> BTreeSet<String> {
        self.command(&[b"ZRANGE", index, b"0", b"-1"])
    }

    /// What an index of each shard holds, shard by shard.
    fn members_of_shards(&mut self, index: fn(&Keys, u16) -> Vec<u8>) -> Vec<(u16, String)> {
        let shards = self.keys.shards();
        shards
            .flat_map(|shard| {
                let members = self.members(&index(&self.keys, shard));
                members.into_iter().map(move |member| (shard, member))
            })
            .collect()
    }

    /// Without the feeds, which keep what has been.
    fn key_count(&mut self) -> usize {
        let feeds: BTreeSet<Vec<u8>> = self.keys.shards().map(|it| self.keys.feed(it)).collect();
        let keys: Vec<Vec<u8>> = self.command(&[b"KEYS", b"*"]);
        keys.iter().filter(|key| !feeds.contains(*key)).count()
    }

    /// How many commands the script of one match runs.
    fn cost_of_matching(&mut self, name: &str) -> u64 {
        self.matching(name); // loads the script
        let _: () = self.command(&[b"CONFIG", b"RESETSTAT"]);
        self.matching(name);
        let stats: String = self.command(&[b"INFO", b"commandstats"]);
        stats
            .lines()
            .filter(|line| line.starts_with("cmdstat_"))
            .filter(|line| {
                !["evalsha", "config", "info"]
                    .iter()
                    .any(|own| line[8..].starts_with(own))
            })
            .map(|line| {
                let calls = line
                    .split("calls=")
                    .nth(1)
                    .and_then(|rest| rest.split(',').next());
                calls
                    .and_then(|calls| calls.parse::<u64>().ok())
                    .expect("a number of calls")
            })
            .sum()
    }

    /// Everything in the database, key by key.
    fn dump(&mut self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let keys: Vec<Vec<u8>> = self.command(&[b"KEYS", b"*"]);
        keys.into_iter()
            .map(|key| (key.clone(), self.command(&[b"DUMP", &key])))
            .collect()
    }
}

fn route(filter: &str, node: &str) -> Route {
    (filter.to_owned(), node.to_owned())
}

/// What the table should hold, and the slow way to search it.
#[derive(Default)]
struct Model(BTreeSet<Route>);

impl Model {
    fn matching(&self, name: &str) -> Vec<Route> {
        let matches = |filter: &str| {
            let filter = parse_filter(filter.as_bytes()).expect("a valid filter");
            topic::matches(name, filter.real)
        };
        self.0
            .iter()
            .filter(|(filter, _)| matches(filter))
            .cloned()
            .collect()
    }

    fn filters(&self) -> BTreeSet<String> {
        self.0.iter().map(|(filter, _)| filter.clone()).collect()
    }

    fn wildcards(&self) -> BTreeSet<String> {
        let needs_trie = |filter: &str| parse_filter(filter.as_bytes()).unwrap().needs_trie();
        let routes = self.0.iter().filter(|(filter, _)| needs_trie(filter));
        routes
            .map(|(filter, node)| format!("{filter}|{node}"))
            .collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Add(String, &'static str),
    Delete(String, &'static str),
    Match(String),
}

fn filter() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec![
        "a",
        "a",
        "b",
        "",
        "+",
        "+",
        "é",
        "$SYS",
        "a|b",
        "%2F",
        "next",
        "0",
        "wildcards",
        " ",
    ]);
    let levels = prop_oneof![
        9 => prop::collection::vec(level, 1..5),
        1 => Just(vec![]),
    ];
    let share = prop::sample::select(vec!["", "", "", "$share/g/", "$share/g|h/", "$share/$SYS/"]);
    (share, levels, any::<bool>())
        .prop_map(|(share, mut levels, multi_level)| {
            if multi_level || levels.is_empty() {
                levels.push("#");
            }
            format!("{share}{}", levels.join("/"))
        })
        .prop_filter("a filter is not empty", |filter| {
            parse_filter(filter.as_bytes()).is_ok()
        })
}

fn name() -> impl Strategy<Value = String> {
    let level = prop::sample::select(vec![
        "a",
        "a",
        "b",
        "",
        "é",
        "$SYS",
        "a|b",
        "%2F",
        "next",
        "wildcards",
        " ",
        "c",
    ]);
    let levels = prop::collection::vec(level, 1..6).prop_map(|levels| levels.join("/"));
    prop_oneof![
        15 => levels,
        1 => Just("$share/g/a".to_owned()),
    ]
    .prop_filter("a name is not empty", |name| !name.is_empty())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let nodes = || {
        prop::sample::select(vec!["n1@h", "n2@h", ""]).prop_map(|node| {
            if node.is_empty() {
                "é %"
            } else {
                node
            }
        })
    };
    // Few filters, used again and again: what matters is what they share.
    (prop::collection::vec(filter(), 1..12), 1..60usize).prop_flat_map(move |(filters, count)| {
        let one = || prop::sample::select(filters.clone());
        let step = prop_oneof![
            3 => (one(), nodes()).prop_map(|(filter, node)| Step::Add(filter, node)),
            2 => (one(), nodes()).prop_map(|(filter, node)| Step::Delete(filter, node)),
            2 => name().prop_map(Step::Match),
            // A filter without wildcards is a name that is sure to be interesting.
            1 => one().prop_map(|filter| Step::Match(filter.replace('+', "a").replace('#', "b/a"))),
        ];
        prop::collection::vec(step, count)
    })
}

#[test]
fn the_table_does_as_a_plain_list_does() {
    let server = RedisServer::start();
    for (prefix, limit) in [("", 100_000), ("{p}:", 2)] {
        let mut table = Table::new(&server, prefix);
        table.limit = limit;
        does_as_a_plain_list_does(table, 400);
    }
}

/// Between the pieces filters come and go.
#[test]
fn a_match_in_pieces_finds_what_stays_once() {
    let server = RedisServer::start();
    let table = std::cell::RefCell::new(Table::new(&server, ""));
    let filter = || {
        let level = prop::sample::select(vec!["a", "a", "b", "", "$a", "+", "+", "+"]);
        let levels = prop::collection::vec(level, 1..5);
        let levels = levels.prop_filter("a filter is not empty", |levels| levels[..] != [""]);
        (levels, any::<bool>()).prop_map(|(mut levels, multi)| {
            if multi {
                levels.push("#");
            }
            levels.join("/")
        })
    };
    let change = move || (filter(), any::<bool>());
    let cases = ProptestConfig::with_cases(300);
    proptest!(cases, |(
        before in prop::collection::vec(change(), 1..30),
        between in prop::collection::vec(prop::collection::vec(change(), 0..3), 1..12),
        limit in 1..6usize,
        name in prop::sample::select(vec!["a/a/a", "a/b/a", "a/a/a/a", "a/", "a//a", "/a", "$a/a", "$a//a"]),
    )| {
        let table = &mut *table.borrow_mut();
        table.limit = limit;
        let mut model = Model::default();
        let _: () = table.command(&[b"FLUSHALL"]);
        let apply = |table: &mut Table, model: &mut Model, (filter, adds): &(String, bool)| match adds {
            true => {
                table.add(filter, "n1");
                model.0.insert(route(filter, "n1"));
            }
            false => {
                table.delete(filter, "n1");
                model.0.remove(&route(filter, "n1"));
            }
        };
        before.iter().for_each(|(filter, _)| apply(table, &mut model, &(filter.clone(), true)));
        let mut stays: BTreeSet<Route> = model.matching(name).into_iter().collect();
        let (mut found, mut next, mut between) = (Vec::new(), Some(Vec::new()), between.iter());
        while let Some(from) = next {
            let (routes, end) = table.try_match_some(0, name, &from).expect("an answer");
            found.extend(routes);
            for change in between.next().into_iter().flatten() {
                apply(table, &mut model, change);
                if end.is_some() {
                    let here = model.matching(name);
                    stays.retain(|route| here.contains(route));
                }
            }
            next = end;
        }
        for route in &stays {
            prop_assert_eq!(found.iter().filter(|it| *it == route).count(), 1, "{:?}", route);
        }
    });
}

/// The way to where a match was to go on is gone.
#[test]
fn a_match_goes_on_beside_what_was_deleted() {
    let server = RedisServer::start();
    let mut table = Table::new(&server, "");
    table.limit = 3;
    for filter in ["a/a/a/+", "+/#"] {
        table.add(filter, "n1");
    }
    let (found, next) = table.try_match_some(0, "a/a/a/a", b"").expect("an answer");
    assert!(found.is_empty());
    table.delete("a/a/a/+", "n1");
    let from = next.expect("there is more");
    let (found, _) = table
        .try_match_some(0, "a/a/a/a", &from)
        .expect("an answer");
    assert_eq!(found, [route("+/#", "n1")]);
}

/// Spread over shards, on a server that refuses keys of several slots in one call.
#[test]
fn the_sharded_table_does_as_a_plain_list_does() {
    let server = RedisServer::start_cluster_node();
    for shards in [16, 1, 3] {
        let mut table = Table::new(&server, "");
        table.keys = Keys::clustered("p:");
        table.limit = 1;
        assert!(table.keys.learn_shards(shards));
        does_as_a_plain_list_does(table, 150);
    }
}

fn does_as_a_plain_list_does(table: Table, cases: u32) {
    let table = std::cell::RefCell::new(table);
    proptest!(ProptestConfig::with_cases(cases), |(steps in steps())| {
        let table = &mut *table.borrow_mut();
        let mut model = Model::default();
        // Only a case that failed leaves something.
        let _: () = table.command(&[b"FLUSHALL"]);
        for step in steps {
            match step {
                Step::Add(filter, node) => {
                    let new = model.0.insert(route(&filter, node));
                    prop_assert_eq!(table.add(&filter, node), new);
                }
                Step::Delete(filter, node) => {
                    let known = model.0.remove(&route(&filter, node));
                    prop_assert_eq!(table.delete(&filter, node), known);
                }
                Step::Match(name) => {
                    prop_assert_eq!(table.matching(&name), model.matching(&name), "{}", name);
                }
            }
        }
        let shard_of = |keys: &Keys, member: String| {
            let filter = member.rsplit_once('|').map_or(&member[..], |(filter, _)| filter);
            let real = parse_filter(filter.as_bytes()).unwrap().real;
            (keys.shard(real.as_bytes()), member.clone())
        };
        let routes = table.members_of_shards(Keys::routes_index);
        let mut expected: Vec<_> = model
            .filters()
            .into_iter()
            .map(|filter| (shard_of(&table.keys, format!("{filter}|")).0, filter))
            .collect();
        expected.sort();
        prop_assert_eq!(routes, expected);
        let wildcards = table.members_of_shards(Keys::wildcards);
        let mut expected: Vec<_> = model
            .wildcards()
            .into_iter()
            .map(|member| shard_of(&table.keys, member))
            .collect();
        expected.sort();
        prop_assert_eq!(wildcards, expected);
        for (filter, node) in &model.0 {
            prop_assert!(table.delete(filter, node));
        }
        prop_assert_eq!(table.key_count(), 0, "something is left");
    });
}

#[test]
fn adding_again_changes_nothing() {
    let server = RedisServer::start();
    let mut table = Table::new(&server, "");
    for filter in ["a", "a/+", "$share/g/a", "$share/g/a/+"] {
        assert!(table.add(filter, "n1"));
        let before = table.dump();
        assert!(!table.add(filter, "n1"));
        assert_eq!(table.dump(), before);
        assert!(!table.delete(filter, "n2"));
        assert_eq!(table.dump(), before);
    }
}

#[test]
fn adding_again_repairs_what_went_missing() {
    let server = RedisServer::start();
    let mut table = Table::new(&server, "");
    let filters = ["a/+/b", "$share/g/a/+/b", "a/#"];
    for filter in filters {
        table.add(filter, "n1");
    }
    let whole = table.matching("a/x/b");
    let keys: Vec<Vec<u8>> = table.command(&[b"KEYS", b"*"]);
    for key in keys {
        let _: i64 = table.command(&[b"DEL", &key]);
        for filter in filters {
            table.add(filter, "n1");
        }
        assert_eq!(
            table.matching("a/x/b"),
            whole,
            "without {}",
            String::from_utf8_lossy(&key)
        );
    }
    for filter in filters {
        table.delete(filter, "n1");
    }
    assert_eq!(table.key_count(), 0);
}

/// A foreign value at any of our keys is an error that has changed nothing, and is over when it is gone.
#[test]
fn a_foreign_value_fails_the_call_whole() {
    let server = RedisServer::start();
    for filter in ["a", "a/+/b", "$share/g/a"] {
        let mut table = Table::new(&server, "");
        table.add(filter, "n1");
        let keys: Vec<Vec<u8>> = table.command(&[b"KEYS", b"*"]);
        for key in keys {
            let planted: &[&[u8]] = match &key[..] {
                b"trie" => &[b"SADD", &key, b"x"],
                _ => &[b"HSET", &key, b"x", b"y"],
            };
            for other_routes in [false, true] {
                let _: () = table.command(&[b"FLUSHALL"]);
                if other_routes {
                    table.add(filter, "n2");
                    let _: i64 = table.command(&[b"DEL", &key]);
                }
                let _: i64 = table.command(planted);
                let before = table.dump();
                let planted_at = String::from_utf8_lossy(&key).into_owned();
                let error = table.try_add(filter, "n1").expect_err(&planted_at);
                assert!(error.to_string().contains("WRONGTYPE"), "{error}");
                assert_eq!(table.dump(), before, "{filter} with {planted_at}");

                let _: i64 = table.command(&[b"DEL", &key]);
                assert!(table.add(filter, "n1"));
                let _: i64 = table.command(&[b"DEL", &key]);
                let _: i64 = table.command(planted);
                let before = table.dump();
                if table.try_delete(filter, "n1").is_err() {
                    assert_eq!(table.dump(), before, "{filter} with {planted_at}");
                }
                let _: i64 = table.command(&[b"DEL", &key]);
                table.add(filter, "n1");
                table.delete(filter, "n1");
                table.delete(filter, "n2");
                assert_eq!(table.key_count(), 0, "{filter} with {planted_at}");
            }
        }
        let _: () = table.command(&[b"FLUSHALL"]);
    }
}

#[test]
fn a_name_like_an_index_is_a_name() {
    let server = RedisServer::start();
    let mut table = Table::new(&server, "");
    table.add("wildcards", "n1");
    table.add("+", "n1");
    assert_eq!(
        table.matching("wildcards"),
        [route("+", "n1"), route("wildcards", "n1")]
    );
    assert_eq!(
        table.members(b"route:wildcards"),
        BTreeSet::from(["+|n1".to_owned()])
    );
    assert_eq!(
        table.command::<Vec<String>>(&[b"SMEMBERS", b"route:%77ildcards"]),
        ["n1"]
    );
}

/// What a match costs is counted in commands, since time says nothing on a busy machine.
#[test]
fn filters_that_begin_otherwise_cost_a_match_nothing() {
    let server = RedisServer::start();
    let mut table = Table::new(&server, "");
    for filter in ["a/+/c", "a/b/#", "+/b/c", "a/b/c"] {
        table.add(filter, "n1");
    }
    let cost = table.cost_of_matching("a/b/c");
    assert!(cost <= 16, "{cost} commands");
    for i in 0..1_000 {
        table.add(&format!("x{i}/+/c"), "n1");
        table.add(&format!("a/x{i}/#"), "n1");
        table.add(&format!("+/x{i}/c"), "n1");
    }
    assert_eq!(table.cost_of_matching("a/b/c"), cost);
    assert_eq!(table.matching("a/b/c").len(), 4);
}

/// Names and filters as long and as deep as MQTT allows: cost and memory grow with their length alone.
#[test]
fn the_deepest_topics_are_served() {
    let server = RedisServer::start();
    let mut table = Table::new(&server, "");
    let slashes = "/".repeat(topic::MAX_BYTES);
    let plus_signs = format!("{}+", "+/".repeat(topic::MAX_BYTES / 2));
    let prolonged = format!("{}#", "/".repeat(topic::MAX_BYTES - 1));
    let long_level = "x".repeat(topic::MAX_BYTES - 2);

    // Nothing matches beyond the first levels.
    table.add("/+/a", "n1");
    table.add("+/#", "n1");
    let cost = table.cost_of_matching(&slashes);
    assert!(cost < 10, "{cost} commands");

    // Everything does.
    let filters = [
        prolonged.as_str(),
        plus_signs.as_str(),
        &format!("+/{long_level}"),
    ];
    for filter in filters {
        assert!(table.add(filter, "n1"));
        assert!(!table.add(filter, "n1"));
    }
    let used: usize = table.command(&[b"MEMORY", b"USAGE", b"trie", b"SAMPLES", b"0"]);
    assert!(used < 32 << 20, "the trie takes {used} bytes");
    assert_eq!(
        table.matching(&slashes),
        [route("+/#", "n1"), route(&prolonged, "n1")]
    );
    let name = vec!["b"; topic::MAX_BYTES / 2 + 1].join("/");
    assert_eq!(
        table.matching(&name),
        [route("+/#", "n1"), route(&plus_signs, "n1")]
    );
    let name = format!("y/{long_level}");
    assert_eq!(
        table.matching(&name),
        [route("+/#", "n1"), route(&format!("+/{long_level}"), "n1")]
    );
    for filter in filters.into_iter().chain(["/+/a", "+/#"]) {
        assert!(table.delete(filter, "n1"));
    }
    assert_eq!(table.key_count(), 0);
}

/// All 8,192 filters of thirteen levels `a` or `+`: as many trie nodes match at the last level, in more than one
/// HMGET.
#[test]
fn filters_that_branch_at_each_level_all_match() {
    let server = RedisServer::start();
    let mut table = Table::new(&server, "");
    let filters: BTreeSet<String> = (0..8192)
        .map(|bits| {
            let level = |i: u32| if bits >> i & 1 == 1 { "+" } else { "a" };
            (0..13).map(level).collect::<Vec<_>>().join("/")
        })
        .collect();
    for filter in &filters {
        table.add(filter, "n1");
    }
    let name = ["a"; 13].join("/");
    // In pieces, of which none takes long, and that find each once.
    table.limit = 500;
    let (mut found, mut next, mut pieces) = (Vec::new(), Some(Vec::new()), 0);
    while let Some(from) = next {
        let (routes, end) = table.try_match_some(0, &name, &from).expect("an answer");
        assert!(routes.len() <= table.limit, "{}", routes.len());
        found.extend(routes.into_iter().map(|(filter, _)| filter));
        (next, pieces) = (end, pieces + 1);
    }
    assert!((32..=64).contains(&pieces), "{pieces}");
    found.sort();
    assert!(found.iter().eq(&filters));
    // So do those that lead to nothing.
    let deeper = format!("{name}/a");
    let (found, next) = table.try_match_some(0, &deeper, b"").expect("an answer");
    assert!(found.is_empty() && next.is_some());
    assert!(table.cost_of_matching(&deeper) < 2 * 16_384 + 33 * 2 * 13);
    assert_eq!(table.matching(&format!("{name}/a")), []);
    for filter in &filters {
        table.delete(filter, "n1");
    }
    assert_eq!(table.key_count(), 0);
}

/// Who purges a node that he takes for dead does not purge one that has come back, even between two deletions.
#[test]
fn only_what_is_dead_is_purged() {
    let server = RedisServer::start();
    let mut table = Table::new(&server, "");
    let leases = table.keys.leases(0);
    let _: u8 = table.command(&[b"HSET", &leases, b"n1", b"life1 7", b"n1|beat", b"40"]);
    for filter in ["a/+", "a/b", "a/c"] {
        assert!(table.add(filter, "n1"));
    }
    assert_eq!(table.change_with("a/+", "n1", false, b"40"), Ok(1));
    // A route that the node adds for itself proves it alive; that of another life, or of somebody else, does not.
    assert_eq!(table.change_with("a/d", "n1", true, b"life0"), Ok(1));
    assert!(table.add("a/e", "n1"));
    let beat: u64 = table.command(&[b"HGET", &leases, b"n1|beat"]);
    assert_eq!(beat, 40);
    assert_eq!(table.change_with("a/f", "n1", true, b"life1"), Ok(1));
    let beat: u64 = table.command(&[b"HGET", &leases, b"n1|beat"]);
    assert_eq!(beat, 41);
    let before = table.dump();
    assert_eq!(table.change_with("a/b", "n1", false, b"40"), Ok(2));
    assert_eq!(table.dump(), before, "nothing is deleted any more");
    assert_eq!(table.matching("a/b"), [route("a/b", "n1")]);
}

/// What Redis has lost is not added again by a node whose name a later start has.
#[test]
fn an_earlier_life_adds_nothing_again() {
    let server = RedisServer::start();
    let mut table = Table::new(&server, "");
    assert_eq!(
        table.change_with("a/a", "n1", true, b"=life0"),
        Ok(1),
        "no lease"
    );
    let leases = table.keys.leases(0);
    let _: u8 = table.command(&[b"HSET", &leases, b"n1", b"life1 7", b"n1|beat", b"40"]);
    let before = table.dump();
    assert_eq!(table.change_with("a/b", "n1", true, b"=life0"), Ok(2));
    assert_eq!(table.dump(), before);
    assert_eq!(table.change_with("a/b", "n1", true, b"=life1"), Ok(1));
}
