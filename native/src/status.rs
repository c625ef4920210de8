//! What `emqx_redis_storage:status/0` tells.

use emqx_redis_core::engine::Engine;
use emqx_redis_core::lane::LaneStatus;
use emqx_redis_core::metrics::{Counter, OperationKind};
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
    let lanes = engine.lanes();
    let (inflight, inflight_bytes) = engine.load().current();
    let warnings: Vec<Term<'a>> = lanes
        .first()
        .map(|lane| lane.report.warnings(&config.persistence))
        .unwrap_or_default()
        .iter()
        .map(|warning| binary(env, warning.as_bytes()))
        .collect();
    let servers: Vec<Term<'a>> = config
        .redis
        .servers
        .iter()
        .map(|server| binary(env, server.to_string().as_bytes()))
        .collect();
    let connections: Vec<Term<'a>> = lanes.iter().map(|lane| connection(env, lane)).collect();
    let connected = lanes.iter().all(|lane| lane.state.is_ok());
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
    let map = put(
        env,
        map,
        "server",
        lanes
            .first()
            .map_or(Term::map_new(env), |lane| server(env, lane)),
    );
    let map = put(env, map, "warnings", warnings);
    let map = put(env, map, "uptime_ms", engine.uptime().as_millis() as u64);
    let map = put(env, map, "inflight", inflight as u64);
    let map = put(env, map, "inflight_bytes", inflight_bytes as u64);
    let map = put(env, map, "new_atoms_left", codec::atoms_left());
    let map = put(env, map, "counters", counters(env, engine));
    put(env, map, "latency_us", latencies(env, engine))
}

fn topology<'a>(env: Env<'a>, name: &str) -> Term<'a> {
    Atom::from_str(env, name).map_or_else(|_| binary(env, name.as_bytes()), |it| it.to_term(env))
}

fn connection<'a>(env: Env<'a>, lane: &LaneStatus) -> Term<'a> {
    let state = match &lane.state {
        Ok(()) => atoms::connected().to_term(env),
        Err(why) => encode_why(env, why),
    };
    let map = put(env, Term::map_new(env), "name", topology(env, lane.name));
    let map = put(env, map, "state", state);
    put(
        env,
        map,
        "since_ms",
        lane.since.elapsed().as_millis() as u64,
    )
}

fn server<'a>(env: Env<'a>, lane: &LaneStatus) -> Term<'a> {
    let report = &lane.report;
    let map = put(
        env,
        Term::map_new(env),
        "version",
        optional(env, report.version.as_ref()),
    );
    let map = put(env, map, "role", optional(env, report.role.as_ref()));
    let policy = optional(env, report.maxmemory_policy.as_ref());
    let map = put(env, map, "maxmemory_policy", policy);
    put(env, map, "maxmemory", report.maxmemory)
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
