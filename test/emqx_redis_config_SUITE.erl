%% Where the configuration comes from, how faults in it are told, and that secrets are told nowhere.
-module(emqx_redis_config_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(SERVER, emqx_redis_test_server).
-define(STORAGE, emqx_redis_test_storage).
-define(SECRET, "S3cret-w0rd").

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [
        a_map_with_atoms_or_binaries,
        faults_name_path_found_and_expected,
        the_environment,
        a_file,
        defaults_are_shown,
        a_changed_configuration_is_applied,
        a_refused_change_changes_nothing,
        levels_of_durability_are_tuples_too,
        faulty_certificates_name_their_file,
        secrets_are_shown_nowhere,
        a_wrong_password_is_told_without_it
    ].

init_per_suite(Config) ->
    Server = ?SERVER:start(#{requirepass => <<?SECRET>>}),
    [{server, Server} | Config].

end_per_suite(Config) ->
    ?SERVER:stop(server(Config)).

end_per_testcase(_Case, _Config) ->
    ok = emqx_redis_storage:stop(),
    [application:unset_env(emqx_redis_storage, Key) || Key <- [redis_storage, config_file]],
    [] = emqx_redis_test_helpers:stray_messages(20),
    ok.

a_map_with_atoms_or_binaries(Config) ->
    Servers = ?SERVER:servers(server(Config)),
    [
        begin
            ok = emqx_redis_storage:start(Map),
            ?STORAGE:wait_connected(),
            ?assertEqual({ok, <<"PONG">>}, emqx_redis_pool:query(["PING"])),
            ?assertEqual(ok, emqx_redis_storage:start(Map)),
            ok = emqx_redis_storage:stop()
        end
     || Map <- [
            #{redis => #{type => single, servers => Servers, password => <<?SECRET>>}},
            #{redis => #{servers => Servers, password => ?SECRET}},
            #{<<"redis">> => #{<<"servers">> => Servers, <<"password">> => <<?SECRET>>}},
            #{redis => #{servers => binary_to_list(Servers), password => <<?SECRET>>, database => 3}}
        ]
    ].

faults_name_path_found_and_expected(_Config) ->
    [
        begin
            {error, {invalid_config, [Fault]}} = emqx_redis_storage:start(Map),
            ?assertMatch(#{path := Path, found := _, expected := _}, Fault),
            ?assertEqual(#{running => false}, emqx_redis_storage:status())
        end
     || {Path, Map} <- [
            {<<"redis.typ">>, #{redis => #{typ => single}}},
            {<<"redis.type">>, #{redis => #{type => triple}}},
            {<<"redis.servers">>, #{redis => #{servers => 6379}}},
            {<<"redis.database">>, #{redis => #{database => -1}}},
            {<<"redis.pool_size">>, #{redis => #{pool_size => <<"many">>}}},
            {<<"redis.connect_timeout">>, #{redis => #{connect_timeout => <<"5 parsecs">>}}},
            {<<"redis.sentinel_password">>, #{redis => #{sentinel_username => <<"watcher">>}}},
            {<<"redis.ssl.verify">>, #{redis => #{ssl => #{verify => true}}}},
            {<<"redis.sentinel_ssl.enable">>, #{redis => #{sentinel_ssl => #{enable => maybe_}}}},
            {<<"persistence.session_ttl">>, #{persistence => #{session_ttl => 0}}},
            {<<"persistence.durability">>, #{persistence => #{durability => {replicas, 0}}}},
            {<<"persistence.durability">>, #{persistence => #{durability => {aof, 1, 0, 0}}}},
            {<<"persistence.durability">>, #{
                persistence => #{durability => {aof, 1, 0}, aof_enabled => false}
            }},
            {<<"persistence.message_index">>, #{persistence => #{message_index => maybe_}}},
            {<<"limits.max_inflight">>, #{limits => #{max_inflight => 0}}},
            {<<"key_prefix">>, #{key_prefix => 1}},
            {<<"nonsense">>, #{nonsense => #{}}}
        ]
    ],
    Two = #{redis => #{a => 1}, persistence => #{b => 2}},
    {error, {invalid_config, Faults}} = emqx_redis_storage:start(Two),
    ?assertEqual([<<"persistence.b">>, <<"redis.a">>], lists:sort([Path || #{path := Path} <- Faults])),
    [?assertError(badarg, emqx_redis_storage:start(Bad)) || Bad <- [[], undefined, <<"redis {}">>]].

the_environment(Config) ->
    Map = ?SERVER:config(server(Config)),
    ok = application:set_env(emqx_redis_storage, redis_storage, Map#{key_prefix => <<"e:">>}),
    ok = emqx_redis_storage:start(),
    ?assertMatch(#{key_prefix := <<"e:">>}, emqx_redis_storage:config()),
    ok = emqx_redis_storage:stop(),
    {ok, _} = application:ensure_all_started(emqx_redis_storage),
    ?STORAGE:wait_connected(),
    ok = emqx_redis_storage:stop(),
    ok = application:set_env(emqx_redis_storage, redis_storage, #{redis => #{port => 1}}),
    ?assertMatch({error, {invalid_config, [#{path := <<"redis.port">>}]}}, emqx_redis_storage:start()).

a_file(Config) ->
    File = filename:join(proplists:get_value(priv_dir, Config), "storage.hocon"),
    Text = [
        "# comment\nredis_storage {\n  redis { servers = \"", ?SERVER:servers(server(Config)), "\"\n",
        "    password = \"" ?SECRET "\" }\n  persistence.session_ttl = 90m\n}\n"
    ],
    ok = file:write_file(File, Text),
    ok = application:set_env(emqx_redis_storage, config_file, File),
    ok = emqx_redis_storage:start(),
    ?STORAGE:wait_connected(),
    ok = emqx_redis_session:save_session(<<"c">>, 1),
    {ok, Left} = emqx_redis_pool:query(["TTL", "session:c"]),
    ?assert(Left > 5390 andalso Left =< 5400),
    ok = emqx_redis_storage:stop(),
    ok = application:set_env(emqx_redis_storage, config_file, File ++ ".none"),
    ?assertMatch({error, {invalid_config, [#{expected := _}]}}, emqx_redis_storage:start()).

defaults_are_shown(Config) ->
    ok = emqx_redis_storage:start(?SERVER:config(server(Config))),
    Shown = emqx_redis_storage:config(),
    #{redis := #{type := _, database := 0, pool_size := _}, persistence := #{session_ttl := _}} = Shown,
    %% What is shown can be given again, but for the password.
    #{redis := Redis} = Shown,
    ?assertEqual(ok, emqx_redis_storage:start(Shown#{redis := Redis#{password => <<?SECRET>>}})),
    ?assertEqual(Shown, emqx_redis_storage:config()).

a_changed_configuration_is_applied(Config) ->
    Map = ?SERVER:config(server(Config)),
    ok = emqx_redis_storage:start(Map),
    Requests = [emqx_redis_session:save_session_async(<<N:32>>, N) || N <- lists:seq(1, 2000)],
    ok = emqx_redis_storage:start(Map#{persistence => #{session_ttl => 77}}),
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(R, 5000)) || R <- Requests],
    ok = emqx_redis_session:save_session(<<"c">>, 1),
    {ok, Left} = emqx_redis_pool:query(["TTL", "session:c"]),
    ?assert(Left =< 77).

a_refused_change_changes_nothing(Config) ->
    Map = ?SERVER:config(server(Config)),
    ok = emqx_redis_storage:start(Map),
    Before = emqx_redis_storage:config(),
    Faulty = Map#{limits => #{max_inflight => x}},
    ?assertMatch({error, {invalid_config, _}}, emqx_redis_storage:start(Faulty)),
    ?assertEqual(Before, emqx_redis_storage:config()),
    ?assertEqual({ok, <<"PONG">>}, emqx_redis_pool:query(["PING"])).

levels_of_durability_are_tuples_too(Config) ->
    Map = ?SERVER:config(server(Config)),
    [
        begin
            ok = emqx_redis_storage:start(Map#{persistence => #{durability => Level}}),
            ?assertMatch(#{persistence := #{durability := Shown}}, emqx_redis_storage:config()),
            ok = emqx_redis_storage:stop()
        end
     || {Level, Shown} <- [
            {none, <<"none">>},
            {{replicas, 2}, <<"replicas:2">>},
            {{aof, 1, 0}, <<"aof:1:0">>},
            {<<"aof:0:1">>, <<"aof:0:1">>}
        ]
    ].

faulty_certificates_name_their_file(Config) ->
    File = list_to_binary(filename:join(proplists:get_value(priv_dir, Config), "no.pem")),
    ok = file:write_file(File, ?SECRET),
    Ssl = #{enable => true, cacertfile => File, certfile => File, keyfile => <<"/nonexistent.pem">>},
    {error, {invalid_config, Faults}} = Error = emqx_redis_storage:start(#{redis => #{ssl => Ssl}}),
    ?assertEqual(
        [{<<"redis.ssl.cacertfile">>, bad_value}, {<<"redis.ssl.keyfile">>, unreadable}],
        lists:sort([{Path, Kind} || #{path := Path, kind := Kind} <- Faults])
    ),
    [?assertNotEqual(nomatch, string:find(Found, ".pem\"")) || #{found := Found} <- Faults],
    ?assertEqual(nomatch, string:find(io_lib:format("~p", [Error]), ?SECRET)).

secrets_are_shown_nowhere(Config) ->
    Map = ?SERVER:config(server(Config)),
    Told = told(fun() ->
        ok = emqx_redis_storage:start(Map),
        ?STORAGE:wait_connected(),
        Seen = [
            emqx_redis_storage:status(),
            emqx_redis_storage:config(),
            sys:get_status(emqx_redis_server),
            sys:get_state(emqx_redis_server),
            supervisor:get_childspec(emqx_redis_storage_sup, emqx_redis_server),
            process_info(whereis(emqx_redis_server)),
            process_info(whereis(emqx_redis_storage_sup), dictionary),
            application:get_all_env(emqx_redis_storage),
            catch emqx_redis_server:start_link({map, Map}),
            emqx_redis_storage:start(Map#{redis => #{password => [<<?SECRET>>], servers => x}})
        ],
        Killed = whereis(emqx_redis_server),
        exit(Killed, kill),
        emqx_redis_test_helpers:wait_until(fun() ->
            not lists:member(whereis(emqx_redis_server), [undefined, Killed])
        end),
        ?STORAGE:wait_connected(),
        %% A crash with a report of the process.
        Server = whereis(emqx_redis_server),
        sys:replace_state(Server, fun(_) -> broken end),
        Server ! anything,
        emqx_redis_test_helpers:wait_until(fun() ->
            not lists:member(whereis(emqx_redis_server), [undefined, Server])
        end),
        ?STORAGE:wait_connected(),
        Seen
    end),
    ?assertEqual(nomatch, string:find(io_lib:format("~p", [Told]), ?SECRET)).

a_wrong_password_is_told_without_it(Config) ->
    #{redis := Redis} = Map = ?SERVER:config(server(Config)),
    Wrong = Map#{redis := Redis#{password => <<"wr0ng-" ?SECRET>>, outage_grace => <<"100ms">>}},
    Told = told(fun() ->
        ok = emqx_redis_storage:start(Wrong),
        emqx_redis_test_helpers:wait_until(fun() ->
            element(1, element(2, emqx_redis_pool:query(["PING"]))) =:= unavailable
        end),
        {Error, Status} = {emqx_redis_session:save_session(<<"c">>, 1), emqx_redis_storage:status()},
        ?assertMatch({error, {unavailable, {wrong_password, _}}}, Error),
        ?assertMatch(#{connected := false}, Status),
        [Error, Status]
    end),
    ?assertEqual(nomatch, string:find(io_lib:format("~p", [Told]), ?SECRET)).

%% Internal

server(Config) -> proplists:get_value(server, Config).

%% What Fun answers, and every log event meanwhile, as it would be printed.
told(Fun) ->
    #{level := Level} = logger:get_primary_config(),
    Parent = self(),
    Collector = spawn_link(fun() -> collect([]) end),
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => Collector}),
    ok = logger:set_primary_config(level, all),
    try
        Result = Fun(),
        Collector ! {give, Parent},
        receive {events, Events} -> {Result, Events} end
    after
        logger:set_primary_config(level, Level),
        logger:remove_handler(?MODULE)
    end.

collect(Events) ->
    receive
        {event, Event} -> collect([Event | Events]);
        {give, To} -> To ! {events, Events}
    end.

%% A handler of logger.
log(Event, #{config := Collector}) ->
    Collector ! {event, {Event, logger_formatter:format(Event, #{})}}.
