%% A message on its way from its publisher: stored for every persistent session that is to have it, before
%% EMQX routes it and before its publisher is answered.
-module(emqx_redis_publish).

-export([store/1, is_groups/1]).

-type message() :: emqx_redis_broker:message().

%% One request holds that many clients at most.
-define(BATCH, 10000).

%% Marks a message that is stored for a shared group: whoever acknowledges it removes it there.
-define(GROUP, emqx_redis_group).

%% `unchanged': nobody needs it. `{stored, Message}': it is in Redis. Of an error nobody knows for whom it
%% was stored.
-spec store(message()) -> unchanged | {stored, message()} | {error, term()}.
store(Message) ->
    Topic = emqx_redis_broker:topic(Message),
    case find(Topic) of
        {ok, []} -> unchanged;
        {ok, Subscriptions} -> store(Message, targets(Message, Subscriptions));
        {error, _} = Error -> Error
    end.

%% What is in this node's memory holds all subscriptions that were acknowledged as long as the others wait for
%% this node, which its lease says.
find(Topic) ->
    case emqx_redis_router:is_leased() of
        true -> emqx_redis_subscription:match_subscriptions(Topic);
        false -> emqx_redis_match:match_in_redis(match_subscriptions, Topic)
    end.

%% The queues that it goes to, each once.
targets(Message, Subscriptions) ->
    From = emqx_redis_broker:from(Message),
    lists:usort(lists:filtermap(fun(Subscription) -> target(From, Subscription) end, Subscriptions)).

target(_From, {<<"$share/", Rest/binary>>, _ClientId, _}) ->
    case binary:split(Rest, <<"/">>) of
        [Group, Filter] -> {true, emqx_redis_stored_message:group_queue(Group, Filter)};
        [_] -> false
    end;
%% No Local (MQTT 5.0 section 3.8.3.1).
target(From, {_Filter, From, {_QoS, 1, _Instance}}) ->
    false;
target(_From, {_Filter, ClientId, _}) ->
    {true, ClientId}.

store(_Message, []) ->
    unchanged;
store(Message, Targets) ->
    Options =
        case emqx_redis_stored_message:ttl(Message) of
            undefined -> #{};
            Ttl -> #{ttl => Ttl}
        end,
    case store_in_batches(Targets, emqx_redis_stored_message:encode(Message), Options) of
        ok ->
            emqx_redis_plugin_stats:count(messages_stored, length(Targets)),
            {stored, mark(Targets, Message)};
        {error, _} = Error ->
            Error
    end.

store_in_batches([], _Stored, _Options) ->
    ok;
store_in_batches(Targets, Stored, Options) ->
    {Batch, Rest} = lists:split(min(?BATCH, length(Targets)), Targets),
    case emqx_redis_message:store_message_for(Batch, Stored, Options) of
        ok -> store_in_batches(Rest, Stored, Options);
        {error, _} = Error -> Error
    end.

%% Targets are sorted, and queues of groups begin with a null.
mark([<<0, _/binary>> | _], Message) -> emqx_redis_broker:set_header(?GROUP, true, Message);
mark(_, Message) -> Message.

%% Whether it is stored for a shared group.
-spec is_groups(message()) -> boolean().
is_groups(Message) -> emqx_redis_broker:header(?GROUP, Message, false).
