%% A Redis Cluster for tests, with slots that move and nodes that come, fail and go.
%%
%%     Cluster = emqx_redis_test_cluster:start(#{masters => 3, replicas => 1}),
%%     ok = emqx_redis_storage:start(emqx_redis_test_cluster:config(Cluster)),
%%     Slot = emqx_redis_test_cluster:key_slot("session:{c1}"),
%%     Old = emqx_redis_test_cluster:owner(Cluster, Slot),
%%     ok = emqx_redis_test_cluster:kill(Cluster, Old),
%%     New = emqx_redis_test_cluster:wait_until_promoted(Cluster, Old),
%%     [Target | _] = emqx_redis_test_cluster:masters(Cluster) -- [New],
%%     ok = emqx_redis_test_cluster:move_slot(Cluster, Slot, Target),
%%     ok = emqx_redis_test_cluster:stop(Cluster).
-module(emqx_redis_test_cluster).

-export([start/0, start/1, stop/1, config/1, config/2, wait_until_healthy/1]).
-export([nodes/1, masters/1, replicas/1, replicas_of/2, owner/2, slots/2, address/2, proxy/2, key_slot/1]).
-export([kill/2, pause/2, resume/2, restart/2, failover/2, wait_until_promoted/2]).
-export([move_slot/3, begin_move/3, move_keys/4, move_key/3, finish_move/3, reshard/4]).
-export([add_master/1, add_replica/2, remove_master/2]).
-export([cli/3, command_by_key/3, all_keys/1]).

-export_type([cluster/0, options/0]).

-compile({no_auto_import, [nodes/1]}).

-opaque cluster() :: emqx_redis_test_topology:topology().
%% Beside these, those of emqx_redis_test_topology: password, user, users, tls, appendonly, args, proxied.
-type options() :: #{
    %% 3 by default.
    masters => pos_integer(),
    %% Of each master, 1 by default.
    replicas => non_neg_integer(),
    %% Milliseconds, 1500 by default; a dead master is replaced one to two seconds later.
    node_timeout => pos_integer(),
    atom() => term()
}.
-type slot() :: 0..16383.
-type command() :: [iodata() | atom() | integer()].

-define(SERVER, emqx_redis_test_server).
-define(CLIENT, emqx_redis_test_client).
-define(TOPOLOGY, emqx_redis_test_topology).
-define(VIEW, emqx_redis_test_cluster_view).
-define(SLOTS, 16384).
%% Slots that are under way at one time in reshard/4, and keys in one MIGRATE.
-define(SLOT_BATCH, 256).
-define(KEY_BATCH, 100).
-define(MIGRATE_TIMEOUT, 5000).
%% A replica gives a manual failover up after five seconds.
-define(FAILOVER_TIMEOUT, 10000).
-define(FAILOVER_ATTEMPTS, 3).

%% API: the cluster

-spec start() -> cluster().
start() ->
    start(#{}).

%% Returns when all is as wait_until_healthy/1 says.
-spec start(options()) -> cluster().
start(Options) ->
    Cluster = ?TOPOLOGY:start(Options),
    try
        Count = maps:get(masters, Options, 3),
        Masters = [start_node(Cluster) || _ <- lists:seq(1, Count)],
        Replicas = [start_node(Cluster) || _ <- lists:seq(1, Count * maps:get(replicas, Options, 1))],
        ok = assign_slots(Masters),
        ok = set_epochs(Masters ++ Replicas),
        ok = meet(Cluster, hd(Masters), tl(Masters) ++ Replicas),
        ok = replicate(Replicas, lists:append(lists:duplicate(length(Replicas) div Count, Masters))),
        ok = wait_until_healthy(Cluster),
        Cluster
    catch
        Class:Reason:Stack ->
            ok = stop(Cluster),
            erlang:raise(Class, Reason, Stack)
    end.

-spec stop(cluster()) -> ok.
stop(Cluster) ->
    ?TOPOLOGY:stop(Cluster).

%% What emqx_redis_storage:start/1 takes, with every node as a seed; merge what else a test wants.
-spec config(cluster()) -> #{redis := #{atom() => term()}}.
config(Cluster) ->
    config(Cluster, nodes(Cluster)).

-spec config(cluster(), Seeds :: [?SERVER:server()]) -> #{redis := #{atom() => term()}}.
config(Cluster, Seeds = [Node | _]) ->
    Addresses = [address(Cluster, Seed) || Seed <- Seeds],
    Redis = #{type => cluster, servers => iolist_to_binary(lists:join(",", Addresses))},
    #{redis => maps:merge(Redis, maps:merge(?SERVER:login_config(Node), ?SERVER:ssl_config(Node)))}.

%% Returns when every node finds the cluster to be in order and complete, all have the same view of it,
%% and every replica is in sync.
-spec wait_until_healthy(cluster()) -> ok.
wait_until_healthy(Cluster) ->
    ?TOPOLOGY:await(not_healthy, fun() -> ?VIEW:health(Cluster) end).

%% API: its nodes

%% Dead ones too.
-spec nodes(cluster()) -> [?SERVER:server()].
nodes(Cluster) ->
    ?TOPOLOGY:members(Cluster, data).

%% Those that can be reached, but for a former master that does not know of its successor yet.
-spec masters(cluster()) -> [?SERVER:server()].
masters(Cluster) ->
    ?VIEW:masters(Cluster).

%% All nodes that are no masters now, dead ones too.
-spec replicas(cluster()) -> [?SERVER:server()].
replicas(Cluster) ->
    nodes(Cluster) -- masters(Cluster).

%% Those that can be reached.
-spec replicas_of(cluster(), Master :: ?SERVER:server()) -> [?SERVER:server()].
replicas_of(Cluster, Master) ->
    ?VIEW:replicas_of(Cluster, Master).

%% The reachable node that owns the slot by the newest claim.
-spec owner(cluster(), slot()) -> ?SERVER:server().
owner(Cluster, Slot) ->
    ?TOPOLOGY:await({no_owner, Slot}, fun() ->
        case ?VIEW:owner(Cluster, Slot) of
            unknown -> unknown;
            Owner -> {ok, Owner}
        end
    end).

%% The slots that a node says that it owns.
-spec slots(cluster(), ?SERVER:server()) -> [slot()].
slots(Cluster, Node) ->
    #{slots := Ranges} = own_row(Cluster, Node),
    lists:append([lists:seq(First, Last) || {First, Last} <- Ranges]).

%% As the nodes name it to clients: the proxy's if there is one.
-spec address(cluster(), ?SERVER:server()) -> binary().
address(Cluster, Node) ->
    iolist_to_binary(["127.0.0.1:", integer_to_list(?TOPOLOGY:port(Cluster, Node))]).

%% The proxy before a node, with `proxied`.
-spec proxy(cluster(), ?SERVER:server()) -> emqx_redis_test_proxy:proxy().
proxy(Cluster, Node) ->
    ?TOPOLOGY:proxy(Cluster, Node).

-spec key_slot(iodata()) -> slot().
key_slot(Key) ->
    ?VIEW:key_slot(Key).

-spec kill(cluster(), ?SERVER:server()) -> ok.
kill(_Cluster, Node) ->
    ?SERVER:kill(Node).

-spec pause(cluster(), ?SERVER:server()) -> ok.
pause(_Cluster, Node) ->
    ?SERVER:pause(Node).

-spec resume(cluster(), ?SERVER:server()) -> ok.
resume(_Cluster, Node) ->
    ?SERVER:resume(Node).

%% The node is who it was: its id, its slots and whom it follows are in its folder.
-spec restart(cluster(), ?SERVER:server()) -> ok.
restart(_Cluster, Node) ->
    ?SERVER:restart(Node).

%% Has a replica take over, and returns it when every node calls it the owner. Waits before if the master
%% was itself promoted in the last four node timeouts: a node forgets the votes that it got only then
%% (Redis 7.0), and a replica takes over with old votes, under its master's epoch, which no other node
%% accepts, if that master dies within two.
-spec failover(cluster(), Master :: ?SERVER:server()) -> ?SERVER:server().
failover(Cluster, Master) ->
    [Replica | _] = replicas_of(Cluster, Master),
    At = ?TOPOLOGY:noted(Cluster, {promoted_at, Master}, now_ms() - 4 * node_timeout(Cluster)),
    timer:sleep(max(0, At + 4 * node_timeout(Cluster) - now_ms())),
    failover(Cluster, Master, Replica, ?FAILOVER_ATTEMPTS).

%% Waits until every node that can be reached calls another one the owner of the slots that Old had
%% when it was last heard of, and returns that one.
-spec wait_until_promoted(cluster(), Old :: ?SERVER:server()) -> ?SERVER:server().
wait_until_promoted(Cluster, Old) ->
    ?TOPOLOGY:await(not_promoted, fun() -> promoted(Cluster, Old) end).

%% API: moving slots

%% Moves one slot with its keys while clients go on, and returns when every node knows it.
-spec move_slot(cluster(), slot(), Target :: ?SERVER:server()) -> ok.
move_slot(Cluster, Slot, Target) ->
    ok = begin_move(Cluster, Slot, Target),
    _ = move_keys(Cluster, Slot, Target, all),
    finish_move(Cluster, Slot, Target).

%% From now on the owner answers ASK for keys that it does not have, and TRYAGAIN where it has some.
-spec begin_move(cluster(), slot(), Target :: ?SERVER:server()) -> ok.
begin_move(Cluster, Slot, Target) ->
    begin_moves([Slot], owner(Cluster, Slot), Target).

%% Moves up to so many keys, and returns how many there were.
-spec move_keys(cluster(), slot(), Target :: ?SERVER:server(), Limit :: pos_integer() | all) ->
    non_neg_integer().
move_keys(Cluster, Slot, Target, Limit) ->
    move_keys_from(owner(Cluster, Slot), Slot, Target, Limit).

%% Moves this key, and no other one of its slot.
-spec move_key(cluster(), Key :: iodata(), Target :: ?SERVER:server()) -> ok.
move_key(Cluster, Key, Target) ->
    migrate(owner(Cluster, key_slot(Key)), Target, [Key]).

%% Returns when every node that can be reached knows it. Fails if the owner still has keys in the slot.
-spec finish_move(cluster(), slot(), Target :: ?SERVER:server()) -> ok.
finish_move(Cluster, Slot, Target) ->
    finish_moves(Cluster, [Slot], owner(Cluster, Slot), Target).

%% Moves Count slots from Source to Target and returns them.
-spec reshard(cluster(), Source :: ?SERVER:server(), Target :: ?SERVER:server(), Count :: pos_integer()) ->
    [slot()].
reshard(Cluster, Source, Target, Count) ->
    Slots = lists:sublist(slots(Cluster, Source), Count),
    ok = move_slots(Cluster, Slots, Source, Target),
    Slots.

%% API: nodes that come and go

%% A new master without slots, which every node knows.
-spec add_master(cluster()) -> ?SERVER:server().
add_master(Cluster) ->
    [Known | _] = masters(Cluster),
    Node = start_node(Cluster),
    ok = meet(Cluster, Known, [Node]),
    ok = wait_until_healthy(Cluster),
    Node.

-spec add_replica(cluster(), Master :: ?SERVER:server()) -> ?SERVER:server().
add_replica(Cluster, Master) ->
    Node = start_node(Cluster),
    ok = meet(Cluster, Master, [Node]),
    ok = replicate([Node], [Master]),
    ok = wait_until_healthy(Cluster),
    Node.

%% Moves the master's slots to the others, lets every node forget it and its replicas, and stops them.
-spec remove_master(cluster(), ?SERVER:server()) -> ok.
remove_master(Cluster, Master) ->
    Heirs = masters(Cluster) -- [Master],
    Slots = slots(Cluster, Master),
    Share = length(Slots) div length(Heirs) + 1,
    lists:foreach(fun(Heir) -> reshard_some(Cluster, Master, Heir, Share) end, Heirs),
    Gone = [Master | replicas_of(Cluster, Master)],
    Ids = [?VIEW:id(Node) || Node <- Gone],
    lists:foreach(fun(Node) -> forget(Node, Ids) end, nodes(Cluster) -- Gone),
    lists:foreach(fun(Node) -> ?TOPOLOGY:remove(Cluster, Node) end, Gone),
    wait_until_healthy(Cluster).

%% API: commands

%% One command to one node; what it answers, MOVED for instance, is the result.
-spec cli(cluster(), ?SERVER:server(), command()) -> ?CLIENT:reply().
cli(_Cluster, Node, Command) ->
    ?SERVER:cli(Node, Command).

%% One command to whoever owns the key, also while the slot moves or its owner is being replaced.
-spec command_by_key(cluster(), Key :: iodata(), command()) -> ?CLIENT:reply().
command_by_key(Cluster, Key, Command) ->
    Slot = key_slot(Key),
    ?TOPOLOGY:await({no_answer, Command}, fun() ->
        Owner = owner(Cluster, Slot),
        case ?TOPOLOGY:ask(Owner, Command) of
            {error, <<"ASK ", _/binary>>} -> ask_importer(Cluster, Slot, Owner, Command);
            Reply -> answered(Reply)
        end
    end).

%% The keys of all masters, sorted.
-spec all_keys(cluster()) -> [binary()].
all_keys(Cluster) ->
    lists:sort(lists:append([?SERVER:cli(Master, ["KEYS", "*"]) || Master <- masters(Cluster)])).

%% Internal: making the cluster

start_node(Cluster) ->
    Options = ?TOPOLOGY:options(Cluster),
    Timeout = integer_to_list(node_timeout(Cluster)),
    Tls = lists:append([["--tls-cluster", "yes"] || #{tls := _} <- [Options]]),
    %% A replica stays with its master though that loses its last slot.
    Arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", Timeout] ++
        ["--cluster-allow-replica-migration", "no"] ++ Tls,
    Node = ?TOPOLOGY:add(Cluster, data, ?TOPOLOGY:data_options(Options, "", Arguments)),
    maps:get(proxied, Options, false) andalso announce(Cluster, Node),
    Node.

node_timeout(Cluster) ->
    maps:get(node_timeout, ?TOPOLOGY:options(Cluster), 1500).

%% In the node's file, so that restart/2 finds it again.
announce(Cluster, Node) ->
    Port = ?TOPOLOGY:port(Cluster, Node),
    PortName =
        case ?TOPOLOGY:options(Cluster) of
            #{tls := _} -> "cluster-announce-tls-port";
            #{} -> "cluster-announce-port"
        end,
    lists:foreach(
        fun({Name, Value}) -> <<"OK">> = ?SERVER:cli(Node, ["CONFIG", "SET", Name, Value]) end,
        [
            {"cluster-announce-ip", "127.0.0.1"},
            {PortName, Port},
            {"cluster-announce-bus-port", bus_port(Node)}
        ]
    ),
    <<"OK">> = ?SERVER:cli(Node, ["CONFIG", "REWRITE"]).

bus_port(Node) ->
    ?SERVER:port(Node) + 10000.

assign_slots(Masters) ->
    Count = length(Masters),
    lists:foreach(
        fun({Index, Master}) ->
            First = (Index - 1) * ?SLOTS div Count,
            Last = Index * ?SLOTS div Count - 1,
            <<"OK">> = ?SERVER:cli(Master, ["CLUSTER", "ADDSLOTS" | lists:seq(First, Last)])
        end,
        lists:zip(lists:seq(1, Count), Masters)
    ).

%% Nodes that begin with epochs of their own need not find out later that they share one.
set_epochs(Nodes) ->
    lists:foreach(
        fun({Epoch, Node}) -> <<"OK">> = ?SERVER:cli(Node, ["CLUSTER", "SET-CONFIG-EPOCH", Epoch]) end,
        lists:zip(lists:seq(1, length(Nodes)), Nodes)
    ).

%% Returns when all nodes know each other.
meet(Cluster, Known, Nodes) ->
    lists:foreach(
        fun(Node) ->
            Address = ["127.0.0.1", ?SERVER:port(Node), bus_port(Node)],
            <<"OK">> = ?SERVER:cli(Known, ["CLUSTER", "MEET" | Address])
        end,
        Nodes
    ),
    All = lists:sort(nodes(Cluster)),
    ?TOPOLOGY:await(not_met, fun() ->
        Views = [lists:sort(known(?VIEW:rows(Cluster, Node))) || Node <- All],
        case lists:usort(Views) of
            [All] -> {ok, ok};
            _ -> {views, Views}
        end
    end).

known(unreachable) -> [];
known(Rows) -> [Node || #{node := Node, flags := Flags} <- Rows, not lists:member(<<"handshake">>, Flags)].

replicate(Replicas, Masters) ->
    lists:foreach(
        fun({Replica, Master}) ->
            <<"OK">> = ?SERVER:cli(Replica, ["CLUSTER", "REPLICATE", ?VIEW:id(Master)])
        end,
        lists:zip(Replicas, Masters)
    ).

forget(Node, Ids) ->
    lists:foreach(
        fun(Id) ->
            case ?SERVER:cli(Node, ["CLUSTER", "FORGET", Id]) of
                <<"OK">> -> ok;
                %% Another node has told it already.
                {error, <<"ERR Unknown node", _/binary>>} -> ok
            end
        end,
        Ids
    ).

%% Internal: promotion

failover(Cluster, Master, Replica, Attempts) ->
    %% Refused where the replica has taken over since the last attempt.
    _ = ?TOPOLOGY:ask(Replica, ["CLUSTER", "FAILOVER"]),
    try
        ?TOPOLOGY:await(not_promoted, fun() -> promoted(Cluster, Master) end, ?FAILOVER_TIMEOUT)
    catch
        error:{not_promoted, _} when Attempts > 1 -> failover(Cluster, Master, Replica, Attempts - 1)
    end.

%% The former master's row is about its successor once it has written down who that is.
promoted(Cluster, Old) ->
    #{slots := [{Slot, _Last} | _]} = ?VIEW:saved_row(Cluster, Old),
    case ?VIEW:agreed_owner(Cluster, Slot) of
        {ok, Old} ->
            still_master;
        {ok, New} ->
            ok = ?TOPOLOGY:note(Cluster, {promoted_at, New}, now_ms()),
            {ok, New};
        Other ->
            Other
    end.

now_ms() ->
    erlang:monotonic_time(millisecond).

%% Internal: moving

begin_moves(Slots, Source, Target) ->
    [SourceId, TargetId] = [?VIEW:id(Node) || Node <- [Source, Target]],
    ok = all_ok(Target, [["CLUSTER", "SETSLOT", Slot, "IMPORTING", SourceId] || Slot <- Slots]),
    all_ok(Source, [["CLUSTER", "SETSLOT", Slot, "MIGRATING", TargetId] || Slot <- Slots]).

move_keys_from(Source, Slot, Target, Limit) ->
    Batch = min(Limit, ?KEY_BATCH),
    case ?SERVER:cli(Source, ["CLUSTER", "GETKEYSINSLOT", Slot, Batch]) of
        [] ->
            0;
        Keys ->
            ok = migrate(Source, Target, Keys),
            case Limit of
                all -> length(Keys) + move_keys_from(Source, Slot, Target, all);
                Batch -> length(Keys);
                _ -> length(Keys) + move_keys_from(Source, Slot, Target, Limit - Batch)
            end
    end.

%% A key that a client deletes meanwhile is no fault.
migrate(Source, Target, Keys) ->
    Login =
        case ?SERVER:login_config(Target) of
            #{username := User, password := Password} -> ["AUTH2", User, Password];
            #{password := Password} -> ["AUTH", Password];
            #{} -> []
        end,
    Command = ["MIGRATE", "127.0.0.1", ?SERVER:port(Target), "", 0, ?MIGRATE_TIMEOUT | Login],
    case ?SERVER:cli(Source, Command ++ ["KEYS" | Keys], 2 * ?MIGRATE_TIMEOUT) of
        <<"OK">> -> ok;
        <<"NOKEY">> -> ok;
        Refusal -> error({migrate, Refusal})
    end.

%% First the target, so that at no time nobody owns the slot.
finish_moves(Cluster, Slots, Source, Target) ->
    ok = await_epoch(Cluster, Source, Target),
    TargetId = ?VIEW:id(Target),
    Commands = [["CLUSTER", "SETSLOT", Slot, "NODE", TargetId] || Slot <- Slots],
    Masters = [Target, Source | masters(Cluster) -- [Target, Source]],
    lists:foreach(fun(Master) -> ok = all_ok(Master, Commands) end, Masters),
    ?TOPOLOGY:await(not_moved, fun() ->
        case lists:usort([?VIEW:agreed_owner(Cluster, Slot) || Slot <- [hd(Slots), lists:last(Slots)]]) of
            [{ok, Target}] -> {ok, ok};
            Others -> Others
        end
    end).

%% The target takes the slots under an epoch above all that it knows of. If the source's is news to it, what
%% the source said of its slots a moment ago, and arrives late, takes them from the target, and nobody has
%% them.
await_epoch(Cluster, Source, Target) ->
    #{epoch := Epoch} = own_row(Cluster, Source),
    ?TOPOLOGY:await(epoch_unknown, fun() ->
        case [Known || #{node := Node, epoch := Known} <- ?VIEW:rows(Cluster, Target), Node =:= Source] of
            [Known] when Known >= Epoch -> {ok, ok};
            Other -> {Epoch, Other}
        end
    end).

move_slots(_Cluster, [], _Source, _Target) ->
    ok;
move_slots(Cluster, Slots, Source, Target) ->
    {Batch, Rest} = lists:split(min(?SLOT_BATCH, length(Slots)), Slots),
    ok = begin_moves(Batch, Source, Target),
    lists:foreach(
        fun(Slot) -> move_keys_from(Source, Slot, Target, all) end,
        slots_with_keys(Source, Batch)
    ),
    ok = finish_moves(Cluster, Batch, Source, Target),
    move_slots(Cluster, Rest, Source, Target).

slots_with_keys(Node, Slots) ->
    Counts = pipeline(Node, [["CLUSTER", "COUNTKEYSINSLOT", Slot] || Slot <- Slots]),
    [Slot || {Slot, Count} <- lists:zip(Slots, Counts), Count > 0].

reshard_some(Cluster, Source, Target, Count) ->
    ok = move_slots(Cluster, lists:sublist(slots(Cluster, Source), Count), Source, Target).

all_ok(Node, Commands) ->
    case lists:usort(pipeline(Node, Commands)) of
        [<<"OK">>] -> ok;
        Replies -> error({refused, hd(Commands), Replies})
    end.

pipeline(Node, Commands) ->
    Connection = ?SERVER:connect(Node),
    try
        ?CLIENT:pipeline(Connection, Commands)
    after
        ?CLIENT:close(Connection)
    end.

%% Internal: commands

own_row(Cluster, Node) ->
    [Row] = [Row || Row = #{node := Each} <- ?VIEW:own_rows(Cluster), Each =:= Node],
    Row.

answered({error, <<"MOVED ", _/binary>> = Why}) -> Why;
answered({error, <<"TRYAGAIN", _/binary>> = Why}) -> Why;
answered({error, <<"CLUSTERDOWN", _/binary>> = Why}) -> Why;
answered({error, <<"LOADING", _/binary>> = Why}) -> Why;
answered(unreachable) -> unreachable;
answered(Reply) -> {ok, Reply}.

%% The node's own answer names a port that is 0 where the cluster speaks TLS and we do not.
ask_importer(Cluster, Slot, Owner, Command) ->
    case own_row(Cluster, Owner) of
        #{leaving := #{Slot := Id}} ->
            [Importer] = [Node || #{id := Each, node := Node} <- ?VIEW:own_rows(Cluster), Each =:= Id],
            [<<"OK">>, Reply] = pipeline(Importer, [["ASKING"], Command]),
            answered(Reply);
        #{} ->
            moved_meanwhile
    end.
