//! Measures a match of the route table's script against a scan of all wildcards in Lua, by the number of
//! filters: `cargo run --release --example measure_routes`. It starts a Redis of its own.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use emqx_redis_core::keys::Keys;
use emqx_redis_core::route_scripts::{self, Change, ScriptCall, Space, Stamp};
use emqx_redis_core::scripts::Script;
use emqx_redis_core::topic::{parse_filter, Filter};
use redis::Connection;
use support::RedisServer;

/// What the script is compared with: it looks at every wildcard for each match.
const SCAN: &str = r"
local function matches(levels, pattern)
  local i = 0
  for level in string.gmatch(pattern .. '/', '([^/]*)/') do
    if level == '#' then return true end
    i = i + 1
    if level ~= '+' and level ~= levels[i] then return false end
  end
  return i == #levels
end
local levels = {}
for level in string.gmatch(ARGV[1] .. '/', '([^/]*)/') do levels[#levels + 1] = level end
local reply = {}
for _, node in ipairs(redis.call('SMEMBERS', KEYS[1])) do reply[#reply + 1] = node end
for _, member in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  local pattern, node = string.match(member, '^(.*)|(.*)$')
  if matches(levels, pattern) then reply[#reply + 1] = node end
end
return reply";

fn main() {
    let keys = Keys::new("");
    println!(
        "match and scan: µs at the server / µs of the round trip; add and delete: µs at the server"
    );
    println!("filters | add | match | hits | scan | delete | bytes a filter");
    for count in [1_000u32, 10_000, 100_000] {
        let server = RedisServer::start();
        let mut redis = server.connection();
        let before = memory(&mut redis);
        let filters: Vec<String> = (0..count).map(filter).collect();
        let adds: Vec<ScriptCall> = filters
            .iter()
            .map(|filter| {
                let filter = parse_filter(filter.as_bytes()).expect("a valid filter");
                change(&keys, &filter, b"emqx@10.0.0.1", true)
            })
            .collect();
        let (add, _, _) = run(&mut redis, Script::AddRoute.text(), &adds);
        let bytes = (memory(&mut redis) - before) / u64::from(count);

        let names: Vec<String> = (0..20_000u32)
            .map(|i| i * 7919 % (count / 4))
            .map(|device| format!("site/{}/device/{device}/temp", device / 100))
            .collect();
        let matches: Vec<ScriptCall> = names
            .iter()
            .map(|name| route_scripts::find(&keys, Space::Routes, 0, name, b"", usize::MAX))
            .collect();
        let (server_us, trip_us, replies) = run(&mut redis, Script::MatchRoutes.text(), &matches);
        let scans: Vec<ScriptCall> = matches[..(2_000_000 / count).clamp(5, 500) as usize]
            .iter()
            .map(|call| ScriptCall {
                script: call.script,
                keys: vec![call.keys[0].clone(), keys.wildcards(0)],
                args: vec![call.args[0].clone()],
            })
            .collect();
        let (scan_us, scan_trip_us, _) = run(&mut redis, SCAN, &scans);
        // Each answer begins with where to go on.
        let hits = (replies - names.len()) as f64 / 2.0 / names.len() as f64;

        let deletes: Vec<ScriptCall> = filters
            .iter()
            .map(|filter| {
                let filter = parse_filter(filter.as_bytes()).expect("a valid filter");
                change(&keys, &filter, b"emqx@10.0.0.1", false)
            })
            .collect();
        let (delete, _, _) = run(&mut redis, Script::DeleteRoute.text(), &deletes);
        println!(
            "{count} | {add:.1} | {server_us:.1} / {trip_us:.1} | {hits:.2} | \
             {scan_us:.0} / {scan_trip_us:.0} | {delete:.1} | {bytes}"
        );
    }
    measure_worst_cases(&keys);
}

/// Names and filters made to be slow.
fn measure_worst_cases(keys: &Keys) {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let mut measure = |what: &str, filters: &[String], name: &str| {
        let calls = |change: &dyn Fn(&str) -> ScriptCall| -> Vec<ScriptCall> {
            filters.iter().map(|filter| change(filter)).collect()
        };
        let adds = calls(&|filter| {
            let filter = parse_filter(filter.as_bytes()).expect("a valid filter");
            change(keys, &filter, b"n", true)
        });
        let deletes = calls(&|filter| {
            let filter = parse_filter(filter.as_bytes()).expect("a valid filter");
            change(keys, &filter, b"n", false)
        });
        let before = memory(&mut redis);
        let (add, _, _) = run(&mut redis, Script::AddRoute.text(), &adds);
        let kib = (memory(&mut redis) - before) / 1024;
        let matches = vec![route_scripts::find(keys, Space::Routes, 0, name, b"", usize::MAX); 20];
        let (server_us, _, replies) = run(&mut redis, Script::MatchRoutes.text(), &matches);
        let (delete, _, _) = run(&mut redis, Script::DeleteRoute.text(), &deletes);
        let hits = (replies - matches.len()) / 2 / matches.len();
        println!(
            "{what}: match {server_us:.0} µs with {hits} hits, \
             add {add:.0} µs, delete {delete:.0} µs, {kib} KiB"
        );
    };
    let slashes = "/".repeat(65_535);
    measure(
        "65,535 empty levels, no such filter",
        &["/+/a".to_owned()],
        &slashes,
    );
    let deep = format!("{}#", "/".repeat(65_534));
    measure("65,535 empty levels, one such filter", &[deep], &slashes);
    let deep = format!("{}+", "+/".repeat(32_767));
    let name = vec!["a"; 32_768].join("/");
    measure("32,768 levels, one filter of as many +", &[deep], &name);
    for levels in [10, 14] {
        let branching: Vec<String> = (0..1u32 << levels)
            .map(|bits| {
                let level = |i: u32| if bits >> i & 1 == 1 { "+" } else { "a" };
                (0..levels)
                    .map(level)
                    .chain(["z"])
                    .collect::<Vec<_>>()
                    .join("/")
            })
            .collect();
        let name = vec!["a"; levels as usize + 1].join("/");
        measure(
            &format!("{} filters that begin like the name", branching.len()),
            &branching,
            &name,
        );
    }
}

/// Filters of four kinds for each device; three of them match its name.
fn filter(i: u32) -> String {
    let (device, site) = (i / 4, i / 400);
    match i % 4 {
        0 => format!("site/{site}/device/{device}/#"),
        1 => format!("site/+/device/{device}/temp"),
        2 => format!("+/{site}/device/{device}/+"),
        _ => format!("site/{site}/device/{device}/+/alarm"),
    }
}

/// Runs the calls one after another; the microseconds of one at the server and for the round trip, and the
/// number of values in all replies.
fn run(redis: &mut Connection, script: &str, calls: &[ScriptCall]) -> (f64, f64, usize) {
    let sha: String = redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(script)
        .query(redis)
        .expect("loads");
    let _: () = redis::cmd("CONFIG")
        .arg("RESETSTAT")
        .query(redis)
        .expect("resets");
    let mut values = 0;
    let started = Instant::now();
    for call in calls {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&sha)
            .arg(call.keys.len())
            .arg(&call.keys)
            .arg(&call.args);
        match cmd.query::<redis::Value>(redis).expect("an answer") {
            redis::Value::Array(array) => values += array.len(),
            _ => values += 1,
        }
    }
    let trip = started.elapsed().as_secs_f64() * 1e6 / calls.len() as f64;
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query(redis)
        .expect("answers");
    let line = stats
        .lines()
        .find(|line| line.starts_with("cmdstat_evalsha:"))
        .expect("ran");
    let usec = line.split("usec_per_call=").nth(1).expect("a figure");
    let server = usec
        .split(',')
        .next()
        .and_then(|figure| figure.parse().ok());
    (server.expect("a number"), trip, values)
}

fn memory(redis: &mut Connection) -> u64 {
    let info: String = redis::cmd("INFO")
        .arg("memory")
        .query(redis)
        .expect("answers");
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    line.and_then(|figure| figure.trim().parse().ok())
        .expect("a number")
}

fn change(keys: &Keys, filter: &Filter<'_>, node: &[u8], adds: bool) -> ScriptCall {
    let change = Change {
        space: Space::Routes,
        adds,
        options: b"",
        destination: node,
        proof: b"",
    };
    let stamp = Stamp {
        micros: 1_700_000_000_000_000,
        once: 1,
    };
    route_scripts::change(keys, filter, &change, &stamp)
}
