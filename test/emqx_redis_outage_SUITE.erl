%% What becomes of requests when Redis is killed, frozen, cut off, misconfigured or not there at all.
-module(emqx_redis_outage_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(PROXY, emqx_redis_test_proxy).
-define(HELPERS, emqx_redis_test_helpers).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        what_was_acknowledged_survives_kills_under_load,
        a_short_freeze_is_waited_out,
        a_long_freeze_is_a_lost_connection,
        bytes_of_a_lost_connection_undo_nothing,
        redis_away_at_the_start,
        a_black_hole_at_the_start,
        a_name_that_nobody_has,
        wrong_password,
        a_password_never_shows,
        a_user_who_may_not,
        a_server_that_loads_its_data,
        a_database_out_of_range,
        too_many_clients,
        a_server_that_speaks_http,
        a_server_that_says_nothing,
        a_server_that_drops_every_connection,
        a_newer_layout,
        a_foreign_value_at_meta,
        a_full_memory,
        a_full_memory_and_a_level_of_durability,
        a_disk_that_takes_nothing,
        too_few_replicas_to_write,
        a_server_that_became_a_replica,
        cut_in_the_middle_of_a_reply,
        cut_in_the_middle_of_a_request,
        what_lost_its_reply_is_done_again
    ].

end_per_testcase(_Case, _Config) ->
    _ = emqx_redis_storage:stop(),
    ok = ?SERVER:stop_all(),
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% Killed
%%--------------------------------------------------------------------

%% Each writer counts up, one session and one message after the other. What was answered ok is there,
%% what was answered with an error may be; nothing else is.
what_was_acknowledged_survives_kills_under_load(_Config) ->
    Server = ?SERVER:start(#{tcp => true, appendonly => true}),
    start(Server),
    Until = erlang:monotonic_time(millisecond) + 12000,
    Writers = [
        spawn_monitor(fun() -> exit({written, N, write(<<"c", N>>, 1, Until, {0, [], []})}) end)
     || N <- lists:seq(1, 16)
    ],
    [
        begin
            timer:sleep(1500),
            ok = ?SERVER:kill(Server),
            timer:sleep(Away),
            ok = ?SERVER:restart(Server)
        end
     || Away <- [0, 300, 1500, 3500]
    ],
    Written = [
        receive
            {'DOWN', Monitor, process, Pid, {written, N, Result}} -> {N, Result}
        end
     || {Pid, Monitor} <- Writers
    ],
    await_connected(),
    [
        begin
            {ok, Messages} = emqx_redis_message:get_messages(<<"c", N>>, 0, 1000000),
            Found = [Payload || #{payload := Payload} <- Messages],
            ?assertEqual([], Done -- Found),
            ?assertEqual([], Found -- (Done ++ Maybe)),
            ?assertEqual(Found, lists:sort(Found)),
            {ok, Last} = emqx_redis_session:load_session(<<"c", N>>),
            ?assert(Last >= Saved, {Last, Saved})
        end
     || {N, {Saved, Done, Maybe}} <- Written
    ],
    Done = lists:sum([length(D) || {_, {_, D, _}} <- Written]),
    Maybe = lists:sum([length(M) || {_, {_, _, M}} <- Written]),
    ct:pal("~b acknowledged, ~b unknown", [Done, Maybe]),
    ?assert(Done > 1000, Done).

%% {Last session that was acknowledged, messages that were, messages of which nobody knows}
write(Client, N, Until, {Saved, Done, Maybe} = Written) ->
    case erlang:monotonic_time(millisecond) < Until of
        false ->
            Written;
        true ->
            Message = #{id => integer_to_binary(N), timestamp => N, payload => N},
            {NowDone, NowMaybe} =
                case documented(emqx_redis_message:store_message(Client, Message)) of
                    ok -> {[N | Done], Maybe};
                    {error, {unavailable, _}} -> {Done, Maybe};
                    {error, _} -> {Done, [N | Maybe]}
                end,
            NowSaved =
                case documented(emqx_redis_session:save_session(Client, N)) of
                    ok -> N;
                    {error, _} -> Saved
                end,
            write(Client, N + 1, Until, {NowSaved, NowDone, NowMaybe})
    end.

documented(ok) -> ok;
documented({error, timeout} = Error) -> Error;
documented({error, {unknown, _}} = Error) -> Error;
documented({error, {unavailable, _}} = Error) -> timer:sleep(10), Error.

%%--------------------------------------------------------------------
%% Frozen
%%--------------------------------------------------------------------

a_short_freeze_is_waited_out(_Config) ->
    Server = ?SERVER:start(),
    start(Server),
    ok = ?SERVER:pause(Server),
    Ids = [emqx_redis_session:save_session_async(<<"c">>, N) || N <- lists:seq(1, 5000)],
    timer:sleep(2500),
    ok = ?SERVER:resume(Server),
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, 5000)) || Id <- Ids],
    ?assertEqual({ok, 5000}, emqx_redis_session:load_session(<<"c">>)),
    ?assertMatch(#{counters := #{disconnects := 0}}, emqx_redis_storage:status()).

a_long_freeze_is_a_lost_connection(_Config) ->
    Server = ?SERVER:start(),
    start(Server),
    ok = ?SERVER:pause(Server),
    {Micros, Result} = timer:tc(fun() ->
        emqx_redis_session:save_session(<<"c">>, old, #{timeout => 60000})
    end),
    %% It is lost after 5 s, and the request waits for the next one until the grace is over.
    ?assertEqual({error, {unknown, hung}}, Result),
    ?assert(Micros > 7900000 andalso Micros < 10500000, Micros),
    %% Past the grace, requests fail at once.
    ?HELPERS:wait_until(fun() ->
        {error, {unavailable, hung}} =:= emqx_redis_session:save_session(<<"c">>, x, #{timeout => 100})
    end),
    ok = ?SERVER:resume(Server),
    recovers_within(1500),
    ?assertEqual({error, not_found}, emqx_redis_session:load_session(<<"never">>)).

%% The network holds the bytes of a connection back that was given up, and delivers them when newer
%% writes were acknowledged on the next one.
bytes_of_a_lost_connection_undo_nothing(_Config) ->
    with_proxy(fun(Server, Proxy) ->
        ok = ?PROXY:set_mode(Proxy, freeze),
        ?assertEqual(
            {error, timeout}, emqx_redis_session:save_session(<<"c">>, old, #{timeout => 500})
        ),
        %% The next connection takes another way.
        ok = emqx_redis_storage:start(?SERVER:config(Server)),
        ok = emqx_redis_session:save_session(<<"c">>, new, #{timeout => 15000}),
        ok = ?PROXY:set_mode(Proxy, forward),
        timer:sleep(300),
        ?assertEqual({ok, new}, emqx_redis_session:load_session(<<"c">>))
    end).

%%--------------------------------------------------------------------
%% Away
%%--------------------------------------------------------------------

redis_away_at_the_start(_Config) ->
    Server = ?SERVER:start(#{tcp => true}),
    Config = ?SERVER:config(Server),
    ok = ?SERVER:kill(Server),
    {Micros, ok} = timer:tc(fun() -> emqx_redis_storage:start(Config) end),
    ?assert(Micros < 1000000, Micros),
    await_why(econnrefused),
    Id = emqx_redis_session:save_session_async(<<"c">>, x),
    ok = ?SERVER:restart(Server),
    ?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, 5000)),
    await_connected().

%% A listener whose queue is full answers no more than an address that leads nowhere.
a_black_hole_at_the_start(_Config) ->
    Options = [{backlog, 0}, {active, false}, {ip, {127, 0, 0, 1}}],
    {ok, Listener} = gen_tcp:listen(0, Options),
    {ok, Port} = inet:port(Listener),
    Filling = [gen_tcp:connect({127, 0, 0, 1}, Port, [{active, false}], 100) || _ <- lists:seq(1, 4)],
    ?assertEqual({error, timeout}, lists:last(Filling)),
    start_away(#{servers => local(Port), connect_timeout => <<"500ms">>}),
    await_why(connect_timeout),
    fails_within_grace(connect_timeout),
    ok = gen_tcp:close(Listener).

a_name_that_nobody_has(_Config) ->
    start_away(#{servers => <<"nobody.invalid:6379">>}),
    await_why({nxdomain, <<"nobody.invalid">>}).

%%--------------------------------------------------------------------
%% Not fit
%%--------------------------------------------------------------------

wrong_password(_Config) ->
    Server = ?SERVER:start(#{tcp => true, requirepass => <<"right">>}),
    Servers = ?SERVER:servers(Server),
    start_away(#{servers => Servers}),
    ?assertMatch({wrong_password, <<"NOAUTH", _/binary>>}, await_any_why()),
    ok = emqx_redis_storage:start(#{redis => #{servers => Servers, password => <<"wrong">>}}),
    ?HELPERS:wait_until(fun() -> has_prefix(<<"WRONGPASS">>, why()) end),
    ok = emqx_redis_storage:start(#{redis => #{servers => Servers, password => <<"right">>}}),
    recovers_within(3000).

has_prefix(Prefix, {wrong_password, Text}) -> string:prefix(Text, Prefix) =/= nomatch;
has_prefix(_, _) -> false.

%% A server that does not know AUTH quotes its arguments.
a_password_never_shows(_Config) ->
    Server = ?SERVER:start(#{tcp => true, args => ["--rename-command", "AUTH", ""]}),
    Secret = <<"s3cr3t-pa55word">>,
    start_away(#{servers => ?SERVER:servers(Server), password => Secret}),
    Why = await_any_why(),
    ct:pal("~p", [Why]),
    Shown = [
        emqx_redis_storage:status(),
        emqx_redis_storage:config(),
        sys:get_status(emqx_redis_server),
        emqx_redis_session:load_session(<<"c">>)
    ],
    ?assertEqual(nomatch, string:find(io_lib:format("~p", [Shown]), Secret)).

a_user_who_may_not(_Config) ->
    Users =
        "user default on nopass ~* &* +@all\n"
        "user emqx on >secret ~* &* +@all -eval -evalsha -script\n",
    Server = ?SERVER:start(#{tcp => true, aclfile => Users}),
    start_away(#{
        servers => ?SERVER:servers(Server), username => <<"emqx">>, password => <<"secret">>
    }),
    ?assertMatch({no_permission, <<"NOPERM", _/binary>>}, await_any_why()),
    fails_within_grace(why()).

a_server_that_loads_its_data(_Config) ->
    Loading = <<"-LOADING Redis is loading the dataset in memory\r\n">>,
    Port = fake(fun(Socket) -> answer_each(Socket, Loading) end),
    start_away(#{servers => local(Port)}),
    await_why(loading),
    fails_within_grace(loading).

a_database_out_of_range(_Config) ->
    Server = ?SERVER:start(#{tcp => true, args => ["--databases", "3"]}),
    start_away(#{servers => ?SERVER:servers(Server), database => 7}),
    ?assertMatch({server, <<"ERR DB index", _/binary>>}, await_any_why()).

too_many_clients(_Config) ->
    Server = ?SERVER:start(#{tcp => true, args => ["--maxclients", "1"]}),
    Other = ?SERVER:connect(Server),
    start_away(#{servers => ?SERVER:servers(Server)}),
    Why = await_any_why(),
    ?assertEqual(too_many_clients, Why),
    emqx_redis_test_client:close(Other).

a_server_that_speaks_http(_Config) ->
    Port = fake(fun(Socket) ->
        _ = gen_tcp:send(Socket, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    end),
    start_away(#{servers => local(Port)}),
    ?assertMatch({protocol, _}, await_any_why()),
    fails_within_grace(why()).

a_server_that_says_nothing(_Config) ->
    Port = fake(fun(_) -> timer:sleep(infinity) end),
    start_away(#{servers => local(Port), connect_timeout => <<"300ms">>}),
    await_why(connect_timeout).

%% It is not connected to over and over without a pause.
a_server_that_drops_every_connection(_Config) ->
    Server = ?SERVER:start(#{tcp => true}),
    start(Server),
    Killer = spawn_link(fun() -> kill_clients(Server) end),
    timer:sleep(2000),
    unlink(Killer),
    exit(Killer, kill),
    #{counters := #{connects := Connects, connect_failures := Failures}} =
        emqx_redis_storage:status(),
    ct:pal("~b connections and ~b attempts in 2 s", [Connects, Failures]),
    ?assert(Connects + Failures < 60, {Connects, Failures}),
    recovers_within(3000).

kill_clients(Server) ->
    _ = ?SERVER:cli(Server, ["CLIENT", "KILL", "TYPE", "normal"]),
    kill_clients(Server).

a_newer_layout(_Config) ->
    Server = ?SERVER:start(#{tcp => true}),
    1 = ?SERVER:cli(Server, ["HSET", "meta", "layout", "99"]),
    start_away(#{servers => ?SERVER:servers(Server)}),
    ?assertMatch({layout, _}, await_any_why()),
    fails_within_grace(why()),
    0 = ?SERVER:cli(Server, ["HSET", "meta", "layout", "1"]),
    recovers_within(1500).

a_foreign_value_at_meta(_Config) ->
    Server = ?SERVER:start(#{tcp => true}),
    <<"OK">> = ?SERVER:cli(Server, ["SET", "meta", "somebody's"]),
    start(Server),
    ok = emqx_redis_session:save_session(<<"c">>, x),
    ?assertEqual(<<"1">>, ?SERVER:cli(Server, ["HGET", "meta", "layout"])),
    [Moved] = ?SERVER:cli(Server, ["KEYS", "foreign:meta*"]),
    ?assertEqual(<<"somebody's">>, ?SERVER:cli(Server, ["GET", Moved])).

%%--------------------------------------------------------------------
%% Not taking writes
%%--------------------------------------------------------------------

%% What makes room goes on, also for whoever connects only then.
a_full_memory(_Config) ->
    Server = start_filled(),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "maxmemory", "1"]),
    writes_are_refused(<<"OOM">>),
    reconnect(Server),
    writes_are_refused(<<"OOM">>),
    reads_go_on(),
    ?assertEqual(ok, emqx_redis_message:ack_message(<<"c">>, <<"1">>)),
    ?assertEqual(ok, emqx_redis_message:ack_message(<<"claimed">>, <<"1">>, #{epoch => 1})),
    ?assertEqual(ok, emqx_redis_message:ack_messages(<<"c">>, [<<"2">>])),
    ?assertEqual({ok, []}, emqx_redis_message:get_messages(<<"c">>, 0, 10)),
    ?assertEqual(ok, emqx_redis_message:delete_messages(<<"claimed">>, #{epoch => 1})),
    ?assertEqual(ok, emqx_redis_router:delete_route(<<"a/b">>, node())),
    ?assertEqual(ok, emqx_redis_router:delete_route(<<"a/+">>, node())),
    ?assertEqual(ok, emqx_redis_session:delete_session(<<"c">>)),
    ?assertEqual({error, not_found}, emqx_redis_session:load_session(<<"c">>)),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "maxmemory", "0"]),
    ?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, x)).

%% What is refused is not waited for, and what makes room is confirmed, or not, as ever.
a_full_memory_and_a_level_of_durability(_Config) ->
    Server = start_filled(),
    Args = ["--replicaof", "127.0.0.1", integer_to_list(?SERVER:port(Server))],
    Replica = ?SERVER:start(#{args => Args}),
    Level = #{durability => {replicas, 1}, timeout => 15000},
    ok = emqx_redis_session:save_session(<<"c">>, x, Level),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "maxmemory", "1"]),
    {Took, Results} = timer:tc(fun() ->
        [
            emqx_redis_session:save_session(<<"c">>, y, Level),
            emqx_redis_message:ack_message(<<"c">>, <<"1">>, Level),
            emqx_redis_message:ack_message(<<"c">>, <<"1">>, Level),
            emqx_redis_session:delete_session(<<"c">>, Level)
        ]
    end),
    ?assertMatch([{error, {redis, <<"OOM">>, _}}, ok, ok, ok], Results),
    ?assert(Took < 5000000, Took),
    NotSeen = {error, {not_durable, 0}},
    ok = ?SERVER:pause(Replica),
    Short = Level#{timeout => 1000},
    ?assertEqual(NotSeen, emqx_redis_message:ack_message(<<"c">>, <<"1">>, Short)),
    ok = ?SERVER:resume(Replica),
    ?assertEqual(ok, emqx_redis_message:ack_message(<<"c">>, <<"2">>, Level)),
    %% Without a mark that could be prolonged nothing is known, and not asked over and over.
    Marks = ?SERVER:cli(Server, ["KEYS", "durable*"]),
    ?assertEqual(length(Marks), ?SERVER:cli(Server, ["DEL" | Marks])),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "RESETSTAT"]),
    ?assertEqual(NotSeen, emqx_redis_message:ack_message(<<"claimed">>, <<"1">>, Short#{epoch => 1})),
    Stats = ?SERVER:cli(Server, ["INFO", "commandstats"]),
    {match, [Waits]} = re:run(Stats, "cmdstat_wait:calls=(\\d+)", [{capture, [1], list}]),
    ?assert(list_to_integer(Waits) < 20, Waits),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "maxmemory", "0"]),
    ?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, y, Level)).

%% Redis then takes no write at all.
a_disk_that_takes_nothing(_Config) ->
    Server = start_filled(),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "save", "3600 1"]),
    Snapshot = filename:join(?SERVER:folder(Server), "dump.rdb"),
    %% A folder stands where the file is to be.
    ok = file:make_dir(Snapshot),
    <<"Background saving started">> = ?SERVER:cli(Server, ["BGSAVE"]),
    ?HELPERS:wait_until(fun() -> is_misconf(?SERVER:cli(Server, ["PING"])) end),
    writes_are_refused(<<"MISCONF">>),
    reconnect(Server),
    writes_are_refused(<<"MISCONF">>),
    reads_go_on(),
    ok = file:del_dir(Snapshot),
    <<"Background saving started">> = ?SERVER:cli(Server, ["BGSAVE"]),
    ?HELPERS:wait_until(fun() -> emqx_redis_session:save_session(<<"c">>, x) =:= ok end).

is_misconf({error, <<"MISCONF", _/binary>>}) -> true;
is_misconf(_) -> false.

too_few_replicas_to_write(_Config) ->
    Server = start_filled(),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "min-replicas-to-write", "1"]),
    writes_are_refused(<<"NOREPLICAS">>),
    reconnect(Server),
    writes_are_refused(<<"NOREPLICAS">>),
    reads_go_on(),
    <<"OK">> = ?SERVER:cli(Server, ["CONFIG", "SET", "min-replicas-to-write", "0"]),
    ?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, x)).

a_server_that_became_a_replica(_Config) ->
    Server = start_filled(),
    Other = ?SERVER:start(#{tcp => true}),
    <<"OK">> = ?SERVER:cli(Server, ["REPLICAOF", "127.0.0.1", ?SERVER:port(Other)]),
    %% Now it has what the other one has: nothing.
    ?HELPERS:wait_until(fun() -> emqx_redis_session:count_sessions() =:= {ok, 0} end, 15000),
    writes_are_refused(<<"READONLY">>),
    reconnect(Server),
    writes_are_refused(<<"READONLY">>),
    <<"OK">> = ?SERVER:cli(Server, ["REPLICAOF", "NO", "ONE"]),
    ?assertEqual(ok, emqx_redis_session:save_session(<<"c">>, x)).

%% A server that holds two messages, two sessions and two routes.
start_filled() ->
    Server = ?SERVER:start(#{tcp => true}),
    start(Server),
    ok = emqx_redis_session:save_session(<<"c">>, x),
    ok = emqx_redis_message:store_messages(<<"c">>, [message(N) || N <- [1, 2]]),
    {ok, #{epoch := 1}} = emqx_redis_session:claim_session(<<"claimed">>, #{}),
    ok = emqx_redis_session:save_session(<<"claimed">>, x, #{epoch => 1}),
    ok = emqx_redis_message:store_messages(<<"claimed">>, [message(N) || N <- [1, 2]]),
    [ok = emqx_redis_router:add_route(Filter, node()) || Filter <- [<<"a/b">>, <<"a/+">>]],
    Server.

writes_are_refused(Code) ->
    Writes = [
        fun() -> emqx_redis_session:save_session(<<"c">>, y) end,
        fun() -> emqx_redis_session:save_session(<<"claimed">>, y, #{epoch => 1}) end,
        fun() -> emqx_redis_session:claim_session(<<"c">>, #{}) end,
        fun() -> emqx_redis_message:store_message(<<"c">>, message(3)) end,
        fun() -> emqx_redis_message:store_message(<<"c">>, message(3), #{max_queue => 10}) end,
        fun() -> one_failed(emqx_redis_message:store_message_for([<<"c">>, <<"d">>], message(3))) end,
        fun() -> emqx_redis_router:add_route(<<"b/c">>, node()) end,
        fun() -> emqx_redis_router:add_route(<<"b/+">>, node()) end,
        fun() -> emqx_redis_pool:query(["SET", "k", "v"]) end
    ],
    [
        ?assertMatch({N, {error, {redis, Code, <<_, _/binary>>}}}, {N, Write()})
     || {N, Write} <- lists:zip(lists:seq(1, length(Writes)), Writes)
    ].

one_failed({error, {partial, [{<<"c">>, Reason}, {<<"d">>, Reason}]}}) -> {error, Reason};
one_failed(Other) -> Other.

reads_go_on() ->
    ?assertEqual({ok, x}, emqx_redis_session:load_session(<<"c">>)),
    ?assertEqual({ok, x}, emqx_redis_session:load_session(<<"claimed">>)),
    ?assertEqual({ok, [<<"c">>, <<"claimed">>]}, emqx_redis_session:list_sessions(10, 0)),
    ?assertEqual({ok, [message(1), message(2)]}, emqx_redis_message:get_messages(<<"c">>, 0, 10)),
    {ok, Matches} = emqx_redis_router:match_routes(<<"a/b">>),
    ?assertEqual([{Filter, node()} || Filter <- [<<"a/+">>, <<"a/b">>]], lists:sort(Matches)).

message(N) -> #{id => integer_to_binary(N), timestamp => N, payload => N}.

%% All connections are made anew.
reconnect(Server) ->
    Connects = connects(),
    _ = ?SERVER:cli(Server, ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
    ?HELPERS:wait_until(fun() -> connects() > Connects end),
    await_connected().

connects() ->
    #{counters := #{connects := Count}} = emqx_redis_storage:status(),
    Count.

%%--------------------------------------------------------------------
%% Cut
%%--------------------------------------------------------------------

cut_in_the_middle_of_a_reply(_Config) ->
    with_proxy(fun(Server, Proxy) ->
        Large = binary:copy(<<"x">>, 8000000),
        ok = emqx_redis_session:save_session(<<"large">>, Large),
        ok = emqx_redis_session:save_session(<<"small">>, 1),
        Ids = [emqx_redis_session:load_session_async(<<"large">>) || _ <- [1, 2, 3]],
        Save = emqx_redis_session:save_session_async(<<"small">>, 2),
        timer:sleep(5),
        ok = ?PROXY:set_mode(Proxy, freeze),
        timer:sleep(100),
        ok = ?PROXY:cut(Proxy),
        ok = ?PROXY:set_mode(Proxy, forward),
        [
            case emqx_redis_storage:receive_response(Id, 5000) of
                {reply, {ok, Large}} -> ok;
                {reply, {error, {unknown, closed}}} -> ok
            end
         || Id <- Ids
        ],
        Saved = emqx_redis_storage:receive_response(Save, 5000),
        {ok, Found} = emqx_redis_session:load_session(<<"small">>),
        ?assert(lists:member({Saved, Found}, [
            {{reply, ok}, 2}, {{reply, {error, {unknown, closed}}}, 1},
            {{reply, {error, {unknown, closed}}}, 2}
        ]), {Saved, Found}),
        ?assertEqual({ok, Large}, emqx_redis_session:load_session(<<"large">>)),
        ?assert(?SERVER:is_alive(Server))
    end).

cut_in_the_middle_of_a_request(_Config) ->
    with_proxy(fun(_Server, Proxy) ->
        ok = emqx_redis_session:save_session(<<"large">>, old),
        ok = ?PROXY:set_mode(Proxy, freeze),
        Large = binary:copy(<<"x">>, 16000000),
        Id = emqx_redis_session:save_session_async(<<"large">>, Large, #{timeout => 30000}),
        %% Behind it and surely not sent. Both are done on the next connection.
        Next = emqx_redis_session:save_session_async(<<"next">>, 1, #{timeout => 30000}),
        timer:sleep(200),
        ok = ?PROXY:cut(Proxy),
        ok = ?PROXY:set_mode(Proxy, forward),
        ?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, 9000)),
        ?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Next, 9000)),
        ?assertEqual({ok, Large}, emqx_redis_session:load_session(<<"large">>)),
        ?assertEqual({ok, 1}, emqx_redis_session:load_session(<<"next">>))
    end).

what_lost_its_reply_is_done_again(_Config) ->
    with_proxy(fun(_Server, Proxy) ->
        ok = ?PROXY:set_mode(Proxy, drop_replies),
        Ids = [
            {N, emqx_redis_session:save_session_async(<<N>>, x, #{timeout => 300 * N})}
         || N <- lists:seq(1, 5)
        ],
        Increment = emqx_redis_pool:query_async(["INCR", "counter"], #{timeout => 3000}),
        timer:sleep(1000),
        ok = ?PROXY:cut(Proxy),
        ok = ?PROXY:set_mode(Proxy, forward),
        %% Nobody knows what a command of a caller would do if it were repeated.
        ?assertEqual(
            {reply, {error, {unknown, closed}}}, emqx_redis_storage:receive_response(Increment, 5000)
        ),
        ?assertEqual({ok, <<"1">>}, emqx_redis_pool:query(["GET", "counter"])),
        Results = [{N, emqx_redis_storage:receive_response(Id, 5000)} || {N, Id} <- Ids],
        ?assertEqual(
            [{N, {reply, {error, timeout}}} || N <- [1, 2, 3]] ++
                [{N, {reply, ok}} || N <- [4, 5]],
            Results
        ),
        %% They had happened.
        ?assertEqual({ok, 5}, emqx_redis_session:count_sessions())
    end).

with_proxy(Fun) ->
    Server = ?SERVER:start(#{tcp => true}),
    Proxy = ?PROXY:start(?SERVER:address(Server)),
    ok = emqx_redis_storage:start(#{redis => #{servers => ?PROXY:servers(Proxy)}}),
    await_connected(),
    try
        Fun(Server, Proxy)
    after
        ok = emqx_redis_storage:stop(),
        ?PROXY:stop(Proxy)
    end.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

start(Server) ->
    ok = emqx_redis_storage:start(?SERVER:config(Server)),
    await_connected().

%% With a short grace, so that what fails does so soon.
start_away(Redis) ->
    {Micros, ok} = timer:tc(fun() ->
        emqx_redis_storage:start(#{redis => Redis#{outage_grace => <<"600ms">>}})
    end),
    ?assert(Micros < 1000000, Micros).

await_connected() ->
    ?HELPERS:wait_until(fun() -> maps:get(connected, emqx_redis_storage:status()) end).

why() ->
    #{connections := [#{state := State} | _]} = emqx_redis_storage:status(),
    State.

await_why(Why) ->
    try
        ?HELPERS:wait_until(fun() -> why() =:= Why end)
    catch
        error:_ -> ?assertEqual(Why, why())
    end.

await_any_why() ->
    ?HELPERS:wait_until(fun() -> not lists:member(why(), [connecting, connected]) end),
    why().

%% What comes first waits for the grace, what comes later fails at once, and says why.
fails_within_grace(Why) ->
    {Waited, First} = timer:tc(fun() -> emqx_redis_session:save_session(<<"c">>, x) end),
    ?assertEqual({error, {unavailable, Why}}, First),
    ?assert(Waited < 2000000, Waited),
    {Micros, Second} = timer:tc(fun() -> emqx_redis_session:save_session(<<"c">>, x) end),
    ?assertEqual({error, {unavailable, Why}}, Second),
    ?assert(Micros < 100000, Micros).

recovers_within(Milliseconds) ->
    Begin = erlang:monotonic_time(millisecond),
    ?HELPERS:wait_until(
        fun() -> emqx_redis_session:save_session(<<"c">>, back) =:= ok end, Milliseconds + 2000
    ),
    Took = erlang:monotonic_time(millisecond) - Begin,
    ct:pal("recovered after ~b ms", [Took]),
    ?assert(Took =< Milliseconds, Took).

local(Port) -> <<"127.0.0.1:", (integer_to_binary(Port))/binary>>.

%% A server that does this with every connection, then closes it.
fake(Fun) ->
    Parent = self(),
    spawn_link(fun() ->
        {ok, Listener} = gen_tcp:listen(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}]),
        {ok, Port} = inet:port(Listener),
        Parent ! {port, Port},
        fake(Listener, Fun)
    end),
    receive
        {port, Port} -> Port
    end.

fake(Listener, Fun) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn_link(fun() ->
        receive
            go -> Fun(Socket)
        end
    end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    fake(Listener, Fun).

answer_each(Socket, Reply) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, _} ->
            _ = gen_tcp:send(Socket, Reply),
            answer_each(Socket, Reply);
        {error, _} ->
            ok
    end.
