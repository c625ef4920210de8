%% One run on one topology: writers, faults one after another, and the check at the end.
-module(emqx_redis_fault_run).

-export([run/1]).

-export_type([options/0]).

-type options() :: #{
    kind := emqx_redis_fault_topology:kind(),
    seed := integer(),
    %% No fault begins later than that; the last one may end later.
    seconds := pos_integer(),
    writers := pos_integer(),
    level := emqx_redis_args:durability(),
    faults := [emqx_redis_fault_schedule:name()] | all,
    sabotage := string() | none
}.

-define(TOPOLOGY, emqx_redis_fault_topology).
-define(TALLY, emqx_redis_fault_tally).
-define(REPORT, emqx_redis_fault_report).
-define(WARM_UP, 1000).
%% After a fault all is healthy again: by then the longest timeout has passed four times.
-define(PATIENCE, 20000).

%% Prints what happens; answers whether all was as promised.
-spec run(options()) -> passed | failed.
run(Options = #{kind := Kind, level := Level}) ->
    Topology = ?TOPOLOGY:start(Kind),
    try
        ok = emqx_redis_storage:start(#{
            redis => ?TOPOLOGY:config(Topology), persistence => #{durability => Level}
        }),
        ok = emqx_redis_test_storage:wait_connected(),
        run(Options, Topology)
    after
        emqx_redis_storage:stop(),
        ?TOPOLOGY:stop(Topology)
    end.

%% Internal

run(Options = #{kind := Kind, seed := Seed, level := Level, writers := Number, faults := Faults}, Topology) ->
    Schedule = emqx_redis_fault_schedule:new(Kind, Seed, Faults),
    ok = ?REPORT:head(Options#{faults := emqx_redis_fault_schedule:preview(Schedule, 12)}),
    Tally = ?TALLY:new(Number),
    Context = #{tally => Tally, strict => is_strict(Kind, Level), level => Level, writer => 1},
    Writers = [emqx_redis_fault_writer:start(Context#{writer := N}, Seed) || N <- lists:seq(1, Number)],
    timer:sleep(?WARM_UP),
    Stalled = faults(Options, Topology, Tally, Schedule),
    {Items, Hung} = finish(Writers),
    Seconds = ?TALLY:elapsed(Tally) / 1000,
    Acknowledged = acknowledged(Tally),
    ok = ?REPORT:answers(Tally, Seconds),
    Sabotaged = emqx_redis_fault_sabotage:do(maps:get(sabotage, Options), Topology, Items),
    Result = emqx_redis_fault_check:check(Topology, Context, Sabotaged),
    Violations = Stalled ++ Hung ++ received() ++ maps:get(violations, Result),
    ok = ?REPORT:losses(Tally, Acknowledged),
    ok = ?REPORT:violations(Violations),
    ok = ?REPORT:verdict(Violations, Result),
    ok = ?TALLY:stop(Tally),
    case Violations of
        [] -> passed;
        _ -> failed
    end.

%% Whether every copy that may become the only one has what is acknowledged.
is_strict(single, _) -> true;
is_strict(Kind, {replicas, N}) -> N >= element(2, ?TOPOLOGY:level(Kind));
is_strict(_, _) -> false.

faults(Options = #{seconds := Seconds}, Topology, Tally, Schedule) ->
    {Fault = #{pause := Pause}, Rest} = emqx_redis_fault_schedule:next(Schedule),
    timer:sleep(Pause),
    case ?TALLY:elapsed(Tally) < 1000 * Seconds of
        true ->
            fault(Topology, Tally, Fault) ++ faults(Options, Topology, Tally, Rest);
        false ->
            []
    end.

%% One at a time: the next one comes when every server is in sync again and every writer writes.
fault(Topology, Tally, Fault) ->
    At = ?TALLY:elapsed(Tally),
    ok = ?TALLY:reset_gaps(Tally),
    Text = emqx_redis_fault_inject:inject(Topology, Fault),
    ok = ?TOPOLOGY:wait_until_healthy(Topology),
    Healthy = ?TALLY:elapsed(Tally) - At,
    Stalled = ?TALLY:wait_until_all_write(Tally, ?PATIENCE),
    ok = ?REPORT:fault(At, Text, {?TALLY:longest_gap(Tally), Healthy}),
    [
        #{
            item => <<"writing">>,
            what => {no_ok_though_all_is_healthy, {writers, Stalled}, {milliseconds, ?PATIENCE}},
            history => []
        }
     || Stalled =/= []
    ].

finish(Writers) ->
    lists:foreach(fun emqx_redis_fault_writer:stop/1, Writers),
    Finished = [emqx_redis_fault_writer:finish(Writer, ?PATIENCE) || Writer <- Writers],
    {[Items || {ok, Items} <- Finished], [
        #{item => <<"a writer">>, what => Reason, history => []}
     || {error, Reason} <- Finished
    ]}.

received() ->
    receive
        {violation, Violation} -> [Violation | received()];
        Stray ->
            What = {stray_message, Stray},
            [#{item => <<"the run's mailbox">>, what => What, history => []} | received()]
    after 0 ->
        []
    end.

acknowledged(Tally) ->
    Writes = ?TALLY:operations() -- [load, get, match],
    lists:sum([maps:get(ok, ?TALLY:answers(Tally, Operation), 0) || Operation <- Writes]).
