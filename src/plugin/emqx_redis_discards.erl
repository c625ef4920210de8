%% Sessions in Redis that have ended (their clients began anew without a persistent session, or they expired
%% or were ended), and could not be deleted since Redis was away. They are deleted when Redis is back.
-module(emqx_redis_discards).

-behaviour(gen_server).

-export([start_link/0, later/1, cancel/1, finish/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type client_id() :: emqx_redis_session:client_id().

-define(RETRY, 1000).
-define(SLICE, 100).
-define(LOCK_TIMEOUT, 8000).
%% More are not remembered; their sessions expire.
-define(MOST, 200000).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The client's session has ended just now.
-spec later(client_id()) -> ok.
later(ClientId) -> gen_server:cast(?MODULE, {later, ClientId, erlang:system_time(millisecond)}).

%% It has a session again.
-spec cancel(client_id()) -> ok.
cancel(ClientId) -> gen_server:cast(?MODULE, {cancel, ClientId}).

%% The client connects, and has its lock: what waits here is deleted before its session is looked for.
-spec finish(client_id()) -> ok | {error, emqx_redis_storage:error_reason()}.
finish(ClientId) ->
    case ets:lookup(?MODULE, ClientId) of
        [] ->
            ok;
        [{_, At}] ->
            case discard_older(ClientId, At) of
                ok -> cancel(ClientId);
                {error, _} = Error -> Error
            end
    end.

-spec init([]) -> {ok, #{client_id() => integer()}}.
init([]) ->
    ?MODULE = ets:new(?MODULE, [named_table]),
    {ok, #{}}.

handle_call(_Request, _From, Waiting) -> {reply, {error, unknown_call}, Waiting}.

handle_cast({later, _ClientId, _At}, Waiting) when map_size(Waiting) >= ?MOST ->
    {noreply, Waiting};
handle_cast({later, ClientId, At}, Waiting) ->
    map_size(Waiting) =:= 0 andalso erlang:send_after(?RETRY, self(), retry),
    true = ets:insert(?MODULE, {ClientId, At}),
    {noreply, Waiting#{ClientId => At}};
handle_cast({cancel, ClientId}, Waiting) ->
    true = ets:delete(?MODULE, ClientId),
    {noreply, maps:remove(ClientId, Waiting)}.

handle_info(retry, Waiting) ->
    Some = lists:sublist(maps:to_list(Waiting), ?SLICE),
    Done = [ClientId || {ClientId, At} <- Some, discard(ClientId, At) =:= ok],
    _ = [ets:delete(?MODULE, ClientId) || ClientId <- Done],
    Left = maps:without(Done, Waiting),
    map_size(Left) =:= 0 orelse erlang:send_after(pause(Done), self(), retry),
    {noreply, Left};
handle_info(_Message, Waiting) ->
    {noreply, Waiting}.

pause([]) -> ?RETRY;
pause(_) -> 1.

%% Nobody connects as that client meanwhile. A session that began later is another one.
discard(ClientId, At) ->
    case emqx_redis_connect_lock:acquire(ClientId, ?LOCK_TIMEOUT) of
        {ok, Lock} ->
            Result = discard_older(ClientId, At),
            emqx_redis_connect_lock:release(Lock),
            Result;
        {error, timeout} = Error ->
            Error
    end.

discard_older(ClientId, At) ->
    case emqx_redis_session:load_session(ClientId) of
        {ok, #{created_at := CreatedAt} = Stored} ->
            case maps:get(since, Stored, CreatedAt) < At of
                true -> emqx_redis_client_session:discard_stored(ClientId);
                false -> ok
            end;
        {ok, _} ->
            ok;
        {error, not_found} ->
            ok;
        {error, _} = Error ->
            Error
    end.
