%% Runs one cell of the benchmark: some callers do one operation of one contestant as fast as they
%% can, each waiting for its answer, for a fixed time after a warm-up.
-module(emqx_redis_bench_driver).

-export([run/2, median/1]).

-export_type([contestant/0, result/0]).

%% A contestant is a module and the form that it is asked to take.
-type contestant() :: {module(), atom()}.

%% rate: operations per second; latencies in microseconds; CPU in microseconds for each operation.
-type result() :: #{rate | p50 | p99 | beam_cpu | redis_cpu => float()}.

-callback start(emqx_redis_bench_target:target(), Form :: atom()) -> State :: term().
-callback stop(State :: term()) -> ok.
%% Puts into an empty Redis what Count operations need to find there.
-callback prepare(Operation :: atom(), Count :: pos_integer(), State :: term()) -> ok.
%% What does operation N; it crashes if the answer is wrong.
-callback operation(Operation :: atom(), State :: term()) -> fun((N :: non_neg_integer()) -> term()).
%% No contestant of this kind acknowledges more messages in a second.
-callback ack_rate() -> pos_integer().

-define(WARMING, 0).
-define(MEASURING, 1).
-define(OVER, 2).

%% Buckets of the latency histogram: 64 for each power of two nanoseconds, so 1.6 % wide.
-define(SUB_BITS, 6).
-define(SUB_BUCKETS, (1 bsl ?SUB_BITS)).
-define(BUCKETS, (40 * ?SUB_BUCKETS)).

-spec run(contestant(), #{atom() => term()}) -> result().
run({Module, Form}, Cell) ->
    #{target := Target, operation := Operation, callers := Callers} = Cell,
    #{warm_up := WarmUp, duration := Duration} = Cell,
    ok = emqx_redis_bench_target:flush(Target),
    State = Module:start(Target, Form),
    Stock = stock(Module, Operation, Callers, WarmUp + Duration),
    ok = Module:prepare(Operation, Stock, State),
    Shared = #{
        operation => Module:operation(Operation, State),
        stock => Stock,
        callers => Callers,
        phase => atomics:new(1, []),
        next => atomics:new(1, []),
        histogram => counters:new(?BUCKETS, [write_concurrency]),
        driver => self()
    },
    Workers = [spawn_monitor(fun() -> caller(Shared) end) || _ <- lists:seq(1, Callers)],
    Result = measure(Shared, maps:get(os_pids, Target), WarmUp, Duration),
    lists:foreach(fun await_end/1, Workers),
    flush_exhausted(),
    ok = Module:stop(State),
    Result.

%% Messages to acknowledge must exist, each once; the other operations need what they find again and
%% again.
stock(Module, ack_message, Callers, Milliseconds) ->
    Rate = min(Module:ack_rate(), Callers * 25000),
    Rate * Milliseconds div 1000;
stock(_Module, _Operation, _Callers, _Milliseconds) ->
    infinity.

measure(Shared, RedisPids, WarmUp, Duration) ->
    #{phase := Phase, histogram := Histogram, callers := Callers} = Shared,
    wait(WarmUp, 0, Shared),
    Begin = snapshot(RedisPids),
    ok = atomics:put(Phase, 1, ?MEASURING),
    wait(Duration, Callers, Shared),
    ok = atomics:put(Phase, 1, ?OVER),
    End = snapshot(RedisPids),
    result(Histogram, Begin, End).

%% For so long, and longer if by then the callers have not begun so many more operations, or shorter if
%% nothing is left to acknowledge.
wait(Milliseconds, Operations, Shared = #{next := Next}) ->
    wait_for(Milliseconds, atomics:get(Next, 1) + Operations, Shared).

%% A caller that crashes ends the benchmark.
wait_for(Milliseconds, Target, Shared = #{next := Next}) ->
    receive
        {'DOWN', _Monitor, process, _Pid, Reason} when Reason =/= normal -> error({caller_failed, Reason});
        exhausted -> ok
    after Milliseconds ->
        case atomics:get(Next, 1) >= Target of
            true -> ok;
            false -> wait_for(10, Target, Shared)
        end
    end.

await_end({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, normal} -> ok;
        {'DOWN', Monitor, process, Pid, Reason} -> error({caller_failed, Reason})
    after 30000 -> error(caller_does_not_end)
    end.

flush_exhausted() ->
    receive
        exhausted -> flush_exhausted()
    after 0 -> ok
    end.

caller(Shared) ->
    #{operation := Operation, stock := Stock, phase := Phase, next := Next, histogram := Histogram} = Shared,
    loop(Operation, Stock, Phase, Next, Histogram, erlang:monotonic_time(nanosecond), Shared).

loop(Operation, Stock, Phase, Next, Histogram, Begin, Shared) ->
    N = atomics:add_get(Next, 1, 1) - 1,
    %% An atom is greater than any integer, infinity too.
    case N < Stock of
        true ->
            _ = Operation(N),
            End = erlang:monotonic_time(nanosecond),
            case atomics:get(Phase, 1) of
                ?WARMING ->
                    loop(Operation, Stock, Phase, Next, Histogram, End, Shared);
                ?MEASURING ->
                    counters:add(Histogram, bucket(End - Begin), 1),
                    loop(Operation, Stock, Phase, Next, Histogram, End, Shared);
                ?OVER ->
                    ok
            end;
        false ->
            maps:get(driver, Shared) ! exhausted,
            ok
    end.

snapshot(RedisPids) ->
    Redis = lists:sum([cpu_ticks(integer_to_list(OsPid)) || OsPid <- RedisPids]),
    {erlang:monotonic_time(nanosecond), cpu_ticks("self"), Redis}.

%% User and system time of a process, in the kernel's ticks of 10 ms.
cpu_ticks(Process) ->
    {ok, Stat} = file:read_file(["/proc/", Process, "/stat"]),
    [_, AfterName] = string:split(Stat, ") ", trailing),
    Fields = binary:split(AfterName, <<" ">>, [global]),
    binary_to_integer(lists:nth(12, Fields)) + binary_to_integer(lists:nth(13, Fields)).

result(Histogram, {BeginTime, BeginBeam, BeginRedis}, {EndTime, EndBeam, EndRedis}) ->
    Counts = [{Bucket, counters:get(Histogram, Bucket)} || Bucket <- lists:seq(1, ?BUCKETS)],
    Total = lists:sum([Count || {_, Count} <- Counts]),
    Total > 0 orelse error(nothing_measured),
    #{
        rate => Total * 1.0e9 / (EndTime - BeginTime),
        p50 => quantile(Counts, Total * 0.5),
        p99 => quantile(Counts, Total * 0.99),
        beam_cpu => (EndBeam - BeginBeam) * 10000 / Total,
        redis_cpu => (EndRedis - BeginRedis) * 10000 / Total
    }.

bucket(Nanoseconds) when Nanoseconds < ?SUB_BUCKETS ->
    max(0, Nanoseconds) + 1;
bucket(Nanoseconds) ->
    Shift = highest_bit(Nanoseconds, 0) - ?SUB_BITS,
    min(?BUCKETS, (Shift + 1) * ?SUB_BUCKETS + (Nanoseconds bsr Shift) - ?SUB_BUCKETS + 1).

highest_bit(N, Bits) when N >= 16#10000 -> highest_bit(N bsr 16, Bits + 16);
highest_bit(N, Bits) when N >= 16#100 -> highest_bit(N bsr 8, Bits + 8);
highest_bit(N, Bits) when N >= 16#10 -> highest_bit(N bsr 4, Bits + 4);
highest_bit(N, Bits) when N >= 2 -> highest_bit(N bsr 1, Bits + 1);
highest_bit(_, Bits) -> Bits.

%% The middle of the bucket that the Rank-th smallest latency fell into, in microseconds.
quantile([{Bucket, Count} | Rest], Rank) ->
    case Rank =< Count orelse Rest =:= [] of
        true -> bucket_middle(Bucket - 1) / 1000;
        false -> quantile(Rest, Rank - Count)
    end.

bucket_middle(Index) when Index < ?SUB_BUCKETS ->
    Index;
bucket_middle(Index) ->
    Shift = Index div ?SUB_BUCKETS - 1,
    ((Index rem ?SUB_BUCKETS + ?SUB_BUCKETS) bsl Shift) + (1 bsl Shift) div 2.

%% The median of each figure over several rounds of one cell.
-spec median([result(), ...]) -> result().
median(Results) ->
    maps:map(
        fun(Figure, _) ->
            Sorted = lists:sort([maps:get(Figure, Result) || Result <- Results]),
            Middle = length(Sorted) div 2,
            case length(Sorted) rem 2 of
                1 -> lists:nth(Middle + 1, Sorted);
                0 -> (lists:nth(Middle, Sorted) + lists:nth(Middle + 1, Sorted)) / 2
            end
        end,
        hd(Results)
    ).
