%% How far a node lags behind the changes of another, and what readers lose while routes are changed. The
%% writer is this node, the other is a second VM on the same machine, with the same clock.
-module(emqx_redis_bench_lag).

-export([run/1]).
%% Called on the other node.
-export([watch/2, count/2]).

-define(SERVER, emqx_redis_test_server).
-define(DATA, emqx_redis_bench_data).
-define(ROUTER, emqx_redis_router).

%% Routes that are there all the while.
-define(ROUTES, 10000).
-define(WRITERS, 4).
%% Milliseconds between two batches of a writer, and between two changes that are watched.
-define(TICK, 20).
-define(PROBE, 20).
%% Routes changed by one call while readers are counted.
-define(BATCH, 100).
-define(READERS, [1, 2]).

run(#{duration := Duration}) ->
    Server = ?SERVER:start(#{tcp => true}),
    Config = ?SERVER:config(Server),
    ok = emqx_redis_storage:start(Config),
    Peer = start_peer(Config),
    try
        Filters = ?DATA:filters(?ROUTES),
        ok = ?ROUTER:add_routes([{Filter, ?DATA:node_name()} || Filter <- Filters]),
        {ok, _} = call(Peer, ?ROUTER, match_routes, [<<"a">>]),
        ok = emqx_redis_test_helpers:wait_until(fun() -> is_in_sync(Peer) end, 10000),
        Time = max(2000, 5 * Duration),
        Lags = [lag(Peer, Rate, Time) || Rate <- [1000, 50000]],
        ok = print_lags(Lags),
        print_churn([churn(Readers, Changes, Duration) || Readers <- ?READERS, Changes <- [none, some, all]])
    after
        peer:stop(Peer),
        emqx_redis_storage:stop(),
        ?SERVER:stop(Server)
    end.

%%--------------------------------------------------------------------
%% Lag
%%--------------------------------------------------------------------

%% {Wanted changes a second, done, sorted milliseconds from a change's answer until another node sees it}
lag(Peer, Rate, Time) ->
    Probes = Time div ?PROBE,
    Me = self(),
    _ = spawn_link(fun() -> Me ! {seen, call(Peer, ?MODULE, watch, [Rate, Probes])} end),
    Done = counters:new(1, []),
    Each = Rate * ?TICK div 1000 div ?WRITERS,
    Begin = erlang:monotonic_time(millisecond),
    Writers = [
        spawn_link(fun() -> write(Writer, Each, ?TICK, Begin, 0, Done) end)
     || Writer <- lists:seq(1, ?WRITERS)
    ],
    Told = [
        begin
            timer:sleep(?PROBE),
            ok = ?ROUTER:add_route(probe(Rate, N), ?DATA:node_name()),
            os:system_time(microsecond)
        end
     || N <- lists:seq(1, Probes)
    ],
    Took = erlang:monotonic_time(millisecond) - Begin,
    Changes = counters:get(Done, 1),
    lists:foreach(fun(Writer) -> unlink(Writer), exit(Writer, kill) end, Writers),
    Seen = receive {seen, Times} -> Times end,
    Lags = [max(0, At - Since) / 1000 || {Since, At} <- lists:zip(Told, Seen)],
    {Rate, Changes * 1000 div Took, lists:sort(Lags)}.

%% Adds some routes, then deletes them, and so on, at a steady rate if it can.
write(Writer, Count, Tick, Begin, N, Done) ->
    Routes = [{route(Writer, I), ?DATA:node_name()} || I <- lists:seq(1, Count)],
    ok = change(N, Routes),
    counters:add(Done, 1, Count),
    timer:sleep(max(0, Begin + (N + 1) * Tick - erlang:monotonic_time(millisecond))),
    write(Writer, Count, Tick, Begin, N + 1, Done).

change(N, Routes) when N rem 2 =:= 0 -> ?ROUTER:add_routes(Routes);
change(_, Routes) -> ?ROUTER:delete_routes(Routes).

route(Writer, I) ->
    <<"churn/", (integer_to_binary(Writer))/binary, "/", (integer_to_binary(I))/binary, "/+">>.

probe(Rate, N) ->
    <<"probe/", (integer_to_binary(Rate))/binary, "/", (integer_to_binary(N))/binary>>.

%% When each change was first seen here, to a millisecond or so.
watch(Rate, Probes) ->
    [await_probe(probe(Rate, N)) || N <- lists:seq(1, Probes)].

await_probe(Name) ->
    case ?ROUTER:match_routes(Name) of
        {ok, [_]} ->
            os:system_time(microsecond);
        Other when Other =:= {ok, []}; element(1, Other) =:= error ->
            timer:sleep(1),
            await_probe(Name)
    end.

%%--------------------------------------------------------------------
%% Churn
%%--------------------------------------------------------------------

%% #{readers, changes, asked_of_redis, matches}, by the second.
churn(Readers, Changes, Duration) ->
    Done = counters:new(1, []),
    Begin = erlang:monotonic_time(millisecond),
    Writers = [
        spawn_link(fun() -> write(Writer, ?BATCH, pace(Changes), Begin, 0, Done) end)
     || Changes =/= none, Writer <- lists:seq(1, 2)
    ],
    timer:sleep(200),
    Names = list_to_tuple([?DATA:name(three, N * 7919, ?ROUTES) || N <- lists:seq(1, 4096)]),
    Asked = asked_of_redis(),
    Before = counters:get(Done, 1),
    Start = erlang:monotonic_time(millisecond),
    Counters = [spawn_monitor(?MODULE, count, [Names, Start + 2 * Duration]) || _ <- lists:seq(1, Readers)],
    Matches = lists:sum([
        receive
            {'DOWN', Monitor, process, Pid, {counted, Count}} -> Count
        end
     || {Pid, Monitor} <- Counters
    ]),
    Took = erlang:monotonic_time(millisecond) - Start,
    Written = counters:get(Done, 1) - Before,
    lists:foreach(fun(Writer) -> unlink(Writer), exit(Writer, kill) end, Writers),
    timer:sleep(200),
    #{
        readers => Readers,
        changes => Written * 1000 div Took,
        matches => Matches * 1000 div Took,
        asked_of_redis => asked_of_redis() - Asked
    }.

%% Milliseconds from batch to batch: two writers make 2,000 changes a second, or as many as they can.
pace(some) -> 100;
pace(all) -> 0.

count(Names, End) -> exit({counted, count(Names, End, 0)}).

count(Names, End, Count) ->
    {ok, [_, _, _]} = ?ROUTER:match_routes(element(Count rem tuple_size(Names) + 1, Names)),
    case Count rem 64 =:= 0 andalso erlang:monotonic_time(millisecond) >= End of
        true -> Count + 1;
        false -> count(Names, End, Count + 1)
    end.

asked_of_redis() ->
    #{latency_us := Latencies} = emqx_redis_storage:status(),
    maps:get(count, maps:get(match_routes, Latencies, #{count => 0})).

%%--------------------------------------------------------------------
%% Tables
%%--------------------------------------------------------------------

print_lags(Lags) ->
    io:format("~nMilliseconds from a change's answer until another node sees it~n~n", []),
    io:format("| changes a second, wanted | done | p50 | p99 | most |~n|---:|---:|---:|---:|---:|~n", []),
    lists:foreach(
        fun({Rate, Done, All}) ->
            Figures = [quantile(All, Q) || Q <- [0.5, 0.99, 1.0]],
            io:format("| ~b | ~b | ~.1f | ~.1f | ~.1f |~n", [Rate, Done | Figures]),
            emqx_redis_bench_report:plot(io_lib:format("lag_~b.dat", [Rate]), [
                [Lag, N / length(All)] || {N, Lag} <- lists:zip(lists:seq(1, length(All)), All)
            ])
        end,
        Lags
    ).

quantile(Sorted, Q) -> lists:nth(max(1, ceil(Q * length(Sorted))), Sorted) * 1.0.

print_churn(Rows) ->
    io:format("~nMatches a second while routes are changed, three results among ~b filters~n~n", [?ROUTES]),
    io:format("| readers | changes a second | matches a second | of all, asked of Redis |~n", []),
    io:format("|---:|---:|---:|---:|~n", []),
    lists:foreach(
        fun(#{readers := Readers, changes := Changes, matches := Matches, asked_of_redis := Asked}) ->
            Numbers = [emqx_redis_bench_report:thousands(integer_to_list(N)) || N <- [Changes, Matches]],
            io:format("| ~b | ~s | ~s | ~b |~n", [Readers | Numbers] ++ [Asked])
        end,
        Rows
    ).

%%--------------------------------------------------------------------
%% The other node
%%--------------------------------------------------------------------

start_peer(Config) ->
    Paths = lists:append([["-pa", Path] || Path <- code:get_path()]),
    {ok, Peer, _Node} = peer:start_link(#{
        name => bench_reader,
        host => "127.0.0.1",
        longnames => true,
        connection => standard_io,
        args => ["-start_epmd", "false", "-dist_listen", "false" | Paths]
    }),
    ok = call(Peer, emqx_redis_storage, start, [Config]),
    Peer.

is_in_sync(Peer) ->
    case call(Peer, emqx_redis_storage, status, []) of
        #{routes := [#{in_sync := true, routes := Routes}]} -> Routes >= ?ROUTES;
        _ -> false
    end.

call(Peer, Module, Function, Arguments) -> peer:call(Peer, Module, Function, Arguments, 120000).
