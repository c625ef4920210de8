%% One call of the public API on behalf of a writer: timed, counted, and its answer judged.
-module(emqx_redis_fault_call).

-export([call/4, burst/3, timeout/1, violation/1]).

-export_type([context/0, entry/0, history/0, class/0]).

-type context() :: #{
    tally := emqx_redis_fault_tally:tally(),
    writer := pos_integer(),
    %% Whether what was acknowledged must not get lost.
    strict := boolean(),
    %% What is said to calls beside what they are about.
    level := emqx_redis_args:durability()
}.
%% Milliseconds from the start of the run to the call, and from there to the answer.
-type entry() :: {non_neg_integer(), non_neg_integer(), What :: tuple(), Answer :: term()}.
%% The newest first.
-type history() :: [entry()].
%% What an answer says about whether the operation happened.
-type class() :: done | maybe | no.

%% What a call may take beyond its deadline: the machine has other things to do.
-define(MARGIN, 1500).
%% `redis.request_timeout'.
-define(DEFAULT_TIMEOUT, 5000).

%% What is the operation's name and what it is about; the timeout is that of the call's options.
-spec call(context(), tuple(), map(), fun(() -> Answer)) -> {class(), Answer, entry()}.
call(Context, What, Options, Fun) ->
    Begin = now_ms(),
    Answer = Fun(),
    judged(Context, What, Options, Begin, Answer).

%% Several calls at once, submitted in this order; the answers in the same order.
-spec burst(context(), map(), [{tuple(), fun(() -> emqx_redis_storage:request_id())}]) ->
    [{class(), term(), entry()}].
burst(Context, Options, Calls) ->
    Begin = now_ms(),
    Ids = [{What, Submit()} || {What, Submit} <- Calls],
    Patience = maps:get(timeout, Options, ?DEFAULT_TIMEOUT) + ?MARGIN,
    [
        case emqx_redis_storage:receive_response(Id, Patience) of
            {reply, Answer} -> judged(Context, What, Options, Begin, Answer);
            timeout -> violation({no_answer, What})
        end
     || {What, Id} <- Ids
    ].

%% A timeout for a call: mostly short, sometimes the configuration's.
-spec timeout(map()) -> map().
timeout(Options) ->
    case rand:uniform(4) of
        1 -> Options;
        2 -> Options#{timeout => 3000};
        _ -> Options#{timeout => 1000 + rand:uniform(1000)}
    end.

-spec violation(term()) -> no_return().
violation(What) ->
    throw({violation, What}).

%% Internal

judged(#{tally := Tally, writer := Writer}, What, Options, Begin, Answer) ->
    Operation = element(1, What),
    Took = now_ms() - Begin,
    Class = class(Answer),
    emqx_redis_fault_tally:count(Tally, Writer, Operation, Answer),
    is_answer(Operation, Answer) orelse violation({unexpected_answer, What, Answer}),
    Took > maps:get(timeout, Options, ?DEFAULT_TIMEOUT) + ?MARGIN andalso
        violation({answered_late, What, {milliseconds, Took}}),
    {Class, Answer, {emqx_redis_fault_tally:elapsed(Tally) - Took, Took, What, Answer}}.

class(ok) -> done;
class({ok, _}) -> done;
class({error, not_found}) -> done;
class({error, timeout}) -> maybe;
class({error, {unknown, _}}) -> maybe;
class({error, {not_durable, _}}) -> maybe;
class({error, _}) -> no.

%% No fault here is a reason for another answer.
is_answer(load, {error, not_found}) -> true;
is_answer(_, {error, not_found}) -> false;
is_answer(_, {error, {internal, _}}) -> false;
is_answer(_, {error, {partial, _}}) -> false;
is_answer(_, {error, {undecodable, _}}) -> false;
is_answer(_, {error, {not_allowed, _}}) -> false;
is_answer(_, {error, {unsupported, _}}) -> false;
is_answer(_, {error, {invalid_topic, _}}) -> false;
is_answer(_, {error, {unavailable, {Why, _Text}}}) ->
    lists:member(Why, [cluster_down, unknown_master, server, io]);
is_answer(_, {error, Reason}) -> not lists:member(Reason, [stopped, cancelled, queue_full]);
is_answer(_, _) -> true.

now_ms() ->
    erlang:monotonic_time(millisecond).
