%% A master, its replicas and the sentinels that watch them, for tests.
%%
%%     Set = emqx_redis_test_sentinels:start(#{replicas => 2}),
%%     ok = emqx_redis_storage:start(emqx_redis_test_sentinels:config(Set)),
%%     Old = emqx_redis_test_sentinels:master(Set),
%%     ok = emqx_redis_test_sentinels:kill(Set, Old),
%%     New = emqx_redis_test_sentinels:wait_until_promoted(Set, Old),
%%     ok = emqx_redis_test_sentinels:restart(Set, Old),
%%     ok = emqx_redis_test_sentinels:wait_until_healthy(Set),
%%     ok = emqx_redis_test_sentinels:stop(Set).
%%
%% Sentinel's periods are shortened: about two seconds after its death a master is replaced, and a
%% former master that comes back is a master for two seconds before the sentinels make it a replica.
-module(emqx_redis_test_sentinels).

-export([start/0, start/1, stop/1, config/1, wait_until_healthy/1]).
-export([master/1, replicas/1, servers/1, sentinels/1, name/0, address/2, proxy/2]).
-export([kill/2, pause/2, resume/2, restart/2, failover/1, wait_until_promoted/2, cli/3]).

-export_type([set/0, options/0]).

-opaque set() :: emqx_redis_test_topology:topology().
%% Beside these, those of emqx_redis_test_topology: password, user, users, tls, appendonly, args, proxied.
-type options() :: #{
    %% 2 by default.
    replicas => non_neg_integer(),
    %% 3 by default, and a quorum of 2.
    sentinels => pos_integer(),
    quorum => pos_integer(),
    %% Milliseconds of silence after which a server is down, 1000 by default.
    down_after => pos_integer(),
    %% What clients must say to sentinels: with a user, that user alone can log in.
    sentinel_password => binary(),
    sentinel_user => binary(),
    %% Clients reach the sentinels by TLS. Sentinels speak TLS to each other where the data servers do.
    %% Where only one of both is encrypted, a sentinel has a port of each kind, and it names to clients
    %% that ask for the other sentinels the ports that sentinels use among themselves.
    sentinel_tls => emqx_redis_test_server:tls(),
    atom() => term()
}.

-define(SERVER, emqx_redis_test_server).
-define(TOPOLOGY, emqx_redis_test_topology).
-define(NAME, "mymaster").
%% A failover that did not come about is asked for again.
-define(FAILOVER_TIMEOUT, 10000).
-define(FAILOVER_ATTEMPTS, 3).

%% API

-spec start() -> set().
start() ->
    start(#{}).

%% Returns when all is as wait_until_healthy/1 says.
-spec start(options()) -> set().
start(Options) ->
    Set = ?TOPOLOGY:start(Options),
    try
        Count = 1 + maps:get(replicas, Options, 2),
        [Master | _] = Servers = [start_data(Set, Options) || _ <- lists:seq(1, Count)],
        lists:foreach(fun(Server) -> announce(Set, Options, Master, Server) end, Servers),
        Port = ?TOPOLOGY:port(Set, Master),
        _ = [start_sentinel(Set, Options, Port) || _ <- lists:seq(1, maps:get(sentinels, Options, 3))],
        ok = wait_until_healthy(Set),
        Set
    catch
        Class:Reason:Stack ->
            ok = stop(Set),
            erlang:raise(Class, Reason, Stack)
    end.

-spec stop(set()) -> ok.
stop(Set) ->
    ?TOPOLOGY:stop(Set).

%% What emqx_redis_storage:start/1 takes; merge what else a test wants.
-spec config(set()) -> #{redis := #{atom() => term()}}.
config(Set) ->
    [Server | _] = servers(Set),
    [Sentinel | _] = sentinels(Set),
    Addresses = [["127.0.0.1:", integer_to_list(sentinel_port(Set, Each))] || Each <- sentinels(Set)],
    Redis = #{
        type => sentinel,
        servers => iolist_to_binary(lists:join(",", Addresses)),
        sentinel => name()
    },
    Logins = maps:merge(?SERVER:login_config(Server), sentinel_login(?SERVER:login_config(Sentinel))),
    Ssl = maps:merge(?SERVER:ssl_config(Server), sentinel_ssl(?TOPOLOGY:options(Set), Sentinel)),
    #{redis => maps:merge(Redis, maps:merge(Logins, Ssl))}.

%% The name under which the sentinels know the master.
-spec name() -> binary().
name() ->
    <<?NAME>>.

%% Returns when every sentinel knows all the others, all are of one mind, and every replica is in sync.
-spec wait_until_healthy(set()) -> ok.
wait_until_healthy(Set) ->
    ?TOPOLOGY:await(not_healthy, fun() -> health(Set) end).

%% The server that says that it is master; where two say so, the one that the sentinels mean.
-spec master(set()) -> ?SERVER:server().
master(Set) ->
    ?TOPOLOGY:await(no_master, fun() ->
        case [Server || Server <- servers(Set), is_master(Server)] of
            [Master] ->
                {ok, Master};
            Several ->
                case named_master(Set) of
                    {ok, Named} -> lists:member(Named, Several) andalso {ok, Named};
                    Other -> Other
                end
        end
    end).

%% The other data servers, dead ones too.
-spec replicas(set()) -> [?SERVER:server()].
replicas(Set) ->
    servers(Set) -- [master(Set)].

%% The data servers.
-spec servers(set()) -> [?SERVER:server()].
servers(Set) ->
    ?TOPOLOGY:members(Set, data).

-spec sentinels(set()) -> [?SERVER:server()].
sentinels(Set) ->
    ?TOPOLOGY:members(Set, sentinel).

%% As sentinels name the server to clients: the proxy's if there is one.
-spec address(set(), ?SERVER:server()) -> binary().
address(Set, Server) ->
    iolist_to_binary(["127.0.0.1:", integer_to_list(?TOPOLOGY:port(Set, Server))]).

%% The proxy before a data server, with `proxied`.
-spec proxy(set(), ?SERVER:server()) -> emqx_redis_test_proxy:proxy().
proxy(Set, Server) ->
    ?TOPOLOGY:proxy(Set, Server).

%% These four take a data server or a sentinel.
-spec kill(set(), ?SERVER:server()) -> ok.
kill(_Set, Server) ->
    ?SERVER:kill(Server).

-spec pause(set(), ?SERVER:server()) -> ok.
pause(_Set, Server) ->
    ?SERVER:pause(Server).

-spec resume(set(), ?SERVER:server()) -> ok.
resume(_Set, Server) ->
    ?SERVER:resume(Server).

%% A replica follows its master again; what was a master comes back as one, until the sentinels see it.
-spec restart(set(), ?SERVER:server()) -> ok.
restart(Set, Server) ->
    ok = ?SERVER:restart(Server),
    case lists:member(Server, sentinels(Set)) of
        true -> shorten_periods(Server);
        false -> ok
    end.

%% Has a sentinel promote a replica, and returns the new master when it is one.
-spec failover(set()) -> ?SERVER:server().
failover(Set) ->
    failover(Set, master(Set), ?FAILOVER_ATTEMPTS).

%% Waits until most sentinels name another master than Old, and returns it when it is one.
-spec wait_until_promoted(set(), Old :: ?SERVER:server()) -> ?SERVER:server().
wait_until_promoted(Set, Old) ->
    ?TOPOLOGY:await(not_promoted, fun() -> promoted(Set, Old) end).

-spec cli(set(), ?SERVER:server(), [iodata() | atom() | integer()]) -> emqx_redis_test_client:reply().
cli(_Set, Server, Command) ->
    ?SERVER:cli(Server, Command).

%% Internal: starting

start_data(Set, Options) ->
    ?TOPOLOGY:add(Set, data, ?TOPOLOGY:data_options(Options, "", [])).

%% Says where the server is to be found and whom it follows. That goes into its file, for restart/2; on
%% the command line it would outdo what sentinels decide later.
announce(Set, Options, Master, Server) ->
    case maps:get(proxied, Options, false) of
        true ->
            <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "replica-announce-ip", "127.0.0.1"]),
            Port = ?TOPOLOGY:port(Set, Server),
            <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "replica-announce-port", Port]);
        false ->
            ok
    end,
    Server =:= Master orelse
        (<<"OK">> = ?SERVER:cli(Server, ["REPLICAOF", "127.0.0.1", ?TOPOLOGY:port(Set, Master)])),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "REWRITE"]),
    ok.

start_sentinel(Set, Options, MasterPort) ->
    Login = sentinel_login_options(Options),
    Tls = sentinel_tls_options(Options),
    Sentinel = ?TOPOLOGY:add(Set, sentinel, maps:merge(maps:merge(Login, Tls), #{
        tcp => true,
        sentinel => true,
        config => sentinel_config(Options, MasterPort)
    })),
    shorten_periods(Sentinel).

sentinel_config(Options, MasterPort) ->
    Line = fun(Key, Value) -> ["sentinel ", Key, " " ?NAME " ", Value, "\n"] end,
    Quorum = integer_to_list(maps:get(quorum, Options, 2)),
    [
        Line("monitor", ["127.0.0.1 ", integer_to_list(MasterPort), " ", Quorum]),
        Line("down-after-milliseconds", integer_to_list(maps:get(down_after, Options, 1000))),
        Line("failover-timeout", "3000"),
        Line("parallel-syncs", "2"),
        [Line("auth-user", User) || #{user := User} <- [Options]],
        [Line("auth-pass", Password) || #{password := Password} <- [Options]],
        [["sentinel sentinel-user ", User, "\n"] || #{sentinel_user := User} <- [Options]],
        [["sentinel sentinel-pass ", Password, "\n"] || #{sentinel_password := Password} <- [Options]]
    ].

sentinel_login_options(#{sentinel_user := User, sentinel_password := Password}) ->
    Lines = ["user default off\nuser ", User, " on >", Password, " ~* &* +@all\n"],
    #{login => {User, Password}, aclfile => Lines};
sentinel_login_options(#{sentinel_password := Password}) ->
    #{requirepass => Password};
sentinel_login_options(#{}) ->
    #{}.

%% With tls-replication a sentinel speaks TLS to data servers and to other sentinels alike.
sentinel_tls_options(#{tls := _, sentinel_tls := Tls}) ->
    #{tls => Tls, args => ["--tls-replication", "yes"]};
sentinel_tls_options(#{tls := Tls}) ->
    #{tls => Tls, plain_port => true, args => ["--tls-replication", "yes"]};
sentinel_tls_options(#{sentinel_tls := Tls}) ->
    #{tls => Tls, plain_port => true};
sentinel_tls_options(#{}) ->
    #{}.

%% What cannot be configured: how often sentinels talk to each other and look at the servers, and how
%% long one does nothing after it found its clock to jump, as a pause of two seconds makes it. With pings
%% a second apart, a new master is down for having had no time to answer one; but the last INFO of a
%% replica that may be promoted must not be older than five of these periods.
shorten_periods(Sentinel) ->
    Looks = ["ping-period", 400, "info-period", 1000],
    Periods = Looks ++ ["publish-period", 500, "tilt-period", 2000],
    <<"OK">> = ?SERVER:cli(Sentinel, ["SENTINEL", "DEBUG" | Periods]),
    ok.

%% Internal: the configuration

sentinel_port(Set, Sentinel) ->
    case ?TOPOLOGY:options(Set) of
        #{sentinel_tls := _} -> ?SERVER:port(Sentinel);
        #{} -> ?SERVER:plain_port(Sentinel)
    end.

sentinel_login(#{username := User, password := Password}) ->
    #{sentinel_username => User, sentinel_password => Password};
sentinel_login(#{password := Password}) ->
    #{sentinel_password => Password};
sentinel_login(#{}) ->
    #{}.

sentinel_ssl(#{sentinel_tls := _}, Sentinel) ->
    #{ssl := Ssl} = ?SERVER:ssl_config(Sentinel),
    #{sentinel_ssl => Ssl};
sentinel_ssl(#{}, _Sentinel) ->
    #{}.

%% Internal: looking

is_master(Server) ->
    case ?TOPOLOGY:ask(Server, ["ROLE"]) of
        [<<"master">> | _] -> true;
        _ -> false
    end.

%% The master that more than half of all sentinels name.
named_master(Set) ->
    Sentinels = sentinels(Set),
    Named = [Master || Sentinel <- Sentinels, Master <- [named_by(Set, Sentinel)], Master =/= unknown],
    Half = length(Sentinels) / 2,
    case [Master || Master <- lists:usort(Named), length([M || M <- Named, M =:= Master]) > Half] of
        [Master] -> {ok, Master};
        [] -> {named, Named}
    end.

named_by(Set, Sentinel) ->
    case ?TOPOLOGY:ask(Sentinel, ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", ?NAME]) of
        [_Host, Port] -> ?TOPOLOGY:find(Set, binary_to_integer(Port));
        _ -> unknown
    end.

promoted(Set, Old) ->
    case named_master(Set) of
        {ok, Old} -> {still_master, Old};
        {ok, New} ->
            case is_master(New) of
                true -> {ok, New};
                false -> {not_yet_master, New}
            end;
        Other -> Other
    end.

failover(Set, Old, Attempts) ->
    ok = ?TOPOLOGY:await(failover_refused, fun() ->
        Replies = [?TOPOLOGY:ask(S, ["SENTINEL", "FAILOVER", ?NAME]) || S <- reachable_sentinel(Set)],
        case Replies of
            [<<"OK">>] -> {ok, ok};
            %% One is under way.
            [{error, <<"INPROG", _/binary>>}] -> {ok, ok};
            _ -> Replies
        end
    end),
    try
        ?TOPOLOGY:await(not_promoted, fun() -> promoted(Set, Old) end, ?FAILOVER_TIMEOUT)
    catch
        error:{not_promoted, _} when Attempts > 1 -> failover(Set, Old, Attempts - 1)
    end.

reachable_sentinel(Set) ->
    lists:sublist([S || S <- sentinels(Set), ?TOPOLOGY:ask(S, ["PING"]) =:= <<"PONG">>], 1).

health(Set) ->
    Sentinels = sentinels(Set),
    Replicas = length(servers(Set)) - 1,
    Views = [sentinel_view(Sentinel) || Sentinel <- Sentinels],
    Wanted = #{
        others => length(Sentinels) - 1, flags => <<"master">>, replicas => Replicas, ready => Replicas
    },
    case lists:usort([maps:remove(port, View) || View <- Views]) of
        [Wanted] ->
            case lists:usort([Port || #{port := Port} <- Views]) of
                [Port] -> replication_health(Set, ?TOPOLOGY:find(Set, Port));
                Ports -> {masters, Ports}
            end;
        _ ->
            {views, Views}
    end.

sentinel_view(Sentinel) ->
    Master = ?TOPOLOGY:ask(Sentinel, ["SENTINEL", "MASTER", ?NAME]),
    Replicas = ?TOPOLOGY:ask(Sentinel, ["SENTINEL", "REPLICAS", ?NAME]),
    case is_list(Master) andalso is_list(Replicas) of
        true ->
            Fields = pairs(Master),
            #{
                port => binary_to_integer(maps:get(<<"port">>, Fields)),
                flags => maps:get(<<"flags">>, Fields),
                others => binary_to_integer(maps:get(<<"num-other-sentinels">>, Fields)),
                replicas => binary_to_integer(maps:get(<<"num-slaves">>, Fields)),
                ready => length([ready || Replica <- Replicas, is_ready(pairs(Replica))])
            };
        false ->
            #{unreachable => Sentinel}
    end.

is_ready(#{<<"flags">> := <<"slave">>, <<"master-link-status">> := <<"ok">>}) -> true;
is_ready(#{}) -> false.

pairs([Key, Value | Rest]) -> maps:put(Key, Value, pairs(Rest));
pairs([]) -> #{}.

%% In sync: every replica has all that the master had written when it was asked.
replication_health(_Set, unknown) ->
    unknown_master;
replication_health(Set, Master) ->
    Replicas = servers(Set) -- [Master],
    case ?TOPOLOGY:ask(Master, ["ROLE"]) of
        [<<"master">>, Written, Online] when length(Online) =:= length(Replicas) ->
            Port = ?TOPOLOGY:port(Set, Master),
            Roles = [?TOPOLOGY:ask(Replica, ["ROLE"]) || Replica <- Replicas],
            case lists:all(fun(Role) -> is_in_sync(Role, Port, Written) end, Roles) of
                true -> {ok, ok};
                false -> {written, Written, Roles}
            end;
        Role ->
            {master, Role}
    end.

is_in_sync([<<"slave">>, _Host, Port, <<"connected">>, Read], Port, Written) -> Read >= Written;
is_in_sync(_Role, _Port, _Written) -> false.
