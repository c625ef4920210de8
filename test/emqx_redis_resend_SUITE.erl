%% A connection breaks, and the network still holds bytes that were sent on it. What they ask for is sent
%% again on the next connection, newer requests follow, and then the old bytes arrive: they must undo nothing.
%%
%% Each server stands behind a proxy, which holds the bytes.
-module(emqx_redis_resend_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(SESSION, emqx_redis_session).
-define(MESSAGE, emqx_redis_message).
-define(ROUTER, emqx_redis_router).
-define(SERVER, emqx_redis_test_server).
-define(PROXY, emqx_redis_test_proxy).
-define(CLUSTER, emqx_redis_test_cluster).
-define(SENTINELS, emqx_redis_test_sentinels).
-define(HELPERS, emqx_redis_test_helpers).
-define(STORAGE, emqx_redis_test_storage).
-define(WRITERS, emqx_redis_test_writers).
-define(PATIENT, #{timeout => 20000}).
-define(DURABLE, #{timeout => 20000, durability => {replicas, 1}}).
%% What a proxy delivers reaches Redis's sockets at once; then Redis has to read it.
-define(MOMENT, 150).

suite() ->
    [{timetrap, {minutes, 2}}].

all() ->
    [{group, single}, {group, sentinel}, {group, cluster}].

groups() ->
    Everywhere = [
        an_old_save,
        a_route_that_was_deleted,
        a_message_that_was_acknowledged,
        many_clients_at_once,
        requests_that_were_given_up,
        cut_over_and_over
    ],
    %% A single server's replica goes round the proxy.
    Levels = [an_old_write_and_a_durable_one, an_old_durable_write_and_another],
    [
        {single, Everywhere ++ Levels ++ [who_may_not_kill_repeats_nothing]},
        {sentinel, Everywhere ++ [a_master_that_comes_back]},
        {cluster, Everywhere ++ [a_slot_that_comes_back]}
    ].

init_per_group(single, Config) ->
    Server = ?SERVER:start(#{tcp => true}),
    Port = integer_to_list(?SERVER:port(Server)),
    Args = ["--replicaof", "127.0.0.1", Port, "--repl-diskless-sync-delay", "0"],
    Replica = ?SERVER:start(#{args => Args}),
    ok = ?HELPERS:wait_until(fun() -> is_in_sync(Replica) end, 20000),
    [{server, Server}, {replica, Replica} | Config];
init_per_group(sentinel, Config) ->
    %% That it is cut off for a moment makes no server one that is down.
    [{set, ?SENTINELS:start(#{replicas => 1, proxied => true, down_after => 10000})} | Config];
init_per_group(cluster, Config) ->
    [{cluster, ?CLUSTER:start(#{masters => 3, replicas => 0, proxied => true})} | Config].

end_per_group(Group, Config) ->
    case Group of
        single -> [?SERVER:stop(proplists:get_value(Key, Config)) || Key <- [replica, server]];
        sentinel -> ?SENTINELS:stop(proplists:get_value(set, Config));
        cluster -> ?CLUSTER:stop(proplists:get_value(cluster, Config))
    end.

%% The proxy before a single server is the test's own.
init_per_testcase(_Case, Config) ->
    Prepared =
        case proplists:get_value(server, Config) of
            undefined -> Config;
            Server -> [{proxy, ?PROXY:start(?SERVER:address(Server))} | Config]
        end,
    [delete_all(Server) || Server <- masters(Config)],
    ok = emqx_redis_storage:start(config(Prepared)),
    ok = ?STORAGE:wait_connected(),
    %% On a cluster each master has a connection that the proxies can hold.
    {ok, 0} = ?SESSION:count_sessions(),
    Prepared.

end_per_testcase(_Case, Config) ->
    ok = emqx_redis_storage:stop(),
    [?PROXY:stop(Proxy) || {proxy, Proxy} <- Config],
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% One after the other
%%--------------------------------------------------------------------

an_old_save(Config) ->
    ok = ?SESSION:save_session(<<"c">>, v0),
    hold(Config),
    V1 = ?SESSION:save_session_async(<<"c">>, v1, ?PATIENT),
    cut(Config),
    ?assertEqual(ok, response(V1)),
    ?assertEqual({ok, v1}, ?SESSION:load_session(<<"c">>)),
    ok = ?SESSION:save_session(<<"c">>, v2),
    ok = ?SESSION:save_session(<<"c">>, v3),
    release(Config),
    ?assertEqual({ok, v3}, ?SESSION:load_session(<<"c">>)).

a_route_that_was_deleted(Config) ->
    Filters = [<<"a/b">>, <<"a/+">>, <<"$share/g/a/#">>, <<"+/b">>],
    hold(Config),
    Adds = [?ROUTER:add_route_async(Filter, n1) || Filter <- Filters],
    cut(Config),
    [?assertEqual(ok, response(Add)) || Add <- Adds],
    {ok, Routes} = ?ROUTER:match_routes(<<"a/b">>),
    ?assertEqual(lists:sort(Filters), lists:sort([Filter || {Filter, n1} <- Routes])),
    [ok = ?ROUTER:delete_route(Filter, n1) || Filter <- Filters],
    release(Config),
    ?assertEqual({ok, []}, ?ROUTER:match_routes(<<"a/b">>)),
    ?assertEqual({ok, []}, ?ROUTER:topics()),
    ?assertEqual([<<"meta">>], keys(Config)).

a_message_that_was_acknowledged(Config) ->
    hold(Config),
    Stores = [
        ?MESSAGE:store_message_async(<<"c">>, #{id => <<"1">>}, ?PATIENT),
        ?MESSAGE:store_message_async(
            <<"c">>, #{id => <<"2">>}, maps:merge(?PATIENT, #{max_queue => 5, on_full => reject})
        )
    ],
    cut(Config),
    [?assertEqual(ok, response(Store)) || Store <- Stores],
    ?assertEqual({ok, [#{id => <<"1">>}, #{id => <<"2">>}]}, ?MESSAGE:get_messages(<<"c">>, 0, 10)),
    [ok = ?MESSAGE:ack_message(<<"c">>, Id) || Id <- [<<"1">>, <<"2">>]],
    release(Config),
    ?assertEqual({ok, []}, ?MESSAGE:get_messages(<<"c">>, 0, 10)),
    ?assertEqual([<<"meta">>], keys(Config)).

%%--------------------------------------------------------------------
%% Many
%%--------------------------------------------------------------------

many_clients_at_once(Config) ->
    Clients = [<<"c", (integer_to_binary(N))/binary>> || N <- lists:seq(1, 200)],
    hold(Config),
    Burst = [{C, submit_burst(C)} || C <- Clients],
    cut(Config),
    [check_burst(C, Requests) || {C, Requests} <- Burst],
    [ok = ?SESSION:save_session(C, 6) || C <- Clients],
    [ok = ?MESSAGE:ack_message(C, <<"1">>) || C <- Clients],
    release(Config),
    [?assertEqual({C, {ok, 6}}, {C, ?SESSION:load_session(C)}) || C <- Clients],
    Left = {ok, [#{id => <<"2">>}]},
    [?assertEqual({C, Left}, {C, ?MESSAGE:get_messages(C, 0, 10)}) || C <- Clients],
    ?assertEqual({ok, length(Clients)}, ?SESSION:count_sessions()).

submit_burst(C) ->
    Saves = [{?SESSION:save_session_async(C, N, ?PATIENT), ok} || N <- lists:seq(1, 4)],
    Others = [
        {?SESSION:load_session_async(C), {ok, 4}},
        {?MESSAGE:store_message_async(C, #{id => <<"1">>}, ?PATIENT), ok},
        {?MESSAGE:get_messages_async(C, 0, 10), {ok, [#{id => <<"1">>}]}},
        {?MESSAGE:store_message_async(C, #{id => <<"2">>}, ?PATIENT), ok},
        {?SESSION:save_session_async(C, 5, ?PATIENT), ok},
        {?SESSION:load_session_async(C), {ok, 5}}
    ],
    Saves ++ Others.

check_burst(C, Requests) ->
    Found = [response(Request) || {Request, _} <- Requests],
    ?assertEqual({C, [Expected || {_, Expected} <- Requests]}, {C, Found}).

%% What nobody waits for any more is not sent again, but its bytes are out all the same.
requests_that_were_given_up(Config) ->
    Clients = [<<"c", (integer_to_binary(N))/binary>> || N <- lists:seq(1, 50)],
    hold(Config),
    Late = [?SESSION:save_session_async(C, old, #{timeout => 100}) || C <- Clients],
    [?assertEqual({error, timeout}, response(Request)) || Request <- Late],
    New = [?SESSION:save_session_async(C, new, ?PATIENT) || C <- Clients],
    cut(Config),
    [?assertEqual(ok, response(Request)) || Request <- New],
    release(Config),
    [?assertEqual({C, {ok, new}}, {C, ?SESSION:load_session(C)}) || C <- Clients].

cut_over_and_over(Config) ->
    Shares = [[<<"w", Writer, N>> || N <- lists:seq(1, 10)] || Writer <- lists:seq(1, 16)],
    Writers = ?WRITERS:start(Shares),
    [
        begin
            timer:sleep(50),
            [?PROXY:hold_existing(Proxy) || Proxy <- proxies(Config)],
            timer:sleep(N rem 4 * 20),
            [?PROXY:cut(Proxy) || Proxy <- proxies(Config)],
            timer:sleep(N rem 3 * 30),
            [?PROXY:release(Proxy) || Proxy <- proxies(Config)]
        end
     || N <- lists:seq(1, 20)
    ],
    timer:sleep(?MOMENT),
    ?WRITERS:check(?WRITERS:stop(Writers)),
    ?assertMatch(#{counters := #{failed_unknown := 0, timed_out := 0}}, emqx_redis_storage:status()).

%%--------------------------------------------------------------------
%% Connections side by side
%%--------------------------------------------------------------------

%% A durable write takes a connection of its own. It must not pass the old one that is still on its way.
an_old_write_and_a_durable_one(Config) ->
    ok = ?SESSION:save_session(<<"warm">>, up, ?DURABLE),
    hold_but_for(<<"warm">>, Config),
    Old = ?SESSION:save_session_async(<<"c">>, old, #{timeout => 100}),
    Message = ?MESSAGE:store_message_async(<<"c">>, #{id => <<"1">>}, #{timeout => 100}),
    [?assertEqual({error, timeout}, response(Request)) || Request <- [Old, Message]],
    New = ?SESSION:save_session_async(<<"c">>, new, ?DURABLE),
    Ack = ?MESSAGE:ack_message_async(<<"c">>, <<"1">>, ?DURABLE),
    cut(Config),
    [?assertEqual(ok, response(Request)) || Request <- [New, Ack]],
    release(Config),
    ?assertEqual({ok, new}, ?SESSION:load_session(<<"c">>)),
    ?assertEqual({ok, []}, ?MESSAGE:get_messages(<<"c">>, 0, 10)).

an_old_durable_write_and_another(Config) ->
    ok = ?SESSION:save_session(<<"warm">>, up, ?DURABLE),
    hold(Config),
    Old = ?SESSION:save_session_async(<<"c">>, old, maps:merge(?DURABLE, #{timeout => 100})),
    ?assertMatch({error, _}, response(Old)),
    V1 = ?SESSION:save_session_async(<<"d">>, v1, ?DURABLE),
    New = ?SESSION:save_session_async(<<"c">>, new, ?PATIENT),
    cut(Config),
    [?assertEqual(ok, response(Request)) || Request <- [V1, New]],
    ok = ?SESSION:save_session(<<"d">>, v2),
    release(Config),
    ?assertEqual({ok, new}, ?SESSION:load_session(<<"c">>)),
    ?assertEqual({ok, v2}, ?SESSION:load_session(<<"d">>)).

%% The durable connection goes on where the other one breaks: it is made after the rest is held.
hold_but_for(Client, Config) ->
    hold(Config),
    ok = emqx_redis_storage:stop(),
    ok = emqx_redis_storage:start(config(Config)),
    ok = ?STORAGE:wait_connected(),
    _ = ?SESSION:load_session(Client),
    hold(Config),
    ok = ?SESSION:save_session(Client, up, ?DURABLE).

%%--------------------------------------------------------------------
%% Of one topology
%%--------------------------------------------------------------------

%% Nobody knows then whether the old bytes will be done: what may have been is not called ok.
who_may_not_kill_repeats_nothing(Config) ->
    Server = proplists:get_value(server, Config),
    Rules = ["on", ">secret", "~*", "&*", "+@all", "-client|kill"],
    <<"OK">> = ?SERVER:cli(Server, ["ACL", "SETUSER", "tame" | Rules]),
    #{redis := Redis} = config(Config),
    Login = Redis#{username => <<"tame">>, password => <<"secret">>},
    ok = emqx_redis_storage:start(#{redis => Login}),
    ?HELPERS:wait_until(fun() -> {ok, <<"tame">>} =:= emqx_redis_pool:query(["ACL", "WHOAMI"]) end),
    ok = ?SESSION:save_session(<<"c">>, v0),
    hold(Config),
    V1 = ?SESSION:save_session_async(<<"c">>, v1, ?PATIENT),
    cut(Config),
    ?assertMatch({error, {unknown, _}}, response(V1)),
    ?assertEqual({ok, v0}, ?SESSION:load_session(<<"c">>)),
    release(Config),
    ok = ?HELPERS:wait_until(fun() -> {ok, v1} =:= ?SESSION:load_session(<<"c">>) end),
    1 = ?SERVER:cli(Server, ["ACL", "DELUSER", "tame"]).

%% The bytes are for a master that gave the slot away and has it again.
a_slot_that_comes_back(Config) ->
    Cluster = proplists:get_value(cluster, Config),
    Slot = ?CLUSTER:key_slot("session:{c}"),
    Source = ?CLUSTER:owner(Cluster, Slot),
    [Target | _] = ?CLUSTER:masters(Cluster) -- [Source],
    ok = ?SESSION:save_session(<<"c">>, v0),
    hold(Config),
    V1 = ?SESSION:save_session_async(<<"c">>, v1, ?PATIENT),
    ?HELPERS:wait_until(fun() -> held_bytes(Config) > 0 end),
    ok = ?CLUSTER:move_slot(Cluster, Slot, Target),
    cut(Config),
    ?assertEqual(ok, response(V1)),
    ok = ?SESSION:save_session(<<"c">>, v2),
    ok = ?CLUSTER:move_slot(Cluster, Slot, Source),
    ok = ?SESSION:save_session(<<"c">>, v3),
    release(Config),
    ?assertEqual({ok, v3}, ?SESSION:load_session(<<"c">>)).

%% The bytes are for a master that was replaced and is master again.
a_master_that_comes_back(Config) ->
    Set = proplists:get_value(set, Config),
    First = ?SENTINELS:master(Set),
    ok = ?SESSION:save_session(<<"c">>, v0),
    hold(Config),
    V1 = ?SESSION:save_session_async(<<"c">>, v1, ?PATIENT),
    cut(Config),
    ?assertEqual(ok, response(V1)),
    follows(Set, ?SENTINELS:failover(Set)),
    ok = ?SESSION:save_session(<<"c">>, v2, ?PATIENT),
    ok = ?SENTINELS:wait_until_healthy(Set),
    First = ?SENTINELS:failover(Set),
    follows(Set, First),
    ok = ?SESSION:save_session(<<"c">>, v3, ?PATIENT),
    release(Config),
    ?assertEqual({ok, v3}, ?SESSION:load_session(<<"c">>)).

%% What the old master does after the new one is made, and before it is told, is lost.
follows(Set, Master) ->
    Address = ?SENTINELS:address(Set, Master),
    ?HELPERS:wait_until(
        fun() ->
            #{connections := Connections} = emqx_redis_storage:status(),
            [Address] =:= [Server || #{name := data, state := connected, server := Server} <- Connections]
        end,
        20000
    ).

%%--------------------------------------------------------------------
%% The network
%%--------------------------------------------------------------------

hold(Config) ->
    lists:foreach(fun(Proxy) -> ok = ?PROXY:hold_existing(Proxy) end, proxies(Config)).

%% When something is held: else the test would show nothing.
cut(Config) ->
    ?HELPERS:wait_until(fun() -> held_bytes(Config) > 0 end),
    lists:foreach(fun(Proxy) -> ok = ?PROXY:cut(Proxy) end, proxies(Config)).

release(Config) ->
    lists:foreach(fun(Proxy) -> ok = ?PROXY:release(Proxy) end, proxies(Config)),
    timer:sleep(?MOMENT).

held_bytes(Config) ->
    lists:sum([?PROXY:held_bytes(Proxy) || Proxy <- proxies(Config)]).

proxies(Config) ->
    case {proplists:get_value(set, Config), proplists:get_value(cluster, Config)} of
        {undefined, undefined} -> [proplists:get_value(proxy, Config)];
        {undefined, Cluster} -> [?CLUSTER:proxy(Cluster, Node) || Node <- ?CLUSTER:nodes(Cluster)];
        {Set, undefined} -> [?SENTINELS:proxy(Set, Server) || Server <- ?SENTINELS:servers(Set)]
    end.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

config(Config) ->
    #{redis := Redis} =
        case {proplists:get_value(set, Config), proplists:get_value(cluster, Config)} of
            {undefined, undefined} ->
                #{redis => #{servers => ?PROXY:servers(proplists:get_value(proxy, Config))}};
            {undefined, Cluster} ->
                ?CLUSTER:config(Cluster);
            {Set, undefined} ->
                ?SENTINELS:config(Set)
        end,
    #{redis => Redis#{outage_grace => <<"15s">>}}.

masters(Config) ->
    case {proplists:get_value(set, Config), proplists:get_value(cluster, Config)} of
        {undefined, undefined} -> [proplists:get_value(server, Config)];
        {undefined, Cluster} -> ?CLUSTER:masters(Cluster);
        {Set, undefined} -> [?SENTINELS:master(Set)]
    end.

keys(Config) ->
    Keys = lists:append([?SERVER:cli(Master, ["KEYS", "*"]) || Master <- masters(Config)]),
    [Key || Key <- Keys, not emqx_redis_test_storage:is_of_followers(Key)].

delete_all(Master) ->
    Keys = ?SERVER:cli(Master, ["KEYS", "*"]),
    [1 = ?SERVER:cli(Master, ["DEL", Key]) || Key <- Keys, Key =/= <<"meta">>].

is_in_sync(Replica) ->
    case ?SERVER:cli(Replica, ["ROLE"]) of
        [<<"slave">>, _Host, _Port, <<"connected">>, _Read] -> true;
        _ -> false
    end.

response(Request) ->
    {reply, Result} = emqx_redis_storage:receive_response(Request, 25000),
    Result.
