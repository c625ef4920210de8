%% What about a server puts data at risk is told: in status/0 as long as it holds, and once in the log.
-module(emqx_redis_warnings_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(LOG, emqx_redis_test_log).
-define(HELPERS, emqx_redis_test_helpers).
-define(TIMEOUT, 30000).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        a_server_as_it_should_be,
        no_files,
        an_evicting_policy,
        too_few_replicas,
        a_level_that_the_server_does_not_know,
        a_server_that_nobody_verifies,
        a_replica,
        a_snapshot_that_failed,
        once_in_the_log,
        other_settings
    ].

end_per_testcase(_Case, _Config) ->
    _ = emqx_redis_storage:stop(),
    ok = ?SERVER:stop_all(),
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% Each kind
%%--------------------------------------------------------------------

a_server_as_it_should_be(_Config) ->
    start(good_server(#{}), #{}),
    ?assertEqual([], warnings()).

%% What is not expected is not missed.
no_files(_Config) ->
    Server = ?SERVER:start(),
    start(Server, #{}),
    ?assertEqual([no_aof, no_rdb], kinds()),
    [
        ?assertMatch(
            {#{kind := _, server := _, text := <<_, _/binary>>}, 3, true},
            {Warning, map_size(Warning), maps:get(server, Warning) =:= ?SERVER:servers(Server)}
        )
     || Warning <- warnings()
    ],
    start(Server, #{rdb_enabled => false}),
    ?assertEqual([no_aof], kinds()),
    start(Server, #{aof_enabled => false}),
    ?assertEqual([no_rdb], kinds()),
    start(Server, #{rdb_enabled => false, aof_enabled => false}),
    ?assertEqual([], kinds()).

an_evicting_policy(_Config) ->
    start(good_server(#{args => ["--maxmemory-policy", "allkeys-lru"]}), #{}),
    ?assertEqual([evicting_policy], kinds()),
    [#{text := Text}] = warnings(),
    ?assertNotEqual(nomatch, string:find(Text, <<"allkeys-lru">>)).

%% Who comes and goes is noticed without a new connection.
too_few_replicas(_Config) ->
    Server = good_server(#{}),
    start(Server, #{durability => {replicas, 1}}),
    ?assertEqual([few_replicas], kinds()),
    Args = ["--replicaof", "127.0.0.1", integer_to_list(?SERVER:port(Server))],
    Replica = ?SERVER:start(#{args => Args}),
    ?HELPERS:wait_until(fun() -> kinds() =:= [] end, ?TIMEOUT),
    ok = ?SERVER:kill(Replica),
    ?HELPERS:wait_until(fun() -> kinds() =:= [few_replicas] end, ?TIMEOUT),
    start(Server, #{}),
    ?assertEqual([], kinds()).

%% Of Redis 7.2 and later, a server that does not write what is waited for.
a_level_that_the_server_does_not_know(_Config) ->
    start(?SERVER:start(), #{durability => {aof, 1, 0}, rdb_enabled => false}),
    ?assertEqual([durability_unsupported, no_aof], kinds()).

a_server_that_nobody_verifies(Config) ->
    Folder = filename:join(proplists:get_value(priv_dir, Config), "certificates"),
    Tls = emqx_redis_test_certificates:server_tls(emqx_redis_test_certificates:make(Folder)),
    Server = good_server(#{tls => Tls}),
    start(Server, #{}),
    ?assertEqual([], kinds()),
    #{redis := #{ssl := Ssl} = Redis} = ?SERVER:config(Server),
    ok = emqx_redis_storage:start(#{redis => Redis#{ssl := Ssl#{verify => verify_none}}}),
    ?HELPERS:wait_until(fun() -> kinds() =:= [unverified] end, ?TIMEOUT).

a_replica(_Config) ->
    Server = good_server(#{}),
    start(Server, #{}),
    Other = good_server(#{}),
    <<"OK">> = ?SERVER:cli(Server, ["REPLICAOF", "127.0.0.1", ?SERVER:port(Other)]),
    ?HELPERS:wait_until(fun() -> kinds() =:= [is_replica] end, ?TIMEOUT).

a_snapshot_that_failed(_Config) ->
    Server = good_server(#{}),
    %% A folder stands where the file is to be.
    ok = file:make_dir(filename:join(?SERVER:folder(Server), "dump.rdb")),
    ?assertEqual(<<"Background saving started">>, ?SERVER:cli(Server, ["BGSAVE"])),
    ?HELPERS:wait_until(
        fun() -> info(Server, "persistence", "rdb_last_bgsave_status:err") end, ?TIMEOUT
    ),
    start(Server, #{}),
    ?assertEqual([rdb_failed], kinds()).

info(Server, Section, Line) ->
    string:find(?SERVER:cli(Server, ["INFO", Section]), Line) =/= nomatch.

%%--------------------------------------------------------------------
%% The log
%%--------------------------------------------------------------------

%% Connections come and go; what was said of the server is said again only when something is new.
once_in_the_log(_Config) ->
    Server = ?SERVER:start(#{tcp => true}),
    ok = ?LOG:start(),
    start(Server, #{}),
    [reconnect(Server) || _ <- [1, 2, 3]],
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]),
    [reconnect(Server) || _ <- [1, 2, 3]],
    ?assertEqual([evicting_policy, no_aof, no_rdb], kinds()),
    Lines = ?LOG:stop(),
    [?assertEqual({Word, 1}, {Word, count(Word, Lines)}) || Word <- words([no_aof, no_rdb, evicting_policy])].

%% Nothing is made anew for these, and all the same they are told of.
other_settings(_Config) ->
    Server = good_server(#{}),
    ok = ?LOG:start(),
    start(Server, #{}),
    Count = connects(),
    start(Server, #{durability => {replicas, 2}}),
    ?HELPERS:wait_until(fun() -> count("replicas:2", ?LOG:lines()) > 0 end, ?TIMEOUT),
    start(Server, #{durability => {replicas, 2}, message_ttl => 60}),
    reconnect(Server),
    ?assertEqual(1, count("replicas:2", ?LOG:stop())),
    ?assert(connects() > Count).

reconnect(Server) ->
    Count = connects(),
    Kill = ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"],
    _ = ?SERVER:cli(Server, Kill),
    %% One for data and one for commands.
    ?HELPERS:wait_until(fun() -> connects() >= Count + 2 end, ?TIMEOUT),
    connected().

words(Kinds) -> [word(Kind) || Kind <- Kinds].

word(no_aof) -> "append-only";
word(no_rdb) -> "no RDB snapshots";
word(evicting_policy) -> "allkeys-lru".

count(Word, Lines) -> length([Line || Line <- Lines, string:find(Line, Word) =/= nomatch]).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

%% A server that nothing is to be said about.
good_server(Options) ->
    Server = ?SERVER:start(maps:merge(#{tcp => true, appendonly => true}, Options)),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "save", "3600 1"]),
    Server.

start(Server, Persistence) ->
    #{redis := Redis} = ?SERVER:config(Server),
    ok = emqx_redis_storage:start(#{redis => Redis, persistence => Persistence}),
    connected().

connected() ->
    ?HELPERS:wait_until(fun() -> maps:get(connected, emqx_redis_storage:status()) end, ?TIMEOUT).

connects() ->
    #{counters := #{connects := Count}} = emqx_redis_storage:status(),
    Count.

warnings() ->
    #{warnings := Warnings} = emqx_redis_storage:status(),
    Warnings.

kinds() -> lists:sort([Kind || #{kind := Kind} <- warnings()]).
