%% Encryption and logins, on all topologies: what works, what is told when it does not, and what changes
%% while requests are in flight.
-module(emqx_redis_tls_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(SET, emqx_redis_test_sentinels).
-define(CLUSTER, emqx_redis_test_cluster).
-define(TOPOLOGY, emqx_redis_test_topology).
-define(CERTIFICATES, emqx_redis_test_certificates).
-define(LOAD, emqx_redis_test_load).
-define(LOG, emqx_redis_test_log).
-define(HELPERS, emqx_redis_test_helpers).
-define(TIMEOUT, 30000).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        tls_with_certificates_of_both_sides,
        another_name_than_the_hosts,
        whoever_asks_for_no_proof_gets_none,
        failures_are_told_apart,
        failures_of_sentinels_are_told_apart,
        failures_of_a_cluster_are_told_apart,
        users,
        tls_and_users_together,
        a_password_that_changes,
        a_users_password_that_changes,
        a_clients_certificate_that_is_renewed,
        an_authority_that_is_renewed,
        secrets_never_show
    ].

init_per_suite(Config) ->
    Make = fun(Name) -> ?CERTIFICATES:make(filename:join(proplists:get_value(priv_dir, Config), Name)) end,
    [{certificates, Make("certificates")}, {renewed, Make("renewed")} | Config].

end_per_suite(_Config) ->
    ok.

end_per_testcase(_Case, _Config) ->
    _ = emqx_redis_storage:stop(),
    ok = ?TOPOLOGY:stop_all(),
    ok = ?SERVER:stop_all(),
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% TLS that works
%%--------------------------------------------------------------------

tls_with_certificates_of_both_sides(Config) ->
    Tls = (tls(Config))#{auth_clients => yes},
    each_topology(fun(Type) ->
        {Settings, Servers} = start_servers(Type, #{tls => Tls, sentinel_tls => Tls}),
        start(Settings),
        use(),
        %% Nothing of it went over a plain connection.
        [?assertEqual(0, ?SERVER:plain_port(Server)) || Server <- Servers]
    end).

another_name_than_the_hosts(Config) ->
    Tls = server_shows(Config, other_host),
    each_topology(fun(Type) ->
        {Settings, _} = start_servers(Type, #{tls => Tls, sentinel_tls => Tls}),
        start(with_ssl(Settings, #{server_name_indication => <<"redis.example">>})),
        use()
    end).

%% Nobody checks the certificate, and status/0 says so.
whoever_asks_for_no_proof_gets_none(Config) ->
    Tls = server_shows(Config, expired),
    {Settings, _} = start_servers(single, #{tls => Tls}),
    start(with_ssl(Settings, #{cacertfile => <<>>, verify => verify_none})),
    use(),
    #{warnings := Warnings} = emqx_redis_storage:status(),
    ?assert(lists:member(unverified, [Kind || #{kind := Kind} <- Warnings])).

%%--------------------------------------------------------------------
%% TLS that fails
%%--------------------------------------------------------------------

failures_are_told_apart(Config) ->
    Good = tls(Config),
    Refusing = Good#{auth_clients => yes},
    fails(single, #{tls => Good}, #{cacertfile => other_ca(Config)}, unknown_ca, <<"redis.ssl.cacertfile">>),
    OtherHost = server_shows(Config, other_host),
    fails(single, #{tls => OtherHost}, #{}, wrong_host, <<"redis.ssl.server_name_indication">>),
    fails(single, #{tls => server_shows(Config, expired)}, #{}, expired, <<"expired">>),
    None = #{certfile => <<>>, keyfile => <<>>},
    fails(single, #{tls => Refusing}, None, client_certificate_required, <<"redis.ssl.certfile">>),
    Bad = shows(Config, expired),
    fails(single, #{tls => Refusing}, Bad, client_certificate_refused, <<"redis.ssl.certfile">>),
    Enabled = #{enable => true, cacertfile => ca(Config)},
    fails(single, #{}, Enabled, not_tls, <<"redis.ssl.enable">>).

failures_of_sentinels_are_told_apart(Config) ->
    Good = tls(Config),
    Fails = fun(Tls, Ssl, Kind, Word) -> fails(sentinel, #{sentinel_tls => Tls}, Ssl, Kind, Word) end,
    Fails(Good, #{cacertfile => other_ca(Config)}, unknown_ca, <<"redis.sentinel_ssl.cacertfile">>),
    None = #{certfile => <<>>, keyfile => <<>>},
    Required = <<"redis.sentinel_ssl.certfile">>,
    Fails(Good#{auth_clients => yes}, None, client_certificate_required, Required).

failures_of_a_cluster_are_told_apart(Config) ->
    Tls = tls(Config),
    fails(cluster, #{tls => Tls}, #{cacertfile => other_ca(Config)}, unknown_ca, <<"redis.ssl.cacertfile">>),
    None = #{certfile => <<>>, keyfile => <<>>},
    Refusing = #{tls => Tls#{auth_clients => yes}},
    fails(cluster, Refusing, None, client_certificate_required, <<"redis.ssl.certfile">>).

%% With what the client is told to do otherwise it is no connection, for this reason and with this word
%% in its text; in status/0 as in errors.
fails(Type, Options, Ssl, Kind, Word) ->
    {Settings, _} = start_servers(Type, Options),
    Away = with_redis(with_ssl(Settings, Ssl), #{outage_grace => <<"300ms">>}),
    ok = emqx_redis_storage:start(Away),
    ?HELPERS:wait_until(fun() -> is_tuple(why()) end, ?TIMEOUT),
    {tls, IsKind, Text} = Why = why(),
    ct:pal("~p: ~ts", [IsKind, Text]),
    ?assertEqual(Kind, IsKind),
    ?assertNotEqual({nomatch, Text}, {string:find(Text, Word), Text}),
    ?assertEqual({error, {unavailable, Why}}, emqx_redis_session:save_session(<<"c">>, x)),
    stop_servers(Type).

%%--------------------------------------------------------------------
%% Logins
%%--------------------------------------------------------------------

users(_Config) ->
    each_topology(fun(Type) ->
        {Settings, Servers} = start_servers(Type, logins()),
        start(Settings),
        use(),
        %% A connection that was closed logs in again.
        Connects = counter(connects),
        kill_clients(Servers),
        ?HELPERS:wait_until(fun() -> counter(connects) > Connects end, ?TIMEOUT),
        use()
    end).

tls_and_users_together(Config) ->
    Tls = (tls(Config))#{auth_clients => yes},
    each_topology(fun(Type) ->
        {Settings, _} = start_servers(Type, (logins())#{tls => Tls, sentinel_tls => Tls}),
        start(Settings),
        use()
    end).

a_password_that_changes(_Config) ->
    {Settings, [Server]} = start_servers(single, #{password => <<"old">>}),
    start(Settings),
    Connection = ?SERVER:connect(Server),
    Set = ["CONFIG", "SET", "requirepass", "new"],
    changes(Settings, fun() -> <<"OK">> = emqx_redis_test_client:command(Connection, Set) end),
    %% Whoever comes now needs the new one.
    Kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"],
    reconnects(fun() -> emqx_redis_test_client:command(Connection, Kill) end),
    emqx_redis_test_client:close(Connection).

a_users_password_that_changes(_Config) ->
    each_topology(fun(Type) ->
        {Settings, Servers} = start_servers(Type, (logins())#{sentinel_password => <<"old">>}),
        start(Settings),
        Connections = [?SERVER:connect(Server) || Server <- Servers],
        All = fun(Command) ->
            [emqx_redis_test_client:command(Connection, Command) || Connection <- Connections]
        end,
        changes(Settings, fun() ->
            ?assertEqual([<<"OK">>], lists:usort(All(["ACL", "SETUSER", "emqx", "resetpass", ">new"])))
        end),
        reconnects(fun() -> All(["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]) end),
        lists:foreach(fun emqx_redis_test_client:close/1, Connections)
    end).

%% The password is changed at the servers, then in the configuration, while requests are in flight: none
%% of them notices.
changes(Settings, Change) ->
    Load = ?LOAD:start(4, fun(Writer, N) -> emqx_redis_session:save_session(client(Writer), N) end),
    Change(),
    Connects = counter(connects),
    Ids = [emqx_redis_session:save_session_async(client(N), N) || N <- lists:seq(100, 999)],
    ok = emqx_redis_storage:start(with_redis(Settings, #{password => <<"new">>})),
    Results = [emqx_redis_storage:receive_response(Id, ?TIMEOUT) || Id <- Ids],
    ?assertEqual([{reply, ok}], lists:usort(Results)),
    ?HELPERS:wait_until(fun() -> counter(connects) > Connects end, ?TIMEOUT),
    Before = ?LOAD:calls(Load),
    ?HELPERS:wait_until(fun() -> ?LOAD:calls(Load) > Before + 200 end, ?TIMEOUT),
    ?assertEqual([], [Call || Call = {_, _, Result} <- ?LOAD:stop(Load), Result =/= ok]),
    ?assertEqual({ok, 999}, emqx_redis_session:load_session(client(999))).

reconnects(Cut) ->
    Lost = counter(disconnects),
    %% Until what it cuts is what it means to: connections may just be made anew.
    ?HELPERS:wait_until(
        fun() ->
            _ = Cut(),
            counter(disconnects) > Lost
        end,
        ?TIMEOUT
    ),
    use().

%%--------------------------------------------------------------------
%% Certificates that are renewed
%%--------------------------------------------------------------------

a_clients_certificate_that_is_renewed(Config) ->
    Tls = #{cacertfile := Ca} = tls(Config),
    Folder = proplists:get_value(priv_dir, Config),
    Ours = #{certfile => filename:join(Folder, "our.crt"), keyfile => filename:join(Folder, "our.key")},
    Install = fun(Which) ->
        #{client_certfile := Certificate, client_keyfile := Key} = proplists:get_value(Which, Config),
        {ok, _} = file:copy(Certificate, maps:get(certfile, Ours)),
        {ok, _} = file:copy(Key, maps:get(keyfile, Ours))
    end,
    Install(certificates),
    {Settings, [Server]} = start_servers(single, #{tls => Tls#{auth_clients => yes}}),
    Same = with_ssl(Settings, maps:map(fun(_, File) -> iolist_to_binary(File) end, Ours)),
    start(Same),
    %% From now on the server wants one of the other authority.
    #{cacertfile := OtherCa} = proplists:get_value(renewed, Config),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "tls-ca-cert-file", OtherCa]),
    renewed(Same, fun() -> Install(renewed) end, Server),
    ?assertNotEqual(Ca, OtherCa).

an_authority_that_is_renewed(Config) ->
    Tls = #{cacertfile := Ca} = tls(Config),
    #{cacertfile := OtherCa, server_certfile := Certificate, server_keyfile := Key} =
        proplists:get_value(renewed, Config),
    Trusted = filename:join(proplists:get_value(priv_dir, Config), "trusted.crt"),
    {ok, _} = file:copy(Ca, Trusted),
    {Settings, [Server]} = start_servers(single, #{tls => Tls}),
    Same = with_ssl(Settings, #{cacertfile => iolist_to_binary(Trusted)}),
    start(Same),
    <<"OK">> = ?SERVER:cli(Server, [
        "CONFIG", "SET", "tls-cert-file", Certificate, "tls-key-file", Key
    ]),
    renewed(Same, fun() -> {ok, _} = file:copy(OtherCa, Trusted) end, Server).

%% The same map is applied once more when the files are others. Nothing that is in flight fails, and the
%% connections that are made then are made with the new files.
renewed(Same, Install, Server) ->
    Load = ?LOAD:start(4, fun(Writer, N) -> emqx_redis_session:save_session(client(Writer), N) end),
    Install(),
    Connects = counter(connects),
    ok = emqx_redis_storage:start(Same),
    ?HELPERS:wait_until(fun() -> counter(connects) >= Connects + 2 end, ?TIMEOUT),
    Before = ?LOAD:calls(Load),
    ?HELPERS:wait_until(fun() -> ?LOAD:calls(Load) > Before + 200 end, ?TIMEOUT),
    ?assertEqual([], [Call || Call = {_, _, Result} <- ?LOAD:stop(Load), Result =/= ok]),
    ?assertEqual(0, counter(connect_failures)),
    reconnects(fun() -> kill_clients([Server]) end),
    %% Nothing has changed: nothing is made anew.
    connected(),
    Made = counter(connects),
    ok = emqx_redis_storage:start(Same),
    use(),
    ?assertEqual(Made, counter(connects)).

%%--------------------------------------------------------------------
%% Secrets
%%--------------------------------------------------------------------

secrets_never_show(Config) ->
    Secrets = [<<"d4ta-s3cret">>, <<"s3ntinel-s3cret">>, <<"wr0ng-s3cret">>],
    [Data, Sentinel, Wrong] = Secrets,
    Tls = tls(Config),
    Options = #{
        user => <<"emqx">>, password => Data, sentinel_user => <<"watcher">>, sentinel_password => Sentinel,
        tls => Tls#{auth_clients => yes}, sentinel_tls => Tls
    },
    {Settings, [Server]} = start_servers(sentinel, Options),
    ok = ?LOG:start(),
    start(Settings),
    use(),
    Quick = #{outage_grace => <<"300ms">>},
    Shown = lists:append([
        shown(),
        failing(with_redis(Settings, Quick#{password => Wrong})),
        failing(with_redis(Settings, Quick#{sentinel_password => Wrong})),
        [emqx_redis_storage:start(with_redis(Settings, #{password => Wrong, pool_size => 0}))]
    ]),
    start(Settings),
    kill_clients([Server]),
    use(),
    Lines = ?LOG:stop(),
    ?assert(length(Lines) > 5),
    Text = iolist_to_binary(io_lib:format("~p ~ts", [[Shown, shown()], Lines])),
    [?assertEqual({nomatch, Secret}, {string:find(Text, Secret), Secret}) || Secret <- Secrets],
    {ok, Key} = file:read_file(maps:get(client_keyfile, Tls)),
    [_, Line | _] = binary:split(Key, <<"\n">>, [global]),
    ?assertEqual(nomatch, string:find(Text, Line)).

shown() ->
    [emqx_redis_storage:status(), emqx_redis_storage:config(), sys:get_status(emqx_redis_server)].

failing(Settings) ->
    ok = emqx_redis_storage:stop(),
    ok = emqx_redis_storage:start(Settings),
    ?HELPERS:wait_until(fun() -> is_tuple(why()) end, ?TIMEOUT),
    ?assertMatch({wrong_password, _}, why()),
    Result = emqx_redis_session:save_session(<<"c">>, x),
    ?assertMatch({error, {unavailable, {wrong_password, _}}}, Result),
    [Result | shown()].

%%--------------------------------------------------------------------
%% Internal: servers
%%--------------------------------------------------------------------

each_topology(Fun) ->
    [
        begin
            ct:pal("~p", [Type]),
            Fun(Type),
            stop_servers(Type)
        end
     || Type <- [single, sentinel, cluster]
    ].

%% As few servers as make the topology, and what the storage is started with.
start_servers(single, Options) ->
    Known = maps:with([tls, password, user], Options),
    Server = ?SERVER:start(?TOPOLOGY:data_options(Known, "", [])),
    {?SERVER:config(Server), [Server]};
start_servers(sentinel, Options) ->
    Set = ?SET:start(Options#{replicas => 0, sentinels => 1, quorum => 1}),
    {?SET:config(Set), ?SET:servers(Set)};
start_servers(cluster, Options) ->
    Known = maps:with([tls, password, user], Options),
    Cluster = ?CLUSTER:start(Known#{masters => 3, replicas => 0}),
    {?CLUSTER:config(Cluster), ?CLUSTER:nodes(Cluster)}.

stop_servers(_Type) ->
    ok = emqx_redis_storage:stop(),
    ok = ?TOPOLOGY:stop_all(),
    ok = ?SERVER:stop_all().

logins() ->
    #{
        user => <<"emqx">>, password => <<"old">>,
        sentinel_user => <<"watcher">>, sentinel_password => <<"sentinels">>
    }.

kill_clients(Servers) ->
    [?SERVER:cli(Server, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]) || Server <- Servers].

%%--------------------------------------------------------------------
%% Internal: certificates
%%--------------------------------------------------------------------

tls(Config) -> ?CERTIFICATES:server_tls(proplists:get_value(certificates, Config)).

%% The server shows another certificate than the good one.
server_shows(Config, Which) ->
    #{certfile := Certificate, keyfile := Key} = files(Config, Which),
    (tls(Config))#{certfile => Certificate, keyfile => Key}.

%% What the client shows, as the configuration has it.
shows(Config, Which) ->
    maps:map(fun(_, File) -> iolist_to_binary(File) end, files(Config, Which)).

files(Config, expired) ->
    #{expired_certfile := Certificate, expired_keyfile := Key} = proplists:get_value(certificates, Config),
    #{certfile => Certificate, keyfile => Key};
files(Config, other_host) ->
    #{other_host_certfile := Certificate, other_host_keyfile := Key} =
        proplists:get_value(certificates, Config),
    #{certfile => Certificate, keyfile => Key}.

ca(Config) -> iolist_to_binary(maps:get(cacertfile, proplists:get_value(certificates, Config))).

other_ca(Config) -> iolist_to_binary(maps:get(other_cacertfile, proplists:get_value(certificates, Config))).

%%--------------------------------------------------------------------
%% Internal: the storage
%%--------------------------------------------------------------------

start(Settings) ->
    ok = emqx_redis_storage:start(Settings),
    connected(),
    %% A server is known to be there before a test counts connections.
    ok = emqx_redis_session:save_session(<<"started">>, x).

connected() ->
    ?HELPERS:wait_until(fun() -> maps:get(connected, emqx_redis_storage:status()) end, ?TIMEOUT).

%% On every server of a cluster.
use() ->
    [
        begin
            ?assertEqual(ok, emqx_redis_session:save_session(client(N), N)),
            ?assertEqual({ok, N}, emqx_redis_session:load_session(client(N)))
        end
     || N <- lists:seq(1, 30)
    ].

with_redis(#{redis := Redis} = Settings, More) -> Settings#{redis := maps:merge(Redis, More)}.

%% Of servers and sentinels alike, as far as they are encrypted; of plain ones the servers.
with_ssl(#{redis := Redis} = Settings, Ssl) ->
    Sections =
        case maps:with([ssl, sentinel_ssl], Redis) of
            None when map_size(None) =:= 0 -> #{ssl => #{}};
            Some -> Some
        end,
    with_redis(Settings, maps:map(fun(_, Own) -> maps:merge(Own, Ssl) end, Sections)).

counter(Name) ->
    #{counters := #{Name := Count}} = emqx_redis_storage:status(),
    Count.

why() ->
    #{connections := [#{state := State} | _]} = emqx_redis_storage:status(),
    State.

client(N) -> <<"c", (integer_to_binary(N))/binary>>.
