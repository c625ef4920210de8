%% `emqx ctl redis_storage ...'
-module(emqx_redis_cli).

-export([run/1]).

-spec run([string()]) -> ok.
run(_) -> io:format("~p~n", [emqx_redis_storage:status()]).
