%% What a run prints.
-module(emqx_redis_fault_report).

-export([head/1, fault/3, answers/2, losses/2, violations/1, verdict/2, seconds/1, number/1]).

-define(TALLY, emqx_redis_fault_tally).
%% A run that goes wrong may show the same a thousand times.
-define(MOST_VIOLATIONS, 5).
%% Of terms: some are long.
-define(DEPTH, 100).
-define(KINDS, [ok, unknown, timeout, not_durable, refused]).

-spec head(map()) -> ok.
head(Options = #{kind := Kind, seed := Seed, level := Level, faults := Faults}) ->
    #{writers := Writers, seconds := Seconds} = Options,
    io:format(
        "~n~s  seed ~b, durability ~0p, ~b writers, ~b s~n  ~ts~n  faults by this seed: ~ts~n",
        [Kind, Seed, Level, Writers, Seconds, promise(Kind, Level), lists:join(", ", Faults)]
    ),
    io:format("~n  ~8s~10s~10s  ~s~n", ["at", "writes", "healthy", "fault"]),
    io:format("  ~8s~10s~10s~n", ["", "waited", "after"]).

%% Milliseconds: when, how long the writer that waited longest had no `ok', and until all was healthy.
-spec fault(non_neg_integer(), iodata(), {non_neg_integer(), non_neg_integer()}) -> ok.
fault(At, Text, {Wait, Healthy}) ->
    io:format("  ~8s~10s~10s  ~ts~n", [seconds(At), seconds(Wait), seconds(Healthy), Text]).

-spec answers(?TALLY:tally(), Seconds :: float()) -> ok.
answers(Tally, Seconds) ->
    Columns = ["ok", "unknown", "timeout", "not durable", "refused", "ok per s"],
    io:format("~n  ~-18s~s~n", ["operation", [io_lib:format("~13s", [Column]) || Column <- Columns]]),
    Rows = [{Operation, ?TALLY:answers(Tally, Operation)} || Operation <- ?TALLY:operations()],
    lists:foreach(fun({Operation, Answers}) -> row(atom_to_list(Operation), Answers, Seconds) end, Rows),
    row("all", lists:foldl(fun add/2, #{}, [Answers || {_, Answers} <- Rows]), Seconds),
    case ?TALLY:reasons(Tally) of
        [] ->
            ok;
        Reasons ->
            Texts = [io_lib:format("~s ~0p", [number(Number), Reason]) || {Number, Reason} <- Reasons],
            io:format("  not ok: ~ts~n", [lists:join(", ", Texts)])
    end.

%% What was acknowledged and is not there, where the level of durability allows that.
-spec losses(?TALLY:tally(), Acknowledged :: non_neg_integer()) -> ok.
losses(Tally, Acknowledged) ->
    Losses = ?TALLY:lost(Tally),
    Lost = lists:sum([Number || {_, Number} <- Losses]),
    Texts = [io_lib:format("; ~s ~s", [number(Number), What]) || {What, Number} <- Losses],
    io:format("  acknowledged writes ~s, lost ~s (~.3f %)~s~n", [
        number(Acknowledged), number(Lost), 100 * Lost / max(Acknowledged, 1), Texts
    ]).

-spec violations([emqx_redis_fault_writer:violation()]) -> ok.
violations(Violations) ->
    lists:foreach(fun violation/1, lists:sublist(Violations, ?MOST_VIOLATIONS)),
    length(Violations) > ?MOST_VIOLATIONS andalso
        io:format("~n  and ~b more violations~n", [length(Violations) - ?MOST_VIOLATIONS]),
    ok.

-spec verdict([emqx_redis_fault_writer:violation()], map()) -> ok.
verdict(Violations, #{sessions := Sessions, messages := Messages, filters := Filters, keys := Keys}) ->
    io:format("  checked ~s sessions, ~s waiting messages, ~s filters, ~s keys~n", [
        number(Sessions), number(Messages), number(Filters), number(Keys)
    ]),
    case length(Violations) of
        0 -> io:format("  PASSED~n");
        Number -> io:format("  FAILED: ~b violations~n", [Number])
    end.

-spec seconds(non_neg_integer()) -> iodata().
seconds(Milliseconds) ->
    io_lib:format("~.2f s", [Milliseconds / 1000]).

%% With commas between thousands.
-spec number(non_neg_integer()) -> iodata().
number(Number) when Number < 1000 -> integer_to_list(Number);
number(Number) -> [number(Number div 1000), io_lib:format(",~3..0b", [Number rem 1000])].

%% Internal

promise(single, none) ->
    "one server, appendfsync always: what was answered ok survives kill -9";
promise(sentinel, {replicas, N}) when N >= 2 ->
    "a master, 2 replicas, 3 sentinels: what was answered ok is on both replicas, and survives one\n"
    "  fail-over at a time; while a replica is away, the answer is not_durable";
promise(cluster, {replicas, N}) when N >= 1 ->
    "3 masters with a replica each: what was answered ok is on the replica, and survives one fail-over at\n"
    "  a time; while a replica is away, the answer is not_durable";
promise(_Kind, _Level) ->
    "this level does not cover every replica that may be promoted: what is lost is counted, and no fault".

row(Name, Answers, Seconds) ->
    Counts = [maps:get(Kind, Answers, 0) || Kind <- ?KINDS],
    Columns = Counts ++ [round(hd(Counts) / max(Seconds, 0.001))],
    io:format("  ~-18s~s~n", [Name, [io_lib:format("~13s", [number(Number)]) || Number <- Columns]]).

add(Answers, Sum) ->
    maps:fold(fun(Kind, N, Map) -> maps:update_with(Kind, fun(M) -> M + N end, N, Map) end, Sum, Answers).

%% The oldest of what is known first.
violation(#{item := Item, what := What, history := History}) ->
    io:format("~n  VIOLATION at ~0p: ~0tP~n", [Item, What, ?DEPTH]),
    lists:foreach(
        fun({At, Took, Call, Answer}) ->
            Arguments = [seconds(At), Took, Call, ?DEPTH, Answer, ?DEPTH],
            io:format("    ~10s +~6b ms  ~0tP -> ~0tP~n", Arguments)
        end,
        lists:reverse(History)
    ).
