%% A client connects: is its session in the memory of a node, or only in Redis? Then it is put into memory
%% here, so that EMQX finds it where it looks.
%%
%% `find/1' runs in the connection's process, after authentication and before EMQX opens the session.
-module(emqx_redis_restore).

-export([find/1, release/0]).
-export([local_channel/1, await_routes/3]).

-type client_id() :: emqx_redis_session:client_id().

-define(CONNECTING, emqx_redis_connecting).
-define(LOCK, emqx_redis_connect_lock).
%% How long others of the same client id may take to connect, a node to answer, its registry to
%% learn of a channel, and a session to be read and built.
-define(LOCK_TIMEOUT, 8000).
-define(NODE_TIMEOUT, 2000).
-define(REGISTRY_TIMEOUT, 2000).
-define(BUILD_TIMEOUT, 10000).

%% Leaves in the process dictionary what `emqx_redis_client_session' needs to know when EMQX has opened the
%% session.
-spec find(emqx_redis_broker:client_info()) -> ok | {error, term()}.
find(ClientInfo) ->
    case get(?CONNECTING) of
        %% Nothing is kept, and nothing is looked for.
        #{clean_start := true, expiry_interval := 0} -> ok;
        #{clean_start := CleanStart} = Connecting -> find(ClientInfo, CleanStart, Connecting);
        undefined -> ok
    end.

find(#{clientid := ClientId} = ClientInfo, CleanStart, Connecting) ->
    case emqx_redis_connect_lock:acquire(ClientId, ?LOCK_TIMEOUT) of
        {ok, Lock} ->
            _ = put(?LOCK, Lock),
            find_locked(ClientInfo, CleanStart, Connecting);
        {error, _} = Error ->
            Error
    end.

%% The connection is registered, or has failed: the next one may come.
-spec release() -> ok.
release() ->
    case erase(?LOCK) of
        undefined -> ok;
        Lock -> emqx_redis_connect_lock:release(Lock)
    end.

find_locked(#{clientid := ClientId}, true, _Connecting) ->
    forget_dead(ClientId, emqx_redis_broker:lookup_channels(ClientId)),
    ok;
find_locked(#{clientid := ClientId} = ClientInfo, false, Connecting) ->
    case emqx_redis_session:load_session(ClientId) of
        {ok, #{node := Owner} = Stored} ->
            Known = emqx_redis_broker:lookup_channels(ClientId),
            case live_channel(ClientId, lists:usort([Owner | [node(Pid) || Pid <- Known]])) of
                none ->
                    forget_dead(ClientId, Known),
                    restore(ClientInfo, Stored, Connecting);
                Pid ->
                    _ = put(?CONNECTING, Connecting#{live => Pid}),
                    forget_dead(ClientId, Known -- [Pid]),
                    await_registered(ClientId, Pid, ?REGISTRY_TIMEOUT)
            end;
        {error, not_found} ->
            ok;
        {error, _} = Error ->
            Error
    end.

%% The registry of this node may lag: so the nodes are asked that may have it. One that does not answer
%% counts as dead; should it live, the epoch in Redis keeps it from writing.
live_channel(ClientId, Nodes) ->
    Running = emqx_redis_broker:nodes(),
    Asked = [Node || Node <- Nodes, lists:member(Node, Running)],
    Answers = erpc:multicall(Asked, ?MODULE, local_channel, [ClientId], ?NODE_TIMEOUT),
    case [Pid || {ok, Pid} <- Answers, is_pid(Pid)] of
        [Pid | _] -> Pid;
        [] -> none
    end.

%% The client's channel on this node. One that stands in for a session that was read from Redis is an orphan
%% here: its connection has ended before it took the session.
-spec local_channel(client_id()) -> pid() | none.
local_channel(ClientId) ->
    Pids = [Pid || Pid <- emqx_redis_broker:lookup_channels(ClientId), node(Pid) =:= node()],
    {Orphans, Others} = lists:partition(fun emqx_redis_restored_channel:is_one/1, Pids),
    lists:foreach(fun emqx_redis_restored_channel:stop/1, Orphans),
    case lists:filter(fun is_process_alive/1, Others) of
        [] -> none;
        Alive -> lists:last(Alive)
    end.

%% EMQX refuses a client as long as a dead process of it is in this node's registry, and asks dead ones of
%% other nodes for the session.
forget_dead(ClientId, Pids) ->
    lists:foreach(
        fun(Pid) ->
            node(Pid) =:= node() andalso is_process_alive(Pid) orelse
                emqx_redis_broker:forget_channel(ClientId, Pid)
        end,
        Pids
    ).

await_registered(_ClientId, _Pid, Left) when Left =< 0 ->
    {error, registry_lags};
await_registered(ClientId, Pid, Left) ->
    case lists:member(Pid, emqx_redis_broker:lookup_channels(ClientId)) of
        true ->
            ok;
        false ->
            timer:sleep(20),
            await_registered(ClientId, Pid, Left - 20)
    end.

restore(#{clientid := ClientId} = ClientInfo, _Seen, Connecting) ->
    case emqx_redis_session:claim_session(ClientId, #{}) of
        {ok, #{epoch := Epoch, session := #{subscriptions := _} = Stored}} ->
            case emqx_redis_restored_channel:start(ClientInfo, Connecting, Stored, ?BUILD_TIMEOUT) of
                {ok, Known} ->
                    _ = put(?CONNECTING, Connecting#{restored => {Epoch, Stored, Known}}),
                    ok;
                {error, _} = Error ->
                    Error
            end;
        {ok, #{session := undefined}} ->
            ok;
        {ok, _} ->
            {error, not_a_session};
        {error, _} = Error ->
            Error
    end.

%% Runs on the other nodes: waits until this one routes what matches the filters to `Node'.
-spec await_routes(node(), [emqx_redis_broker:topic_filter()], integer()) -> boolean().
await_routes(Node, Filters, Left) ->
    case lists:filter(fun(Filter) -> not emqx_redis_broker:has_route(Filter, Node) end, Filters) of
        [] ->
            true;
        _ when Left =< 0 ->
            false;
        Missing ->
            timer:sleep(5),
            await_routes(Node, Missing, Left - 5)
    end.
