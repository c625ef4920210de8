%% A cluster while nothing breaks: every key in its slot, exact lists and counts, slots and nodes that move
%% while requests go on. What becomes of requests when nodes fail is in emqx_redis_cluster_outage_SUITE.
-module(emqx_redis_cluster_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(SESSION, emqx_redis_session).
-define(MESSAGE, emqx_redis_message).
-define(ROUTER, emqx_redis_router).
-define(CLUSTER, emqx_redis_test_cluster).
-define(SERVER, emqx_redis_test_server).
-define(HELPERS, emqx_redis_test_helpers).
-define(STORAGE, emqx_redis_test_storage).
-define(WRITERS, emqx_redis_test_writers).
%% A request that waits for a slot to be whole.
-define(PATIENT, #{timeout => 30000}).

suite() ->
    [{timetrap, {minutes, 2}}].

all() ->
    [
        any_seed_suffices,
        no_seed_that_lives,
        a_seed_that_is_no_cluster_node,
        every_key_is_in_its_slot,
        lists_and_counts_are_exact,
        topics_are_exact,
        a_pipeline_answers_each_in_its_place,
        what_has_expired_leaves_every_index,
        reads_of_another_client_agree,
        a_slot_that_is_half_moved,
        a_slot_whose_index_has_moved,
        order_while_a_slot_moves_to_and_fro,
        moving_slots_lose_nothing,
        nodes_come_and_go
    ].

init_per_suite(Config) ->
    Cluster = ?CLUSTER:start(#{masters => 3, replicas => 0}),
    [{cluster, Cluster} | Config].

end_per_suite(Config) ->
    ok = emqx_redis_storage:stop(),
    ?CLUSTER:stop(cluster(Config)).

init_per_testcase(_Case, Config) ->
    Cluster = cluster(Config),
    ok = emqx_redis_storage:start(?CLUSTER:config(Cluster)),
    ok = ?STORAGE:wait_connected(),
    [delete_all(Cluster, Master) || Master <- ?CLUSTER:masters(Cluster)],
    Config.

end_per_testcase(_Case, _Config) ->
    ok = emqx_redis_storage:stop(),
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% Seeds
%%--------------------------------------------------------------------

any_seed_suffices(Config) ->
    Cluster = cluster(Config),
    Clients = ids("c", 50),
    [ok = ?SESSION:save_session(C, C) || C <- Clients],
    Dead = iolist_to_binary(["127.0.0.1:", integer_to_list(?SERVER:free_port())]),
    [
        begin
            ok = emqx_redis_storage:stop(),
            #{redis := Redis = #{servers := Seed}} = ?CLUSTER:config(Cluster, [Node]),
            Seeds = <<Dead/binary, ",", Seed/binary>>,
            ok = emqx_redis_storage:start(#{redis => Redis#{servers := Seeds}}),
            [?assertEqual({ok, C}, ?SESSION:load_session(C)) || C <- Clients]
        end
     || Node <- ?CLUSTER:nodes(Cluster)
    ].

no_seed_that_lives(_Config) ->
    ok = emqx_redis_storage:stop(),
    Seed = fun() -> ["127.0.0.1:", integer_to_list(?SERVER:free_port())] end,
    Seeds = iolist_to_binary([Seed(), ",", Seed()]),
    Redis = #{type => cluster, servers => Seeds, outage_grace => <<"600ms">>},
    ok = emqx_redis_storage:start(#{redis => Redis}),
    {Micros, Result} = timer:tc(fun() -> ?SESSION:save_session(<<"c">>, x) end),
    ?assertEqual({error, {unavailable, econnrefused}}, Result),
    ?assert(Micros < 3000000, Micros),
    ?assertMatch({error, {unavailable, _}}, ?SESSION:count_sessions()),
    ?assertMatch({error, {unavailable, _}}, ?SESSION:list_sessions(10, 0)),
    ?assertMatch({error, {unavailable, _}}, ?ROUTER:topics()),
    Clients = [<<"a">>, <<"b">>],
    ?assertMatch({error, {unavailable, _}}, ?MESSAGE:store_message_for(Clients, #{id => <<"m">>})).

a_seed_that_is_no_cluster_node(_Config) ->
    ok = emqx_redis_storage:stop(),
    Server = ?SERVER:start(#{tcp => true}),
    Redis = #{type => cluster, servers => ?SERVER:servers(Server), outage_grace => <<"600ms">>},
    ok = emqx_redis_storage:start(#{redis => Redis}),
    {error, {unavailable, {server, Text}}} = ?SESSION:save_session(<<"c">>, x),
    ?assertMatch({match, _}, re:run(Text, "cluster support disabled")),
    ok = ?SERVER:stop(Server).

%%--------------------------------------------------------------------
%% Where data is
%%--------------------------------------------------------------------

%% All of one client's keys share a slot with the indexes that name them, so that each operation is one
%% atomic unit on one node.
every_key_is_in_its_slot(Config) ->
    Cluster = cluster(Config),
    Ids = ?STORAGE:adversarial_ids() ++ [crypto:strong_rand_bytes(9) || _ <- lists:seq(1, 50)],
    M = #{id => <<"{}%:", 0>>},
    [
        begin
            {ok, #{epoch := Epoch}} = ?SESSION:claim_session(Id, #{}),
            ok = ?SESSION:save_session(Id, {Id, data}, #{epoch => Epoch}),
            ok = ?MESSAGE:store_message(Id, M),
            ok = ?MESSAGE:store_message(Id, M#{id => Id}, #{max_queue => 10}),
            ok = ?MESSAGE:store_messages(Id, [M#{id => <<N>>} || N <- [1, 2, 3]]),
            ok = ?MESSAGE:ack_messages(Id, [<<1>>, <<2>>], #{epoch => Epoch})
        end
     || Id <- Ids
    ],
    [
        begin
            ?assertEqual({ok, {Id, data}}, ?SESSION:load_session(Id)),
            {ok, Messages} = ?MESSAGE:get_messages(Id, 0, 10),
            ?assertEqual([M, M#{id => Id}, M#{id => <<3>>}], Messages)
        end
     || Id <- Ids
    ],
    ?assertEqual({ok, length(Ids)}, ?SESSION:count_sessions()),
    Keys = ?CLUSTER:all_keys(Cluster),
    [?assertEqual(slot_of_tag(Key), ?CLUSTER:key_slot(Key), Key) || Key <- Keys, Key =/= <<"meta">>],
    %% Four keys of each client (one of them thrice), and four indexes in each slot that is used.
    Slots = lists:usort([?CLUSTER:key_slot(Key) || Key <- Keys, Key =/= <<"meta">>]),
    ?assertEqual(6 * length(Ids) + 4 * length(Slots) + 1, length(Keys)),
    [ok = ?MESSAGE:delete_messages(Id, #{epoch => 1}) || Id <- Ids],
    [ok = ?SESSION:delete_session(Id, #{epoch => 1}) || Id <- Ids],
    Left = [Key || Key <- ?CLUSTER:all_keys(Cluster), binary:match(Key, <<"epoch:">>) =/= {0, 6}],
    ?assertEqual([<<"meta">>], Left).

%% What stands between the first brace and the next closing one.
slot_of_tag(Key) ->
    [_, Rest] = binary:split(Key, <<"{">>),
    [Tag, _] = binary:split(Rest, <<"}">>),
    ?assertNotEqual(<<>>, Tag),
    ?CLUSTER:key_slot(Tag).

%%--------------------------------------------------------------------
%% Lists over all slots
%%--------------------------------------------------------------------

lists_and_counts_are_exact(_Config) ->
    Ids = ids("stays", 5000),
    Requests = [?SESSION:save_session_async(Id, x) || Id <- Ids],
    Short = [?SESSION:save_session_async(Id, x, #{ttl => 1}) || Id <- ids("goes", 1000)],
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(R, 10000)) || R <- Requests ++ Short],
    timer:sleep(1010),
    ?assertEqual({ok, 5000}, ?SESSION:count_sessions()),
    ?assertEqual(lists:sort(Ids), pages(5000, 0)),
    %% What others write meanwhile to sessions that are there changes no page.
    Writer = spawn_link(fun() -> save_over_and_over(<<"stays1">>, 1) end),
    [?assertEqual({Limit, lists:sort(Ids)}, {Limit, pages(Limit, 0)}) || Limit <- [1000, 100]],
    ?assertEqual({ok, 5000}, ?SESSION:count_sessions()),
    unlink(Writer),
    exit(Writer, kill),
    %% Small pages of a part.
    {ok, All} = ?SESSION:list_sessions(5000, 0),
    [
        ?assertEqual({ok, lists:sublist(All, Offset + 1, 7)}, ?SESSION:list_sessions(7, Offset), Offset)
     || Offset <- lists:seq(0, 210, 7) ++ [4990, 4996, 5000, 4294967295]
    ],
    ?assertEqual({ok, []}, ?SESSION:list_sessions(0, 0)).

save_over_and_over(Client, N) ->
    ok = ?SESSION:save_session(Client, N),
    save_over_and_over(Client, N + 1).

%% Sorted, and as many as there are, so that one listed twice shows.
pages(Limit, Offset) ->
    lists:sort(pages_from(Limit, Offset)).

pages_from(Limit, Offset) ->
    {ok, Page} = ?SESSION:list_sessions(Limit, Offset),
    case length(Page) of
        Limit -> Page ++ pages_from(Limit, Offset + Limit);
        _ -> Page
    end.

topics_are_exact(_Config) ->
    Name = fun(N) -> iolist_to_binary([integer_to_list(N rem 97), "/", integer_to_list(N)]) end,
    Plain = [Name(N) || N <- lists:seq(1, 2000)],
    Wild = [<<"+/w", (integer_to_binary(N))/binary>> || N <- lists:seq(1, 200)],
    Shared = [<<"$share/g/", (integer_to_binary(N))/binary, "/#">> || N <- lists:seq(1, 200)],
    Filters = Plain ++ Wild ++ Shared,
    Requests = [?ROUTER:add_route_async(F, node()) || F <- Filters],
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(R, 10000)) || R <- Requests],
    {ok, Topics} = ?ROUTER:topics(),
    ?assertEqual(lists:sort(Filters), lists:sort(Topics)),
    {ok, Routes} = ?ROUTER:match_routes(<<"7/w5">>),
    ?assertEqual([<<"$share/g/7/#">>, <<"+/w5">>], lists:sort([F || {F, _} <- Routes])),
    Deletes = [?ROUTER:delete_route_async(F, node()) || F <- Filters],
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(R, 10000)) || R <- Deletes],
    ?assertEqual({ok, []}, ?ROUTER:topics()).

a_pipeline_answers_each_in_its_place(_Config) ->
    Keys = ids("k", 500),
    {ok, Set} = emqx_redis_pool:pipeline([["SET", K, K] || K <- Keys]),
    ?assertEqual([{ok, <<"OK">>}], lists:usort(Set)),
    {ok, Got} = emqx_redis_pool:pipeline([["GET", K] || K <- Keys]),
    ?assertEqual([{ok, K} || K <- Keys], Got).

%%--------------------------------------------------------------------
%% Expiry
%%--------------------------------------------------------------------

what_has_expired_leaves_every_index(Config) ->
    Cluster = cluster(Config),
    Requests =
        [?SESSION:save_session_async(Id, x, #{ttl => 1}) || Id <- ids("s", 300)] ++
            [?MESSAGE:store_message_async(Id, #{id => <<"m">>}, #{ttl => 1}) || Id <- ids("m", 300)],
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(R, 10000)) || R <- Requests],
    ?assert(length(?CLUSTER:all_keys(Cluster)) > 1000),
    ?HELPERS:wait_until(fun() -> ?CLUSTER:all_keys(Cluster) =:= [<<"meta">>] end, 30000),
    #{counters := Counters} = emqx_redis_storage:status(),
    #{expired_sessions := Sessions, expired_messages := Messages} = Counters,
    ?assertEqual({300, 300}, {Sessions, Messages}).

%%--------------------------------------------------------------------
%% Another client
%%--------------------------------------------------------------------

reads_of_another_client_agree(Config) ->
    Cluster = cluster(Config),
    [
        begin
            ok = ?SESSION:save_session(C, C),
            Key = <<"session:{", C/binary, "}">>,
            Data = ?CLUSTER:command_by_key(Cluster, Key, ["HGET", Key, "data"]),
            ?assertEqual(C, emqx_redis_test_msgpack:decode(Data)),
            1 = ?CLUSTER:command_by_key(Cluster, Key, ["DEL", Key]),
            ?assertEqual({error, not_found}, ?SESSION:load_session(C))
        end
     || C <- ids("c", 100)
    ].

%%--------------------------------------------------------------------
%% Slots that move
%%--------------------------------------------------------------------

%% The indexes and most keys are where they were, the keys of some clients are not.
a_slot_that_is_half_moved(Config) ->
    half_moved(Config, fun(_Slot, [_Here, There, Apart, _New]) ->
        [session_key(There), queue_key(There), message_key(There, <<"1">>), message_key(There, <<"2">>)] ++
            [session_key(Apart), message_key(Apart, <<"1">>)]
    end).

a_slot_whose_index_has_moved(Config) ->
    half_moved(Config, fun(Slot, [_Here, There, Apart, _New]) ->
        Cluster = cluster(Config),
        Keys = ?CLUSTER:cli(Cluster, ?CLUSTER:owner(Cluster, Slot), ["CLUSTER", "GETKEYSINSLOT", Slot, 1000]),
        Indexes = [Key || Key <- Keys, binary:match(Key, [<<"sync:">>, <<"expiry:">>]) =/= nomatch],
        4 = length(Indexes),
        Indexes ++ [session_key(There), queue_key(There), message_key(There, <<"1">>)] ++
            [message_key(There, <<"2">>), queue_key(Apart)]
    end).

%% Whatever a client's requests meet, they are done in order and once, at the latest when the slot is whole;
%% those of other slots do not notice.
half_moved(Config, WhichMove) ->
    Cluster = cluster(Config),
    Clients = [Here, There, Apart, New] = same_slot(4),
    Slot = ?CLUSTER:key_slot(session_key(Here)),
    Others = [C || C <- ids("other", 200), ?CLUSTER:key_slot(C) =/= Slot],
    [ok = ?SESSION:save_session(C, v0) || C <- [Here, There, Apart | Others]],
    Old = [#{id => <<"1">>}, #{id => <<"2">>}],
    [ok = ?MESSAGE:store_messages(C, Old) || C <- [Here, There, Apart]],
    [Target | _] = ?CLUSTER:masters(Cluster) -- [?CLUSTER:owner(Cluster, Slot)],
    ok = ?CLUSTER:begin_move(Cluster, Slot, Target),
    migrate(Cluster, Slot, Target, WhichMove(Slot, Clients)),
    Begin = erlang:monotonic_time(millisecond),
    %% All are sent before the first is answered.
    Source = ?CLUSTER:owner(Cluster, Slot),
    ok = ?CLUSTER:pause(Cluster, Source),
    Requests = [{C, submit(C)} || C <- Clients],
    timer:sleep(100),
    ok = ?CLUSTER:resume(Cluster, Source),
    %% Each index is on one node, wherever it is. The new client's session may be there already.
    {ok, Count} = ?SESSION:count_sessions(),
    ?assert(lists:member(Count - length(Others), [3, 4]), Count),
    Slowest = lists:max([element(1, timer:tc(fun() -> use(C) end)) || C <- Others, _ <- [1, 2]]),
    %% Who will not wait for that long is told so, and nothing is done.
    ?assertEqual({error, timeout}, ?SESSION:save_session(Apart, never, #{timeout => 200})),
    ?assert(erlang:monotonic_time(millisecond) - Begin < 4500),
    ct:pal("slowest operation elsewhere: ~b us", [Slowest]),
    ?assert(Slowest < 1000000, Slowest),
    _ = ?CLUSTER:move_keys(Cluster, Slot, Target, all),
    ok = ?CLUSTER:finish_move(Cluster, Slot, Target),
    [check_submitted(C, Of, case C of New -> []; _ -> Old end) || {C, Of} <- Requests],
    ?assertEqual({ok, 4 + length(Others)}, ?SESSION:count_sessions()),
    {ok, Listed} = ?SESSION:list_sessions(1000, 0),
    ?assertEqual(lists:sort(Clients ++ Others), lists:sort(Listed)),
    nothing_doubled(Cluster, Slot, Clients).

submit(C) ->
    [
        {save_1, ?SESSION:save_session_async(C, v1, ?PATIENT)},
        {load_1, ?SESSION:load_session_async(C)},
        {store, ?MESSAGE:store_message_async(C, #{id => <<"3">>}, ?PATIENT)},
        {get_3, ?MESSAGE:get_messages_async(C, 0, 10)},
        {ack, ?MESSAGE:ack_message_async(C, <<"1">>, ?PATIENT)},
        {limited, ?MESSAGE:store_message_async(C, #{id => <<"4">>}, maps:put(max_queue, 10, ?PATIENT))},
        {get_4, ?MESSAGE:get_messages_async(C, 0, 10)},
        {save_2, ?SESSION:save_session_async(C, v2, ?PATIENT)},
        {claim, ?SESSION:claim_session_async(C, ?PATIENT)},
        {load_2, ?SESSION:load_session_async(C)}
    ].

check_submitted(C, Requests, Old) ->
    Three = #{id => <<"3">>},
    Four = #{id => <<"4">>},
    Expected = #{
        load_1 => {ok, v1},
        get_3 => {ok, Old ++ [Three]},
        get_4 => {ok, (Old -- [#{id => <<"1">>}]) ++ [Three, Four]},
        claim => {ok, #{epoch => 1, session => v2}},
        load_2 => {ok, v2}
    },
    Found = [{C, What, emqx_redis_storage:receive_response(R, 20000)} || {What, R} <- Requests],
    ?assertEqual([{C, What, {reply, maps:get(What, Expected, ok)}} || {What, _} <- Requests], Found).

use(C) ->
    ok = ?SESSION:save_session(C, v1),
    {ok, v1} = ?SESSION:load_session(C),
    ok = ?MESSAGE:store_message(C, #{id => <<"1">>}),
    {ok, [#{id := <<"1">>}]} = ?MESSAGE:get_messages(C, 0, 10),
    ok = ?MESSAGE:ack_message(C, <<"1">>).

%% Of each client of the slot there is what there should be, in the indexes too.
nothing_doubled(Cluster, Slot, Clients) ->
    Owner = ?CLUSTER:owner(Cluster, Slot),
    [
        begin
            ?assertEqual({Key, length(Clients)}, {Key, ?CLUSTER:cli(Cluster, Owner, ["ZCARD", Key])})
        end
     || Key <- ?CLUSTER:cli(Cluster, Owner, ["CLUSTER", "GETKEYSINSLOT", Slot, 1000]),
        binary:match(Key, [<<"sync:sessions">>, <<"expiry:sessions">>]) =/= nomatch
    ].

%% Bursts on clients of one slot, which is never at rest.
order_while_a_slot_moves_to_and_fro(Config) ->
    Cluster = cluster(Config),
    Clients = same_slot(8),
    Slot = ?CLUSTER:key_slot(session_key(hd(Clients))),
    Writers = ?WRITERS:start([[C] || C <- Clients]),
    [
        begin
            [Target | _] = ?CLUSTER:masters(Cluster) -- [?CLUSTER:owner(Cluster, Slot)],
            ok = ?CLUSTER:begin_move(Cluster, Slot, Target),
            _ = ?CLUSTER:move_keys(Cluster, Slot, Target, 1 + N rem 20),
            timer:sleep(N rem 3 * 8),
            _ = ?CLUSTER:move_keys(Cluster, Slot, Target, all),
            ok = ?CLUSTER:finish_move(Cluster, Slot, Target)
        end
     || N <- lists:seq(1, 40)
    ],
    Written = ?WRITERS:stop(Writers),
    ?WRITERS:check(Written).

moving_slots_lose_nothing(Config) ->
    Cluster = cluster(Config),
    Writers = ?WRITERS:start([ids(["w", integer_to_list(N), "-"], 60) || N <- lists:seq(1, 32)]),
    [A, B, C] = ?CLUSTER:masters(Cluster),
    [
        begin
            Slots = ?CLUSTER:reshard(Cluster, From, To, 1000),
            ?assertEqual(1000, length(Slots))
        end
     || {From, To} <- [{A, B}, {B, C}, {C, A}]
    ],
    Written = ?WRITERS:stop(Writers),
    ?WRITERS:check(Written),
    #{counters := #{redirected := Redirected}} = emqx_redis_storage:status(),
    ct:pal("~b redirections", [Redirected]),
    ?assert(Redirected > 0).

nodes_come_and_go(Config) ->
    Cluster = cluster(Config),
    Writers = ?WRITERS:start([ids(["n", integer_to_list(N), "-"], 60) || N <- lists:seq(1, 8)]),
    Masters = [First | _] = ?CLUSTER:masters(Cluster),
    New = ?CLUSTER:add_master(Cluster),
    _ = [?CLUSTER:reshard(Cluster, Master, New, 300) || Master <- Masters],
    timer:sleep(300),
    ok = ?CLUSTER:remove_master(Cluster, New),
    timer:sleep(300),
    ?WRITERS:check(?WRITERS:stop(Writers)),
    ?assertEqual(lists:sort(Masters), lists:sort(?CLUSTER:masters(Cluster))),
    %% Nobody connects to it any more.
    ?HELPERS:wait_until(fun() ->
        #{connections := Connections} = emqx_redis_storage:status(),
        lists:all(fun(#{state := State}) -> State =:= connected end, Connections)
    end),
    ?assert(lists:member(First, ?CLUSTER:masters(Cluster))).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

cluster(Config) -> proplists:get_value(cluster, Config).

ids(Prefix, Count) ->
    [iolist_to_binary([Prefix, integer_to_list(N)]) || N <- lists:seq(1, Count)].

session_key(C) -> <<"session:{", C/binary, "}">>.

queue_key(C) -> <<"msgq:{", C/binary, "}">>.

message_key(C, Id) -> <<"msg:{", C/binary, "}:", Id/binary>>.

%% Client ids of one slot that have not been there before.
same_slot(Count) ->
    Run = integer_to_binary(erlang:unique_integer([positive])),
    First = <<"same-", Run/binary>>,
    same_slot(?CLUSTER:key_slot(First), Run, Count - 1, 1, [First]).

same_slot(_Slot, _Run, 0, _N, Found) ->
    Found;
same_slot(Slot, Run, Count, N, Found) ->
    Id = <<"same-", Run/binary, "-", (integer_to_binary(N))/binary>>,
    case ?CLUSTER:key_slot(Id) of
        Slot -> same_slot(Slot, Run, Count - 1, N + 1, [Id | Found]);
        _ -> same_slot(Slot, Run, Count, N + 1, Found)
    end.

migrate(Cluster, Slot, Target, Keys) ->
    Source = ?CLUSTER:owner(Cluster, Slot),
    Command = ["MIGRATE", "127.0.0.1", ?SERVER:port(Target), "", 0, 5000, "KEYS" | Keys],
    <<"OK">> = ?CLUSTER:cli(Cluster, Source, Command),
    ok.

%% But for what the storage wrote when it connected.
delete_all(Cluster, Master) ->
    Keys = [Key || Key <- ?CLUSTER:cli(Cluster, Master, ["KEYS", "*"]), Key =/= <<"meta">>],
    %% The sweeper may have been there first.
    lists:foreach(fun(Key) -> _ = ?CLUSTER:cli(Cluster, Master, ["DEL", Key]) end, Keys).
