//! Matching in memory: the answer is there when the NIF returns.

use std::time::Instant;

use bytes::Bytes;
use emqx_redis_core::engine::Engine;
use emqx_redis_core::replica::{Errand, NoAnswer};
use emqx_redis_core::route_scripts::Space;
use emqx_redis_core::table::Found;
use emqx_redis_core::topic::validate_name;
use rustler::types::tuple::get_tuple;
use rustler::{Atom, Binary, Encoder, Env, NifResult, Term};

use crate::codec::{self, make_atom};
use crate::error_term::binary;
use crate::nif::{decode_timeout, engine, with_engine};
use crate::reply::Caller;
use crate::{atoms, request};

/// Steps of a search, see `Table::find`, that take a scheduler a tenth of a millisecond or so.
const STEPS: usize = 600;

/// `match_in_memory(Space, Name)`: `{ok, Matches}`; or why there is no answer: `out_of_sync`, `busy`, `over_budget` (call
/// `match_in_memory_dirty`), `stopped`, `{error, {invalid_topic, Reason}}`.
#[rustler::nif]
fn match_in_memory<'a>(env: Env<'a>, space: Atom, name: Binary<'a>) -> NifResult<Term<'a>> {
    with_engine(|engine| search(env, engine, space, name, Some(STEPS)))
}

/// `match_in_memory_dirty(Space, Name)`: the same for what takes long.
#[rustler::nif(schedule = "DirtyCpu")]
fn match_in_memory_dirty<'a>(env: Env<'a>, space: Atom, name: Binary<'a>) -> NifResult<Term<'a>> {
    search(env, engine().as_deref(), space, name, None)
}

fn search<'a>(
    env: Env<'a>,
    engine: Option<&Engine>,
    space: Atom,
    name: Binary<'a>,
    steps: Option<usize>,
) -> NifResult<Term<'a>> {
    let Some(engine) = engine else {
        return Ok(atoms::stopped().to_term(env));
    };
    let name = match validate_name(name.as_slice()) {
        Ok(name) => name,
        Err(error) => {
            let reason = request::invalid_topic(env, error).ok_or(rustler::Error::BadArg)?;
            return Ok((atoms::error(), reason).encode(env));
        }
    };
    let space = match space {
        _ if space == atoms::match_routes() => Space::Routes,
        _ => Space::Subscriptions,
    };
    let context = engine.context();
    let mut list = Term::list_new_empty(env);
    let mut is_odd = false;
    let mut last = LastNode::default();
    let visit = |it: Found<'_>| match encode(env, space, it, &mut last) {
        Some(term) => list = list.list_prepend(term),
        None => is_odd = true,
    };
    let (keys, stale) = (&context.keys, context.answers_stale());
    let found = match steps {
        Some(steps) => context.replica.find(keys, space, name, steps, stale, visit),
        None => context
            .replica
            .find_in_slices(keys, space, name, stale, visit),
    };
    Ok(match found {
        // What can't be told here is told by the other way.
        Ok(()) if is_odd => atoms::out_of_sync().to_term(env),
        Ok(()) => (atoms::ok(), list).encode(env),
        Err(NoAnswer::OutOfSync) => atoms::out_of_sync().to_term(env),
        Err(NoAnswer::Busy) => atoms::busy().to_term(env),
        Err(NoAnswer::OverBudget) => atoms::over_budget().to_term(env),
    })
}

/// The node of the result before: mostly it is that of the next one, too.
#[derive(Default)]
struct LastNode<'a> {
    name: Vec<u8>,
    term: Option<Term<'a>>,
}

impl<'a> LastNode<'a> {
    fn encode(&mut self, env: Env<'a>, name: &[u8]) -> Option<Term<'a>> {
        if self.term.is_none() || self.name != name {
            self.term = Some(make_atom(env, name).ok()?);
            self.name.clear();
            self.name.extend_from_slice(name);
        }
        self.term
    }
}

fn encode<'a>(
    env: Env<'a>,
    space: Space,
    found: Found<'_>,
    last: &mut LastNode<'a>,
) -> Option<Term<'a>> {
    let filter = binary(env, found.filter);
    Some(match space {
        Space::Routes => (filter, last.encode(env, found.destination)?).encode(env),
        Space::Subscriptions => {
            let options = codec::decode(env, found.value).ok()?;
            (filter, binary(env, found.destination), options).encode(env)
        }
    })
}

/// `is_leased()`: whether this node's lease is held on all shards.
#[rustler::nif]
fn is_leased() -> bool {
    with_engine(|engine| engine.is_some_and(|it| it.context().replica.is_leased()))
}

/// `errand(Ref, Timeout, Errand)`: does what takes many questions, or none. Answers `ok`, and one message
/// `{emqx_redis_reply, Ref, Result}` is certain to come; or `stopped`, and none comes. An errand is `{sync, Versions, All}`,
/// `{cleanup_routes, Node}`, `{topics, Limit, Cursor}`, or `{filters, Limit, Cursor}` for subscriptions.
#[rustler::nif]
fn errand<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    timeout: Term<'a>,
    what: Term<'a>,
) -> NifResult<Term<'a>> {
    let Some(engine) = engine() else {
        return Ok(atoms::stopped().to_term(env));
    };
    let timeout = decode_timeout(&engine, timeout)?;
    let errand = decode_errand(env, what)?;
    let caller = Box::new(Caller::new(env.pid(), reference));
    engine.run_errand(errand, Instant::now() + timeout, caller);
    Ok(atoms::ok().to_term(env))
}

fn decode_errand<'a>(env: Env<'a>, errand: Term<'a>) -> NifResult<Errand> {
    let parts = get_tuple(errand)?;
    let is = |name: &Term<'a>, atom: Atom| *name == atom.to_term(env);
    match &parts[..] {
        [name, versions, all] if is(name, atoms::sync()) => Ok(Errand::Sync {
            versions: versions.decode()?,
            all: all.decode()?,
        }),
        [name, node] if is(name, atoms::cleanup_routes()) => Ok(Errand::CleanUp {
            node: node.decode::<Binary<'a>>()?.to_vec(),
        }),
        [name, limit, after] if is(name, atoms::topics()) || is(name, atoms::filters()) => {
            let space = match is(name, atoms::topics()) {
                true => Space::Routes,
                false => Space::Subscriptions,
            };
            let after = match *after {
                start if is(&start, atoms::start()) => None,
                after => {
                    let (shard, filter, score): (u16, Binary<'a>, Binary<'a>) = after.decode()?;
                    let copy = |bytes: Binary<'a>| Bytes::copy_from_slice(bytes.as_slice());
                    Some((shard, copy(filter), copy(score)))
                }
            };
            Ok(Errand::Topics {
                space,
                limit: limit.decode()?,
                after,
            })
        }
        _ => Err(rustler::Error::BadArg),
    }
}
