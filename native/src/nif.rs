//! The NIFs of the bridge. None of them waits for Redis, and none may hold a scheduler for long: what is
//! large is handed back to be done again on a dirty one.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use emqx_redis_core::config::{Config, ConfigError};
use emqx_redis_core::engine::Engine;
use emqx_redis_core::error::Error;
use emqx_redis_core::replica::Own;
use emqx_redis_core::request::Request;
use rustler::types::tuple::get_tuple;
use rustler::{Atom, Encoder, Env, LocalPid, NifResult, OwnedEnv, Term};

use crate::error_term::encode_error;
use crate::reply::Caller;
use crate::request::{self, Refusal};
use crate::{atoms, codec, config_term, log, status};

/// A request that takes more bytes than that is encoded on a dirty scheduler.
const SCHEDULER_BUDGET: usize = 32 * 1024;
/// How long `infinity` is.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often the engine looks whether its owner lives.
const OWNER_CHECK: Duration = Duration::from_millis(500);

/// The one engine of this VM. It survives a reload of the module, as the library stays mapped.
static ENGINE: RwLock<Option<Arc<Engine>>> = RwLock::new(None);
/// Starting and stopping are one at a time.
static LIFECYCLE: Mutex<()> = Mutex::new(());

/// What this node adds again where Redis has lost it. It is kept where an engine fails, and not where it is stopped.
static OWN: RwLock<Option<Arc<Own>>> = RwLock::new(None);

fn own() -> Arc<Own> {
    let mut own = OWN.write().unwrap_or_else(PoisonError::into_inner);
    own.get_or_insert_with(Arc::default).clone()
}

/// Calls it while nobody starts or stops.
pub(crate) fn with_engine<T>(use_it: impl FnOnce(Option<&Engine>) -> T) -> T {
    let engine = ENGINE.read().unwrap_or_else(PoisonError::into_inner);
    use_it(engine.as_deref())
}

pub(crate) fn engine() -> Option<Arc<Engine>> {
    ENGINE
        .read()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// `start(Owner, LogPid, Node, Source)`: starts the engine for the process `Owner`. `Source` is
/// `{map, Map}`, `{pool, Map}` or `{file, Path}`. The engine stops by itself when `Owner` is gone; the
/// last that is heard of it is `emqx_redis_stopped`, sent to `Owner`.
#[rustler::nif(schedule = "DirtyCpu")]
fn start<'a>(
    env: Env<'a>,
    owner: LocalPid,
    logger: LocalPid,
    node: rustler::Binary<'a>,
    source: Term<'a>,
) -> NifResult<Term<'a>> {
    let config = match read_config(source)? {
        Ok(config) => config,
        Err(errors) => return Ok(config_term::encode_errors(env, &errors)),
    };
    if !config.enable {
        return Ok(atoms::disabled().to_term(env));
    }
    let _one_at_a_time = LIFECYCLE.lock().unwrap_or_else(PoisonError::into_inner);
    // An owner that was killed could not stop its engine.
    stop_and_join();
    log::forward_to(logger);
    let watch_owner = async move {
        loop {
            log::forward_for(OWNER_CHECK).await;
            if !OwnedEnv::new().run(|env| owner.is_alive(env)) {
                if let Some(engine) = engine() {
                    engine.stop();
                }
            }
        }
    };
    let say_stopped = move || {
        log::flush();
        let _ = OwnedEnv::new().send_and_clear(&owner, |_| atoms::emqx_redis_stopped());
    };
    match Engine::start(config, node.to_vec(), own(), watch_owner, say_stopped) {
        Ok(engine) => {
            *ENGINE.write().unwrap_or_else(PoisonError::into_inner) = Some(engine);
            Ok(atoms::ok().to_term(env))
        }
        Err(error) => {
            let error = Error::Internal(error.to_string());
            Ok((atoms::error(), encode_error(env, &error)).encode(env))
        }
    }
}

/// `reconfigure(Source)`: applies a changed configuration to the running engine.
#[rustler::nif(schedule = "DirtyCpu")]
fn reconfigure<'a>(env: Env<'a>, source: Term<'a>) -> NifResult<Term<'a>> {
    let config = match read_config(source)? {
        Ok(config) => config,
        Err(errors) => return Ok(config_term::encode_errors(env, &errors)),
    };
    let Some(engine) = engine() else {
        return Ok((atoms::error(), atoms::stopped()).encode(env));
    };
    Ok(match engine.reconfigure(config) {
        Ok(()) => atoms::ok().to_term(env),
        Err(path) => config_term::encode_unchangeable(env, path),
    })
}

/// `validate(Source)`: the configuration as it would be in force, without starting anything.
#[rustler::nif(schedule = "DirtyCpu")]
fn validate<'a>(env: Env<'a>, source: Term<'a>) -> NifResult<Term<'a>> {
    Ok(match read_config(source)? {
        Ok(config) => {
            let tree = config_term::encode(env, &config.redacted());
            (atoms::ok(), tree).encode(env)
        }
        Err(errors) => config_term::encode_errors(env, &errors),
    })
}

fn read_config(source: Term<'_>) -> NifResult<Result<Config, Vec<ConfigError>>> {
    let (kind, value): (Atom, Term<'_>) = source.decode()?;
    let name = kind.to_term(value.get_env()).atom_to_string()?;
    let config = match name.as_str() {
        "file" => {
            let path: rustler::Binary<'_> = value.decode()?;
            Config::load_file(String::from_utf8_lossy(&path).as_ref())
        }
        "pool" => Config::from_pool_value(&config_term::decode(value)),
        "map" => Config::from_value(&config_term::decode(value)),
        _ => return Err(rustler::Error::BadArg),
    };
    Ok(config)
}

/// `stop()`: tells the engine to answer everything and to end; `emqx_redis_stopped` follows.
#[rustler::nif]
fn stop() -> Atom {
    own().clear();
    if let Some(engine) = engine() {
        engine.stop();
    }
    atoms::ok()
}

/// `join()`: awaits the end of an engine that was told to stop. Its thread is gone afterwards.
#[rustler::nif(schedule = "DirtyIo")]
fn join() -> Atom {
    let _one_at_a_time = LIFECYCLE.lock().unwrap_or_else(PoisonError::into_inner);
    stop_and_join();
    atoms::ok()
}

fn stop_and_join() {
    let engine = ENGINE
        .write()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(engine) = engine {
        engine.stop();
        engine.join();
    }
}

/// `submit(Ref, Timeout | {Timeout, Durability}, Operation)`: leaves a request. Answers its number, and then one message
/// `{emqx_redis_reply, Ref, Result}` is certain to come; or `over_budget`: call `submit_dirty`; or
/// `{error, Reason}`, and no message comes.
#[rustler::nif]
fn submit<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    timeout: Term<'a>,
    operation: Term<'a>,
) -> NifResult<Term<'a>> {
    let engine = ENGINE.read().unwrap_or_else(PoisonError::into_inner);
    let engine = engine.as_deref();
    submit_within(env, engine, reference, timeout, operation, SCHEDULER_BUDGET)
}

/// `submit_dirty(Ref, Timeout, Operation)`: the same for what is large.
#[rustler::nif(schedule = "DirtyCpu")]
fn submit_dirty<'a>(
    env: Env<'a>,
    reference: Term<'a>,
    timeout: Term<'a>,
    operation: Term<'a>,
) -> NifResult<Term<'a>> {
    // This takes a while: who starts or stops, and so whoever submits then, must not wait for it.
    let engine = engine();
    let engine = engine.as_deref();
    submit_within(env, engine, reference, timeout, operation, codec::MAX_BYTES)
}

fn submit_within<'a>(
    env: Env<'a>,
    engine: Option<&Engine>,
    reference: Term<'a>,
    timeout: Term<'a>,
    operation: Term<'a>,
    budget: usize,
) -> NifResult<Term<'a>> {
    let Some(engine) = engine else {
        return Ok((atoms::error(), atoms::stopped()).encode(env));
    };
    // Few calls have a level of durability of their own.
    let (timeout, durability) = match get_tuple(timeout).as_deref() {
        Ok([timeout, level]) => (*timeout, Some(request::durability(*level)?)),
        _ => (timeout, None),
    };
    let timeout = decode_timeout(engine, timeout)?;
    let operation = match request::decode(operation, budget) {
        Ok(operation) => operation,
        Err(Refusal::OverBudget) => return Ok(atoms::over_budget().to_term(env)),
        Err(Refusal::BadArgument) => return Err(rustler::Error::BadArg),
        Err(Refusal::Because(reason)) => return Ok((atoms::error(), reason).encode(env)),
    };
    let caller = Caller::new(env.pid(), reference);
    let request = Request::new(operation, Instant::now() + timeout, Box::new(caller))
        .with_durability(durability);
    Ok(match engine.submit(request) {
        Ok(number) => number.encode(env),
        Err(error) => (atoms::error(), encode_error(env, &error)).encode(env),
    })
}

/// Milliseconds, `infinity`, or `undefined` for what the configuration says.
pub(crate) fn decode_timeout(engine: &Engine, timeout: Term<'_>) -> NifResult<Duration> {
    let env = timeout.get_env();
    match timeout.decode::<u64>() {
        Ok(millis) => Ok(Duration::from_millis(millis).min(FOREVER)),
        Err(_) if timeout == atoms::infinity().to_term(env) => Ok(FOREVER),
        Err(_) if timeout == atoms::undefined().to_term(env) => Ok(engine.request_timeout()),
        Err(error) => Err(error),
    }
}

/// `cancel(Number)`: has the request answered at once, unless it is answered already.
#[rustler::nif]
fn cancel(number: u64) -> Atom {
    if let Some(engine) = engine() {
        engine.cancel(number);
    }
    atoms::ok()
}

/// `status()`: what the engine does and has done, or `stopped`.
#[rustler::nif]
fn status<'a>(env: Env<'a>) -> Term<'a> {
    match engine() {
        Some(engine) => status::encode(env, &engine),
        None => atoms::stopped().to_term(env),
    }
}

/// `config()`: the configuration in force, defaults included and secrets hidden, or `stopped`.
#[rustler::nif]
fn config<'a>(env: Env<'a>) -> Term<'a> {
    match engine() {
        Some(engine) => config_term::encode(env, &engine.config().redacted()),
        None => atoms::stopped().to_term(env),
    }
}
