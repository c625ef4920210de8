//! The NIF library `emqx_redis_nif`: terms in, messages out.
//!
//! A call's way: [`nif`] is on the scheduler and must be quick; [`request`] makes an operation of
//! the term; the engine of `emqx_redis_core` does the work on its own thread; [`reply`] builds the
//! answer there and sends it to the caller.
//!
//! What calls into the VM is left out of the unit tests: a test binary cannot be linked with it.
#![cfg_attr(test, allow(dead_code, unused_imports))]

mod codec;

#[cfg(not(test))]
mod atoms;
#[cfg(not(test))]
mod codec_nif;
#[cfg(not(test))]
mod config_term;
#[cfg(not(test))]
mod error_term;
#[cfg(not(test))]
mod log;
#[cfg(not(test))]
mod nif;
#[cfg(not(test))]
mod reply;
#[cfg(not(test))]
mod request;
#[cfg(not(test))]
mod routes;
#[cfg(not(test))]
mod status;

#[cfg(not(test))]
rustler::init!("emqx_redis_nif");
