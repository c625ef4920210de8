%% The hooks in EMQX, and what each does.
%%
%% All run in a client's process. A hook that crashes counts for EMQX as one that has nothing to say, and
%% what it should have prevented happens: so every function here that promises something catches what may go
%% wrong, and what can't be promised ends the process before its client is answered.
-module(emqx_redis_hooks).

-export([register/0, unregister/0]).
-export([on_connect/2, on_authenticated/2, on_connack/3, on_connected/2]).
-export([on_session_created/2, on_session_resumed/2, on_session_terminated/3]).
-export([on_client_subscribe/3, on_session_subscribed/3, on_session_unsubscribed/3]).
-export([on_disconnected/3, on_publish/1, on_puback/4, on_delivered/2, on_acked/2, on_completed/2]).
-export([on_dropped/3, on_nack/2, on_handle_info/3]).

-type client_info() :: emqx_redis_broker:client_info().
-type message() :: emqx_redis_broker:message().

%% EMQX's own hooks have 0 to 1000, the highest first.
-define(FIRST, 1001).
-define(LAST, -1).

-define(SERVER_UNAVAILABLE, 16#88).
%% For a filter that can't be subscribed to: "implementation specific error" (MQTT 5.0 section 3.9.3).
-define(SUBSCRIBE_REFUSED, 16#83).
-define(REFUSED_TOPIC, <<"$redis_storage/refused">>).
-define(STORED, emqx_redis_stored).

hooks() ->
    [
        {'client.connect', on_connect, ?LAST},
        {'client.check_authn_complete', on_authenticated, ?LAST},
        {'client.connack', on_connack, ?FIRST},
        {'client.connected', on_connected, ?FIRST},
        {'client.disconnected', on_disconnected, ?LAST},
        {'client.subscribe', on_client_subscribe, ?LAST},
        {'client.handle_info', on_handle_info, ?FIRST},
        {'session.created', on_session_created, ?FIRST},
        {'session.resumed', on_session_resumed, ?FIRST},
        {'session.subscribed', on_session_subscribed, ?FIRST},
        {'session.unsubscribed', on_session_unsubscribed, ?FIRST},
        {'session.terminated', on_session_terminated, ?LAST},
        {'message.publish', on_publish, ?LAST},
        {'message.puback', on_puback, ?FIRST},
        {'message.delivered', on_delivered, ?FIRST},
        {'message.acked', on_acked, ?LAST},
        {'message.nack', on_nack, ?FIRST},
        {'delivery.completed', on_completed, ?LAST},
        {'delivery.dropped', on_dropped, ?LAST}
    ].

-spec register() -> ok.
register() ->
    lists:foreach(
        fun({Point, Name, Priority}) ->
            emqx_redis_broker:put_hook(Point, {?MODULE, Name, []}, Priority)
        end,
        hooks()
    ).

-spec unregister() -> ok.
unregister() ->
    _ = [emqx_redis_broker:delete_hook(Point, {?MODULE, Name}) || {Point, Name, _} <- hooks()],
    %% They are gone when the broker has done all that it was told.
    emqx_redis_broker:await_hooks().

%%--------------------------------------------------------------------
%% Connections
%%--------------------------------------------------------------------

-spec on_connect(emqx_redis_broker:conn_info(), Properties) -> ok | {stop, {error, integer()}} when
    Properties :: term().
on_connect(#{expiry_interval := Expiry, clean_start := CleanStart} = ConnInfo, _Properties) ->
    NeedsStorage = Expiry > 0 orelse not CleanStart,
    case NeedsStorage andalso emqx_redis_availability:refuses() of
        true ->
            emqx_redis_plugin_stats:count(connects_refused),
            {stop, {error, ?SERVER_UNAVAILABLE}};
        false ->
            emqx_redis_client_session:connecting(ConnInfo)
    end;
on_connect(_ConnInfo, _Properties) ->
    ok.

-spec on_authenticated(client_info(), map()) -> ok.
on_authenticated(ClientInfo, #{reason_code := success}) ->
    or_end("find the session", fun() -> emqx_redis_restore:find(ClientInfo) end);
on_authenticated(_ClientInfo, _Result) ->
    ok.

-spec on_connack(emqx_redis_broker:conn_info(), atom(), term()) -> ok.
on_connack(_ConnInfo, success, _Properties) -> ok;
on_connack(_ConnInfo, _Reason, _Properties) -> emqx_redis_restore:release().

-spec on_connected(client_info(), emqx_redis_broker:conn_info()) -> ok.
on_connected(_ClientInfo, _ConnInfo) -> emqx_redis_restore:release().

%%--------------------------------------------------------------------
%% Sessions
%%--------------------------------------------------------------------

-spec on_session_created(client_info(), map()) -> ok.
on_session_created(ClientInfo, SessionInfo) ->
    or_end_locked("write the new session", ClientInfo, fun() ->
        emqx_redis_client_session:created(ClientInfo, SessionInfo)
    end).

-spec on_session_resumed(client_info(), map()) -> ok.
on_session_resumed(ClientInfo, SessionInfo) ->
    or_end_locked("write the resumed session", ClientInfo, fun() ->
        emqx_redis_client_session:resumed(ClientInfo, SessionInfo)
    end).

-spec on_client_subscribe(client_info(), map(), Filters) -> ok | {ok, Filters} when
    Filters :: [{emqx_redis_broker:topic_filter(), map()}].
on_client_subscribe(ClientInfo, _Properties, TopicFilters) ->
    case emqx_redis_session_state:current() of
        undefined ->
            ok;
        State ->
            Mounted = [
                {emqx_redis_broker:mount(ClientInfo, Filter), SubOpts}
             || {Filter, SubOpts} <- TopicFilters
            ],
            self() ! {emqx_redis_storage, confirm_subscriptions},
            case attempt(fun() -> emqx_redis_client_session:subscribing(Mounted, State) end) of
                ok ->
                    ok;
                {error, Reason} ->
                    refuse_subscribe(Reason, TopicFilters)
            end
    end.

%% EMQX subscribes to whatever it is told here, also with a reason code in place of a QoS: so it is told a
%% name that nobody publishes to.
refuse_subscribe(Reason, TopicFilters) ->
    case emqx_redis_availability:tolerates(Reason) of
        true ->
            ok;
        false ->
            emqx_redis_plugin_stats:count(subscribes_refused),
            log(warning, "refused a subscription", Reason),
            self() ! {unsubscribe, [{?REFUSED_TOPIC, #{}}]},
            {ok, [{?REFUSED_TOPIC, SubOpts#{qos => ?SUBSCRIBE_REFUSED}} || {_, SubOpts} <- TopicFilters]}
    end.

-spec on_session_subscribed(client_info(), emqx_redis_broker:topic_filter(), map()) -> ok.
on_session_subscribed(ClientInfo, Filter, SubOpts) ->
    case emqx_redis_session_state:current() =/= undefined andalso not is_refused(ClientInfo, Filter) of
        true -> or_end("write a subscription", fun() -> subscribed(Filter, SubOpts) end);
        false -> ok
    end.

is_refused(ClientInfo, Filter) -> emqx_redis_broker:unmount(ClientInfo, Filter) =:= ?REFUSED_TOPIC.

subscribed(Filter, SubOpts) ->
    State = emqx_redis_session_state:current(),
    emqx_redis_client_session:subscribed({Filter, maps:remove(is_new, SubOpts)}, State).

-spec on_session_unsubscribed(client_info(), emqx_redis_broker:topic_filter(), map()) -> ok.
on_session_unsubscribed(ClientInfo, Filter, _SubOpts) ->
    case is_refused(ClientInfo, Filter) of
        true -> ok;
        false -> or_note("delete a subscription", fun() -> emqx_redis_client_session:unsubscribed(Filter) end)
    end.

-spec on_disconnected(client_info(), term(), emqx_redis_broker:conn_info()) -> ok.
%% The session goes on in another process, or is ended by it.
on_disconnected(_ClientInfo, Reason, _ConnInfo) when Reason =:= takenover; Reason =:= discarded ->
    ok;
%% Of a client whose socket has just closed EMQX says no more than this.
on_disconnected(_ClientInfo, kicked, _ConnInfo) ->
    or_note("delete a session", fun emqx_redis_client_session:ended/0);
on_disconnected(_ClientInfo, _Reason, ConnInfo) ->
    Expiry = maps:get(expiry_interval, ConnInfo, 0),
    or_note("write the session of a client that is gone", fun() ->
        emqx_redis_client_session:disconnected(Expiry)
    end).

-spec on_session_terminated(client_info(), term(), map()) -> ok.
on_session_terminated(#{clientid := ClientId}, Reason, _SessionInfo) when
    Reason =:= expired; Reason =:= kicked
->
    %% A takeover that is not finished ends as expired too: but then this is the client's channel no more,
    %% and the session may be another's.
    case emqx_redis_broker:is_channel(ClientId) of
        true -> or_note("delete a session", fun emqx_redis_client_session:ended/0);
        false -> ok
    end;
%% A node that stops ends processes too, and the sessions are there for the next one.
on_session_terminated(_ClientInfo, _Reason, _SessionInfo) ->
    ok.

%%--------------------------------------------------------------------
%% Messages
%%--------------------------------------------------------------------

-spec on_publish(message()) -> ok | {ok, message()}.
on_publish(Message) ->
    case emqx_redis_broker:qos(Message) of
        0 ->
            ok;
        _ ->
            case attempt(fun() -> emqx_redis_publish:store(Message) end) of
                unchanged -> ok;
                {stored, Stored} -> note_stored(Stored);
                {error, Reason} -> refuse_publish(Reason, Message)
            end
    end.

%% Without a live subscriber EMQX would answer "no matching subscribers" (MQTT 5.0 section 3.4.2.1).
note_stored(Message) ->
    _ = put(?STORED, emqx_redis_broker:message_id(Message)),
    {ok, Message}.

%% The publisher is disconnected without an answer, and sends the message again.
refuse_publish(Reason, Message) ->
    case emqx_redis_availability:tolerates(Reason) of
        true ->
            emqx_redis_plugin_stats:count(publishes_unstored),
            emqx_redis_availability:unstored();
        false ->
            emqx_redis_plugin_stats:count(publishes_refused),
            log(warning, "refused a message", Reason),
            {ok, emqx_redis_broker:set_header(should_disconnect, true, Message)}
    end.

-spec on_puback(integer(), message(), list(), integer()) -> ok | {ok, 0}.
on_puback(_PacketId, Message, [], _ReasonCode) ->
    case get(?STORED) =:= emqx_redis_broker:message_id(Message) of
        true -> {ok, 0};
        false -> ok
    end;
on_puback(_PacketId, _Message, _Routed, _ReasonCode) ->
    ok.

%% Each in the order of its packet id. What is sent again keeps its id.
-spec on_delivered(client_info(), message()) -> ok.
on_delivered(#{clientid := ClientId}, Message) ->
    case emqx_redis_broker:qos(Message) of
        0 ->
            ok;
        _ ->
            IsOwn = emqx_redis_broker:group(Message) =:= none,
            Id = emqx_redis_broker:message_id(Message),
            emqx_redis_delivery:delivered(Id, IsOwn, emqx_redis_broker:is_dup(Message)),
            IsOwn orelse emqx_redis_groups:hold(ClientId, Message),
            ok
    end.

%% PUBACK of QoS 1. PUBREC of QoS 2 does not end a message, PUBCOMP does: `delivery.completed'.
-spec on_acked(client_info(), message()) -> ok.
on_acked(_ClientInfo, Message) ->
    case emqx_redis_broker:qos(Message) of
        1 -> left(Message);
        2 -> emqx_redis_delivery:received(emqx_redis_broker:message_id(Message));
        0 -> ok
    end.

-spec on_completed(message(), map()) -> ok.
on_completed(Message, _Info) ->
    case emqx_redis_broker:qos(Message) of
        2 -> left(Message);
        _ -> ok
    end.

-spec on_dropped(client_info(), message(), atom()) -> ok.
on_dropped(_ClientInfo, Message, Reason) when Reason =:= queue_full; Reason =:= expired ->
    left(Message);
%% A live one is not stored; one of the backlog was, before the client asked for No Local.
on_dropped(_ClientInfo, Message, no_local) ->
    emqx_redis_backlog:is_marked(Message) andalso left(Message),
    ok;
on_dropped(_ClientInfo, _Message, _Reason) ->
    ok.

%% The message has left the session of this process.
left(Message) ->
    Id = emqx_redis_broker:message_id(Message),
    case emqx_redis_broker:group(Message) of
        none ->
            emqx_redis_delivery:completed(Id);
        {Group, Filter} ->
            emqx_redis_delivery:forget_sent(Id),
            emqx_redis_publish:is_groups(Message) andalso left_group(Group, Filter, Id),
            ok
    end.

left_group(Group, Filter, Id) ->
    emqx_redis_groups:release(Group, Filter, Id),
    emqx_redis_acks:ack(emqx_redis_stored_message:group_queue(Group, Filter), undefined, Id).

-spec on_nack(message(), boolean()) -> ok | {stop, true}.
on_nack(Message, _Nacked) ->
    case emqx_redis_session_state:current() of
        #{client_id := ClientId, backlog := Backlog} ->
            case emqx_redis_backlog:is_refused(Message, Backlog) of
                true ->
                    {stop, true};
                false ->
                    emqx_redis_groups:hold(ClientId, Message)
            end;
        undefined ->
            emqx_redis_groups:hold(self(), Message)
    end.

%%--------------------------------------------------------------------
%% What others of the plugin tell a channel
%%--------------------------------------------------------------------

-spec on_handle_info(client_info(), term(), map()) -> ok.
on_handle_info(_ClientInfo, {emqx_redis_storage, confirm_subscriptions}, _Acc) ->
    or_note("take a refused subscription back", fun emqx_redis_client_session:confirm_subscriptions/0);
on_handle_info(#{clientid := ClientId}, {emqx_redis_storage, discard_stored}, _Acc) ->
    or_note("end an earlier session", fun() ->
        emqx_redis_client_session:discard_stored_or_later(ClientId)
    end);
on_handle_info(ClientInfo, {emqx_redis_storage, adopt}, _Acc) ->
    or_note("take a session over that was there before", fun() -> emqx_redis_adopt:adopt(ClientInfo) end);
on_handle_info(_ClientInfo, {emqx_redis_storage, rewrite}, _Acc) ->
    or_note("write the session anew", fun emqx_redis_client_session:rewrite/0);
on_handle_info(_ClientInfo, {emqx_redis_storage, refresh}, _Acc) ->
    or_note("write the session again", fun emqx_redis_client_session:refresh/0);
on_handle_info(_ClientInfo, {emqx_redis_storage, {lost, Epoch}}, _Acc) ->
    emqx_redis_session_state:lost(Epoch);
on_handle_info(ClientInfo, {emqx_redis_storage, {compare, Message}}, _Acc) ->
    or_note("compare the session with Redis", fun() -> emqx_redis_compare:handle(Message, ClientInfo) end);
on_handle_info(_ClientInfo, {emqx_redis_storage, load_backlog}, _Acc) ->
    emqx_redis_delivery:load_backlog();
on_handle_info(_ClientInfo, _Message, _Acc) ->
    ok.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

%% What must be done before the client is answered. Where it can't be, and the configuration does not put up
%% with it, the process ends: the client gets no answer, and comes again.
or_end(What, Fun) -> or_end(What, fun() -> ok end, Fun).

%% The same while EMQX holds its own lock of the client.
or_end_locked(What, #{clientid := ClientId}, Fun) ->
    or_end(What, fun() -> emqx_redis_broker:unlock(ClientId) end, Fun).

or_end(What, Before, Fun) ->
    case attempt(Fun) of
        ok ->
            ok;
        {error, Reason} ->
            case emqx_redis_availability:tolerates(Reason) of
                true ->
                    ok;
                false ->
                    emqx_redis_plugin_stats:count(connects_refused),
                    log(warning, ["could not ", What], Reason),
                    _ = attempt(Before),
                    exit(self(), kill),
                    ok
            end
    end.

%% What nobody was promised yet. What is not written is written later, or expires.
or_note(What, Fun) ->
    case attempt(Fun) of
        ok -> ok;
        {error, Reason} -> log(warning, ["could not ", What], Reason)
    end.

attempt(Fun) ->
    try
        Fun()
    catch
        Class:Reason:Stack ->
            log(error, "defect", {Class, Reason, Stack}),
            {error, {Class, Reason}}
    end.

log(Level, What, Reason) -> emqx_redis_plugin_log:log(Level, What, Reason).
