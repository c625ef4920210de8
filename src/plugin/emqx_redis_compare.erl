%% A channel's side of comparing its session with Redis, see `emqx_redis_reconcile'. All runs in the
%% channel's process.
-module(emqx_redis_compare).

-export([all/2, ask/1, check/0, handle/2]).
-export_type([message/0]).

-import(emqx_redis_session_state, [current/0, keep/1]).

-type ids() :: #{emqx_redis_message:message_id() => []}.
%% What a channel is told as `{emqx_redis_storage, {compare, Message}}'.
-type message() ::
    %% By whoever finds that hooks may have missed something: that messages may be missing in Redis, or may
    %% have been routed past the session.
    missing
    | check
    %% By a process of `emqx_redis_reconcile': it was started anew, and has forgotten what it was asked for.
    | {again, Number :: 1..4}
    %% There are messages that were routed past the session.
    | strays
    %% It is about to look at the session, about to store messages that it holds, or has given up for now.
    | looking
    | {storing, ids()}
    | not_looking
    %% Before EMQX is asked for its next packet id, and what it answered.
    | counting
    | {next_packet_id, 1..65535}
    %% The end: what the session held at the last look, and what of it was stored only now.
    | {compared, emqx_redis_reconcile:surplus(), Held :: ids(), Stored :: ids()}.

-spec handle(message(), emqx_redis_broker:client_info()) -> ok.
handle(missing, _ClientInfo) -> ask(keep);
handle(check, _ClientInfo) -> check();
handle({again, Number}, _ClientInfo) -> ask_again(Number);
handle(strays, ClientInfo) -> strays(ClientInfo);
handle(looking, _ClientInfo) -> looking();
handle({storing, Ids}, _ClientInfo) -> storing(Ids);
handle(not_looking, _ClientInfo) -> not_looking();
handle(counting, _ClientInfo) -> counting();
handle({next_packet_id, Id}, _ClientInfo) -> next_packet_id(Id);
handle({compared, Surplus, Held, Stored}, _ClientInfo) -> compared(Surplus, Held, Stored).

%% Nobody knows whether what EMQX holds of the session is what Redis has.
-spec all(emqx_redis_broker:client_info(), emqx_redis_broker:conn_info()) -> ok.
all(ClientInfo, ConnInfo) ->
    case current() of
        undefined ->
            ok;
        State ->
            _ = keep(State#{room := emqx_redis_backlog:limits(ClientInfo, ConnInfo)}),
            ask(deliver)
    end.

%% What only Redis has is to become that. It is remembered until it is done, as the process that does it may
%% end.
-spec ask(keep | remove | deliver) -> ok.
ask(Surplus) ->
    case current() of
        undefined ->
            ok;
        #{comparing := Comparing} = State ->
            {What, Next} = emqx_redis_comparing:request(Surplus, Comparing),
            Kept = keep(State#{comparing := Next}),
            What =:= ask andalso request(Kept),
            ok
    end.

%% Asks once more for what is not done yet, where it is for that process.
ask_again(Number) ->
    case current() of
        #{client_id := ClientId, comparing := #{}} = State ->
            emqx_redis_reconcile:number(ClientId) =:= Number andalso request(State),
            ok;
        _ ->
            ok
    end.

request(#{comparing := Comparing} = State) -> request(emqx_redis_comparing:current(Comparing), State).

request(Surplus, #{client_id := ClientId, epoch := Epoch, exact_ids := IsExact, version := Version}) ->
    emqx_redis_reconcile:session(ClientId, Epoch, Surplus, #{
        version => Version, is_id_wanted => not IsExact andalso Surplus =/= check
    }).

%% Has it looked up whether Redis has messages that were routed past the session.
-spec check() -> ok.
check() ->
    case current() of
        #{comparing := none, backlog := Backlog} = State ->
            has_all(Backlog) andalso request(check, State),
            ok;
        _ ->
            ok
    end.

%% Redis has messages for a session that was handed all of them.
strays(#{clientid := ClientId} = ClientInfo) ->
    case emqx_redis_broker:channel_info(ClientId, self()) of
        #{conninfo := ConnInfo} -> all(ClientInfo, ConnInfo);
        _ -> ok
    end.

%% The session is about to be looked at. If nobody knows what it holds, nothing is to come from Redis until
%% somebody does.
looking() ->
    case current() of
        #{comparing := Comparing, backlog := Backlog, room := Room} = State ->
            Known = emqx_redis_comparing:current(Comparing) =/= deliver orelse
                emqx_redis_backlog:is_unknown(Backlog),
            Next =
                case {Known, Room} of
                    {false, {Window, MaxQueue}} -> emqx_redis_backlog:unknown(Window, MaxQueue);
                    _ -> Backlog
                end,
            _ = keep(State#{comparing := emqx_redis_comparing:looking(Comparing), backlog := Next}),
            ok;
        undefined ->
            ok
    end.

%% Those that the session holds are about to be stored, and do not come from Redis.
storing(Ids) ->
    case current() of
        #{comparing := Comparing, backlog := #{} = Backlog} = State ->
            Held = maps:without(maps:keys(emqx_redis_comparing:left(Comparing)), Ids),
            _ = keep(State#{backlog := emqx_redis_backlog:add_known(Held, Backlog)}),
            ok;
        _ ->
            ok
    end.

%% Nothing came of it yet.
not_looking() ->
    case current() of
        #{comparing := Comparing} = State ->
            _ = keep(State#{comparing := emqx_redis_comparing:not_looking(Comparing)}),
            ok;
        undefined ->
            ok
    end.

%% The session held those messages when it was looked at, and Redis has them, some of them since then.
compared(Surplus, Held, Stored) ->
    case current() of
        #{comparing := #{current := Surplus} = Comparing, backlog := Backlog} = State ->
            Next = emqx_redis_comparing:done(Comparing),
            Done = keep(State#{comparing := Next}),
            Gone = maps:keys(emqx_redis_comparing:left(Comparing)),
            note_again(maps:without(Gone, Stored), Done),
            take_up(maps:without(Gone, Held), maps:without(Gone, Stored), Backlog, Done),
            Next =/= none andalso request(current()),
            ok;
        _ ->
            ok
    end.

%% With which packet ids they were sent could not be noted before they were stored.
note_again(Stored, #{sent := Sent, client_id := ClientId, epoch := Epoch}) ->
    maps:foreach(
        fun
            (_Id, unknown) -> ok;
            (Id, Mark) -> emqx_redis_acks:mark(ClientId, Epoch, Id, Mark)
        end,
        maps:with(maps:keys(Stored), Sent)
    ).

%% EMQX is about to be asked for its next packet id.
counting() ->
    case current() of
        #{exact_ids := false, packet_ids := Ids} = State ->
            _ = keep(State#{counted := Ids}),
            ok;
        _ ->
            ok
    end.

%% It was that. If nothing was sent since, it is that still.
next_packet_id(Id) ->
    case current() of
        #{exact_ids := false, packet_ids := Ids, counted := Ids} = State ->
            Exact = State#{exact_ids := true, packet_ids := emqx_redis_packet_ids:from(Id)},
            emqx_redis_session_state:reserve(keep(Exact));
        _ ->
            ok
    end.

take_up(_Held, _Stored, none, _State) ->
    ok;
take_up(Held, Stored, Backlog, State) ->
    case emqx_redis_backlog:is_unknown(Backlog) of
        false ->
            _ = keep(State#{backlog := emqx_redis_backlog:add_known(Stored, Backlog)}),
            ok;
        true ->
            _ = keep(State#{backlog := emqx_redis_backlog:held(Held, Backlog)}),
            ok
    end,
    emqx_redis_delivery:load_backlog().

%% Whether it has been handed all that Redis had.
has_all(#{more := More}) -> not More;
has_all(none) -> true.
