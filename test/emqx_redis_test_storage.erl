%% A running storage on a private Redis, for the suites of the public API.
-module(emqx_redis_test_storage).

-export([start/1, start/2, stop/1, reset/1]).
-export([cli/2, keys/1, wait_connected/0, adversarial_ids/0]).

-define(SERVER, emqx_redis_test_server).

%% For init_per_suite: Redis and the storage on it.
-spec start(list()) -> list().
start(Config) -> start(Config, #{}).

-spec start(list(), map()) -> list().
start(Config, Settings) ->
    Server = ?SERVER:start(),
    ok = emqx_redis_storage:start(maps:merge(?SERVER:config(Server), Settings)),
    wait_connected(),
    [{server, Server} | Config].

%% For end_per_suite.
-spec stop(list()) -> ok.
stop(Config) ->
    ok = emqx_redis_storage:stop(),
    ?SERVER:stop(proplists:get_value(server, Config)).

%% For init_per_testcase: an empty Redis, but for what the storage wrote when it connected.
-spec reset(list()) -> list().
reset(Config) ->
    Script =
        "for _, key in ipairs(redis.call('KEYS', '*')) do "
        "if key ~= 'meta' then redis.call('DEL', key) end end",
    _ = cli(Config, ["EVAL", Script, 0]),
    Config.

-spec wait_connected() -> ok.
wait_connected() ->
    emqx_redis_test_helpers:wait_until(fun() ->
        maps:get(connected, emqx_redis_storage:status(), false)
    end).

%% What an independent client is answered.
-spec cli(list(), [iodata() | atom() | integer()]) -> emqx_redis_test_client:reply().
cli(Config, Command) ->
    ?SERVER:cli(proplists:get_value(server, Config), Command).

-spec keys(list()) -> [binary()].
keys(Config) ->
    lists:sort(cli(Config, ["KEYS", "*"])).

%% Names that confuse whoever puts keys together carelessly: the second part of one may be the first
%% of another, and every byte that means something to Redis, Lua or our encoding is there.
-spec adversarial_ids() -> [binary()].
adversarial_ids() ->
    [
        <<>>,
        <<"c">>,
        <<"c:1">>,
        <<"c%3A1">>,
        <<"c%253A1">>,
        <<":">>,
        <<"::">>,
        <<"%">>,
        <<"{c}">>,
        <<"}{">>,
        <<"*">>,
        <<"a?[b]">>,
        <<0>>,
        <<"c", 0, "1">>,
        <<"00:1B:44:11:3A:B7">>,
        <<"\r\n">>,
        <<"Größe/Ω"/utf8>>,
        <<0, 58, 255, 37, 123, 10, 13, 125, 128, 7, 42, 92, 34, 39, 254, 58>>,
        <<"sessions">>,
        <<"meta">>
    ].
