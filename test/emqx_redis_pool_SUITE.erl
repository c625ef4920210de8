%% Commands of one's own, and the storage outside the application.
-module(emqx_redis_pool_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(POOL, emqx_redis_pool).
-define(STORAGE, emqx_redis_test_storage).
-define(SERVER, emqx_redis_test_server).

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [{group, single}, {group, cluster}].

groups() ->
    %% How the storage is started is the same for a cluster.
    [{single, cases()}, {cluster, cases() -- [outside_the_application]}].

cases() ->
    [
        every_kind_of_reply,
        every_kind_of_argument,
        errors_are_tuples,
        commands_that_would_harm_others,
        a_pipeline_answers_each,
        large_values,
        a_timeout_leaves_nothing_behind,
        asynchronous_forms,
        misuse_raises_badarg,
        outside_the_application
    ].

init_per_group(Topology, Config) -> ?STORAGE:start([{topology, Topology} | Config]).

end_per_group(_Topology, Config) -> ?STORAGE:stop(Config).

init_per_testcase(_Case, Config) -> ?STORAGE:reset(Config).

end_per_testcase(_Case, _Config) ->
    [] = emqx_redis_test_helpers:stray_messages(20),
    ok.

every_kind_of_reply(_Config) ->
    ?assertEqual({ok, <<"OK">>}, ?POOL:query(["SET", "k", <<0, 1, "\r\n">>])),
    ?assertEqual({ok, <<0, 1, "\r\n">>}, ?POOL:query(["GET", "k"])),
    ?assertEqual({ok, undefined}, ?POOL:query(["GET", "none"])),
    ?assertEqual({ok, -5}, ?POOL:query(["INCRBY", "n", -5])),
    ?assertEqual({ok, []}, ?POOL:query(["LRANGE", "none", 0, -1])),
    ?assertEqual({ok, <<>>}, ?POOL:query(["ECHO", ""])),
    Nested = "return {1, {redis.call('GET', 'n')}, false, {}, {{{'x'}}}}",
    ?assertEqual({ok, [1, [<<"-5">>], undefined, [], [[[<<"x">>]]]]}, ?POOL:query(["EVAL", Nested, 1, "n"])).

every_kind_of_argument(_Config) ->
    ?assertEqual({ok, 2}, ?POOL:query(['RPUSH', [<<"l">>], ["io", [<<"data">>, $!]], 12])),
    ?assertEqual({ok, [<<"iodata!">>, <<"12">>]}, ?POOL:query([<<"lrange">>, l, 0, -1])).

errors_are_tuples(_Config) ->
    {ok, _} = ?POOL:query(["SET", "s", "text"]),
    ?assertMatch({error, {redis, <<"WRONGTYPE">>, _}}, ?POOL:query(["LPUSH", "s", 1])),
    ?assertMatch({error, {redis, <<"ERR">>, <<"unknown command", _/binary>>}}, ?POOL:query(["NOSUCH"])),
    ?assertMatch({error, {redis, <<"ERR">>, _}}, ?POOL:query(["INCR", "s"])).

commands_that_would_harm_others(_Config) ->
    [
        begin
            ?assertMatch({error, {not_allowed, Name}} when is_binary(Name), ?POOL:query(Command), Command),
            ?assertMatch({error, {not_allowed, _}}, ?POOL:pipeline([["PING"], Command]), Command)
        end
     || Command <- [
            ["SELECT", 1], ["subscribe", "c"], ["BLPOP", "k", 0], ["Watch", "k"], ["AUTH", "x"], ["QUIT"],
            ["MONITOR"], ["XREAD", "BLOCK", 0, "STREAMS", "s", "$"], ["CLIENT", "REPLY", "OFF"], ["EXEC"],
            ["HELLO", 3], ["RESET"], ["WAIT", 1, 0], ["WAITAOF", 1, 0, 0], ["CLIENT", "PAUSE", 1000]
        ]
    ],
    ?assertEqual({ok, <<"PONG">>}, ?POOL:query(["PING"])).

a_pipeline_answers_each(_Config) ->
    ?assertEqual({ok, []}, ?POOL:pipeline([])),
    {ok, Results} = ?POOL:pipeline([["SET", "k", 1], ["LPUSH", "k", 1], ["GET", "k"], ["GET", "none"]]),
    [{ok, <<"OK">>}, {error, {redis, <<"WRONGTYPE">>, _}}, {ok, <<"1">>}, {ok, undefined}] = Results,
    ?assertEqual(
        {ok, [{ok, <<"OK">>}, {ok, <<"QUEUED">>}, {ok, <<"QUEUED">>}, {ok, [2, 3]}]},
        ?POOL:pipeline([["MULTI"], ["INCR", "k"], ["INCR", "k"], ["EXEC"]])
    ),
    {ok, Many} = ?POOL:pipeline([["INCR", "n"] || _ <- lists:seq(1, 10000)]),
    ?assertEqual([{ok, N} || N <- lists:seq(1, 10000)], Many),
    ?assertMatch({error, {not_allowed, _}}, ?POOL:pipeline([["MULTI"], ["PING"]])).

large_values(_Config) ->
    Value = crypto:strong_rand_bytes(1 bsl 24),
    ?assertEqual({ok, <<"OK">>}, ?POOL:query(["SET", "k", Value])),
    {ok, Read} = ?POOL:query(["GET", "k"]),
    ?assert(Read =:= Value).

a_timeout_leaves_nothing_behind(Config) ->
    ok = ?STORAGE:pause(Config),
    ?assertEqual({error, timeout}, ?POOL:query(["PING"], #{timeout => 50})),
    ?assertEqual({error, timeout}, ?POOL:pipeline([["PING"]], #{timeout => 0})),
    ok = ?STORAGE:resume(Config),
    ?assertEqual({ok, <<"PONG">>}, ?POOL:query(["PING"])),
    ?assertEqual([], emqx_redis_test_helpers:stray_messages(100)).

asynchronous_forms(_Config) ->
    Requests = [?POOL:query_async(["INCR", "n"], #{timeout => 5000}) || _ <- lists:seq(1, 1000)],
    Replies = [emqx_redis_storage:receive_response(R, 5000) || R <- Requests],
    ?assertEqual([{reply, {ok, N}} || N <- lists:seq(1, 1000)], Replies),
    Request = ?POOL:pipeline_async([["GET", "n"]]),
    receive
        Message ->
            ?assertEqual(no_reply, emqx_redis_storage:check_response(other, Request)),
            ?assertEqual(no_reply, emqx_redis_storage:check_response(Message, hd(Requests))),
            Reply = emqx_redis_storage:check_response(Message, Request),
            ?assertEqual({reply, {ok, [{ok, <<"1000">>}]}}, Reply)
    end,
    Late = ?POOL:query_async(["GET", "n"]),
    timer:sleep(100),
    ?assertEqual({reply, {ok, <<"1000">>}}, emqx_redis_storage:cancel(Late)).

misuse_raises_badarg(_Config) ->
    [
        ?assertError(badarg, apply(?POOL, Function, Arguments), {Function, Arguments})
     || {Name, Arguments} <- [
            {query, [[]]},
            {query, ["PING"]},
            {query, [<<"PING">>]},
            {query, [[{a, b}]]},
            {query, [["GET", ["Ω"]]]},
            {query, [["PING" | x]]},
            {query, [["PING"], #{ttl => 1}]},
            {query, [["PING"], 5000]},
            {pipeline, [["PING"]]},
            {pipeline, [[["PING"] | x]]},
            {pipeline, [[["PING"], []]]},
            {pipeline, [x]}
        ],
        Function <- [Name, list_to_atom(atom_to_list(Name) ++ "_async")]
    ],
    ?assertError(badarg, ?POOL:start_link([])).

outside_the_application(Config) ->
    ok = emqx_redis_storage:stop(),
    ?assertEqual({error, stopped}, ?POOL:query(["PING"])),
    Request = ?POOL:query_async(["PING"]),
    ?assertEqual({reply, {error, stopped}}, emqx_redis_storage:receive_response(Request, 1000)),
    ?assertEqual(#{running => false}, emqx_redis_storage:status()),
    ?assertEqual(#{}, emqx_redis_storage:config()),
    Servers = ?SERVER:servers(proplists:get_value(server, Config)),
    [
        begin
            {ok, Pid} = ?POOL:start_link(Map),
            ?assert(lists:member(Pid, element(2, process_info(self(), links)))),
            ?assertEqual({ok, <<"PONG">>}, ?POOL:query(["PING"])),
            ?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, 1)),
            ?assertEqual(ok, ?POOL:stop()),
            ?assertEqual({error, stopped}, ?POOL:query(["PING"]))
        end
     || Map <- [
            #{redis_type => single, servers => Servers},
            #{type => <<"single">>, servers => Servers, pool_size => 1},
            #{<<"type">> => <<"single">>, <<"servers">> => Servers},
            #{redis => #{servers => Servers}, persistence => #{session_ttl => 60}}
        ]
    ],
    {error, {invalid_config, [#{path := _, found := _, expected := _}]}} =
        ?POOL:start_link(#{servers => Servers, pool_size => many}),
    ok = emqx_redis_storage:start(?SERVER:config(proplists:get_value(server, Config))),
    ?STORAGE:wait_connected().
