%% Messages on their way to a client with a persistent session: with which packet ids they go out, when they
%% have left the session, and when the next page of its backlog is due. All runs in the process of the
%% client's channel.
-module(emqx_redis_delivery).

-export([delivered/3, received/1, completed/1, forget_sent/1, load_backlog/0]).

-import(emqx_redis_session_state, [current/0, keep/1]).

%% A message of QoS 1 or 2 is sent; `IsOwn': from the client's own queue, and not a shared group's.
-spec delivered(emqx_redis_message:message_id(), IsOwn :: boolean(), IsDup :: boolean()) -> ok.
delivered(MessageId, IsOwn, IsDup) ->
    case current() of
        undefined ->
            ok;
        %% Once more, with the packet id that it has.
        #{sent := Sent} when IsDup, is_map_key(MessageId, Sent) ->
            ok;
        %% It was sent before that was noted.
        #{sent := Sent} = State when IsDup ->
            _ = keep(State#{sent := Sent#{MessageId => unknown}}),
            ok;
        #{packet_ids := Ids, sent := Sent, exact_ids := Exact} = State ->
            #{client_id := ClientId, epoch := Epoch} = State,
            {PacketId, Reserve, Next} = emqx_redis_packet_ids:next(Ids),
            Mark =
                case Exact of
                    true -> {PacketId, sent};
                    false -> unknown
                end,
            Exact andalso IsOwn andalso emqx_redis_acks:mark(ClientId, Epoch, MessageId, Mark),
            reserve(Reserve, keep(State#{packet_ids := Next, sent := Sent#{MessageId => Mark}}))
    end.

%% A shared group's message has left the session.
-spec forget_sent(emqx_redis_message:message_id()) -> ok.
forget_sent(MessageId) ->
    case current() of
        #{sent := #{MessageId := _} = Sent} = State ->
            _ = keep(State#{sent := maps:remove(MessageId, Sent)}),
            ok;
        _ ->
            ok
    end.

reserve(keep, _State) -> ok;
reserve(reserve, State) -> emqx_redis_session_state:reserve(State).

%% The client has answered a QoS 2 message with PUBREC.
-spec received(emqx_redis_message:message_id()) -> ok.
received(MessageId) ->
    case current() of
        #{sent := #{MessageId := {PacketId, _}} = Sent, client_id := ClientId, epoch := Epoch} = State ->
            Mark = {PacketId, received},
            _ = keep(State#{sent := Sent#{MessageId := Mark}}),
            emqx_redis_acks:mark(ClientId, Epoch, MessageId, Mark);
        _ ->
            ok
    end.

%% The message has left the session: it was acknowledged, or dropped.
-spec completed(emqx_redis_message:message_id()) -> ok.
completed(MessageId) ->
    case current() of
        undefined ->
            ok;
        #{client_id := ClientId, epoch := Epoch, sent := Sent, backlog := Backlog} = State ->
            emqx_redis_acks:ack(ClientId, Epoch, MessageId),
            Left = keep(note_left(MessageId, State#{sent := maps:remove(MessageId, Sent)})),
            Backlog =/= none andalso advance(MessageId, Backlog, Left),
            ok
    end.

note_left(MessageId, #{comparing := Comparing} = State) ->
    State#{comparing := emqx_redis_comparing:left(MessageId, Comparing)}.

advance(MessageId, Backlog, State) ->
    case emqx_redis_backlog:completed(MessageId, Backlog) of
        {wait, Next} -> keep(State#{backlog := Next});
        {done, _} -> keep(State#{backlog := none});
        {load, Next} ->
            _ = keep(State#{backlog := Next}),
            load_backlog()
    end.

load_page(#{client_id := ClientId, epoch := Epoch, stored := Stored} = State) ->
    #{sent := Sent, connected := IsConnected, backlog := Backlog} = State,
    #{subscriptions := Subscriptions} = Stored,
    Next = emqx_redis_backlog:load({ClientId, Epoch}, Subscriptions, Sent, IsConnected, Backlog),
    keep(State#{backlog := Next}).

%% The next page, if it is yet to come and there is room for it.
-spec load_backlog() -> ok.
load_backlog() ->
    case current() of
        #{backlog := #{more := true} = Backlog, connected := IsConnected} = State ->
            _ = emqx_redis_backlog:has_room(Backlog, IsConnected) andalso load_page(State),
            ok;
        _ ->
            ok
    end.
