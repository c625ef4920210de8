%% Redis is away for longer than requests wait, and the load goes on: each call fails at once, memory stays
%% where it is, few connections are tried, and all is well within a second of its return.
-module(emqx_redis_long_outage_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(SENTINELS, emqx_redis_test_sentinels).
-define(CLUSTER, emqx_redis_test_cluster).
-define(PROXY, emqx_redis_test_proxy).
-define(HELPERS, emqx_redis_test_helpers).
-define(OUTAGE, 6000).
-define(GRACE, 3000).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [a_killed_server, a_server_out_of_reach, a_sentinel_set_out_of_reach, a_cluster_out_of_reach].

end_per_testcase(_Case, _Config) ->
    _ = emqx_redis_storage:stop(),
    ok = emqx_redis_test_topology:stop_all(),
    ok = ?SERVER:stop_all(),
    ?assertEqual([], ?HELPERS:stray_messages(20)).

a_killed_server(_Config) ->
    Server = ?SERVER:start(#{tcp => true}),
    start(?SERVER:config(Server)),
    ok = ?SERVER:kill(Server),
    ?assertEqual({error, {unavailable, econnrefused}}, waits_for_the_grace()),
    fails_fast_and_costs_no_memory(),
    ok = ?SERVER:restart(Server),
    recovers_within(1000).

a_server_out_of_reach(_Config) ->
    Server = ?SERVER:start(#{tcp => true}),
    Proxy = ?PROXY:start(?SERVER:address(Server)),
    start(#{redis => #{servers => ?PROXY:servers(Proxy)}}),
    out_of_reach([Proxy], 8).

%% The sentinel goes the same way and tries as well, five times a second, and does not take it for down.
a_sentinel_set_out_of_reach(_Config) ->
    Alone = #{replicas => 0, sentinels => 1, quorum => 1},
    Set = ?SENTINELS:start(Alone#{proxied => true, down_after => 60000}),
    start(?SENTINELS:config(Set)),
    out_of_reach([?SENTINELS:proxy(Set, ?SENTINELS:master(Set))], 14).

a_cluster_out_of_reach(_Config) ->
    Cluster = ?CLUSTER:start(#{masters => 3, replicas => 0, proxied => true}),
    start(?CLUSTER:config(Cluster)),
    out_of_reach([?CLUSTER:proxy(Cluster, Node) || Node <- ?CLUSTER:nodes(Cluster)], 10).

out_of_reach(Proxies, MostPerSecond) ->
    [ok = ?PROXY:set_mode(Proxy, refuse) || Proxy <- Proxies],
    [ok = ?PROXY:cut(Proxy) || Proxy <- Proxies],
    waits_for_the_grace(),
    Before = accepted(Proxies),
    Milliseconds = fails_fast_and_costs_no_memory(),
    Tried = increase(Before, accepted(Proxies)),
    ct:pal("~w connections tried in ~b ms", [Tried, Milliseconds]),
    %% Two are wanted, callers' commands having one of their own, and each is tried every half second or so;
    %% who serves what is asked three times a second.
    Least = Milliseconds div 1000,
    [?assert(Each >= Least andalso Each =< Milliseconds * MostPerSecond div 1000, Tried) || Each <- Tried],
    Away = accepted(Proxies),
    [ok = ?PROXY:set_mode(Proxy, forward) || Proxy <- Proxies],
    recovers_within(1000),
    timer:sleep(1000),
    Made = increase(Away, accepted(Proxies)),
    ct:pal("~w connections made", [Made]),
    [?assert(Each =< 12, Made) || Each <- Made].

accepted(Proxies) -> [?PROXY:accepted_count(Proxy) || Proxy <- Proxies].

increase(Before, After) -> lists:zipwith(fun(B, A) -> A - B end, Before, After).

start(#{redis := Redis} = Config) ->
    ok = emqx_redis_storage:start(Config#{redis := Redis#{outage_grace => ?GRACE}}),
    ?HELPERS:wait_until(fun() -> maps:get(connected, emqx_redis_storage:status()) end),
    [ok = emqx_redis_session:save_session(client(N), x) || N <- lists:seq(1, 100)].

%% Within the grace requests wait. One may have been sent on a connection that was cut a moment later.
waits_for_the_grace() ->
    ?HELPERS:wait_until(fun() -> not maps:get(connected, emqx_redis_storage:status()) end, 10000),
    {Micros, Result} = timer:tc(fun() -> emqx_redis_session:save_session(client(1), x) end),
    ?assert(Micros > ?GRACE * 300 andalso Micros < (?GRACE + 1000) * 1000, Micros),
    %% That of other nodes may have begun later.
    [emqx_redis_session:save_session(client(N), x) || N <- lists:seq(1, 100)],
    Result.

%% Answers the milliseconds that it took.
fails_fast_and_costs_no_memory() ->
    Begin = erlang:monotonic_time(millisecond),
    Data = binary:copy(<<"x">>, 1000),
    _ = hammer(Data, 1500),
    {Beam, Rss} = memory(),
    {Count, Median, P99} = hammer(Data, ?OUTAGE),
    {BeamAfter, RssAfter} = memory(),
    ct:pal("~b refusals, median ~b us, p99 ~b us, VM ~p to ~p bytes, RSS ~p to ~p kB", [
        Count, Median, P99, Beam, BeamAfter, Rss, RssAfter
    ]),
    ?assert(Median < 500 andalso P99 < 5000, {Median, P99}),
    ?assert(BeamAfter - Beam < 8 * 1024 * 1024, {Beam, BeamAfter}),
    %% All of the load is many times that.
    ?assert(Count > 50000, Count),
    ?assert(RssAfter - Rss < 40 * 1024, {Rss, RssAfter}),
    erlang:monotonic_time(millisecond) - Begin.

hammer(Data, Milliseconds) ->
    Until = erlang:monotonic_time(millisecond) + Milliseconds,
    Started = [spawn_monitor(fun() -> exit({times, hammer_until(Until, Data, 0, [])}) end) || _ <- [1, 2]],
    Results = [
        receive
            {'DOWN', Monitor, process, Pid, {times, Result}} -> Result
        end
     || {Pid, Monitor} <- Started
    ],
    Times = lists:sort(lists:append([T || {_, T} <- Results])),
    Nth = fun(Share) -> lists:nth(max(1, trunc(length(Times) * Share)), Times) end,
    {lists:sum([C || {C, _} <- Results]), Nth(0.5), Nth(0.99)}.

hammer_until(Until, Data, Count, Times) ->
    Begin = erlang:monotonic_time(microsecond),
    {error, {unavailable, _}} = emqx_redis_session:save_session(client(Count rem 100), Data),
    Time = erlang:monotonic_time(microsecond) - Begin,
    case Begin > Until * 1000 of
        true -> {Count, Times};
        %% Few enough that they are not what takes memory.
        false when Count rem 1000 =:= 0 -> hammer_until(Until, Data, Count + 1, [Time | Times]);
        false -> hammer_until(Until, Data, Count + 1, Times)
    end.

memory() ->
    [erlang:garbage_collect(Pid) || Pid <- processes()],
    {erlang:memory(total), ?HELPERS:memory_kb()}.

%% Everywhere, from now on.
recovers_within(Milliseconds) ->
    Begin = erlang:monotonic_time(millisecond),
    [
        ?HELPERS:wait_until(fun() -> emqx_redis_session:save_session(client(N), back) =:= ok end, 10000)
     || N <- lists:seq(1, 100)
    ],
    Took = erlang:monotonic_time(millisecond) - Begin,
    ct:pal("recovered after ~b ms", [Took]),
    ?assert(Took =< Milliseconds, Took).

client(N) -> <<"c", (integer_to_binary(N))/binary>>.
