%% The plugin as clients see it, and what is in Redis then. On the stand-in of EMQX, or on a real one: see
%% `emqx_redis_broker_node'.
-module(emqx_redis_plugin_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-import(emqx_redis_test_plugin, [start/2, start_again/1, stop/1, server/1, broker/1, call/4]).
-import(emqx_redis_test_plugin, [id/1, id/2, options/2, connect/2, publisher/1, publisher/2]).
-import(emqx_redis_test_plugin, [publish_numbers/4, payloads/1, receive_all/2, receive_and_ack/2]).
-import(emqx_redis_test_plugin, [session/1, session/2, stored_filters/2, ttl/1, ttl/2]).
-import(emqx_redis_test_plugin, [stored/1, stored/2, marks/1, await_marks/2]).
-import(emqx_redis_test_plugin, [matching/2, keys/1, keys_of/2, is_available/1, await/1, await/2]).

-define(SERVER, emqx_redis_test_server).
-define(NODE, emqx_redis_broker_node).
-define(CLIENT, emqx_redis_mqtt_client).
-define(HELPERS, emqx_redis_test_helpers).

-define(SERVER_UNAVAILABLE, 16#88).
-define(SERVER_BUSY, 16#89).
-define(IMPLEMENTATION_SPECIFIC_ERROR, 16#83).

%% A real EMQX takes its time to start.
suite() -> [{timetrap, {minutes, 4}}].

all() -> [{group, one_broker}, {group, own_brokers}].

%% Those of the second group have each a Redis and brokers of their own, and wait most of the time.
groups() ->
    [
        {one_broker, [
            the_session_in_redis_follows_its_client,
            a_message_is_stored_before_its_puback_and_until_it_is_acknowledged,
            an_offline_client_gets_what_came_meanwhile,
            qos_0_is_not_stored,
            no_local_is_not_stored,
            qos_2_is_stored_until_it_is_complete,
            the_messages_of_a_group_are_stored_once,
            whatever_ends_a_session_deletes_all_of_it,
            a_clean_start_begins_with_nothing,
            a_session_claimed_elsewhere_ends_the_channel,
            many_connect_at_once,
            the_configuration_changes_while_it_runs,
            hooks_come_and_go_under_load
        ]},
        {own_brokers, [parallel], [
            a_session_survives_its_node,
            what_was_acknowledged_survives_its_node,
            a_session_of_mqtt_3_survives_its_node,
            qos_2_survives_its_node,
            messages_come_for_a_client_that_no_node_holds,
            the_messages_of_a_lost_member_go_to_another,
            a_long_backlog_comes_in_order_between_live_messages,
            a_node_that_stops_deletes_nothing,
            a_session_that_expires_without_a_node_leaves_nothing,
            a_clean_start_ends_what_only_redis_has,
            many_connect_at_once_to_what_only_redis_has,
            without_redis_clients_are_refused,
            without_redis_it_works_degraded
        ]}
    ].

init_per_suite(Config) -> Config.

end_per_suite(_Config) -> ?NODE:stop_all().

init_per_group(one_broker, Config) -> start(Config, #{});
init_per_group(own_brokers, Config) -> Config.

end_per_group(one_broker, Config) -> stop(Config);
end_per_group(own_brokers, _Config) -> ok.

init_per_testcase(Case, Config) -> [{client_id, atom_to_binary(Case)} | Config].

end_per_testcase(_Case, _Config) -> ok.

%%--------------------------------------------------------------------
%% One broker
%%--------------------------------------------------------------------

the_session_in_redis_follows_its_client(Config) ->
    Id = id(Config),
    C = connect(Config, #{expiry => 100, clean_start => true}),
    {ok, New} = session(Config),
    Node = call(Config, erlang, node, []),
    ?assertMatch(#{version := 1, node := Node, expiry := 100000, subscriptions := #{}}, New),
    ?assertEqual(0, map_size(maps:get(subscriptions, New))),
    ?assert(abs(maps:get(created_at, New) - os:system_time(millisecond)) < 5000),
    Filters = [{<<"s/+/1">>, #{qos => 1, rap => 1, nl => 1, rh => 2}}, {<<"s/q2">>, 2}, {<<"s/q0">>, 0}],
    [1, 2, 0] = ?CLIENT:subscribe(C, Filters, #{'Subscription-Identifier' => 7}, 15000),
    {ok, #{subscriptions := Subscribed}} = session(Config),
    ?assertMatch(
        #{
            <<"s/+/1">> := #{qos := 1, rap := 1, nl := 1, rh := 2, subid := 7},
            <<"s/q2">> := #{qos := 2, rap := 0, nl := 0},
            <<"s/q0">> := #{qos := 0}
        },
        Subscribed
    ),
    ?assertEqual(3, map_size(Subscribed)),
    %% Publishers need to know of those that are stored for.
    ?assertMatch([{<<"s/+/1">>, Id, {1, 1, _}}], matching(Config, <<"s/x/1">>)),
    ?assertMatch([{<<"s/q2">>, Id, {2, 0, _}}], matching(Config, <<"s/q2">>)),
    ?assertEqual([], matching(Config, <<"s/q0">>)),
    %% Another QoS takes the place of the first.
    0 = ?CLIENT:subscribe(C, <<"s/q2">>, 0),
    1 = ?CLIENT:subscribe(C, <<"s/q0">>, 1),
    ?assertEqual([], matching(Config, <<"s/q2">>)),
    ?assertMatch([{<<"s/q0">>, Id, {1, 0, _}}], matching(Config, <<"s/q0">>)),
    ok = ?CLIENT:unsubscribe(C, <<"s/q0">>),
    ok = ?CLIENT:unsubscribe(C, <<"s/q2">>),
    {ok, #{subscriptions := Left}} = session(Config),
    ?assertEqual([<<"s/+/1">>], maps:keys(Left)),
    ?assertEqual([], matching(Config, <<"s/q0">>)),
    ?assert(ttl(Config) > 100),
    ok = ?CLIENT:disconnect(C, #{'Session-Expiry-Interval' => 50}),
    await(fun() -> {ok, New#{subscriptions := Left, expiry := 50000}} =:= session(Config) end),
    ?assert(ttl(Config) =< 50),
    %% Taken up again, with an expiry of its own.
    Again = connect(Config, #{expiry => 200}),
    ?assertMatch({ok, #{expiry := 200000, subscriptions := Left}}, session(Config)),
    ?CLIENT:drop(Again),
    await(fun() -> ttl(Config) =< 200 end).

a_message_is_stored_before_its_puback_and_until_it_is_acknowledged(Config) ->
    C = connect(Config, #{acks => manual}),
    1 = ?CLIENT:subscribe(C, <<"p/+">>, 1),
    P = publisher(Config),
    Server = server(Config),
    ok = ?SERVER:pause(Server),
    Request = ?CLIENT:publish_async(P, <<"p/1">>, <<"one">>, #{qos => 1}),
    ?assertEqual(timeout, gen_server:wait_response(Request, 300)),
    ?assertEqual([], ?CLIENT:messages(C)),
    ok = ?SERVER:resume(Server),
    ?assertEqual({reply, {ok, 0}}, gen_server:wait_response(Request, 10000)),
    ?assertEqual([<<"one">>], stored(Config)),
    {ok, 0} = ?CLIENT:publish(P, <<"p/2">>, <<"two">>, #{qos => 1}),
    ?assertEqual([<<"one">>, <<"two">>], stored(Config)),
    [One, Two] = receive_all(C, 2),
    ok = ?CLIENT:ack(C, Two),
    await([<<"one">>], fun() -> stored(Config) end),
    ok = ?CLIENT:ack(C, One),
    await([], fun() -> stored(Config) end).

an_offline_client_gets_what_came_meanwhile(Config) ->
    C = connect(Config, #{}),
    1 = ?CLIENT:subscribe(C, <<"o/+">>, 1),
    ?CLIENT:drop(C),
    P = publisher(Config),
    Payloads = publish_numbers(P, <<"o/1">>, 1, 5),
    ?assertEqual(Payloads, stored(Config)),
    Again = connect(Config, #{}),
    Received = receive_all(Again, 5),
    ?assertEqual(Payloads, [Payload || #{payload := Payload} <- Received]),
    await([], fun() -> stored(Config) end).

qos_0_is_not_stored(Config) ->
    Before = keys(Config),
    C = connect(Config, #{}),
    0 = ?CLIENT:subscribe(C, <<"q/0">>, 0),
    P = publisher(Config),
    %% EMQX delivers what it has in memory all the same.
    {ok, 0} = ?CLIENT:publish(P, <<"q/0">>, <<"1">>, #{qos => 1}),
    [#{qos := 0, payload := <<"1">>}] = receive_all(C, 1),
    1 = ?CLIENT:subscribe(C, <<"q/1">>, 1),
    {ok, 0} = ?CLIENT:publish(P, <<"q/1">>, <<"2">>, #{qos => 0}),
    [#{qos := 0, payload := <<"2">>}] = receive_all(C, 1),
    ?assertEqual([], stored(Config)),
    ?assertEqual([], [Key || <<"msg", _/binary>> = Key <- keys(Config) -- Before]).

no_local_is_not_stored(Config) ->
    C = connect(Config, #{}),
    1 = ?CLIENT:subscribe(C, <<"n/#">>, #{qos => 1, nl => 1}),
    {ok, _} = ?CLIENT:publish(C, <<"n/1">>, <<"own">>, #{qos => 1}),
    ?assertEqual([], stored(Config)),
    {ok, 0} = ?CLIENT:publish(publisher(Config), <<"n/1">>, <<"other">>, #{qos => 1}),
    ?assertMatch([#{payload := <<"other">>}], receive_all(C, 1)),
    %% By another filter the same message is its own.
    1 = ?CLIENT:subscribe(C, <<"n/2">>, 1),
    {ok, 0} = ?CLIENT:publish(C, <<"n/2">>, <<"own">>, #{qos => 1}),
    ?assertMatch([#{payload := <<"own">>}], receive_all(C, 1)),
    await([], fun() -> stored(Config) end).

qos_2_is_stored_until_it_is_complete(Config) ->
    C = connect(Config, #{acks => manual}),
    2 = ?CLIENT:subscribe(C, <<"e/+">>, 2),
    P = publisher(Config),
    {ok, 0} = ?CLIENT:publish(P, <<"e/1">>, <<"two">>, #{qos => 2}),
    {ok, 0} = ?CLIENT:publish(P, <<"e/1">>, <<"one">>, #{qos => 1}),
    ?assertEqual([<<"two">>, <<"one">>], stored(Config)),
    [#{qos := 2} = Two, #{qos := 1} = One] = receive_all(C, 2),
    ok = ?CLIENT:ack(C, One),
    await([<<"two">>], fun() -> stored(Config) end),
    ok = ?CLIENT:ack(C, Two),
    await([], fun() -> stored(Config) end),
    ?assertEqual([], ?CLIENT:messages(C)).

the_messages_of_a_group_are_stored_once(Config) ->
    Queue = <<0, "$share/g/h/+">>,
    Members = [connect(Config, #{client_id => <<"member", N>>, acks => manual}) || N <- "12"],
    [1 = ?CLIENT:subscribe(C, <<"$share/g/h/+">>, 1) || C <- Members],
    Payloads = publish_numbers(publisher(Config), <<"h/1">>, 1, 10),
    ?assertEqual(Payloads, stored(Config, Queue)),
    ?assertEqual([], stored(Config, <<"member1">>)),
    await(10, fun() -> lists:sum([length(peek(C)) || C <- Members]) end),
    Received = [{C, Message} || C <- Members, Message <- taken(C)],
    ?assertEqual(Payloads, lists:sort(fun by_number/2, [Payload || {_, #{payload := Payload}} <- Received])),
    [ok = ?CLIENT:ack(C, Message) || {C, Message} <- Received],
    await([], fun() -> stored(Config, Queue) end).

whatever_ends_a_session_deletes_all_of_it(Config) ->
    Ends = [
        {<<"end_clean">>, fun(Id, C) ->
            ?CLIENT:drop(C),
            connect(Config, #{client_id => Id, clean_start => true, expiry => 0})
        end},
        {<<"end_live">>, fun(Id, _C) ->
            connect(Config, #{client_id => Id, clean_start => true, expiry => 0})
        end},
        {<<"end_disconnect">>, fun(_Id, C) -> ?CLIENT:disconnect(C, #{'Session-Expiry-Interval' => 0}) end},
        {<<"end_kick">>, fun(Id, C) ->
            ok = call(Config, emqx_cm, kick_session, [Id]),
            ?assertEqual({disconnected, 16#98}, ?CLIENT:await_closed(C))
        end},
        {<<"end_kick_offline">>, fun(Id, C) ->
            ?CLIENT:drop(C),
            await(fun() -> ttl(Config, Id) =< 300 end),
            ok = call(Config, emqx_cm, kick_session, [Id])
        end},
        {<<"end_expiry">>, fun(_Id, C) -> ?CLIENT:disconnect(C, #{'Session-Expiry-Interval' => 1}) end}
    ],
    P = publisher(Config),
    Clients = [
        begin
            C = connect(Config, #{client_id => Id, acks => manual, receive_maximum => 2}),
            [1, 2] = ?CLIENT:subscribe(C, [{<<"w/", Id/binary>>, 1}, {<<"w/+">>, 2}], #{}, 15000),
            Payloads = publish_numbers(P, <<"w/", Id/binary>>, 1, 4),
            ?assertEqual([], Payloads -- stored(Config, Id)),
            {Id, C, End}
        end
     || {Id, End} <- Ends
    ],
    [End(Id, C) || {Id, C, End} <- Clients],
    await([], fun() -> lists:append([keys_of(Config, Id) || {Id, _, _} <- Clients]) end),
    ?assertEqual([], matching(Config, <<"w/end_kick">>)).

a_clean_start_begins_with_nothing(Config) ->
    C = connect(Config, #{acks => manual}),
    1 = ?CLIENT:subscribe(C, <<"b/1">>, 1),
    {ok, 0} = ?CLIENT:publish(publisher(Config), <<"b/1">>, <<"old">>, #{qos => 1}),
    {ok, #{instance := First}} = session(Config),
    {ok, Again, #{session_present := false}} = ?CLIENT:connect(options(Config, #{clean_start => true})),
    {ok, #{instance := Second, subscriptions := Subscriptions}} = session(Config),
    ?assert(Second > First),
    ?assertEqual(0, map_size(Subscriptions)),
    ?assertEqual([], stored(Config)),
    ?assertEqual([], matching(Config, <<"b/1">>)),
    ?assertEqual([], ?CLIENT:messages(Again)).

a_session_claimed_elsewhere_ends_the_channel(Config) ->
    C = connect(Config, #{}),
    1 = ?CLIENT:subscribe(C, <<"f/1">>, 1),
    {ok, #{epoch := Epoch}} = call(Config, emqx_redis_session, claim_session, [id(Config), #{}]),
    ?assertMatch({error, _}, ?CLIENT:subscribe(C, <<"f/2">>, 1)),
    ?assertEqual(closed, ?CLIENT:await_closed(C)),
    %% Nothing of it has been written.
    {ok, #{subscriptions := Subscriptions}} = session(Config),
    ?assertEqual([<<"f/1">>], maps:keys(Subscriptions)),
    Saved = call(Config, emqx_redis_session, save_session, [id(Config), x, #{epoch => Epoch - 1}]),
    ?assertEqual({error, {stale_epoch, Epoch}}, Saved),
    %% It goes on from what is in Redis.
    Again = connect(Config, #{}),
    {ok, 0} = ?CLIENT:publish(publisher(Config), <<"f/1">>, <<"x">>, #{qos => 1}),
    ?assertMatch([#{payload := <<"x">>}], receive_all(Again, 1)).

many_connect_at_once(Config) ->
    ?CLIENT:drop(connect(Config, #{clean_start => true})),
    [connect_at_once(8, Config) || _ <- lists:seq(1, 5)].

the_configuration_changes_while_it_runs(Config) ->
    Change = fun(New) -> call(Config, emqx_redis_storage_app, on_config_changed, [#{}, New]) end,
    #{redis := #{servers := Address}} = ?SERVER:config(server(Config)),
    Redis = #{<<"redis">> => #{<<"type">> => <<"single">>, <<"servers">> => Address}},
    ?assertEqual(ok, call(Config, emqx_redis_storage_app, on_health_check, [#{}])),
    {error, Text} = Change(Redis#{<<"mqtt">> => #{<<"when_unavailable">> => <<"explode">>}}),
    ?assertNotEqual(nomatch, string:find(Text, "mqtt.when_unavailable")),
    ?assertMatch({error, _}, Change(Redis#{<<"unknown">> => 1})),
    ?assertMatch({error, _}, Change(Redis#{<<"enable">> => false})),
    Policy = fun() -> maps:get(mqtt, call(Config, emqx_redis_storage, config, [])) end,
    ?assertEqual(#{when_unavailable => <<"reject">>}, Policy()),
    ok = Change(Redis#{<<"mqtt">> => #{<<"when_unavailable">> => <<"degrade">>}}),
    ?assertEqual(#{when_unavailable => <<"degrade">>}, Policy()),
    ok = Change(Redis),
    ?assertEqual(#{when_unavailable => <<"reject">>}, Policy()),
    %% Where the plugin is stopped it is only looked at.
    ok = ?NODE:stop_plugin(broker(Config)),
    ?assertMatch({error, _}, Change(Redis#{<<"unknown">> => 1})),
    ?assertEqual(ok, Change(Redis)),
    ?assertMatch({error, _}, call(Config, emqx_redis_storage_app, on_health_check, [#{}])),
    ok = ?NODE:start_plugin(broker(Config)).

%% As in an upgrade: what is published meanwhile is delivered, what is published behind is stored.
hooks_come_and_go_under_load(Config) ->
    Broker = broker(Config),
    ?assert(is_hooked(Config)),
    C = connect(Config, #{}),
    1 = ?CLIENT:subscribe(C, <<"u/#">>, 1),
    Load = load(Config, <<"u/1">>),
    [
        begin
            await_more(Load, 50),
            ok = ?NODE:stop_plugin(Broker),
            await(fun() -> not is_hooked(Config) end),
            await_more(Load, 50),
            ok = ?NODE:start_plugin(Broker),
            ?assert(is_hooked(Config))
        end
     || _ <- lists:seq(1, 3)
    ],
    await_more(Load, 50),
    Last = integer_to_binary(stop_load(Load)),
    await(fun() -> lists:member(Last, payloads(peek(C))) end),
    Sent = [integer_to_binary(N) || N <- lists:seq(1, binary_to_integer(Last))],
    ?assertEqual(Sent, without_repetitions(payloads(taken(C)))),
    ?CLIENT:drop(C),
    {ok, 0} = ?CLIENT:publish(publisher(Config), <<"u/2">>, <<"x">>, #{qos => 1}),
    ?assert(lists:member(<<"x">>, stored(Config))),
    Again = connect(Config, #{}),
    ?assertEqual([<<"x">>], payloads(receive_all(Again, 1))).

%%--------------------------------------------------------------------
%% Brokers of one's own
%%--------------------------------------------------------------------

a_session_survives_its_node(Config) ->
    First = start(Config, #{}),
    C = connect(First, #{acks => manual, receive_maximum => 3}),
    Options = #{qos => 1, rap => 1},
    [1, 2, 0] = ?CLIENT:subscribe(
        C, [{<<"k/+">>, Options}, {<<"l/#">>, 2}, {<<"z">>, 0}], #{'Subscription-Identifier' => 9}, 15000
    ),
    1 = ?CLIENT:subscribe(C, <<"gone">>, 1),
    ok = ?CLIENT:unsubscribe(C, <<"gone">>),
    P = publisher(First),
    Properties = #{
        'Content-Type' => <<"text/plain">>,
        'Response-Topic' => <<"answer">>,
        'Correlation-Data' => <<0, 1, 2>>,
        'Payload-Format-Indicator' => 1,
        'User-Property' => [{<<"a">>, <<"1">>}, {<<"a">>, <<"2">>}],
        'Message-Expiry-Interval' => 1000
    },
    {ok, 0} = ?CLIENT:publish(P, <<"k/1">>, <<"acknowledged">>, #{qos => 1}),
    [Acknowledged] = receive_all(C, 1),
    ok = ?CLIENT:ack(C, Acknowledged),
    await([], fun() -> stored(First) end),
    {ok, 0} = ?CLIENT:publish(P, <<"k/1">>, <<"all">>, #{qos => 1, retain => true, properties => Properties}),
    {ok, 0} = ?CLIENT:publish(P, <<"l/1">>, <<"two">>, #{qos => 2, retain => true}),
    Payloads = publish_numbers(P, <<"k/2">>, 1, 20),
    Sent = receive_all(C, 3),
    ?assertEqual([<<"all">>, <<"two">>, <<"1">>], payloads(Sent)),
    await_marks(First, 3),
    ok = ?NODE:kill(broker(First)),
    ?assertEqual(closed, ?CLIENT:await_closed(C)),
    Second = start_again(First),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Second, #{acks => auto})),
    Received = receive_all(Again, 22),
    ?assertEqual([<<"all">>, <<"two">> | Payloads], payloads(Received)),
    %% Those that were under way come again as such.
    [Again1, Again2, Again3 | New] = Received,
    ?assertEqual([Message#{dup := true} || Message <- no_expiry(Sent)], no_expiry([Again1, Again2, Again3])),
    ?assertEqual([false], lists:usort([Dup || #{dup := Dup} <- New])),
    Ids = [PacketId || #{packet_id := PacketId} <- Received],
    ?assertEqual(Ids, lists:usort(Ids)),
    [All, Two | _] = Received,
    ?assertMatch(#{qos := 1, retain := true, topic := <<"k/1">>}, All),
    #{properties := Got} = All,
    ?assertEqual(Properties#{'Subscription-Identifier' => 9}, Got#{'Message-Expiry-Interval' => 1000}),
    ?assertMatch(#{qos := 2, retain := false}, Two),
    await([], fun() -> stored(Second) end),
    %% Subscriptions are alive.
    Q = publisher(Second),
    ?assertMatch({ok, #{subscriptions := #{<<"k/+">> := _, <<"l/#">> := _, <<"z">> := _}}}, session(Second)),
    {ok, _} = ?CLIENT:publish(Q, <<"gone">>, <<"no">>, #{qos => 1}),
    {ok, 0} = ?CLIENT:publish(Q, <<"z">>, <<"0">>, #{qos => 1}),
    {ok, 0} = ?CLIENT:publish(Q, <<"l/2">>, <<"new">>, #{qos => 2}),
    ?assertMatch(
        [
            #{payload := <<"0">>, qos := 0},
            #{payload := <<"new">>, qos := 2, properties := #{'Subscription-Identifier' := 9}}
        ],
        receive_all(Again, 2)
    ),
    stop(Second).

%% Whatever the moment: PUBACK means that nothing can be lost.
what_was_acknowledged_survives_its_node(Config) ->
    First = start(Config, #{}),
    C = connect(First, #{receive_maximum => 10}),
    1 = ?CLIENT:subscribe(C, <<"y/+">>, 1),
    Topics = [<<"y/1">>, <<"y/2">>, <<"y/3">>],
    Loads = [load_until_closed(First, Topic) || Topic <- Topics],
    await(fun() -> lists:min([sent(Load) || Load <- Loads]) > 200 end),
    ok = ?NODE:kill(broker(First)),
    Sent = [await_closed(Load) || Load <- Loads],
    Second = start_again(First),
    Before = ?CLIENT:messages(C),
    Again = connect(Second, #{}),
    await([], fun() -> stored(Second) end),
    Received = Before ++ ?CLIENT:messages(Again),
    [
        begin
            Numbers = [binary_to_integer(P) || #{topic := T, payload := P} <- Received, T =:= Topic],
            ?assertEqual([], lists:seq(1, Count) -- Numbers),
            %% What was not acknowledged may be there too, and what comes again stands behind.
            ?assert(lists:max(Numbers) =< Count + 1),
            New = [binary_to_integer(P) || #{topic := T, payload := P} <- Received -- Before, T =:= Topic],
            ?assertEqual(New, lists:sort(New))
        end
     || {Topic, Count} <- lists:zip(Topics, Sent)
    ],
    stop(Second).

a_session_of_mqtt_3_survives_its_node(Config) ->
    First = start(Config, #{}),
    Options = #{version => 4, acks => manual},
    {ok, C, #{session_present := false}} = ?CLIENT:connect(options(First, Options)),
    1 = ?CLIENT:subscribe(C, <<"m/+">>, 1),
    %% EMQX's own default of `session_expiry_interval'.
    ?assertMatch({ok, #{expiry := 7200000}}, session(First)),
    Payloads = publish_numbers(publisher(First), <<"m/1">>, 1, 3),
    receive_all(C, 3),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Second, Options)),
    ?assertEqual(Payloads, payloads(receive_all(Again, 3))),
    %% A clean session leaves nothing.
    {ok, _, #{session_present := false}} = ?CLIENT:connect(options(Second, Options#{clean_start => true})),
    await([], fun() -> keys_of(Second, id(Config)) end),
    stop(Second).

%% Each message once, in whatever phase of the exchange the node is lost.
qos_2_survives_its_node(Config) ->
    First = start(Config, #{}),
    C = connect(First, #{acks => none}),
    2 = ?CLIENT:subscribe(C, <<"t/+">>, 2),
    P = publisher(First),
    [{ok, 0} = ?CLIENT:publish(P, <<"t/1">>, Payload, #{qos => 2}) || Payload <- [<<"a">>, <<"b">>, <<"c">>]],
    [#{packet_id := Id} = A, #{packet_id := IdB} = B, _] = receive_all(C, 3),
    ok = ?CLIENT:ack(C, A),
    await([Id], fun() -> ?CLIENT:pubrels(C) end),
    await([{Id, received}], fun() -> [Mark || {_, received} = Mark <- marks(First)] end),
    await_marks(First, 3),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    Again = connect(Second, #{}),
    [#{dup := true, packet_id := IdB} = B2, #{dup := true, payload := <<"c">>}] = receive_all(Again, 2),
    ?assertEqual(B#{dup := true}, B2),
    await([], fun() -> stored(Second) end),
    ?assertEqual([Id], [It || It <- ?CLIENT:pubrels(Again), It =:= Id]),
    {ok, _} = ?CLIENT:publish(publisher(Second), <<"t/1">>, <<"d">>, #{qos => 2}),
    ?assertEqual([<<"d">>], payloads(receive_all(Again, 1))),
    stop(Second).

messages_come_for_a_client_that_no_node_holds(Config) ->
    First = start(Config, #{}),
    C = connect(First, #{}),
    [1, 1] = ?CLIENT:subscribe(C, [{<<"a/#">>, 1}, {<<"a/+">>, 1}], #{}, 15000),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    %% Nobody is subscribed there, and it is no "no matching subscribers".
    P = publisher(Second),
    {ok, 0} = ?CLIENT:publish(P, <<"a/0">>, <<"late">>, #{
        qos => 1, properties => #{'Message-Expiry-Interval' => 1}
    }),
    Payloads = publish_numbers(P, <<"a/1">>, 1, 10),
    %% For QoS 2 EMQX asks nobody what to answer.
    {ok, 16#10} = ?CLIENT:publish(P, <<"a/2">>, <<"live">>, #{qos => 2}),
    await(Payloads ++ [<<"live">>], fun() -> stored(Second) end),
    Again = connect(Second, #{}),
    ?assertEqual(Payloads ++ [<<"live">>], payloads(receive_all(Again, 11))),
    await([], fun() -> stored(Second) end),
    ?assertEqual([], ?CLIENT:messages(Again)),
    stop(Second).

%% Of a shared group.
the_messages_of_a_lost_member_go_to_another(Config) ->
    First = start(Config, #{}),
    Ids = [id(Config, N) || N <- [<<"1">>, <<"2">>]],
    Members = [connect(First, #{client_id => Id, acks => manual}) || Id <- Ids],
    [1 = ?CLIENT:subscribe(C, <<"$share/g/s/+">>, 1) || C <- Members],
    Payloads = publish_numbers(publisher(First), <<"s/1">>, 1, 10),
    await(10, fun() -> lists:sum([length(peek(C)) || C <- Members]) end),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    Queue = <<0, "$share/g/s/+">>,
    ?assertEqual(Payloads, stored(Second, Queue)),
    Again = connect(Second, #{client_id => hd(Ids)}),
    ?assertEqual(Payloads, lists:sort(fun by_number/2, payloads(receive_all(Again, 10)))),
    await([], fun() -> stored(Second, Queue) end),
    stop(Second).

%% Five times as much as the session can hold, while more is published.
a_long_backlog_comes_in_order_between_live_messages(Config) ->
    First = start(Config, #{mqtt => #{max_mqueue_len => 100}}),
    C = connect(First, #{}),
    1 = ?CLIENT:subscribe(C, <<"x/+">>, 1),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    P = publisher(Second),
    Old = publish_numbers(P, <<"x/1">>, 1, 500),
    Again = connect(Second, #{receive_maximum => 10, acks => manual}),
    Load = load(Second, <<"x/2">>, 501),
    Received = receive_and_ack(Again, fun() -> sent(Load) > 600 end),
    Count = stop_load(Load),
    Rest = receive_and_ack(Again, Count - length(Received)),
    ?assertEqual(Old ++ [integer_to_binary(N) || N <- lists:seq(501, Count)], payloads(Received ++ Rest)),
    await([], fun() -> stored(Second) end),
    ?assertEqual([], ?CLIENT:messages(Again)),
    stop(Second).

a_node_that_stops_deletes_nothing(Config) ->
    First = start(Config, #{}),
    C = connect(First, #{acks => manual, receive_maximum => 2}),
    1 = ?CLIENT:subscribe(C, <<"d/+">>, 1),
    Offline = id(Config, <<"offline">>),
    D = connect(First, #{client_id => Offline}),
    1 = ?CLIENT:subscribe(D, <<"d/+">>, 1),
    ?CLIENT:drop(D),
    %% What is published while it stops is stored, or not acknowledged.
    Load = load_until_closed(First, <<"d/1">>),
    await_more(Load, 50),
    receive_all(C, 2),
    ok = ?NODE:stop(broker(First)),
    Count = await_closed(Load),
    Second = start_again(First),
    ?assertMatch({ok, #{subscriptions := #{<<"d/+">> := _}}}, session(Second)),
    Sent = [integer_to_binary(N) || N <- lists:seq(1, Count)],
    Stored = stored(Second),
    ?assertEqual(Sent, lists:sublist(Stored, Count)),
    [
        begin
            Again = connect(Second, #{client_id => Id}),
            ?assertEqual(Stored, payloads(receive_all(Again, length(Stored))))
        end
     || Id <- [id(Config), Offline]
    ],
    stop(Second).

%% The first message that is for it finds that out.
a_session_that_expires_without_a_node_leaves_nothing(Config) ->
    First = start(Config, #{}),
    C = connect(First, #{}),
    1 = ?CLIENT:subscribe(C, <<"j/+">>, 1),
    ok = ?CLIENT:disconnect(C, #{'Session-Expiry-Interval' => 1}),
    await(fun() -> ttl(First) =< 1 end),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    await({error, not_found}, fun() -> session(Second) end),
    ?assertMatch([_], matching(Second, <<"j/1">>)),
    P = publisher(Second),
    {ok, _} = ?CLIENT:publish(P, <<"j/1">>, <<"x">>, #{qos => 1}),
    await([], fun() -> matching(Second, <<"j/1">>) end),
    ?assertEqual([], stored(Second)),
    await([], fun() -> keys_of(Second, id(Config)) end),
    ?assertEqual({ok, 16#10}, ?CLIENT:publish(P, <<"j/1">>, <<"x">>, #{qos => 1})),
    {ok, _, #{session_present := false}} = ?CLIENT:connect(options(Second, #{})),
    stop(Second).

a_clean_start_ends_what_only_redis_has(Config) ->
    First = start(Config, #{}),
    Ids = [id(Config, <<"0">>), id(Config, <<"100">>)],
    [
        begin
            C = connect(First, #{client_id => Id, acks => manual}),
            1 = ?CLIENT:subscribe(C, <<"c/+">>, 1)
        end
     || Id <- Ids
    ],
    publish_numbers(publisher(First), <<"c/1">>, 1, 3),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    [
        {ok, _, #{session_present := false}} =
            ?CLIENT:connect(options(Second, #{client_id => Id, clean_start => true, expiry => Expiry}))
     || {Id, Expiry} <- lists:zip(Ids, [0, 100])
    ],
    ?assertEqual([], matching(Second, <<"c/1">>)),
    ?assertEqual([], keys_of(Second, hd(Ids))),
    ?assertMatch({ok, #{expiry := 100000}}, session(Second, lists:last(Ids))),
    ?assertEqual([], stored(Second, lists:last(Ids))),
    stop(Second).

many_connect_at_once_to_what_only_redis_has(Config) ->
    First = start(Config, #{}),
    1 = ?CLIENT:subscribe(connect(First, #{}), <<"v/+">>, 1),
    Payloads = publish_numbers(publisher(First), <<"v/1">>, 1, 3),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    %% Of those in the middle, some may have acknowledged.
    [connect_at_once(8, Second) || _ <- lists:seq(1, 5)],
    Again = connect(Second, #{}),
    {ok, 0} = ?CLIENT:publish(publisher(Second), <<"v/1">>, <<"last">>, #{qos => 1}),
    await(fun() -> lists:member(<<"last">>, payloads(peek(Again))) end),
    ?assertEqual([], payloads(taken(Again)) -- [<<"last">> | Payloads]),
    await([], fun() -> stored(Second) end),
    stop(Second).

without_redis_clients_are_refused(Config) ->
    Own = start(Config, #{config => #{redis => #{outage_grace => <<"200ms">>, request_timeout => <<"1s">>}}}),
    C = connect(Own, #{}),
    1 = ?CLIENT:subscribe(C, <<"r/1">>, 1),
    P = publisher(Own),
    P3 = publisher(Own, #{version => 4}),
    ok = ?SERVER:kill(server(Own)),
    await(fun() -> not is_available(Own) end),
    ?assertMatch({error, _}, call(Own, emqx_redis_storage_app, on_health_check, [#{}])),
    %% No PUBACK.
    ?assertEqual(
        {error, {disconnected, ?IMPLEMENTATION_SPECIFIC_ERROR}},
        ?CLIENT:publish(P, <<"r/1">>, <<"x">>, #{qos => 1})
    ),
    ?assertEqual({error, closed}, ?CLIENT:publish(P3, <<"r/1">>, <<"x">>, #{qos => 1})),
    P2 = publisher(Own),
    ?assertMatch({error, _}, ?CLIENT:publish(P2, <<"r/1">>, <<"x">>, #{qos => 2})),
    ?assertEqual([], ?CLIENT:messages(C)),
    ?assertEqual({error, ?SERVER_UNAVAILABLE}, ?CLIENT:connect(options(Own, #{client_id => <<"new">>}))),
    ?assertEqual({error, 3}, ?CLIENT:connect(options(Own, #{client_id => <<"new">>, version => 4}))),
    %% What needs no storage goes on.
    Q = publisher(Own),
    {ok, _} = ?CLIENT:publish(Q, <<"r/1">>, <<"0">>, #{qos => 0}),
    ?assertMatch([#{payload := <<"0">>}], receive_all(C, 1)),
    ?assertMatch([Code] when Code >= 16#80, ?CLIENT:subscribe(C, [{<<"r/2">>, 1}], #{}, 15000)),
    ok = ?SERVER:restart(server(Own)),
    await(fun() -> is_available(Own) end),
    {ok, 0} = ?CLIENT:publish(publisher(Own), <<"r/1">>, <<"x">>, #{qos => 1}),
    ?assertMatch([#{payload := <<"x">>}], receive_all(C, 1)),
    connect(Own, #{client_id => <<"new">>}),
    ?assertEqual(1, ?CLIENT:subscribe(C, <<"r/2">>, 1)),
    ?assertEqual([], alarms(Own)),
    stop(Own).

without_redis_it_works_degraded(Config) ->
    Settings = #{
        redis => #{outage_grace => <<"200ms">>, request_timeout => <<"1s">>},
        mqtt => #{when_unavailable => <<"degrade">>}
    },
    Own = start(Config, #{config => Settings}),
    C = connect(Own, #{}),
    [1, 1] = ?CLIENT:subscribe(C, [{<<"g/1">>, 1}, {<<"g/3">>, 1}], #{}, 15000),
    ?assertEqual([], alarms(Own)),
    ok = ?SERVER:kill(server(Own)),
    await([emqx_redis_storage_unavailable], fun() -> alarms(Own) end),
    P = publisher(Own),
    {ok, 0} = ?CLIENT:publish(P, <<"g/1">>, <<"1">>, #{qos => 1}),
    ?assertMatch([#{payload := <<"1">>}], receive_all(C, 1)),
    {ok, New, #{session_present := false}} = ?CLIENT:connect(options(Own, #{client_id => <<"new">>})),
    ?assertEqual(1, ?CLIENT:subscribe(C, <<"g/2">>, 1)),
    ?assertEqual(1, ?CLIENT:subscribe(New, <<"g/2">>, 1)),
    ?assertEqual(ok, ?CLIENT:unsubscribe(C, <<"g/3">>)),
    ok = ?SERVER:restart(server(Own)),
    await([], fun() -> alarms(Own) end),
    %% What could not be written is written now.
    Both = [<<"new">>, id(Config)],
    await(Both, fun() -> lists:sort([Id || {_, Id, _} <- matching(Own, <<"g/2">>)]) end),
    await([<<"g/2">>], fun() -> stored_filters(Own, <<"new">>) end),
    await([<<"g/1">>, <<"g/2">>], fun() -> stored_filters(Own, id(Own)) end),
    await([], fun() -> matching(Own, <<"g/3">>) end),
    stop(Own).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

by_number(A, B) -> binary_to_integer(A) =< binary_to_integer(B).

%% What has come, without taking it.
peek(Client) ->
    Taken = get({taken, Client}),
    All = case Taken of undefined -> []; _ -> Taken end ++ ?CLIENT:messages(Client),
    _ = put({taken, Client}, All),
    All.

taken(Client) ->
    All = peek(Client),
    _ = erase({taken, Client}),
    All.

%% What is left of it is no matter of these tests.
no_expiry(Messages) ->
    [
        Message#{properties := maps:remove('Message-Expiry-Interval', Properties)}
     || #{properties := Properties} = Message <- Messages
    ].

alarms(Config) ->
    Alarms = call(Config, emqx_alarm, get_alarms, [activated]),
    [Name || #{name := emqx_redis_storage_unavailable = Name} <- Alarms].

is_hooked(Config) -> ?NODE:is_hooked(broker(Config)).

%% All answered with success find the session, and one stays.
connect_at_once(Count, Config) ->
    Test = self(),
    Workers = [
        spawn_link(fun() ->
            Result = ?CLIENT:connect(options(Config, #{})),
            Test ! {self(), Result},
            receive stop -> ok end
        end)
     || _ <- lists:seq(1, Count)
    ],
    Results = [receive {Worker, Result} -> Result end || Worker <- Workers],
    Connected = [Client || {ok, Client, #{session_present := true}} <- Results],
    Failed = [Result || {error, Result} <- Results],
    ?assertEqual([], Failed -- lists:duplicate(Count, closed) -- lists:duplicate(Count, ?SERVER_BUSY)),
    ?assertEqual(Count, length(Connected) + length(Failed), Results),
    ?assertNotEqual([], Connected),
    await(1, fun() -> length([C || C <- Connected, ?CLIENT:status(C) =:= connected]) end),
    await(1, fun() -> length(call(Config, emqx_cm, lookup_channels, [id(Config)])) end),
    [Worker ! stop || Worker <- Workers].

%% Publishes numbers, one after the other, each until it is acknowledged.
load(Config, Topic) -> load(Config, Topic, 1).

load(Config, Topic, First) ->
    Counter = counters:new(1, []),
    counters:put(Counter, 1, First - 1),
    Test = self(),
    Pid = spawn_link(fun() -> publish_until_told(Config, reconnect(Config), Topic, Counter, Test) end),
    {Pid, Counter}.

publish_until_told(Config, Publisher, Topic, Counter, Test) ->
    Next = counters:get(Counter, 1) + 1,
    case ?CLIENT:publish(Publisher, Topic, integer_to_binary(Next), #{qos => 1}) of
        {ok, 0} ->
            counters:add(Counter, 1, 1),
            receive
                stop -> Test ! {self(), Next}
            after 0 -> publish_until_told(Config, Publisher, Topic, Counter, Test)
            end;
        {error, _} ->
            publish_until_told(Config, reconnect(Config), Topic, Counter, Test)
    end.

%% The same until the broker is gone; then await_closed/1 answers the last that was acknowledged.
load_until_closed(Config, Topic) ->
    Counter = counters:new(1, []),
    Publisher = publisher(Config),
    Test = self(),
    {spawn_link(fun() -> publish_until_closed(Publisher, Topic, Counter, Test) end), Counter}.

publish_until_closed(Publisher, Topic, Counter, Test) ->
    Next = counters:get(Counter, 1) + 1,
    case ?CLIENT:publish(Publisher, Topic, integer_to_binary(Next), #{qos => 1}) of
        {ok, 0} ->
            counters:add(Counter, 1, 1),
            publish_until_closed(Publisher, Topic, Counter, Test);
        {error, _} ->
            Test ! {self(), Next - 1}
    end.

await_closed({Pid, _}) ->
    receive {Pid, Last} -> Last end.

reconnect(Config) ->
    Id = <<"load", (integer_to_binary(erlang:unique_integer([positive])))/binary>>,
    case ?CLIENT:connect(options(Config, #{client_id => Id, clean_start => true, expiry => 0})) of
        {ok, Client, _} -> Client;
        {error, _} -> reconnect(Config)
    end.

%% A message that was published again may come again.
without_repetitions([Same, Same | More]) -> without_repetitions([Same | More]);
without_repetitions([One | More]) -> [One | without_repetitions(More)];
without_repetitions([]) -> [].

sent({_, Counter}) -> counters:get(Counter, 1).

await_more(Load, Count) ->
    Before = sent(Load),
    await(fun() -> sent(Load) > Before + Count end).

stop_load({Pid, _}) ->
    Pid ! stop,
    receive {Pid, Last} -> Last end.
