%% What `{replicas, N}' and `{aof, L, R}' promise: an ok says that the copies are there, and whoever does
%% not get it holds nobody else up.
-module(emqx_redis_durability_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(CLUSTER, emqx_redis_test_cluster).
-define(HELPERS, emqx_redis_test_helpers).
-define(TIMEOUT, 30000).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        an_ok_means_that_the_replicas_have_it,
        too_few_replicas,
        replicas_that_are_far_away,
        a_repeated_write_is_not_confirmed_unseen,
        every_write_takes_a_level,
        the_configured_level,
        many_writes_share_a_wait,
        an_unmet_level_holds_nobody_up,
        one_connection_for_all_levels,
        a_cancelled_write,
        a_connection_that_is_lost_before_it_is_confirmed,
        other_settings_while_a_level_is_unmet,
        order_across_levels,
        order_while_replicas_are_frozen,
        append_only_files,
        append_only_files_that_are_synced_each_second,
        append_only_files_that_are_not_written,
        each_master_of_a_cluster_has_its_replica,
        a_batch_over_many_masters,
        a_slot_that_moves
    ].

end_per_testcase(_Case, _Config) ->
    _ = emqx_redis_storage:stop(),
    ok = emqx_redis_test_topology:stop_all(),
    ok = ?SERVER:stop_all(),
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% Replicas
%%--------------------------------------------------------------------

an_ok_means_that_the_replicas_have_it(_Config) ->
    {Master, Replicas} = start_replicated(2),
    Readers = [?SERVER:connect(Replica) || Replica <- Replicas],
    [
        begin
            ok = emqx_redis_session:save_session(client(N), N, level({replicas, 2})),
            Key = <<"session:", (client(N))/binary>>,
            Found = [emqx_redis_test_client:command(Reader, ["EXISTS", Key]) || Reader <- Readers],
            ?assertEqual([1, 1], Found)
        end
     || N <- lists:seq(1, 100)
    ],
    lists:foreach(fun emqx_redis_test_client:close/1, Readers),
    %% What makes a write propagate goes away by itself.
    [Mark | _] = Marks = ?SERVER:cli(Master, ["KEYS", "durable*"]),
    ?assert(length(Marks) =< 2, Marks),
    Lives = ?SERVER:cli(Master, ["PTTL", Mark]),
    ?assert(Lives > 0 andalso Lives =< 60000, Lives).

too_few_replicas(_Config) ->
    {_Master, [Replica, _]} = start_replicated(2),
    Level = level({replicas, 3}, 700),
    {Took, Result} = timed(fun() -> emqx_redis_session:save_session(<<"c">>, x, Level) end),
    ?assertEqual({error, {not_durable, 2}}, Result),
    ?assert(Took > 500 andalso Took < 1500, Took),
    %% It is done all the same.
    ?assertEqual({ok, x}, emqx_redis_session:load_session(<<"c">>)),
    ok = ?SERVER:pause(Replica),
    ?assertEqual(
        {error, {not_durable, 1}},
        emqx_redis_session:save_session(<<"c">>, y, level({replicas, 2}, 500))
    ),
    ?assertEqual({ok, y}, emqx_redis_session:load_session(<<"c">>)),
    %% One that comes back in time is waited for.
    Id = emqx_redis_session:save_session_async(<<"c">>, z, level({replicas, 2}, ?TIMEOUT)),
    timer:sleep(300),
    ok = ?SERVER:resume(Replica),
    ?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, ?TIMEOUT)).

%% The goal moves with each batch: what comes from many callers is confirmed all the same.
replicas_that_are_far_away(_Config) ->
    {Master, _} = start_replicated(0),
    Proxy = emqx_redis_test_proxy:start(?SERVER:address(Master)),
    Port = emqx_redis_test_proxy:port(Proxy),
    _ = ?SERVER:start(#{args => ["--replicaof", "127.0.0.1", integer_to_list(Port)]}),
    ?HELPERS:wait_until(
        fun() -> emqx_redis_session:save_session(<<"c">>, x, level({replicas, 1})) =:= ok end, ?TIMEOUT
    ),
    %% Redis looks ten times a second at who has waited long enough: 100 ms become up to 200.
    ok = emqx_redis_test_proxy:set_mode(Proxy, {delay, 92}),
    Until = erlang:monotonic_time(millisecond) + 4000,
    Save = fun(Client) -> emqx_redis_session:save_session(Client, x, level({replicas, 1})) end,
    Write = fun Write(Client, Results) ->
        case erlang:monotonic_time(millisecond) < Until of
            true -> Write(Client, [Save(Client) | Results]);
            false -> Results
        end
    end,
    Parent = self(),
    Pids = [spawn_link(fun() -> Parent ! {self(), Write(client(N), [])} end) || N <- lists:seq(1, 8)],
    Results = [
        receive
            {Pid, Own} -> Own
        end
     || Pid <- Pids
    ],
    ?assertEqual([ok], lists:usort(lists:append(Results))),
    ct:pal("~w", [[length(Own) || Own <- Results]]),
    %% Each takes about two ways there and one back, on a machine that has time for it.
    [?assert(length(Own) >= 4, length(Own)) || Own <- Results].

%% Redis counts the replicas that have the last write of the connection which changed something: of one
%% that changes nothing that was an earlier one, which they all have.
a_repeated_write_is_not_confirmed_unseen(_Config) ->
    {_Master, Replicas} = start_replicated(2),
    Writes = [
        fun(Level) -> emqx_redis_session:save_session(<<"c">>, x, Level) end,
        fun(Level) -> emqx_redis_session:delete_session(<<"nobody">>, Level) end,
        fun(Level) -> emqx_redis_message:ack_message(<<"nobody">>, <<"m">>, Level) end,
        fun(Level) -> emqx_redis_message:delete_messages(<<"nobody">>, Level) end
    ],
    [?assertEqual(ok, Write(level({replicas, 2}))) || Write <- Writes],
    lists:foreach(fun ?SERVER:pause/1, Replicas),
    [
        ?assertEqual({error, {not_durable, 0}}, Write(level({replicas, N}, 250)))
     || Write <- Writes, N <- [1, 2]
    ],
    lists:foreach(fun ?SERVER:resume/1, Replicas),
    [?assertEqual(ok, Write(level({replicas, 2}, ?TIMEOUT))) || Write <- Writes].

every_write_takes_a_level(_Config) ->
    _ = start_replicated(2),
    {ok, #{epoch := 1}} = emqx_redis_session:claim_session(<<"claimed">>, #{}),
    Message = message(1),
    Writes = [
        fun(Level) -> emqx_redis_session:save_session_async(<<"c1">>, x, Level) end,
        fun(Level) -> emqx_redis_session:save_session_async(<<"claimed">>, x, Level#{epoch => 1}) end,
        fun(Level) -> emqx_redis_session:delete_session_async(<<"c2">>, Level) end,
        fun(Level) -> emqx_redis_session:claim_session_async(<<"c3">>, Level) end,
        fun(Level) -> emqx_redis_message:store_message_async(<<"c4">>, Message, Level) end,
        fun(Level) -> emqx_redis_message:store_message_async(<<"c5">>, Message, Level#{max_queue => 1}) end,
        fun(Level) -> emqx_redis_message:store_messages_async(<<"c6">>, [Message], Level) end,
        fun(Level) -> emqx_redis_message:store_message_for_async([<<"c7">>, <<"c8">>], Message, Level) end,
        fun(Level) -> emqx_redis_message:ack_message_async(<<"c9">>, <<"1">>, Level) end,
        fun(Level) -> emqx_redis_message:ack_messages_async(<<"c10">>, [<<"1">>, <<"2">>], Level) end,
        fun(Level) -> emqx_redis_message:delete_messages_async(<<"c11">>, Level) end
    ],
    Results = fun(Level) -> replies([Write(Level) || Write <- Writes]) end,
    ?assertEqual([{error, {not_durable, 2}}], lists:usort(Results(level({replicas, 3}, 500)))),
    ?assertEqual([], [Result || Result <- Results(level({replicas, 2})), not is_ok(Result)]).

%% Routes have no options: the configured level is theirs too.
the_configured_level(_Config) ->
    {Master, _} = start_replicated(2),
    %% Who can give no time of its own is not to wait for long here.
    Configure = fun(Level) ->
        Settings = #{persistence => #{durability => Level}},
        ok = emqx_redis_storage:start(config(Master, Settings, #{request_timeout => <<"700ms">>}))
    end,
    Configure({replicas, 3}),
    ?assertEqual({error, {not_durable, 2}}, emqx_redis_session:save_session(<<"c">>, x)),
    ?assertEqual({error, {not_durable, 2}}, emqx_redis_router:add_route(<<"a/b">>, node())),
    ?assertEqual({error, {not_durable, 2}}, emqx_redis_router:delete_route(<<"a/+">>, node())),
    %% A call's own level counts, also a lower one.
    ?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, y, level(none))),
    ?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, y, level({replicas, 2}))),
    %% Reads wait for nobody.
    ?assertEqual({ok, y}, emqx_redis_session:load_session(<<"c">>)),
    ?assertEqual({ok, [{<<"a/b">>, node()}]}, emqx_redis_router:match_routes(<<"a/b">>)),
    Configure(<<"replicas:2">>),
    ?assertEqual(ok, emqx_redis_router:add_route(<<"a/+">>, node())),
    ?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, z)),
    Waits = calls(Master, "wait"),
    Configure(none),
    ?assertEqual(ok, emqx_redis_router:delete_route(<<"a/+">>, node())),
    ?assertEqual(Waits, calls(Master, "wait")).

%%--------------------------------------------------------------------
%% Together
%%--------------------------------------------------------------------

many_writes_share_a_wait(_Config) ->
    {Master, _} = start_replicated(2),
    ok = emqx_redis_session:save_session(<<"c">>, x, level({replicas, 2})),
    Before = calls(Master, "wait"),
    Ids = [
        emqx_redis_session:save_session_async(client(N), N, level({replicas, 2}))
     || N <- lists:seq(1, 1000)
    ],
    ?assertEqual([ok], lists:usort(replies(Ids))),
    Waits = calls(Master, "wait") - Before,
    ct:pal("~b waits for 1000 writes", [Waits]),
    ?assert(Waits > 0 andalso Waits < 200, Waits).

an_unmet_level_holds_nobody_up(_Config) ->
    {_Master, _} = start_replicated(2),
    Unmet = emqx_redis_session:save_session_async(<<"unmet">>, x, level({replicas, 3}, 4000)),
    %% The server waits for it by now.
    timer:sleep(200),
    {Took, _} = timed(fun() ->
        [
            begin
                ok = emqx_redis_session:save_session(client(N), N, level(none)),
                ok = emqx_redis_session:save_session(client(N), N, level({replicas, 1})),
                ok = emqx_redis_session:save_session(client(N), N, level({replicas, 2})),
                {ok, N} = emqx_redis_session:load_session(client(N))
            end
         || N <- lists:seq(1, 10)
        ]
    end),
    ?assert(Took < 2000, Took),
    %% Neither are later calls on the same client, nor those of the same level that have less time.
    ok = emqx_redis_session:save_session(<<"unmet">>, y, level({replicas, 2})),
    {Short, Result} = timed(fun() ->
        emqx_redis_session:save_session(<<"short">>, x, level({replicas, 3}, 800))
    end),
    ?assertEqual({error, {not_durable, 2}}, Result),
    ?assert(Short < 2000, Short),
    ?assertEqual({ok, x}, emqx_redis_session:load_session(<<"short">>)),
    %% All that while it is not answered.
    ?assertEqual(timeout, reply_within(Unmet, 0)),
    ?assertEqual({error, {not_durable, 2}}, reply_within(Unmet, ?TIMEOUT)).

%% Where one connection is all that the settings allow, levels take turns though it is never idle: it takes
%% time to the server and back, and there is always something on the way.
one_connection_for_all_levels(_Config) ->
    {Master, _} = start_replicated(2),
    Proxy = emqx_redis_test_proxy:start(?SERVER:address(Master)),
    Redis = #{pool_size => 1, request_timeout => <<"10s">>, servers => emqx_redis_test_proxy:servers(Proxy)},
    ok = emqx_redis_storage:start(#{redis => Redis}),
    connected(),
    ok = emqx_redis_test_proxy:set_mode(Proxy, {delay, 10}),
    {Pid, Monitor} = spawn_monitor(fun() ->
        Save = fun(N) -> emqx_redis_session:save_session_async(<<"busy">>, N, level(none)) end,
        keep_busy(Save, 500, queue:from_list([Save(N) || N <- lists:seq(1, 500)]))
    end),
    Levels = [{replicas, 1}, {replicas, 2}, {replicas, 1}, {replicas, 2}],
    Save = fun(Level) -> emqx_redis_session:save_session(<<"c">>, x, level(Level, 3000)) end,
    Results = [timed(fun() -> Save(Level) end) || Level <- Levels],
    Pid ! stop,
    Done =
        receive
            {'DOWN', Monitor, process, Pid, {done, N}} -> N
        end,
    ct:pal("~w, ~b beside", [Results, Done]),
    ?assertEqual([ok, ok, ok, ok], [Result || {_, Result} <- Results]),
    %% Several times what is on its way at once.
    ?assert(Done > 2000, Done).

%% Has always as many requests on their way.
keep_busy(Save, N, Sent) ->
    {{value, Id}, Rest} = queue:out(Sent),
    ok = reply_within(Id, ?TIMEOUT),
    receive
        stop ->
            ok = lists:foreach(fun(Each) -> ok = reply_within(Each, ?TIMEOUT) end, queue:to_list(Rest)),
            exit({done, N})
    after 0 ->
        keep_busy(Save, N + 1, queue:in(Save(N), Rest))
    end.

a_cancelled_write(_Config) ->
    _ = start_replicated(1),
    Id = emqx_redis_session:save_session_async(<<"c">>, x, level({replicas, 2}, ?TIMEOUT)),
    ?HELPERS:wait_until(fun() -> emqx_redis_session:load_session(<<"c">>) =:= {ok, x} end),
    {Took, Result} = timed(fun() -> emqx_redis_storage:cancel(Id) end),
    ?assertEqual({error, {unknown, cancelled}}, Result),
    ?assert(Took < 2000, Took).

a_connection_that_is_lost_before_it_is_confirmed(_Config) ->
    {Master, _} = start_replicated(1),
    Id = emqx_redis_session:save_session_async(<<"c">>, x, level({replicas, 2}, ?TIMEOUT)),
    ?HELPERS:wait_until(fun() -> emqx_redis_session:load_session(<<"c">>) =:= {ok, x} end),
    _ = ?SERVER:cli(Master, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
    ?assertEqual({error, {unknown, closed}}, reply_within(Id, ?TIMEOUT)),
    ?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, y, level({replicas, 1}, ?TIMEOUT))).

%% Connections are made anew when what was sent on them is answered, and durable writes are answered late.
other_settings_while_a_level_is_unmet(_Config) ->
    {Master, [Replica]} = start_replicated(1),
    ok = ?SERVER:pause(Replica),
    Level = level({replicas, 1}, ?TIMEOUT),
    Ids = [emqx_redis_session:save_session_async(client(N), N, Level) || N <- [1, 2]],
    ?HELPERS:wait_until(fun() -> emqx_redis_session:load_session(client(2)) =:= {ok, 2} end),
    Before = calls(Master, "wait"),
    ok = emqx_redis_storage:start(config(Master, #{}, #{request_timeout => <<"7s">>})),
    timer:sleep(1000),
    Waits = calls(Master, "wait") - Before,
    ct:pal("~b waits in a second", [Waits]),
    ?assert(Waits < 50, Waits),
    Later = emqx_redis_session:save_session_async(client(1), later, Level),
    ok = ?SERVER:resume(Replica),
    ?assertEqual([ok, ok, ok], replies(Ids ++ [Later])),
    ?assertEqual({ok, later}, emqx_redis_session:load_session(client(1))).

%%--------------------------------------------------------------------
%% Order
%%--------------------------------------------------------------------

%% Each level has a connection of its own, and still each call sees all that were made before it.
order_across_levels(_Config) ->
    _ = start_replicated(2),
    keep_order([none, {replicas, 1}, {replicas, 2}], 3000).

order_while_replicas_are_frozen(_Config) ->
    {_Master, [One, Two]} = start_replicated(2),
    Freezer = spawn_link(fun() -> freeze_in_turns([One, Two, One]) end),
    Monitor = monitor(process, Freezer),
    keep_order([none, {replicas, 1}, {replicas, 2}], 3000),
    receive
        {'DOWN', Monitor, process, Freezer, normal} -> ok
    end.

freeze_in_turns(Replicas) ->
    lists:foreach(
        fun(Replica) ->
            ok = ?SERVER:pause(Replica),
            timer:sleep(400),
            ok = ?SERVER:resume(Replica),
            timer:sleep(50)
        end,
        Replicas
    ).

%% Calls of all levels and reads in an order by chance, on few clients.
keep_order(Levels, Count) ->
    Clients = [<<"a">>, <<"b">>, <<"c">>],
    [ok = emqx_redis_session:save_session(Client, 0) || Client <- Clients],
    {Calls, Last} = lists:mapfoldl(
        fun(N, Saved) ->
            Client = random(Clients),
            case random([read | Levels]) of
                read ->
                    {{emqx_redis_session:load_session_async(Client), {ok, maps:get(Client, Saved)}}, Saved};
                Level ->
                    Options = level(Level, ?TIMEOUT),
                    Id = emqx_redis_session:save_session_async(Client, N, Options),
                    {{Id, ok}, Saved#{Client := N}}
            end
        end,
        maps:from_list([{Client, 0} || Client <- Clients]),
        lists:seq(1, Count)
    ),
    {Ids, Expected} = lists:unzip(Calls),
    Results = replies(Ids),
    All = lists:zip3(lists:seq(1, Count), Results, Expected),
    Wrong = [Each || {_, Is, Should} = Each <- All, Is =/= Should],
    ?assertEqual({0, []}, {length(Wrong), lists:sublist(Wrong, 5)}),
    [?assertEqual({ok, N}, emqx_redis_session:load_session(Client)) || {Client, N} <- maps:to_list(Last)].

%%--------------------------------------------------------------------
%% Append-only files
%%--------------------------------------------------------------------

%% WAITAOF came with Redis 7.2. An older server is asked for nothing, and nothing is written.
append_only_files(_Config) ->
    {Master, [Replica]} = start_replicated(1, #{appendonly => true}),
    Levels = [{aof, 1, 0}, {aof, 0, 1}, {aof, 1, 1}],
    case has_waitaof(Master) of
        false ->
            [assert_unsupported(Level) || Level <- Levels];
        true ->
            [?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, x, level(L))) || L <- Levels],
            keep_order([none, {replicas, 1} | Levels], 1000),
            ok = ?SERVER:pause(Replica),
            %% A disk under load may take over a second for one sync: then the file has not got it either.
            Save = fun() -> emqx_redis_session:save_session(<<"c">>, y, level({aof, 1, 1}, 1000)) end,
            ?HELPERS:wait_until(fun() -> Save() =:= {error, {not_durable, {1, 0}}} end, ?TIMEOUT),
            ?assertEqual({ok, y}, emqx_redis_session:load_session(<<"c">>)),
            ?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, z, level({aof, 1, 0}))),
            %% It is in the file.
            ok = ?SERVER:kill(Master),
            ok = ?SERVER:restart(Master),
            connected(),
            ?assertEqual({ok, z}, emqx_redis_session:load_session(<<"c">>))
    end.

%% A sync takes up to a second to come, here and at the replica, and is waited for.
append_only_files_that_are_synced_each_second(_Config) ->
    Args = ["--appendonly", "yes", "--appendfsync", "everysec"],
    {Master, _} = start_replicated(1, #{args => Args}),
    case has_waitaof(Master) of
        false ->
            assert_unsupported({aof, 1, 1});
        true ->
            Writes = [
                [
                    emqx_redis_session:save_session_async(client(N), Round, level({aof, 1, 1}))
                 || N <- lists:seq(1, 20)
                ]
             || Round <- [1, 2, 3]
            ],
            ?assertEqual([ok], lists:usort(replies(lists:append(Writes)))),
            [?assertEqual({ok, 3}, emqx_redis_session:load_session(client(N))) || N <- [1, 20]]
    end.

%% The level that the server can't reach is refused before the write, whatever the version.
append_only_files_that_are_not_written(_Config) ->
    {Master, _} = start_replicated(1),
    assert_unsupported({aof, 1, 0}),
    assert_unsupported({aof, 1, 1}),
    %% It writes one from now on; a connection that is made then knows.
    <<"OK">> = ?SERVER:cli(Master, ["CONFIG", "SET", "appendonly", "yes"]),
    _ = ?SERVER:cli(Master, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
    case has_waitaof(Master) of
        false ->
            assert_unsupported({aof, 1, 0});
        true ->
            ?HELPERS:wait_until(
                fun() -> emqx_redis_session:save_session(<<"c">>, x, level({aof, 1, 0})) =:= ok end,
                ?TIMEOUT
            )
    end.

assert_unsupported(Level) ->
    Written = emqx_redis_session:save_session(<<"unsupported">>, x, level(Level, ?TIMEOUT)),
    ?assertMatch({error, {unsupported, <<_, _/binary>>}}, Written),
    ?assertEqual({error, not_found}, emqx_redis_session:load_session(<<"unsupported">>)).

has_waitaof(Server) ->
    is_list(?SERVER:cli(Server, ["COMMAND", "INFO", "WAITAOF"])) andalso
        ?SERVER:cli(Server, ["COMMAND", "INFO", "WAITAOF"]) =/= [undefined].

%%--------------------------------------------------------------------
%% Clusters
%%--------------------------------------------------------------------

each_master_of_a_cluster_has_its_replica(_Config) ->
    Cluster = start_cluster(),
    Ids = [
        emqx_redis_session:save_session_async(client(N), N, level({replicas, 1}, ?TIMEOUT))
     || N <- lists:seq(1, 300)
    ],
    ?assertEqual([ok], lists:usort(replies(Ids))),
    Masters = ?CLUSTER:masters(Cluster),
    [?assert(calls(Master, "wait") > 0) || Master <- Masters],
    ?assert(lists:sum([calls(Master, "wait") || Master <- Masters]) < 150),
    Marks = [{Master, Mark} || Master <- Masters, Mark <- ?SERVER:cli(Master, ["KEYS", "durable*"])],
    ?assert(length(Marks) >= 3),
    [
        begin
            Lives = ?SERVER:cli(Master, ["PTTL", Mark]),
            %% -2 if it has ended meanwhile, never -1, for ever.
            ?assert(Lives =/= -1 andalso Lives =< 60000, {Mark, Lives})
        end
     || {Master, Mark} <- Marks
    ],
    ?assertEqual(
        {error, {not_durable, 1}},
        emqx_redis_session:save_session(<<"c">>, x, level({replicas, 2}, 500))
    ),
    ?assertEqual(ok, emqx_redis_router:add_route(<<"a/+">>, node())),
    keep_order([none, {replicas, 1}], 1500).

%% Whose master lacks its replica is told so, and the others are durable.
a_batch_over_many_masters(_Config) ->
    Cluster = start_cluster(),
    Clients = [client(N) || N <- lists:seq(1, 300)],
    ?assertEqual(ok, emqx_redis_message:store_message_for(Clients, message(1), level({replicas, 1}))),
    [One | _] = ?CLUSTER:masters(Cluster),
    [Replica] = ?CLUSTER:replicas_of(Cluster, One),
    Slots = ?CLUSTER:slots(Cluster, One),
    Of = fun(Client) -> ?CLUSTER:key_slot(["{", Client, "}"]) end,
    Concerned = [Client || Client <- Clients, lists:member(Of(Client), Slots)],
    ok = ?CLUSTER:pause(Cluster, Replica),
    Result = emqx_redis_message:store_message_for(Clients, message(2), level({replicas, 1}, 1000)),
    ok = ?CLUSTER:resume(Cluster, Replica),
    {error, {partial, Failed}} = Result,
    ?assertEqual([{not_durable, 0}], lists:usort([Reason || {_, Reason} <- Failed])),
    ?assertEqual(lists:sort(Concerned), lists:sort([Client || {Client, _} <- Failed])),
    ?assert(Concerned =/= [] andalso length(Concerned) < length(Clients)),
    %% They have it nevertheless.
    [
        ?assertMatch({ok, [_, #{payload := 2}]}, emqx_redis_message:get_messages(Client, 0, 10))
     || Client <- lists:sublist(Concerned, 10)
    ].

%% What is left at both ends of a move would end it: MIGRATE overwrites nothing.
a_slot_that_moves(_Config) ->
    Cluster = start_cluster(),
    Level = level({replicas, 1}, ?TIMEOUT),
    ok = emqx_redis_session:save_session(<<"c">>, 1, Level),
    Slot = ?CLUSTER:key_slot("session:{c}"),
    Source = ?CLUSTER:owner(Cluster, Slot),
    [Target | _] = ?CLUSTER:masters(Cluster) -- [Source],
    ok = ?CLUSTER:begin_move(Cluster, Slot, Target),
    {[_ | _] = Marks, Keys} = lists:partition(
        fun(Key) -> string:prefix(Key, "durable") =/= nomatch end,
        ?CLUSTER:cli(Cluster, Source, ["CLUSTER", "GETKEYSINSLOT", Slot, 100])
    ),
    [ok = ?CLUSTER:move_key(Cluster, Key, Target) || Key <- Keys],
    Waits = calls(Target, "wait"),
    Id = emqx_redis_session:save_session_async(<<"c">>, 2, Level),
    ?HELPERS:wait_until(fun() -> calls(Target, "wait") > Waits end, ?TIMEOUT),
    ?assertEqual(length(Marks), ?CLUSTER:move_keys(Cluster, Slot, Target, all)),
    ok = ?CLUSTER:finish_move(Cluster, Slot, Target),
    ?assertEqual(ok, reply_within(Id, ?TIMEOUT)),
    ?assertEqual({ok, 2}, emqx_redis_session:load_session(<<"c">>)).

start_cluster() ->
    Cluster = ?CLUSTER:start(#{masters => 3, replicas => 1}),
    #{redis := Redis} = ?CLUSTER:config(Cluster),
    ok = emqx_redis_storage:start(#{redis => Redis#{request_timeout => <<"30s">>}}),
    connected(),
    Cluster.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

start_replicated(Count) -> start_replicated(Count, #{}).

%% A master and its replicas, which have all that it has, and the storage on it.
start_replicated(Count, Options) ->
    Fast = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"],
    Args = Fast ++ maps:get(args, Options, []),
    Master = ?SERVER:start(Options#{tcp => true, args => Args}),
    Follow = ["--replicaof", "127.0.0.1", integer_to_list(?SERVER:port(Master))],
    Replicas = [?SERVER:start(Options#{tcp => true, args => Args ++ Follow}) || _ <- lists:seq(1, Count)],
    ?HELPERS:wait_until(
        fun() ->
            [<<"master">>, Written, Online] = ?SERVER:cli(Master, ["ROLE"]),
            Read = [binary_to_integer(Offset) || [_, _, Offset] <- Online],
            length([Offset || Offset <- Read, Offset > 0, Offset >= Written]) =:= Count
        end,
        ?TIMEOUT
    ),
    ok = emqx_redis_storage:start(config(Master, #{}, #{request_timeout => <<"30s">>})),
    connected(),
    {Master, Replicas}.

config(Master, Settings, Redis) ->
    #{redis := Own} = ?SERVER:config(Master),
    Settings#{redis => maps:merge(Own, Redis)}.

connected() ->
    ?HELPERS:wait_until(fun() -> maps:get(connected, emqx_redis_storage:status()) end, ?TIMEOUT).

level(Level) -> level(Level, 10000).

level(Level, Timeout) -> #{durability => Level, timeout => Timeout}.

client(N) -> <<"c", (integer_to_binary(N))/binary>>.

message(N) -> #{id => integer_to_binary(N), timestamp => N, payload => N}.

is_ok(ok) -> true;
is_ok({ok, _}) -> true;
is_ok(_) -> false.

replies(Ids) -> [reply_within(Id, ?TIMEOUT) || Id <- Ids].

%% What came is taken; a request that is waited for longer goes on.
reply_within(Id, 0) ->
    receive
        Message ->
            case emqx_redis_storage:check_response(Message, Id) of
                {reply, Result} -> Result;
                no_reply -> error({stray, Message})
            end
    after 0 ->
        timeout
    end;
reply_within(Id, Timeout) ->
    {reply, Result} = emqx_redis_storage:receive_response(Id, Timeout),
    Result.

%% How often the server was called so.
calls(Server, Command) ->
    Info = ?SERVER:cli(Server, ["INFO", "commandstats"]),
    case re:run(Info, "cmdstat_" ++ Command ++ ":calls=(\\d+)", [{capture, [1], list}]) of
        {match, [Calls]} -> list_to_integer(Calls);
        nomatch -> 0
    end.

timed(Fun) ->
    {Micros, Result} = timer:tc(Fun),
    {Micros div 1000, Result}.

random(List) -> lists:nth(rand:uniform(length(List)), List).
