-module(emqx).

-export([get_config/2, running_nodes/0, is_running/0]).

get_config([durable_sessions, enable], _Default) -> false;
get_config(_Path, Default) -> Default.

running_nodes() -> [node()].

is_running() -> is_pid(whereis(emqx_listener)).
