%% A client connects: is its session in the memory of a node, or only in Redis? Then it is put into memory
%% here, so that EMQX finds it where it looks.
%%
%% `find/1' runs in the connection's process, after authentication and before EMQX opens the session.
-module(emqx_redis_restore).

-export([find/1, release/0]).
-export([local_channels/1, await_routes/3]).

-type client_id() :: emqx_redis_session:client_id().

-define(LOCK, emqx_redis_connect_lock).
%% How long others of the same client id may take to connect, a node to answer, its registry to
%% learn of a channel, and a session to be read and built.
-define(LOCK_TIMEOUT, 8000).
-define(NODE_TIMEOUT, 2000).
-define(REGISTRY_TIMEOUT, 2000).
-define(BUILD_TIMEOUT, 10000).

%% Tells `emqx_redis_client_session' what it needs to know when EMQX has opened the session.
-spec find(emqx_redis_broker:client_info()) -> ok | {error, term()}.
find(ClientInfo) ->
    case emqx_redis_client_session:expected() of
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
    %% EMQX discards those that live.
    Known = emqx_redis_broker:lookup_channels(ClientId),
    forget(ClientId, Known -- live_channels(ClientId, nodes_of(Known))),
    ok;
find_locked(#{clientid := ClientId} = ClientInfo, false, Connecting) ->
    case emqx_redis_discards:finish(ClientId) of
        ok -> find_stored(ClientInfo, Connecting);
        {error, _} = Error -> Error
    end.

find_stored(#{clientid := ClientId} = ClientInfo, Connecting) ->
    case emqx_redis_session:load_session(ClientId) of
        {ok, #{node := Owner}} ->
            Known = emqx_redis_broker:lookup_channels(ClientId),
            Live = live_channels(ClientId, lists:usort([Owner | nodes_of(Known)])),
            forget(ClientId, Known -- Live),
            case Live of
                [] ->
                    restore(ClientInfo, Connecting);
                _ ->
                    Pid = lists:last(Live),
                    ok = emqx_redis_client_session:found(#{live => Pid}),
                    await_registered(ClientId, Pid, ?REGISTRY_TIMEOUT)
            end;
        {error, not_found} ->
            ok;
        {error, _} = Error ->
            Error
    end.

nodes_of(Pids) -> lists:usort([node(Pid) || Pid <- Pids]).

%% The registry of this node may lag: so the nodes are asked that may have one. A node that does not answer
%% counts as dead; should it live, the epoch in Redis keeps it from writing.
live_channels(ClientId, Nodes) ->
    Running = emqx_redis_broker:nodes(),
    Asked = [Node || Node <- Nodes, lists:member(Node, Running)],
    Answers = erpc:multicall(Asked, ?MODULE, local_channels, [ClientId], ?NODE_TIMEOUT),
    lists:append([live_channels(ClientId, Node, Answer) || {Node, Answer} <- lists:zip(Asked, Answers)]).

live_channels(_ClientId, _Node, {ok, Pids}) ->
    Pids;
%% It runs without the plugin: what is known of it is believed.
live_channels(ClientId, Node, {error, {exception, undef, _}}) ->
    [Pid || Pid <- emqx_redis_broker:lookup_channels(ClientId), node(Pid) =:= Node];
live_channels(_ClientId, _Node, _NoAnswer) ->
    [].

%% The client's channels on this node. One that stands in for a session that was read from Redis is an
%% orphan here: its connection has ended before it took the session.
-spec local_channels(client_id()) -> [pid()].
local_channels(ClientId) ->
    Pids = [Pid || Pid <- emqx_redis_broker:lookup_channels(ClientId), node(Pid) =:= node()],
    {Orphans, Others} = lists:partition(fun emqx_redis_restored_channel:is_one/1, Pids),
    lists:foreach(fun emqx_redis_restored_channel:stop/1, Orphans),
    lists:filter(fun is_process_alive/1, Others).

%% EMQX refuses a client as long as a dead process of it is in this node's registry, and asks dead ones of
%% other nodes for the session.
forget(ClientId, Dead) ->
    lists:foreach(fun(Pid) -> emqx_redis_broker:forget_channel(ClientId, Pid) end, Dead).

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

restore(#{clientid := ClientId} = ClientInfo, Connecting) ->
    case emqx_redis_session:claim_session(ClientId, #{}) of
        {ok, #{epoch := Epoch, session := #{subscriptions := _} = Stored}} ->
            case emqx_redis_restored_channel:start(ClientInfo, Connecting, {Epoch, Stored}, ?BUILD_TIMEOUT) of
                {ok, Known} ->
                    emqx_redis_client_session:found(#{restored => {Epoch, Stored, Known}});
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
