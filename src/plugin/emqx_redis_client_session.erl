%% The persistent session of one client, as its channel's process keeps it in Redis.
%%
%% Everything here runs in that process, called by hooks, and blocks nobody else. What is known of the
%% session is in the process dictionary: a process without it has no persistent session, and its hooks do
%% nothing.
%%
%% In Redis it is a map: `version' (1), `node', `instance' (the epoch at which it began, which tells it from
%% an earlier session of the client), `packet_id' (the last that may be in use), `created_at' (ms), `since'
%% (ms: when its client connected last), `expiry' (ms), `subscriptions' (filter to options as EMQX has
%% them). Subscriptions of QoS 1 and 2 are in the table of `emqx_redis_subscription' besides, so that
%% publishers find the client.
-module(emqx_redis_client_session).

-export([connecting/1, expected/0, found/1]).
-export([created/2, resumed/2, adopt/4, known/1]).
-export([subscribing/2, subscribed/2, unsubscribed/1, confirm_subscriptions/0]).
-export([disconnected/1, ended/0, discard_stored/1, discard_stored_or_later/1, refresh/0, rewrite/0, lost/1]).
-export([delivered/3, received/1, completed/1, forget_sent/1]).
-export([load_backlog/0, reserve/1, current/0, keep/1, earlier/0]).
-export([begin_run/0, end_run/0, run_began/0]).

-export_type([state/0, stored/0]).

-type client_id() :: emqx_redis_session:client_id().
-type filter() :: binary().
-type stored() :: #{
    version := 1,
    node := node(),
    instance := emqx_redis_session:epoch(),
    packet_id := 1..65535,
    created_at := integer(),
    since => integer(),
    expiry := non_neg_integer(),
    subscriptions := #{filter() => map()}
}.
-type state() :: #{
    %% Which run of the plugin it is of.
    run := {integer(), Began :: integer()} | none,
    client_id := client_id(),
    epoch := emqx_redis_session:epoch(),
    stored := stored(),
    connected := boolean(),
    %% Whether Redis lacks what was to be written.
    dirty := boolean(),
    %% Filters that are stored and not confirmed by EMQX yet.
    unconfirmed := [filter()],
    %% Filters that are unsubscribed from, and may be known to publishers yet.
    gone := [filter()],
    %% The packet ids to come.
    packet_ids := emqx_redis_packet_ids:state(),
    %% Whether these are the very ids that EMQX gives out, or only ahead of them.
    exact_ids := boolean(),
    %% The packet ids to come when EMQX was asked for its own.
    counted := emqx_redis_packet_ids:state() | none,
    %% The packet ids of messages that are under way.
    sent := #{emqx_redis_message:message_id() => emqx_redis_message:mark() | unknown},
    backlog := emqx_redis_backlog:state() | none,
    %% How many messages may be in flight, and how many queued.
    room := {non_neg_integer(), non_neg_integer() | infinity} | none,
    %% Of its subscriptions, when they were written other than by SUBSCRIBE.
    version := none | emqx_redis_router:version(),
    comparing := emqx_redis_comparing:state()
}.

-define(SESSION, emqx_redis_session).
-define(CONNECTING, emqx_redis_connecting).
-define(RUN, {?MODULE, run}).
%% A connected client's session outlives its last save by its expiry and this, which `emqx_redis_owned' is
%% well within.
-define(CONNECTED_SECONDS, 3600).
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
    case process_info(Pid, dictionary) of
        {dictionary, Dictionary} -> known(run(), proplists:get_value(?SESSION, Dictionary));
        undefined -> #{}
    end.

%% One whose client is still there may go on before it hands the session over.
known(Run, #{run := Run, connected := IsConnected, exact_ids := IsExact, backlog := Backlog} = State) ->
    Kept = maps:with([sent, packet_ids, backlog, comparing], State),
    Kept#{
        exact_ids => IsExact andalso not IsConnected,
        has_pages_to_come => IsConnected andalso Backlog =/= none
    };
known(_Run, _State) ->
    #{}.

take_over(#{clientid := ClientId} = ClientInfo, Connecting, SessionInfo, Known) ->
    #{expiry_interval := Expiry} = Connecting,
    Window = maps:get(receive_maximum, Connecting, 0),
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
    State = #{
        run => run(),
        client_id => ClientId,
        epoch => Epoch,
        stored => Stored,
        connected => true,
        dirty => true,
        unconfirmed => [],
        gone => [],
        packet_ids => emqx_redis_packet_ids:new(),
        exact_ids => true,
        counted => none,
        sent => #{},
        backlog => none,
        room => none,
        version => none,
        comparing => none
    },
    emqx_redis_owned:put(ClientId, Epoch),
    keep(State).

join_groups(Subscriptions) ->
    Groups = [emqx_redis_filter:group(Filter) || Filter <- maps:keys(Subscriptions)],
    lists:foreach(fun emqx_redis_groups:joined/1, [Group || {_, _} = Group <- Groups]).

%% What it knows from now on.
-spec keep(state()) -> state().
keep(State) ->
    _ = put(?SESSION, State),
    State.

%% What the calling process knows of its session; `undefined' where it has none that is persistent, or knows
%% it from an earlier run of the plugin only: that has missed what became of it.
-spec current() -> state() | undefined.
current() ->
    case get(?SESSION) of
        #{run := Run} = State ->
            case run() of
                Run -> State;
                _ -> undefined
            end;
        undefined ->
            undefined
    end.

%% What an earlier run of the plugin knew of the session: whether it had been handed all that Redis had for
%% it.
-spec earlier() -> whole | in_part | unknown.
earlier() ->
    case get(?SESSION) of
        #{backlog := #{more := true}} -> in_part;
        #{comparing := #{current := deliver}} -> in_part;
        #{comparing := #{next := deliver}} -> in_part;
        #{} -> whole;
        undefined -> unknown
    end.

run() -> persistent_term:get(?RUN, none).

%% When this run of the plugin began, in milliseconds.
-spec run_began() -> integer().
run_began() -> element(2, run()).

%% The plugin starts.
-spec begin_run() -> ok.
begin_run() -> persistent_term:put(?RUN, {erlang:unique_integer(), now_ms()}).

%% It is stopped, and misses from now on what becomes of sessions.
-spec end_run() -> ok.
end_run() ->
    _ = persistent_term:erase(?RUN),
    ok.

%%--------------------------------------------------------------------
%% Messages on their way to the client
%%--------------------------------------------------------------------

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
reserve(reserve, State) -> reserve(State).

%% Stores up to where packet ids may be in use. What fails is saved again later; the block is far from its
%% end.
-spec reserve(state()) -> ok.
reserve(#{packet_ids := Ids, stored := Stored} = State) ->
    _ = save(State#{stored := Stored#{packet_id := emqx_redis_packet_ids:reserved(Ids)}}),
    ok.

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

%% Another node has the session: this process writes nothing any more, and its connection ends.
-spec lost(emqx_redis_session:epoch()) -> ok.
lost(Epoch) ->
    case current() of
        #{client_id := ClientId, epoch := Epoch} ->
            _ = erase(?SESSION),
            emqx_redis_owned:delete(ClientId),
            emqx_redis_plugin_stats:count(sessions_lost),
            %% What came here was meant for the session that is elsewhere.
            emqx_redis_strays:doubt_everywhere(),
            %% It may be about to be opened.
            emqx_redis_broker:unlock(ClientId),
            exit(self(), kill),
            ok;
        _ ->
            ok
    end.

save(#{client_id := ClientId, epoch := Epoch, stored := Stored} = State) ->
    case emqx_redis_session:save_session(ClientId, Stored, #{epoch => Epoch, ttl => ttl(State)}) of
        ok ->
            _ = keep(State#{dirty := false}),
            ok;
        {error, {stale_epoch, _}} ->
            _ = keep(State),
            lost(Epoch),
            {error, {stale_epoch, Epoch}};
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

now_ms() -> erlang:system_time(millisecond).

maybe_all([Step | Steps]) ->
    case Step() of
        ok -> maybe_all(Steps);
        {error, _} = Error -> Error
    end;
maybe_all([]) ->
    ok.
