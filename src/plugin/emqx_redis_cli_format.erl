%% How `emqx_redis_cli' writes things: tables, times, and JSON.
%%
%% What is no printable UTF-8 (EMQX's message ids, some payloads) is shown as its bytes in hexadecimal behind
%% `0x'.
-module(emqx_redis_cli_format).

-export([table/1, table/2, text/1, term/1, printable/1, to_binary/1]).
-export([time/1, expiry/1, duration/1]).
-export([json/1]).

%% What a cell of a table shows at most.
-define(WIDTH, 60).

%% Columns as wide as what stands in them; cells of more than `?WIDTH' characters are cut, unless told
%% otherwise.
-spec table([[term()]]) -> unicode:chardata().
table(Rows) -> table(Rows, ?WIDTH).

-spec table([[term()]], pos_integer() | none) -> unicode:chardata().
table(Rows, Most) ->
    Texts = [[cut(text(Cell), Most) || Cell <- Row] || Row <- Rows],
    Widths = widths([[string:length(Cell) || Cell <- Row] || Row <- Texts]),
    [[string:trim(line(Row, Widths), trailing, " "), $\n] || Row <- Texts].

widths([]) -> [];
widths(Lengths) ->
    case [{hd(Row), tl(Row)} || [_ | _] = Row <- Lengths] of
        [] -> [];
        Rows -> [lists:max([First || {First, _} <- Rows]) | widths([Rest || {_, Rest} <- Rows])]
    end.

line(Row, Widths) ->
    Cells = lists:zip(Row, lists:sublist(Widths, length(Row))),
    lists:join("  ", [string:pad(Cell, Width) || {Cell, Width} <- Cells]).

%% A cell of a table, in one line.
-spec text(binary() | atom() | integer() | unicode:chardata()) -> binary().
text(Cell) when is_binary(Cell) -> escape(printable(Cell));
text(Cell) when is_atom(Cell) -> atom_to_binary(Cell);
text(Cell) when is_integer(Cell) -> integer_to_binary(Cell);
text(Cell) -> to_binary(Cell).

-spec to_binary(unicode:chardata()) -> binary().
to_binary(Text) -> unicode:characters_to_binary(Text).

-spec term(term()) -> binary().
term(Term) -> to_binary(io_lib:format("~0tp", [Term])).

cut(Text, Most) when is_integer(Most) ->
    case string:length(Text) > Most of
        true -> unicode:characters_to_binary([string:slice(Text, 0, Most - 3), "..."]);
        false -> Text
    end;
cut(Text, none) ->
    Text.

%% A line is a line.
escape(Text) ->
    replace_all([{<<"\n">>, <<"\\n">>}, {<<"\r">>, <<"\\r">>}, {<<"\t">>, <<"\\t">>}], Text).

replace_all(Pairs, Text) ->
    lists:foldl(fun({From, To}, Done) -> binary:replace(Done, From, To, [global]) end, Text, Pairs).

-spec printable(binary()) -> binary().
printable(Binary) ->
    Characters = unicode:characters_to_list(Binary),
    IsPrintable = is_list(Characters) andalso lists:all(fun is_printable/1, Characters),
    case IsPrintable of
        true -> Binary;
        false -> <<"0x", (binary:encode_hex(Binary))/binary>>
    end.

is_printable(Character) when Character =:= $\n; Character =:= $\r; Character =:= $\t -> true;
is_printable(Character) -> Character >= 32 andalso io_lib:printable_unicode_list([Character]).

-spec time(term()) -> string().
time(Milliseconds) when is_integer(Milliseconds) ->
    calendar:system_time_to_rfc3339(Milliseconds, [{unit, millisecond}, {offset, "Z"}]);
time(_) ->
    "".

%% 0xFFFFFFFF seconds mean for ever (MQTT 5.0 section 3.1.2.11.2).
-spec expiry(non_neg_integer()) -> unicode:chardata().
expiry(Milliseconds) when Milliseconds div 1000 >= 16#FFFFFFFF -> "never";
expiry(Milliseconds) -> duration(Milliseconds).

-spec duration(non_neg_integer()) -> unicode:chardata().
duration(Milliseconds) when Milliseconds < 1000 -> io_lib:format("~b ms", [Milliseconds]);
duration(Milliseconds) ->
    {Days, {Hours, Minutes, Seconds}} = calendar:seconds_to_daystime(Milliseconds div 1000),
    Parts = [{Days, "d"}, {Hours, "h"}, {Minutes, "m"}, {Seconds, "s"}],
    lists:join(" ", [[integer_to_list(Number), Unit] || {Number, Unit} <- Parts, Number > 0]).

%%--------------------------------------------------------------------
%% JSON (RFC 8259)
%%--------------------------------------------------------------------

-spec json(term()) -> unicode:chardata().
json(undefined) -> "null";
json(null) -> "null";
json(true) -> "true";
json(false) -> "false";
json(Atom) when is_atom(Atom) -> json(atom_to_binary(Atom));
json(Integer) when is_integer(Integer) -> integer_to_list(Integer);
json(Float) when is_float(Float) -> io_lib:format("~w", [Float]);
json(Binary) when is_binary(Binary) -> json_string(printable(Binary));
json(List) when length(List) >= 0 -> ["[", lists:join(",", [json(Each) || Each <- List]), "]"];
json(Map) when is_map(Map) ->
    Pairs = lists:sort([{key(Key), Value} || {Key, Value} <- maps:to_list(Map)]),
    ["{", lists:join(",", [[json_string(Key), ":", json(Value)] || {Key, Value} <- Pairs]), "}"];
json(Other) ->
    json(term(Other)).

key(Key) when is_binary(Key) -> printable(Key);
key(Key) when is_atom(Key) -> atom_to_binary(Key);
key(Key) -> term(Key).

%% What is left of control characters once `printable' was asked.
json_string(Text) ->
    Escapes = [
        {<<"\\">>, <<"\\\\">>}, {<<"\"">>, <<"\\\"">>},
        {<<"\n">>, <<"\\n">>}, {<<"\r">>, <<"\\r">>}, {<<"\t">>, <<"\\t">>}
    ],
    [$", replace_all(Escapes, Text), $"].
