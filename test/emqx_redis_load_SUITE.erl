%% Many processes and several nodes on the same data, and Redis losing scripts or data meanwhile.
-module(emqx_redis_load_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(STORAGE, emqx_redis_test_storage).
-define(HELPERS, emqx_redis_test_helpers).
-define(SERVER, emqx_redis_test_server).

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [
        writers_of_the_same_client,
        scripts_are_flushed_under_load,
        data_is_flushed_under_load,
        nodes_see_each_others_data,
        nodes_are_fenced_from_each_other
    ].

init_per_suite(Config) -> ?STORAGE:start(Config).

end_per_suite(Config) -> ?STORAGE:stop(Config).

init_per_testcase(_Case, Config) -> ?STORAGE:reset(Config).

end_per_testcase(_Case, _Config) ->
    [] = ?HELPERS:stray_messages(20),
    ok.

%% Each writer's messages stay in its order, and none is lost or doubled.
writers_of_the_same_client(Config) ->
    parallel(10, fun(Writer) ->
        Ids = [<<(255 - N), Writer>> || N <- lists:seq(1, 100)],
        Requests = [emqx_redis_message:store_message_async(<<"c">>, #{id => Id, w => Writer}) || Id <- Ids],
        [{reply, ok} = emqx_redis_storage:receive_response(R, 5000) || R <- Requests],
        ok = emqx_redis_session:save_session(<<"c">>, Writer)
    end),
    {ok, Messages} = emqx_redis_message:get_messages(<<"c">>, 0, 100000),
    ?assertEqual(1000, length(Messages)),
    [
        ?assertEqual(lists:seq(254, 155, -1), [N || #{id := <<N, _>>, w := W} <- Messages, W =:= Writer])
     || Writer <- lists:seq(1, 10)
    ],
    parallel(10, fun(Writer) ->
        [ok = emqx_redis_message:ack_message(<<"c">>, Id) || #{id := Id, w := W} <- Messages, W =:= Writer]
    end),
    ok = emqx_redis_session:delete_session(<<"c">>),
    ?assertEqual([<<"meta">>], ?STORAGE:keys(Config)).

scripts_are_flushed_under_load(Config) ->
    disturbed_by(Config, ["SCRIPT", "FLUSH"], fun(Worker) ->
        C = <<Worker:32>>,
        M = fun(N) -> #{id => <<(100 - N)>>, n => N} end,
        Calls = [
            {ok, emqx_redis_session:save_session_async(C, 1)},
            {{ok, 1}, emqx_redis_session:load_session_async(C)},
            {ok, emqx_redis_message:store_messages_async(C, [M(1), M(2)])},
            {ok, emqx_redis_message:store_message_async(C, M(3), #{max_queue => 5})},
            {{ok, [M(1), M(2), M(3)]}, emqx_redis_message:get_messages_async(C, 0, 10)},
            {ok, emqx_redis_message:ack_message_async(C, <<98>>)},
            {ok, emqx_redis_session:save_session_async(C, 2)},
            {{ok, 2}, emqx_redis_session:load_session_async(C)},
            {ok, emqx_redis_message:delete_messages_async(C)},
            {ok, emqx_redis_message:store_message_async(C, M(4))},
            {{ok, [M(4)]}, emqx_redis_message:get_messages_async(C, 0, 10)},
            {ok, emqx_redis_message:delete_messages_async(C)},
            {ok, emqx_redis_session:delete_session_async(C)},
            {{error, not_found}, emqx_redis_session:load_session_async(C)}
        ],
        [
            ?assertEqual({reply, Expected}, emqx_redis_storage:receive_response(Request, 5000))
         || {Expected, Request} <- Calls
        ]
    end),
    ?assertEqual([<<"meta">>], ?STORAGE:keys(Config)).

%% What is answered is true of some moment: old data, or none; no call fails.
data_is_flushed_under_load(Config) ->
    disturbed_by(Config, ["FLUSHALL"], fun(Worker) ->
        C = integer_to_binary(Worker),
        M = #{id => <<"m">>},
        ok = emqx_redis_session:save_session(C, Worker),
        true = lists:member(emqx_redis_session:load_session(C), [{ok, Worker}, {error, not_found}]),
        ok = emqx_redis_message:store_message(C, M),
        true = lists:member(emqx_redis_message:get_messages(C, 0, 9), [{ok, [M]}, {ok, []}]),
        ok = emqx_redis_message:ack_message(C, <<"m">>),
        ok = emqx_redis_router:add_route(<<"a/", C/binary, "/+">>, node()),
        {ok, _} = emqx_redis_router:match_routes(<<"a/b">>),
        {ok, _} = emqx_redis_session:list_sessions(10, 0),
        {ok, _} = emqx_redis_session:count_sessions()
    end),
    %% Afterwards all is as in a fresh Redis.
    _ = ?STORAGE:cli(Config, ["FLUSHALL"]),
    ok = emqx_redis_session:save_session(<<"c">>, 1),
    ok = emqx_redis_router:add_route(<<"a/+">>, node()),
    ?assertEqual({ok, [{<<"a/+">>, node()}]}, emqx_redis_router:match_routes(<<"a/b">>)),
    ?assertEqual({ok, [<<"c">>]}, emqx_redis_session:list_sessions(10, 0)).

await_routes(Expected) ->
    Found = fun() ->
        {ok, Routes} = emqx_redis_router:match_routes(<<"a/b">>),
        {ok, lists:sort(Routes)} =:= Expected
    end,
    ok = emqx_redis_test_helpers:wait_until(Found, 5000).

nodes_see_each_others_data(Config) ->
    with_peer(Config, fun(Call) ->
        ok = Call(emqx_redis_session, save_session, [<<"c">>, {from, peer}]),
        ?assertEqual({ok, {from, peer}}, emqx_redis_session:load_session(<<"c">>)),
        Ids = [<<"3">>, <<"2">>, <<"1">>],
        [ok = Call(emqx_redis_message, store_message, [<<"c">>, #{id => Id}]) || Id <- Ids],
        %% Within a millisecond only the order of one node is certain.
        timer:sleep(20),
        ok = emqx_redis_message:store_message(<<"c">>, #{id => <<"0">>}),
        Expected = {ok, [#{id => Id} || Id <- Ids ++ [<<"0">>]]},
        ?assertEqual(Expected, emqx_redis_message:get_messages(<<"c">>, 0, 10)),
        ?assertEqual(Expected, Call(emqx_redis_message, get_messages, [<<"c">>, 0, 10])),
        ok = Call(emqx_redis_router, add_route, [<<"a/+">>, peer@host]),
        ok = emqx_redis_router:add_route(<<"a/+">>, node()),
        Routes = fun(Nodes) -> {ok, [{<<"a/+">>, Node} || Node <- Nodes]} end,
        Both = lists:sort([peer@host, node()]),
        %% Others see a change within milliseconds.
        await_routes(Routes(Both)),
        %% Both nodes have one name: that of the one that began later counts.
        ok = Call(emqx_redis_router, delete_route, [<<"a/+">>, node()]),
        await_routes(Routes([peer@host])),
        timer:sleep(100),
        await_routes(Routes([peer@host]))
    end).

nodes_are_fenced_from_each_other(Config) ->
    with_peer(Config, fun(Call) ->
        {ok, #{epoch := 1}} = emqx_redis_session:claim_session(<<"c">>, #{}),
        ok = emqx_redis_session:save_session(<<"c">>, here, #{epoch => 1}),
        {ok, #{epoch := 2, session := here}} = Call(emqx_redis_session, claim_session, [<<"c">>, #{}]),
        Stale = {error, {stale_epoch, 2}},
        ?assertEqual(Stale, emqx_redis_session:save_session(<<"c">>, late, #{epoch => 1})),
        ok = Call(emqx_redis_session, save_session, [<<"c">>, there, #{epoch => 2}]),
        ok = Call(emqx_redis_session, delete_session, [<<"c">>, #{epoch => 2}]),
        ?assertEqual(Stale, emqx_redis_session:save_session(<<"c">>, late, #{epoch => 1})),
        ?assertEqual({error, not_found}, emqx_redis_session:load_session(<<"c">>))
    end).

%% Internal

%% Workers run Fun again and again, while an independent client sends Command every few milliseconds.
disturbed_by(Config, Command, Fun) ->
    Until = erlang:monotonic_time(millisecond) + 3000,
    Disturber = spawn_link(fun() -> disturb(Config, Command) end),
    parallel(10, fun(Worker) -> repeat(Fun, Worker, Until) end),
    unlink(Disturber),
    exit(Disturber, kill),
    ok.

disturb(Config, Command) ->
    <<"OK">> = ?STORAGE:cli(Config, Command),
    timer:sleep(rand:uniform(20)),
    disturb(Config, Command).

repeat(Fun, Worker, Until) ->
    Fun(Worker),
    [] = ?HELPERS:flush(),
    case erlang:monotonic_time(millisecond) < Until of
        true -> repeat(Fun, Worker, Until);
        false -> ok
    end.

parallel(Count, Fun) ->
    Workers = [spawn_monitor(fun() -> Fun(N) end) || N <- lists:seq(1, Count)],
    [receive {'DOWN', M, process, P, Reason} -> ?assertEqual(normal, Reason) end || {P, M} <- Workers].

%% A storage on another virtual machine, on the same Redis.
with_peer(Config, Fun) ->
    {ok, Peer, _Node} = peer:start_link(#{
        connection => standard_io, args => lists:append([["-pa", Dir] || Dir <- code:get_path()])
    }),
    Call = fun(Module, Function, Arguments) -> peer:call(Peer, Module, Function, Arguments, 10000) end,
    try
        Settings = ?SERVER:config(proplists:get_value(server, Config)),
        ok = Call(emqx_redis_storage, start, [Settings]),
        Fun(Call),
        ok = Call(emqx_redis_storage, stop, [])
    after
        peer:stop(Peer)
    end.
