//! The NIF library `emqx_redis_nif`.
//!
//! What calls into the VM is left out of the unit tests: a test binary cannot be linked with it.
#![cfg_attr(test, allow(dead_code, unused_imports))]

mod codec;
#[cfg(not(test))]
mod codec_nif;

#[cfg(not(test))]
rustler::init!("emqx_redis_nif");
