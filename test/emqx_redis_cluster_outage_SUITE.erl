%% A cluster whose nodes are killed, frozen and replaced while requests go on.
-module(emqx_redis_cluster_outage_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(SESSION, emqx_redis_session).
-define(MESSAGE, emqx_redis_message).
-define(ROUTER, emqx_redis_router).
-define(CLUSTER, emqx_redis_test_cluster).
-define(SERVER, emqx_redis_test_server).
-define(HELPERS, emqx_redis_test_helpers).
-define(STORAGE, emqx_redis_test_storage).

suite() ->
    [{timetrap, {minutes, 2}}].

all() ->
    [{group, with_replicas}, {group, without_replicas}].

groups() ->
    [
        {with_replicas, [
            a_killed_master_is_replaced,
            what_reached_a_replica_survives_its_master,
            scripts_are_there_after_a_flush_and_a_fail_over,
            a_planned_fail_over_fails_no_request,
            a_frozen_master_is_replaced
        ]},
        {without_replicas, [
            a_dead_master_takes_its_slots_along,
            one_dead_master_stops_a_cluster_that_must_be_whole,
            one_deadline_for_all_nodes
        ]}
    ].

%% The clusters serve on where a master is gone. Where it is replaced, after about three seconds, requests are
%% to wait for that.
init_per_group(Group, Config) ->
    {Replicas, Grace} =
        case Group of
            with_replicas -> {1, <<"15s">>};
            without_replicas -> {0, <<"700ms">>}
        end,
    Args = ["--cluster-require-full-coverage", "no"],
    Cluster = ?CLUSTER:start(#{masters => 3, replicas => Replicas, args => Args}),
    [{cluster, Cluster}, {grace, Grace} | Config].

end_per_group(_Group, Config) ->
    ok = emqx_redis_storage:stop(),
    ?CLUSTER:stop(cluster(Config)).

init_per_testcase(_Case, Config) ->
    Cluster = cluster(Config),
    ok = ?CLUSTER:wait_until_healthy(Cluster),
    #{redis := Redis} = ?CLUSTER:config(Cluster),
    ok = emqx_redis_storage:start(#{redis => Redis#{outage_grace => proplists:get_value(grace, Config)}}),
    ok = ?STORAGE:wait_connected(),
    Config.

%% The next test finds every node at work, though this one may have failed.
end_per_testcase(_Case, Config) ->
    ok = emqx_redis_storage:stop(),
    [
        case ?SERVER:is_alive(Node) of
            true -> ok = ?SERVER:resume(Node);
            false -> ok = ?SERVER:restart(Node)
        end
     || Node <- ?CLUSTER:nodes(cluster(Config))
    ],
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% Masters with replicas
%%--------------------------------------------------------------------

a_killed_master_is_replaced(Config) ->
    Cluster = cluster(Config),
    [Victim | Others] = ?CLUSTER:masters(Cluster),
    Lost = clients_of(Cluster, [Victim], 8),
    Kept = clients_of(Cluster, Others, 8),
    Workers = start_workers(Lost ++ Kept, #{timeout => 15000}),
    timer:sleep(300),
    ok = ?CLUSTER:kill(Cluster, Victim),
    New = ?CLUSTER:wait_until_promoted(Cluster, Victim),
    timer:sleep(1500),
    Results = await_workers(Workers),
    all_ok(Results),
    Longest = slowest("of the killed master", Lost, Results, 8000),
    _ = slowest("elsewhere", Kept, Results, max(1000, Longest div 2)),
    %% What the old one had alone is lost with it, but for what is written since.
    [?assertEqual({C, {ok, saved(C, Results)}}, {C, ?SESSION:load_session(C)}) || C <- Lost ++ Kept],
    restart_as_replica(Cluster, Victim, New).

%% Without a replica of its own the new master can confirm nothing.
what_reached_a_replica_survives_its_master(Config) ->
    Cluster = cluster(Config),
    [Victim | _] = ?CLUSTER:masters(Cluster),
    Clients = clients_of(Cluster, ?CLUSTER:masters(Cluster), 4) ++ clients_of(Cluster, [Victim], 8),
    Workers = start_workers(Clients, #{timeout => 2000, durability => {replicas, 1}}),
    timer:sleep(1500),
    ok = ?CLUSTER:kill(Cluster, Victim),
    New = ?CLUSTER:wait_until_promoted(Cluster, Victim),
    timer:sleep(1000),
    Results = await_workers(Workers),
    [
        begin
            [?assert(is_documented(Reason), Reason) || Reason <- Reasons],
            {ok, Found} = ?SESSION:load_session(C),
            ?assert(Found >= Saved andalso Found =< Tried, {C, Saved, Found, Tried})
        end
     || {C, #{saved := Saved, tried := Tried, reasons := Reasons}} <- maps:to_list(Results)
    ],
    ct:pal("~p", [maps:map(fun(_, R) -> maps:with([saved, tried, reasons], R) end, Results)]),
    ?assert(lists:all(fun(C) -> saved(C, Results) > 5 end, Clients)),
    restart_as_replica(Cluster, Victim, New),
    [?assertEqual(ok, ?SESSION:save_session(C, last, #{durability => {replicas, 1}})) || C <- Clients].

is_documented({not_durable, 0}) -> true;
is_documented({unknown, _}) -> true;
is_documented({unavailable, _}) -> true;
is_documented(timeout) -> true.

scripts_are_there_after_a_flush_and_a_fail_over(Config) ->
    Cluster = cluster(Config),
    [Master | _] = ?CLUSTER:masters(Cluster),
    [C | _] = Clients = clients_of(Cluster, ?CLUSTER:masters(Cluster), 20),
    [<<"OK">> = ?CLUSTER:cli(Cluster, Node, ["SCRIPT", "FLUSH"]) || Node <- ?CLUSTER:nodes(Cluster)],
    [use(Each) || Each <- Clients],
    New = ?CLUSTER:failover(Cluster, Master),
    <<"OK">> = ?CLUSTER:cli(Cluster, New, ["SCRIPT", "FLUSH"]),
    [use(Each) || Each <- Clients],
    ok = ?ROUTER:add_route(<<"a/+">>, node()),
    ?assertEqual({ok, [{<<"a/+">>, node()}]}, ?ROUTER:match_routes(<<"a/b">>)),
    ok = ?ROUTER:delete_route(<<"a/+">>, node()),
    ?assertMatch({ok, [C]}, ?SESSION:list_sessions(1, index(C))).

use(C) ->
    ok = ?SESSION:save_session(C, v1),
    {ok, v1} = ?SESSION:load_session(C),
    ok = ?MESSAGE:store_message(C, #{id => <<"1">>}, #{max_queue => 2}),
    {ok, [#{id := <<"1">>}]} = ?MESSAGE:get_messages(C, 0, 10),
    ok = ?MESSAGE:ack_message(C, <<"1">>).

%% Where in the list of all sessions a client is.
index(C) ->
    {ok, All} = ?SESSION:list_sessions(100000, 0),
    length(lists:takewhile(fun(Each) -> Each =/= C end, All)).

a_planned_fail_over_fails_no_request(Config) ->
    Cluster = cluster(Config),
    Clients = clients_of(Cluster, ?CLUSTER:masters(Cluster), 24),
    Workers = start_workers(Clients, #{}),
    [
        begin
            _ = ?CLUSTER:failover(Cluster, Master),
            timer:sleep(200)
        end
     || Master <- ?CLUSTER:masters(Cluster)
    ],
    Results = await_workers(Workers),
    all_ok(Results),
    _ = slowest("while masters change", Clients, Results, 3000),
    [?assertEqual({C, {ok, saved(C, Results)}}, {C, ?SESSION:load_session(C)}) || C <- Clients].

%% It goes on as a master when it wakes up, until it hears of the other one; by then nobody writes to it.
a_frozen_master_is_replaced(Config) ->
    Cluster = cluster(Config),
    [Victim | Others] = ?CLUSTER:masters(Cluster),
    Lost = clients_of(Cluster, [Victim], 8),
    Kept = clients_of(Cluster, Others, 8),
    Workers = start_workers(Lost ++ Kept, #{timeout => 15000}),
    timer:sleep(300),
    ok = ?CLUSTER:pause(Cluster, Victim),
    _ = ?CLUSTER:wait_until_promoted(Cluster, Victim),
    timer:sleep(2500),
    ok = ?CLUSTER:resume(Cluster, Victim),
    timer:sleep(500),
    Results = await_workers(Workers),
    all_ok(Results),
    Longest = slowest("of the frozen master", Lost, Results, 8000),
    _ = slowest("elsewhere", Kept, Results, max(1000, Longest div 2)),
    ok = ?CLUSTER:wait_until_healthy(Cluster),
    [?assertEqual({C, {ok, saved(C, Results)}}, {C, ?SESSION:load_session(C)}) || C <- Lost ++ Kept],
    nobody_writes_to(Cluster, Victim).

restart_as_replica(Cluster, Old, New) ->
    ok = ?CLUSTER:restart(Cluster, Old),
    ok = ?CLUSTER:wait_until_healthy(Cluster),
    ?assertEqual([Old], ?CLUSTER:replicas_of(Cluster, New)),
    nobody_writes_to(Cluster, Old).

%% The lookout may have a connection to it, on which it asks for the slots.
nobody_writes_to(Cluster, Node) ->
    Ours = fun() ->
        List = ?CLUSTER:cli(Cluster, Node, ["CLIENT", "LIST"]),
        binary:match(List, <<"name=emqx_redis_storage">>) =/= nomatch
    end,
    ?HELPERS:wait_until(fun() -> not Ours() end).

%%--------------------------------------------------------------------
%% Masters alone
%%--------------------------------------------------------------------

a_dead_master_takes_its_slots_along(Config) ->
    Cluster = cluster(Config),
    [Victim | Others] = ?CLUSTER:masters(Cluster),
    Lost = [L | _] = clients_of(Cluster, [Victim], 100),
    Kept = clients_of(Cluster, Others, 400),
    [ok = ?SESSION:save_session(C, C) || C <- Lost ++ Kept],
    ok = ?CLUSTER:kill(Cluster, Victim),
    fails_after_grace(L),
    %% The others do not notice.
    Slowest = lists:max([element(1, timer:tc(fun() -> ok = ?SESSION:save_session(C, x) end)) || C <- Kept]),
    ?assert(Slowest < 1000000, Slowest),
    ?assertMatch({error, {unavailable, _}}, ?SESSION:count_sessions()),
    ?assertMatch({error, {unavailable, _}}, ?SESSION:list_sessions(10, 0)),
    M = #{id => <<"m">>},
    {error, {partial, Failed}} = ?MESSAGE:store_message_for(Lost ++ Kept, M),
    ?assertEqual(lists:sort(Lost), lists:sort([C || {C, {unavailable, _}} <- Failed])),
    ?assertEqual(length(Lost), length(Failed)),
    [?assertEqual({ok, [M]}, ?MESSAGE:get_messages(C, 0, 10)) || C <- Kept],
    ?assertMatch({error, {unavailable, _}}, ?MESSAGE:store_message_for(Lost, M)),
    ok = ?CLUSTER:restart(Cluster, Victim),
    %% A master that comes back refuses for two seconds by itself.
    ok = ?CLUSTER:wait_until_healthy(Cluster),
    recovers_within(1000, L).

one_dead_master_stops_a_cluster_that_must_be_whole(Config) ->
    Cluster = cluster(Config),
    Masters = [Victim | Others] = ?CLUSTER:masters(Cluster),
    require_full_coverage(Cluster, Masters, yes),
    [C] = clients_of(Cluster, Others, 1),
    ok = ?SESSION:save_session(C, x),
    ok = ?CLUSTER:kill(Cluster, Victim),
    ?HELPERS:wait_until(fun() -> is_down(?SESSION:save_session(C, x)) end, 15000),
    %% Whatever comes now is told so at once, or after the one more that tries.
    {Micros, Result} = timer:tc(fun() -> ?SESSION:save_session(C, x) end),
    ?assert(is_down(Result), Result),
    ?assert(Micros < 1000000, Micros),
    ?assert(is_down(?SESSION:load_session(C))),
    ok = ?CLUSTER:restart(Cluster, Victim),
    %% The cluster itself takes its time until it is whole again.
    ok = ?CLUSTER:wait_until_healthy(Cluster),
    recovers_within(1000, C),
    require_full_coverage(Cluster, Masters, no).

is_down({error, {unavailable, {cluster_down, _}}}) -> true;
is_down(_) -> false.

require_full_coverage(Cluster, Masters, YesNo) ->
    Command = ["CONFIG", "SET", "cluster-require-full-coverage", YesNo],
    [<<"OK">> = ?CLUSTER:cli(Cluster, Master, Command) || Master <- Masters].

one_deadline_for_all_nodes(Config) ->
    Cluster = cluster(Config),
    [Victim | Others] = ?CLUSTER:masters(Cluster),
    Lost = clients_of(Cluster, [Victim], 100),
    Kept = clients_of(Cluster, Others, 400),
    M = #{id => <<"d">>},
    ok = ?CLUSTER:pause(Cluster, Victim),
    {error, {partial, Failed}} = within(500, 1100, fun() ->
        ?MESSAGE:store_message_for(Lost ++ Kept, M, #{timeout => 500})
    end),
    ?assertEqual(lists:sort([{C, timeout} || C <- Lost]), lists:sort(Failed)),
    Whole = within(500, 1100, fun() -> ?MESSAGE:store_message_for(Lost, M, #{timeout => 500}) end),
    ?assertEqual({error, timeout}, Whole),
    Keys = [["SET", <<"{", C/binary, "}">>, C] || C <- Lost ++ Kept],
    Pipeline = within(500, 1100, fun() -> emqx_redis_pool:pipeline(Keys, #{timeout => 500}) end),
    ?assertEqual({error, timeout}, Pipeline),
    Requests = [?SESSION:count_sessions_async(), ?SESSION:list_sessions_async(10, 0)],
    [
        ?assertMatch({reply, {error, _}}, emqx_redis_storage:receive_response(R, 5500))
     || R <- Requests
    ],
    ok = ?CLUSTER:resume(Cluster, Victim),
    recovers_within(3000, hd(Lost)),
    ?assertMatch({ok, _}, ?SESSION:count_sessions()).

within(Least, Most, Fun) ->
    {Micros, Result} = timer:tc(Fun),
    ?assert(Micros >= Least * 1000 andalso Micros =< Most * 1000, {Micros, Result}),
    Result.

%% What comes first waits for the grace, what comes later fails at once.
fails_after_grace(C) ->
    {First, Result} = timer:tc(fun() -> ?SESSION:save_session(C, x) end),
    ?assertMatch({error, {unavailable, _}}, Result),
    ?assert(First < 2000000, First),
    {Second, Again} = timer:tc(fun() -> ?SESSION:save_session(C, x) end),
    ?assertMatch({error, {unavailable, _}}, Again),
    ?assert(Second < 200000, Second).

recovers_within(Milliseconds, C) ->
    Begin = erlang:monotonic_time(millisecond),
    ?HELPERS:wait_until(fun() -> ?SESSION:save_session(C, back) =:= ok end, Milliseconds + 10000),
    Took = erlang:monotonic_time(millisecond) - Begin,
    ct:pal("recovered after ~b ms", [Took]),
    ?assert(Took =< Milliseconds, Took).

%%--------------------------------------------------------------------
%% Workers: each counts its own client's session up
%%--------------------------------------------------------------------

start_workers(Clients, Opts) ->
    Stop = atomics:new(1, []),
    First = #{saved => 0, tried => 0, slowest => 0, reasons => []},
    Start = fun(C) -> spawn_monitor(fun() -> exit({worked, C, work(C, Stop, Opts, First)}) end) end,
    {[Start(C) || C <- Clients], Stop}.

await_workers({Workers, Stop}) ->
    ok = atomics:put(Stop, 1, 1),
    maps:from_list([
        receive
            {'DOWN', Monitor, process, Pid, {worked, C, Result}} -> {C, Result};
            {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
        end
     || {Pid, Monitor} <- Workers
    ]).

work(C, Stop, Opts, Result = #{tried := Tried, slowest := Slowest, reasons := Reasons}) ->
    case atomics:get(Stop, 1) of
        1 ->
            Result;
        0 ->
            N = Tried + 1,
            {Micros, Saved} = timer:tc(fun() -> ?SESSION:save_session(C, N, Opts) end),
            Now = Result#{tried := N, slowest := max(Slowest, Micros div 1000)},
            case Saved of
                ok ->
                    work(C, Stop, Opts, Now#{saved := N});
                {error, Reason} ->
                    timer:sleep(20),
                    work(C, Stop, Opts, Now#{reasons := [Reason | Reasons -- [Reason]]})
            end
    end.

all_ok(Results) ->
    ?assertEqual([], [{C, Reasons} || {C, #{reasons := Reasons = [_ | _]}} <- maps:to_list(Results)]).

saved(C, Results) ->
    #{C := #{saved := Saved}} = Results,
    Saved.

slowest(Where, Clients, Results, Most) ->
    Slowest = lists:max([maps:get(slowest, maps:get(C, Results)) || C <- Clients]),
    Saves = lists:sum([saved(C, Results) || C <- Clients]),
    ct:pal("~s: ~b saves, the slowest took ~b ms", [Where, Saves, Slowest]),
    ?assert(Slowest < Most, {Where, Slowest}),
    Slowest.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

cluster(Config) -> proplists:get_value(cluster, Config).

%% New client ids whose slots these masters own.
clients_of(Cluster, Masters, Count) ->
    Slots = maps:from_keys(lists:append([?CLUSTER:slots(Cluster, Master) || Master <- Masters]), true),
    Run = erlang:unique_integer([positive]),
    Ids = [iolist_to_binary(io_lib:format("c~b-~b", [Run, N])) || N <- lists:seq(1, 10 * Count + 100)],
    lists:sublist([Id || Id <- Ids, is_map_key(?CLUSTER:key_slot(Id), Slots)], Count).
