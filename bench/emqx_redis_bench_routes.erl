%% Routes: the time of one match among more and more filters, in memory and as others do it; what a route
%% takes; how long a node that starts takes to know them all; how far nodes lag behind each other; and what
%% readers lose while routes are changed. ROUTES in the environment chooses the numbers of filters, or is
%% `none`; PLOTS names a folder where the figures of the plots are put, see scripts/plot.
-module(emqx_redis_bench_routes).

-export([sizes/1, run/2]).

-define(SERVER, emqx_redis_test_server).
-define(DATA, emqx_redis_bench_data).
-define(ETS, emqx_redis_bench_ets_trie).
-define(REPLACED, emqx_redis_bench_replaced).

%% Routes added by one call.
-define(CHUNK, 5000).
%% Topic names that are asked for in turn: more than a processor's cache has the routes of.
-define(NAMES, 65536).
%% Matches between two looks at the clock.
-define(STRIDE, 32).
-type what() :: none | two | three | many.

%% A million takes minutes.
sizes("1") -> ["1000", "10000"];
sizes(_) -> ["1000", "10000", "100000", "1000000"].

-spec run([string()], map()) -> ok.
run([], _Settings) ->
    ok;
run(Names, Settings) ->
    Results = [size(list_to_integer(Name), Settings) || Name <- Names],
    ok = print_matches(Results),
    ok = print_memory(Results),
    ok = print_starts(Results),
    emqx_redis_bench_lag:run(Settings).

%% #{size, {Contestant, What} => microseconds, ...}
size(Size, Settings) ->
    io:format(standard_error, "~b filters~n", [Size]),
    Server = ?SERVER:start(#{tcp => true}),
    Scanned = ?SERVER:start(#{tcp => true}),
    Trie = ?ETS:new(),
    try
        Filters = ?DATA:filters(Size),
        ok = emqx_redis_storage:start(?SERVER:config(Server)),
        ok = emqx_redis_test_storage:wait_connected(),
        ok = add(Filters),
        ok = lists:foreach(fun(Filter) -> ?ETS:add(Trie, Filter, ?DATA:node_name()) end, Filters),
        ok = emqx_redis_test_helpers:wait_until(fun() -> in_sync(length(Filters)) end, 60000),
        Replaced = #{pool := Pool} = ?REPLACED:start(emqx_redis_bench_target:of_server(Scanned), full),
        Connection = emqx_redis_test_client:connect({tcp, ?SERVER:port(Scanned)}),
        ok = ?REPLACED:fill_routes(Filters, Connection),
        emqx_redis_test_client:close(Connection),
        Times = matches(Size, Settings, Trie, ?REPLACED:match(Pool)),
        ok = ?REPLACED:stop(Replaced),
        Memory = #{
            {memory, replica} => memory() / length(Filters),
            {memory, ets} => ?ETS:memory(Trie) / length(Filters),
            {memory, redis} => emqx_redis_bench_target:used_memory(Server) / length(Filters),
            {memory, topics} => lists:sum([byte_size(Filter) || Filter <- Filters]) / length(Filters)
        },
        ok = emqx_redis_storage:stop(),
        maps:merge(maps:merge(Times, Memory), restart(?SERVER:config(Server), Size, length(Filters)))
    after
        ?ETS:delete(Trie),
        emqx_redis_storage:stop(),
        ?SERVER:stop(Scanned),
        ?SERVER:stop(Server)
    end.

add([]) ->
    ok;
add(Filters) ->
    {Some, Others} = lists:split(min(?CHUNK, length(Filters)), Filters),
    ok = emqx_redis_router:add_routes([{Filter, ?DATA:node_name()} || Filter <- Some]),
    add(Others).

in_sync(Routes) ->
    case emqx_redis_storage:status() of
        #{routes := [#{in_sync := true, routes := Routes}]} -> true;
        _ -> false
    end.

memory() ->
    #{routes := [#{memory := Memory}]} = emqx_redis_storage:status(),
    Memory.

%%--------------------------------------------------------------------
%% The time of one match
%%--------------------------------------------------------------------

matches(Size, #{rounds := Rounds, duration := Duration}, Trie, Scan) ->
    Memory = fun(Name) ->
        {ok, Found} = emqx_redis_router:match_routes(Name),
        Found
    end,
    InRedis = fun(Name) ->
        {ok, Found} = emqx_redis_test_storage:match_in_redis(Name),
        Found
    end,
    Ets = fun(Name) -> ?ETS:match(Trie, Name) end,
    Cells = [
        {{Contestant, What}, Match, names(What, Size), ?DATA:results(What)}
     || What <- whats(), {Contestant, Match} <- [{replica, Memory}, {ets, Ets}, {lua, InRedis}, {scan, Scan}],
        Contestant =/= scan orelse What =:= three
    ],
    lists:foreach(fun verify/1, Cells),
    Measured = [
        maps:from_list([{Key, time(Match, Names, Duration)} || {Key, Match, Names, _} <- Cells])
     || _ <- lists:seq(1, Rounds)
    ],
    Median = fun(Key, _) -> median([maps:get(Key, Round) || Round <- Measured]) end,
    (maps:map(Median, hd(Measured)))#{size => Size}.

-spec whats() -> [what()].
whats() -> [none, two, three, many].

names(What, Size) ->
    list_to_tuple([?DATA:name(What, N * 7919, Size) || N <- lists:seq(1, ?NAMES)]).

%% All contestants find as much.
verify({Key, Match, Names, Results}) ->
    case length(Match(element(1, Names))) of
        Results -> ok;
        Other -> error({wrong_number_of_results, Key, Other})
    end.

%% Microseconds for one match, by a process that does nothing else.
time(Match, Names, Duration) ->
    Begin = erlang:monotonic_time(),
    End = Begin + erlang:convert_time_unit(Duration, millisecond, native),
    {Pid, Monitor} = spawn_monitor(fun() ->
        exit({done, repeat(Match, Names, 0, End), erlang:monotonic_time()})
    end),
    receive
        {'DOWN', Monitor, process, Pid, {done, Count, Ended}} ->
            erlang:convert_time_unit(Ended - Begin, native, nanosecond) / 1000 / Count
    end.

repeat(Match, Names, Count, End) ->
    Begun = erlang:monotonic_time(),
    _ = Match(element(Count rem ?NAMES + 1, Names)),
    case erlang:monotonic_time() of
        Now when Now >= End -> Count + 1;
        %% What is slow is looked at each time.
        Now when Now - Begun > 1_000_000 -> repeat(Match, Names, Count + 1, End);
        _ -> repeat(Match, Names, stride(Match, Names, Count + 1, ?STRIDE), End)
    end.

stride(_Match, _Names, Count, 0) ->
    Count;
stride(Match, Names, Count, Left) ->
    _ = Match(element(Count rem ?NAMES + 1, Names)),
    stride(Match, Names, Count + 1, Left - 1).

median(Values) ->
    lists:nth((length(Values) + 1) div 2, lists:sort(Values)).

%%--------------------------------------------------------------------
%% A start among many routes
%%--------------------------------------------------------------------

%% Milliseconds until the first right answer, and until the table is in memory.
restart(Config, Size, Routes) ->
    Name = ?DATA:name(three, 4711, Size),
    Begin = erlang:monotonic_time(millisecond),
    Since = fun() -> erlang:monotonic_time(millisecond) - Begin end,
    ok = emqx_redis_storage:start(Config),
    ok = await(fun() ->
        case emqx_redis_router:match_routes(Name) of
            {ok, [_, _, _]} -> true;
            {error, _} -> false
        end
    end),
    Answered = Since(),
    ok = await(fun() -> in_sync(Routes) end),
    #{answered => Answered, in_sync => Since()}.

await(Condition) ->
    case Condition() of
        true ->
            ok;
        false ->
            timer:sleep(1),
            await(Condition)
    end.

%%--------------------------------------------------------------------
%% Tables
%%--------------------------------------------------------------------

print_matches(Results) ->
    io:format("~nMicroseconds for one match, one caller, by the number of filters~n~n", []),
    Sizes = [io_lib:format(" ~s |", [count(Size)]) || #{size := Size} <- Results],
    io:format("| matched by | results |~s~n", [Sizes]),
    io:format("|---|---:|~s~n", [["---:|" || _ <- Results]]),
    Rows = [
        {Contestant, What}
     || Contestant <- [replica, ets, lua, scan], What <- whats(), Contestant =/= scan orelse What =:= three
    ],
    lists:foreach(
        fun(Key = {Contestant, What}) ->
            Cells = [io_lib:format(" ~s |", [figure(maps:get(Key, Result))]) || Result <- Results],
            io:format("| ~s | ~b |~s~n", [title(Contestant), ?DATA:results(What), Cells])
        end,
        Rows
    ),
    lists:foreach(
        fun(#{size := Size, {scan, three} := Scan, {replica, three} := Ours}) ->
            Figures = [count(round(Scan / Ours)), count(Size)],
            io:format("~n~s times as fast as the scan among ~s filters~n", Figures)
        end,
        Results
    ),
    Columns = [{replica, What} || What <- whats()] ++ [{ets, three}, {lua, three}, {scan, three}],
    emqx_redis_bench_report:plot("match.dat", [
        [Size | [maps:get(Key, Result) || Key <- Columns]] || Result = #{size := Size} <- Results
    ]).

title(replica) -> "this library, in memory";
title(ets) -> "a trie in ETS, walked in Erlang";
title(lua) -> "this library, in Redis (round trip)";
title(scan) -> "the replaced design: Lua scan".

print_memory(Results) ->
    io:format("~nBytes for each route, its topic filter included~n~n", []),
    io:format("| filters | bytes of the filter | in memory | ETS trie | in Redis |~n", []),
    io:format("|---:|---:|---:|---:|---:|~n", []),
    lists:foreach(
        fun(Result = #{size := Size}) ->
            Bytes = [round(maps:get({memory, Where}, Result)) || Where <- [topics, replica, ets, redis]],
            io:format("| ~s | ~b | ~b | ~b | ~b |~n", [count(Size) | Bytes])
        end,
        Results
    ).

print_starts(Results) ->
    io:format("~nA node starts: milliseconds from emqx_redis_storage:start/1 on~n~n", []),
    io:format("| filters | to the first right answer | until all are in memory |~n|---:|---:|---:|~n", []),
    lists:foreach(
        fun(#{size := Size, answered := Answered, in_sync := InSync}) ->
            io:format("| ~s | ~b | ~s |~n", [count(Size), Answered, count(InSync)])
        end,
        Results
    ).

count(Number) -> emqx_redis_bench_report:thousands(integer_to_list(Number)).

figure(Microseconds) when Microseconds < 100 -> io_lib:format("~.2f", [Microseconds]);
figure(Microseconds) -> count(round(Microseconds)).
