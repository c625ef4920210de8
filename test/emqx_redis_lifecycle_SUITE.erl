%% Starting, stopping, reloading, changing the configuration, dying: nothing is lost, nothing is left.
-module(emqx_redis_lifecycle_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(HELPERS, emqx_redis_test_helpers).

suite() ->
    [{timetrap, {seconds, 180}}].

all() ->
    [
        a_hundred_starts_and_stops_under_load,
        reloading_the_library_under_load,
        large_requests_survive_stops,
        what_waits_is_answered_when_it_stops,
        calls_after_the_stop,
        in_embedded_mode,
        outside_the_application,
        disabled_and_enabled,
        started_and_stopped_by_many,
        a_killed_owner_is_replaced,
        a_killed_owner_outside_the_application,
        starting_is_swift_though_redis_is_away,
        another_server_loses_no_request,
        what_can_not_change_is_refused,
        an_invalid_change_changes_nothing,
        events_arrive_in_logger,
        a_flood_of_events_is_limited,
        no_password_is_seen
    ].

init_per_suite(Config) ->
    [{server, ?SERVER:start(#{tcp => true, requirepass => secret()})} | Config].

end_per_suite(Config) ->
    ?SERVER:stop(proplists:get_value(server, Config)).

end_per_testcase(_Case, Config) ->
    _ = emqx_redis_storage:stop(),
    Server = server(Config),
    ?SERVER:is_alive(Server) orelse ?SERVER:restart(Server),
    ?SERVER:resume(Server),
    [?SERVER:stop(Other) || Other <- ?SERVER:running(), Other =/= Server],
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% Again and again
%%--------------------------------------------------------------------

a_hundred_starts_and_stops_under_load(Config) ->
    nothing_grows(Config, fun() -> ok end).

%% As EMQX does with a plugin.
reloading_the_library_under_load(Config) ->
    nothing_grows(Config, fun() ->
        Modules = [emqx_redis_nif, emqx_redis_request, emqx_redis_session, emqx_redis_storage],
        [
            begin
                _ = code:purge(Module),
                {module, Module} = code:load_file(Module)
            end
         || Module <- Modules
        ]
    end).

nothing_grows(Config, Between) ->
    Callers = [spawn_link(fun() -> call_on(N) end) || N <- lists:seq(1, 4)],
    Cycle = fun() ->
        ok = start(Config),
        await_connected(),
        ok = emqx_redis_session:save_session(<<"c">>, x),
        timer:sleep(5),
        ok = emqx_redis_storage:stop(),
        Between()
    end,
    [Cycle() || _ <- lists:seq(1, 10)],
    %% Whatever is loaded and learnt once.
    _ = counts(),
    Before = counts(),
    [Cycle() || _ <- lists:seq(1, 100)],
    After = counts(),
    ct:pal("~p~n~p", [Before, After]),
    Answered = [stop_caller(Caller) || Caller <- Callers],
    ct:pal("~p calls meanwhile", [Answered]),
    [
        ?assert(maps:get(Key, After) =< maps:get(Key, Before) + Most, {Key, Before, After})
     || {Key, Most} <- [
            {threads, 1}, {files, 3}, {atoms, 30}, {processes, 3}, {ets, 1}, {beam_kb, 2048}, {rss_kb, 16384}
        ]
    ].

counts() ->
    %% A helper thread that has nothing to do ends after a second.
    timer:sleep(1500),
    [erlang:garbage_collect(Pid) || Pid <- processes()],
    #{
        threads => ?HELPERS:thread_count(),
        files => ?HELPERS:open_file_count(),
        atoms => ?HELPERS:atom_count(),
        processes => ?HELPERS:process_count(),
        ets => length(ets:all()),
        beam_kb => erlang:memory(total) div 1024,
        rss_kb => ?HELPERS:memory_kb()
    }.

%% Calls whatever happens; the only errors are those of a storage that is stopped or not connected yet.
call_on(N) ->
    call_on(<<"caller", N>>, 0).

call_on(Client, Count) ->
    receive
        {stop, From} -> From ! {self(), Count}
    after 0 ->
        Results = [
            emqx_redis_session:save_session(Client, Count),
            emqx_redis_session:load_session(Client),
            receive_now(emqx_redis_session:save_session_async(Client, Count))
        ],
        [
            case Result of
                ok -> ok;
                {ok, _} -> ok;
                {error, not_found} -> ok;
                {error, stopped} -> timer:sleep(1);
                {error, {unknown, stopped}} -> ok
            end
         || Result <- Results
        ],
        receive
            {emqx_redis_reply, _, _} = Stray -> exit(Stray)
        after 0 -> ok
        end,
        call_on(Client, Count + 1)
    end.

receive_now(Id) ->
    {reply, Result} = emqx_redis_storage:receive_response(Id, 10000),
    Result.

stop_caller(Caller) ->
    Caller ! {stop, self()},
    receive
        {Caller, Count} -> Count
    end.

%% A caller may be within the library, on a dirty scheduler, when the module is purged.
large_requests_survive_stops(Config) ->
    Large = lists:seq(1, 300000),
    Callers = [
        spawn_link(fun() -> call_large(<<"large", N>>, Large, 0) end)
     || N <- [1, 2]
    ],
    [
        begin
            ok = start(Config),
            await_connected(),
            timer:sleep(rand:uniform(50)),
            ok = emqx_redis_storage:stop()
        end
     || _ <- lists:seq(1, 30)
    ],
    ct:pal("~p large calls", [[stop_caller(Caller) || Caller <- Callers]]).

call_large(Client, Large, Count) ->
    receive
        {stop, From} -> From ! {self(), Count}
    after 0 ->
        case emqx_redis_session:save_session(Client, Large) of
            ok -> ok;
            {error, stopped} -> timer:sleep(1);
            {error, {unknown, stopped}} -> ok
        end,
        call_large(Client, Large, Count + 1)
    end.

%%--------------------------------------------------------------------
%% Stopped
%%--------------------------------------------------------------------

what_waits_is_answered_when_it_stops(Config) ->
    ok = start(Config),
    await_connected(),
    ok = ?SERVER:pause(server(Config)),
    Sent = [emqx_redis_session:save_session_async(<<"c">>, N) || N <- lists:seq(1, 10)],
    timer:sleep(50),
    {Micros, ok} = timer:tc(fun() -> emqx_redis_storage:stop() end),
    ?assert(Micros < 2000000, Micros),
    ?assertEqual(
        [{reply, {error, {unknown, stopped}}}],
        lists:usort([emqx_redis_storage:receive_response(Id, 0) || Id <- Sent])
    ),
    ok = ?SERVER:resume(server(Config)),
    %% What was never sent has not happened.
    ok = emqx_redis_storage:start(#{redis => #{servers => <<"unix:///nowhere/redis.sock">>}}),
    Waiting = [emqx_redis_session:save_session_async(<<"c">>, N) || N <- lists:seq(1, 10)],
    ok = emqx_redis_storage:stop(),
    ?assertEqual(
        [{reply, {error, stopped}}],
        lists:usort([emqx_redis_storage:receive_response(Id, 0) || Id <- Waiting])
    ).

calls_after_the_stop(Config) ->
    ok = start(Config),
    Id = emqx_redis_session:save_session_async(<<"c">>, x),
    {reply, _} = emqx_redis_storage:receive_response(Id, 5000),
    ok = emqx_redis_storage:stop(),
    ok = emqx_redis_storage:stop(),
    ?assertEqual({error, stopped}, emqx_redis_session:save_session(<<"c">>, x)),
    ?assertEqual({error, stopped}, emqx_redis_session:save_session(<<"c">>, lists:seq(1, 100000))),
    ?assertEqual({error, stopped}, emqx_redis_pool:query(["PING"])),
    Late = emqx_redis_session:load_session_async(<<"c">>),
    ?assertEqual({reply, {error, stopped}}, emqx_redis_storage:receive_response(Late, 0)),
    ?assertEqual(#{running => false}, emqx_redis_storage:status()),
    ?assertEqual(#{}, emqx_redis_storage:config()),
    ?assertEqual([], ?HELPERS:flush()).

%% A release runs in embedded mode, where modules are not loaded when they are called.
in_embedded_mode(Config) ->
    Code = io_lib:format(
        "[{module, _} = code:load_file(M) || M <- ~p],"
        "Start = fun() -> ok = emqx_redis_storage:start(~p) end,"
        "Start(), Wait = fun W() -> case emqx_redis_storage:status() of #{connected := true} -> ok; "
        "_ -> timer:sleep(10), W() end end, Wait(),"
        "ok = emqx_redis_session:save_session(<<\"c\">>, 1), ok = emqx_redis_storage:stop(),"
        "{error, stopped} = emqx_redis_session:save_session(<<\"c\">>, 1),"
        "#{running := false} = emqx_redis_storage:status(),"
        "Start(), Wait(), {ok, 1} = emqx_redis_session:load_session(<<\"c\">>),"
        "ok = emqx_redis_storage:stop(), io:format(\"done~~n\"), halt(0).",
        [modules(), ?SERVER:config(server(Config))]
    ),
    Port = open_port({spawn_executable, os:find_executable("erl")}, [
        {args, [
            "-mode", "embedded", "-noinput", "-kernel", "logger_level", "error",
            "-pa", filename:dirname(code:which(emqx_redis_nif)), "-eval", Code
        ]},
        exit_status,
        stderr_to_stdout,
        binary
    ]),
    {Status, Output} = await_exit(Port, <<>>),
    ?assertEqual({0, <<"done\n">>}, {Status, Output}).

modules() ->
    {ok, Modules} = application:get_key(emqx_redis_storage, modules),
    Modules.

await_exit(Port, Output) ->
    receive
        {Port, {data, Data}} -> await_exit(Port, <<Output/binary, Data/binary>>);
        {Port, {exit_status, Status}} -> {Status, Output}
    after 30000 ->
        {no_exit, Output}
    end.

%%--------------------------------------------------------------------
%% The owner
%%--------------------------------------------------------------------

outside_the_application(Config) ->
    #{redis := Redis} = ?SERVER:config(server(Config)),
    Threads = ?HELPERS:thread_count(),
    [
        begin
            {ok, Pid} = emqx_redis_pool:start_link((maps:remove(type, Redis))#{redis_type => single}),
            ?assertEqual({error, {already_started, Pid}}, emqx_redis_pool:start_link(Redis)),
            await_connected(),
            ?assertEqual({ok, <<"PONG">>}, emqx_redis_pool:query(["PING"])),
            ok = emqx_redis_pool:stop(),
            ?assertEqual({error, stopped}, emqx_redis_pool:query(["PING"]))
        end
     || _ <- lists:seq(1, 10)
    ],
    ok = emqx_redis_pool:stop(),
    ?HELPERS:wait_until(fun() -> ?HELPERS:thread_count() =< Threads + 2 end),
    ?assertMatch({error, {invalid_config, [_ | _]}}, emqx_redis_pool:start_link(#{servers => 7})).

disabled_and_enabled(Config) ->
    Redis = ?SERVER:config(server(Config)),
    ok = emqx_redis_storage:start(Redis#{enable => false}),
    ?assertEqual({error, stopped}, emqx_redis_session:load_session(<<"c">>)),
    ok = emqx_redis_storage:start(Redis),
    await_connected(),
    ok = emqx_redis_session:save_session(<<"c">>, x).

%% Whoever comes second is told so, or finds it running; nobody crashes.
started_and_stopped_by_many(Config) ->
    Redis = ?SERVER:config(server(Config)),
    Started = [
        spawn_monitor(fun() ->
            [
                begin
                    case rand:uniform(2) of
                        1 -> is_result(emqx_redis_storage:start(Redis));
                        2 -> is_result(emqx_redis_storage:stop())
                    end,
                    is_result(emqx_redis_session:save_session(<<"c">>, x)),
                    #{} = emqx_redis_storage:status()
                end
             || _ <- lists:seq(1, 30)
            ]
        end)
     || _ <- lists:seq(1, 6)
    ],
    [
        receive
            {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
        end
     || {Pid, Monitor} <- Started
    ],
    ok = emqx_redis_storage:start(Redis),
    await_connected(),
    ok = emqx_redis_session:save_session(<<"c">>, x).

is_result(ok) -> ok;
is_result({error, _}) -> ok.

a_killed_owner_is_replaced(Config) ->
    ok = start(Config),
    [
        begin
            await_connected(),
            Owner = whereis(emqx_redis_server),
            ok = ?SERVER:pause(server(Config)),
            Id = emqx_redis_session:save_session_async(<<"c">>, x),
            timer:sleep(20),
            exit(Owner, kill),
            ?assertEqual({reply, {error, {unknown, stopped}}}, emqx_redis_storage:receive_response(Id, 5000)),
            ok = ?SERVER:resume(server(Config)),
            ?HELPERS:wait_until(fun() ->
                New = whereis(emqx_redis_server),
                is_pid(New) andalso New =/= Owner
            end),
            ?HELPERS:wait_until(fun() -> emqx_redis_session:save_session(<<"c">>, y) =:= ok end)
        end
     || _ <- lists:seq(1, 3)
    ].

%% Nobody starts it anew: the engine sees that its owner is gone, and ends.
a_killed_owner_outside_the_application(Config) ->
    #{redis := Redis} = ?SERVER:config(server(Config)),
    process_flag(trap_exit, true),
    {ok, Pid} = emqx_redis_pool:start_link(Redis),
    await_connected(),
    Threads = ?HELPERS:thread_count(),
    exit(Pid, kill),
    receive
        {'EXIT', Pid, killed} -> ok
    end,
    process_flag(trap_exit, false),
    ?HELPERS:wait_until(fun() -> emqx_redis_pool:query(["PING"]) =:= {error, stopped} end),
    ?HELPERS:wait_until(fun() -> ?HELPERS:thread_count() < Threads end),
    {ok, _} = emqx_redis_pool:start_link(Redis),
    await_connected(),
    ok = emqx_redis_pool:stop().

starting_is_swift_though_redis_is_away(_Config) ->
    [
        begin
            {Micros, ok} = timer:tc(fun() -> emqx_redis_storage:start(#{redis => #{servers => Servers}}) end),
            ?assert(Micros < 1000000, {Servers, Micros}),
            ?assertMatch(#{running := true, connected := false}, emqx_redis_storage:status()),
            {StopMicros, ok} = timer:tc(fun() -> emqx_redis_storage:stop() end),
            ?assert(StopMicros < 3000000, {Servers, StopMicros})
        end
     || Servers <- [
            <<"unix:///nowhere/redis.sock">>, <<"127.0.0.1:1">>, <<"192.0.2.1:6379">>, <<"nobody.invalid:1">>
        ]
    ].

%%--------------------------------------------------------------------
%% A changed configuration
%%--------------------------------------------------------------------

another_server_loses_no_request(Config) ->
    Other = ?SERVER:start(#{tcp => true}),
    ok = start(Config),
    await_connected(),
    Callers = [spawn_link(fun() -> save_on(<<"caller", N>>, 0) end) || N <- lists:seq(1, 8)],
    [
        begin
            timer:sleep(100),
            ok = emqx_redis_storage:start(?SERVER:config(To))
        end
     || _ <- lists:seq(1, 10), To <- [Other, server(Config)]
    ],
    ok = emqx_redis_storage:start(
        maps:put(limits, #{max_inflight => 1000}, ?SERVER:config(server(Config)))
    ),
    timer:sleep(200),
    Saved = [stop_caller(Caller) || Caller <- Callers],
    ct:pal("~p saves", [Saved]),
    ?assertMatch(#{counters := #{disconnects := 0}}, emqx_redis_storage:status()),
    [?assertEqual({ok, N - 1}, load(<<"caller", I>>)) || {I, N} <- lists:zip(lists:seq(1, 8), Saved)],
    ?assertMatch(#{limits := #{max_inflight := 1000}}, emqx_redis_storage:config()).

load(Client) -> emqx_redis_session:load_session(Client).

%% Every save is answered ok, whichever server it went to.
save_on(Client, N) ->
    receive
        {stop, From} ->
            ok = emqx_redis_session:save_session(Client, N),
            From ! {self(), N + 1}
    after 0 ->
        Ids = [emqx_redis_session:save_session_async(Client, N) || _ <- lists:seq(1, 10)],
        [{reply, ok} = emqx_redis_storage:receive_response(Id, 10000) || Id <- Ids],
        save_on(Client, N + 1)
    end.

what_can_not_change_is_refused(Config) ->
    ok = start(Config),
    await_connected(),
    Before = emqx_redis_storage:config(),
    Other = maps:put(key_prefix, <<"other:">>, ?SERVER:config(server(Config))),
    ?assertMatch({error, _}, emqx_redis_storage:start(Other)),
    ?assertEqual(Before, emqx_redis_storage:config()),
    ok = emqx_redis_session:save_session(<<"c">>, x),
    %% Nor does an owner take it that is started anew.
    replace_owner(),
    ?assertEqual(Before, emqx_redis_storage:config()),
    ok = emqx_redis_session:save_session(<<"c">>, y).

an_invalid_change_changes_nothing(Config) ->
    ok = start(Config),
    await_connected(),
    Before = emqx_redis_storage:config(),
    ?assertMatch({error, {invalid_config, [_]}}, emqx_redis_storage:start(#{redis => #{database => -1}})),
    ?assertEqual(Before, emqx_redis_storage:config()),
    ok = emqx_redis_session:save_session(<<"c">>, x),
    %% What is applied when the owner is started anew is what was valid.
    replace_owner(),
    ?assertEqual(Before, emqx_redis_storage:config()),
    ok = emqx_redis_session:save_session(<<"c">>, y).

%%--------------------------------------------------------------------
%% Logs and secrets
%%--------------------------------------------------------------------

events_arrive_in_logger(Config) ->
    with_log(fun() ->
        ok = start(Config),
        await_connected(),
        ok = ?SERVER:kill(server(Config)),
        ?HELPERS:wait_until(fun() ->
            was_logged("no connection to Redis")
        end),
        Events = logged(),
        ?assertMatch([_ | _], [
            Meta
         || #{level := warning, meta := #{domain := [emqx_redis_storage]} = Meta} <- Events
        ]),
        [Report | _] = [
            Report
         || #{msg := {report, #{message := <<"no connection to Redis">>} = Report}} <- Events
        ],
        ?assertMatch(#{target := <<"emqx_redis_core::dispatch::links">>, fields := [_ | _]}, Report),
        ?assertMatch({_, _}, lists:keyfind(<<"connection">>, 1, maps:get(fields, Report)))
    end).

%% Of what a server does to us a thousand times over, some dozens a second are told, and how many were not.
a_flood_of_events_is_limited(Config) ->
    with_log(fun() ->
        ok = start(Config),
        await_connected(),
        [
            begin
                Clients = [<<"c", (integer_to_binary(I))/binary>> || I <- lists:seq(1, 500)],
                Plant = [["SET", [<<"session:">>, Client], "foreign"] || Client <- Clients],
                Connection = ?SERVER:connect(server(Config)),
                _ = emqx_redis_test_client:pipeline(Connection, Plant),
                ok = emqx_redis_test_client:close(Connection),
                Ids = [emqx_redis_session:save_session_async(Client, x) || Client <- Clients],
                [{reply, {error, {partial, _}}} = emqx_redis_storage:receive_response(Id, 5000) || Id <- Ids]
            end
         || _ <- [1, 2]
        ],
        ?HELPERS:wait_until(fun() ->
            was_logged("suppressed")
        end),
        ?assert(length(logged()) < 300, length(logged()))
    end).

no_password_is_seen(Config) ->
    with_log(fun() ->
        ok = start(Config),
        await_connected(),
        Shown = [
            emqx_redis_storage:status(),
            emqx_redis_storage:config(),
            sys:get_status(emqx_redis_server),
            sys:get_state(emqx_redis_server),
            supervisor:which_children(emqx_redis_storage_sup),
            supervisor:get_childspec(emqx_redis_storage_sup, emqx_redis_server),
            application:get_all_env(emqx_redis_storage),
            emqx_redis_session:save_session(<<"c">>, x),
            [process_info(Pid) || Pid <- [whereis(emqx_redis_server), whereis(emqx_redis_storage_sup)]]
        ],
        %% It crashes, and is told of; a misuse raises, and is told of.
        exit(whereis(emqx_redis_server), {a, crash}),
        gen_server:cast(emqx_redis_server, unknown),
        await_connected(),
        whereis(emqx_redis_server) ! emqx_redis_stopped,
        timer:sleep(300),
        Wrong = maps:merge(?SERVER:config(server(Config)), #{key_prefix => 7}),
        Invalid = emqx_redis_storage:start(Wrong),
        ?assertMatch({error, {invalid_config, _}}, Invalid),
        ok = emqx_redis_storage:start(#{redis => #{
            servers => ?SERVER:servers(server(Config)), password => <<(secret())/binary, "x">>
        }}),
        timer:sleep(300),
        ok = emqx_redis_storage:stop(),
        All = io_lib:format("~p ~p ~s", [Shown, Invalid, [texts(logged()), io_lib:format("~p", [logged()])]]),
        ?assertEqual(nomatch, string:find(All, secret())),
        ?assert(length(logged()) > 3)
    end).

with_log(Fun) ->
    true = register(log_collector, self()),
    _ = ets:new(log_collector, [named_table, public, ordered_set]),
    ok = logger:add_handler(?MODULE, ?MODULE, #{level => debug}),
    #{level := Level} = logger:get_primary_config(),
    ok = logger:set_primary_config(level, debug),
    try
        Fun()
    after
        ok = logger:set_primary_config(level, Level),
        ok = logger:remove_handler(?MODULE),
        true = ets:delete(log_collector),
        unregister(log_collector)
    end.

%% A handler of logger's.
log(Event, _Config) ->
    catch ets:insert(log_collector, {erlang:unique_integer([monotonic]), Event}).

logged() ->
    [Event || {_, Event} <- ets:tab2list(log_collector)].

was_logged(Text) ->
    lists:any(fun(Line) -> string:find(Line, Text) =/= nomatch end, texts(logged())).

texts(Events) ->
    [unicode:characters_to_binary(logger_formatter:format(Event, #{})) || Event <- Events].

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

%% Kills the owner and waits until its successor has an engine that is connected.
replace_owner() ->
    Owner = whereis(emqx_redis_server),
    exit(Owner, kill),
    ?HELPERS:wait_until(fun() ->
        New = whereis(emqx_redis_server),
        is_pid(New) andalso New =/= Owner
    end),
    running = sys:get_state(emqx_redis_server),
    await_connected().

secret() -> <<"s3cr3t-pa55word">>.

server(Config) -> proplists:get_value(server, Config).

start(Config) -> emqx_redis_storage:start(?SERVER:config(server(Config))).

await_connected() ->
    ?HELPERS:wait_until(fun() ->
        case emqx_redis_storage:status() of
            #{connected := Connected} -> Connected;
            #{running := false} -> false
        end
    end).
