%% One connection at a time for each client id, in the whole cluster of EMQX.
%%
%% From authentication until the new connection is registered, a client's session is looked for, restored
%% and taken over; a second connection of the same client in the middle of that would split it. The lock of
%% a client is at one node, which all choose alike. Whoever waits is served in turn; a process that ends
%% gives its lock back. A node that dies takes its locks along, and two may then connect at once: the
%% session's epoch in Redis has the last word.
-module(emqx_redis_connect_lock).

-behaviour(gen_server).

-export([start_link/0, acquire/2, release/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type client_id() :: emqx_redis_session:client_id().
-type lock() :: {node(), client_id()}.
-export_type([lock/0]).

%% A node that is well answers within that.
-define(ANSWER_TIMEOUT, 1000).

%% The holder, what watches it, and who waits, first come first.
-type entry() :: {pid(), reference(), queue:queue(gen_server:from())}.

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Waits for the client's lock, for the calling process. `{error, timeout}': others have had it all the time.
-spec acquire(client_id(), timeout()) -> {ok, lock() | none} | {error, timeout}.
acquire(ClientId, Timeout) ->
    Nodes = emqx_redis_broker:nodes(),
    acquire(ClientId, Timeout, [Node || {_, Node} <- lists:sort([{rank(ClientId, N), N} || N <- Nodes])]).

rank(ClientId, Node) -> erlang:phash2({ClientId, Node}).

%% A node that does not have the plugin, is gone or does not answer at once is passed over; so all come to
%% the same one.
acquire(_ClientId, _Timeout, []) ->
    {ok, none};
acquire(ClientId, Timeout, [Node | Nodes]) ->
    try gen_server:call({?MODULE, Node}, {acquire, ClientId}, ?ANSWER_TIMEOUT) of
        granted -> {ok, {Node, ClientId}};
        wait -> wait(ClientId, Timeout, Node)
    catch
        exit:_ ->
            release({Node, ClientId}),
            acquire(ClientId, Timeout, Nodes)
    end.

wait(ClientId, Timeout, Node) ->
    try gen_server:call({?MODULE, Node}, {wait, ClientId}, Timeout) of
        granted -> {ok, {Node, ClientId}}
    catch
        exit:_ ->
            release({Node, ClientId}),
            {error, timeout}
    end.

%% Gives it back, also where the process has only waited for it.
-spec release(lock() | none) -> ok.
release(none) -> ok;
release({Node, ClientId}) -> gen_server:cast({?MODULE, Node}, {release, ClientId, self()}).

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

-spec init([]) -> {ok, #{client_id() => entry()}}.
init([]) -> {ok, #{}}.

handle_call({Request, ClientId}, {Pid, _} = From, Locks) ->
    case Locks of
        #{ClientId := {Pid, _, _}} ->
            {reply, granted, Locks};
        #{ClientId := {Holder, Monitor, Waiting}} when Request =:= wait ->
            {noreply, Locks#{ClientId := {Holder, Monitor, queue:in(From, Waiting)}}};
        #{ClientId := _} ->
            {reply, wait, Locks};
        _ ->
            {reply, granted, Locks#{ClientId => {Pid, watch(Pid, ClientId), queue:new()}}}
    end.

handle_cast({release, ClientId, Pid}, Locks) ->
    case Locks of
        #{ClientId := {Pid, Monitor, Waiting}} ->
            demonitor(Monitor, [flush]),
            {noreply, grant_next(ClientId, Waiting, Locks)};
        #{ClientId := {Holder, Monitor, Waiting}} ->
            Left = queue:filter(fun({Waiter, _}) -> Waiter =/= Pid end, Waiting),
            {noreply, Locks#{ClientId := {Holder, Monitor, Left}}};
        _ ->
            {noreply, Locks}
    end.

handle_info({{ended, ClientId}, Monitor, process, _Pid, _Reason}, Locks) ->
    case Locks of
        #{ClientId := {_, Monitor, Waiting}} -> {noreply, grant_next(ClientId, Waiting, Locks)};
        _ -> {noreply, Locks}
    end;
handle_info(_Message, Locks) ->
    {noreply, Locks}.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

watch(Pid, ClientId) -> monitor(process, Pid, [{tag, {ended, ClientId}}]).

%% A waiter that has ended meanwhile is told of at once by its monitor.
grant_next(ClientId, Waiting, Locks) ->
    case queue:out(Waiting) of
        {{value, {Pid, _} = From}, Left} ->
            gen_server:reply(From, granted),
            Locks#{ClientId := {Pid, watch(Pid, ClientId), Left}};
        {empty, _} ->
            maps:remove(ClientId, Locks)
    end.
