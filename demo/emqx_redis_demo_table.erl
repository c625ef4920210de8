%% The demo's output: numbered steps and aligned columns.
-module(emqx_redis_demo_table).

-export([head/0, step/3, row/3, row/5, number/1]).

-spec head() -> ok.
head() ->
    line("", ["expected", "found", "per s", "p50 ms", "p99 ms"]).

-spec step(pos_integer(), io:format(), [term()]) -> ok.
step(Number, Format, Arguments) ->
    io:format("~b  " ++ Format ++ "~n", [Number | Arguments]).

-spec row(iodata(), non_neg_integer() | none, non_neg_integer()) -> ok.
row(Text, Expected, Found) ->
    line(Text, [number(Expected), number(Found), "", "", ""]).

%% With the seconds that it took, and microseconds of single items.
-spec row(iodata(), non_neg_integer() | none, non_neg_integer(), float(), [non_neg_integer()]) -> ok.
row(Text, Expected, Found, Seconds, Times) ->
    Sorted = list_to_tuple(lists:sort(Times)),
    PerSecond = number(round(Found / max(Seconds, 1.0e-6))),
    line(Text, [number(Expected), number(Found), PerSecond, quantile(50, Sorted), quantile(99, Sorted)]).

line(Text, [Expected, Found, PerSecond, P50, P99]) ->
    Format = "   ~-42ts~9s~9s~9s~9s~9s~n",
    io:format(Format, [Text, Expected, Found, PerSecond, P50, P99]).

quantile(_Percent, {}) ->
    "";
quantile(Percent, Sorted) ->
    Index = 1 + (tuple_size(Sorted) - 1) * Percent div 100,
    io_lib:format("~.2f", [element(Index, Sorted) / 1000]).

%% With commas between thousands.
-spec number(non_neg_integer() | none) -> string().
number(none) -> "";
number(Number) when Number < 1000 -> integer_to_list(Number);
number(Number) -> number(Number div 1000) ++ io_lib:format(",~3..0b", [Number rem 1000]).
