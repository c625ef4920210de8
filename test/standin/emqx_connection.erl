%% A client's connection and its channel: one process, which outlives the connection as long as the session
%% does.
-module(emqx_connection).

-behaviour(gen_server).

-export([call/3, drain_deliveries/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-include("emqx_standin.hrl").

-define(PACKET, emqx_redis_mqtt_packet).
-define(FOREVER, 16#FFFFFFFF * 1000).
-define(TAKEOVER_TIMEOUT, 10000).

-record(state, {
    socket,
    version = 4,
    buffer = <<>>,
    state = idle :: idle | connected | disconnected,
    conn_info,
    client_info,
    session,
    %% While the session is given away, deliveries are kept for its new channel.
    takeover = false,
    pending = [],
    expiry_timer
}).

call(Pid, Request, Timeout) -> gen_server:call(Pid, Request, Timeout).

%% What was delivered to the calling process and not taken yet.
drain_deliveries() ->
    receive
        {deliver, _, _} = Delivery -> [Delivery | drain_deliveries()]
    after 0 -> []
    end.

init(Socket) -> {ok, #state{socket = Socket}}.

handle_call(Request, _From, State) ->
    try
        channel_call(Request, State)
    catch
        throw:{stop, Reason, Reply, Stopped} -> terminated(Reason, Reply, Stopped)
    end.

handle_cast(_Request, State) -> {noreply, State}.

handle_info(Message, State) ->
    try
        {noreply, message(Message, State)}
    catch
        throw:{stop, Reason, _Reply, Stopped} ->
            {stop, Why, _, Last} = terminated(Reason, ok, Stopped),
            {stop, Why, Last}
    end.

stop(Reason, State) -> stop(Reason, ok, State).

stop(Reason, Reply, State) -> throw({stop, Reason, Reply, State}).

terminated(Reason, Reply, #state{session = Session, client_info = ClientInfo} = State) ->
    Name =
        case lists:member(Reason, [expired, takenover, kicked, discarded]) of
            true -> Reason;
            false -> {shutdown, Reason}
        end,
    _ = Session =:= undefined orelse emqx_session:terminate(ClientInfo, Name, Session),
    _ = State#state.socket =:= closed orelse gen_tcp:close(State#state.socket),
    {stop, {shutdown, Reason}, Reply, State}.

message(start, #state{socket = Socket} = State) ->
    {ok, {PeerHost, _} = Peer} = inet:peername(Socket),
    {ok, {_, Port} = Own} = inet:sockname(Socket),
    ok = inet:setopts(Socket, [{active, true}]),
    State#state{
        conn_info = #{
            socktype => tcp, sockname => Own, peername => Peer, conn_mod => ?MODULE
        },
        client_info = #{
            zone => default, listener => 'tcp:default', protocol => mqtt, peerhost => PeerHost,
            peername => Peer, sockport => Port, clientid => undefined, username => undefined,
            mountpoint => undefined, is_bridge => false, is_superuser => false, enable_authn => true
        }
    };
message({tcp, _, Bytes}, #state{buffer = Buffer} = State) ->
    packets(State#state{buffer = <<Buffer/binary, Bytes/binary>>});
message({tcp_closed, _}, State) ->
    closed(tcp_closed, State);
message({tcp_error, _, Reason}, State) ->
    closed(Reason, State);
message({deliver, _, _} = Delivery, State) ->
    delivered([Delivery | drain_deliveries()], State);
message(expire_session, State) ->
    stop(expired, State);
message({subscribe, Filters}, State) ->
    {_, Next} = subscribe([emqx_topic:parse(Filter, Options) || {Filter, Options} <- Filters], State),
    Next;
message({unsubscribe, Filters}, State) ->
    {_, Next} = unsubscribe([emqx_topic:parse(Filter, Options) || {Filter, Options} <- Filters], #{}, State),
    Next;
message({disconnect, Code, Reason, Properties}, State) ->
    disconnect(Code, Reason, Properties, State);
message({puback, PacketId, _Routed, Code}, State) ->
    send({puback, PacketId, Code}, State);
message(Message, #state{client_info = ClientInfo} = State) ->
    Answer = emqx_hooks:run_fold(
        'client.handle_info', [ClientInfo, Message], #{deliver => [], replies => []}
    ),
    delivered(maps:get(deliver, Answer, []), State).

packets(#state{socket = Socket} = State) when Socket =/= closed ->
    case ?PACKET:parse(State#state.buffer, State#state.version) of
        {ok, Packet, Rest} -> packets(packet(Packet, State#state{buffer = Rest}));
        more -> State
    end;
packets(State) ->
    State.

send(_Packet, #state{socket = closed} = State) ->
    State;
send(Packet, #state{socket = Socket, version = Version} = State) ->
    _ = gen_tcp:send(Socket, ?PACKET:serialize(Packet, Version)),
    State.

%%--------------------------------------------------------------------
%% Packets of the client
%%--------------------------------------------------------------------

packet({connect, Connect}, #state{state = idle} = State) ->
    connect(Connect, State);
packet(_Packet, #state{state = idle} = State) ->
    stop(protocol_error, State);
packet({publish, Publish}, State) ->
    publish(Publish, State);
packet({puback, PacketId, Code}, #state{client_info = ClientInfo, session = Session} = State) ->
    case emqx_session:puback(ClientInfo, PacketId, Code, Session) of
        {ok, Message, Publishes, Next} ->
            ok = acked(Message, State),
            send_publishes(Publishes, State#state{session = Next});
        {error, ?PROTOCOL_ERROR} ->
            disconnect(?PROTOCOL_ERROR, protocol_error, #{}, State);
        {error, _} ->
            State
    end;
packet({pubrec, PacketId, _}, #state{session = Session} = State) ->
    case emqx_session_mem:pubrec(PacketId, Session) of
        {ok, Message, Next} ->
            ok = acked(Message, State),
            send({pubrel, PacketId, ?SUCCESS}, State#state{session = Next});
        {error, ?PROTOCOL_ERROR} ->
            disconnect(?PROTOCOL_ERROR, protocol_error, #{}, State);
        {error, Code} ->
            send({pubrel, PacketId, Code}, State)
    end;
packet({pubrel, PacketId, _}, #state{session = Session} = State) ->
    case emqx_session_mem:pubrel(PacketId, Session) of
        {ok, Next} -> send({pubcomp, PacketId, ?SUCCESS}, State#state{session = Next});
        {error, Code} -> send({pubcomp, PacketId, Code}, State)
    end;
packet({pubcomp, PacketId, Code}, #state{client_info = ClientInfo, session = Session} = State) ->
    case emqx_session:pubcomp(ClientInfo, PacketId, Code, Session) of
        {ok, _Message, Publishes, Next} -> send_publishes(Publishes, State#state{session = Next});
        {error, ?PROTOCOL_ERROR} -> disconnect(?PROTOCOL_ERROR, protocol_error, #{}, State);
        {error, _} -> State
    end;
packet({subscribe, PacketId, Properties, Filters}, #state{client_info = ClientInfo} = State) ->
    More = maps:from_list([{subid, Id} || #{'Subscription-Identifier' := Id} <- [Properties]]),
    Wanted = [
        emqx_topic:parse(Filter, maps:merge(options(Options, State), More#{sub_props => Properties}))
     || {Filter, Options} <- Filters
    ],
    Allowed = emqx_hooks:run_fold('client.subscribe', [ClientInfo, Properties], Wanted),
    {Codes, Next} = subscribe(Allowed, State),
    Answer = case State#state.version of 5 -> Codes; _ -> [min(Code, 16#80) || Code <- Codes] end,
    update_info(send({suback, PacketId, Answer}, Next));
packet({unsubscribe, PacketId, Filters}, #state{client_info = ClientInfo} = State) ->
    Wanted = [emqx_topic:parse(Filter, #{}) || Filter <- Filters],
    Allowed = emqx_hooks:run_fold('client.unsubscribe', [ClientInfo, #{}], Wanted),
    {Codes, Next} = unsubscribe(Allowed, #{unsub_props => #{}}, State),
    update_info(send({unsuback, PacketId, Codes}, Next));
packet(pingreq, State) ->
    send(pingresp, State);
packet({disconnect, Code, Properties}, #state{conn_info = ConnInfo} = State) ->
    #{expiry_interval := Old} = ConnInfo,
    New =
        case Properties of
            #{'Session-Expiry-Interval' := Seconds} -> Seconds * 1000;
            _ -> Old
        end,
    Next = State#state{conn_info = ConnInfo#{expiry_interval => New, disconn_props => Properties}},
    case {Old, New} of
        {0, _} when New > 0 -> disconnect(?PROTOCOL_ERROR, protocol_error, #{}, State);
        {_, 0} when Old > 0 -> closed(normal, Next#state{session = undefined});
        _ when Code =:= 0 -> closed(normal, Next);
        _ -> closed(disconnect_with_will_message, Next)
    end.

options(Options, #state{version = 4}) -> Options#{rap => 0, nl => 0};
options(Options, _State) -> Options.

acked(Message, #state{client_info = ClientInfo}) ->
    emqx_hooks:run('message.acked', [ClientInfo, emqx_message:set_header(puback_props, #{}, Message)]).

%% As far as they can be, in order; answers a reason code for each.
subscribe(Filters, State) -> lists:mapfoldl(fun subscribe_one/2, State, Filters).

subscribe_one({Filter, #{qos := QoS} = Options}, #state{client_info = ClientInfo} = State) ->
    Mounted = emqx_mountpoint:mount(maps:get(mountpoint, ClientInfo), Filter),
    case emqx_session:subscribe(ClientInfo, Mounted, Options, State#state.session) of
        {ok, Session} -> {QoS, State#state{session = Session}};
        {error, Code} -> {Code, State}
    end.

unsubscribe(Filters, More, State) ->
    lists:mapfoldl(fun(Filter, Acc) -> unsubscribe_one(Filter, More, Acc) end, State, Filters).

unsubscribe_one({Filter, Options}, More, #state{client_info = ClientInfo} = State) ->
    Mounted = emqx_mountpoint:mount(maps:get(mountpoint, ClientInfo), Filter),
    case emqx_session:unsubscribe(ClientInfo, Mounted, maps:merge(Options, More), State#state.session) of
        {ok, Session} -> {?SUCCESS, State#state{session = Session}};
        {error, Code} -> {Code, State}
    end.

publish(#{qos := QoS, packet_id := PacketId} = Publish, #state{session = Session} = State) ->
    Message = to_message(Publish, State),
    case QoS of
        0 -> finish_publish(0, PacketId, Message, emqx_broker:publish(Message), State);
        1 -> finish_publish(1, PacketId, Message, emqx_broker:publish(Message), State);
        2 ->
            case emqx_session_mem:publish(PacketId, Message, Session) of
                {ok, Routed, Next} ->
                    finish_publish(2, PacketId, Message, Routed, State#state{session = Next});
                {error, ?PACKET_IDENTIFIER_IN_USE} ->
                    send({pubrec, PacketId, ?PACKET_IDENTIFIER_IN_USE}, State);
                {error, Code} ->
                    disconnect(Code, receive_maximum_exceeded, #{}, State)
            end
    end.

to_message(Publish, #state{client_info = ClientInfo, conn_info = #{proto_ver := Version}}) ->
    #{qos := QoS, topic := Topic, payload := Payload, properties := Properties} = Publish,
    #{dup := Dup, retain := Retain} = Publish,
    Kept = maps:with([client_attrs, peername, protocol, username, peerhost], ClientInfo),
    Headers = Kept#{proto_ver => Version, properties => Properties},
    #{clientid := ClientId} = ClientInfo,
    emqx_message:make(ClientId, QoS, Topic, Payload, #{dup => Dup, retain => Retain}, Headers).

finish_publish(_QoS, _PacketId, _Message, disconnect, State) ->
    disconnect(?IMPLEMENTATION_SPECIFIC_ERROR, implementation_specific_error, #{}, State);
finish_publish(0, _PacketId, _Message, _Routed, State) ->
    State;
finish_publish(1, PacketId, Message, Routed, State) ->
    case emqx_hooks:run_fold('message.puback', [PacketId, Message, Routed], code(Routed)) of
        undefined -> State;
        Code -> send({puback, PacketId, Code}, State)
    end;
finish_publish(2, PacketId, _Message, Routed, State) ->
    send({pubrec, PacketId, code(Routed)}, State).

code([]) -> ?NO_MATCHING_SUBSCRIBERS;
code(_) -> ?SUCCESS.

%%--------------------------------------------------------------------
%% CONNECT
%%--------------------------------------------------------------------

connect(#{version := Version, clean_start := CleanStart, properties := Properties} = Connect, State) ->
    #{client_id := ClientId, keepalive := KeepAlive} = Connect,
    Window = setting(max_inflight),
    ConnInfo = (State#state.conn_info)#{
        proto_name => <<"MQTT">>,
        proto_ver => Version,
        clean_start => CleanStart,
        keepalive => KeepAlive,
        clientid => ClientId,
        username => undefined,
        conn_props => Properties,
        expiry_interval => expiry(Connect),
        receive_maximum => min(Window, maps:get('Receive-Maximum', Properties, Window))
    },
    ClientInfo = (State#state.client_info)#{clientid => ClientId},
    Next = State#state{version = Version, conn_info = ConnInfo, client_info = ClientInfo},
    case emqx_hooks:run_fold('client.connect', [ConnInfo], Properties) of
        {error, Code} -> refuse(Code, Next);
        _ -> authenticate(Next)
    end.

expiry(#{version := 5, properties := Properties}) ->
    maps:get('Session-Expiry-Interval', Properties, 0) * 1000;
expiry(#{clean_start := true}) -> 0;
expiry(#{clean_start := false}) -> setting(session_expiry_interval).

setting(Name) -> emqx_config:get_zone_conf(default, [mqtt, Name], undefined).

authenticate(#state{client_info = ClientInfo} = State) ->
    Credential = ClientInfo#{password => undefined},
    case emqx_hooks:run_fold('client.authenticate', [Credential], ignore) of
        {error, server_unavailable} ->
            Failed = #{reason_code => server_unavailable},
            ok = emqx_hooks:run('client.check_authn_complete', [Credential, Failed]),
            refuse(?SERVER_UNAVAILABLE, State);
        _ ->
            Passed = #{is_superuser => false, is_anonymous => true, reason_code => success},
            ok = emqx_hooks:run('client.check_authn_complete', [Credential, Passed]),
            Next = ClientInfo#{client_attrs => #{}, auth_expire_at => undefined},
            open_session(State#state{client_info = Next})
    end.

open_session(#state{client_info = ClientInfo, conn_info = ConnInfo} = State) ->
    #{clientid := ClientId} = ClientInfo,
    #{clean_start := CleanStart, receive_maximum := Window} = ConnInfo,
    case emqx_cm:open_session(CleanStart, ClientInfo, ConnInfo) of
        {ok, Present, Session, Replay} ->
            ok = emqx_cm:register_channel(ClientId, self(), ConnInfo),
            Connected = ConnInfo#{connected_at => erlang:system_time(millisecond)},
            ok = emqx_hooks:run('client.connected', [ClientInfo, Connected]),
            Properties = emqx_hooks:run_fold(
                'client.connack', [Connected, success], #{'Receive-Maximum' => Window}
            ),
            Next = State#state{state = connected, conn_info = Connected, session = Session},
            ok = emqx_cm:insert_channel_info(ClientId, info(Next), emqx_session:stats(Session)),
            replay(Replay, send({connack, Present, ?SUCCESS, Properties}, Next));
        {error, client_id_unavailable} ->
            refuse(?SERVER_BUSY, State)
    end.

info(#state{conn_info = ConnInfo, client_info = ClientInfo, state = Name, session = Session}) ->
    Info = emqx_session:info(Session),
    #{conninfo => ConnInfo, clientinfo => ClientInfo, conn_state => Name, session => Info}.

update_info(#state{client_info = #{clientid := ClientId}} = State) ->
    _ = emqx_cm:set_chan_info(ClientId, info(State)),
    State.

replay(none, State) ->
    State;
replay(Replay, #state{client_info = ClientInfo, session = Session} = State) ->
    {ok, Publishes, Next} = emqx_session:replay(ClientInfo, Replay, Session),
    send_publishes(Publishes, State#state{session = Next}).

refuse(Code, #state{conn_info = ConnInfo, version = Version} = State) ->
    Names = #{?SERVER_UNAVAILABLE => server_unavailable, ?SERVER_BUSY => server_busy},
    Reason = maps:get(Code, Names, unspecified_error),
    Properties = emqx_hooks:run_fold('client.connack', [ConnInfo, Reason], #{}),
    %% MQTT 3.1.1 has 3 for all of these: server unavailable.
    Sent = case Version of 5 -> Code; _ -> 3 end,
    stop(Reason, send({connack, false, Sent, Properties}, State)).

%%--------------------------------------------------------------------
%% To the client
%%--------------------------------------------------------------------

delivered([], State) ->
    State;
delivered(Deliveries, #state{takeover = true, pending = Pending} = State) ->
    State#state{pending = Pending ++ wanted(Deliveries)};
delivered(Deliveries, #state{state = disconnected, client_info = ClientInfo, session = Session} = State) ->
    Messages = emqx_session:enrich_delivers(ClientInfo, wanted(Deliveries), Session),
    State#state{session = emqx_session_mem:enqueue(ClientInfo, Messages, Session)};
delivered(Deliveries, #state{client_info = ClientInfo, session = Session} = State) ->
    {ok, Publishes, Next} = emqx_session:deliver(ClientInfo, Deliveries, Session),
    send_publishes(Publishes, State#state{session = Next}).

wanted(Deliveries) ->
    [
        Delivery
     || {deliver, _, Message} = Delivery <- Deliveries,
        not emqx_hooks:run_fold('message.nack', [Message], false)
    ].

send_publishes(Publishes, State) -> lists:foldl(fun send_publish/2, State, Publishes).

send_publish({pubrel, PacketId}, State) ->
    send({pubrel, PacketId, ?SUCCESS}, State);
send_publish({PacketId, Message}, #state{client_info = ClientInfo} = State) ->
    #message{qos = QoS, topic = Topic, payload = Payload, flags = Flags, headers = Headers} =
        emqx_hooks:run_fold('message.delivered', [ClientInfo], emqx_message:update_expiry(Message)),
    Names = [
        'Payload-Format-Indicator', 'Message-Expiry-Interval', 'Response-Topic', 'Correlation-Data',
        'User-Property', 'Subscription-Identifier', 'Content-Type'
    ],
    Publish = #{
        topic => Topic,
        payload => Payload,
        qos => QoS,
        retain => maps:get(retain, Flags, false),
        dup => maps:get(dup, Flags, false),
        packet_id => PacketId,
        properties => maps:with(Names, maps:get(properties, Headers, #{}))
    },
    send({publish, Publish}, State).

%%--------------------------------------------------------------------
%% The end of a connection, and of a session
%%--------------------------------------------------------------------

%% By the server.
disconnect(Code, Reason, Properties, #state{version = 5} = State) ->
    closed(Reason, send({disconnect, Code, Properties}, State));
disconnect(_Code, Reason, _Properties, State) ->
    closed(Reason, State).

closed(Reason, #state{state = idle} = State) ->
    stop(Reason, State);
closed(_Reason, #state{state = disconnected} = State) ->
    State#state{socket = closed};
closed(Reason, #state{socket = Socket, client_info = ClientInfo, session = Session} = State) ->
    _ = gen_tcp:close(Socket),
    _ = Session =:= undefined orelse emqx_session:disconnect(ClientInfo, Session),
    Next = disconnected(Reason, State#state{socket = closed}),
    case maps:get(expiry_interval, Next#state.conn_info) of
        Expiry when Session =:= undefined; Expiry =:= 0 -> stop(Reason, Next);
        ?FOREVER -> update_info(Next);
        Expiry -> update_info(expire_in(Expiry, Next))
    end.

expire_in(Milliseconds, #state{expiry_timer = Timer} = State) ->
    _ = Timer =:= undefined orelse erlang:cancel_timer(Timer),
    State#state{expiry_timer = erlang:send_after(Milliseconds, self(), expire_session)}.

disconnected(Reason, #state{client_info = ClientInfo, conn_info = ConnInfo} = State) ->
    Next = ConnInfo#{disconnected_at => erlang:system_time(millisecond)},
    ok = emqx_hooks:run('client.disconnected', [ClientInfo, Reason, Next]),
    ok = emqx_cm:mark_channel_disconnected(self()),
    State#state{conn_info = Next, state = disconnected}.

channel_call(kick, State) ->
    leave(kicked, ?ADMINISTRATIVE_ACTION, ok, State);
channel_call(discard, State) ->
    leave(discarded, ?SESSION_TAKEN_OVER, ok, State);
channel_call(takeover_kick, State) ->
    leave(takenover, ?SESSION_TAKEN_OVER, ok, State);
channel_call({takeover, 'begin'}, #state{client_info = #{clientid := ClientId}, session = Session} = State) ->
    ok = emqx_cm:unregister_channel(ClientId),
    {reply, Session, (expire_in(?TAKEOVER_TIMEOUT, State))#state{takeover = true}};
channel_call({takeover, 'end'}, #state{session = Session, pending = Pending} = State) ->
    ok = emqx_session_mem:takeover(Session),
    leave(takenover, ?SESSION_TAKEN_OVER, Pending ++ wanted(drain_deliveries()), State);
channel_call(stats, #state{session = Session} = State) ->
    {reply, emqx_session:stats(Session), State};
channel_call({Which, _} = Request, #state{session = Session} = State) when
    Which =:= mqueue_msgs; Which =:= inflight_msgs
->
    {reply, emqx_session_mem:info(Request, Session), State};
channel_call(_Request, State) ->
    {reply, ignored, State}.

leave(Reason, Code, Reply, #state{state = connected, version = Version} = State) ->
    Gone = disconnected(Reason, State),
    _ = Version =:= 5 andalso send({disconnect, Code, #{}}, Gone),
    stop(Reason, Reply, Gone);
leave(Reason, _Code, Reply, State) ->
    stop(Reason, Reply, State).
