%% Sentinels name the master: whom the storage believes, and what becomes of requests when the master
%% changes, as planned or not.
-module(emqx_redis_sentinel_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(SET, emqx_redis_test_sentinels).
-define(TOPOLOGY, emqx_redis_test_topology).
-define(LOAD, emqx_redis_test_load).
-define(HELPERS, emqx_redis_test_helpers).
-define(TIMEOUT, 30000).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        any_sentinel_will_do,
        a_killed_master_is_followed,
        a_planned_failover_fails_nothing,
        a_frozen_master_that_wakes_up_gets_no_write,
        sentinels_may_go_and_come,
        a_sentinel_that_names_a_replica_is_not_believed,
        a_stale_sentinel_disturbs_nothing,
        a_sentinel_with_an_older_epoch_is_overruled,
        an_unknown_master,
        wrong_sentinel_credentials,
        whom_a_sentinel_refuses_asks_it_nothing,
        the_password_of_sentinels_and_of_servers,
        users_of_sentinels_and_of_servers,
        tls_to_sentinels_alone,
        tls_to_servers_alone
    ].

end_per_testcase(_Case, _Config) ->
    _ = emqx_redis_storage:stop(),
    ok = ?TOPOLOGY:stop_all(),
    ok = ?SERVER:stop_all(),
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% Following
%%--------------------------------------------------------------------

any_sentinel_will_do(_Config) ->
    Set = small_set(#{}),
    #{redis := #{servers := Alive}} = ?SET:config(Set),
    Dead = [["127.0.0.1:", integer_to_list(?SERVER:free_port()), ","] || _ <- [1, 2]],
    start(?SET:config(Set), #{servers => iolist_to_binary([Dead, Alive])}),
    ok = emqx_redis_session:save_session(<<"c">>, x),
    ?assertMatch(#{topology := sentinel, server := #{role := <<"master">>}}, emqx_redis_storage:status()).

a_killed_master_is_followed(_Config) ->
    Set = ?SET:start(#{replicas => 2}),
    start(?SET:config(Set), #{outage_grace => <<"30s">>}),
    Durable = #{durability => {replicas, 2}, timeout => 10000},
    Load = ?LOAD:start(8, fun(Writer, N) ->
        emqx_redis_message:store_message(client(Writer), message(N), Durable)
    end),
    ?HELPERS:wait_until(fun() -> ?LOAD:calls(Load) > 200 end, ?TIMEOUT),
    Old = ?SET:master(Set),
    ok = ?SET:kill(Set, Old),
    %% These wait for the new master.
    Waiting = [save_async(N) || N <- lists:seq(1, 500)],
    New = ?SET:wait_until_promoted(Set, Old),
    Since = now_ms(),
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, ?TIMEOUT)) || Id <- Waiting],
    Took = now_ms() - Since,
    ?assert(Took < 3000, Took),
    ?assertEqual(address(Set, New), master_address()),
    Calls = ?LOAD:stop(Load),
    Results = lists:usort([Result || {_, _, Result} <- Calls]),
    ct:pal("~b ms after the promotion; ~b durable writes, answered ~p", [Took, length(Calls), Results]),
    [assert_documented(Result) || Result <- Results],
    assert_stored([{Writer, N} || {Writer, N, ok} <- Calls]),
    [?assertEqual({ok, N}, emqx_redis_session:load_session(session(N))) || N <- [1, 250, 500]].

a_planned_failover_fails_nothing(_Config) ->
    Set = ?SET:start(#{replicas => 2}),
    start(?SET:config(Set), #{outage_grace => <<"30s">>}),
    Load = ?LOAD:start(8, fun(Writer, N) -> call(Writer, N, #{timeout => ?TIMEOUT}) end),
    New = ?SET:failover(Set),
    ?HELPERS:wait_until(fun() -> master_address() =:= address(Set, New) end, ?TIMEOUT),
    Before = ?LOAD:calls(Load),
    ?HELPERS:wait_until(fun() -> ?LOAD:calls(Load) > Before + 200 end, ?TIMEOUT),
    ?assertEqual([], [Call || Call = {_, _, Result} <- ?LOAD:stop(Load), Result =/= ok]).

%% What was sent to the frozen master and not answered is done by the new one; what the old one does of it
%% when it wakes up is undone as it becomes a replica.
a_frozen_master_that_wakes_up_gets_no_write(_Config) ->
    Set = ?SET:start(#{replicas => 2}),
    start(?SET:config(Set), #{outage_grace => <<"30s">>}),
    Old = ?SET:master(Set),
    ok = ?SET:pause(Set, Old),
    Early = [save_async(N) || N <- lists:seq(1, 200)],
    New = ?SET:wait_until_promoted(Set, Old),
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, ?TIMEOUT)) || Id <- Early],
    ok = emqx_redis_session:save_session(<<"late">>, x),
    Load = ?LOAD:start(2, fun(Writer, N) -> call(Writer, N, #{timeout => ?TIMEOUT}) end),
    ok = ?SET:resume(Set, Old),
    Seen = watch_until_replica(Old, 0),
    ct:pal("seen as a master ~b times", [Seen]),
    ?assert(Seen > 0),
    ok = ?SET:wait_until_healthy(Set),
    ?assertEqual([], [Call || Call = {_, _, Result} <- ?LOAD:stop(Load), Result =/= ok]),
    ok = ?SET:wait_until_healthy(Set),
    ?assertEqual(data(New), data(Old)),
    ?assertEqual(1, ?SERVER:cli(Old, ["EXISTS", "session:late"])).

%% As long as it says that it is a master it has none of what came after the freeze. Answers how often it
%% was found to be one.
watch_until_replica(Server, Seen) ->
    Connection = ?SERVER:connect(Server),
    Commands = [["MULTI"], ["ROLE"], ["EXISTS", "session:late"], ["EXISTS", "session:w1"], ["EXEC"]],
    try lists:last(emqx_redis_test_client:pipeline(Connection, Commands)) of
        [[<<"master">> | _] | Found] ->
            ?assertEqual([0, 0], Found),
            watch_until_replica(Server, Seen + 1);
        [[<<"slave">> | _] | _] ->
            Seen
    catch
        %% It closes its clients when it becomes a replica.
        error:{no_reply, _} -> watch_until_replica(Server, Seen);
        error:{badmatch, {error, closed}} -> watch_until_replica(Server, Seen)
    after
        emqx_redis_test_client:close(Connection)
    end.

%% All that is stored, but for what expires.
data(Server) ->
    Keys = lists:sort(?SERVER:cli(Server, ["KEYS", "session:*"])),
    [{Key, ?SERVER:cli(Server, ["HMGET", Key, "data", "created_at", "updated_at", "node"])} || Key <- Keys].

%%--------------------------------------------------------------------
%% Whom to believe
%%--------------------------------------------------------------------

sentinels_may_go_and_come(_Config) ->
    Set = ?SET:start(#{replicas => 1}),
    start(?SET:config(Set), #{}),
    Sentinels = ?SET:sentinels(Set),
    [
        begin
            ok = ?SET:kill(Set, Sentinel),
            ok = emqx_redis_session:save_session(<<"c">>, one_away),
            ok = ?SET:restart(Set, Sentinel)
        end
     || Sentinel <- Sentinels
    ],
    %% Nobody can be asked, and nobody need be.
    ?assertNot(has_warning(unwatched)),
    Load = ?LOAD:start(2, fun(Writer, N) -> call(Writer, N, #{}) end),
    [ok = ?SET:kill(Set, Sentinel) || Sentinel <- Sentinels],
    ?HELPERS:wait_until(fun() -> has_warning(unwatched) end, ?TIMEOUT),
    ?assertMatch(#{connected := true, counters := #{disconnects := 0}}, emqx_redis_storage:status()),
    %% Not for other settings either, with which connections are made anew.
    Connects = counter(connects),
    start(?SET:config(Set), #{request_timeout => <<"7s">>}),
    ?HELPERS:wait_until(fun() -> counter(connects) >= Connects + 2 end, ?TIMEOUT),
    %% A connection that is lost comes back all the same.
    _ = ?SERVER:cli(?SET:master(Set), ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
    ?HELPERS:wait_until(fun() -> counter(disconnects) > 0 end, ?TIMEOUT),
    Before = ?LOAD:calls(Load),
    ?HELPERS:wait_until(fun() -> ?LOAD:calls(Load) > Before + 100 end, ?TIMEOUT),
    ?assert(has_warning(unwatched)),
    ?assertEqual([], [Call || Call = {_, _, Result} <- ?LOAD:stop(Load), Result =/= ok]),
    %% Back again, they are listened to.
    [ok = ?SET:restart(Set, Sentinel) || Sentinel <- Sentinels],
    ?HELPERS:wait_until(fun() -> not has_warning(unwatched) end, ?TIMEOUT),
    ok = ?SET:wait_until_healthy(Set),
    New = ?SET:failover(Set),
    ?HELPERS:wait_until(fun() -> master_address() =:= address(Set, New) end, ?TIMEOUT),
    ok = emqx_redis_session:save_session(<<"c">>, back).

a_sentinel_that_names_a_replica_is_not_believed(_Config) ->
    {Master, Replica} = pair(),
    Fake = fake_sentinel(#{names => Replica, epoch => 1}),
    ok = emqx_redis_storage:start(fake_config([Fake], #{outage_grace => <<"30s">>})),
    Waiting = save_async(1),
    ?HELPERS:wait_until(fun() -> why() =:= not_master end, ?TIMEOUT),
    %% It has heard of the fail-over.
    tell(Fake, #{names => Master, epoch => 2}),
    ?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Waiting, ?TIMEOUT)),
    ?assertEqual(?SERVER:servers(Master), master_address()).

%% A sentinel that was cut off names what is a replica now. Its user may not ask for the epoch, so that
%% nothing but the server itself tells the truth.
a_stale_sentinel_disturbs_nothing(_Config) ->
    {Master, Replica} = pair(),
    Good = fake_sentinel(#{names => Master}),
    Stale = fake_sentinel(#{names => Replica}),
    start(fake_config([Good, Stale], #{}), #{}),
    Load = ?LOAD:start(2, fun(Writer, N) -> call(Writer, N, #{}) end),
    Asked = asked(Stale),
    ?HELPERS:wait_until(fun() -> asked(Stale) > Asked + 1 end, ?TIMEOUT),
    ?assertEqual([], [Call || Call = {_, _, Result} <- ?LOAD:stop(Load), Result =/= ok]),
    ?assertEqual(0, counter(disconnects)),
    ?assertEqual(?SERVER:servers(Master), master_address()).

%% Here the stale one names a server that still believes to be a master, as one does that was cut off with
%% its sentinel.
a_sentinel_with_an_older_epoch_is_overruled(_Config) ->
    [Old, New] = [?SERVER:start(#{tcp => true}) || _ <- [1, 2]],
    Stale = fake_sentinel(#{names => Old, epoch => 6}),
    Good = fake_sentinel(#{names => New, epoch => 7}),
    ok = emqx_redis_storage:start(fake_config([Stale, Good], #{})),
    %% It may be the first that is asked: the other one is believed then, and from then on.
    ?HELPERS:wait_until(fun() -> master_address() =:= ?SERVER:servers(New) end, ?TIMEOUT),
    connected(),
    Lost = counter(disconnects),
    Before = ?SERVER:cli(Old, ["KEYS", "*"]),
    Load = ?LOAD:start(2, fun(Writer, N) -> call(Writer, N, #{}) end),
    Asked = asked(Stale),
    ?HELPERS:wait_until(fun() -> asked(Stale) > Asked + 1 end, ?TIMEOUT),
    ?assertEqual([], [Call || Call = {_, _, Result} <- ?LOAD:stop(Load), Result =/= ok]),
    ?assertEqual(Lost, counter(disconnects)),
    ?assertEqual(Before, ?SERVER:cli(Old, ["KEYS", "*"])).

an_unknown_master(_Config) ->
    Set = small_set(#{}),
    start_away(?SET:config(Set), #{sentinel => <<"nobody">>}),
    fails_with({unknown_master, <<"nobody">>}).

%%--------------------------------------------------------------------
%% Logging in
%%--------------------------------------------------------------------

%% The data servers need none, so that whoever got their address somehow would be let in there.
wrong_sentinel_credentials(_Config) ->
    Set = small_set(#{sentinel_password => <<"sentinels">>}),
    [Sentinel] = ?SET:sentinels(Set),
    Config = ?SET:config(Set),
    start_away(Config, #{sentinel_password => <<"wrong">>}),
    Wrong = await_why(wrong_password),
    ?assertNotEqual(nomatch, string:find(Wrong, address(Set, Sentinel))),
    ?assertNotEqual(nomatch, string:find(Wrong, <<"WRONGPASS">>)),
    fails_with({wrong_password, Wrong}),
    ok = emqx_redis_storage:stop(),
    %% None at all is as wrong, and the password of the data is not shown to sentinels.
    start_away(without(sentinel_password, Config), #{password => <<"data">>}),
    None = await_why(wrong_password),
    ?assertNotEqual(nomatch, string:find(None, <<"NOAUTH">>)),
    ok = emqx_redis_storage:stop(),
    start(Config, #{}).

%% This one would answer all the same.
whom_a_sentinel_refuses_asks_it_nothing(_Config) ->
    {Master, _Replica} = pair(),
    Fake = fake_sentinel(#{names => Master, refuses => <<"-WRONGPASS invalid username-password pair\r\n">>}),
    start_away(fake_config([Fake], #{sentinel_password => <<"wrong">>}), #{}),
    fails_with({wrong_password, await_why(wrong_password)}),
    ?assertEqual(0, asked(Fake)),
    ok = emqx_redis_storage:stop(),
    start(fake_config([Fake], #{}), #{}).

the_password_of_sentinels_and_of_servers(_Config) ->
    works(#{sentinel_password => <<"sentinels">>, password => <<"data">>}).

users_of_sentinels_and_of_servers(_Config) ->
    works(#{
        sentinel_user => <<"watcher">>, sentinel_password => <<"sentinels">>,
        user => <<"emqx">>, password => <<"data">>
    }).

tls_to_sentinels_alone(Config) ->
    works(#{sentinel_tls => tls(Config)}).

tls_to_servers_alone(Config) ->
    works(#{tls => tls(Config)}).

works(Options) ->
    Set = small_set(Options),
    start(?SET:config(Set), #{}),
    ok = emqx_redis_session:save_session(<<"c">>, x),
    ?assertEqual({ok, x}, emqx_redis_session:load_session(<<"c">>)),
    ?assertEqual(address(Set, ?SET:master(Set)), master_address()).

%%--------------------------------------------------------------------
%% Internal: a sentinel that says what a test wants
%%--------------------------------------------------------------------

%% `names' is a server; without `epoch' nobody may ask for details; `refuses' is what a login is answered.
fake_sentinel(Says) ->
    Parent = self(),
    Table = ets:new(?MODULE, [public]),
    true = ets:insert(Table, [{says, Says}, {asked, 0}]),
    _ = spawn_link(fun() ->
        {ok, Listener} = gen_tcp:listen(0, [binary, {active, false}, {ip, {127, 0, 0, 1}}]),
        {ok, Port} = inet:port(Listener),
        Parent ! {sentinel_port, Port},
        accept(Listener, Table)
    end),
    receive
        {sentinel_port, Port} -> {Port, Table}
    end.

tell({_Port, Table}, Says) ->
    true = ets:insert(Table, {says, Says}),
    ok.

asked({_Port, Table}) ->
    ets:lookup_element(Table, asked, 2).

accept(Listener, Table) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    Pid = spawn_link(fun() ->
        receive
            go -> answer(Socket, Table)
        end
    end),
    ok = gen_tcp:controlling_process(Socket, Pid),
    Pid ! go,
    accept(Listener, Table).

%% Each question is one small write, which comes in one piece.
answer(Socket, Table) ->
    case gen_tcp:recv(Socket, 0) of
        {ok, Question} ->
            ok = gen_tcp:send(Socket, reply(string:lowercase(Question), Table)),
            answer(Socket, Table);
        {error, _} ->
            ok
    end.

reply(Question, Table) ->
    Asks = fun(Word) -> string:find(Question, Word) =/= nomatch end,
    Says = ets:lookup_element(Table, says, 2),
    case {Asks("get-master-addr-by-name"), Asks("\r\nmaster\r\n"), Says} of
        {false, false, #{refuses := Refusal}} ->
            case Asks("auth") of
                true -> Refusal;
                false -> "+PONG\r\n"
            end;
        {true, _, #{names := Server}} ->
            _ = ets:update_counter(Table, asked, 1),
            emqx_redis_test_client:encode(["127.0.0.1", ?SERVER:port(Server)]);
        {_, true, #{epoch := Epoch}} ->
            emqx_redis_test_client:encode(["name", "mymaster", "config-epoch", Epoch]);
        {_, true, _} ->
            "-NOPERM this user has no permissions to run the 'sentinel|master' command\r\n";
        _ ->
            "+PONG\r\n"
    end.

fake_config(Fakes, Redis) ->
    Addresses = [["127.0.0.1:", integer_to_list(Port)] || {Port, _} <- Fakes],
    Servers = iolist_to_binary(lists:join(",", Addresses)),
    #{redis => maps:merge(#{type => sentinel, servers => Servers, sentinel => <<"mymaster">>}, Redis)}.

%%--------------------------------------------------------------------
%% Internal: servers
%%--------------------------------------------------------------------

%% No replica and one sentinel: to log in takes no more.
small_set(Options) ->
    ?SET:start(Options#{replicas => 0, sentinels => 1, quorum => 1}).

%% A master and its replica, whom no sentinel watches.
pair() ->
    [Master, Replica] = [?SERVER:start(#{tcp => true}) || _ <- [1, 2]],
    <<"OK">> = ?SERVER:cli(Replica, ["REPLICAOF", "127.0.0.1", ?SERVER:port(Master)]),
    ?HELPERS:wait_until(
        fun() ->
            [Role, _, _, State | _] = ?SERVER:cli(Replica, ["ROLE"]),
            {Role, State} =:= {<<"slave">>, <<"connected">>}
        end,
        ?TIMEOUT
    ),
    {Master, Replica}.

tls(Config) ->
    Folder = filename:join(proplists:get_value(priv_dir, Config), "certificates"),
    emqx_redis_test_certificates:server_tls(emqx_redis_test_certificates:make(Folder)).

address(Set, Server) -> ?SET:address(Set, Server).

%%--------------------------------------------------------------------
%% Internal: the storage
%%--------------------------------------------------------------------

start(Config, Redis) ->
    ok = emqx_redis_storage:start(with(Config, Redis)),
    connected().

%% With a short grace, so that what fails does so soon.
start_away(Config, Redis) ->
    ok = emqx_redis_storage:start(with(Config, Redis#{outage_grace => <<"300ms">>})).

with(#{redis := Own} = Config, Redis) -> Config#{redis := maps:merge(Own, Redis)}.

without(Key, #{redis := Redis} = Config) -> Config#{redis := maps:remove(Key, Redis)}.

connected() ->
    ?HELPERS:wait_until(fun() -> maps:get(connected, emqx_redis_storage:status()) end, ?TIMEOUT).

has_warning(Kind) ->
    #{warnings := Warnings} = emqx_redis_storage:status(),
    lists:member(Kind, [Each || #{kind := Each} <- Warnings]).

counter(Name) ->
    #{counters := #{Name := Count}} = emqx_redis_storage:status(),
    Count.

why() ->
    #{connections := [#{state := State} | _]} = emqx_redis_storage:status(),
    State.

%% The text of the reason of this kind.
await_why(Kind) ->
    ?HELPERS:wait_until(
        fun() ->
            Why = why(),
            is_tuple(Why) andalso element(1, Why) =:= Kind
        end,
        ?TIMEOUT
    ),
    {Kind, Text} = why(),
    Text.

fails_with(Why) ->
    ?HELPERS:wait_until(fun() -> why() =:= Why end, ?TIMEOUT),
    ?assertEqual({error, {unavailable, Why}}, emqx_redis_session:save_session(<<"c">>, x)).

master_address() ->
    case emqx_redis_storage:status() of
        #{connections := [#{name := data, server := Server, state := connected} | _]} -> Server;
        #{} -> unknown
    end.

client(Writer) -> <<"w", (integer_to_binary(Writer))/binary>>.

session(N) -> <<"s", (integer_to_binary(N))/binary>>.

message(N) -> #{id => integer_to_binary(N), timestamp => N, payload => N}.

save_async(N) ->
    emqx_redis_session:save_session_async(session(N), N, #{timeout => ?TIMEOUT}).

%% Writes and reads in turn.
call(Writer, N, Options) when N rem 2 =:= 1 -> emqx_redis_session:save_session(client(Writer), N, Options);
call(Writer, _, _) ->
    case emqx_redis_session:load_session(client(Writer)) of
        {ok, _} -> ok;
        %% A fail-over may lose what only the old master had.
        {error, not_found} -> ok;
        Other -> Other
    end.

assert_documented(ok) -> ok;
assert_documented({error, timeout}) -> ok;
assert_documented({error, {unknown, _}}) -> ok;
assert_documented({error, {not_durable, Reached}}) when Reached < 2 -> ok.

assert_stored(Acknowledged) ->
    Stored = [
        {Writer, N}
     || Writer <- lists:usort([Writer || {Writer, _} <- Acknowledged]),
        {ok, Messages} <- [emqx_redis_message:get_messages(client(Writer), 0, 1000000)],
        #{payload := N} <- Messages
    ],
    ?assert(length(Acknowledged) > 100),
    ?assertEqual([], Acknowledged -- Stored).

now_ms() -> erlang:monotonic_time(millisecond).
