%% Stands in for the channel of a client whose session was in Redis alone, until its new connection takes it
%% over.
%%
%% It subscribes, reads what waits in Redis, and holds the session as EMQX has it in memory. To EMQX it is a
%% channel whose client is disconnected; the new connection's process takes the session over from it as from
%% any other. It lives for some milliseconds: where that connection ends before, it ends too, and
%% the session is in Redis as before.
-module(emqx_redis_restored_channel).

-behaviour(gen_server).

-export([start_link/1, start/4, stop/1, is_one/1]).
-export([call/3]).
-export([init/1, handle_call/3, handle_info/2, handle_cast/2]).

-define(SUPERVISOR, emqx_redis_restored_sup).
%% As long as a connection takes, and then some.
-define(LIFETIME, 30000).
%% How long other nodes may take to learn that this one has the subscriptions, and this one itself.
-define(ROUTES_TIMEOUT, 1000).
-define(OWN_ROUTES_TIMEOUT, 4000).
-define(MOST_IN_FLIGHT, 65535).

-record(state, {
    connection :: pid(),
    client_info :: emqx_redis_broker:client_info(),
    session :: emqx_redis_broker:session() | undefined,
    backlog :: emqx_redis_backlog:state() | none,
    %% While the session is handed over, what is delivered is kept for the new channel.
    pending = none :: none | [emqx_redis_broker:delivery()]
}).

-spec start_link(list()) -> gen_server:start_ret().
start_link(Args) -> gen_server:start_link(?MODULE, Args, []).

%% Puts the session into memory, for the calling process to take over. Answers what
%% `emqx_redis_client_session' has to know of it: `backlog', `sent', `packet_ids'.
-spec start(
    emqx_redis_broker:client_info(),
    emqx_redis_broker:conn_info(),
    {emqx_redis_session:epoch(), emqx_redis_session_state:stored()},
    timeout()
) -> {ok, map()} | {error, term()}.
start(ClientInfo, ConnInfo, {Epoch, Stored}, Timeout) ->
    case supervisor:start_child(?SUPERVISOR, [[self(), ClientInfo]]) of
        {ok, Pid} ->
            try
                gen_server:call(Pid, {build, ConnInfo, Epoch, Stored}, Timeout)
            catch
                exit:Reason ->
                    stop(Pid),
                    {error, Reason}
            end;
        {error, _} = Error ->
            Error
    end.

-spec stop(pid()) -> ok.
stop(Pid) ->
    _ = supervisor:terminate_child(?SUPERVISOR, Pid),
    ok.

%% Whether a process of this node is one of these.
-spec is_one(pid()) -> boolean().
is_one(Pid) ->
    case process_info(Pid, dictionary) of
        {dictionary, Dictionary} -> lists:keymember(?MODULE, 1, Dictionary);
        undefined -> false
    end.

%% What EMQX calls as the channel's connection module (`conn_mod').
-spec call(pid(), term(), timeout()) -> term().
call(Pid, Request, Timeout) -> gen_server:call(Pid, Request, Timeout).

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

init([Connection, ClientInfo]) ->
    _ = put(?MODULE, true),
    _ = monitor(process, Connection),
    _ = erlang:send_after(?LIFETIME, self(), too_old),
    {ok, #state{connection = Connection, client_info = ClientInfo, backlog = none}}.

handle_call({build, ConnInfo, Epoch, Stored}, _From, State) ->
    case build(ConnInfo, Epoch, Stored, State) of
        {ok, Known, Built} -> {reply, {ok, Known}, Built};
        {error, _} = Error -> {stop, normal, Error, State}
    end;
handle_call({takeover, 'begin'}, _From, #state{client_info = #{clientid := ClientId}} = State) ->
    ok = emqx_redis_broker:unregister_channel(ClientId),
    {reply, emqx_redis_broker:hand_over(State#state.session), State#state{pending = []}};
handle_call({takeover, 'end'}, _From, #state{session = Session, pending = Pending} = State) ->
    ok = emqx_redis_broker:take_over(Session),
    Late = lists:filter(fun(It) -> is_wanted(It, State) end, emqx_redis_broker:drain_deliveries()),
    {stop, normal, Pending ++ Late, State};
handle_call(Request, _From, State) when
    Request =:= kick; Request =:= discard; Request =:= takeover_kick
->
    {stop, normal, ok, State};
handle_call(_Request, _From, State) ->
    {reply, ignored, State}.

handle_info({deliver, _, _} = Delivery, State) ->
    Deliveries = [Delivery | emqx_redis_broker:drain_deliveries()],
    {noreply, take(lists:filter(fun(It) -> is_wanted(It, State) end, Deliveries), State)};
handle_info({'DOWN', _, process, Pid, _}, #state{connection = Pid} = State) ->
    {stop, normal, State};
handle_info(too_old, State) ->
    {stop, normal, State};
handle_info(_Message, State) ->
    {noreply, State}.

handle_cast(_Request, State) -> {noreply, State}.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

build(ConnInfo, Epoch, Stored, #state{client_info = ClientInfo} = State) ->
    #{clientid := ClientId} = ClientInfo,
    #{subscriptions := Subscriptions, created_at := CreatedAt} = Stored,
    %% All that is under way must find room, though the client takes fewer now: its connection sets the true
    %% window.
    Roomy = emqx_redis_broker:create_session(ClientInfo, ConnInfo#{receive_maximum => ?MOST_IN_FLIGHT}),
    Empty = emqx_redis_broker:set_session_field(created_at, CreatedAt, Roomy),
    Subscribed = maps:fold(
        fun(Filter, SubOpts, Session) -> subscribe(ClientInfo, Filter, SubOpts, Session) end,
        Empty,
        Subscriptions
    ),
    await_routes(maps:keys(Subscriptions)),
    %% From here on, what is published is delivered to this process; before, it is in Redis.
    {Window, MaxQueue} = emqx_redis_backlog:limits(ClientInfo, ConnInfo),
    case read({ClientId, Epoch}, Subscriptions, Window, MaxQueue) of
        {ok, Deliveries, Marks, Backlog} ->
            Ids = emqx_redis_packet_ids:restored(maps:get(packet_id, Stored)),
            {Sent, Queued} =
                lists:partition(fun({_, Mark}) -> Mark =/= undefined end, lists:zip(Deliveries, Marks)),
            {Inflight, SentIds} = lists:foldl(
                fun(It, Acc) -> into_inflight(It, ClientInfo, Acc) end, {Subscribed, #{}}, Sent
            ),
            Numbered = emqx_redis_broker:set_session_field(next_pkt_id, element(1, Ids), Inflight),
            Started = State#state{session = Numbered, backlog = Backlog},
            Built = enqueue([Delivery || {Delivery, _} <- Queued], Started),
            register_channel(ClientId, ConnInfo, Built),
            {ok, #{backlog => Backlog, sent => SentIds, packet_ids => Ids}, Built};
        {error, _} = Error ->
            Error
    end.

read({ClientId, _} = Owner, Subscriptions, Window, MaxQueue) ->
    case emqx_redis_backlog:first_page(Owner, Subscriptions, #{}, Window, MaxQueue) of
        {ok, Deliveries, Backlog} ->
            Ids = [emqx_redis_broker:message_id(Message) || {deliver, _, Message} <- Deliveries],
            case get_marks(ClientId, Ids) of
                {ok, Marks} -> {ok, Deliveries, Marks, Backlog};
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

get_marks(_ClientId, []) -> {ok, []};
get_marks(ClientId, Ids) -> emqx_redis_message:get_marks(ClientId, Ids).

%% The client may have it: it is sent again with its old packet id, or its exchange goes on (QoS 2).
into_inflight({{deliver, _, Message} = Delivery, {PacketId, Phase}}, ClientInfo, {Session, Sent}) ->
    Numbered = emqx_redis_broker:set_session_field(next_pkt_id, PacketId, Session),
    [Enriched] = emqx_redis_broker:enrich(ClientInfo, [Delivery], Numbered),
    Inflight = emqx_redis_broker:into_inflight(ClientInfo, Enriched, Numbered),
    NewSent = Sent#{emqx_redis_broker:message_id(Message) => {PacketId, Phase}},
    case Phase of
        received -> {emqx_redis_broker:received(PacketId, Inflight), NewSent};
        sent -> {Inflight, NewSent}
    end.

%% A limit that was lowered since does not end subscriptions.
subscribe(ClientInfo, Filter, SubOpts, Session) ->
    Internal = emqx_redis_broker:filter_from_binary(Filter),
    case emqx_redis_broker:subscribe(ClientInfo, Internal, SubOpts, Session) of
        {ok, Subscribed} -> Subscribed;
        {error, _} -> Session
    end.

%% This node's own publishers need them as well: they may be late where another node does not answer.
await_routes(Filters) ->
    Real = [Filter || <<First, _/binary>> = Filter <- Filters, First =/= $$],
    Args = [node(), Real, ?ROUTES_TIMEOUT],
    emqx_redis_restore:await_routes(node(), Real, ?OWN_ROUTES_TIMEOUT) orelse emqx_redis_strays:doubt(),
    case emqx_redis_broker:nodes() -- [node()] of
        [] ->
            ok;
        Others ->
            Answers = erpc:multicall(Others, emqx_redis_restore, await_routes, Args, ?ROUTES_TIMEOUT),
            %% A node that routes elsewhere yet may do so for a while.
            lists:all(fun(Answer) -> Answer =:= {ok, true} end, Answers) orelse emqx_redis_strays:doubt()
    end.

register_channel(ClientId, ConnInfo, #state{client_info = ClientInfo, session = Session}) ->
    Channel = ConnInfo#{
        conn_mod => ?MODULE,
        clientid => ClientId,
        connected => false,
        disconnected_at => erlang:system_time(millisecond)
    },
    Info = #{conninfo => Channel, clientinfo => ClientInfo, conn_state => disconnected, session => #{}},
    emqx_redis_broker:register_channel(ClientId, Channel, Info, emqx_redis_broker:session_stats(Session)).

%% Messages of a page that are delivered besides are known; behind a page that is not the last one, all have
%% to wait.
is_wanted({deliver, _, Message}, #state{backlog = Backlog}) ->
    not emqx_redis_backlog:is_refused(Message, Backlog).

take(Deliveries, #state{pending = none} = State) -> enqueue(Deliveries, State);
take(Deliveries, #state{pending = Pending} = State) -> State#state{pending = Pending ++ Deliveries}.

enqueue(Deliveries, #state{client_info = ClientInfo, session = Session} = State) ->
    Messages = emqx_redis_broker:enrich(ClientInfo, Deliveries, Session),
    State#state{session = emqx_redis_broker:enqueue(ClientInfo, Messages, Session)}.
