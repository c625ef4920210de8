%% A message on its way from its publisher: stored for every persistent session that is to have it, before
%% EMQX routes it and before its publisher is answered.
-module(emqx_redis_publish).

-export([store/1, is_groups/1, mark_group/1]).

-type message() :: emqx_redis_broker:message().

%% One request holds that many clients at most.
-define(BATCH, 10000).
%% How long a node may take to say whether it has a session, in milliseconds.
-define(NODE_TIMEOUT, 1000).

%% Marks a message that is stored for a shared group: whoever acknowledges it removes it there.
-define(GROUP, emqx_redis_group).

%% `unchanged': nobody needs it. `{stored, Message}': it is in Redis. Of an error nobody knows for whom it
%% was stored.
-spec store(message()) -> unchanged | {stored, message()} | {error, term()}.
store(Message) ->
    Topic = emqx_redis_broker:topic(Message),
    case find(Topic) of
        {ok, []} -> unchanged;
        {ok, Subscriptions} -> store(Message, Subscriptions);
        {error, _} = Error -> Error
    end.

%% What is in this node's memory holds all subscriptions that were acknowledged as long as the others wait for
%% this node, which its lease says.
find(Topic) ->
    case emqx_redis_router:is_leased() of
        true -> emqx_redis_subscription:match_subscriptions(Topic);
        false -> emqx_redis_match:match_in_redis(match_subscriptions, Topic)
    end.

store(Message, Subscriptions) ->
    case targets(emqx_redis_broker:from(Message), Subscriptions, [], []) of
        {[], []} ->
            unchanged;
        {Clients, Groups} ->
            Stored = emqx_redis_stored_message:encode(Message),
            Options = options(Message),
            case store_for_groups(Groups, Stored, Options) of
                ok ->
                    Marked = emqx_redis_backlog:set_stored(Clients =/= [], mark(Groups, Message)),
                    store_for_clients(Clients, Subscriptions, Stored, Options, Marked);
                {error, _} = Error -> Error
            end
    end.

options(Message) ->
    case emqx_redis_stored_message:ttl(Message) of
        undefined -> #{};
        Ttl -> #{ttl => Ttl}
    end.

%% The clients, and the queues of shared groups, each once.
targets(From, [{<<"$share/", _/binary>> = Shared, _ClientId, _} | Left], Clients, Groups) ->
    case emqx_redis_filter:group(Shared) of
        {Group, Filter} ->
            Queue = emqx_redis_stored_message:group_queue(Group, Filter),
            targets(From, Left, Clients, [Queue | Groups]);
        none ->
            targets(From, Left, Clients, Groups)
    end;
%% No Local (MQTT 5.0 section 3.8.3.1).
targets(From, [{_Filter, From, {_QoS, 1, _Instance}} | Left], Clients, Groups) ->
    targets(From, Left, Clients, Groups);
targets(From, [{_Filter, ClientId, _} | Left], Clients, Groups) ->
    targets(From, Left, [ClientId | Clients], Groups);
targets(_From, [], Clients, Groups) ->
    {lists:usort(Clients), lists:usort(Groups)}.

store_for_groups([], _Stored, _Options) ->
    ok;
store_for_groups(Groups, Stored, Options) ->
    case emqx_redis_message:store_message_for(Groups, Stored, Options) of
        ok -> emqx_redis_plugin_stats:count(messages_stored, length(Groups));
        {error, _} = Error -> Error
    end.

store_for_clients([], _Subscriptions, _Stored, _Options, Message) ->
    {stored, Message};
store_for_clients(Clients, Subscriptions, Stored, Options, Message) ->
    {Batch, Rest} = lists:split(min(?BATCH, length(Clients)), Clients),
    case emqx_redis_message:store_message_for(Batch, Stored, Options#{session => required}) of
        ok ->
            emqx_redis_plugin_stats:count(messages_stored, length(Batch)),
            store_for_clients(Rest, Subscriptions, Stored, Options, Message);
        {error, {partial, Failed}} ->
            case [Reason || {ClientId, Reason} <- Failed, Reason =/= no_session orelse is_alive(ClientId)] of
                [] ->
                    Gone = [ClientId || {ClientId, _} <- Failed],
                    forget(Gone, Subscriptions),
                    emqx_redis_plugin_stats:count(messages_stored, length(Batch) - length(Gone)),
                    store_for_clients(Rest, Subscriptions, Stored, Options, Message);
                [Reason | _] ->
                    {error, Reason}
            end;
        {error, _} = Error ->
            Error
    end.

%% Its session had expired in Redis while that was away, and is being written again: the publisher has to
%% wait. (A client may also be there again without a persistent session.)
is_alive(ClientId) ->
    Channels = emqx_redis_broker:lookup_channels(ClientId),
    lists:foreach(fun(Pid) -> Pid ! {emqx_redis_storage, rewrite} end, Channels),
    Nodes = lists:usort([node(Pid) || Pid <- Channels]),
    Answers = erpc:multicall(Nodes, emqx_redis_owned, has, [ClientId], ?NODE_TIMEOUT),
    lists:any(fun(Answer) -> Answer =/= {ok, false} end, Answers).

forget(Clients, Subscriptions) ->
    emqx_redis_ghosts:forget([It || {_, ClientId, _} = It <- Subscriptions, lists:member(ClientId, Clients)]).

mark([], Message) -> Message;
mark(_Groups, Message) -> mark_group(Message).

%% It is stored for a shared group, so that whoever has it knows where to remove it.
-spec mark_group(message()) -> message().
mark_group(Message) -> emqx_redis_broker:set_header(?GROUP, true, Message).

%% Whether it is stored for a shared group.
-spec is_groups(message()) -> boolean().
is_groups(Message) -> emqx_redis_broker:header(?GROUP, Message, false).
