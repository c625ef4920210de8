%% What all writers of a run were answered, and how long each of them went without an `ok'.
-module(emqx_redis_fault_tally).

-export([new/1, stop/1, elapsed/1, count/4, lose/3, lost/1]).
-export([reset_gaps/1, wait_until_all_write/2, longest_gap/1]).
-export([operations/0, answers/2, reasons/1, slowest/1]).

-export_type([tally/0, kind/0]).

-opaque tally() :: #{
    table := ets:table(), gaps := atomics:atomics_ref(), writers := pos_integer(), start := integer()
}.
-type kind() :: ok | unknown | timeout | not_durable | refused.

-define(POLL, 20).

-spec new(Writers :: pos_integer()) -> tally().
new(Writers) ->
    #{
        table => ets:new(?MODULE, [public, {write_concurrency, true}]),
        %% For each writer: when it last had an `ok' for a write, and the longest time without one.
        gaps => atomics:new(2 * Writers, []),
        writers => Writers,
        start => now_ms()
    }.

-spec stop(tally()) -> ok.
stop(#{table := Table}) ->
    true = ets:delete(Table),
    ok.

%% Milliseconds since the start.
-spec elapsed(tally()) -> non_neg_integer().
elapsed(#{start := Start}) ->
    now_ms() - Start.

-spec count(tally(), pos_integer(), atom(), term()) -> ok.
count(Tally = #{table := Table}, Writer, Operation, Answer) ->
    Kind = kind(Answer),
    add(Table, {Operation, Kind}),
    Kind =:= ok orelse add(Table, {reason, reason(Answer)}),
    case Kind =:= ok andalso is_write(Operation) of
        true -> note_write(Tally, Writer);
        false -> ok
    end.

%% Something acknowledged is not there, where that may be.
-spec lose(tally(), atom(), non_neg_integer()) -> ok.
lose(#{table := Table}, What, Number) ->
    _ = ets:update_counter(Table, {lost, What}, Number, {{lost, What}, 0}),
    ok.

-spec lost(tally()) -> [{atom(), pos_integer()}].
lost(#{table := Table}) ->
    lists:sort([{What, Number} || [What, Number] <- ets:match(Table, {{lost, '$1'}, '$2'}), Number > 0]).

-spec reset_gaps(tally()) -> ok.
reset_gaps(#{gaps := Gaps, writers := Writers, start := Start}) ->
    Now = now_ms() - Start,
    lists:foreach(
        fun(Writer) ->
            ok = atomics:put(Gaps, 2 * Writer - 1, Now),
            ok = atomics:put(Gaps, 2 * Writer, 0)
        end,
        lists:seq(1, Writers)
    ).

%% Returns the writers that had no `ok' within so many milliseconds from now.
-spec wait_until_all_write(tally(), timeout()) -> [pos_integer()].
wait_until_all_write(Tally, Timeout) ->
    Since = elapsed(Tally),
    wait_until_all_write(Tally, Since, Since + Timeout).

wait_until_all_write(Tally = #{gaps := Gaps, writers := Writers}, Since, Deadline) ->
    case [Writer || Writer <- lists:seq(1, Writers), atomics:get(Gaps, 2 * Writer - 1) =< Since] of
        [] ->
            [];
        Waiting ->
            case elapsed(Tally) > Deadline of
                true ->
                    Waiting;
                false ->
                    timer:sleep(?POLL),
                    wait_until_all_write(Tally, Since, Deadline)
            end
    end.

%% The longest that any writer went without an `ok' since the reset.
-spec longest_gap(tally()) -> non_neg_integer().
longest_gap(#{gaps := Gaps, writers := Writers}) ->
    lists:max([atomics:get(Gaps, 2 * Writer) || Writer <- lists:seq(1, Writers)]).

%% In the order of the table that is printed.
-spec operations() -> [atom()].
operations() ->
    [save, delete, claim, store, ack, delete_messages, add_route, delete_route, load, get, match].

-spec answers(tally(), atom()) -> #{kind() => non_neg_integer()}.
answers(#{table := Table}, Operation) ->
    maps:from_list([{Kind, Number} || [Kind, Number] <- ets:match(Table, {{Operation, '$1'}, '$2'})]).

%% Of the answers that were no `ok', the most frequent first.
-spec reasons(tally()) -> [{pos_integer(), term()}].
reasons(#{table := Table}) ->
    lists:reverse(
        lists:sort([{Number, Reason} || [Reason, Number] <- ets:match(Table, {{reason, '$1'}, '$2'})])
    ).

-spec slowest(tally()) -> non_neg_integer().
slowest(Tally) ->
    longest_gap(Tally).

%% Internal

add(Table, Key) ->
    ets:update_counter(Table, Key, 1, {Key, 0}).

note_write(Tally = #{gaps := Gaps}, Writer) ->
    Now = elapsed(Tally),
    Gap = Now - atomics:exchange(Gaps, 2 * Writer - 1, Now),
    case Gap > atomics:get(Gaps, 2 * Writer) of
        true -> atomics:put(Gaps, 2 * Writer, Gap);
        false -> ok
    end.

is_write(Operation) ->
    not lists:member(Operation, [load, get, match]).

kind(ok) -> ok;
kind({ok, _}) -> ok;
kind({error, not_found}) -> ok;
kind({error, timeout}) -> timeout;
kind({error, {unknown, _}}) -> unknown;
kind({error, {not_durable, _}}) -> not_durable;
kind({error, _}) -> refused.

%% Without what differs from one to the next.
reason({error, {Kind, {Why, _Text}}}) -> {Kind, Why};
reason({error, {redis, Code, _Text}}) -> {redis, Code};
reason({error, Reason}) -> Reason.

now_ms() ->
    erlang:monotonic_time(millisecond).
