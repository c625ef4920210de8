//! The NIF library `emqx_redis_nif`: terms in, messages out.
//!
//! A call's way: [`nif`] is on the scheduler and must be quick; [`request`] makes an operation of
//! the term; the engine of `emqx_redis_core` does the work on its own thread; [`reply`] builds the
//! answer there and sends it to the caller.

mod atoms;
mod codec;
mod codec_nif;
mod config_term;
mod error_term;
mod log;
mod nif;
mod reply;
mod request;
mod status;

rustler::init!("emqx_redis_nif");
