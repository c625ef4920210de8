%% The ACL rule of the README suffices for everything that the library does, and is the least: without
%% any of its commands something fails.
-module(emqx_redis_acl_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_testcase/2, end_per_testcase/2]).
-export([the_rule_suffices/1, nothing_in_the_rule_is_idle/1]).

all() -> [the_rule_suffices, nothing_in_the_rule_is_idle].

init_per_testcase(_, Config) ->
    Server = emqx_redis_test_server:start(#{}),
    [{server, Server} | Config].

end_per_testcase(_, Config) ->
    _ = emqx_redis_storage:stop(),
    emqx_redis_test_server:stop(?config(server, Config)).

the_rule_suffices(Config) ->
    Server = ?config(server, Config),
    set_user(Server, ["~test:*" | permissions(Config)]),
    start(Server),
    ?assertEqual([], use_everything(Server)).

%% What Redis counts as called, over all that the library does, is what the rule allows.
nothing_in_the_rule_is_idle(Config) ->
    Server = ?config(server, Config),
    set_user(Server, ["~test:*" | permissions(Config)]),
    _ = emqx_redis_test_server:cli(Server, ["CONFIG", "RESETSTAT"]),
    start(Server, 1),
    ok = emqx_redis_storage:stop(),
    start(Server),
    [] = use_everything(Server),
    Info = emqx_redis_test_server:cli(Server, ["INFO", "commandstats"]),
    {match, Called} = re:run(Info, "cmdstat_([a-z|]+):", [global, {capture, [1], list}]),
    Allowed = [Name || "+" ++ Name <- permissions(Config)],
    ?assertEqual([], Allowed -- lists:append(Called)).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

%% `+command' and `-@all', as the README has them.
permissions(Config) ->
    Readme = filename:join(project(?config(data_dir, Config)), "README.md"),
    {ok, Text} = file:read_file(Readme),
    {match, [Rule]} = re:run(Text, "user emqx on >PASSWORD ~\\* (.*)", [{capture, [1], list}]),
    string:lexemes(Rule, " ").

project(Folder) ->
    case filelib:is_file(filename:join(Folder, "README.md")) of
        true -> Folder;
        false -> project(filename:dirname(Folder))
    end.

set_user(Server, Rules) ->
    <<"OK">> = emqx_redis_test_server:cli(Server, ["ACL", "SETUSER", "emqx", "on", ">secret" | Rules]).

start(Server) -> start(Server, 0).

start(Server, Database) ->
    #{redis := Redis} = Config = emqx_redis_test_server:config(Server),
    ok = emqx_redis_storage:start(Config#{
        redis := Redis#{username => <<"emqx">>, password => <<"secret">>, database => Database},
        key_prefix => <<"test:">>
    }),
    await_connects(2).

await_connects(Count) ->
    emqx_redis_test_helpers:wait_until(fun() ->
        #{connected := Connected, counters := Counters} = emqx_redis_storage:status(),
        Connected andalso maps:get(connects, Counters) >= Count
    end).

%% Does everything there is to do, and answers what went wrong.
use_everything(Server) ->
    Id = <<"m1">>,
    Message = #{id => Id, timestamp => 1},
    Repaired = fun() ->
        _ = emqx_redis_test_server:cli(Server, ["SET", "test:msgq:broken", "x"]),
        {error, {partial, _}} = emqx_redis_message:store_message(<<"broken">>, Message),
        emqx_redis_message:store_message(<<"broken">>, Message)
    end,
    Lost = fun() ->
        ok = emqx_redis_message:store_message(<<"lost">>, Message),
        _ = emqx_redis_test_server:cli(Server, ["DEL", "test:msg:lost:m1"]),
        emqx_redis_message:get_messages(<<"lost">>, 0, 10)
    end,
    Replaced = fun() ->
        ok = emqx_redis_message:store_message(<<"replaced">>, Message),
        _ = emqx_redis_test_server:cli(Server, ["DEL", "test:msg:replaced:m1"]),
        _ = emqx_redis_test_server:cli(Server, ["HSET", "test:msg:replaced:m1", "a", "b"]),
        {error, {partial, _}} = emqx_redis_message:get_messages(<<"replaced">>, 0, 10),
        emqx_redis_message:get_messages(<<"replaced">>, 0, 10)
    end,
    Durable = fun() ->
        Options = #{epoch => 2, durability => {replicas, 1}, timeout => 300},
        {error, {not_durable, 0}} = emqx_redis_session:save_session(<<"c">>, data, Options),
        ok
    end,
    Reconnected = fun() ->
        _ = emqx_redis_test_server:cli(Server, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
        ok = await_connects(4)
    end,
    Steps = [
        Reconnected,
        fun() -> emqx_redis_session:save_session(<<"c">>, data) end,
        fun() -> emqx_redis_session:save_session(<<"c">>, data, #{ttl => infinity}) end,
        fun() -> emqx_redis_session:load_session(<<"c">>) end,
        fun() -> emqx_redis_session:claim_session(<<"c">>, #{}) end,
        fun() -> emqx_redis_session:save_session(<<"c">>, data, #{epoch => 1, ttl => 1}) end,
        fun() -> emqx_redis_session:claim_session(<<"c">>, #{}) end,
        fun() -> emqx_redis_session:list_sessions(10, 0) end,
        fun() -> emqx_redis_session:count_sessions() end,
        fun() -> emqx_redis_message:store_message(<<"c">>, Message) end,
        fun() -> emqx_redis_message:store_message(<<"c">>, Message#{timestamp := 2}) end,
        fun() -> emqx_redis_message:store_message(<<"c">>, Message, #{max_queue => 1}) end,
        fun() -> emqx_redis_message:store_message_for([<<"d">>, <<"e">>], Message, #{ttl => 1}) end,
        fun() -> emqx_redis_message:get_messages(<<"c">>, 0, 10) end,
        fun() -> emqx_redis_message:ack_message(<<"c">>, Id, #{epoch => 2}) end,
        fun() -> emqx_redis_message:delete_messages(<<"c">>, #{epoch => 2}) end,
        fun() -> emqx_redis_router:add_route(<<"a/+">>, node()) end,
        fun() -> emqx_redis_router:add_route(<<"a/b">>, node()) end,
        fun() -> emqx_redis_router:add_route(<<"b/+">>, node()) end,
        fun() -> emqx_redis_router:match_routes(<<"a/b">>) end,
        fun() -> emqx_redis_router:topics() end,
        fun() -> emqx_redis_router:delete_route(<<"a/+">>, node()) end,
        fun() -> emqx_redis_router:delete_route(<<"a/b">>, node()) end,
        Repaired,
        Lost,
        Replaced,
        Durable,
        %% Long enough for what expires to be swept.
        fun() -> timer:sleep(2500) end,
        fun() -> emqx_redis_session:delete_session(<<"c">>, #{epoch => 2}) end
    ],
    [{Number, Result} || {Number, Step} <- lists:enumerate(Steps), Result <- [Step()], is_error(Result)].

is_error(ok) -> false;
is_error({ok, _}) -> false;
is_error(_) -> true.
