%% The ACL rules of the README suffice for everything that the library does, and are the least: without
%% any of their commands something is denied.
-module(emqx_redis_acl_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(SET, emqx_redis_test_sentinels).
-define(CLUSTER, emqx_redis_test_cluster).
-define(STORAGE, emqx_redis_test_storage).
-define(HELPERS, emqx_redis_test_helpers).
-define(TIMEOUT, 30000).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        the_rule_of_a_server_suffices_and_nothing_in_it_is_idle,
        the_rules_of_a_sentinel_set_suffice,
        nothing_in_the_rules_of_a_sentinel_set_is_idle,
        the_rule_of_a_cluster_suffices_and_nothing_in_it_is_idle,
        nothing_that_clusters_alone_need_is_idle
    ].

end_per_testcase(_Case, _Config) ->
    _ = emqx_redis_storage:stop(),
    ok = emqx_redis_test_topology:stop_all(),
    ok = ?SERVER:stop_all(),
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% One server
%%--------------------------------------------------------------------

%% What Redis counts as called, over all that the library does, is what the rule allows.
the_rule_of_a_server_suffices_and_nothing_in_it_is_idle(Config) ->
    Server = ?SERVER:start(),
    Rule = rule(single, Config),
    allow([Server], Rule),
    %% Another database than the first is chosen anew on each connection.
    start(?SERVER:config(Server), #{database => 1}),
    ok = emqx_redis_storage:stop(),
    start(?SERVER:config(Server), #{}),
    ?assertEqual([], use_everything(single(Server))),
    ?assertEqual([], denied([Server])),
    ?assertEqual([], commands(Rule) -- called([Server])).

single(Server) ->
    #{
        servers => [Server],
        cli => fun(_Key, Command) -> ?SERVER:cli(Server, Command) end,
        name => fun(Client) -> Client end
    }.

%%--------------------------------------------------------------------
%% Sentinels
%%--------------------------------------------------------------------

the_rules_of_a_sentinel_set_suffice(Config) ->
    Set = start_set(rule(sentinel, Config), rule(watcher, Config)),
    start(sentinel_config(Set), #{}),
    ?assertEqual([], use_everything(single(?SET:master(Set)))),
    follow_failover(Set),
    ?assertEqual(ok, emqx_redis_session:save_session(<<"c9">>, x)),
    ?assertEqual([], denied(?SET:servers(Set) ++ ?SET:sentinels(Set))).

%% What one server needs is not idle here either. Sentinels and tests call some commands themselves, so
%% that calls prove nothing: but what is taken away is missed.
nothing_in_the_rules_of_a_sentinel_set_is_idle(Config) ->
    [Single, Rule, Watcher] = [rule(Name, Config) || Name <- [single, sentinel, watcher]],
    ?assertEqual(["+role"], Rule -- Single),
    ?assertEqual([], Single -- Rule),
    Set = start_set(Rule -- ["+role"], Watcher),
    start(sentinel_config(Set), #{}),
    New = follow_failover(Set),
    ?assert(lists:member("role", denied([New]))),
    [Sentinel] = ?SET:sentinels(Set),
    [
        begin
            ok = emqx_redis_storage:stop(),
            allow([Sentinel], "watcher", Watcher -- ["+" ++ Command]),
            ok = emqx_redis_storage:start(sentinel_config(Set)),
            ?HELPERS:wait_until(fun() -> lists:member(Command, denied([Sentinel])) end, ?TIMEOUT)
        end
     || Command <- commands(Watcher)
    ].

start_set(Rule, Watcher) ->
    Set = ?SET:start(#{replicas => 1, sentinels => 1, quorum => 1}),
    allow(?SET:servers(Set), Rule),
    allow(?SET:sentinels(Set), "watcher", Watcher),
    Set.

sentinel_config(Set) ->
    #{redis := Redis} = Config = ?SET:config(Set),
    Config#{redis := Redis#{sentinel_username => <<"watcher">>, sentinel_password => <<"secret">>}}.

%% Whom a sentinel names anew is asked for its role.
follow_failover(Set) ->
    New = ?SET:failover(Set),
    Address = ?SET:address(Set, New),
    ?HELPERS:wait_until(
        fun() ->
            #{connections := [#{server := Server, state := State} | _]} = emqx_redis_storage:status(),
            {Server, State} =:= {Address, connected}
        end,
        ?TIMEOUT
    ),
    New.

%%--------------------------------------------------------------------
%% Clusters
%%--------------------------------------------------------------------

the_rule_of_a_cluster_suffices_and_nothing_in_it_is_idle(Config) ->
    Cluster = ?CLUSTER:start(#{masters => 2, replicas => 0}),
    Nodes = ?CLUSTER:nodes(Cluster),
    Rule = rule(cluster, Config),
    allow(Nodes, Rule),
    start(?CLUSTER:config(Cluster), #{}),
    ?assertEqual([], use_everything(clustered(Cluster))),
    ?assertEqual([], use_moving_slot(Cluster)),
    ?assertEqual([], denied(Nodes)),
    ?assertEqual([], commands(Rule) -- called(Nodes)).

%% Tests call these commands themselves, so that calls prove nothing: but what is taken away is missed.
nothing_that_clusters_alone_need_is_idle(Config) ->
    [Single, Rule] = [rule(Name, Config) || Name <- [single, cluster]],
    ?assertEqual(["+cluster|info", "+cluster|slots", "+asking"], Rule -- Single),
    ?assertEqual(["+select"], Single -- Rule),
    Cluster = ?CLUSTER:start(#{masters => 2, replicas => 0}),
    Nodes = ?CLUSTER:nodes(Cluster),
    allow(Nodes, Rule -- ["+asking"]),
    start(?CLUSTER:config(Cluster), #{}),
    _ = use_moving_slot(Cluster),
    ?assert(lists:member("asking", denied(Nodes))),
    [
        begin
            ok = emqx_redis_storage:stop(),
            allow(Nodes, Rule -- ["+" ++ Command]),
            ok = emqx_redis_storage:start(settings(?CLUSTER:config(Cluster), #{})),
            ?HELPERS:wait_until(fun() -> lists:member(Command, denied(Nodes)) end, ?TIMEOUT)
        end
     || Command <- ["cluster|info", "cluster|slots"]
    ].

clustered(Cluster) ->
    #{
        servers => ?CLUSTER:nodes(Cluster),
        cli => fun(Key, Command) -> ?CLUSTER:command_by_key(Cluster, Key, Command) end,
        name => fun(Client) -> ["{", Client, "}"] end
    }.

%% Of a slot that is on its way the new owner is asked for what the old one does not have any more.
use_moving_slot(Cluster) ->
    ok = emqx_redis_session:save_session(<<"moving">>, x),
    Slot = ?CLUSTER:key_slot("moving"),
    [Target] = ?CLUSTER:masters(Cluster) -- [?CLUSTER:owner(Cluster, Slot)],
    ok = ?CLUSTER:begin_move(Cluster, Slot, Target),
    _ = ?CLUSTER:move_keys(Cluster, Slot, Target, all),
    Result = emqx_redis_session:load_session(<<"moving">>),
    ok = ?CLUSTER:finish_move(Cluster, Slot, Target),
    [Result || is_error(Result)].

%%--------------------------------------------------------------------
%% Internal: rules
%%--------------------------------------------------------------------

%% `+command' and `-@all', as the README has them.
rule(Name, Config) ->
    Readme = filename:join(project(?config(data_dir, Config)), "README.md"),
    {ok, Text} = file:read_file(Readme),
    Pattern = "^    user (emqx|watcher) on >PASSWORD (?:~\\* )?(resetchannels .*)$",
    {match, Rules} = re:run(Text, Pattern, [global, multiline, {capture, [1, 2], list}]),
    %% In this order, each on a line of its own.
    [["emqx", Single], ["emqx", Sentinel], ["watcher", Watcher], ["emqx", Cluster]] = Rules,
    Named = #{single => Single, sentinel => Sentinel, watcher => Watcher, cluster => Cluster},
    string:lexemes(maps:get(Name, Named), " ").

commands(Rule) -> [Command || "+" ++ Command <- Rule].

project(Folder) ->
    case filelib:is_file(filename:join(Folder, "README.md")) of
        true -> Folder;
        false -> project(filename:dirname(Folder))
    end.

allow(Servers, Rule) -> allow(Servers, "emqx", ["~test:*" | Rule]).

%% From now on is counted what is called, and noted what is denied.
allow(Servers, User, Rule) ->
    [
        begin
            _ = ?SERVER:cli(Server, ["ACL", "DELUSER", User]),
            <<"OK">> = ?SERVER:cli(Server, ["ACL", "SETUSER", User, "on", ">secret" | Rule]),
            <<"OK">> = ?SERVER:cli(Server, ["ACL", "LOG", "RESET"]),
            %% Sentinels do not know it.
            ?SERVER:cli(Server, ["CONFIG", "RESETSTAT"])
        end
     || Server <- Servers
    ].

denied(Servers) ->
    Entries = [Entry || Server <- Servers, Entry <- ?SERVER:cli(Server, ["ACL", "LOG"])],
    lists:usort([binary_to_list(field(<<"object">>, Entry)) || Entry <- Entries]).

field(Name, [Name, Value | _]) -> Value;
field(Name, [_, _ | Rest]) -> field(Name, Rest).

called(Servers) ->
    lists:append([
        lists:append(Called)
     || Server <- Servers,
        {match, Called} <- [
            re:run(?SERVER:cli(Server, ["INFO", "commandstats"]), "cmdstat_([a-z|-]+):", [
                global, {capture, [1], list}
            ])
        ]
    ]).

%%--------------------------------------------------------------------
%% Internal: the storage
%%--------------------------------------------------------------------

settings(#{redis := Redis} = Config, More) ->
    Login = #{username => <<"emqx">>, password => <<"secret">>},
    Config#{redis := maps:merge(maps:merge(Redis, Login), More), key_prefix => <<"test:">>}.

start(Config, More) ->
    ok = emqx_redis_storage:start(settings(Config, More)),
    connected().

connected() ->
    ?HELPERS:wait_until(fun() -> maps:get(connected, emqx_redis_storage:status()) end, ?TIMEOUT).

connects() ->
    #{counters := #{connects := Connects}} = emqx_redis_storage:status(),
    Connects.

%% Does everything there is to do, and answers what went wrong.
use_everything(#{servers := Servers, cli := Cli, name := Name}) ->
    Id = <<"m1">>,
    Message = #{id => Id, timestamp => 1},
    Change = fun(Command, Key, Arguments) -> Cli(Key, [Command, Key | Arguments]) end,
    Repaired = fun() ->
        <<"OK">> = Change("SET", ["test:msgq:", Name("broken")], ["x"]),
        {error, {partial, _}} = emqx_redis_message:store_message(<<"broken">>, Message),
        emqx_redis_message:store_message(<<"broken">>, Message)
    end,
    Lost = fun() ->
        ok = emqx_redis_message:store_message(<<"lost">>, Message),
        1 = Change("DEL", ["test:msg:", Name("lost"), ":m1"], []),
        emqx_redis_message:get_messages(<<"lost">>, 0, 10)
    end,
    Replaced = fun() ->
        ok = emqx_redis_message:store_message(<<"replaced">>, Message),
        1 = Change("DEL", ["test:msg:", Name("replaced"), ":m1"], []),
        1 = Change("HSET", ["test:msg:", Name("replaced"), ":m1"], ["a", "b"]),
        {error, {partial, _}} = emqx_redis_message:get_messages(<<"replaced">>, 0, 10),
        emqx_redis_message:get_messages(<<"replaced">>, 0, 10)
    end,
    Durable = fun() ->
        Options = #{epoch => 2, durability => {replicas, 2}, timeout => 300},
        {error, {not_durable, _}} = emqx_redis_session:save_session(<<"c">>, data, Options),
        ok
    end,
    Reconnected = fun() ->
        Connects = connects(),
        lists:foreach(fun kill_clients/1, Servers),
        ok = ?HELPERS:wait_until(fun() -> connects() > Connects end, ?TIMEOUT),
        connected()
    end,
    %% Large filters are read in another way than small ones.
    Resynced = fun() ->
        Names = [integer_to_binary(N) || N <- lists:seq(1, 250)],
        ok = emqx_redis_router:add_routes([{<<"large">>, N} || N <- Names]),
        Small = [{<<"small/", N/binary>>, n} || N <- Names],
        ok = emqx_redis_router:add_routes(Small),
        ok = emqx_redis_subscription:add_subscriptions([{<<"large/+">>, N, #{}} || N <- Names]),
        Resyncs = resyncs(),
        Feeds = [{Server, Feed} || Server <- Servers, Feed <- ?SERVER:cli(Server, ["KEYS", "test:feed*"])],
        [1 = ?SERVER:cli(Server, ["DEL", Feed]) || {Server, Feed} <- Feeds],
        ok = ?HELPERS:wait_until(fun() -> resyncs() > Resyncs andalso in_sync() end, ?TIMEOUT),
        {ok, Found} = emqx_redis_subscription:match_subscriptions(<<"large/x">>),
        250 = length(Found),
        {ok, {_, done}} = emqx_redis_router:topics(1000, start),
        ok = emqx_redis_subscription:delete_subscriptions([{<<"large/+">>, N} || N <- Names]),
        emqx_redis_router:delete_routes(Small ++ [{<<"large">>, N} || N <- Names])
    end,
    Steps = [
        Reconnected,
        fun() -> emqx_redis_session:save_session(<<"c">>, data) end,
        fun() -> emqx_redis_session:save_session(<<"c">>, data, #{ttl => infinity}) end,
        fun() -> emqx_redis_session:load_session(<<"c">>) end,
        fun() -> emqx_redis_session:claim_session(<<"c">>, #{}) end,
        fun() -> emqx_redis_session:save_session(<<"c">>, data, #{epoch => 1, ttl => 1}) end,
        fun() -> emqx_redis_session:claim_session(<<"c">>, #{}) end,
        fun() -> emqx_redis_session:list_sessions(10, 0) end,
        fun() -> emqx_redis_session:count_sessions() end,
        fun() -> emqx_redis_message:store_message(<<"c">>, Message) end,
        fun() -> emqx_redis_message:store_message(<<"c">>, Message#{timestamp := 2}) end,
        fun() -> emqx_redis_message:store_message(<<"c">>, Message, #{max_queue => 1}) end,
        fun() -> emqx_redis_message:store_message_for([<<"d">>, <<"e">>], Message, #{ttl => 1}) end,
        fun() -> emqx_redis_message:get_messages(<<"c">>, 0, 10) end,
        fun() -> emqx_redis_message:ack_message(<<"c">>, Id, #{epoch => 2}) end,
        fun() -> emqx_redis_message:delete_messages(<<"c">>, #{epoch => 2}) end,
        fun() -> emqx_redis_router:add_route(<<"a/+">>, node()) end,
        fun() -> emqx_redis_router:add_route(<<"a/b">>, node()) end,
        fun() -> emqx_redis_router:add_route(<<"a/+/c">>, node()) end,
        fun() -> ?STORAGE:match_in_redis(<<"a/b">>) end,
        Resynced,
        fun() -> emqx_redis_router:topics() end,
        fun() -> emqx_redis_router:delete_route(<<"a/+/c">>, node()) end,
        fun() -> emqx_redis_router:delete_route(<<"a/+">>, node()) end,
        fun() -> emqx_redis_router:delete_route(<<"a/b">>, node()) end,
        Repaired,
        Lost,
        Replaced,
        Durable,
        %% Long enough for what expires to be swept.
        fun() -> timer:sleep(2500) end,
        fun() -> emqx_redis_session:delete_session(<<"c">>, #{epoch => 2}) end
    ],
    [{Number, Result} || {Number, Step} <- lists:enumerate(Steps), Result <- [Step()], is_error(Result)].

resyncs() ->
    #{counters := #{resyncs := Resyncs}} = emqx_redis_storage:status(),
    Resyncs.

in_sync() ->
    #{routes := Shards} = emqx_redis_storage:status(),
    Shards =/= [] andalso lists:all(fun(#{in_sync := InSync}) -> InSync end, Shards).

%% Ours alone: others watch the server, too.
kill_clients(Server) ->
    Clients = string:split(?SERVER:cli(Server, ["CLIENT", "LIST"]), "\n", all),
    Ids = [
        Id
     || Client <- Clients,
        {match, [Id]} <- [re:run(Client, "^id=(\\d+) .* name=emqx_redis_storage ", [{capture, [1], binary}])]
    ],
    [?SERVER:cli(Server, ["CLIENT", "KILL", "ID", Id]) || Id <- Ids].

is_error(ok) -> false;
is_error({ok, _}) -> false;
is_error(_) -> true.
