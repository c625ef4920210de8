%% What befalls a session, with the hooks of it.
-module(emqx_session).

-export([create/2, open/2, info/1, stats/1]).
-export([subscribe/4, unsubscribe/4, puback/4, pubcomp/4]).
-export([deliver/3, enrich_delivers/3, replay/3, disconnect/2, terminate/3]).

-include("emqx_standin.hrl").

create(ClientInfo, ConnInfo) ->
    Session = emqx_session_mem:create(ClientInfo, ConnInfo, undefined, settings(ClientInfo)),
    ok = emqx_hooks:run('session.created', [ClientInfo, info(Session)]),
    Session.

open(#{clientid := ClientId} = ClientInfo, ConnInfo) ->
    case emqx_cm:takeover_session_begin(ClientId) of
        {ok, TakenOver, Replay} ->
            Session = emqx_session_mem:resume(ConnInfo, TakenOver),
            ok = emqx_hooks:run('session.resumed', [ClientInfo, info(Session)]),
            {ok, true, Session, Replay};
        none ->
            {ok, false, create(ClientInfo, ConnInfo), none}
    end.

settings(#{zone := Zone}) ->
    Names = [max_subscriptions, max_awaiting_rel, upgrade_qos, retry_interval, await_rel_timeout],
    maps:from_list([{Name, emqx_config:get_zone_conf(Zone, [mqtt, Name], undefined)} || Name <- Names]).

info(Session) ->
    Names = [id, created_at, is_persistent, subscriptions, upgrade_qos, retry_interval, await_rel_timeout],
    maps:from_list([{impl, emqx_session_mem} | emqx_session_mem:info(Names, Session)]).

stats(Session) ->
    emqx_session_mem:info(
        [
            durable, subscriptions_cnt, subscriptions_max, inflight_cnt, inflight_max, mqueue_len, mqueue_max,
            mqueue_dropped, next_pkt_id, awaiting_rel_cnt, awaiting_rel_max
        ],
        Session
    ).

subscribe(ClientInfo, Filter, Options, Session) ->
    IsNew = not is_map_key(Filter, emqx_session_mem:info(subscriptions, Session)),
    case emqx_session_mem:subscribe(Filter, Options, Session) of
        {ok, Next} ->
            ok = emqx_hooks:run('session.subscribed', [ClientInfo, Filter, Options#{is_new => IsNew}]),
            {ok, Next};
        {error, _} = Error ->
            Error
    end.

unsubscribe(ClientInfo, Filter, More, Session) ->
    case emqx_session_mem:unsubscribe(Filter, Session) of
        {ok, Next, Options} ->
            Arguments = [ClientInfo, Filter, maps:merge(Options, More)],
            ok = emqx_hooks:run('session.unsubscribed', Arguments),
            {ok, Next};
        {error, _} = Error ->
            Error
    end.

puback(ClientInfo, PacketId, Code, Session) ->
    completed(ClientInfo, Code, emqx_session_mem:puback(ClientInfo, PacketId, Session)).

pubcomp(ClientInfo, PacketId, Code, Session) ->
    completed(ClientInfo, Code, emqx_session_mem:pubcomp(ClientInfo, PacketId, Session)).

completed(#{clientid := ClientId}, Code, {ok, Message, Publishes, Session} = Done) ->
    Info = #{session_birth_time => emqx_session_mem:info(created_at, Session), clientid => ClientId},
    ok = emqx_hooks:run('delivery.completed', [Message, Info#{reason_code => Code}]),
    %% Nobody will acknowledge these.
    _ = [emqx_hooks:run('delivery.completed', [Sent, Info]) || {_, #message{qos = 0} = Sent} <- Publishes],
    Done;
completed(_ClientInfo, _Code, {error, _} = Error) ->
    Error.

deliver(ClientInfo, Deliveries, Session) ->
    emqx_session_mem:deliver(ClientInfo, enrich_delivers(ClientInfo, Deliveries, Session), Session).

%% Messages as the subscription that each matched wants them.
enrich_delivers(ClientInfo, Deliveries, Session) ->
    Subscriptions = emqx_session_mem:info(subscriptions, Session),
    Upgrade = emqx_session_mem:info(upgrade_qos, Session),
    lists:append([
        enrich(ClientInfo, Message, maps:get(subscription(Filter, Message), Subscriptions, none), Upgrade)
     || {deliver, Filter, Message} <- Deliveries
    ]).

subscription(_, #message{headers = #{redispatch_to := {Group, Filter}}}) ->
    emqx_topic:make_shared_record(Group, Filter);
subscription(Filter, _Message) ->
    Filter.

enrich(_ClientInfo, Message, none, _Upgrade) ->
    [Message];
enrich(#{clientid := ClientId} = ClientInfo, #message{from = ClientId} = Message, #{nl := 1}, _Upgrade) ->
    ok = emqx_hooks:run('delivery.dropped', [ClientInfo, Message, no_local]),
    [];
enrich(_ClientInfo, #message{qos = QoS, headers = Headers} = Message, Options, Upgrade) ->
    Granted = maps:get(qos, Options, QoS),
    Flags = maps:merge(flags(Message, Options), maps:from_list([{nl, true} || #{nl := 1} <- [Options]])),
    Properties = maps:get(properties, Headers, #{}),
    NewHeaders =
        case Options of
            #{subid := Id} -> Headers#{properties => Properties#{'Subscription-Identifier' => Id}};
            _ -> Headers
        end,
    NewQoS = case Upgrade of true -> Granted; false -> min(QoS, Granted) end,
    [Message#message{qos = NewQoS, flags = Flags, headers = NewHeaders}].

%% Retain As Published (MQTT 5.0 section 3.8.3.1).
flags(#message{flags = Flags}, #{rap := 1}) -> Flags;
flags(#message{flags = Flags, headers = #{retained := true}}, _Options) -> Flags;
flags(#message{flags = Flags}, _Options) -> Flags#{retain => false}.

%% The session was taken over: ends that, and answers all that is to be sent to the new connection.
replay(ClientInfo, Replay, Session) ->
    Own = emqx_connection:drain_deliveries(),
    case emqx_cm:takeover_session_end(Replay) of
        {ok, Pending} ->
            Old = enrich_delivers(ClientInfo, Pending, Session),
            Ids = [Id || #message{id = Id} <- Old],
            New = [
                Message
             || #message{id = Id} = Message <- enrich_delivers(ClientInfo, Own, Session),
                not lists:member(Id, Ids)
            ],
            {ok, Again, Replayed} = emqx_session_mem:replay(ClientInfo, Session),
            {ok, Publishes, Next} = emqx_session_mem:deliver(ClientInfo, Old ++ New, Replayed),
            {ok, Again ++ Publishes, Next};
        error ->
            emqx_session_mem:replay(ClientInfo, Session)
    end.

disconnect(ClientInfo, Session) -> emqx_hooks:run('session.disconnected', [ClientInfo, info(Session)]).

terminate(ClientInfo, Reason, Session) ->
    Info = info(Session),
    ok =
        case Reason of
            discarded -> emqx_hooks:run('session.discarded', [ClientInfo, Info]);
            takenover -> emqx_hooks:run('session.takenover', [ClientInfo, Info]);
            _ -> emqx_hooks:run('session.terminated', [ClientInfo, Reason, Info])
        end,
    emqx_session_mem:terminate(Reason, Session).
