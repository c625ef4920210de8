//! The NIF library `emqx_redis_nif`.
