//! The NIF library `emqx_redis_nif`.

mod codec;
mod codec_nif;

rustler::init!("emqx_redis_nif");
