%% The life of a client's persistent session: it begins, is restored or taken over, is subscribed, and ends.
%% In Redis it follows, before the client is answered.
%%
%% Everything here runs in the process of the client's channel, called by hooks, and blocks nobody else. What
%% is known and stored of the session, see `emqx_redis_session_state'. Subscriptions of QoS 1 and 2 are in the
%% table of `emqx_redis_subscription' besides, so that publishers find the client.
-module(emqx_redis_client_session).

-export([connecting/1, expected/0, found/1]).
-export([created/2, resumed/2, adopt/4, known/1]).
-export([subscribing/2, subscribed/2, unsubscribed/1, confirm_subscriptions/0]).
-export([disconnected/1, ended/0, discard_stored/1, discard_stored_or_later/1, refresh/0, rewrite/0]).

-import(emqx_redis_session_state, [current/0, keep/1, save/1]).

-type client_id() :: emqx_redis_session:client_id().
-type state() :: emqx_redis_session_state:state().

-define(CONNECTING, emqx_redis_connecting).
%% So long one lives that is being deleted.
-define(ENDING_SECONDS, 60).
%% How long a SUBACK waits for the slowest node.
-define(SYNC_TIMEOUT, 10000).
-define(NODE_TIMEOUT, 2000).

%%--------------------------------------------------------------------
%% A connection is made
%%--------------------------------------------------------------------

%% Keeps what only CONNECT tells: `clean_start', `expiry_interval' (ms), `receive_maximum'.
-spec connecting(emqx_redis_broker:conn_info()) -> ok.
connecting(ConnInfo) ->
    Kept = maps:with([clean_start, expiry_interval, receive_maximum, clientid, peername, sockname], ConnInfo),
    _ = put(?CONNECTING, Kept),
    ok.

%% What was kept of it, until its session is open.
-spec expected() -> map() | undefined.
expected() -> get(?CONNECTING).

%% Its session was found: `live' (the channel that has it), or `restored' (the epoch, what Redis had, and what
%% its stand-in answered).
-spec found(map()) -> ok.
found(Session) ->
    _ = put(?CONNECTING, maps:merge(expected(), Session)),
    ok.

%% The session is new: claims it, writes it, and takes away what an earlier one has left.
-spec created(emqx_redis_broker:client_info(), map()) -> ok | {error, term()}.
created(#{clientid := ClientId}, #{created_at := CreatedAt}) ->
    case erase(?CONNECTING) of
        %% It was on its way when the plugin started: nobody has looked for its session.
        undefined ->
            {error, overtaken};
        #{expiry_interval := Expiry, clean_start := CleanStart} when Expiry > 0 ->
            create(ClientId, Expiry, CreatedAt, CleanStart);
        #{} ->
            %% Nothing of it is kept, so CONNACK waits for nothing. This comes before whatever else the
            %% process is asked for: what an earlier session has left is gone when another connection takes
            %% its place.
            self() ! {emqx_redis_storage, discard_stored},
            ok
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
                packet_id => emqx_redis_packet_ids:reserved(emqx_redis_packet_ids:new()),
                created_at => CreatedAt,
                since => now_ms(),
                expiry => Expiry,
                subscriptions => #{}
            },
            emqx_redis_discards:cancel(ClientId),
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
                {ok, #{epoch := Epoch}} -> delete(ClientId, Epoch, Old);
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

%% The same where nobody waits for it: later, if Redis is away.
-spec discard_stored_or_later(client_id()) -> ok.
discard_stored_or_later(ClientId) ->
    IsDone = current() =/= undefined orelse
        (emqx_redis_availability:is_available() andalso discard_stored(ClientId) =:= ok),
    IsDone orelse emqx_redis_discards:later(ClientId),
    ok.

%% The session goes on: restored from Redis, or taken over from another channel.
-spec resumed(emqx_redis_broker:client_info(), map()) -> ok | {error, term()}.
resumed(ClientInfo, SessionInfo) ->
    case erase(?CONNECTING) of
        undefined -> {error, overtaken};
        Connecting -> go_on(resume(ClientInfo, Connecting, SessionInfo))
    end.

go_on(ok) ->
    #{backlog := Backlog} = current(),
    _ = emqx_redis_backlog:go_on(Backlog),
    ok;
go_on({error, _} = Error) ->
    Error.

resume(#{clientid := ClientId} = ClientInfo, #{expiry_interval := Expiry} = Connecting, SessionInfo) ->
    emqx_redis_discards:cancel(ClientId),
    case maps:get(restored, Connecting, none) of
        {Epoch, Stored, #{backlog := _, sent := _, packet_ids := Ids} = Restored} ->
            emqx_redis_plugin_stats:count(sessions_restored),
            Next = Stored#{
                node := node(),
                since => now_ms(),
                expiry := Expiry,
                packet_id := emqx_redis_packet_ids:reserved(Ids)
            },
            save(maps:merge(new(ClientId, Epoch, Next), Restored));
        none ->
            Known = hand_over(ClientId, maps:get(live, Connecting, none)),
            take_over(ClientInfo, Connecting, SessionInfo, Known)
    end.

%% What the channel that is taken over has on its way to Redis must be there before its epoch ends; and what
%% it knows of the session beside what EMQX hands over is read from its process.
hand_over(_ClientId, none) ->
    #{};
hand_over(ClientId, Pid) ->
    _ = emqx_redis_acks:flush(node(Pid), ClientId),
    try
        erpc:call(node(Pid), ?MODULE, known, [Pid], ?NODE_TIMEOUT)
    catch
        %% The node is gone, or has another version.
        error:{erpc, _} -> #{};
        error:{exception, undef, _} -> #{}
    end.

%% What a channel of this node knows of its session beside EMQX; nothing, where the plugin was away meanwhile.
-spec known(pid()) -> map().
known(Pid) ->
    case emqx_redis_session_state:of_channel(Pid) of
        #{connected := IsConnected, exact_ids := IsExact, backlog := Backlog} = State ->
            %% One whose client is still there may go on before it hands the session over.
            Kept = maps:with([sent, packet_ids, backlog, comparing], State),
            Kept#{
                exact_ids => IsExact andalso not IsConnected,
                has_pages_to_come => IsConnected andalso Backlog =/= none
            };
        undefined ->
            #{}
    end.

take_over(#{clientid := ClientId} = ClientInfo, Connecting, SessionInfo, Known) ->
    #{expiry_interval := Expiry} = Connecting,
    {Window, _MaxQueue} = emqx_redis_backlog:limits(ClientInfo, Connecting),
    Backlog = emqx_redis_backlog:handed_over(maps:get(backlog, Known, none), Window),
    Own = maps:without([comparing, has_pages_to_come], Known#{backlog => Backlog}),
    case adopt(ClientId, Expiry, SessionInfo, Own) of
        {claimed, _Old, Written} ->
            case what_to_compare(Known) of
                none -> ok;
                deliver -> emqx_redis_compare:all(ClientInfo, Connecting);
                Surplus -> emqx_redis_compare:ask(Surplus)
            end,
            Written;
        {error, _} = Error ->
            Error
    end.

what_to_compare(#{has_pages_to_come := true}) -> deliver;
what_to_compare(#{comparing := Comparing, exact_ids := IsExact}) ->
    case emqx_redis_comparing:strongest(Comparing) of
        none when not IsExact -> keep;
        Surplus -> Surplus
    end;
what_to_compare(#{}) -> deliver.

%% Writes a session that EMQX has as it is, and answers what Redis had (`undefined' where there was none), and
%% what came of writing.
-spec adopt(client_id(), non_neg_integer(), map(), map()) ->
    {claimed, Old :: term(), ok | {error, term()}} | {error, term()}.
adopt(ClientId, Expiry, SessionInfo, Known) ->
    Subscriptions = subscriptions(maps:to_list(maps:get(subscriptions, SessionInfo))),
    case emqx_redis_session:claim_session(ClientId, #{}) of
        {ok, #{epoch := Epoch, session := Old}} ->
            Stored = #{
                version => 1,
                node => node(),
                instance => instance(Old, Epoch),
                packet_id => last_packet_id(Known, Old),
                created_at => maps:get(created_at, SessionInfo),
                since => now_ms(),
                expiry => Expiry,
                subscriptions => Subscriptions
            },
            emqx_redis_plugin_stats:count(sessions_resumed),
            IsConnected = maps:get(connected, SessionInfo, true),
            New = (new(ClientId, Epoch, Stored))#{connected := IsConnected},
            State = keep(maps:merge(New, ids(Known, Stored))),
            Gone = filters(Old) -- maps:keys(Subscriptions),
            Changed = maps:filter(
                fun(Filter, SubOpts) -> known_options(Filter, Old) =/= SubOpts end, Subscriptions
            ),
            Written = maybe_all([
                fun() -> save(State) end,
                fun() -> add_subscriptions(Changed) end,
                fun() -> delete_subscriptions(ClientId, Gone) end
            ]),
            {claimed, Old, Written};
        {error, _} = Error ->
            Error
    end.

known_options(Filter, #{subscriptions := #{} = Known}) -> maps:get(Filter, Known, none);
known_options(_Filter, _) -> none.

%% How far a channel's packet ids have come is not known of one that was not watched: it is taken for far
%% behind any that may be in use.
last_packet_id(#{packet_ids := Ids}, _Old) -> emqx_redis_packet_ids:reserved(Ids);
last_packet_id(_Known, #{packet_id := PacketId}) -> emqx_redis_packet_ids:far_behind(PacketId);
last_packet_id(_Known, _Old) -> emqx_redis_packet_ids:far_behind(1).

ids(#{packet_ids := _} = Known, _Stored) -> Known;
ids(Known, #{packet_id := PacketId}) ->
    Known#{packet_ids => emqx_redis_packet_ids:reserved_to(PacketId), exact_ids => false}.

instance(#{instance := Instance}, _Epoch) -> Instance;
instance(_, Epoch) -> Epoch.

new(ClientId, Epoch, #{subscriptions := Subscriptions} = Stored) ->
    join_groups(Subscriptions),
    emqx_redis_owned:put(ClientId, Epoch),
    keep(emqx_redis_session_state:new(ClientId, Epoch, Stored)).

join_groups(Subscriptions) ->
    Groups = [emqx_redis_filter:group(Filter) || Filter <- maps:keys(Subscriptions)],
    lists:foreach(fun emqx_redis_groups:joined/1, [Group || {_, _} = Group <- Groups]).

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
            join_groups(Changed),
            Next = keep(State#{
                stored := Stored#{subscriptions := maps:merge(Known, Changed)},
                unconfirmed := lists:usort(
                    maps:get(unconfirmed, State) ++ (maps:keys(Changed) -- maps:keys(Known))
                ),
                gone := maps:get(gone, State) -- maps:keys(Changed),
                dirty := true
            }),
            case maybe_all([fun() -> save(Next) end, fun() -> add_and_sync(Next, Changed) end]) of
                ok ->
                    ok;
                {error, _} = Error ->
                    %% If EMQX subscribes all the same it is written later, else `confirm_subscriptions/0'
                    %% takes it back.
                    _ = keep(Next),
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
    Gone = lists:usort(Filters ++ maps:get(gone, State)),
    Next = keep(State#{stored := Stored#{subscriptions := Left}, gone := Gone, dirty := true}),
    maybe_all([fun() -> save(Next) end, fun() -> delete_gone(ClientId) end]).

%% Publishers must no longer find the client by those.
delete_gone(ClientId) ->
    #{gone := Gone} = State = current(),
    case delete_subscriptions(ClientId, Gone) of
        ok ->
            _ = keep(State#{gone := []}),
            ok;
        {error, _} = Error ->
            _ = keep(State#{dirty := true}),
            Error
    end.

subscriptions(TopicFilters) ->
    maps:from_list([
        {emqx_redis_broker:filter_to_binary(Filter), maps:without([is_new, shard], SubOpts)}
     || {Filter, SubOpts} <- TopicFilters
    ]).

%% Others must find the client by those of QoS 1 and 2, and no longer by those of QoS 0. Answers the place
%% in the history of subscriptions.
write_subscriptions(#{client_id := ClientId, stored := #{instance := Instance}}, Subscriptions) ->
    Wanted = [
        {Filter, ClientId, {QoS, maps:get(nl, SubOpts, 0), Instance}}
     || {Filter, #{qos := QoS} = SubOpts} <- maps:to_list(Subscriptions), QoS > 0, QoS < 3
    ],
    Others = [Filter || {Filter, #{qos := QoS}} <- maps:to_list(Subscriptions), QoS =:= 0 orelse QoS > 2],
    case announce(Wanted) of
        {ok, Version} ->
            case delete_subscriptions(ClientId, Others) of
                ok -> {ok, Version};
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

%% Other nodes know of them some time later: what needs that waits for the version.
add_subscriptions(Subscriptions) ->
    State = current(),
    case write_subscriptions(State, Subscriptions) of
        {ok, none} ->
            ok;
        {ok, Version} ->
            _ = keep(State#{version := Version}),
            ok;
        {error, _} = Error ->
            Error
    end.

add_and_sync(State, Subscriptions) ->
    case write_subscriptions(State, Subscriptions) of
        {ok, Version} -> sync(Version);
        {error, _} = Error -> Error
    end.

announce([]) ->
    {ok, none};
announce(Subscriptions) ->
    emqx_redis_subscription:add_subscriptions(Subscriptions, #{version => true}).

%% Until every node knows of them: SUBACK waits for that. (The process is held up meanwhile, so nothing else
%% does.)
sync(none) -> ok;
sync(Version) -> emqx_redis_router:sync(Version, #{nodes => all, timeout => ?SYNC_TIMEOUT}).

delete_subscriptions(_ClientId, []) ->
    ok;
delete_subscriptions(ClientId, Filters) ->
    emqx_redis_subscription:delete_subscriptions([{Filter, ClientId} || Filter <- Filters]).

%%--------------------------------------------------------------------
%% The end, and in between
%%--------------------------------------------------------------------

%% The client is gone and its session stays, for `Expiry' milliseconds; 0: it ends.
-spec disconnected(Expiry :: non_neg_integer()) -> ok | {error, term()}.
disconnected(0) ->
    ended();
disconnected(Expiry) ->
    case current() of
        undefined -> ok;
        #{stored := Stored} = State -> save(State#{stored := Stored#{expiry := Expiry}, connected := false})
    end.

%% It has expired, or was ended by an administrator.
-spec ended() -> ok | {error, term()}.
ended() ->
    case emqx_redis_session_state:forget() of
        undefined ->
            ok;
        #{client_id := ClientId, epoch := Epoch, stored := Stored} ->
            emqx_redis_owned:delete(ClientId),
            case delete(ClientId, Epoch, Stored) of
                ok ->
                    ok;
                %% It is another's by now.
                {error, {stale_epoch, _}} ->
                    ok;
                {error, _} = Error ->
                    emqx_redis_discards:later(ClientId),
                    Error
            end
    end.

%% First that it is this process's at all, then what makes others store for it, last what it can be found by.
delete(ClientId, Epoch, Stored) ->
    emqx_redis_plugin_stats:count(sessions_deleted),
    Fence = #{epoch => Epoch, ttl => ?ENDING_SECONDS},
    maybe_all([
        fun() -> emqx_redis_session:save_session(ClientId, Stored, Fence) end,
        fun() -> delete_subscriptions(ClientId, filters(Stored)) end,
        fun() -> emqx_redis_message:delete_messages(ClientId, #{epoch => Epoch}) end,
        fun() -> emqx_redis_session:delete_session(ClientId, #{epoch => Epoch}) end
    ]).

%% Saves a connected client's session again before it expires, and any that could not be saved.
-spec refresh() -> ok | {error, term()}.
refresh() ->
    case current() of
        #{dirty := true, client_id := ClientId, stored := #{subscriptions := Subscriptions}} = State ->
            %% Saved first: that tells whether it is this process's at all.
            maybe_all([
                fun() -> save(State) end,
                fun() -> delete_gone(ClientId) end,
                fun() -> add_subscriptions(Subscriptions) end
            ]);
        #{connected := true} = State ->
            emqx_redis_compare:check(),
            save(State);
        _ ->
            ok
    end.

%% Redis was away for so long that what it had may have expired.
-spec rewrite() -> ok | {error, term()}.
rewrite() ->
    case current() of
        undefined ->
            ok;
        State ->
            _ = keep(State#{dirty := true}),
            Written = refresh(),
            %% And the messages, which may be missing there for the same reason.
            emqx_redis_compare:ask(keep),
            Written
    end.

now_ms() -> erlang:system_time(millisecond).

maybe_all([Step | Steps]) ->
    case Step() of
        ok -> maybe_all(Steps);
        {error, _} = Error -> Error
    end;
maybe_all([]) ->
    ok.
