%% The persistent session of one client, as its channel's process keeps it in Redis.
%%
%% Everything here runs in that process, called by hooks, and blocks nobody else. What is known of the
%% session is in the process dictionary: a process without it has no persistent session, and its hooks do
%% nothing.
%%
%% In Redis it is a map: `version' (1), `node', `instance' (the epoch at which it began, which tells it from
%% an earlier session of the client), `created_at' (ms), `expiry' (ms), `subscriptions' (filter to options
%% as EMQX has them). Subscriptions of QoS 1 and 2 are in the table of `emqx_redis_subscription' besides, so
%% that publishers find the client.
-module(emqx_redis_client_session).

-export([connecting/1, expected/0]).
-export([created/2, resumed/2, adopt/3]).
-export([subscribing/2, subscribed/2, unsubscribed/1, confirm_subscriptions/0]).
-export([disconnected/1, ended/0, discard_stored/1, refresh/0, lost/0]).
-export([current/0, update_backlog/1]).

-export_type([state/0, stored/0]).

-type client_id() :: emqx_redis_session:client_id().
-type filter() :: binary().
-type stored() :: #{
    version := 1,
    node := node(),
    instance := emqx_redis_session:epoch(),
    created_at := integer(),
    expiry := non_neg_integer(),
    subscriptions := #{filter() => map()}
}.
-type state() :: #{
    client_id := client_id(),
    epoch := emqx_redis_session:epoch(),
    stored := stored(),
    connected := boolean(),
    %% Whether Redis lacks what was to be written.
    dirty := boolean(),
    %% Filters that are stored and not confirmed by EMQX yet.
    unconfirmed := [filter()],
    backlog := emqx_redis_backlog:state() | none
}.

-define(SESSION, emqx_redis_session).
-define(CONNECTING, emqx_redis_connecting).
%% A connected client's session outlives its last save by its expiry and this, which `emqx_redis_owned' is
%% well within.
-define(CONNECTED_SECONDS, 3600).
%% How long a SUBACK waits for the slowest node.
-define(SYNC_TIMEOUT, 10000).

%%--------------------------------------------------------------------
%% A connection is made
%%--------------------------------------------------------------------

%% Keeps what only CONNECT tells: `clean_start', `expiry_interval' (ms), `receive_maximum'.
-spec connecting(emqx_redis_broker:conn_info()) -> ok.
connecting(ConnInfo) ->
    Kept = maps:with([clean_start, expiry_interval, receive_maximum, clientid, peername, sockname], ConnInfo),
    _ = put(?CONNECTING, Kept),
    ok.

-spec expected() -> emqx_redis_broker:conn_info() | undefined.
expected() -> get(?CONNECTING).

%% The session is new: claims it, writes it, and takes away what an earlier one has left.
-spec created(emqx_redis_broker:client_info(), map()) -> ok | {error, term()}.
created(#{clientid := ClientId}, #{created_at := CreatedAt}) ->
    case erase(?CONNECTING) of
        #{expiry_interval := Expiry} = Connecting when Expiry > 0 ->
            create(ClientId, Expiry, CreatedAt, maps:get(clean_start, Connecting, true));
        _ ->
            discard_stored(ClientId)
    end.

create(ClientId, Expiry, CreatedAt, CleanStart) ->
    case emqx_redis_session:claim_session(ClientId, #{}) of
        {ok, #{session := Old}} when Old =/= undefined, not CleanStart ->
            %% It was there to be restored: another connection came between.
            {error, overtaken};
        {ok, #{session := Old, epoch := Epoch}} ->
            Stored = #{
                version => 1,
                node => node(),
                instance => Epoch,
                created_at => CreatedAt,
                expiry => Expiry,
                subscriptions => #{}
            },
            State = new(ClientId, Epoch, Stored),
            emqx_redis_plugin_stats:count(sessions_created),
            finish_create(State, Old);
        {error, _} = Error ->
            Error
    end.

finish_create(#{client_id := ClientId, epoch := Epoch} = State, Old) ->
    maybe_all([
        fun() -> delete_subscriptions(ClientId, filters(Old)) end,
        fun() -> save(State) end,
        fun() -> emqx_redis_message:delete_messages(ClientId, #{epoch => Epoch}) end
    ]).

filters(#{subscriptions := Subscriptions}) -> maps:keys(Subscriptions);
filters(_) -> [].

%% A client without a persistent session: what an earlier one has left in Redis ends.
-spec discard_stored(client_id()) -> ok | {error, term()}.
discard_stored(ClientId) ->
    case emqx_redis_session:load_session(ClientId) of
        {error, not_found} ->
            ok;
        {ok, Old} ->
            case emqx_redis_session:claim_session(ClientId, #{}) of
                {ok, #{epoch := Epoch}} -> delete(ClientId, Epoch, filters(Old));
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

%% The session goes on: restored from Redis (then `Restored' says how it was claimed), or taken over from
%% another channel.
-spec resumed(emqx_redis_broker:client_info(), map()) -> ok | {error, term()}.
resumed(#{clientid := ClientId}, SessionInfo) ->
    Connecting =
        case erase(?CONNECTING) of
            undefined -> #{};
            Known -> Known
        end,
    Expiry = maps:get(expiry_interval, Connecting, 0),
    case maps:get(restored, Connecting, none) of
        {Epoch, Stored, Backlog} ->
            emqx_redis_plugin_stats:count(sessions_restored),
            Next = Stored#{node := node(), expiry := Expiry},
            save((new(ClientId, Epoch, Next))#{backlog := Backlog});
        none ->
            Backlog = hand_over(ClientId, maps:get(live, Connecting, none)),
            take_over(ClientId, Expiry, SessionInfo, Backlog)
    end.

%% What the channel that is taken over has on its way to Redis must be there before its epoch ends.
hand_over(_ClientId, none) ->
    none;
hand_over(ClientId, Pid) ->
    _ = emqx_redis_acks:flush(node(Pid), ClientId),
    emqx_redis_backlog:hand_over(Pid).

take_over(ClientId, Expiry, SessionInfo, Backlog) ->
    Subscriptions = subscriptions(maps:to_list(maps:get(subscriptions, SessionInfo))),
    case emqx_redis_session:claim_session(ClientId, #{}) of
        {ok, #{epoch := Epoch, session := Old}} ->
            Stored = #{
                version => 1,
                node => node(),
                instance => instance(Old, Epoch),
                created_at => maps:get(created_at, SessionInfo),
                expiry => Expiry,
                subscriptions => Subscriptions
            },
            emqx_redis_plugin_stats:count(sessions_resumed),
            State = (new(ClientId, Epoch, Stored))#{backlog := Backlog},
            Gone = filters(Old) -- maps:keys(Subscriptions),
            Changed = maps:filter(
                fun(Filter, SubOpts) -> known_options(Filter, Old) =/= SubOpts end, Subscriptions
            ),
            maybe_all([
                fun() -> save(State) end,
                fun() -> add_subscriptions(State, Changed) end,
                fun() -> delete_subscriptions(ClientId, Gone) end
            ]);
        {error, _} = Error ->
            Error
    end.

known_options(Filter, #{subscriptions := #{} = Known}) -> maps:get(Filter, Known, none);
known_options(_Filter, _) -> none.

instance(#{instance := Instance}, _Epoch) -> Instance;
instance(_, Epoch) -> Epoch.

%% A session that was there before the plugin: writes it as it is. `Expiry' in milliseconds.
-spec adopt(client_id(), non_neg_integer(), integer()) -> ok | {error, term()}.
adopt(ClientId, Expiry, CreatedAt) ->
    Subscribed = emqx_redis_broker:subscriptions(self()),
    Info = #{subscriptions => maps:from_list(Subscribed), created_at => CreatedAt},
    take_over(ClientId, Expiry, Info, none).

new(ClientId, Epoch, Stored) ->
    State = #{
        client_id => ClientId,
        epoch => Epoch,
        stored => Stored,
        connected => true,
        dirty => true,
        unconfirmed => [],
        backlog => none
    },
    emqx_redis_owned:put(ClientId, Epoch),
    keep(State).

keep(State) ->
    _ = put(?SESSION, State),
    State.

%% What the calling process knows of its session; `undefined' where it has none that is persistent.
-spec current() -> state() | undefined.
current() -> get(?SESSION).

-spec update_backlog(emqx_redis_backlog:state() | none) -> ok.
update_backlog(Backlog) ->
    case current() of
        undefined -> ok;
        State -> _ = keep(State#{backlog := Backlog}), ok
    end.

%%--------------------------------------------------------------------
%% Subscriptions
%%--------------------------------------------------------------------

%% About to be subscribed to all at once: after this a message that is published anywhere is stored.
-spec subscribing([{emqx_redis_broker:topic_filter(), map()}], state()) -> ok | {error, term()}.
subscribing(TopicFilters, #{stored := Stored} = State) ->
    #{subscriptions := Known} = Stored,
    New = subscriptions(TopicFilters),
    Changed = maps:filter(fun(Filter, SubOpts) -> maps:get(Filter, Known, none) =/= SubOpts end, New),
    case map_size(Changed) of
        0 ->
            ok;
        _ ->
            Next = keep(State#{
                stored := Stored#{subscriptions := maps:merge(Known, Changed)},
                unconfirmed := maps:keys(Changed) -- maps:keys(Known),
                dirty := true
            }),
            case maybe_all([fun() -> save(Next) end, fun() -> add_subscriptions(Next, Changed) end]) of
                ok ->
                    ok;
                {error, _} = Error ->
                    %% What is in Redis by now is taken out when the session is saved again.
                    _ = keep(State#{dirty := true}),
                    Error
            end
    end.

%% Is subscribed now: nothing is left to be done, unless nobody has announced it (the Dashboard subscribes
%% so).
-spec subscribed({emqx_redis_broker:topic_filter(), map()}, state()) -> ok | {error, term()}.
subscribed({Filter, _} = Subscription, State) ->
    Confirmed = lists:delete(emqx_redis_broker:filter_to_binary(Filter), maps:get(unconfirmed, State)),
    Announced = keep(State#{unconfirmed := Confirmed}),
    case subscribing([Subscription], Announced) of
        ok -> _ = keep((current())#{unconfirmed := Confirmed}), ok;
        {error, _} = Error -> Error
    end.

%% Filters that were announced and refused by EMQX (a quota) are taken back.
-spec confirm_subscriptions() -> ok | {error, term()}.
confirm_subscriptions() ->
    case current() of
        #{unconfirmed := [_ | _] = Refused} = State -> forget(Refused, State#{unconfirmed := []});
        _ -> ok
    end.

-spec unsubscribed(emqx_redis_broker:topic_filter()) -> ok | {error, term()}.
unsubscribed(Filter) ->
    case current() of
        undefined -> ok;
        State -> forget([emqx_redis_broker:filter_to_binary(Filter)], State)
    end.

forget(Filters, #{client_id := ClientId, stored := Stored} = State) ->
    Left = maps:without(Filters, maps:get(subscriptions, Stored)),
    Next = keep(State#{stored := Stored#{subscriptions := Left}, dirty := true}),
    maybe_all([fun() -> save(Next) end, fun() -> delete_subscriptions(ClientId, Filters) end]).

subscriptions(TopicFilters) ->
    maps:from_list([
        {emqx_redis_broker:filter_to_binary(Filter), maps:without([is_new, shard], SubOpts)}
     || {Filter, SubOpts} <- TopicFilters
    ]).

%% Others must find the client by those of QoS 1 and 2, and no longer by those of QoS 0.
add_subscriptions(#{client_id := ClientId, stored := #{instance := Instance}}, Subscriptions) ->
    Wanted = [
        {Filter, ClientId, {QoS, maps:get(nl, SubOpts, 0), Instance}}
     || {Filter, #{qos := QoS} = SubOpts} <- maps:to_list(Subscriptions), QoS > 0, QoS < 3
    ],
    Others = [Filter || {Filter, #{qos := QoS}} <- maps:to_list(Subscriptions), QoS =:= 0 orelse QoS > 2],
    maybe_all([
        fun() -> announce(Wanted) end,
        fun() -> delete_subscriptions(ClientId, Others) end
    ]).

announce([]) ->
    ok;
announce(Subscriptions) ->
    case emqx_redis_subscription:add_subscriptions(Subscriptions, #{version => true}) of
        {ok, Version} ->
            emqx_redis_router:sync(Version, #{nodes => all, timeout => ?SYNC_TIMEOUT});
        {error, _} = Error ->
            Error
    end.

delete_subscriptions(_ClientId, []) ->
    ok;
delete_subscriptions(ClientId, Filters) ->
    emqx_redis_subscription:delete_subscriptions([{Filter, ClientId} || Filter <- Filters]).

%%--------------------------------------------------------------------
%% The end, and in between
%%--------------------------------------------------------------------

%% The client is gone and its session stays, for `Expiry' milliseconds; 0: it ends.
-spec disconnected(Expiry :: non_neg_integer()) -> ok | {error, term()}.
disconnected(Expiry) ->
    case current() of
        undefined ->
            ok;
        _ when Expiry =:= 0 ->
            ended();
        #{stored := Stored} = State ->
            save(State#{stored := Stored#{expiry := Expiry}, connected := false})
    end.

%% It has expired, or was ended by an administrator.
-spec ended() -> ok | {error, term()}.
ended() ->
    case erase(?SESSION) of
        undefined ->
            ok;
        #{client_id := ClientId, epoch := Epoch, stored := Stored} ->
            emqx_redis_owned:delete(ClientId),
            delete(ClientId, Epoch, filters(Stored))
    end.

%% First what makes others store for it, last what it can be found by.
delete(ClientId, Epoch, Filters) ->
    emqx_redis_plugin_stats:count(sessions_deleted),
    maybe_all([
        fun() -> delete_subscriptions(ClientId, Filters) end,
        fun() -> emqx_redis_message:delete_messages(ClientId, #{epoch => Epoch}) end,
        fun() -> emqx_redis_session:delete_session(ClientId, #{epoch => Epoch}) end
    ]).

%% Saves a connected client's session again before it expires, and any that could not be saved.
-spec refresh() -> ok | {error, term()}.
refresh() ->
    case current() of
        #{dirty := true, stored := #{subscriptions := Subscriptions}} = State ->
            maybe_all([
                fun() -> add_subscriptions(State, Subscriptions) end,
                fun() -> save(State) end
            ]);
        #{connected := true} = State ->
            save(State);
        _ ->
            ok
    end.

%% Another node has the session: this process writes nothing any more, and its connection ends.
-spec lost() -> ok.
lost() ->
    case erase(?SESSION) of
        undefined ->
            ok;
        #{client_id := ClientId} ->
            emqx_redis_owned:delete(ClientId),
            emqx_redis_plugin_stats:count(sessions_lost),
            exit(self(), kill),
            ok
    end.

save(#{client_id := ClientId, epoch := Epoch, stored := Stored} = State) ->
    case emqx_redis_session:save_session(ClientId, Stored, #{epoch => Epoch, ttl => ttl(State)}) of
        ok ->
            _ = keep(State#{dirty := false}),
            ok;
        {error, {stale_epoch, _}} ->
            lost();
        {error, _} = Error ->
            _ = keep(State#{dirty := true}),
            Error
    end.

%% 0xFFFFFFFF seconds mean for ever (MQTT 5.0 section 3.1.2.11.2).
ttl(#{stored := #{expiry := Expiry}, connected := Connected}) ->
    case Expiry div 1000 of
        Seconds when Seconds >= 16#FFFFFFFF -> infinity;
        Seconds when Connected -> min(Seconds + ?CONNECTED_SECONDS, 16#FFFFFFFE);
        Seconds -> max(1, Seconds)
    end.

maybe_all([Step | Steps]) ->
    case Step() of
        ok -> maybe_all(Steps);
        {error, _} = Error -> Error
    end;
maybe_all([]) ->
    ok.
