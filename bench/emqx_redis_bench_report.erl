%% Prints what was measured: a table for each operation as it is done, then the ratios that the
%% project set itself, then one table for the README.
-module(emqx_redis_bench_report).

-export([heading/2, operation/2, ratios/1, markdown/1, number/1, thousands/1, plot/2]).

heading(Server, #{rounds := Rounds, duration := Duration, warm_up := WarmUp}) ->
    io:format("~s, ~b cores; OTP ~s; ~s; ~s~n", [
        cpu(),
        erlang:system_info(logical_processors_available),
        erlang:system_info(otp_release),
        redis_version(Server),
        os:getenv("ERL_FLAGS", "no flags")
    ]),
    io:format("Median of ~b rounds of ~b ms after ~b ms of warm-up. ", [Rounds, Duration, WarmUp]),
    io:format("Latencies and CPU time per operation in microseconds.~n", []).

operation(Operation, Result) ->
    io:format("~n~-14s ~8s ~10s ~11s ~11s ~10s ~10s~n", [
        Operation, "callers", "ops/s", "p50", "p99", "BEAM CPU", "Redis CPU"
    ]),
    lists:foreach(
        fun({{Name, Callers}, Figures}) ->
            #{rate := Rate, p50 := P50, p99 := P99, beam_cpu := Beam, redis_cpu := Redis} = Figures,
            io:format("  ~-12s ~8b ~10s ~11s ~11s ~10s ~10s~n", [
                Name, Callers, number(Rate), number(P50), number(P99), number(Beam), number(Redis)
            ])
        end,
        cells(Result)
    ),
    lists:foreach(
        fun({{limit, Name}, #{rate := Rate}}) ->
            io:format("  ~-21s ~10s   replayed through one connection, 100 in flight~n", [
                lists:concat(["limit of ", Name]), number(Rate)
            ])
        end,
        limits(Result)
    ).

%% Each line: what, the first aim, and pairs of figures, of which one is to be divided by the other. A
%% pair is left out where its cells were not run.
ratios(Results) ->
    Writes = [save_session, store_message, ack_message],
    io:format("~nRatios, geometric means where several cells count (operations, callers)~n", []),
    Ratio = fun(What, Aim, Operations, CallerCounts, Above, Below) ->
        Pairs = [
            {value(Results, Operation, Callers, Above), value(Results, Operation, Callers, Below)}
         || Operation <- Operations, Callers <- CallerCounts
        ],
        print_ratio(What, Aim, [Pair || Pair = {A, B} <- Pairs, A =/= none, B =/= none])
    end,
    io:format(" save, store, ack~n", []),
    Many = [64, 256],
    Ratio("full form against the replaced design, ops/s, 64 and 256", "4x", Writes, Many, full, replaced),
    Ratio("plain form against the replaced design, ops/s, 64 and 256", "5x", Writes, Many, plain, replaced),
    Ratio("claimed sessions against the replaced design, 64 and 256", "-", Writes, Many, epoch, replaced),
    Ratio("full form against its limit, ops/s, 64 and 256", "0.6x", Writes, Many, full, {limit, full}),
    Ratio("p99 of the replaced design against the full form, 64", "6x", Writes, [64],
        {p99, replaced}, {p99, full}),
    Ratio("full form against the replaced design, ops/s, 1", "2.5x", Writes, [1], full, replaced),
    Ratio("BEAM CPU of the replaced design against the full form, 64", "5x", Writes, [64],
        {beam_cpu, replaced}, {beam_cpu, full}),
    io:format(" others, ops/s against the replaced design~n", []),
    Ratio("load_session, 64 and 256", "2.5x", [load_session], [64, 256], full, replaced),
    Ratio("get_messages of 100, 64", "2.5x", [get_messages], [64], full, replaced),
    Ratio("match_routes among 10,000 filters, 64", "-", [match_routes], [64], full, replaced).

markdown(Results) ->
    io:format("~n| operation | contestant | callers | ops/s | p50, us | p99, us ", []),
    io:format("| BEAM CPU, us | Redis CPU, us |~n|---|---|---:|---:|---:|---:|---:|---:|~n", []),
    lists:foreach(fun({Operation, Result}) -> markdown_operation(Operation, Result) end, Results).

markdown_operation(Operation, Result) ->
    lists:foreach(
        fun({{Name, Callers}, Figures}) ->
            Numbers = [number(maps:get(F, Figures)) || F <- [rate, p50, p99, beam_cpu, redis_cpu]],
            Row = [Operation, Name, Callers, lists:join(" | ", Numbers)],
            io:format("| ~s | ~s | ~b | ~s |~n", Row)
        end,
        cells(Result)
    ),
    lists:foreach(
        fun({{limit, Name}, #{rate := Rate}}) ->
            io:format("| ~s | limit of ~s | | ~s | | | | |~n", [Operation, Name, number(Rate)])
        end,
        limits(Result)
    ).

%% Rows of figures for a plot, if the environment names a folder for them.
plot(Name, Rows) ->
    case os:getenv("PLOTS", "") of
        "" ->
            ok;
        Folder ->
            File = filename:join(Folder, Name),
            ok = filelib:ensure_dir(File),
            Lines = [[lists:join(" ", [io_lib:format("~p", [Figure]) || Figure <- Row]), $\n] || Row <- Rows],
            file:write_file(File, Lines)
    end.

%% Internal

%% By callers, then in the order of the contest.
cells(Result) ->
    Order = fun(Name) -> string:str([replaced, plain, full, epoch], [Name]) end,
    [
        Cell
     || {_, Cell} <- lists:sort([
            {{Callers, Order(Name)}, Cell}
         || Cell = {{Name, Callers}, _} <- maps:to_list(Result), Name =/= limit
        ])
    ].

limits(Result) ->
    [Limit || Limit = {{limit, _}, _} <- lists:sort(maps:to_list(Result))].

value(Results, Operation, _Callers, Key = {limit, _Name}) ->
    figure(Results, Operation, Key, rate);
value(Results, Operation, Callers, {Figure, Name}) ->
    figure(Results, Operation, {Name, Callers}, Figure);
value(Results, Operation, Callers, Name) ->
    figure(Results, Operation, {Name, Callers}, rate).

figure(Results, Operation, Key, Figure) ->
    case lists:keyfind(Operation, 1, Results) of
        {_, #{Key := #{Figure := Value}}} -> Value;
        _ -> none
    end.

print_ratio(_What, _Aim, []) ->
    ok;
print_ratio(What, Aim, Pairs) ->
    Mean = math:exp(lists:sum([math:log(A / B) || {A, B} <- Pairs]) / length(Pairs)),
    io:format("  ~8.2fx  ~-8s ~s~n", [Mean, ["aim ", Aim], What]).

number(Value) when Value >= 1000 -> thousands(integer_to_list(round(Value)));
number(Value) when Value >= 100 -> integer_to_list(round(Value));
number(Value) -> float_to_list(float(Value), [{decimals, 1}]).

thousands(Digits) when length(Digits) =< 3 -> Digits;
thousands(Digits) ->
    {Head, Tail} = lists:split(length(Digits) - 3, Digits),
    thousands(Head) ++ "," ++ Tail.

cpu() ->
    {ok, Info} = file:read_file("/proc/cpuinfo"),
    case re:run(Info, "model name\\s*:\\s*(.*)", [{capture, [1], binary}]) of
        {match, [Model]} -> Model;
        nomatch -> "unknown processor"
    end.

redis_version(Server) ->
    Info = emqx_redis_test_server:cli(Server, ["INFO", "server"]),
    Lines = [binary:split(Line, <<":">>) || Line <- binary:split(Info, <<"\r\n">>, [global])],
    Fields = maps:from_list([{Key, Value} || [Key, Value] <- Lines]),
    case Fields of
        #{<<"valkey_version">> := Version} -> ["Valkey ", Version];
        #{<<"redis_version">> := Version} -> ["Redis ", Version]
    end.
