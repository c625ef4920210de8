%% The demo's private Redis: one server, a sentinel set, or a cluster, which both lose a master in mid-write.
-module(emqx_redis_demo_redis).

-export([kinds/0, start/1, stop/1, kind/1, folder/1, config/1, describe/1, promise/1]).
-export([kill_master/1, bring_back/2, command/3, keys/2, index_key/3]).

-export_type([redis/0, kind/0]).

-type kind() :: single | sentinel | cluster.
%% What the test modules know it by.
-opaque redis() :: {kind(), term()}.

-define(SERVER, emqx_redis_test_server).
-define(SENTINELS, emqx_redis_test_sentinels).
-define(CLUSTER, emqx_redis_test_cluster).
-define(RESTART_PAUSE, 500).

-spec kinds() -> [kind()].
kinds() -> [single, sentinel, cluster].

-spec start(kind()) -> redis().
start(single) -> {single, ?SERVER:start()};
start(sentinel) -> {sentinel, ?SENTINELS:start(#{replicas => 2})};
start(cluster) -> {cluster, ?CLUSTER:start(#{masters => 3, replicas => 1})}.

-spec stop(redis()) -> ok.
stop({single, Server}) -> ?SERVER:stop(Server);
stop({sentinel, Set}) -> ?SENTINELS:stop(Set);
stop({cluster, Cluster}) -> ?CLUSTER:stop(Cluster).

-spec kind(redis()) -> kind().
kind({Kind, _}) -> Kind.

%% Of the first server.
-spec folder(redis()) -> file:filename().
folder(Redis) ->
    ?SERVER:folder(hd(servers(Redis))).

%% What a node gives emqx_redis_storage:start/1. A fail-over takes longer than the library would wait
%% unasked; a write waits for every replica that may take its master's place.
-spec config(redis()) -> map().
config({single, Server}) ->
    #{redis => #{type => single, servers => iolist_to_binary(["unix://", ?SERVER:socket(Server)])}};
config({sentinel, Set}) ->
    durable(maps:get(redis, ?SENTINELS:config(Set)), {replicas, 2});
config({cluster, Cluster}) ->
    durable(maps:get(redis, ?CLUSTER:config(Cluster)), {replicas, 1}).

%% One line.
-spec describe(redis()) -> iodata().
describe({single, Server}) ->
    ["private, at ", ?SERVER:socket(Server), ", without disk"];
describe({sentinel, _} = Redis) ->
    ["private, a master with 2 replicas and 3 sentinels, at ", folder(Redis), " and others"];
describe({cluster, _} = Redis) ->
    ["private, 3 masters with a replica each, at ", folder(Redis), " and others"].

%% What the nodes may rely on.
-spec promise(redis()) -> [iodata()].
promise({single, _}) ->
    [
        "It outlives the nodes; what Redis keeps when Redis itself dies is a matter of its own",
        "settings."
    ];
promise({sentinel, _}) ->
    [
        "Its master dies as well. Every write waits until both replicas have it (replicas:2), since",
        "either may be promoted. While only one is there, as after the master's death, a write is not",
        "ok (not_durable), and its publisher sends again until the dead server is back as a replica."
    ];
promise({cluster, _}) ->
    [
        "One of its masters dies as well. Every write waits until the replica has it (replicas:1), as",
        "that is promoted. While there is none, as after a master's death, a write to its slots is not",
        "ok (not_durable), and its publisher sends again until the dead server is back as a replica."
    ].

%% Kills a master, and returns when another server is in its place.
-spec kill_master(redis()) -> emqx_redis_test_server:server().
kill_master({sentinel, Set}) ->
    Master = ?SENTINELS:master(Set),
    ok = ?SENTINELS:kill(Set, Master),
    _ = ?SENTINELS:wait_until_promoted(Set, Master),
    Master;
kill_master({cluster, Cluster}) ->
    [Master | _] = ?CLUSTER:masters(Cluster),
    ok = ?CLUSTER:kill(Cluster, Master),
    _ = ?CLUSTER:wait_until_promoted(Cluster, Master),
    Master.

%% Starts a dead server again, after a moment as whoever watches over servers would, and returns when it is a
%% replica in sync.
-spec bring_back(redis(), emqx_redis_test_server:server()) -> ok.
bring_back({sentinel, Set}, Server) ->
    timer:sleep(?RESTART_PAUSE),
    ok = ?SENTINELS:restart(Set, Server),
    ?SENTINELS:wait_until_healthy(Set);
bring_back({cluster, Cluster}, Server) ->
    timer:sleep(?RESTART_PAUSE),
    ok = ?CLUSTER:restart(Cluster, Server),
    ?CLUSTER:wait_until_healthy(Cluster).

%% A command about a key, straight to the server that has it.
-spec command(redis(), iodata(), [iodata() | integer()]) -> emqx_redis_test_client:reply().
command({cluster, Cluster}, Key, Command) -> ?CLUSTER:command_by_key(Cluster, Key, Command);
command(Redis, _Key, Command) -> ?SERVER:cli(hd(masters(Redis)), Command).

%% Those of all masters that match a pattern.
-spec keys(redis(), iodata()) -> [binary()].
keys(Redis, Pattern) ->
    lists:append([?SERVER:cli(Master, ["KEYS", Pattern], 30000) || Master <- masters(Redis)]).

%% The index with this name in which an item stands whose key is Key: in a cluster that of its slot.
-spec index_key(redis(), string(), iodata()) -> binary().
index_key({cluster, _} = Redis, Name, Key) ->
    Slot = ?CLUSTER:key_slot(Key),
    [Index] = [Each || Each <- keys(Redis, [Name, ":*"]), ?CLUSTER:key_slot(Each) =:= Slot],
    Index;
index_key(_Redis, Name, _Key) ->
    list_to_binary(Name).

%% Internal

durable(Redis, Level) ->
    #{redis => Redis#{outage_grace => <<"10s">>}, persistence => #{durability => Level}}.

servers({single, Server}) -> [Server];
servers({sentinel, Set}) -> ?SENTINELS:servers(Set);
servers({cluster, Cluster}) -> ?CLUSTER:nodes(Cluster).

masters({single, Server}) -> [Server];
masters({sentinel, Set}) -> [?SENTINELS:master(Set)];
masters({cluster, Cluster}) -> ?CLUSTER:masters(Cluster).
