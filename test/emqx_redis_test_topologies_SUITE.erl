%% The sentinel sets, clusters and TLS servers that other suites use, and the ways of Redis Cluster
%% that the library has to live with while a slot moves.
-module(emqx_redis_test_topologies_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(CLIENT, emqx_redis_test_client).
-define(PROXY, emqx_redis_test_proxy).
-define(HELPERS, emqx_redis_test_helpers).
-define(CERTIFICATES, emqx_redis_test_certificates).
-define(TOPOLOGY, emqx_redis_test_topology).
-define(SENTINELS, emqx_redis_test_sentinels).
-define(CLUSTER, emqx_redis_test_cluster).

suite() ->
    [{timetrap, {seconds, 120}}].

all() ->
    [
        Name
     || {Name, 1} <- ?MODULE:module_info(exports),
        lists:member(hd(string:split(atom_to_list(Name), "_")), ["tls", "sentinels", "cluster", "topology"])
    ].

init_per_suite(Config) ->
    [{certificates, ?CERTIFICATES:make(proplists:get_value(priv_dir, Config))} | Config].

end_per_suite(_Config) ->
    ok.

end_per_testcase(_Case, _Config) ->
    Left = ?TOPOLOGY:running() ++ ?SERVER:running(),
    ok = ?TOPOLOGY:stop_all(),
    ok = ?SERVER:stop_all(),
    ?assertEqual([], Left).

%% TLS

tls_server_shows_its_certificate(Config) ->
    Certificates = #{cacertfile := CaFile} = certificates(Config),
    Server = ?SERVER:start(#{tls => ?CERTIFICATES:server_tls(Certificates)}),
    ?assertEqual(<<"PONG">>, ?SERVER:cli(Server, ["PING"])),
    ?assertEqual(match, handshake(Server, CaFile, [], "\\+PONG")),
    ?assertEqual(0, ?SERVER:plain_port(Server)),
    ?assertMatch(#{redis := #{ssl := #{enable := true, cacertfile := _}}}, ?SERVER:config(Server)),
    ?assertEqual({tcp, ?SERVER:port(Server)}, ?SERVER:address(Server)),
    %% Bytes like any other to a proxy.
    Proxy = ?PROXY:start(?SERVER:address(Server)),
    ?assertEqual(match, handshake(?PROXY:port(Proxy), CaFile, [], "\\+PONG")),
    ok = ?PROXY:stop(Proxy),
    ok = ?SERVER:stop(Server).

tls_server_has_a_plain_port_if_asked(Config) ->
    Tls = ?CERTIFICATES:server_tls(certificates(Config)),
    Server = ?SERVER:start(#{tls => Tls, plain_port => true}),
    Connection = ?CLIENT:connect({tcp, ?SERVER:plain_port(Server)}),
    ?assertEqual(<<"PONG">>, ?CLIENT:command(Connection, ["PING"])),
    ok = ?CLIENT:close(Connection),
    ok = ?SERVER:stop(Server).

tls_server_wants_a_client_certificate(Config) ->
    Certificates = #{cacertfile := CaFile} = certificates(Config),
    Tls = ?CERTIFICATES:server_tls(Certificates),
    Server = ?SERVER:start(#{tls => Tls#{auth_clients => yes}}),
    #{client_certfile := CertFile, client_keyfile := KeyFile} = Certificates,
    Shown = ["-cert", CertFile, "-key", KeyFile],
    ?assertEqual(match, handshake(Server, CaFile, Shown, "\\+PONG")),
    ?assertMatch({nomatch, _}, handshake(Server, CaFile, [], "\\+PONG")),
    ok = ?SERVER:stop(Server).

tls_bad_certificates_are_bad(Config) ->
    Certificates = #{cacertfile := CaFile, other_cacertfile := OtherCaFile} = certificates(Config),
    Tls = ?CERTIFICATES:server_tls(Certificates),
    Good = ?SERVER:start(#{tls => Tls}),
    ?assertEqual(match, handshake(Good, OtherCaFile, [], "certificate verify failed")),
    #{expired_certfile := ExpiredCert, expired_keyfile := ExpiredKey} = Certificates,
    Expired = ?SERVER:start(#{tls => Tls#{certfile := ExpiredCert, keyfile := ExpiredKey}}),
    ?assertEqual(match, handshake(Expired, CaFile, [], "certificate has expired")),
    #{other_host_certfile := OtherCert, other_host_keyfile := OtherKey} = Certificates,
    Other = ?SERVER:start(#{tls => Tls#{certfile := OtherCert, keyfile := OtherKey}}),
    ?assertEqual(match, handshake(Other, CaFile, [], "IP address mismatch")),
    ok = ?SERVER:stop_all().

%% Any topology

topology_leaves_nothing_behind(_Config) ->
    Set = ?SENTINELS:start(),
    Cluster = ?CLUSTER:start(#{replicas => 0}),
    Servers = ?SENTINELS:servers(Set) ++ ?SENTINELS:sentinels(Set) ++ ?CLUSTER:nodes(Cluster),
    ?assertEqual(9, length(Servers)),
    Traces = [{?SERVER:os_pid(Server), ?SERVER:folder(Server)} || Server <- Servers],
    %% A paused one would outlive a mere SIGTERM.
    ok = ?CLUSTER:pause(Cluster, lists:last(Servers)),
    ok = ?CLUSTER:stop(Cluster),
    ok = ?SENTINELS:stop(Set),
    ?HELPERS:wait_until(fun() -> not lists:any(fun is_there/1, Traces) end).

topology_ends_with_the_process_that_keeps_it(_Config) ->
    Set = ?SENTINELS:start(#{replicas => 0, sentinels => 2, proxied => true}),
    Servers = ?SENTINELS:servers(Set) ++ ?SENTINELS:sentinels(Set),
    Traces = [{?SERVER:os_pid(Server), ?SERVER:folder(Server)} || Server <- Servers],
    [Keeper] = ?TOPOLOGY:running(),
    exit(Keeper, kill),
    ?HELPERS:wait_until(fun() -> ?SERVER:running() =:= [] end),
    ?HELPERS:wait_until(fun() -> not lists:any(fun is_there/1, Traces) end).

%% Sentinels

sentinels_fail_over_and_take_a_dead_master_back(_Config) ->
    Set = ?SENTINELS:start(),
    First = ?SENTINELS:master(Set),
    ?assertEqual(2, length(?SENTINELS:replicas(Set))),
    ?assertMatch(#{redis := #{type := sentinel, sentinel := <<"mymaster">>}}, ?SENTINELS:config(Set)),
    Second = ?SENTINELS:failover(Set),
    ?assertNotEqual(First, Second),
    ok = ?SENTINELS:wait_until_healthy(Set),
    ?assertEqual(Second, ?SENTINELS:master(Set)),
    <<"OK">> = ?SENTINELS:cli(Set, Second, ["SET", "k", "v"]),
    ok = ?SENTINELS:wait_until_healthy(Set),
    ok = ?SENTINELS:kill(Set, Second),
    Third = ?SENTINELS:wait_until_promoted(Set, Second),
    ?assertEqual(<<"v">>, ?SENTINELS:cli(Set, Third, ["GET", "k"])),
    ok = ?SENTINELS:restart(Set, Second),
    ok = ?SENTINELS:wait_until_healthy(Set),
    ?assertEqual(Third, ?SENTINELS:master(Set)),
    ?assert(lists:member(Second, ?SENTINELS:replicas(Set))),
    ?assertEqual(<<"v">>, ?SENTINELS:cli(Set, Second, ["GET", "k"])),
    ok = ?SENTINELS:stop(Set).

%% One sentinel is down all the while, which then joins the others again.
sentinels_replace_a_paused_master(_Config) ->
    Set = ?SENTINELS:start(),
    Old = ?SENTINELS:master(Set),
    [Sentinel | _] = ?SENTINELS:sentinels(Set),
    ok = ?SENTINELS:kill(Set, Sentinel),
    ok = ?SENTINELS:pause(Set, Old),
    New = ?SENTINELS:wait_until_promoted(Set, Old),
    ok = ?SENTINELS:resume(Set, Old),
    ok = ?SENTINELS:restart(Set, Sentinel),
    ok = ?SENTINELS:wait_until_healthy(Set),
    ?assertEqual(New, ?SENTINELS:master(Set)),
    ok = ?SENTINELS:stop(Set).

sentinels_with_users_tls_and_proxies(Config) ->
    Certificates = #{cacertfile := CaFile} = certificates(Config),
    Tls = ?CERTIFICATES:server_tls(Certificates),
    Set = ?SENTINELS:start(#{
        user => <<"storage">>,
        password => <<"secret">>,
        sentinel_user => <<"watcher">>,
        sentinel_password => <<"hidden">>,
        tls => Tls#{auth_clients => optional},
        sentinel_tls => Tls,
        proxied => true,
        appendonly => true,
        args => ["--databases", "3"]
    }),
    ?assertMatch(
        #{redis := #{
            username := <<"storage">>,
            password := <<"secret">>,
            sentinel_username := <<"watcher">>,
            sentinel_password := <<"hidden">>,
            ssl := #{enable := true},
            sentinel_ssl := #{enable := true}
        }},
        ?SENTINELS:config(Set)
    ),
    Master = ?SENTINELS:master(Set),
    [Sentinel | _] = ?SENTINELS:sentinels(Set),
    Proxy = ?SENTINELS:proxy(Set, Master),
    ?assertEqual(?PROXY:servers(Proxy), ?SENTINELS:address(Set, Master)),
    Asked = [<<"127.0.0.1">>, integer_to_binary(?PROXY:port(Proxy))],
    ?assertEqual(Asked, ?SENTINELS:cli(Set, Sentinel, ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster"])),
    ?assertEqual(match, handshake(?PROXY:port(Proxy), CaFile, [], "-NOAUTH")),
    ?assertEqual(match, handshake(Sentinel, CaFile, [], "-NOAUTH")),
    %% Cut off from all, but alive.
    ok = ?PROXY:set_mode(Proxy, freeze),
    New = ?SENTINELS:wait_until_promoted(Set, Master),
    ?assertNotEqual(Master, New),
    ?assertMatch([<<"master">> | _], ?SENTINELS:cli(Set, Master, ["ROLE"])),
    ok = ?PROXY:set_mode(Proxy, forward),
    ok = ?SENTINELS:wait_until_healthy(Set),
    ?assertEqual(New, ?SENTINELS:master(Set)),
    ok = ?SENTINELS:stop(Set).

sentinels_with_tls_on_one_side_alone(Config) ->
    Tls = #{cacertfile := CaFile} = ?CERTIFICATES:server_tls(certificates(Config)),
    Encrypted = ?SENTINELS:start(#{tls => Tls, sentinel_password => <<"hidden">>}),
    #{redis := #{servers := Servers} = Redis} = ?SENTINELS:config(Encrypted),
    ?assertNot(is_map_key(sentinel_ssl, Redis)),
    [First | _] = binary:split(Servers, <<",">>),
    [_, Port] = binary:split(First, <<":">>),
    Connection = ?CLIENT:connect({tcp, binary_to_integer(Port)}),
    ?assertMatch({error, <<"NOAUTH", _/binary>>}, ?CLIENT:command(Connection, ["PING"])),
    ok = ?CLIENT:close(Connection),
    ok = ?SENTINELS:stop(Encrypted),
    Plain = ?SENTINELS:start(#{sentinel_tls => Tls, password => <<"secret">>, replicas => 1}),
    #{redis := #{sentinel_ssl := _} = PlainRedis} = ?SENTINELS:config(Plain),
    ?assertNot(is_map_key(ssl, PlainRedis)),
    ?assertEqual(match, handshake(hd(?SENTINELS:sentinels(Plain)), CaFile, [], "\\+PONG")),
    ok = ?SENTINELS:stop(Plain).

%% Clusters

cluster_promotes_the_replica_of_a_dead_master(_Config) ->
    with_cluster(#{}, fun(Cluster) ->
        Keys = write_keys(Cluster, "k", 200),
        Slot = ?CLUSTER:key_slot(hd(Keys)),
        Old = ?CLUSTER:owner(Cluster, Slot),
        [Replica] = ?CLUSTER:replicas_of(Cluster, Old),
        ok = ?CLUSTER:wait_until_healthy(Cluster),
        ok = ?CLUSTER:kill(Cluster, Old),
        ?assertEqual(Replica, ?CLUSTER:wait_until_promoted(Cluster, Old)),
        ?assertEqual(hd(Keys), ?CLUSTER:command_by_key(Cluster, hd(Keys), ["GET", hd(Keys)])),
        ok = ?CLUSTER:restart(Cluster, Old),
        ok = ?CLUSTER:wait_until_healthy(Cluster),
        ?assert(lists:member(Old, ?CLUSTER:replicas(Cluster))),
        ?assertEqual(Keys, ?CLUSTER:all_keys(Cluster)),
        %% A master that only sleeps, and wakes up to find itself replaced.
        ok = ?CLUSTER:pause(Cluster, Replica),
        ?assertEqual(Old, ?CLUSTER:wait_until_promoted(Cluster, Replica)),
        ok = ?CLUSTER:resume(Cluster, Replica),
        ok = ?CLUSTER:wait_until_healthy(Cluster),
        ?assertEqual(Old, ?CLUSTER:owner(Cluster, Slot))
    end).

%% A node that is promoted twice in a short time must get new votes.
cluster_fails_over_and_back(_Config) ->
    with_cluster(#{node_timeout => 1000}, fun(Cluster) ->
        [First | _] = ?CLUSTER:masters(Cluster),
        Second = ?CLUSTER:failover(Cluster, First),
        ?assertNotEqual(First, Second),
        ?assertEqual(First, ?CLUSTER:failover(Cluster, Second)),
        ok = ?CLUSTER:kill(Cluster, First),
        ?assertEqual(Second, ?CLUSTER:wait_until_promoted(Cluster, First))
    end).

cluster_computes_slots_as_redis_does(_Config) ->
    with_cluster(#{masters => 3, replicas => 0}, fun(Cluster) ->
        [Node | _] = ?CLUSTER:nodes(Cluster),
        Keys = ["", "123456789", "a{b}c", "a{}c", "{}{b}", "a{{b}}c", "{b", "b}", "{b}{c}", <<0, 255, "{x">>],
        Asked = [?CLUSTER:cli(Cluster, Node, ["CLUSTER", "KEYSLOT", Key]) || Key <- Keys],
        ?assertEqual(Asked, [?CLUSTER:key_slot(Key) || Key <- Keys])
    end).

%% A client increments a counter all the while: no increment is lost or made twice.
cluster_moves_a_slot_under_a_client(_Config) ->
    with_cluster(#{replicas => 0}, fun(Cluster) ->
        Slot = ?CLUSTER:key_slot("t"),
        Keys = write_keys(Cluster, "k{t}", 250),
        Source = ?CLUSTER:owner(Cluster, Slot),
        [Target, Third] = ?CLUSTER:masters(Cluster) -- [Source],
        Counter = count_until_told(Cluster, "n{t}"),
        lists:foreach(
            fun(To) ->
                ok = ?CLUSTER:move_slot(Cluster, Slot, To),
                ?assertEqual(To, ?CLUSTER:owner(Cluster, Slot))
            end,
            [Target, Third, Source, Target]
        ),
        Count = tell(Counter),
        ?assert(Count > 0),
        ?assertEqual(integer_to_binary(Count), ?CLUSTER:command_by_key(Cluster, "n{t}", ["GET", "n{t}"])),
        ?assertEqual(Keys ++ [<<"n{t}">>], ?CLUSTER:all_keys(Cluster)),
        ?assertMatch({error, <<"MOVED ", _/binary>>}, ?CLUSTER:cli(Cluster, Source, ["GET", "n{t}"]))
    end).

%% Of a unit of work whose keys are on both sides, neither side does anything.
cluster_half_moved_slot_refuses_what_spans_both_sides(_Config) ->
    with_half_moved_slot(fun(Cluster, Source, Target) ->
        Multi = [["MULTI"], ["GET", "here{t}"], ["GET", "there{t}"], ["EXEC"]],
        ?assertMatch({error, <<"ASK ", _/binary>>}, ?CLUSTER:cli(Cluster, Source, ["GET", "there{t}"])),
        ?assertEqual(<<"v">>, ?CLUSTER:command_by_key(Cluster, "there{t}", ["GET", "there{t}"])),
        ?assertMatch({error, <<"MOVED ", _/binary>>}, ?CLUSTER:cli(Cluster, Target, ["GET", "there{t}"])),
        Both = ["MGET", "here{t}", "there{t}"],
        ?assertMatch({error, <<"TRYAGAIN", _/binary>>}, ?CLUSTER:cli(Cluster, Source, Both)),
        ?assertMatch([_, {error, <<"TRYAGAIN", _/binary>>}], commands(Target, [["ASKING"], Both])),
        ?assertMatch(
            [<<"OK">>, <<"QUEUED">>, {error, <<"ASK ", _/binary>>}, {error, <<"EXECABORT", _/binary>>}],
            commands(Source, Multi)
        ),
        %% One ASKING before MULTI serves the whole transaction, whose EXEC may still refuse it.
        ?assertMatch(
            [<<"OK">>, <<"OK">>, <<"QUEUED">>, <<"QUEUED">>, {error, <<"TRYAGAIN", _/binary>>}],
            commands(Target, [["ASKING"] | Multi])
        )
    end).

%% A key that is not there may be on the other side: so what needs several keys of which one is new runs
%% nowhere until the slot has moved.
cluster_moving_slot_runs_nothing_with_a_new_key_among_several(_Config) ->
    with_half_moved_slot(fun(Cluster, Source, Target) ->
        Write = [["MULTI"], ["SET", "new1{t}", "v"], ["SET", "new2{t}", "v"], ["EXEC"]],
        ?assertMatch({error, <<"EXECABORT", _/binary>>}, lists:last(commands(Source, Write))),
        ?assertMatch({error, <<"TRYAGAIN", _/binary>>}, lists:last(commands(Target, [["ASKING"] | Write]))),
        One = [["ASKING"], ["MULTI"], ["SET", "new1{t}", "v"], ["EXEC"]],
        ?assertEqual([<<"OK">>], lists:last(commands(Target, One))),
        Slot = ?CLUSTER:key_slot("t"),
        1 = ?CLUSTER:move_keys(Cluster, Slot, Target, all),
        ok = ?CLUSTER:finish_move(Cluster, Slot, Target),
        ?assertEqual([<<"OK">>, <<"OK">>], lists:last(commands(Target, Write)))
    end).

%% What a script touches without having declared it is not asked for beforehand. The one side stops in
%% the middle of the script, after its first writes; the other makes a second copy of a key that is
%% still to come, which then cannot come.
cluster_moving_slot_splits_scripts_with_undeclared_keys(_Config) ->
    with_half_moved_slot(fun(Cluster, Source, Target) ->
        Script = "redis.call('SET', KEYS[1], 'new') redis.call('SET', ARGV[1], 'new') return 'done'",
        ?assertMatch(
            {error, <<"ERR Script attempted to access a non local key", _/binary>>},
            ?CLUSTER:cli(Cluster, Source, ["EVAL", Script, 1, "here{t}", "there{t}"])
        ),
        ?assertEqual(<<"new">>, ?CLUSTER:cli(Cluster, Source, ["GET", "here{t}"])),
        Declared = ["EVAL", Script, 2, "here{t}", "there{t}", "there{t}"],
        ?assertMatch({error, <<"TRYAGAIN", _/binary>>}, ?CLUSTER:cli(Cluster, Source, Declared)),
        Crossed = ["EVAL", Script, 1, "there{t}", "here{t}"],
        ?assertEqual([<<"OK">>, <<"done">>], commands(Target, [["ASKING"], Crossed])),
        ?assertEqual([<<"here{t}">>], ?CLUSTER:cli(Cluster, Source, ["KEYS", "here*"])),
        ?assertEqual([<<"here{t}">>], ?CLUSTER:cli(Cluster, Target, ["KEYS", "here*"])),
        Slot = ?CLUSTER:key_slot("t"),
        ?assertError(
            {migrate, {error, <<"ERR Target instance replied with error: BUSYKEY", _/binary>>}},
            ?CLUSTER:move_keys(Cluster, Slot, Target, all)
        )
    end).

%% Queued while the slot was here, executed when it has gone.
cluster_transaction_is_redirected_at_its_end(_Config) ->
    with_half_moved_slot(fun(Cluster, Source, Target) ->
        Slot = ?CLUSTER:key_slot("t"),
        [First, Second] = [?SERVER:connect(Source) || _ <- lists:seq(1, 2)],
        Begin = [["MULTI"], ["SET", "here{t}", "new"]],
        [<<"OK">>, <<"QUEUED">>] = ?CLIENT:pipeline(First, Begin),
        [<<"OK">>, <<"QUEUED">>] = ?CLIENT:pipeline(Second, Begin),
        1 = ?CLUSTER:move_keys(Cluster, Slot, Target, all),
        ?assertMatch({error, <<"ASK ", _/binary>>}, ?CLIENT:command(First, ["EXEC"])),
        ok = ?CLUSTER:finish_move(Cluster, Slot, Target),
        ?assertMatch({error, <<"MOVED ", _/binary>>}, ?CLIENT:command(Second, ["EXEC"])),
        ?assertEqual(<<"v">>, ?CLUSTER:cli(Cluster, Target, ["GET", "here{t}"])),
        ok = ?CLIENT:close(First),
        ok = ?CLIENT:close(Second)
    end).

cluster_nodes_come_and_go(_Config) ->
    with_cluster(#{}, fun(Cluster) ->
        Keys = write_keys(Cluster, "k", 200),
        [First, Second | _] = ?CLUSTER:masters(Cluster),
        Added = ?CLUSTER:add_master(Cluster),
        ?assertEqual([], ?CLUSTER:slots(Cluster, Added)),
        Moved = ?CLUSTER:reshard(Cluster, First, Added, 1000),
        ?assertEqual(Moved, ?CLUSTER:slots(Cluster, Added)),
        Replica = ?CLUSTER:add_replica(Cluster, Added),
        ?assertEqual([Replica], ?CLUSTER:replicas_of(Cluster, Added)),
        ok = ?CLUSTER:remove_master(Cluster, Second),
        ?assertEqual(3, length(?CLUSTER:masters(Cluster))),
        ?assertEqual(6, length(?CLUSTER:nodes(Cluster))),
        ?assertEqual(Keys, ?CLUSTER:all_keys(Cluster))
    end).

cluster_with_users_tls_and_proxies(Config) ->
    Tls = #{cacertfile := CaFile} = ?CERTIFICATES:server_tls(certificates(Config)),
    Options = #{
        user => <<"storage">>,
        password => <<"secret">>,
        users => "user guest on >guest ~public:* +get\n",
        tls => Tls,
        proxied => true,
        appendonly => true
    },
    with_cluster(Options, fun(Cluster) ->
        Keys = write_keys(Cluster, "k", 100),
        Slot = ?CLUSTER:key_slot(hd(Keys)),
        Source = ?CLUSTER:owner(Cluster, Slot),
        [Target | _] = ?CLUSTER:masters(Cluster) -- [Source],
        #{redis := Redis} = ?CLUSTER:config(Cluster, [Source]),
        Address = ?CLUSTER:address(Cluster, Source),
        ?assertMatch(#{type := cluster, servers := Address, username := _, ssl := #{enable := true}}, Redis),
        Proxy = ?CLUSTER:proxy(Cluster, Source),
        ?assertEqual(match, handshake(?PROXY:port(Proxy), CaFile, [], "-NOAUTH")),
        ok = ?CLUSTER:move_slot(Cluster, Slot, Target),
        ?assertEqual(hd(Keys), ?CLUSTER:command_by_key(Cluster, hd(Keys), ["GET", hd(Keys)])),
        %% A node's address is its proxy's, also after a restart.
        ok = ?CLUSTER:restart(Cluster, Source),
        ok = ?CLUSTER:wait_until_healthy(Cluster),
        Ask = ["AUTH storage secret", "CLUSTER NODES"],
        ?assertEqual(match, talk(?SERVER:port(Target), CaFile, [], Ask, [Address, "@"])),
        ?assertEqual(Keys, ?CLUSTER:all_keys(Cluster)),
        %% Clients cannot reach the master, the other nodes can: nobody is promoted.
        ok = ?PROXY:set_mode(?CLUSTER:proxy(Cluster, Target), refuse),
        ok = ?PROXY:cut(?CLUSTER:proxy(Cluster, Target)),
        timer:sleep(2000),
        ?assertEqual(Target, ?CLUSTER:owner(Cluster, Slot))
    end).

%% Internal

certificates(Config) ->
    proplists:get_value(certificates, Config).

handshake(Port, CaFile, Arguments, Wanted) when is_integer(Port) ->
    talk(Port, CaFile, Arguments, ["PING"], Wanted);
handshake(Server, CaFile, Arguments, Wanted) ->
    handshake(?SERVER:port(Server), CaFile, Arguments, Wanted).

%% Whether what openssl says, and the server by TLS, comes to match Wanted.
talk(Port, CaFile, Arguments, Commands, Wanted) ->
    OpenSsl = os:find_executable("openssl"),
    Fixed = ["s_client", "-quiet", "-verify_return_error", "-verify_ip", "127.0.0.1", "-CAfile", CaFile],
    Target = ["-connect", "127.0.0.1:" ++ integer_to_list(Port)],
    Program = open_port({spawn_executable, OpenSsl}, [
        {args, Fixed ++ Target ++ Arguments}, binary, exit_status, stderr_to_stdout
    ]),
    true = port_command(Program, [[Command, "\r\n"] || Command <- Commands]),
    {os_pid, OsPid} = erlang:port_info(Program, os_pid),
    Result = listen(Program, <<>>, Wanted),
    [] = os:cmd("kill -s KILL " ++ integer_to_list(OsPid) ++ " 2>/dev/null"),
    catch port_close(Program),
    _ = ?HELPERS:flush(),
    Result.

listen(Program, Said, Wanted) ->
    receive
        {Program, {data, Bytes}} ->
            All = <<Said/binary, Bytes/binary>>,
            case re:run(All, Wanted) of
                {match, _} -> match;
                nomatch -> listen(Program, All, Wanted)
            end;
        {Program, {exit_status, _}} ->
            {nomatch, Said}
    after 10000 ->
        {nomatch, Said}
    end.

is_there({OsPid, Folder}) ->
    filelib:is_dir(filename:join("/proc", integer_to_list(OsPid))) orelse filelib:is_dir(Folder).

with_cluster(Options, Fun) ->
    Cluster = ?CLUSTER:start(Options),
    try
        Fun(Cluster)
    after
        ?CLUSTER:stop(Cluster)
    end.

%% The key here{t} is still with the source, there{t} with the target already.
with_half_moved_slot(Fun) ->
    with_cluster(#{replicas => 0}, fun(Cluster) ->
        Slot = ?CLUSTER:key_slot("t"),
        Source = ?CLUSTER:owner(Cluster, Slot),
        [Target | _] = ?CLUSTER:masters(Cluster) -- [Source],
        [<<"OK">> = ?CLUSTER:cli(Cluster, Source, ["SET", Key, "v"]) || Key <- ["here{t}", "there{t}"]],
        ok = ?CLUSTER:begin_move(Cluster, Slot, Target),
        ok = ?CLUSTER:move_key(Cluster, "there{t}", Target),
        Fun(Cluster, Source, Target)
    end).

%% All on one connection.
commands(Node, Commands) ->
    Connection = ?SERVER:connect(Node),
    try
        ?CLIENT:pipeline(Connection, Commands)
    after
        ?CLIENT:close(Connection)
    end.

%% Sorted.
write_keys(Cluster, Prefix, Count) ->
    Keys = [iolist_to_binary([Prefix, integer_to_list(N)]) || N <- lists:seq(1, Count)],
    [<<"OK">> = ?CLUSTER:command_by_key(Cluster, Key, ["SET", Key, Key]) || Key <- Keys],
    lists:sort(Keys).

count_until_told(Cluster, Key) ->
    spawn_link(fun() -> count(Cluster, Key, 0) end).

count(Cluster, Key, Count) ->
    receive
        {tell, From} -> From ! {count, self(), Count}
    after 0 ->
        Next = Count + 1,
        Next = ?CLUSTER:command_by_key(Cluster, Key, ["INCR", Key]),
        count(Cluster, Key, Next)
    end.

tell(Counter) ->
    Counter ! {tell, self()},
    receive
        {count, Counter, Count} -> Count
    end.
