%% Routes, against a model that matches filters one by one; and what it does not cover.
-module(emqx_redis_router_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").
-include("emqx_redis_proper.hrl").

-import(proper_types, [frequency/1, list/1, oneof/1, range/2, resize/2, vector/2]).

-define(ROUTER, emqx_redis_router).
-define(STORAGE, emqx_redis_test_storage).

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [{group, single}, {group, cluster}].

groups() ->
    [{single, cases()}, {cluster, cases()}].

cases() ->
    [
        routes_follow_the_model,
        the_rules_of_mqtt,
        what_is_no_filter_or_name,
        many_filters,
        many_filters_that_match,
        deep_filters,
        many_topics,
        changes_from_many_processes,
        a_subscription_is_deleted_only_as_it_was_seen,
        misuse_raises_badarg
    ].

init_per_group(Topology, Config) -> ?STORAGE:start([{topology, Topology} | Config]).

end_per_group(_Topology, Config) -> ?STORAGE:stop(Config).

init_per_testcase(_Case, Config) -> ?STORAGE:reset(Config).

end_per_testcase(_Case, _Config) ->
    [] = emqx_redis_test_helpers:stray_messages(20),
    ok.

routes_follow_the_model(Config) ->
    Property = ?FORALL({Changes, Names}, {resize(40, list(change())), vector(5, name())}, begin
        ?STORAGE:reset(Config),
        Routes = lists:foldl(fun change/2, [], Changes),
        ok = expect({ok, lists:usort([F || {F, _} <- Routes])}, sorted(?ROUTER:topics())),
        [
            ok = expect({Name, lists:sort([R || R = {F, _} <- Routes, matches(Name, F)])},
                {Name, element(2, sorted(?ROUTER:match_routes(Name)))})
         || Name <- Names
        ],
        [ok = ?ROUTER:delete_route(F, N) || {F, N} <- Routes],
        ok = expect([<<"meta">>], ?STORAGE:keys(Config)),
        true
    end),
    Print = fun
        (".", []) -> ok;
        (Format, Arguments) -> ct:pal(Format, Arguments)
    end,
    true = proper:quickcheck(Property, [{numtests, 200}, {on_output, Print}]).

the_rules_of_mqtt(_Config) ->
    Filters = [
        <<"a/#">>, <<"#">>, <<"+">>, <<"+/+">>, <<"a/+/c">>, <<"/+">>, <<"$SYS/#">>, <<"$SYS/+">>, <<"+/x">>,
        <<"a">>, <<"$share/g/a/#">>, <<"a|b/+">>, <<"a//b">>, <<"a/+/b">>
    ],
    [ok = ?ROUTER:add_route(F, node()) || F <- Filters],
    [
        ?assertEqual({Name, lists:sort(Expected)}, {Name, filters(Name)})
     || {Name, Expected} <- [
            {<<"a">>, [<<"a/#">>, <<"#">>, <<"+">>, <<"a">>, <<"$share/g/a/#">>]},
            {<<"a/b/c">>, [<<"a/#">>, <<"#">>, <<"a/+/c">>, <<"$share/g/a/#">>]},
            {<<"/x">>, [<<"#">>, <<"+/+">>, <<"/+">>, <<"+/x">>]},
            {<<"/">>, [<<"#">>, <<"+/+">>, <<"/+">>]},
            {<<"$SYS/x">>, [<<"$SYS/#">>, <<"$SYS/+">>]},
            {<<"$SYS">>, [<<"$SYS/#">>]},
            {<<"a|b/1">>, [<<"a|b/+">>, <<"#">>, <<"+/+">>]},
            {<<"a//b">>, [<<"a/#">>, <<"#">>, <<"a//b">>, <<"a/+/b">>, <<"$share/g/a/#">>]}
        ]
    ].

what_is_no_filter_or_name(Config) ->
    [
        begin
            ?assertMatch({error, {invalid_topic, _}}, ?ROUTER:add_route(F, node()), F),
            ?assertMatch({error, {invalid_topic, _}}, ?ROUTER:delete_route(F, node()), F)
        end
     || F <- [
            <<>>, <<"a/#/b">>, <<"a#">>, <<"a+/b">>, <<"a/b#">>, <<"a", 0>>, <<255, 254>>, <<"$share/g">>,
            <<"$share//a">>, <<"$share/g+/a">>, <<"$share/g/">>, binary:copy(<<"a">>, 65536)
        ]
    ],
    [
        ?assertMatch({error, {invalid_topic, _}}, ?ROUTER:match_routes(N), N)
     || N <- [<<>>, <<"a/+">>, <<"#">>, <<0>>, <<255>>, binary:copy(<<"a">>, 65536)]
    ],
    Request = ?ROUTER:match_routes_async(<<"#">>),
    ?assertMatch({reply, {error, {invalid_topic, _}}}, emqx_redis_storage:receive_response(Request, 1000)),
    ?assertEqual([<<"meta">>], ?STORAGE:keys(Config)).

many_filters(_Config) ->
    Filters = [<<"f/", (integer_to_binary(N))/binary, "/+">> || N <- lists:seq(1, 5000)],
    Requests = [?ROUTER:add_route_async(F, node()) || F <- Filters ++ [<<"f/+/#">>]],
    [{reply, ok} = emqx_redis_storage:receive_response(R, 10000) || R <- Requests],
    ?assertEqual([<<"f/+/#">>, <<"f/77/+">>], filters(<<"f/77/x">>)),
    {ok, Topics} = ?ROUTER:topics(),
    ?assertEqual(lists:sort([<<"f/+/#">> | Filters]), lists:sort(Topics)).

%% More than Redis, and a scheduler, look at in one go.
many_filters_that_match(_Config) ->
    Name = <<"a/a/a/a/a/a/a/a/a/a/a">>,
    Filters = either_level(11),
    ok = ?ROUTER:add_routes([{F, node()} || F <- Filters]),
    Clients = [<<"c", (integer_to_binary(N))/binary>> || N <- lists:seq(1, 3000)],
    ok = emqx_redis_subscription:add_subscriptions([{<<"a/#">>, C, qos1} || C <- Clients]),
    {ok, InRedis} = ?STORAGE:match_in_redis(Name),
    ?assertEqual(lists:sort([{F, node()} || F <- Filters]), lists:sort(InRedis)),
    {ok, Found} = emqx_redis_request:call({match_subscriptions, Name}, undefined),
    ?assertEqual(lists:sort([{<<"a/#">>, C, qos1} || C <- Clients]), lists:sort(Found)),
    %% From memory, as soon as it is there.
    emqx_redis_test_helpers:wait_until(fun() ->
        lists:all(fun(#{in_sync := InSync}) -> InSync end, maps:get(routes, emqx_redis_storage:status()))
    end),
    ?assertEqual(lists:sort(Filters), filters(Name)),
    {ok, Here} = emqx_redis_subscription:match_subscriptions(Name),
    ?assertEqual(lists:sort(Found), lists:sort(Here)).

either_level(1) -> [<<"a">>, <<"+">>];
either_level(N) -> [<<F/binary, Level/binary>> || F <- either_level(N - 1), Level <- [<<"/a">>, <<"/+">>]].

deep_filters(Config) ->
    [
        begin
            Name = iolist_to_binary(lists:join("/", lists:duplicate(Levels, "a"))),
            <<"a/", Below/binary>> = Name,
            Filters = [Name, <<Name/binary, "/#">>, <<"+/", Below/binary>>],
            [ok = ?ROUTER:add_route(F, node()) || F <- Filters],
            ?assertEqual(lists:sort(Filters), filters(Name)),
            [ok = ?ROUTER:delete_route(F, node()) || F <- Filters],
            ?assertEqual([<<"meta">>], ?STORAGE:keys(Config))
        end
     || Levels <- [2, 128, 2000, 32000]
    ].

many_topics(_Config) ->
    Filters = [integer_to_binary(N) || N <- lists:seq(100000, 111000)],
    Requests = [?ROUTER:add_route_async(F, node()) || F <- Filters],
    [{reply, ok} = emqx_redis_storage:receive_response(R, 10000) || R <- Requests],
    {ok, Topics} = ?ROUTER:topics(),
    ?assertEqual(Filters, lists:sort(Topics)).

changes_from_many_processes(Config) ->
    Filters = [<<"a/+">>, <<"a/b">>, <<"a/#">>, <<"$share/g/a/+">>],
    Nodes = [list_to_atom("n" ++ integer_to_list(N)) || N <- lists:seq(1, 10)],
    Work = fun(Node) ->
        [
            begin
                [ok = ?ROUTER:add_route(F, Node) || F <- Filters],
                {ok, Routes} = ?ROUTER:match_routes(<<"a/b">>),
                [true = lists:member({F, Node}, Routes) || F <- Filters],
                [ok = ?ROUTER:delete_route(F, Node) || F <- Filters]
            end
         || _ <- lists:seq(1, 20)
        ]
    end,
    Workers = [spawn_monitor(fun() -> Work(Node) end) || Node <- Nodes],
    [receive {'DOWN', M, process, P, Reason} -> ?assertEqual(normal, Reason) end || {P, M} <- Workers],
    ?assertEqual([<<"meta">>], ?STORAGE:keys(Config)).

a_subscription_is_deleted_only_as_it_was_seen(_Config) ->
    M = emqx_redis_subscription,
    Match = fun() ->
        {ok, Here} = M:match_subscriptions(<<"a/b">>),
        {ok, InRedis} = emqx_redis_match:match_in_redis(match_subscriptions, <<"a/b">>),
        ?assertEqual(lists:sort(InRedis), lists:sort(Here)),
        lists:sort(Here)
    end,
    _ = Match(),
    [ok = M:add_subscription(Filter, <<"c">>, {1, new}) || Filter <- [<<"a/b">>, <<"a/+">>]],
    Both = [{<<"a/+">>, <<"c">>, {1, new}}, {<<"a/b">>, <<"c">>, {1, new}}],
    {ok, Version} = M:delete_subscriptions(
        [{F, <<"c">>, {1, old}} || F <- [<<"a/b">>, <<"a/+">>]], #{version => true}
    ),
    ok = ?ROUTER:sync(Version),
    ?assertEqual(Both, Match()),
    ok = M:delete_subscriptions([{<<"a/b">>, <<"c">>, {1, new}}, {<<"x">>, <<"c">>, {1, new}}]),
    ?assertEqual([hd(Both)], Match()),
    ok = M:delete_subscriptions([{<<"a/+">>, <<"c">>}]),
    ?assertEqual([], Match()).

misuse_raises_badarg(_Config) ->
    [
        ?assertError(badarg, apply(?ROUTER, Function, Arguments), {Function, Arguments})
     || {Name, Arguments} <- [
            {add_route, ["a", node()]},
            {add_route, [a, node()]},
            {add_route, [<<"a">>, "node"]},
            {add_route, [<<"a">>, 'a|b']},
            {delete_route, [<<"a">>, 1]},
            {match_routes, [a]},
            {match_routes, ["a"]}
        ],
        Function <- [Name, list_to_atom(atom_to_list(Name) ++ "_async")]
    ].

%% Internal

expect(Same, Same) -> ok;
expect(Expected, Found) -> ct:pal("expected ~p~nfound ~p", [Expected, Found]), different.

sorted({ok, List}) -> {ok, lists:sort(List)}.

filters(Name) ->
    {ok, Routes} = ?ROUTER:match_routes(Name),
    lists:sort([F || {F, _} <- Routes]).

change({add, Filter, Node}, Routes) ->
    ok = ?ROUTER:add_route(Filter, Node),
    lists:usort([{Filter, Node} | Routes]);
change({delete, Filter, Node}, Routes) ->
    ok = ?ROUTER:delete_route(Filter, Node),
    Routes -- [{Filter, Node}].

%% MQTT 5.0 section 4.7, word for word.
matches(Name, <<"$share/", Shared/binary>>) ->
    [_Group, Real] = binary:split(Shared, <<"/">>),
    matches(Name, Real);
matches(<<"$", _/binary>>, <<First, _/binary>>) when First =:= $+; First =:= $# -> false;
matches(Name, Filter) -> levels_match(levels(Name), levels(Filter)).

levels(Topic) -> binary:split(Topic, <<"/">>, [global]).

levels_match(_, [<<"#">>]) -> true;
levels_match([_ | Name], [<<"+">> | Filter]) -> levels_match(Name, Filter);
levels_match([Level | Name], [Level | Filter]) -> levels_match(Name, Filter);
levels_match([], []) -> true;
levels_match(_, _) -> false.

change() ->
    {frequency([{3, add}, {1, delete}]), filter(), oneof([n1, n2, 'Größe@host'])}.

filter() ->
    Plain = ?LET(Levels, some(frequency([{3, level()}, {2, <<"+">>}])), join(Levels)),
    Multi = ?LET(Levels, some(frequency([{3, level()}, {2, <<"+">>}])), join(Levels ++ [<<"#">>])),
    Real = oneof([Plain, Multi, <<"wildcards">>, <<"%77ildcards">>, <<"#">>]),
    Group = oneof([<<"g">>, <<"h|">>]),
    Shared = ?LET({G, R}, {Group, Real}, <<"$share/", G/binary, "/", R/binary>>),
    frequency([{5, Real}, {1, Shared}]).

name() -> ?LET(Levels, some(level()), join(Levels)).

some(Level) -> ?LET(N, range(1, 4), vector(N, Level)).

level() -> oneof([<<"a">>, <<"b">>, <<" ">>, <<"$SYS">>, <<"%">>, <<"|">>, <<"ä"/utf8>>]).

join(Levels) -> iolist_to_binary(lists:join("/", Levels)).
