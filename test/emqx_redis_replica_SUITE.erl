%% The routes in the memory of several nodes: that they are those in Redis, whatever happens to either.
-module(emqx_redis_replica_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(ROUTER, emqx_redis_router).
-define(SUBSCRIPTION, emqx_redis_subscription).
-define(HELPERS, emqx_redis_test_helpers).
-define(SERVER, emqx_redis_test_server).
-define(SET, emqx_redis_test_sentinels).
-define(CLUSTER, emqx_redis_test_cluster).
%% The least that is allowed.
-define(LEASE_TIMEOUT, 5000).

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [{group, single}, {group, sentinel}, {group, cluster}].

groups() ->
    [
        {single, cases() ++ single_cases()},
        {sentinel, cases() ++ [a_master_fails]},
        {cluster, cases() ++ [a_master_fails]}
    ].

cases() ->
    [
        a_change_is_seen_everywhere,
        own_changes_are_seen_at_once,
        subscriptions_have_options,
        routes_are_cleaned_up_by_hand,
        topics_in_pages,
        filters_of_subscriptions_in_pages,
        a_database_is_flushed
    ].

single_cases() ->
    [
        many_changes_at_once,
        what_is_misused,
        a_dead_node_is_purged,
        a_redis_that_stands_still_kills_nobody,
        a_node_that_stands_still_loses_its_lease,
        a_node_that_lags_loses_its_lease,
        what_is_changed_past_the_feed_is_noticed,
        a_database_is_swapped,
        old_routes_rather_than_none
    ].

init_per_group(single, Config) ->
    Server = ?SERVER:start(),
    start([{server, Server}, {masters, [Server]} | Config], ?SERVER:config(Server));
init_per_group(sentinel, Config) ->
    Set = ?SET:start(),
    start([{set, Set} | Config], ?SET:config(Set));
init_per_group(cluster, Config) ->
    Cluster = ?CLUSTER:start(),
    start([{cluster, Cluster} | Config], ?CLUSTER:config(Cluster)).

end_per_group(Group, Config) ->
    ok = emqx_redis_storage:stop(),
    peer:stop(proplists:get_value(peer, Config)),
    case Group of
        single -> ?SERVER:stop(proplists:get_value(server, Config));
        sentinel -> ?SET:stop(proplists:get_value(set, Config));
        cluster -> ?CLUSTER:stop(proplists:get_value(cluster, Config))
    end.

init_per_testcase(_Case, Config) -> Config.

end_per_testcase(_Case, _Config) ->
    [] = ?HELPERS:stray_messages(20),
    ok.

start(Config, Settings) ->
    All = Settings#{routes => #{lease_timeout => ?LEASE_TIMEOUT}},
    ok = emqx_redis_storage:start(All),
    %% It outlives the process that starts the group.
    Peer = start_peer(n2, All),
    unlink(Peer),
    {ok, _} = ?ROUTER:match_routes(<<"a">>),
    {ok, _} = call(Peer, ?ROUTER, match_routes, [<<"a">>]),
    await(fun in_sync/0),
    await(fun() -> call(Peer, ?MODULE, in_sync, []) end),
    [{peer, Peer}, {settings, All} | Config].

%%--------------------------------------------------------------------
%% On all topologies
%%--------------------------------------------------------------------

a_change_is_seen_everywhere(Config) ->
    Peer = peer_of(Config),
    Filters = [<<"e/1">>, <<"e/+">>, <<"$share/g/e/#">>, <<"+/1">>],
    Versions = [added(call(Peer, ?ROUTER, add_route, [F, n2(), #{version => true}])) || F <- Filters],
    [ok = ?ROUTER:sync(Version) || Version <- Versions],
    Asked = asked_of_redis(),
    ?assertEqual(lists:sort([{F, n2()} || F <- Filters]), matching(<<"e/1">>)),
    %% It was answered from memory.
    ?assertEqual(Asked, asked_of_redis()),
    [{ok, _} = call(Peer, ?ROUTER, delete_route, [F, n2(), #{version => true}]) || F <- Filters],
    await(fun() -> matching(<<"e/1">>) =:= [] end),
    %% Right after it is waited for.
    [
        begin
            {ok, Version} = call(Peer, ?ROUTER, Change, [<<"e/2">>, n2(), #{version => true}]),
            ok = ?ROUTER:sync(Version),
            ?assertEqual(Expected, matching(<<"e/2">>))
        end
     || _ <- lists:seq(1, 20), {Change, Expected} <- [{add_route, [{<<"e/2">>, n2()}]}, {delete_route, []}]
    ],
    %% How long a change of another node took.
    #{latency_us := #{feed_lag := #{count := Count, p50 := P50}}} = emqx_redis_storage:status(),
    ?assert(Count >= 8),
    ?assert(P50 < 100_000).

own_changes_are_seen_at_once(_Config) ->
    [
        begin
            Filter = <<"own/", (integer_to_binary(N rem 7))/binary, "/+">>,
            Name = binary:replace(Filter, <<"+">>, <<"x">>),
            ok = ?ROUTER:add_route(Filter, n1),
            ?assertEqual([{Filter, n1}], matching(Name)),
            ok = ?ROUTER:delete_route(Filter, n1),
            ?assertEqual([], matching(Name))
        end
     || N <- lists:seq(1, 300)
    ],
    ?assert(in_sync()).

subscriptions_have_options(Config) ->
    Peer = peer_of(Config),
    Clients = [integer_to_binary(N) || N <- lists:seq(1, 300)],
    All = [{<<"s/+">>, Client, #{qos => 1, nl => 0}} || Client <- Clients],
    {ok, Version} = call(Peer, ?SUBSCRIPTION, add_subscriptions, [All, #{version => true}]),
    ok = ?ROUTER:sync(Version),
    {ok, Found} = ?SUBSCRIPTION:match_subscriptions(<<"s/x">>),
    ?assertEqual(lists:sort(All), lists:sort(Found)),
    ok = ?SUBSCRIPTION:add_subscription(<<"s/+">>, <<"7">>, {other, options}),
    ok = ?SUBSCRIPTION:add_subscription(<<"s/x">>, <<"7">>, undefined),
    Of7 = fun(Matches) -> lists:sort([Match || {_, <<"7">>, _} = Match <- Matches]) end,
    Expected = [{<<"s/+">>, <<"7">>, {other, options}}, {<<"s/x">>, <<"7">>, undefined}],
    {ok, Changed} = ?SUBSCRIPTION:match_subscriptions(<<"s/x">>),
    ?assertEqual(Expected, Of7(Changed)),
    await(fun() ->
        {ok, Seen} = call(Peer, ?SUBSCRIPTION, match_subscriptions, [<<"s/x">>]),
        Of7(Seen) =:= Expected
    end),
    ?assertEqual({ok, []}, ?ROUTER:match_routes(<<"s/x">>)),
    ok = ?SUBSCRIPTION:delete_subscription(<<"s/x">>, <<"7">>),
    ok = ?SUBSCRIPTION:delete_subscriptions([{<<"s/+">>, Client} || Client <- Clients]),
    ?assertEqual({ok, []}, ?SUBSCRIPTION:match_subscriptions(<<"s/x">>)).

routes_are_cleaned_up_by_hand(Config) ->
    Peer = peer_of(Config),
    Gone = [{<<"c/", (integer_to_binary(N))/binary, "/+">>, gone@host} || N <- lists:seq(1, 500)],
    ok = ?ROUTER:add_routes(Gone),
    ok = ?ROUTER:add_route(<<"c/1/+">>, node()),
    {ok, V} = call(Peer, ?ROUTER, add_route, [<<"c/1/+">>, n2(), #{version => true}]),
    ok = ?ROUTER:sync(V),
    ?assertEqual({ok, 500}, ?ROUTER:cleanup_routes(gone@host)),
    ?assertEqual({ok, 0}, ?ROUTER:cleanup_routes(gone@host)),
    %% Its own routes stay, and those of a node that lives come back.
    ?assertEqual({ok, 0}, ?ROUTER:cleanup_routes(node())),
    ?assertEqual({ok, 1}, ?ROUTER:cleanup_routes(n2())),
    await(fun() -> matching(<<"c/1/x">>) =:= lists:sort([{<<"c/1/+">>, N} || N <- [n2(), node()]]) end),
    ok = ?ROUTER:delete_route(<<"c/1/+">>, node()),
    ok = call(Peer, ?ROUTER, delete_route, [<<"c/1/+">>, n2()]).

topics_in_pages(_Config) ->
    Routes = [{<<"t", (integer_to_binary(N))/binary, "/x">>, n1} || N <- lists:seq(1, 1200)],
    ok = ?ROUTER:add_routes(Routes),
    {ok, Topics} = ?ROUTER:topics(),
    ?assertEqual(lists:sort(Topics), lists:sort(pages(fun ?ROUTER:topics/2, start))),
    ?assert(length(Topics) >= 1200),
    ok = ?ROUTER:delete_routes(Routes).

filters_of_subscriptions_in_pages(_Config) ->
    All = [{<<"s", (integer_to_binary(N rem 1200))/binary, "/+">>, client(N), N} || N <- lists:seq(1, 1500)],
    ok = ?SUBSCRIPTION:add_subscriptions(All),
    Filters = lists:usort([Filter || {Filter, _, _} <- All]),
    ?assertEqual(Filters, lists:sort(pages(fun ?SUBSCRIPTION:filters/2, start))),
    ok = ?SUBSCRIPTION:delete_subscriptions([{Filter, Client} || {Filter, Client, _} <- All]),
    ?assertEqual([], pages(fun ?SUBSCRIPTION:filters/2, start)).

client(N) -> <<"c", (integer_to_binary(N))/binary>>.

pages(_List, done) ->
    [];
pages(List, Cursor) ->
    {ok, {Topics, Next}} = List(700, Cursor),
    ?assert(length(Topics) =< 700),
    Topics ++ pages(List, Next).

%% What a node added for itself it adds again; the rest is gone.
a_database_is_flushed(Config) ->
    Peer = peer_of(Config),
    Own = [<<"f/+">>, <<"f/#">>, <<"+/f">>],
    [ok = ?ROUTER:add_route(F, node()) || F <- Own],
    ok = ?ROUTER:add_route(<<"f/+">>, n9),
    ok = call(Peer, ?ROUTER, add_route, [<<"f/f">>, n2()]),
    [<<"OK">> = ?SERVER:cli(Master, ["FLUSHALL"]) || Master <- masters(Config)],
    Expected = lists:sort([{<<"f/f">>, n2()} | [{F, node()} || F <- Own]]),
    await(fun() -> in_sync() andalso matching(<<"f/f">>) =:= Expected end),
    await(fun() -> lists:sort(in_redis(<<"f/f">>)) =:= Expected end),
    await(fun() -> matching(Peer, <<"f/f">>) =:= Expected end),
    [ok = ?ROUTER:delete_route(F, node()) || F <- Own],
    ok = call(Peer, ?ROUTER, delete_route, [<<"f/f">>, n2()]).

a_master_fails(Config) ->
    Peer = peer_of(Config),
    Filters = [<<"m", (integer_to_binary(N))/binary, "/+">> || N <- lists:seq(1, 100)],
    ok = ?ROUTER:add_routes([{F, node()} || F <- Filters]),
    ok = call(Peer, ?ROUTER, add_routes, [[{F, n2()} || F <- Filters]]),
    case proplists:get_value(cluster, Config) of
        undefined ->
            Set = proplists:get_value(set, Config),
            Old = ?SET:master(Set),
            ok = ?SET:kill(Set, Old),
            _ = ?SET:wait_until_promoted(Set, Old);
        Cluster ->
            [Old | _] = ?CLUSTER:masters(Cluster),
            ok = ?CLUSTER:kill(Cluster, Old),
            _ = ?CLUSTER:wait_until_promoted(Cluster, Old)
    end,
    %% Even what the new master had not received: its nodes add it again.
    IsThere = fun(Match) ->
        lists:all(
            fun(F) -> Match(binary:replace(F, <<"+">>, <<"x">>)) =:= lists:sort([{F, n2()}, {F, node()}]) end,
            Filters
        )
    end,
    await(fun() -> in_sync() andalso call(Peer, ?MODULE, in_sync, []) end, 20000),
    await(fun() -> IsThere(fun matching/1) end),
    await(fun() -> IsThere(fun(Name) -> matching(Peer, Name) end) end),
    ok = ?ROUTER:delete_routes([{F, node()} || F <- Filters]),
    ok = call(Peer, ?ROUTER, delete_routes, [[{F, n2()} || F <- Filters]]).

%%--------------------------------------------------------------------
%% On one server
%%--------------------------------------------------------------------

many_changes_at_once(Config) ->
    Peer = peer_of(Config),
    Chunks = [
        [{<<"b/", (integer_to_binary(N))/binary, "/+">>, n1} || N <- lists:seq(From, From + 9999)]
     || From <- lists:seq(1, 50_000, 10_000)
    ],
    [ok = ?ROUTER:add_routes(Chunk) || Chunk <- Chunks],
    [ok = ?ROUTER:delete_routes(Chunk) || Chunk <- tl(Chunks)],
    %% Again and again: nothing changes.
    ok = ?ROUTER:add_routes(hd(Chunks)),
    {ok, Version} = ?ROUTER:delete_routes(lists:last(Chunks), #{version => true}),
    ok = call(Peer, ?ROUTER, sync, [Version]),
    [?assertEqual(10_000, routes(Status)) || Status <- [status(), call(Peer, ?MODULE, status, [])]],
    ?assertEqual([{<<"b/77/+">>, n1}], matching(Peer, <<"b/77/x">>)),
    ?assertEqual([], matching(Peer, <<"b/30000/x">>)),
    ok = ?ROUTER:delete_routes(hd(Chunks)).

what_is_misused(_Config) ->
    [
        ?assertError(badarg, Call())
     || Call <- [
            fun() -> ?ROUTER:add_routes([{<<"a">>}]) end,
            fun() -> ?ROUTER:add_routes([{<<"a">>, 1}]) end,
            fun() -> ?ROUTER:add_routes(not_a_list) end,
            fun() -> ?ROUTER:add_route(<<"a">>, n1, #{ttl => 1}) end,
            fun() -> ?ROUTER:add_route(<<"a">>, n1, #{version => 1}) end,
            fun() -> ?ROUTER:topics(0, start) end,
            fun() -> ?ROUTER:sync([{0, -1}]) end,
            fun() -> ?ROUTER:topics(1, elsewhere) end,
            fun() -> ?SUBSCRIPTION:filters(0, start) end,
            fun() -> ?SUBSCRIPTION:filters(1, elsewhere) end,
            fun() -> ?ROUTER:sync(not_a_version) end,
            fun() -> ?ROUTER:sync([], #{nodes => some}) end,
            fun() -> ?ROUTER:cleanup_routes(1) end,
            fun() -> ?SUBSCRIPTION:add_subscription(<<"a">>, not_a_client, #{}) end,
            fun() -> ?SUBSCRIPTION:delete_subscriptions([{<<"a">>, 1}]) end
        ]
    ],
    Invalid = {error, {invalid_topic, multi_level_wildcard}},
    ?assertEqual(Invalid, ?ROUTER:add_routes([{<<"a">>, n1}, {<<"#/a">>, n1}])),
    ?assertEqual(Invalid, ?SUBSCRIPTION:add_subscription(<<"#/a">>, <<"c">>, #{})),
    ?assertEqual({error, {invalid_topic, wildcard_in_name}}, ?ROUTER:match_routes(<<"a/+">>)),
    ?assertEqual({error, {invalid_topic, empty}}, ?SUBSCRIPTION:match_subscriptions(<<>>)),
    ?assertEqual({ok, []}, ?ROUTER:match_routes(<<"a">>)).

a_dead_node_is_purged(Config) ->
    Settings = proplists:get_value(settings, Config),
    Peer = start_peer(n3, Settings),
    N3 = 'n3@127.0.0.1',
    Filters = [<<"d/", (integer_to_binary(N))/binary>> || N <- lists:seq(1, 250)],
    Wild = <<"d/+">>,
    ok = call(Peer, ?ROUTER, add_routes, [[{F, N3} || F <- [Wild | Filters]]]),
    ok = ?ROUTER:add_route(Wild, node()),
    await(fun() -> call(Peer, ?ROUTER, is_leased, []) end),
    await(fun() -> length(matching(<<"d/1">>)) =:= 3 end),
    Killed = erlang:monotonic_time(millisecond),
    kill(Peer),
    await(fun() -> matching(<<"d/1">>) =:= [{Wild, node()}] end, 20000),
    ?assert(erlang:monotonic_time(millisecond) - Killed >= ?LEASE_TIMEOUT - 1000),
    await(fun() -> lists:usort([N || F <- Filters, {_, N} <- matching(F)]) =:= [node()] end),
    %% It returns under its name before anybody has noticed that it was gone.
    Again = start_peer(n3, Settings),
    ok = call(Again, ?ROUTER, add_route, [Wild, N3]),
    kill(Again),
    Third = start_peer(n3, Settings),
    ok = call(Third, ?ROUTER, add_route, [<<"d/1">>, N3]),
    timer:sleep(?LEASE_TIMEOUT + 2000),
    ?assertEqual(lists:sort([{Wild, node()}, {Wild, N3}, {<<"d/1">>, N3}]), matching(<<"d/1">>)),
    %% What its life before has left behind it takes away itself.
    ?assertEqual({ok, 1}, call(Third, ?ROUTER, cleanup_routes, [N3])),
    await(fun() -> matching(<<"d/1">>) =:= [{<<"d/+">>, node()}, {<<"d/1">>, N3}] end),
    ok = call(Third, ?ROUTER, delete_route, [<<"d/1">>, N3]),
    ok = call(Third, emqx_redis_storage, stop, []),
    peer:stop(Third),
    ok = ?ROUTER:delete_route(Wild, node()).

a_redis_that_stands_still_kills_nobody(Config) ->
    Peer = peer_of(Config),
    ok = call(Peer, ?ROUTER, add_route, [<<"p/+">>, n2()]),
    ok = ?ROUTER:add_route(<<"p/+">>, node()),
    Server = proplists:get_value(server, Config),
    ok = ?SERVER:pause(Server),
    timer:sleep(?LEASE_TIMEOUT + 2000),
    %% It is not known whether memory is true.
    ?assertMatch({error, _}, ?ROUTER:match_routes(<<"p/x">>)),
    ?assertNot(?ROUTER:is_leased()),
    ok = ?SERVER:resume(Server),
    await(fun() -> in_sync() andalso call(Peer, ?MODULE, in_sync, []) end),
    #{counters := #{purged_routes := Before}} = emqx_redis_storage:status(),
    timer:sleep(?LEASE_TIMEOUT + 1000),
    #{counters := #{purged_routes := After}} = emqx_redis_storage:status(),
    ?assertEqual(Before, After),
    Both = lists:sort([{<<"p/+">>, N} || N <- [node(), n2()]]),
    ?assertEqual(Both, matching(<<"p/x">>)),
    ?assertEqual(Both, matching(Peer, <<"p/x">>)),
    ok = call(Peer, ?ROUTER, delete_route, [<<"p/+">>, n2()]),
    ok = ?ROUTER:delete_route(<<"p/+">>, node()).

a_node_that_stands_still_loses_its_lease(Config) ->
    Peer = start_peer(n3, proplists:get_value(settings, Config)),
    ok = call(Peer, ?ROUTER, add_route, [<<"l/own">>, 'n3@127.0.0.1']),
    await(fun() -> ?ROUTER:is_leased() andalso call(Peer, ?ROUTER, is_leased, []) end),
    {ok, First} = ?ROUTER:add_route(<<"l/1">>, n1, #{version => true}),
    {Took, ok} = timed(fun() -> ?ROUTER:sync(First, #{nodes => all}) end),
    ?assert(Took < 1000),
    ?assertEqual([{<<"l/1">>, n1}], matching(Peer, <<"l/1">>)),
    while_stopped(Peer, fun() ->
        {ok, Second} = ?ROUTER:add_route(<<"l/2">>, n1, #{version => true}),
        ?assertEqual({error, timeout}, ?ROUTER:sync(Second, #{nodes => all, timeout => 500})),
        {Waited, ok} = timed(fun() -> ?ROUTER:sync(Second, #{nodes => all, timeout => 15000}) end),
        %% Until it is taken for dead.
        ?assert(Waited > 3000)
    end),
    %% It knows at once that it knows nothing; then it catches up, and its own routes are there though it was
    %% taken for dead.
    await(fun() -> matching(Peer, <<"l/2">>) =:= [{<<"l/2">>, n1}] end),
    await(fun() -> call(Peer, ?ROUTER, is_leased, []) end),
    await(fun() -> matching(<<"l/own">>) =:= [{<<"l/own">>, 'n3@127.0.0.1'}] end),
    ok = call(Peer, ?ROUTER, delete_route, [<<"l/own">>, 'n3@127.0.0.1']),
    ok = ?ROUTER:delete_routes([{<<"l/1">>, n1}, {<<"l/2">>, n1}]),
    ok = call(Peer, emqx_redis_storage, stop, []),
    peer:stop(Peer).

%% Long before it is taken for dead. It knows before the others that it knows nothing.
a_node_that_lags_loses_its_lease(Config) ->
    Settings = #{routes := Routes} = proplists:get_value(settings, Config),
    Patient = Settings#{routes := Routes#{lease_timeout => 60000}},
    Peer = start_peer(n3, Patient),
    Others = [fun apply/3, fun(M, F, A) -> call(peer_of(Config), M, F, A) end],
    [ok = Other(emqx_redis_storage, start, [Patient]) || Other <- Others],
    {ok, _} = call(Peer, ?ROUTER, match_routes, [<<"x">>]),
    await(fun() -> ?ROUTER:is_leased() andalso call(Peer, ?ROUTER, is_leased, []) end),
    while_stopped(Peer, fun() ->
        {ok, Version} = ?ROUTER:add_route(<<"l/3">>, n1, #{version => true}),
        {Waited, ok} = timed(fun() -> ?ROUTER:sync(Version, #{nodes => all, timeout => 15000}) end),
        ?assert(Waited >= 7000),
        %% Nobody waits for it any more.
        {ok, Next} = ?ROUTER:add_route(<<"l/4">>, n1, #{version => true}),
        {Took, ok} = timed(fun() -> ?ROUTER:sync(Next, #{nodes => all}) end),
        ?assert(Took < 2000)
    end),
    ?assertNot(call(Peer, ?ROUTER, is_leased, []) andalso matching(Peer, <<"l/4">>) =:= []),
    await(fun() -> call(Peer, ?ROUTER, is_leased, []) end),
    ?assertEqual([{<<"l/4">>, n1}], matching(Peer, <<"l/4">>)),
    ok = call(Peer, emqx_redis_storage, stop, []),
    peer:stop(Peer),
    [ok = Other(emqx_redis_storage, start, [Settings]) || Other <- Others],
    ok = ?ROUTER:delete_routes([{<<"l/3">>, n1}, {<<"l/4">>, n1}]).

what_is_changed_past_the_feed_is_noticed(Config) ->
    Server = proplists:get_value(server, Config),
    ok = ?ROUTER:add_route(<<"h/1">>, n1),
    ?assertEqual([{<<"h/1">>, n1}], matching(<<"h/1">>)),
    1 = ?SERVER:cli(Server, ["DEL", "route:h/1"]),
    1 = ?SERVER:cli(Server, ["ZREM", "sync:routes", "h/1"]),
    await(fun() -> matching(<<"h/1">>) =:= [] end),
    await(fun() -> matching(peer_of(Config), <<"h/1">>) =:= [] end).

a_database_is_swapped(Config) ->
    Server = proplists:get_value(server, Config),
    ok = ?ROUTER:add_route(<<"w/+">>, node()),
    ok = ?ROUTER:add_route(<<"w/+">>, n9),
    <<"OK">> = ?SERVER:cli(Server, ["SWAPDB", 0, 1]),
    Own = [{<<"w/+">>, node()}],
    await(fun() -> in_sync() andalso matching(<<"w/x">>) =:= Own andalso in_redis(<<"w/x">>) =:= Own end),
    <<"OK">> = ?SERVER:cli(Server, ["SWAPDB", 0, 1]),
    Both = lists:sort([{<<"w/+">>, N} || N <- [n9, node()]]),
    await(fun() -> in_sync() andalso matching(<<"w/x">>) =:= Both end),
    ok = ?ROUTER:delete_routes([{<<"w/+">>, N} || N <- [n9, node()]]).

old_routes_rather_than_none(Config) ->
    Settings = #{routes := Routes} = proplists:get_value(settings, Config),
    ok = emqx_redis_storage:start(Settings#{routes := Routes#{when_out_of_sync => stale}}),
    ok = ?ROUTER:add_route(<<"o/+">>, n1),
    Server = proplists:get_value(server, Config),
    ok = ?SERVER:pause(Server),
    timer:sleep(3500),
    ?assertNot(in_sync()),
    ?assertEqual([{<<"o/+">>, n1}], matching(<<"o/x">>)),
    ok = ?SERVER:resume(Server),
    await(fun in_sync/0),
    ok = ?ROUTER:delete_route(<<"o/+">>, n1),
    ok = emqx_redis_storage:start(Settings).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

start_peer(Name, Settings) ->
    Paths = lists:append([["-pa", Dir] || Dir <- code:get_path()]),
    {ok, Peer, _Node} = peer:start_link(#{
        name => Name,
        host => "127.0.0.1",
        longnames => true,
        connection => standard_io,
        args => ["-start_epmd", "false", "-dist_listen", "false" | Paths]
    }),
    ok = call(Peer, emqx_redis_storage, start, [Settings]),
    Peer.

%% Without a chance to say anything.
kill(Peer) ->
    unlink(Peer),
    _ = os:cmd("kill -KILL " ++ call(Peer, os, getpid, [])),
    try peer:stop(Peer) catch exit:_ -> ok end.

%% One that stays stopped would never end.
while_stopped(Peer, Fun) ->
    Pid = call(Peer, os, getpid, []),
    _ = os:cmd("kill -STOP " ++ Pid),
    try
        Fun()
    after
        os:cmd("kill -CONT " ++ Pid)
    end.

peer_of(Config) -> proplists:get_value(peer, Config).

n2() -> 'n2@127.0.0.1'.

call(Peer, Module, Function, Arguments) -> peer:call(Peer, Module, Function, Arguments, 30000).

masters(Config) ->
    case proplists:get_value(masters, Config) of
        undefined ->
            case proplists:get_value(cluster, Config) of
                undefined -> [?SET:master(proplists:get_value(set, Config))];
                Cluster -> ?CLUSTER:masters(Cluster)
            end;
        Masters ->
            Masters
    end.

added({ok, Version}) -> Version.

matching(Name) ->
    case ?ROUTER:match_routes(Name) of
        {ok, Routes} -> lists:sort(Routes);
        {error, _} = Error -> Error
    end.

matching(Peer, Name) -> call(Peer, ?MODULE, matching, [Name]).

in_redis(Name) ->
    case emqx_redis_test_storage:match_in_redis(Name) of
        {ok, Routes} -> Routes;
        {error, _} -> []
    end.

status() -> emqx_redis_storage:status().

in_sync() ->
    #{routes := Shards} = status(),
    Shards =/= [] andalso lists:all(fun(#{in_sync := InSync}) -> InSync end, Shards).

routes(#{routes := Shards}) -> lists:sum([Routes || #{routes := Routes} <- Shards]).

asked_of_redis() ->
    #{latency_us := Latencies} = status(),
    maps:get(count, maps:get(match_routes, Latencies, #{count => 0})).

await(Condition) -> await(Condition, 10000).

await(Condition, Timeout) -> ok = ?HELPERS:wait_until(Condition, Timeout).

timed(Fun) ->
    Begin = erlang:monotonic_time(millisecond),
    Result = Fun(),
    {erlang:monotonic_time(millisecond) - Begin, Result}.
