%% Processes that call one after the other, for tests that disturb what they call.
%%
%%     Load = emqx_redis_test_load:start(8, fun(Writer, N) ->
%%         emqx_redis_session:save_session(<<"c", Writer>>, N)
%%     end),
%%     ...
%%     Done = [{Writer, N} || {Writer, N, ok} <- emqx_redis_test_load:stop(Load)].
-module(emqx_redis_test_load).

-export([start/2, calls/1, stop/1]).

-export_type([load/0, call/0]).

-opaque load() :: {counters:counters_ref(), [{pid(), reference()}]}.
-type call() :: {Writer :: pos_integer(), N :: pos_integer(), Result :: term()}.

-define(STOP_TIMEOUT, 60000).

%% So many writers, numbered from 1, each of which calls Fun(Writer, 1), Fun(Writer, 2) and so on.
-spec start(pos_integer(), fun((pos_integer(), pos_integer()) -> term())) -> load().
start(Count, Fun) ->
    Calls = counters:new(1, []),
    Write = fun(Writer) -> spawn_monitor(fun() -> exit({calls, write(Writer, 1, Fun, Calls, [])}) end) end,
    {Calls, [Write(Writer) || Writer <- lists:seq(1, Count)]}.

%% How many calls have returned so far.
-spec calls(load()) -> non_neg_integer().
calls({Calls, _Writers}) ->
    counters:get(Calls, 1).

%% Lets each writer finish the call that it is in. Answers all calls, each writer's in their order.
-spec stop(load()) -> [call()].
stop({_Calls, Writers}) ->
    lists:foreach(fun({Pid, _Monitor}) -> Pid ! stop end, Writers),
    lists:append([await(Pid, Monitor) || {Pid, Monitor} <- Writers]).

%% Internal

write(Writer, N, Fun, Calls, Done) ->
    receive
        stop -> lists:reverse(Done)
    after 0 ->
        Result = Fun(Writer, N),
        ok = counters:add(Calls, 1, 1),
        write(Writer, N + 1, Fun, Calls, [{Writer, N, Result} | Done])
    end.

await(Pid, Monitor) ->
    receive
        {'DOWN', Monitor, process, Pid, {calls, Calls}} -> Calls;
        {'DOWN', Monitor, process, Pid, Reason} -> error({writer, Reason})
    after ?STOP_TIMEOUT ->
        error({writer_hangs, Pid})
    end.
