%% The way of a match: through the memory of this node, and where that gives no answer, through Redis.
-module(emqx_redis_match).

-export([match/2, match_in_redis/2]).

%% A writer changes the tables for some microseconds at a time. Whoever meets it lets others run.
-define(ATTEMPTS, 100).

-spec match(match_routes | match_subscriptions, binary()) -> {ok, list()} | {error, term()}.
match(What, Topic) ->
    try erlang:module_loaded(emqx_redis_nif) andalso match(What, Topic, ?ATTEMPTS) of
        false -> {error, stopped};
        Result -> Result
    catch
        error:undef -> {error, stopped}
    end.

%% Past the memory of this node.
-spec match_in_redis(match_routes | match_subscriptions, binary()) -> {ok, list()} | {error, term()}.
match_in_redis(What, Topic) -> emqx_redis_request:call({What, Topic}, undefined).

match(What, Topic, Attempts) ->
    case emqx_redis_nif:match_in_memory(What, Topic) of
        over_budget -> away(emqx_redis_nif:match_in_memory_dirty(What, Topic), What, Topic, Attempts);
        Answer -> away(Answer, What, Topic, Attempts)
    end.

away(busy, What, Topic, Attempts) when Attempts > 0 ->
    erlang:yield(),
    match(What, Topic, Attempts - 1);
away(NoAnswer, What, Topic, _Attempts) when NoAnswer =:= busy; NoAnswer =:= out_of_sync ->
    match_in_redis(What, Topic);
away(stopped, _What, _Topic, _Attempts) ->
    {error, stopped};
away(Answer, _What, _Topic, _Attempts) ->
    Answer.
