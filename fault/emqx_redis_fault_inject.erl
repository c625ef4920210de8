%% Does one fault, and ends it. Whatever is done is undone when this returns, but the topology may not be
%% healthy again.
-module(emqx_redis_fault_inject).

-export([inject/2]).

-define(TOPOLOGY, emqx_redis_fault_topology).
-define(SERVER, emqx_redis_test_server).
-define(PROXY, emqx_redis_test_proxy).
-define(CLUSTER, emqx_redis_test_cluster).

%% A server that is moved to or from stays so for a moment.
-define(MOMENT, 1500).
-define(SLOTS_OF_A_RESHARD, 700).

%% Says what was done.
-spec inject(?TOPOLOGY:topology(), emqx_redis_fault_schedule:fault()) -> iodata().
inject(Topology, Fault = #{name := Name}) ->
    do(Name, Topology, Fault).

%% Internal

do(kill_master, Topology, Fault) ->
    Master = pick(Fault, ?TOPOLOGY:masters(Topology)),
    Text = ["kill -9 of ", master(Topology, Master)],
    ok = ?SERVER:kill(Master),
    After = promotion(Topology, Master),
    Down = time_away(Fault),
    timer:sleep(Down),
    ok = ?TOPOLOGY:restart(Topology, Master),
    [Text, After, ", started again ", seconds(Down), " later"];
do(kill_replica, Topology, Fault) ->
    Replica = pick(Fault, ?TOPOLOGY:replicas(Topology)),
    Text = ["kill -9 of the replica ", ?TOPOLOGY:name(Topology, Replica)],
    ok = ?SERVER:kill(Replica),
    Down = min(maps:get(ms, Fault), 4000),
    timer:sleep(Down),
    ok = ?TOPOLOGY:restart(Topology, Replica),
    [Text, ", started again ", seconds(Down), " later"];
do(freeze_master, Topology, Fault) ->
    Master = pick(Fault, ?TOPOLOGY:masters(Topology)),
    Text = ["SIGSTOP of ", master(Topology, Master)],
    freeze(Text, Master, Fault);
do(freeze_replica, Topology, Fault) ->
    Replica = pick(Fault, ?TOPOLOGY:replicas(Topology)),
    freeze(["SIGSTOP of the replica ", ?TOPOLOGY:name(Topology, Replica)], Replica, Fault);
do(cut, Topology, Fault) ->
    {Proxy, Text} = proxy(Topology, Fault),
    ok = ?PROXY:cut(Proxy),
    ["connections cut at ", Text];
do(partition, Topology, Fault = #{way := Way, ms := Milliseconds}) ->
    {Proxy, Text} = proxy(Topology, Fault),
    {Mode, What} =
        case Way of
            both -> {freeze, "no bytes pass"};
            requests -> {{freeze, requests}, "no requests pass"};
            replies -> {{freeze, replies}, "no replies pass"}
        end,
    with_mode(Proxy, Mode, Milliseconds),
    [What, " at ", Text, " for ", seconds(Milliseconds)];
do(lose_replies, Topology, Fault) ->
    {Proxy, Text} = proxy(Topology, Fault),
    Milliseconds = min(maps:get(ms, Fault), 1000),
    ok = ?PROXY:set_mode(Proxy, drop_replies),
    timer:sleep(Milliseconds),
    %% Or else what follows would come without what was lost.
    ok = ?PROXY:cut(Proxy),
    ok = ?PROXY:set_mode(Proxy, forward),
    ["replies lost for ", seconds(Milliseconds), ", then connections cut, at ", Text];
do(refuse, Topology, Fault = #{ms := Milliseconds}) ->
    {Proxy, Text} = proxy(Topology, Fault),
    ok = ?PROXY:set_mode(Proxy, refuse),
    ok = ?PROXY:cut(Proxy),
    timer:sleep(Milliseconds),
    ok = ?PROXY:set_mode(Proxy, forward),
    ["connections cut and refused for ", seconds(Milliseconds), " at ", Text];
do(old_bytes, Topology, Fault) ->
    {Proxy, Text} = proxy(Topology, Fault),
    Held = min(maps:get(ms, Fault), 700),
    ok = ?PROXY:hold_existing(Proxy),
    timer:sleep(Held),
    Bytes = ?PROXY:held_bytes(Proxy),
    ok = ?PROXY:cut(Proxy),
    timer:sleep(?MOMENT),
    ok = ?PROXY:release(Proxy),
    [
        integer_to_list(Bytes), " B held for ", seconds(Held), ", then connections cut, bytes delivered ",
        seconds(?MOMENT), " later, at ", Text
    ];
do(failover, Topology, Fault) ->
    Master = pick(Fault, ?TOPOLOGY:masters(Topology)),
    Text = ["fail-over of ", master(Topology, Master)],
    New = ?TOPOLOGY:failover(Topology, Master),
    [Text, " to ", ?TOPOLOGY:name(Topology, New)];
do(flush_scripts, Topology, _Fault) ->
    [<<"OK">> = ?SERVER:cli(Master, ["SCRIPT", "FLUSH"]) || Master <- ?TOPOLOGY:masters(Topology)],
    "SCRIPT FLUSH on every master";
do(kill_clients, Topology, _Fault) ->
    Masters = ?TOPOLOGY:masters(Topology),
    Killed = [?SERVER:cli(Master, ["CLIENT", "KILL", "TYPE", "normal"]) || Master <- Masters],
    ["CLIENT KILL TYPE normal on every master: ", integer_to_list(lists:sum(Killed)), " connections"];
do(out_of_memory, Topology, Fault) ->
    Milliseconds = min(maps:get(ms, Fault), 1500),
    Masters = ?TOPOLOGY:masters(Topology),
    [<<"OK">> = ?SERVER:cli(Master, ["CONFIG", "SET", "maxmemory", "1mb"]) || Master <- Masters],
    timer:sleep(Milliseconds),
    [<<"OK">> = ?SERVER:cli(Master, ["CONFIG", "SET", "maxmemory", "0"]) || Master <- Masters],
    ["no memory left on any master for ", seconds(Milliseconds)];
do(reshard, Topology, Fault) ->
    Cluster = ?TOPOLOGY:handle(Topology),
    [Source, Target | _] = rotated(Fault, ?TOPOLOGY:masters(Topology)),
    Count = length(?CLUSTER:reshard(Cluster, Source, Target, ?SLOTS_OF_A_RESHARD)),
    [
        integer_to_list(Count), " slots moved from ", ?TOPOLOGY:name(Topology, Source), " to ",
        ?TOPOLOGY:name(Topology, Target)
    ];
do(grow_and_shrink, Topology, Fault) ->
    Cluster = ?TOPOLOGY:handle(Topology),
    [Source | _] = rotated(Fault, ?TOPOLOGY:masters(Topology)),
    New = ?CLUSTER:add_master(Cluster),
    %% First a replica: what moves there must reach one too.
    _ = ?CLUSTER:add_replica(Cluster, New),
    Moved = length(?CLUSTER:reshard(Cluster, Source, New, ?SLOTS_OF_A_RESHARD)),
    timer:sleep(?MOMENT),
    ok = ?CLUSTER:remove_master(Cluster, New),
    ["a master and a replica joined, took ", integer_to_list(Moved), " slots, gave them back and left"].

%% Sometimes it is back at once.
time_away(#{way := both}) -> 0;
time_away(#{ms := Milliseconds}) -> Milliseconds div 2.

freeze(Text, Server, #{ms := Milliseconds}) ->
    ok = ?SERVER:pause(Server),
    timer:sleep(Milliseconds),
    ok = ?SERVER:resume(Server),
    [Text, " for ", seconds(Milliseconds)].

%% A dead master comes back when there is another: without a disk it would come back empty, and its replicas
%% would empty themselves.
promotion(Topology, Master) ->
    case ?TOPOLOGY:kind(Topology) of
        single -> "";
        _ -> [", ", ?TOPOLOGY:name(Topology, ?TOPOLOGY:wait_until_promoted(Topology, Master)), " promoted"]
    end.

with_mode(Proxy, Mode, Milliseconds) ->
    ok = ?PROXY:set_mode(Proxy, Mode),
    timer:sleep(Milliseconds),
    ok = ?PROXY:set_mode(Proxy, forward).

proxy(Topology, Fault) ->
    Master = pick(Fault, ?TOPOLOGY:masters(Topology)),
    {?TOPOLOGY:proxy(Topology, Master), master(Topology, Master)}.

master(Topology, Server) ->
    ["the master ", ?TOPOLOGY:name(Topology, Server)].

pick(Fault, Servers) ->
    hd(rotated(Fault, Servers)).

rotated(#{choice := Choice}, Servers) ->
    {Before, From} = lists:split(trunc(Choice * length(Servers)), Servers),
    From ++ Before.

seconds(Milliseconds) ->
    io_lib:format("~.1f s", [Milliseconds / 1000]).
