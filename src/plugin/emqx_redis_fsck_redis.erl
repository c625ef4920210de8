%% What `emqx_redis_fsck' asks of Redis, and how it reads the answers. What can't be answered ends the run: it
%% is thrown as `{failed, Reason}'.
-module(emqx_redis_fsck_redis).

-export([ask/1, ask_one/1, transaction/1]).
-export([now_ms/0, time_ms/1, score_ms/1]).

-type command() :: [iodata() | atom() | number()].
-type value() :: term().

%% One round trip.
-define(BATCH, 500).

%% The answer of each. A value of another type is told of at its own key; here it counts as nothing.
-spec ask([command()]) -> [value()].
ask([]) ->
    [];
ask(Commands) ->
    {Some, Rest} = lists:split(min(?BATCH, length(Commands)), Commands),
    [value(Reply) || Reply <- pipeline(Some)] ++ ask(Rest).

-spec ask_one(command()) -> value().
ask_one(Command) ->
    case emqx_redis_pool:query(Command) of
        {ok, Value} -> Value;
        {error, Reason} -> throw({failed, Reason})
    end.

%% All keys are in one slot.
-spec transaction([command()]) -> [value()].
transaction(Commands) ->
    case lists:last(pipeline([[<<"MULTI">>]] ++ Commands ++ [[<<"EXEC">>]])) of
        {ok, Results} when is_list(Results) -> Results;
        {ok, undefined} -> throw({failed, {internal, <<"EXEC without a reply">>}});
        {error, Reason} -> throw({failed, Reason})
    end.

pipeline(Commands) ->
    case emqx_redis_pool:pipeline(Commands) of
        {ok, Replies} -> Replies;
        {error, Reason} -> throw({failed, Reason})
    end.

value({ok, Value}) -> Value;
value({error, {redis, <<"WRONGTYPE">>, _}}) -> undefined;
value({error, Reason}) -> throw({failed, Reason}).

-spec now_ms() -> integer().
now_ms() -> time_ms(ask_one([<<"TIME">>])).

%% Of what TIME answers.
-spec time_ms([binary()]) -> integer().
time_ms([Seconds, Micros]) -> binary_to_integer(Seconds) * 1000 + binary_to_integer(Micros) div 1000.

%% Of a score that is a time.
-spec score_ms(binary() | undefined) -> integer() | infinity | undefined.
score_ms(undefined) -> undefined;
score_ms(<<"inf">>) -> infinity;
score_ms(Score) ->
    {Number, _} = string:to_integer(Score),
    Number.
