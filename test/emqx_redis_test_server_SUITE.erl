%% The tools of the other suites: private servers, the independent client, the proxy, the counters.
-module(emqx_redis_test_server_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(CLIENT, emqx_redis_test_client).
-define(PROXY, emqx_redis_test_proxy).
-define(HELPERS, emqx_redis_test_helpers).

suite() ->
    [{timetrap, {seconds, 60}}].

all() ->
    [
        Name
     || {Name, 1} <- ?MODULE:module_info(exports),
        lists:member(hd(string:split(atom_to_list(Name), "_")), ["server", "client", "proxy", "stray"])
    ].

end_per_testcase(_Case, _Config) ->
    Left = ?SERVER:running(),
    ok = ?SERVER:stop_all(),
    ?assertEqual([], Left).

server_answers_on_its_socket(_Config) ->
    Server = ?SERVER:start(),
    ?assertEqual(<<"PONG">>, ?SERVER:cli(Server, ["PING"])),
    ?assertMatch({unix, _}, ?SERVER:address(Server)),
    ?assertMatch(<<"unix:///tmp/", _/binary>>, ?SERVER:servers(Server)),
    ok = ?SERVER:stop(Server).

server_answers_on_a_free_port(_Config) ->
    Servers = [?SERVER:start(#{tcp => true}) || _ <- lists:seq(1, 3)],
    Ports = [?SERVER:port(Server) || Server <- Servers],
    ?assertEqual(3, length(lists:usort(Ports))),
    lists:foreach(
        fun(Port) ->
            Connection = ?CLIENT:connect({tcp, Port}),
            ?assertEqual(<<"PONG">>, ?CLIENT:command(Connection, ["PING"])),
            ok = ?CLIENT:close(Connection)
        end,
        Ports
    ),
    ok = ?SERVER:stop_all().

server_whose_port_is_taken_says_so(_Config) ->
    Server = ?SERVER:start(#{tcp => true}),
    Taken = ?SERVER:port(Server),
    ?assertError({redis_server, {ended, _Log}}, ?SERVER:start(#{tcp => Taken})),
    ok = ?SERVER:stop(Server).

server_leaves_nothing_behind(_Config) ->
    Server = ?SERVER:start(#{tcp => true}),
    OsPid = ?SERVER:os_pid(Server),
    Folder = ?SERVER:folder(Server),
    ok = ?SERVER:stop(Server),
    ?assertNot(filelib:is_dir(Folder)),
    ?HELPERS:wait_until(fun() -> not os_process_exists(OsPid) end).

server_ends_with_its_owner(_Config) ->
    Parent = self(),
    {Owner, Monitor} = spawn_monitor(fun() ->
        Parent ! {server, ?SERVER:start(#{owner => self()})},
        timer:sleep(infinity)
    end),
    Server = receive {server, Started} -> Started end,
    OsPid = ?SERVER:os_pid(Server),
    exit(Owner, kill),
    receive
        {'DOWN', Monitor, process, Owner, _Reason} -> ok
    end,
    ?HELPERS:wait_until(fun() -> not is_process_alive(Server) andalso not os_process_exists(OsPid) end).

%% A VM that is killed has no chance to clean up; a paused server would outlive a mere SIGTERM.
server_ends_with_a_killed_vm(_Config) ->
    Code = io_lib:format(
        "Server = ~s:start(), OsPid = ~s:os_pid(Server), Folder = ~s:folder(Server), ~s:pause(Server),"
        "io:format(\"~~b ~~s~~n\", [OsPid, Folder]), timer:sleep(infinity).",
        lists:duplicate(4, ?SERVER)
    ),
    Erl = os:find_executable("erl"),
    Path = filename:dirname(code:which(?SERVER)),
    Arguments = ["-noinput", "-pa", Path, "-eval", Code],
    Port = open_port({spawn_executable, Erl}, [{args, Arguments}, {line, 1000}]),
    {os_pid, VmPid} = erlang:port_info(Port, os_pid),
    Line =
        receive
            {Port, {data, {eol, Text}}} -> Text
        after 20000 -> error(no_server)
        end,
    [OsPidText, Folder] = string:split(Line, " "),
    OsPid = list_to_integer(OsPidText),
    ?assert(os_process_exists(OsPid)),
    [] = os:cmd("kill -9 " ++ integer_to_list(VmPid)),
    ?HELPERS:wait_until(fun() -> not os_process_exists(OsPid) andalso not filelib:is_dir(Folder) end),
    catch port_close(Port),
    ok.

server_killed_and_restarted(_Config) ->
    Server = ?SERVER:start(#{tcp => true, appendonly => true}),
    Port = ?SERVER:port(Server),
    <<"OK">> = ?SERVER:cli(Server, ["SET", "key", "value"]),
    ok = ?SERVER:kill(Server),
    ?assertNot(?SERVER:is_alive(Server)),
    ?assertError({cannot_connect, _, _}, ?SERVER:cli(Server, ["PING"])),
    ok = ?SERVER:restart(Server),
    ?assertEqual(Port, ?SERVER:port(Server)),
    ?assertEqual(<<"value">>, ?SERVER:cli(Server, ["GET", "key"])),
    ok = ?SERVER:restart(Server),
    ?assertEqual(<<"value">>, ?SERVER:cli(Server, ["GET", "key"])),
    ok = ?SERVER:stop(Server).

server_paused_answers_nothing_until_resumed(_Config) ->
    Server = ?SERVER:start(),
    Connection = ?SERVER:connect(Server),
    ok = ?SERVER:pause(Server),
    ?assert(?SERVER:is_alive(Server)),
    ?assertError({no_reply, timeout}, ?CLIENT:command(Connection, ["PING"], 200)),
    ok = ?SERVER:resume(Server),
    ?assertEqual(<<"PONG">>, ?CLIENT:receive_reply(Connection)),
    ok = ?SERVER:stop(Server).

server_paused_can_be_stopped(_Config) ->
    Server = ?SERVER:start(),
    OsPid = ?SERVER:os_pid(Server),
    ok = ?SERVER:pause(Server),
    ok = ?SERVER:stop(Server),
    ?HELPERS:wait_until(fun() -> not os_process_exists(OsPid) end).

server_with_password_and_users(_Config) ->
    Locked = ?SERVER:start(#{requirepass => <<"secret">>}),
    ?assertEqual(<<"PONG">>, ?SERVER:cli(Locked, ["PING"])),
    ?assertMatch(#{redis := #{password := <<"secret">>}}, ?SERVER:config(Locked)),
    Stranger = ?CLIENT:connect({unix, ?SERVER:socket(Locked)}),
    ?assertMatch({error, <<"NOAUTH", _/binary>>}, ?CLIENT:command(Stranger, ["PING"])),
    Users = ?SERVER:start(#{aclfile => "user default on nopass ~* &* +@all\nuser bob on >builder ~* +get\n"}),
    Bob = ?SERVER:connect(Users),
    ?assertEqual(<<"OK">>, ?CLIENT:command(Bob, ["AUTH", "bob", "builder"])),
    ?assertMatch({error, <<"NOPERM", _/binary>>}, ?CLIENT:command(Bob, ["SET", "a", "b"])),
    ok = ?SERVER:stop_all().

server_takes_limits_and_arguments(_Config) ->
    Server = ?SERVER:start(#{maxmemory => <<"10mb">>, args => ["--databases", "3"]}),
    ?assertEqual([<<"databases">>, <<"3">>], ?SERVER:cli(Server, ["CONFIG", "GET", "databases"])),
    ?assertEqual([<<"maxmemory">>, <<"10485760">>], ?SERVER:cli(Server, ["CONFIG", "GET", "maxmemory"])),
    ok = ?SERVER:stop(Server).

client_reads_every_kind_of_reply(_Config) ->
    Server = ?SERVER:start(),
    Binary = <<0, "\r\n$", 255>>,
    Long = binary:copy(<<"0123456789">>, 100000),
    ?assertEqual(<<"OK">>, ?SERVER:cli(Server, ["SET", Binary, Long])),
    ?assertEqual(Long, ?SERVER:cli(Server, ["GET", Binary])),
    ?assertEqual(undefined, ?SERVER:cli(Server, [get, nothing])),
    ?assertEqual(5, ?SERVER:cli(Server, ["INCRBY", "n", 5])),
    ?assertMatch({error, <<"ERR unknown command", _/binary>>}, ?SERVER:cli(Server, ["NO"])),
    Script = "return {1, {redis.call('GET', KEYS[1])}, false, {}}",
    ?assertEqual([1, [<<"5">>], undefined, []], ?SERVER:cli(Server, ["EVAL", Script, 1, "n"])),
    Connection = ?SERVER:connect(Server),
    ?assertEqual([6, 7], ?CLIENT:pipeline(Connection, [["INCR", "n"], ["INCR", "n"]])),
    ok = ?CLIENT:send(Connection, "PING\r\n"),
    ?assertEqual(<<"+PONG\r\n">>, ?CLIENT:receive_bytes(Connection, 1000)),
    ?assertEqual(<<>>, ?CLIENT:receive_bytes(Connection, 10)),
    ok = ?SERVER:kill(Server),
    ?assertEqual(closed, ?CLIENT:receive_bytes(Connection, 1000)),
    ok = ?SERVER:stop(Server).

proxy_forwards_and_delays(_Config) ->
    with_proxy(fun(_Server, Proxy, Connection) ->
        Value = binary:copy(<<"x">>, 3000000),
        ?assertEqual(<<"OK">>, ?CLIENT:command(Connection, ["SET", "k", Value])),
        ?assertEqual(Value, ?CLIENT:command(Connection, ["GET", "k"])),
        ok = ?PROXY:set_mode(Proxy, {delay, 100}),
        {Time, <<"PONG">>} = timer:tc(fun() -> ?CLIENT:command(Connection, ["PING"]) end),
        ?assert(Time >= 200000, Time),
        ?assert(Time < 2000000, Time)
    end).

proxy_freezes_and_thaws(_Config) ->
    with_proxy(fun(_Server, Proxy, Connection) ->
        ok = ?PROXY:set_mode(Proxy, freeze),
        ?assertError({no_reply, timeout}, ?CLIENT:command(Connection, ["INCR", "n"], 200)),
        ok = ?PROXY:set_mode(Proxy, forward),
        ?assertEqual(1, ?CLIENT:receive_reply(Connection))
    end).

proxy_loses_replies_but_not_requests(_Config) ->
    with_proxy(fun(Server, Proxy, Connection) ->
        ok = ?PROXY:set_mode(Proxy, drop_replies),
        ?assertError({no_reply, timeout}, ?CLIENT:command(Connection, ["SET", "k", "v"], 200)),
        ?assertEqual(<<"v">>, ?SERVER:cli(Server, ["GET", "k"])),
        ok = ?PROXY:set_mode(Proxy, drop_requests),
        ?assertError({no_reply, timeout}, ?CLIENT:command(Connection, ["SET", "k", "w"], 200)),
        ?assertEqual(<<"v">>, ?SERVER:cli(Server, ["GET", "k"]))
    end).

proxy_delays_and_freezes_one_direction(_Config) ->
    with_proxy(fun(Server, Proxy, Connection) ->
        ok = ?PROXY:set_mode(Proxy, {delay, replies, 200}),
        {Time, 1} = timer:tc(fun() -> ?CLIENT:command(Connection, ["INCR", "n"]) end),
        ?assert(Time >= 200000 andalso Time < 2000000, Time),
        ok = ?PROXY:set_mode(Proxy, {freeze, requests}),
        ok = ?CLIENT:send(Connection, ?CLIENT:encode(["INCR", "n"])),
        ?assertEqual(<<>>, ?CLIENT:receive_bytes(Connection, 100)),
        ?assertEqual(<<"1">>, ?SERVER:cli(Server, ["GET", "n"])),
        ok = ?PROXY:set_mode(Proxy, {freeze, replies}),
        ?HELPERS:wait_until(fun() -> ?SERVER:cli(Server, ["GET", "n"]) =:= <<"2">> end),
        ?assertEqual(<<>>, ?CLIENT:receive_bytes(Connection, 100)),
        ok = ?PROXY:set_mode(Proxy, forward),
        ?assertEqual(2, ?CLIENT:receive_reply(Connection))
    end).

%% What a client sent before its connection broke reaches Redis after what it sent over the next one.
proxy_delivers_late_what_a_broken_connection_sent(_Config) ->
    with_proxy(fun(Server, Proxy, Connection) ->
        Other = ?CLIENT:connect({tcp, ?PROXY:port(Proxy)}),
        <<"PONG">> = ?CLIENT:command(Other, ["PING"]),
        ok = ?PROXY:hold_existing(Proxy),
        ok = ?CLIENT:send(Connection, ?CLIENT:encode(["APPEND", "k", "first"])),
        ok = ?CLIENT:send(Other, ?CLIENT:encode(["APPEND", "n", binary:copy(<<"x">>, 300000)])),
        ?HELPERS:wait_until(fun() -> ?PROXY:held_bytes(Proxy) > 300000 end),
        ok = ?CLIENT:close(Connection),
        ok = ?PROXY:cut(Proxy),
        ?assertEqual(closed, ?CLIENT:receive_bytes(Other, 1000)),
        Next = ?CLIENT:connect({tcp, ?PROXY:port(Proxy)}),
        ?assertEqual(6, ?CLIENT:command(Next, ["APPEND", "k", "second"])),
        ok = ?PROXY:release(Proxy),
        ?HELPERS:wait_until(fun() -> ?SERVER:cli(Server, ["GET", "k"]) =:= <<"secondfirst">> end),
        ?HELPERS:wait_until(fun() -> ?SERVER:cli(Server, ["STRLEN", "n"]) =:= 300000 end),
        ?HELPERS:wait_until(fun() -> ?PROXY:connection_count(Proxy) =:= 1 end),
        ok = ?CLIENT:close(Next)
    end).

%% The way out: who kills the old connection on the server has nothing to fear from it.
proxy_loses_what_is_held_when_redis_closes_its_side(_Config) ->
    with_proxy(fun(Server, Proxy, Connection) ->
        Id = ?CLIENT:command(Connection, ["CLIENT", "ID"]),
        ok = ?PROXY:hold_existing(Proxy),
        ok = ?CLIENT:send(Connection, ?CLIENT:encode(["SET", "k", "late"])),
        ?HELPERS:wait_until(fun() -> ?PROXY:held_bytes(Proxy) > 0 end),
        ok = ?CLIENT:close(Connection),
        ?assertEqual(1, ?SERVER:cli(Server, ["CLIENT", "KILL", "ID", Id])),
        ?HELPERS:wait_until(fun() -> ?PROXY:connection_count(Proxy) =:= 0 end),
        ok = ?PROXY:release(Proxy),
        ?assertEqual(undefined, ?SERVER:cli(Server, ["GET", "k"]))
    end).

proxy_holds_and_releases_a_connection_that_lives_on(_Config) ->
    with_proxy(fun(Server, Proxy, Connection) ->
        ok = ?PROXY:hold_existing(Proxy),
        ok = ?CLIENT:send(Connection, ?CLIENT:encode(["INCR", "n"])),
        ?assertEqual(<<>>, ?CLIENT:receive_bytes(Connection, 100)),
        ?assertEqual(undefined, ?SERVER:cli(Server, ["GET", "n"])),
        ok = ?PROXY:release(Proxy),
        ?assertEqual(1, ?CLIENT:receive_reply(Connection)),
        ?assertEqual(2, ?CLIENT:command(Connection, ["INCR", "n"])),
        ?assertEqual(0, ?PROXY:held_bytes(Proxy)),
        ok = ?CLIENT:close(Connection),
        ?HELPERS:wait_until(fun() -> ?PROXY:connection_count(Proxy) =:= 0 end)
    end).

proxy_cuts_and_refuses(_Config) ->
    with_proxy(fun(_Server, Proxy, Connection) ->
        ?assertEqual(1, ?PROXY:connection_count(Proxy)),
        ok = ?PROXY:cut(Proxy),
        ?assertEqual(closed, ?CLIENT:receive_bytes(Connection, 1000)),
        ?assertEqual(0, ?PROXY:connection_count(Proxy)),
        Second = ?CLIENT:connect({tcp, ?PROXY:port(Proxy)}),
        ?assertEqual(<<"PONG">>, ?CLIENT:command(Second, ["PING"])),
        ok = ?PROXY:set_mode(Proxy, refuse),
        Third = ?CLIENT:connect({tcp, ?PROXY:port(Proxy)}),
        ?assertEqual(closed, ?CLIENT:receive_bytes(Third, 1000)),
        ?assertEqual(<<"PONG">>, ?CLIENT:command(Second, ["PING"])),
        ?assertEqual(3, ?PROXY:accepted_count(Proxy))
    end).

proxy_passes_the_servers_end_on(_Config) ->
    with_proxy(fun(Server, Proxy, Connection) ->
        ok = ?SERVER:kill(Server),
        ?assertEqual(closed, ?CLIENT:receive_bytes(Connection, 1000)),
        ?HELPERS:wait_until(fun() -> ?PROXY:connection_count(Proxy) =:= 0 end)
    end).

stray_messages_are_found(_Config) ->
    self() ! earlier,
    ?assertEqual(result, ?HELPERS:with_stray_check(fun() -> result end)),
    ?assertError({stray_messages, 1, [late]}, ?HELPERS:with_stray_check(fun() ->
        erlang:send_after(10, self(), late)
    end)),
    ?assertEqual([earlier], ?HELPERS:flush()),
    ?assertError({still_false_after, 20}, ?HELPERS:wait_until(fun() -> false end, 20)).

%% Internal

with_proxy(Fun) ->
    Server = ?SERVER:start(#{tcp => true}),
    Proxy = ?PROXY:start(?SERVER:address(Server)),
    Connection = ?CLIENT:connect({tcp, ?PROXY:port(Proxy)}),
    <<"PONG">> = ?CLIENT:command(Connection, ["PING"]),
    try
        Fun(Server, Proxy, Connection)
    after
        ?CLIENT:close(Connection),
        ?PROXY:stop(Proxy),
        ?SERVER:stop(Server)
    end.

os_process_exists(OsPid) ->
    filelib:is_dir(filename:join("/proc", integer_to_list(OsPid))).
