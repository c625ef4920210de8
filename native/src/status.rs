//! What `emqx_redis_storage:status/0` tells.

use emqx_redis_core::dispatch::{Kind, LinkStatus};
use emqx_redis_core::engine::Engine;
use emqx_redis_core::metrics::{Counter, OperationKind};
use emqx_redis_core::replica::ShardStatus;
use emqx_redis_core::server::Warning;
use rustler::{Atom, Encoder, Env, Term};

use crate::error_term::{binary, encode_why};
use crate::{atoms, codec};

fn put<'a>(env: Env<'a>, map: Term<'a>, key: &str, value: impl Encoder) -> Term<'a> {
    match Atom::from_str(env, key) {
        Ok(key) => map.map_put(key, value).unwrap_or(map),
        Err(_) => map,
    }
}

fn optional<'a>(env: Env<'a>, text: Option<&String>) -> Term<'a> {
    match text {
        Some(text) => binary(env, text.as_bytes()),
        None => atoms::undefined().to_term(env),
    }
}

/// The whole status as a map.
pub(crate) fn encode<'a>(env: Env<'a>, engine: &Engine) -> Term<'a> {
    let config = engine.config();
    let links = engine.links();
    let data: Vec<&LinkStatus> = links.iter().filter(|it| it.kind == Kind::Data).collect();
    let (inflight, inflight_bytes) = engine.load().current();
    let warnings: Vec<Term<'a>> = data
        .iter()
        .flat_map(|link| warnings(env, &link.report.warnings(&config), Some(link)))
        .chain(warnings(env, &engine.warnings(), None))
        .collect();
    let servers: Vec<Term<'a>> = config
        .redis
        .servers
        .iter()
        .map(|server| binary(env, server.to_string().as_bytes()))
        .collect();
    let connections: Vec<Term<'a>> = links.iter().map(|link| connection(env, link)).collect();
    // Connections that are made on demand say nothing about whether the data can be reached.
    let mut wanted = links.iter().filter(|it| it.durability().is_none());
    let connected = !data.is_empty() && wanted.all(|link| link.state.is_ok());
    let masters: Vec<Term<'a>> = data.iter().map(|link| server(env, link)).collect();
    let map = Term::map_new(env);
    let map = put(
        env,
        map,
        "topology",
        topology(env, config.redis.topology.as_str()),
    );
    let map = put(env, map, "servers", servers);
    let map = put(env, map, "connected", connected);
    let map = put(env, map, "connections", connections);
    let first = masters.first().copied();
    let map = put(env, map, "server", first.unwrap_or(Term::map_new(env)));
    let map = put(env, map, "masters", masters);
    let map = put(env, map, "warnings", warnings);
    let map = put(env, map, "uptime_ms", engine.uptime().as_millis() as u64);
    let map = put(env, map, "inflight", inflight as u64);
    let map = put(env, map, "inflight_bytes", inflight_bytes as u64);
    let map = put(env, map, "new_atoms_left", codec::atoms_left());
    let map = put(env, map, "routes", routes(env, engine));
    let map = put(env, map, "counters", counters(env, engine));
    put(env, map, "latency_us", latencies(env, engine))
}

fn topology<'a>(env: Env<'a>, name: &str) -> Term<'a> {
    Atom::from_str(env, name).map_or_else(|_| binary(env, name.as_bytes()), |it| it.to_term(env))
}

fn connection<'a>(env: Env<'a>, link: &LinkStatus) -> Term<'a> {
    let state = match &link.state {
        Ok(()) => atoms::connected().to_term(env),
        Err(why) => encode_why(env, why),
    };
    let name = topology(env, link.kind.name());
    let map = put(env, Term::map_new(env), "name", name);
    let map = match link.durability() {
        Some(level) => put(env, map, "durability", text(env, &level.to_string())),
        None => map,
    };
    let map = put(env, map, "server", address(env, link));
    let map = put(env, map, "state", state);
    let since = link.since.elapsed().as_millis() as u64;
    put(env, map, "since_ms", since)
}

fn address<'a>(env: Env<'a>, link: &LinkStatus) -> Term<'a> {
    let address = link.server.as_ref().map(ToString::to_string);
    optional(env, address.as_ref())
}

/// With the address of the server that they are about, if it is one.
fn warnings<'a>(env: Env<'a>, warnings: &[Warning], link: Option<&LinkStatus>) -> Vec<Term<'a>> {
    let server = optional(
        env,
        link.and_then(|it| it.server.as_ref())
            .map(ToString::to_string)
            .as_ref(),
    );
    let term = |warning: &Warning| {
        let kind = topology(env, warning.kind.as_str());
        let map = put(env, Term::map_new(env), "kind", kind);
        let map = put(env, map, "server", server);
        put(env, map, "text", text(env, &warning.text))
    };
    warnings.iter().map(term).collect()
}

fn text<'a>(env: Env<'a>, text: &str) -> Term<'a> {
    binary(env, text.as_bytes())
}

fn server<'a>(env: Env<'a>, link: &LinkStatus) -> Term<'a> {
    let report = &link.report;
    let version = optional(env, report.version.as_ref());
    let policy = optional(env, report.maxmemory_policy.as_ref());
    let map = put(env, Term::map_new(env), "address", address(env, link));
    let map = put(env, map, "version", version);
    let map = put(env, map, "role", optional(env, report.role.as_ref()));
    let map = put(env, map, "maxmemory_policy", policy);
    let map = put(env, map, "maxmemory", report.maxmemory);
    let map = match report.replicas {
        Some(replicas) => put(env, map, "replicas", replicas),
        None => map,
    };
    match report.replica_lag {
        Some(bytes) => put(env, map, "replica_lag_bytes", bytes),
        None => map,
    }
}

/// The routes in memory, shard by shard; an empty list until they are used. Without their number and size where they are
/// being changed this very moment.
fn routes<'a>(env: Env<'a>, engine: &Engine) -> Vec<Term<'a>> {
    let shards = engine.context().replica.status();
    let row = |(shard, status): (usize, &ShardStatus)| {
        let map = put(env, Term::map_new(env), "shard", shard as u64);
        let map = match status.version {
            Some(version) => put(env, map, "version", version),
            None => put(env, map, "version", atoms::undefined()),
        };
        let map = put(env, map, "in_sync", status.in_sync);
        let map = match status.age {
            Some(age) => put(env, map, "age_ms", age.as_millis() as u64),
            None => put(env, map, "age_ms", atoms::undefined()),
        };
        let map = put(env, map, "leased", status.leased);
        match &status.sizes {
            Some(sizes) => {
                let map = put(env, map, "routes", sizes.routes as u64);
                let map = put(env, map, "subscriptions", sizes.subscriptions as u64);
                put(env, map, "memory", sizes.memory as u64)
            }
            None => map,
        }
    };
    shards.iter().enumerate().map(row).collect()
}

fn counters<'a>(env: Env<'a>, engine: &Engine) -> Term<'a> {
    let metrics = &engine.context().metrics;
    Counter::ALL
        .iter()
        .fold(Term::map_new(env), |map, (counter, name, _)| {
            put(env, map, name, metrics.get(*counter))
        })
}

/// Only of the operations that were used.
fn latencies<'a>(env: Env<'a>, engine: &Engine) -> Term<'a> {
    let metrics = &engine.context().metrics;
    OperationKind::ALL
        .iter()
        .map(|(kind, name, _)| (name, metrics.latency(*kind)))
        .filter(|(_, latency)| latency.count > 0)
        .fold(Term::map_new(env), |map, (name, latency)| {
            let row = put(env, Term::map_new(env), "count", latency.count);
            let row = put(env, row, "p50", latency.p50);
            let row = put(env, row, "p99", latency.p99);
            let row = put(env, row, "p999", latency.p999);
            put(env, map, name, row)
        })
}
