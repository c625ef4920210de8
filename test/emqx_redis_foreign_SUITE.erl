%% Values of others at our keys: a documented error, then everything works again, and nothing is lost.
-module(emqx_redis_foreign_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(STORAGE, emqx_redis_test_storage).
-define(C, <<"c:1">>).

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [{group, single}, {group, cluster}].

groups() ->
    [{single, cases()}, {cluster, cases()}].

cases() ->
    [
        a_value_of_another_type_is_moved_away,
        garbage_where_an_epoch_should_be,
        garbage_where_a_session_should_be,
        garbage_where_a_message_should_be,
        a_message_of_another_type,
        one_client_does_not_harm_the_others,
        what_a_trie_lost_is_put_back,
        a_trie_that_is_not_whole_answers_nothing,
        one_filter_does_not_harm_the_others
    ].

init_per_group(Topology, Config) -> ?STORAGE:start([{topology, Topology} | Config]).

end_per_group(_Topology, Config) -> ?STORAGE:stop(Config).

init_per_testcase(_Case, Config) -> ?STORAGE:reset(Config).

end_per_testcase(_Case, _Config) ->
    [] = emqx_redis_test_helpers:stray_messages(20),
    ok.

%% Whatever operation meets it first.
a_value_of_another_type_is_moved_away(Config) ->
    Save = fun() -> emqx_redis_session:save_session(?C, 1) end,
    Load = fun() -> emqx_redis_session:load_session(?C) end,
    Delete = fun() -> emqx_redis_session:delete_session(?C) end,
    Claim = fun() -> emqx_redis_session:claim_session(?C, #{}) end,
    List = fun() -> emqx_redis_session:list_sessions(10, 0) end,
    Count = fun() -> emqx_redis_session:count_sessions() end,
    M = #{id => <<"m">>},
    Store = fun() -> emqx_redis_message:store_message(?C, M) end,
    Limited = fun() -> emqx_redis_message:store_message(?C, M, #{max_queue => 1}) end,
    Get = fun() -> emqx_redis_message:get_messages(?C, 0, 10) end,
    Ack = fun() -> emqx_redis_message:ack_message(?C, <<"m">>) end,
    Clear = fun() -> emqx_redis_message:delete_messages(?C) end,
    Filter = <<"a/+">>,
    Add = fun() -> emqx_redis_router:add_route(Filter, node()) end,
    Remove = fun() -> emqx_redis_router:delete_route(Filter, node()) end,
    Match = fun() -> ?STORAGE:match_in_redis(<<"a/b">>) end,
    Topics = fun() -> emqx_redis_router:topics() end,
    Subscribe = fun() -> emqx_redis_subscription:add_subscription(Filter, ?C, #{qos => 1}) end,
    Unsubscribe = fun() -> emqx_redis_subscription:delete_subscription(Filter, ?C) end,
    Subscribers = fun() -> subscribers(<<"a/b">>) end,
    Names = names(Config),
    %% In a cluster nothing is listed of a slot whose sessions are counted as none.
    Cases = [
        {<<"session:c:1">>, [Save, Load, Claim]},
        {<<"epoch:c:1">>, [Save, Delete, Claim, Ack, Clear]},
        {<<"sync:sessions">>, [Save, Delete | [List || ?STORAGE:topology(Config) =:= single]]},
        {<<"expiry:sessions">>, [Save, Delete, List, Count]},
        {<<"msgq:c:1">>, [Store, Limited, Get, Ack, Clear]},
        {<<"sync:messages">>, [Store, Limited, Ack]},
        {<<"expiry:messages">>, [Store, Limited, Get, Ack]},
        {<<"route:a/+">>, [Add, Remove]},
        {<<"sync:routes">>, [Add, Remove, Topics]},
        {<<"route:wildcards">>, [Add, Remove]},
        {<<"trie">>, [Add, Match]},
        {<<"trie:a/+">>, [Add, Remove]},
        {<<"psub:a/+">>, [Subscribe, Unsubscribe]},
        {<<"sync:psubs">>, [Subscribe, Unsubscribe]},
        {<<"ptrie">>, [Subscribe, Subscribers]},
        {<<"ptrie:a/+">>, [Subscribe, Unsubscribe]}
    ],
    [
        begin
            ?STORAGE:reset(Config),
            1 = ?STORAGE:cli(Config, ["LPUSH", maps:get(Key, Names), "theirs"]),
            Case = {Key, N},
            First = Operation(),
            %% The sweeper may have come first.
            ?assertMatch({true, _}, {is_partial(First) orelse moved(Config) =/= [], Case}),
            Again = Operation(),
            Works = lists:member(Again, [ok, {error, not_found}]) orelse element(1, Again) =:= ok,
            ?assertEqual({true, Case}, {Works, Case}),
            [Moved] = moved(Config),
            ?assertEqual([<<"theirs">>], ?STORAGE:cli(Config, ["LRANGE", Moved, 0, -1])),
            ?assert(?STORAGE:cli(Config, ["TTL", Moved]) > 6 * 86400)
        end
     || {Key, Operations} <- Cases,
        {N, Operation} <- lists:zip(lists:seq(1, length(Operations)), Operations)
    ].

garbage_where_an_epoch_should_be(Config) ->
    [
        begin
            ?STORAGE:reset(Config),
            <<"OK">> = ?STORAGE:cli(Config, ["SET", ?STORAGE:key(Config, {epoch, ?C}), Garbage]),
            ?assertMatch({error, {partial, _}}, Operation(), Garbage),
            ?assertEqual(1, length(moved(Config))),
            ?assertMatch({ok, #{epoch := 1}}, emqx_redis_session:claim_session(?C, #{}))
        end
     || Garbage <- [<<"abc">>, <<>>, <<"1.5">>, <<"-3">>, <<" 7">>, <<"99999999999999999999">>, <<0, 255>>],
        Operation <- [
            fun() -> emqx_redis_session:save_session(?C, 1) end,
            fun() -> emqx_redis_session:save_session(?C, 1, #{epoch => 1}) end,
            fun() -> emqx_redis_session:claim_session(?C, #{}) end,
            fun() -> emqx_redis_message:ack_message(?C, <<"m">>, #{epoch => 1}) end
        ]
    ].

garbage_where_a_session_should_be(Config) ->
    %% A hash without our field is no session.
    Key = ?STORAGE:key(Config, {session, ?C}),
    1 = ?STORAGE:cli(Config, ["HSET", Key, "other", "1"]),
    ?assertEqual({error, not_found}, emqx_redis_session:load_session(?C)),
    [
        begin
            _ = ?STORAGE:cli(Config, ["HSET", Key, "data", Garbage]),
            Load = emqx_redis_session:load_session(?C),
            ?assertMatch({error, {undecodable, #{reason := _}}}, Load, Garbage),
            Claim = emqx_redis_session:claim_session(?C, #{}),
            ?assertMatch({error, {undecodable, #{reason := _}}}, Claim, Garbage)
        end
     || Garbage <- [
            <<>>, <<"garbage">>, <<16#c1>>, <<16#dd, -1:32>>, <<16#91>>, binary:copy(<<16#91>>, 100000)
        ]
    ],
    %% It can be taken over all the same.
    Epoch = binary_to_integer(?STORAGE:cli(Config, ["GET", ?STORAGE:key(Config, {epoch, ?C})])),
    ok = emqx_redis_session:save_session(?C, new, #{epoch => Epoch}),
    ?assertEqual({ok, new}, emqx_redis_session:load_session(?C)).

garbage_where_a_message_should_be(Config) ->
    [
        begin
            [ok = emqx_redis_message:store_message(?C, #{id => <<N>>}) || N <- [1, 2, 3]],
            <<"OK">> = ?STORAGE:cli(Config, ["SET", ?STORAGE:key(Config, {message, ?C, <<2>>}), Garbage]),
            Bad = emqx_redis_message:get_messages(?C, 0, 10),
            ?assertMatch({error, {undecodable, #{message_id := <<2>>, reason := _}}}, Bad, Garbage),
            ?assertEqual({ok, [#{id => <<1>>}]}, emqx_redis_message:get_messages(?C, 0, 1)),
            ok = emqx_redis_message:ack_message(?C, <<2>>),
            ?assertEqual({ok, [#{id => <<1>>}, #{id => <<3>>}]}, emqx_redis_message:get_messages(?C, 0, 10))
        end
     || Garbage <- [<<>>, <<"garbage">>, <<16#c1>>, <<42>>, <<16#93, 1, 2, 3>>]
    ].

a_message_of_another_type(Config) ->
    [ok = emqx_redis_message:store_message(?C, #{id => <<N>>}) || N <- [1, 2, 3]],
    Key = ?STORAGE:key(Config, {message, ?C, <<2>>}),
    1 = ?STORAGE:cli(Config, ["DEL", Key]),
    1 = ?STORAGE:cli(Config, ["LPUSH", Key, "theirs"]),
    ?assertMatch({error, {partial, _}}, emqx_redis_message:get_messages(?C, 0, 10)),
    ?assertEqual({ok, [#{id => <<1>>}, #{id => <<3>>}]}, emqx_redis_message:get_messages(?C, 0, 10)),
    [Moved] = moved(Config),
    ?assertEqual([<<"theirs">>], ?STORAGE:cli(Config, ["LRANGE", Moved, 0, -1])).

one_client_does_not_harm_the_others(Config) ->
    Key = ?STORAGE:key(Config, {queue, <<"bad">>}),
    <<"OK">> = ?STORAGE:cli(Config, ["SET", Key, "theirs"]),
    M = #{id => <<"m">>},
    [
        begin
            ?assertMatch(
                {error, {partial, [{<<"bad">>, {partial, _}}]}},
                emqx_redis_message:store_message_for([<<"a">>, <<"bad">>, <<"z">>], M, Opts)
            ),
            ?assertEqual({ok, [M]}, emqx_redis_message:get_messages(<<"a">>, 0, 10)),
            ?assertEqual({ok, [M]}, emqx_redis_message:get_messages(<<"z">>, 0, 10)),
            ?assertEqual(ok, emqx_redis_message:store_message_for([<<"a">>, <<"bad">>, <<"z">>], M, Opts)),
            ?assertEqual({ok, [M]}, emqx_redis_message:get_messages(<<"bad">>, 0, 10)),
            1 = ?STORAGE:cli(Config, ["DEL", Key]),
            <<"OK">> = ?STORAGE:cli(Config, ["SET", Key, "theirs"])
        end
     || Opts <- [#{}, #{max_queue => 3}]
    ].

%% In whatever way it was lost.
what_a_trie_lost_is_put_back(Config) ->
    Filters = [<<"a/+">>, <<"a/#">>, <<"$share/g/a/+">>, <<"$share/h/a/b">>],
    Others = [<<"a/b">>, <<"b/+">>],
    Nodes = [n1, n2],
    Names = names(Config),
    [
        begin
            ?STORAGE:reset(Config),
            ok = emqx_redis_router:add_routes([{F, Node} || F <- Filters ++ Others, Node <- Nodes]),
            All = [{F, ?C, #{qos => Qos}} || {Qos, F} <- lists:enumerate(0, Filters ++ Others)],
            ok = emqx_redis_subscription:add_subscriptions(All),
            {ok, _} = emqx_redis_subscription:match_subscriptions(<<"a/b">>),
            _ = ?STORAGE:cli(Config, ["DEL", maps:get(Key, Names)]),
            1 = ?STORAGE:cli(Config, ["LPUSH", maps:get(Key, Names), "theirs"]),
            {error, {partial, _}} = Match(),
            {ok, Found} = Match(),
            ?assertEqual({Key, lists:sort(Expected(All))}, {Key, lists:sort(Found)})
        end
     || {Match, Expected, Keys} <- [
            {
                fun() -> ?STORAGE:match_in_redis(<<"a/b">>) end,
                fun(_) -> [{F, Node} || F <- [<<"a/b">> | Filters], Node <- Nodes] end,
                [<<"trie">>, <<"trie:a/+">>]
            },
            {
                fun() -> subscribers(<<"a/b">>) end,
                fun(All) -> [One || One = {F, _, _} <- All, F =/= <<"b/+">>] end,
                [<<"ptrie">>, <<"ptrie:a/+">>]
            }
        ],
        Key <- Keys
    ].

%% Whoever began to put it back may have died meanwhile.
a_trie_that_is_not_whole_answers_nothing(Config) ->
    Others = [<<"a/#">>, <<"+/b">>],
    Names = names(Config),
    Trie = maps:get(<<"trie">>, Names),
    [
        begin
            ?STORAGE:reset(Config),
            ok = emqx_redis_router:add_routes([{F, n1} || F <- [<<"a/+">> | Filters]]),
            _ = Last =/= <<>> orelse ?STORAGE:cli(Config, ["DEL", Trie]),
            1 = ?STORAGE:cli(Config, ["HSET", Trie, "restoring", Last]),
            %% Also where its last filter goes meanwhile.
            ok = emqx_redis_router:delete_route(<<"a/+">>, n1),
            ?assertMatch({error, {partial, _}}, ?STORAGE:match_in_redis(<<"a/b">>)),
            {ok, Found} = ?STORAGE:match_in_redis(<<"a/b">>),
            ?assertEqual(lists:sort([{F, n1} || F <- Filters]), lists:sort(Found)),
            ?assertEqual(undefined, ?STORAGE:cli(Config, ["HGET", Trie, "restoring"])),
            [ok = emqx_redis_router:delete_route(F, n1) || F <- Filters],
            ?assertEqual([<<"meta">>], ?STORAGE:keys(Config))
        end
     || Last <- [<<>>, <<"+/b">>], Filters <- [Others, []]
    ].

%% What stands where a filter's own clients were is moved away, whoever meets it.
one_filter_does_not_harm_the_others(Config) ->
    Names = names(Config),
    ok = emqx_redis_subscription:add_subscription(<<"a/#">>, ?C, 2),
    Key = maps:get(<<"psub:a/+">>, Names),
    1 = ?STORAGE:cli(Config, ["DEL", Key]),
    1 = ?STORAGE:cli(Config, ["LPUSH", Key, "theirs"]),
    ?assertMatch({error, {partial, _}}, subscribers(<<"a/b">>)),
    ?assertEqual({ok, [{<<"a/#">>, ?C, 2}]}, subscribers(<<"a/b">>)),
    ?assertEqual(1, length(moved(Config))).

%% Internal

%% Asked of Redis, past the memory of this node.
subscribers(Topic) -> emqx_redis_request:call({match_subscriptions, Topic}, undefined).

%% What all that is stored of one client and one wildcard filter is called here.
names(Config) ->
    {ok, #{epoch := Epoch}} = emqx_redis_session:claim_session(?C, #{}),
    ok = emqx_redis_session:save_session(?C, 1, #{epoch => Epoch}),
    ok = emqx_redis_message:store_message(?C, #{id => <<"m">>}),
    ok = emqx_redis_router:add_route(<<"a/+">>, node()),
    ok = emqx_redis_subscription:add_subscription(<<"a/+">>, ?C, 1),
    ?STORAGE:named_keys(Config).

is_partial({error, {partial, Text}}) -> is_binary(Text);
is_partial(_) -> false.

moved(Config) ->
    [Key || Key = <<"foreign:", _/binary>> <- ?STORAGE:keys(Config)].
