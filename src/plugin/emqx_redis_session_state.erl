%% What the process of a channel knows of its client's persistent session, and what of it is saved in Redis.
%%
%% It is in the process dictionary: a process without it has no persistent session, and its hooks do
%% nothing.
%%
%% In Redis it is a map: `version' (1), `node', `instance' (the epoch at which it began, which tells it from
%% an earlier session of the client), `packet_id' (the last that may be in use), `created_at' (ms), `since'
%% (ms: when its client connected last), `expiry' (ms), `subscriptions' (filter to options as EMQX has
%% them).
-module(emqx_redis_session_state).

-export([new/3, keep/1, current/0, forget/0, earlier/0, of_channel/1]).
-export([save/1, reserve/1, lost/1]).
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
-define(RUN, {?MODULE, run}).
%% A connected client's session outlives its last save by its expiry and this, which `emqx_redis_owned' is
%% well within.
-define(CONNECTED_SECONDS, 3600).

%% Of a session that the calling process has claimed.
-spec new(client_id(), emqx_redis_session:epoch(), stored()) -> state().
new(ClientId, Epoch, Stored) ->
    #{
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
    }.

%% What it knows from now on.
-spec keep(state()) -> state().
keep(State) ->
    _ = put(?SESSION, State),
    State.

%% What the calling process knows of its session; `undefined' where it has none that is persistent, or knows
%% it from an earlier run of the plugin only: that has missed what became of it.
-spec current() -> state() | undefined.
current() -> of_this_run(get(?SESSION)).

%% What another process of this node knows; `undefined' as for `current/0'.
-spec of_channel(pid()) -> state() | undefined.
of_channel(Pid) ->
    case process_info(Pid, dictionary) of
        {dictionary, Dictionary} -> of_this_run(proplists:get_value(?SESSION, Dictionary));
        undefined -> undefined
    end.

of_this_run(#{run := Run} = State) ->
    case run() of
        Run -> State;
        _ -> undefined
    end;
of_this_run(_) ->
    undefined.

%% It has none any more; answers what it knew.
-spec forget() -> state() | undefined.
forget() -> erase(?SESSION).

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

%%--------------------------------------------------------------------
%% Saving
%%--------------------------------------------------------------------

%% As long as the epoch is the session's; otherwise the process ends, see `lost/1'.
-spec save(state()) -> ok | {error, term()}.
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

%% Stores up to where packet ids may be in use. What fails is saved again later; the block is far from its
%% end.
-spec reserve(state()) -> ok.
reserve(#{packet_ids := Ids, stored := Stored} = State) ->
    _ = save(State#{stored := Stored#{packet_id := emqx_redis_packet_ids:reserved(Ids)}}),
    ok.

%% Another node has the session: this process writes nothing any more, and its connection ends.
-spec lost(emqx_redis_session:epoch()) -> ok.
lost(Epoch) ->
    case current() of
        #{client_id := ClientId, epoch := Epoch} ->
            _ = forget(),
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

%%--------------------------------------------------------------------
%% Runs of the plugin
%%--------------------------------------------------------------------

run() -> persistent_term:get(?RUN, none).

%% When this run of the plugin began, in milliseconds.
-spec run_began() -> integer().
run_began() -> element(2, run()).

%% The plugin starts.
-spec begin_run() -> ok.
begin_run() -> persistent_term:put(?RUN, {erlang:unique_integer(), erlang:system_time(millisecond)}).

%% It is stopped, and misses from now on what becomes of sessions.
-spec end_run() -> ok.
end_run() ->
    _ = persistent_term:erase(?RUN),
    ok.
