%% Checks of what callers give. Misuse raises `badarg' at the call; `erl_error' and the shell say which
%% argument was wrong and what was expected.
-module(emqx_redis_args).

-export([client_id/2, message_id/2, binaries/2, count/2, topic/2, node_name/2, config/2]).
-export([options/3, settings/2]).
-export([tuples/4, limit/2, version/2, topics_cursor/2]).
-export([message/2, messages/2, command/2, commands/2]).
-export([bad/2, format_error/2]).

-export_type([options/0, time_to_live/0, durability/0]).

%% Seconds.
-type time_to_live() :: 1..4294967295 | infinity.
%% `ttl': how long what is stored lives, instead of the configured time.
%% `epoch': the session's fencing epoch that the caller holds, from `claim_session/2'.
%% `timeout': milliseconds until the call answers `{error, timeout}'; 5,000 if not configured otherwise.
%% `max_queue', `on_full': how many messages the client's queue holds, and what happens to more.
%% `session': store only where the client has a session.
%% `durability': how safe a write must be before it is answered, instead of `persistence.durability'.
-type options() :: #{
    ttl => time_to_live(),
    epoch => non_neg_integer(),
    timeout => timeout(),
    max_queue => pos_integer(),
    on_full => drop_oldest | reject,
    durability => durability(),
    session => required
}.
%% `none': the server's answer. `{replicas, N}': that N replicas have received it (WAIT). `{aof, L, R}': that
%% the append-only files of the server itself (L is 1) and of R replicas hold it (WAITAOF, Redis 7.2).
-type durability() ::
    none | {replicas, 1..100} | {aof, 0..1, 0..100}.

-define(MAX_TTL, 4294967295).
-define(MAX_BATCH, 10000).
%% Epochs are compared by Lua, whose integers are exact up to there.
-define(MAX_EPOCH, 9007199254740991).

%%--------------------------------------------------------------------
%% Arguments, each with its position in the call
%%--------------------------------------------------------------------

-spec client_id(pos_integer(), binary()) -> binary().
client_id(_Position, ClientId) when is_binary(ClientId) -> ClientId;
client_id(Position, _) -> bad(Position, "client id: not a binary").

-spec message_id(pos_integer(), binary()) -> binary().
message_id(_Position, MessageId) when is_binary(MessageId) -> MessageId;
message_id(Position, _) -> bad(Position, "message id: not a binary").

-spec binaries(pos_integer(), [binary()]) -> [binary()].
binaries(Position, List) ->
    check_length(Position, List),
    case is_list(List) andalso is_binaries(List) of
        true -> List;
        false -> bad(Position, "not a list of binaries")
    end.

is_binaries([Binary | Rest]) when is_binary(Binary) -> is_binaries(Rest);
is_binaries([]) -> true;
is_binaries(_) -> false.

-spec count(pos_integer(), non_neg_integer()) -> non_neg_integer().
count(_Position, Count) when is_integer(Count), Count >= 0, Count =< ?MAX_TTL -> Count;
count(Position, _) -> bad(Position, "not an integer from 0 to 4294967295").

-spec topic(pos_integer(), binary()) -> binary().
topic(_Position, Topic) when is_binary(Topic) -> Topic;
topic(Position, _) -> bad(Position, "topic: not a binary").

%% Node names are atoms; text is taken for the name of one. `|' stands between filter and node in
%% Redis, where the last one counts, so that a node's name can't hold it.
-spec node_name(pos_integer(), node() | binary()) -> binary().
node_name(Position, Node) when is_atom(Node) ->
    node_name(Position, atom_to_binary(Node, utf8));
node_name(Position, Node) when is_binary(Node), Node =/= <<>> ->
    case binary:match(Node, <<"|">>) of
        nomatch when byte_size(Node) =< 255 -> Node;
        _ -> bad(Position, "node: holds a | or is longer than 255 bytes")
    end;
node_name(Position, _) ->
    bad(Position, "node: not an atom").

%% The id and the timestamp that a message brings, and the message.
-spec message(pos_integer(), map()) -> {binary(), integer() | undefined, map()}.
message(Position, Message) when is_map(Message) ->
    Id = first_of([id, message_id, <<"id">>, <<"message_id">>], Message),
    is_binary(Id) orelse bad(Position, "message: no binary at the key id"),
    Timestamp = first_of([timestamp, <<"timestamp">>], Message),
    case Timestamp of
        undefined -> ok;
        _ when is_integer(Timestamp), abs(Timestamp) =< ?MAX_EPOCH -> ok;
        _ -> bad(Position, "message: timestamp is not an integer of milliseconds")
    end,
    {Id, Timestamp, Message};
message(Position, _) ->
    bad(Position, "message: not a map").

-spec messages(pos_integer(), [map()]) -> [{binary(), integer() | undefined, map()}].
messages(Position, Messages) ->
    check_length(Position, Messages),
    [message(Position, Message) || Message <- Messages].

first_of([Key | Keys], Map) ->
    case Map of
        #{Key := Value} -> Value;
        _ -> first_of(Keys, Map)
    end;
first_of([], _) ->
    undefined.

%% A command for Redis as a list of binaries.
-spec command(pos_integer(), [iodata() | atom() | number()]) -> [binary()].
command(Position, [Name | _]) when is_number(Name) ->
    bad(Position, "command: its name is a number; a string is no list of words");
command(Position, [_ | _] = Words) ->
    try
        [word(Word) || Word <- Words]
    catch
        error:_ -> bad(Position, "command: not a list of iodata")
    end;
command(Position, _) ->
    bad(Position, "command: not a list with at least a name").

-spec commands(pos_integer(), [[iodata() | atom() | number()]]) -> [[binary()]].
commands(Position, Commands) ->
    check_length(Position, Commands),
    [command(Position, Command) || Command <- Commands].

%% What Redis does in one go holds everybody else up.
check_length(Position, List) ->
    try length(List) of
        Length when Length =< ?MAX_BATCH -> ok;
        _ -> bad(Position, "a list of more than 10,000 elements")
    catch
        error:badarg -> bad(Position, "not a list")
    end.

word(Word) when is_binary(Word) -> Word;
word(Word) when is_list(Word) -> iolist_to_binary(Word);
word(Word) when is_integer(Word) -> integer_to_binary(Word);
word(Word) when is_atom(Word) -> atom_to_binary(Word, utf8);
word(Word) when is_float(Word) -> list_to_binary(io_lib:format("~w", [Word])).

-spec limit(pos_integer(), pos_integer()) -> pos_integer().
limit(_Position, Limit) when is_integer(Limit), Limit > 0, Limit =< ?MAX_TTL -> Limit;
limit(Position, _) -> bad(Position, "not an integer from 1 to 4294967295").

%% What a change answered.
-spec version(pos_integer(), term()) -> [{non_neg_integer(), non_neg_integer()}].
version(Position, Version) ->
    try [true = is_place(Place) || Place <- Version] of
        _ -> Version
    catch
        error:_ -> bad(Position, "not a version that a change with the option version has answered")
    end.

is_place({Shard, Version}) ->
    is_integer(Shard) andalso Shard >= 0 andalso Shard < 65536 andalso
        is_integer(Version) andalso Version >= 0.

%% What a listing answered.
-spec topics_cursor(pos_integer(), term()) -> start | {non_neg_integer(), binary(), binary()}.
topics_cursor(_Position, start) ->
    start;
topics_cursor(_Position, Cursor = {Shard, Filter, Score}) when
    is_integer(Shard), Shard >= 0, Shard < 65536, is_binary(Filter), is_binary(Score)
->
    Cursor;
topics_cursor(Position, _) ->
    bad(Position, "neither start nor a cursor that topics/2 has answered").

%% A list whose elements `Check' answers checked, or `false'; `Form' is what they should be.
-spec tuples(pos_integer(), [tuple()], string(), fun((term()) -> tuple() | false)) -> [tuple()].
tuples(Position, List, Form, Check) ->
    check_length(Position, List),
    tuples(Position, 1, List, Form, Check).

tuples(Position, Number, [Element | Rest], Form, Check) ->
    case Check(Element) of
        false -> bad(Position, ["element ", integer_to_list(Number), ": not ", Form]);
        Checked -> [Checked | tuples(Position, Number + 1, Rest, Form, Check)]
    end;
tuples(_Position, _Number, [], _Form, _Check) ->
    [].

-spec config(pos_integer(), map()) -> map().
config(_Position, Config) when is_map(Config) -> Config;
config(Position, _) -> bad(Position, "configuration: not a map").

%%--------------------------------------------------------------------
%% Options
%%--------------------------------------------------------------------

%% The values of the options `Known', in that order, `undefined' where one is not given.
-spec options(pos_integer(), map(), [atom()]) -> [term()].
options(_Position, Opts, Known) when map_size(Opts) =:= 0 ->
    [undefined || _ <- Known];
options(Position, Opts, Known) when is_map(Opts) ->
    Unknown = maps:keys(maps:without(Known, Opts)),
    Unknown =:= [] orelse bad(Position, io_lib:format("unknown option: ~0p", [hd(Unknown)])),
    [check_option(Name, Position, Opts) || Name <- Known];
options(Position, _, _) ->
    bad(Position, "options: not a map").

%% As `emqx_redis_request' takes them.
-spec settings(timeout() | undefined, durability() | undefined) -> emqx_redis_request:settings().
settings(Timeout, undefined) -> Timeout;
settings(Timeout, Durability) -> {Timeout, Durability}.

check_option(Name, Position, Opts) ->
    case Opts of
        #{Name := Value} ->
            is_valid(Name, Value) orelse bad(Position, [atom_to_list(Name), ": ", expected(Name)]),
            Value;
        _ ->
            undefined
    end.

is_valid(ttl, infinity) -> true;
is_valid(ttl, Ttl) -> is_integer(Ttl) andalso Ttl > 0 andalso Ttl =< ?MAX_TTL;
is_valid(epoch, Epoch) -> is_integer(Epoch) andalso Epoch >= 0 andalso Epoch =< ?MAX_EPOCH;
is_valid(timeout, infinity) -> true;
is_valid(timeout, Timeout) -> is_integer(Timeout) andalso Timeout >= 0 andalso Timeout =< ?MAX_TTL;
is_valid(max_queue, Most) -> is_integer(Most) andalso Most > 0 andalso Most =< ?MAX_TTL;
is_valid(on_full, OnFull) -> OnFull =:= drop_oldest orelse OnFull =:= reject;
is_valid(session, Session) -> Session =:= required;
is_valid(version, Version) -> is_boolean(Version);
is_valid(nodes, Nodes) -> Nodes =:= this orelse Nodes =:= all;
is_valid(durability, none) -> true;
is_valid(durability, {replicas, N}) -> is_integer(N) andalso N > 0 andalso N =< 100;
is_valid(durability, {aof, 0, 0}) -> false;
is_valid(durability, {aof, L, R}) ->
    (L =:= 0 orelse L =:= 1) andalso is_integer(R) andalso R >= 0 andalso R =< 100;
is_valid(durability, _) -> false.

expected(ttl) -> "not infinity or seconds from 1 to 4294967295";
expected(epoch) -> "not a non-negative integer";
expected(timeout) -> "not infinity or non-negative milliseconds";
expected(max_queue) -> "not a positive integer";
expected(on_full) -> "neither drop_oldest nor reject";
expected(session) -> "not required";
expected(version) -> "neither true nor false";
expected(nodes) -> "neither this nor all";
expected(durability) ->
    "neither none, {replicas, N} with N from 1 to 100, nor {aof, L, R} with L 0 or 1, R from 0 to 100".

%%--------------------------------------------------------------------
%% Errors
%%--------------------------------------------------------------------

-spec bad(pos_integer(), unicode:chardata()) -> no_return().
bad(Position, Text) ->
    %% Under the key of an argument's position it would be shown only where this function has so many.
    Cause = unicode:characters_to_binary(["argument ", integer_to_list(Position), ": ", Text]),
    erlang:error(badarg, none, [{error_info, #{module => ?MODULE, cause => #{general => Cause}}}]).

-spec format_error(term(), [tuple()]) -> #{general => unicode:chardata()}.
format_error(_Reason, [{_Module, _Function, _Args, Info} | _]) ->
    maps:get(cause, proplists:get_value(error_info, Info, #{}), #{}).
