%% A client's session in the memory of its channel's process: subscriptions, what is in flight, and a queue
%% that drops its oldest message when it is full.
-module(emqx_session_mem).

-export([create/4, resume/2, info/2, set_field/3]).
-export([subscribe/3, unsubscribe/2, takeover/1]).
-export([publish/3, pubrel/2, puback/3, pubrec/2, pubcomp/3]).
-export([deliver/3, enqueue/3, replay/2, terminate/2]).

-include("emqx_standin.hrl").

-record(session, {
    id, clientid, created_at, is_persistent, subscriptions = #{}, next_pkt_id = 1,
    %% How many, and packet id to phase (wait_ack, wait_comp) and message; 0 is no limit.
    inflight_max, inflight = gb_trees:empty(),
    mqueue_max, mqueue_len = 0, mqueue_dropped = 0, mqueue = queue:new(), store_qos0,
    %% QoS 2 messages of the client without PUBREL.
    awaiting_rel = #{},
    max_subscriptions, max_awaiting_rel, upgrade_qos, retry_interval, await_rel_timeout
}).

create(#{zone := Zone, clientid := ClientId}, ConnInfo, _Will, Settings) ->
    #{expiry_interval := Expiry, receive_maximum := Window} = ConnInfo,
    #{max_subscriptions := MaxSubscriptions, max_awaiting_rel := MaxAwaiting} = Settings,
    #{upgrade_qos := Upgrade, retry_interval := Retry, await_rel_timeout := Timeout} = Settings,
    #session{
        id = crypto:strong_rand_bytes(16),
        clientid = ClientId,
        created_at = erlang:system_time(millisecond),
        is_persistent = Expiry > 0,
        inflight_max = Window,
        mqueue_max = emqx_config:get_zone_conf(Zone, [mqtt, max_mqueue_len], 1000),
        store_qos0 = emqx_config:get_zone_conf(Zone, [mqtt, mqueue_store_qos0], true),
        max_subscriptions = MaxSubscriptions,
        max_awaiting_rel = MaxAwaiting,
        upgrade_qos = Upgrade,
        retry_interval = Retry,
        await_rel_timeout = Timeout
    }.

%% In the process that takes it over.
resume(#{receive_maximum := Window}, #session{clientid = ClientId} = Session) ->
    maps:foreach(
        fun(Filter, Options) -> ok = emqx_broker:subscribe(Filter, ClientId, Options) end,
        Session#session.subscriptions
    ),
    Session#session{inflight_max = Window}.

%% In the process that has given it away.
takeover(#session{subscriptions = Subscriptions}) ->
    lists:foreach(fun emqx_broker:unsubscribe/1, maps:keys(Subscriptions)).

info(Names, Session) when is_list(Names) -> [{Name, info(Name, Session)} || Name <- Names];
info(durable, _) -> false;
info(subscriptions_cnt, Session) -> map_size(Session#session.subscriptions);
info(subscriptions_max, Session) -> Session#session.max_subscriptions;
info({Which, #{limit := Limit}}, Session) ->
    All =
        case Which of
            mqueue_msgs -> queue:to_list(Session#session.mqueue);
            inflight_msgs -> [Message || {_, Message} <- gb_trees:values(Session#session.inflight)]
        end,
    {lists:sublist(All, Limit), #{start => none, position => none}};
info(inflight_cnt, Session) -> gb_trees:size(Session#session.inflight);
info(awaiting_rel_cnt, Session) -> map_size(Session#session.awaiting_rel);
info(awaiting_rel_max, Session) -> Session#session.max_awaiting_rel;
info(Name, Session) -> element(place(Name), Session).

set_field(Name, Value, Session) -> setelement(place(Name), Session, Value).

place(Name) -> place(Name, record_info(fields, session), 2).

place(Name, [Name | _], Place) -> Place;
place(Name, [_ | Names], Place) -> place(Name, Names, Place + 1).

subscribe(Filter, Options, #session{clientid = ClientId, subscriptions = Known} = Session) ->
    IsFull = map_size(Known) >= Session#session.max_subscriptions,
    case IsFull andalso not is_map_key(Filter, Known) of
        true ->
            {error, ?QUOTA_EXCEEDED};
        false ->
            ok = emqx_broker:subscribe(Filter, ClientId, Options),
            {ok, Session#session{subscriptions = Known#{Filter => Options}}}
    end.

unsubscribe(Filter, #session{subscriptions = Known} = Session) ->
    case maps:take(Filter, Known) of
        {Options, Left} ->
            ok = emqx_broker:unsubscribe(Filter),
            {ok, Session#session{subscriptions = Left}, Options};
        error ->
            {error, ?NO_SUBSCRIPTION_EXISTED}
    end.

%%--------------------------------------------------------------------
%% From the client
%%--------------------------------------------------------------------

%% QoS 2 alone.
publish(PacketId, Message, #session{awaiting_rel = Awaiting, max_awaiting_rel = Maximum} = Session) ->
    case is_map_key(PacketId, Awaiting) of
        _ when map_size(Awaiting) >= Maximum -> {error, ?RECEIVE_MAXIMUM_EXCEEDED};
        true -> {error, ?PACKET_IDENTIFIER_IN_USE};
        false ->
            Result = emqx_broker:publish(Message),
            {ok, Result, Session#session{awaiting_rel = Awaiting#{PacketId => Message#message.timestamp}}}
    end.

pubrel(PacketId, #session{awaiting_rel = Awaiting} = Session) ->
    case maps:take(PacketId, Awaiting) of
        {_, Left} -> {ok, Session#session{awaiting_rel = Left}};
        error -> {error, ?PACKET_IDENTIFIER_NOT_FOUND}
    end.

puback(ClientInfo, PacketId, Session) -> leave(ClientInfo, PacketId, wait_ack, 1, Session).

pubrec(PacketId, #session{inflight = Inflight} = Session) ->
    case gb_trees:lookup(PacketId, Inflight) of
        {value, {wait_ack, #message{qos = 2} = Message}} ->
            Next = gb_trees:update(PacketId, {wait_comp, Message}, Inflight),
            {ok, Message, Session#session{inflight = Next}};
        {value, {wait_ack, _}} -> {error, ?PROTOCOL_ERROR};
        {value, _} -> {error, ?PACKET_IDENTIFIER_IN_USE};
        none -> {error, ?PACKET_IDENTIFIER_NOT_FOUND}
    end.

pubcomp(ClientInfo, PacketId, Session) -> leave(ClientInfo, PacketId, wait_comp, 2, Session).

%% What is next in the queue takes the place that has become free.
leave(ClientInfo, PacketId, Phase, QoS, #session{inflight = Inflight} = Session) ->
    case gb_trees:lookup(PacketId, Inflight) of
        {value, {Phase, #message{qos = QoS} = Message}} ->
            Freed = Session#session{inflight = gb_trees:delete(PacketId, Inflight)},
            {ok, Publishes, Next} = dequeue(ClientInfo, Freed),
            {ok, Message, Publishes, Next};
        {value, {_, #message{qos = Other}}} when Other =/= QoS -> {error, ?PROTOCOL_ERROR};
        {value, _} -> {error, ?PACKET_IDENTIFIER_IN_USE};
        none -> {error, ?PACKET_IDENTIFIER_NOT_FOUND}
    end.

%%--------------------------------------------------------------------
%% To the client
%%--------------------------------------------------------------------

%% Answers what is to be sent, each with its packet id.
deliver(ClientInfo, Messages, Session) -> deliver(ClientInfo, Messages, [], Session).

deliver(_ClientInfo, [], Publishes, Session) ->
    {ok, lists:reverse(Publishes), Session};
deliver(ClientInfo, [#message{qos = 0} = Message | Messages], Publishes, Session) ->
    deliver(ClientInfo, Messages, [{undefined, Message} | Publishes], Session);
deliver(ClientInfo, [Message | Messages], Publishes, #session{next_pkt_id = Id} = Session) ->
    case free(Session) of
        0 ->
            IsRefused = emqx_hooks:run_fold('message.nack', [Message], false),
            Next =
                case IsRefused of
                    true -> Session;
                    false -> enqueue(ClientInfo, [Message], Session)
                end,
            deliver(ClientInfo, Messages, Publishes, Next);
        _ ->
            Next = Session#session{
                inflight = gb_trees:insert(Id, {wait_ack, Message}, Session#session.inflight),
                next_pkt_id = Id rem 65535 + 1
            },
            deliver(ClientInfo, Messages, [{Id, Message} | Publishes], Next)
    end.

free(#session{inflight_max = 0}) -> 1000;
free(#session{inflight_max = Maximum, inflight = Inflight}) -> max(0, Maximum - gb_trees:size(Inflight)).

enqueue(ClientInfo, Messages, Session) ->
    lists:foldl(fun(Message, Acc) -> enqueue_one(ClientInfo, Message, Acc) end, Session, Messages).

enqueue_one(ClientInfo, #message{qos = 0} = Message, #session{store_qos0 = false} = Session) ->
    ok = emqx_hooks:run('delivery.dropped', [ClientInfo, Message, qos0_msg]),
    Session;
enqueue_one(ClientInfo, Message, #session{mqueue = Queue, mqueue_max = Maximum} = Session) when
    Maximum > 0, Session#session.mqueue_len >= Maximum
->
    {{value, Dropped}, Left} = queue:out(Queue),
    ok = emqx_hooks:run('delivery.dropped', [ClientInfo, Dropped, queue_full]),
    Session#session{
        mqueue = queue:in(Message, Left), mqueue_dropped = Session#session.mqueue_dropped + 1
    };
enqueue_one(_ClientInfo, Message, #session{mqueue = Queue, mqueue_len = Length} = Session) ->
    Session#session{mqueue = queue:in(Message, Queue), mqueue_len = Length + 1}.

dequeue(ClientInfo, Session) ->
    {Messages, Next} = dequeue(ClientInfo, free(Session), [], Session),
    deliver(ClientInfo, Messages, Next).

%% QoS 0 messages take no place.
dequeue(ClientInfo, Free, Taken, #session{mqueue = Queue, mqueue_len = Length} = Session) when
    Free > 0, Length > 0
->
    {{value, Message}, Left} = queue:out(Queue),
    Next = Session#session{mqueue = Left, mqueue_len = Length - 1},
    case emqx_message:is_expired(Message, maps:get(zone, ClientInfo)) of
        true ->
            ok = emqx_hooks:run('delivery.dropped', [ClientInfo, Message, expired]),
            dequeue(ClientInfo, Free, Taken, Next);
        false when Message#message.qos =:= 0 ->
            dequeue(ClientInfo, Free, [Message | Taken], Next);
        false ->
            dequeue(ClientInfo, Free - 1, [Message | Taken], Next)
    end;
dequeue(_ClientInfo, _Free, Taken, Session) ->
    {lists:reverse(Taken), Session}.

%% What has come through a group is for another member now, but not where the client may have it (QoS 2).
terminate(Reason, _Session) when Reason =:= takenover; Reason =:= kicked ->
    ok;
terminate(_Reason, #session{inflight = Inflight, mqueue = Queue}) ->
    Sent = [Message || {_, #message{qos = 1} = Message} <- gb_trees:values(Inflight)],
    emqx_shared_sub:redispatch(Sent ++ queue:to_list(Queue)).

%% To a new connection: what is in flight once more, then what is queued.
replay(ClientInfo, #session{inflight = Inflight} = Session) ->
    Again = lists:map(
        fun
            ({Id, {wait_comp, _}}) -> {pubrel, Id};
            ({Id, {wait_ack, Message}}) -> {Id, emqx_message:set_flag(dup, true, Message)}
        end,
        gb_trees:to_list(Inflight)
    ),
    {ok, Publishes, Next} = dequeue(ClientInfo, Session),
    {ok, Again ++ Publishes, Next}.
