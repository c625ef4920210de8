%% What topologies and levels of durability cost, side by side in one run: the same client does the same
%% writes on one server, on a cluster of three masters, and on a master with two replicas that are
%% waited for or not. All servers share this machine, so that three masters can't give three
%% times as much here.
-module(emqx_redis_bench_topologies).

-export([names/0, run/2]).

-define(WRITES, [save_session, store_message, ack_message]).

%% A name of the environment's TOPOLOGIES, how its servers are started, and the levels that are tried there.
names() -> ["single", "always", "cluster", "sentinel"].

levels("sentinel") -> [<<"none">>, <<"replicas:1">>, <<"replicas:2">>];
levels(_Name) -> [<<"none">>].

-spec run([string()], map()) -> ok.
run([], _Settings) ->
    ok;
run(Names, Settings) ->
    io:format("~nTopologies and durability~n", []),
    io:format(
        "~n| topology | durability | callers | operation | ops/s | p50, us | p99, us | BEAM CPU, us "
        "| masters' CPU, us |~n|---|---|---:|---|---:|---:|---:|---:|---:|~n",
        []
    ),
    Rows = lists:append([topology(Name, Settings) || Name <- Names]),
    io:format("~n", []),
    ratio(Rows, Settings).

topology(Name, Settings) ->
    {Target, Stop} = start(Name),
    try
        [
            row(Name, Level, Callers, Operation, cell(Target, Level, Callers, Operation, Settings))
         || Level <- levels(Name), Callers <- maps:get(callers, Settings), Operation <- ?WRITES
        ]
    after
        Stop()
    end.

start("single") ->
    Server = emqx_redis_test_server:start(#{tcp => true}),
    {emqx_redis_bench_target:of_server(Server), fun() -> emqx_redis_test_server:stop(Server) end};
start("always") ->
    Server = emqx_redis_test_server:start(#{tcp => true, appendonly => true}),
    {emqx_redis_bench_target:of_server(Server), fun() -> emqx_redis_test_server:stop(Server) end};
start("cluster") ->
    Cluster = emqx_redis_test_cluster:start(#{masters => 3, replicas => 0}),
    Target = emqx_redis_bench_target:of_set(
        emqx_redis_test_cluster:masters(Cluster), emqx_redis_test_cluster:config(Cluster)
    ),
    {Target, fun() -> emqx_redis_test_cluster:stop(Cluster) end};
start("sentinel") ->
    Set = emqx_redis_test_sentinels:start(),
    Target = emqx_redis_bench_target:of_set(
        [emqx_redis_test_sentinels:master(Set)], emqx_redis_test_sentinels:config(Set)
    ),
    {Target, fun() -> emqx_redis_test_sentinels:stop(Set) end}.

cell(Target = #{config := Config}, Level, Callers, Operation, Settings = #{rounds := Rounds}) ->
    Leveled = Config#{persistence => #{durability => Level}},
    Cell = Settings#{
        target => Target#{config := Leveled}, operation => Operation, callers => Callers
    },
    emqx_redis_bench_driver:median([
        emqx_redis_bench_driver:run({emqx_redis_bench_library, full}, Cell)
     || _ <- lists:seq(1, Rounds)
    ]).

row(Name, Level, Callers, Operation, Figures) ->
    Numbers = [
        emqx_redis_bench_report:number(maps:get(Figure, Figures))
     || Figure <- [rate, p50, p99, beam_cpu, redis_cpu]
    ],
    io:format("| ~s | ~s | ~b | ~s | ~s |~n", [
        title(Name), Level, Callers, Operation, lists:join(" | ", Numbers)
    ]),
    {Name, Level, Callers, Operation, Figures}.

title("always") -> "single, appendfsync always";
title("cluster") -> "cluster, 3 masters";
title("sentinel") -> "sentinel, 2 replicas";
title(Name) -> Name.

%% Three masters against one, same client: the geometric mean of the writes.
ratio(Rows, #{callers := CallerCounts}) ->
    Rate = fun(Name, Callers, Operation) ->
        [maps:get(rate, Figures) || {N, _, C, O, Figures} <- Rows, {N, C, O} =:= {Name, Callers, Operation}]
    end,
    lists:foreach(
        fun(Callers) ->
            Pairs = [
                Three / One
             || Operation <- ?WRITES,
                One <- Rate("single", Callers, Operation),
                Three <- Rate("cluster", Callers, Operation)
            ],
            Pairs =:= [] orelse
                io:format("~.2fx  three masters against one, ops/s, ~b callers~n", [
                    math:exp(lists:sum([math:log(Pair) || Pair <- Pairs]) / length(Pairs)), Callers
                ])
        end,
        CallerCounts
    ).
