%% What a session, a message and a route take of Redis's memory: `make sizes'.
-module(emqx_redis_sizes).

-export([main/0]).

-define(ITEMS, 20000).

main() ->
    Server = emqx_redis_test_server:start(#{}),
    ok = emqx_redis_storage:start(emqx_redis_test_server:config(Server)),
    io:format("Redis's memory for each item (used_memory over ~b items, jemalloc):~n~n", [?ITEMS]),
    io:format("| item | its own bytes | bytes in Redis | overhead |~n|---|---|---|---|~n"),
    [row(Server, Name, Own, Store) || {Name, Own, Store} <- items()],
    ok = emqx_redis_storage:stop(),
    emqx_redis_test_server:stop(Server).

row(Server, Name, Own, Store) ->
    _ = emqx_redis_test_server:cli(Server, ["FLUSHALL"]),
    Before = emqx_redis_bench_target:used_memory(Server),
    [Store(I) || I <- lists:seq(1, ?ITEMS)],
    Bytes = (emqx_redis_bench_target:used_memory(Server) - Before) / ?ITEMS,
    io:format("| ~ts | ~b | ~b | ~b |~n", [Name, Own, round(Bytes), round(Bytes) - Own]).

%% Name, the bytes that the caller's data takes, and how the I-th is stored.
items() ->
    [
        {"session, 100 B of data", 100 + 16, fun(I) -> session(I, 100) end},
        {"session, 1 KiB of data", 1024 + 16, fun(I) -> session(I, 1024) end},
        {"message of 256 B", 256 + 16, fun(I) -> message(I, 256) end},
        {"message of 1 KiB", 1024 + 16, fun(I) -> message(I, 1024) end},
        {"exact route, 20 B topic", 20, fun(I) -> route(<<"site/dev", (number(I, 12))/binary>>) end},
        {"wildcard route, 22 B filter", 22, fun(I) ->
            route(<<"site/dev", (number(I, 12))/binary, "/+">>)
        end}
    ].

session(I, Size) ->
    %% A binary's encoding is three bytes longer than the binary.
    ok = emqx_redis_session:save_session(client(I), binary:copy(<<"x">>, Size - 3)).

%% 100 messages for each client.
message(I, Size) ->
    Message = #{id => <<I:128>>, payload => <<>>},
    Padding = Size - byte_size(element(2, emqx_redis_nif:encode(Message))) - 2,
    ok = emqx_redis_message:store_message(client(I div 100), Message#{
        payload => binary:copy(<<"x">>, Padding)
    }).

route(Filter) ->
    ok = emqx_redis_router:add_route(Filter, 'emqx@10.0.0.1').

client(I) -> <<"meter-", (number(I, 10))/binary>>.

number(I, Width) -> iolist_to_binary(io_lib:format("~*..0b", [Width, I])).
