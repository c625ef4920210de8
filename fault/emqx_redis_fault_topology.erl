%% A server alone, a sentinel set or a cluster, with a proxy before each server, under one interface.
-module(emqx_redis_fault_topology).

-export([kinds/0, start/1, stop/1, kind/1, config/1, level/1]).
-export([wait_until_healthy/1, wait_until_promoted/2, failover/2]).
-export([servers/1, masters/1, replicas/1, name/2, proxy/2, restart/2]).
-export([handle/1]).

-export_type([topology/0, kind/0]).

-type kind() :: single | sentinel | cluster.
-type server() :: emqx_redis_test_server:server().
-opaque topology() :: #{
    kind := kind(),
    %% What its test module, or emqx_redis_test_server, knows it by.
    set := term(),
    proxy => emqx_redis_test_proxy:proxy()
}.

-define(SERVER, emqx_redis_test_server).
-define(SENTINELS, emqx_redis_test_sentinels).
-define(CLUSTER, emqx_redis_test_cluster).
-define(PROXY, emqx_redis_test_proxy).

-spec kinds() -> [kind()].
kinds() -> [single, sentinel, cluster].

%% All live on unless stopped; the single server's proxy ends with the caller.
-spec start(kind()) -> topology().
start(single) ->
    Server = ?SERVER:start(#{tcp => true, appendonly => true}),
    #{kind => single, set => Server, proxy => ?PROXY:start(?SERVER:address(Server))};
start(sentinel) ->
    #{kind => sentinel, set => ?SENTINELS:start(#{replicas => 2, proxied => true})};
start(cluster) ->
    #{kind => cluster, set => ?CLUSTER:start(#{masters => 3, replicas => 1, proxied => true})}.

-spec stop(topology()) -> ok.
stop(#{kind := single, set := Server, proxy := Proxy}) ->
    ok = ?PROXY:stop(Proxy),
    ?SERVER:stop(Server);
stop(#{kind := sentinel, set := Set}) ->
    ?SENTINELS:stop(Set);
stop(#{kind := cluster, set := Cluster}) ->
    ?CLUSTER:stop(Cluster).

-spec kind(topology()) -> kind().
kind(#{kind := Kind}) -> Kind.

%% The section `redis' of the library's configuration.
-spec config(topology()) -> map().
config(#{kind := single, proxy := Proxy}) ->
    #{type => single, servers => ?PROXY:servers(Proxy)};
config(#{kind := sentinel, set := Set}) ->
    maps:get(redis, ?SENTINELS:config(Set));
config(#{kind := cluster, set := Cluster}) ->
    maps:get(redis, ?CLUSTER:config(Cluster)).

%% The durability with which nothing may be lost in one fail-over: every replica that could be promoted
%% has it. The server alone writes its file before it answers.
-spec level(kind()) -> emqx_redis_args:durability().
level(single) -> none;
level(sentinel) -> {replicas, 2};
level(cluster) -> {replicas, 1}.

-spec wait_until_healthy(topology()) -> ok.
wait_until_healthy(#{kind := single}) -> ok;
wait_until_healthy(#{kind := sentinel, set := Set}) -> ?SENTINELS:wait_until_healthy(Set);
wait_until_healthy(#{kind := cluster, set := Cluster}) -> ?CLUSTER:wait_until_healthy(Cluster).

-spec wait_until_promoted(topology(), Old :: server()) -> server().
wait_until_promoted(#{kind := sentinel, set := Set}, Old) -> ?SENTINELS:wait_until_promoted(Set, Old);
wait_until_promoted(#{kind := cluster, set := Cluster}, Old) -> ?CLUSTER:wait_until_promoted(Cluster, Old).

%% An orderly one; returns the new master.
-spec failover(topology(), Master :: server()) -> server().
failover(#{kind := sentinel, set := Set}, _Master) -> ?SENTINELS:failover(Set);
failover(#{kind := cluster, set := Cluster}, Master) -> ?CLUSTER:failover(Cluster, Master).

-spec servers(topology()) -> [server()].
servers(#{kind := single, set := Server}) -> [Server];
servers(#{kind := sentinel, set := Set}) -> ?SENTINELS:servers(Set);
servers(#{kind := cluster, set := Cluster}) -> ?CLUSTER:nodes(Cluster).

-spec masters(topology()) -> [server()].
masters(#{kind := single, set := Server}) -> [Server];
masters(#{kind := sentinel, set := Set}) -> [?SENTINELS:master(Set)];
masters(#{kind := cluster, set := Cluster}) -> ?CLUSTER:masters(Cluster).

-spec replicas(topology()) -> [server()].
replicas(Topology) ->
    servers(Topology) -- masters(Topology).

%% A short name for people.
-spec name(topology(), server()) -> iodata().
name(Topology, Server) ->
    Numbered = lists:zip(servers(Topology), lists:seq(1, length(servers(Topology)))),
    case lists:keyfind(Server, 1, Numbered) of
        {_, Number} -> ["server ", integer_to_list(Number)];
        false -> "a server that is gone"
    end.

-spec proxy(topology(), server()) -> emqx_redis_test_proxy:proxy().
proxy(#{kind := single, proxy := Proxy}, _Server) -> Proxy;
proxy(#{kind := sentinel, set := Set}, Server) -> ?SENTINELS:proxy(Set, Server);
proxy(#{kind := cluster, set := Cluster}, Server) -> ?CLUSTER:proxy(Cluster, Server).

-spec restart(topology(), server()) -> ok.
restart(#{kind := sentinel, set := Set}, Server) -> ?SENTINELS:restart(Set, Server);
restart(_Topology, Server) -> ?SERVER:restart(Server).

%% What its test module knows it by, for what only that can do.
-spec handle(topology()) -> term().
handle(#{set := Set}) -> Set.
