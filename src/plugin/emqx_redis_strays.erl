%% Messages that are in Redis for a session, and that EMQX has routed past it.
%%
%% A node that was paused or cut off believes in routes of yesterday: what it publishes when it goes on is
%% stored for every session, but may be handed to a channel that is not the client's any more. The message
%% is not lost, and without this module it would wait until its session is restored. So whenever routes may
%% have been wrong somewhere in the cluster, all nodes look at their sessions a few times, further and
%% further apart, for what Redis has and the session has not. (Beside that each session is looked at
%% whenever it is saved again, see `emqx_redis_owned'.)
-module(emqx_redis_strays).

-behaviour(gen_server).

-export([start_link/0, doubt/0, doubt_everywhere/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% A node that has stood still for longer than that may have missed something. All in milliseconds.
-define(TICK, 500).
-define(PAUSE, 1000).
%% When to look, after the doubt. A cluster that is split may stay so for a while.
-define(LOOKS, [4000, 15000, 40000, 90000, 180000, 400000]).
%% More doubts within that are one.
-define(SAME, 1000).

-type milliseconds() :: integer().

-record(state, {
    ticked :: milliseconds(),
    doubted = none :: none | milliseconds(),
    looks = [] :: [milliseconds()]
}).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% What was routed by now may have missed sessions of this node.
-spec doubt() -> ok.
doubt() -> gen_server:cast(?MODULE, doubt).

%% The same for sessions of all nodes.
-spec doubt_everywhere() -> ok.
doubt_everywhere() ->
    abcast = gen_server:abcast(emqx_redis_broker:nodes(), ?MODULE, doubt),
    ok.

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

init([]) ->
    _ = net_kernel:monitor_nodes(true),
    _ = erlang:send_after(?TICK, self(), tick),
    {ok, #state{ticked = now_ms()}}.

handle_call(_Request, _From, State) -> {reply, {error, unknown_call}, State}.

handle_cast(doubt, State) -> {noreply, doubted(State)}.

handle_info(tick, #state{ticked = Ticked} = State) ->
    Now = now_ms(),
    _ = erlang:send_after(?TICK, self(), tick),
    _ = Now - Ticked > ?TICK + ?PAUSE andalso doubt_everywhere(),
    {noreply, look(Now, State#state{ticked = Now})};
handle_info({NodeUpOrDown, _Node}, State) when NodeUpOrDown =:= nodeup; NodeUpOrDown =:= nodedown ->
    {noreply, doubted(State)};
handle_info(_Message, State) ->
    {noreply, State}.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

doubted(#state{doubted = Doubted} = State) ->
    case now_ms() of
        Now when Doubted =/= none, Now - Doubted < ?SAME -> State;
        Now -> State#state{doubted = Now, looks = [Now + After || After <- ?LOOKS]}
    end.

%% The next look is begun when the last one is done.
look(Now, #state{looks = [Next | Looks]} = State) when Now >= Next ->
    case emqx_redis_availability:is_available() andalso emqx_redis_reconcile:is_idle() of
        true ->
            emqx_redis_owned:tell_all({compare, check}),
            State#state{looks = [At || At <- Looks, At > Now]};
        false ->
            State
    end;
look(_Now, State) ->
    State.

now_ms() -> erlang:monotonic_time(millisecond).
