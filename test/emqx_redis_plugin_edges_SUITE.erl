%% The plugin where things come together badly: takeovers that are broken off, channels that are too late,
%% small queues and windows, unreadable messages, sessions that have gone from Redis. On the stand-in of
%% EMQX, or on a real one: see `emqx_redis_broker_node'.
-module(emqx_redis_plugin_edges_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-import(emqx_redis_test_plugin, [start/2, start_again/1, stop/1, server/1, broker/1, call/4, id/1, id/2]).
-import(emqx_redis_test_plugin, [options/2, connect/2, publisher/1, publish_numbers/4, payloads/1]).
-import(emqx_redis_test_plugin, [leave_offline/3, receive_all/2, receive_and_ack/2, await/1, await/2]).
-import(emqx_redis_test_plugin, [stored_filters/2]).
-import(emqx_redis_test_plugin, [session/1, session/2, ttl/2, stored/1, stored/2, matching/2, cli/2]).
-import(emqx_redis_test_plugin, [keys_of/2, marks/1, await_marks/2, is_available/1]).

-define(SERVER, emqx_redis_test_server).
-define(NODE, emqx_redis_broker_node).
-define(CLIENT, emqx_redis_mqtt_client).

-define(QUOTA_EXCEEDED, 16#97).
-define(HELD, {?MODULE, held}).
-define(QUEUE, 50).
-define(WINDOW, 100).
-define(SUBSCRIPTIONS, 4).

%% A real EMQX takes its time to start.
suite() -> [{timetrap, {minutes, 4}}].

all() -> [{group, one_broker}, {group, own_brokers}].

groups() ->
    [
        {one_broker, [parallel], [
            a_takeover_that_is_broken_off_deletes_nothing,
            a_stale_channel_deletes_nothing_of_its_successor,
            a_first_page_never_overflows_the_queue,
            what_is_not_stored_passes_a_waiting_backlog,
            own_messages_are_left_out_and_removed,
            a_page_of_own_messages_alone_is_followed_by_the_next,
            a_page_of_qos_0_alone_is_followed_by_the_next,
            what_nobody_can_read_locks_nobody_out,
            a_session_gone_from_redis_is_written_before_a_puback,
            a_subscription_without_a_session_is_deleted_by_the_first_publish,
            a_filter_that_emqx_refuses_does_not_stay,
            groups_that_nobody_uses_are_forgotten,
            a_session_lost_in_connect_leaves_no_lock,
            a_client_back_without_a_session_blocks_no_publisher
        ]},
        {own_brokers, [parallel], [
            a_connection_under_way_while_the_plugin_starts_deletes_nothing,
            a_smaller_window_completes_what_was_under_way,
            a_session_that_ended_without_redis_is_deleted_later,
            a_client_without_a_session_does_not_wait_for_redis,
            a_session_that_ends_before_it_is_adopted_is_deleted,
            what_is_acknowledged_is_waited_for,
            a_session_that_ended_without_redis_is_not_taken_up_again,
            packet_ids_of_a_time_without_the_plugin_are_not_used_again
        ]}
    ].

init_per_suite(Config) -> Config.

end_per_suite(_Config) -> ?NODE:stop_all().

init_per_group(one_broker, Config) ->
    Mqtt = #{max_mqueue_len => ?QUEUE, max_inflight => ?WINDOW, max_subscriptions => ?SUBSCRIPTIONS},
    start(Config, #{mqtt => Mqtt});
init_per_group(own_brokers, Config) ->
    Config.

end_per_group(one_broker, Config) -> stop(Config);
end_per_group(own_brokers, _Config) -> ok.

init_per_testcase(Case, Config) -> [{client_id, atom_to_binary(Case)} | Config].

end_per_testcase(_Case, _Config) -> ok.

%%--------------------------------------------------------------------
%% One broker
%%--------------------------------------------------------------------

a_takeover_that_is_broken_off_deletes_nothing(Config) ->
    Topic = <<"takeover/1">>,
    C = connect(Config, #{}),
    1 = ?CLIENT:subscribe(C, Topic, 1),
    leave_offline(Config, C, id(Config)),
    Payloads = publish_numbers(publisher(Config), Topic, 1, 3),
    [Channel] = channels(Config, id(Config)),
    _ = call(Config, emqx_cm, takeover_session_begin, [id(Config)]),
    %% The other end is never heard of again.
    expire(Config, Channel),
    ?assertMatch({ok, #{subscriptions := #{Topic := _}}}, session(Config)),
    ?assertMatch([{Topic, _, _}], matching(Config, Topic)),
    ?assertEqual(Payloads, stored(Config)),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Config, #{})),
    ?assertEqual(Payloads, payloads(receive_all(Again, 3))),
    {ok, 0} = ?CLIENT:publish(publisher(Config), Topic, <<"new">>, #{qos => 1}),
    ?assertEqual([<<"new">>], payloads(receive_all(Again, 1))).

%% Another node has claimed the session and written its subscriptions anew.
a_stale_channel_deletes_nothing_of_its_successor(Config) ->
    Kick = fun(Id, _C) -> ok = call(Config, emqx_cm, kick_session, [Id]) end,
    Ends = [
        {<<"kick">>, Kick},
        {<<"kick_offline">>, Kick},
        {<<"expiry">>, fun(_Id, _C) -> ok end},
        {<<"disconnect">>, fun(_Id, C) -> ?CLIENT:disconnect(C, #{'Session-Expiry-Interval' => 0}) end}
    ],
    Stale = [
        begin
            Id = id(Config, Name),
            C = connect(Config, #{client_id => Id}),
            1 = ?CLIENT:subscribe(C, <<"stale/", Name/binary>>, 1),
            [Channel] = channels(Config, Id),
            case Name of
                <<"kick_offline">> -> leave_offline(Config, C, Id);
                <<"expiry">> -> ok = ?CLIENT:disconnect(C, #{'Session-Expiry-Interval' => 2});
                _ -> ok
            end,
            {Id, <<"stale/", Name/binary>>, C, Channel, End}
        end
     || {Name, End} <- Ends
    ],
    await(fun() -> ttl(Config, id(Config, <<"expiry">>)) =< 2 end),
    Claimed = [{Id, claim_elsewhere(Config, Id, Topic)} || {Id, Topic, _, _, _} <- Stale],
    [End(Id, C) || {Id, _, C, _, End} <- Stale],
    [
        begin
            await(false, fun() -> call(Config, erlang, is_process_alive, [Channel]) end),
            {Id, Stored} = lists:keyfind(Id, 1, Claimed),
            ?assertEqual({ok, Stored}, session(Config, Id)),
            ?assertEqual([{Topic, Id, {1, 0, elsewhere}}], matching(Config, Topic)),
            ?assertEqual([<<"kept">>], stored(Config, Id)),
            ?assert(ttl(Config, Id) > 100)
        end
     || {Id, Topic, _, Channel, _} <- Stale
    ].

claim_elsewhere(Config, Id, Topic) ->
    {ok, #{epoch := Epoch, session := Old}} = call(Config, emqx_redis_session, claim_session, [Id, #{}]),
    New = Old#{node := 'other@127.0.0.1'},
    Fence = #{epoch => Epoch, ttl => 200},
    ok = call(Config, emqx_redis_session, save_session, [Id, New, Fence]),
    ok = call(Config, emqx_redis_subscription, add_subscription, [Topic, Id, {1, 0, elsewhere}]),
    ok = store(Config, Id, #{id => <<"1">>, payload => <<"kept">>}),
    New.

a_first_page_never_overflows_the_queue(Config) ->
    C = connect(Config, #{}),
    1 = ?CLIENT:subscribe(C, <<"page/1">>, 1),
    lose(Config, C),
    Payloads = publish_numbers(publisher(Config), <<"page/1">>, 1, 300),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Config, #{})),
    ?assertEqual(Payloads, payloads(receive_all(Again, 300))),
    await([], fun() -> stored(Config) end),
    ?assertEqual([], ?CLIENT:messages(Again)).

%% What EMQX has retained comes to a session without a publisher that has stored it.
what_is_not_stored_passes_a_waiting_backlog(Config) ->
    Topic = <<"unstored/1">>,
    C = connect(Config, #{}),
    1 = ?CLIENT:subscribe(C, Topic, 1),
    lose(Config, C),
    Payloads = publish_numbers(publisher(Config), Topic, 1, 300),
    Again = connect(Config, #{acks => manual, receive_maximum => 10}),
    First = receive_all(Again, 10),
    Flags = #{dup => false, retain => true},
    Headers = #{properties => #{}, retained => true},
    Message = call(Config, emqx_message, make, [<<"retainer">>, 1, Topic, <<"unstored">>, Flags, Headers]),
    [Channel] = channels(Config, id(Config)),
    _ = call(Config, erlang, send, [Channel, {deliver, Topic, Message}]),
    [ok = ?CLIENT:ack(Again, It) || It <- First],
    Received = payloads(First ++ receive_and_ack(Again, 291)),
    ?assertEqual([<<"unstored">>], Received -- Payloads),
    ?assertEqual(Payloads, lists:delete(<<"unstored">>, Received)),
    await([], fun() -> stored(Config) end),
    ?assertEqual([], ?CLIENT:messages(Again)).

%% They were stored by another filter, that the client has given up since.
own_messages_are_left_out_and_removed(Config) ->
    {C, P} = subscribe_twice(Config, <<"own">>, #{acks => manual, receive_maximum => 2}),
    [{ok, 0} = publish(Who, Topic, Payload) || {Who, Topic, Payload} <- [
        {C, <<"own/both">>, <<"own 1">>},
        {P, <<"own/1">>, <<"other 1">>},
        {C, <<"own/both">>, <<"own 2">>},
        {P, <<"own/1">>, <<"other 2">>},
        {C, <<"own/both">>, <<"own 3">>}
    ]],
    ?assertEqual([<<"own 1">>, <<"other 1">>], payloads(receive_all(C, 2))),
    ok = ?CLIENT:unsubscribe(C, <<"own/both">>),
    await_marks(Config, 2),
    ?assertEqual(5, length(stored(Config))),
    lose(Config, C),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Config, #{acks => manual})),
    [#{dup := true}, #{dup := false}] = Received = receive_all(Again, 2),
    ?assertEqual([<<"other 1">>, <<"other 2">>], payloads(Received)),
    await([<<"other 1">>, <<"other 2">>], fun() -> stored(Config) end),
    [ok = ?CLIENT:ack(Again, Message) || Message <- Received],
    await([], fun() -> stored(Config) end),
    {ok, 0} = publish(P, <<"own/1">>, <<"new">>),
    ?assertEqual([<<"new">>], payloads(receive_all(Again, 1))).

%% Nothing of such a page is ever acknowledged.
a_page_of_own_messages_alone_is_followed_by_the_next(Config) ->
    {C, P} = subscribe_twice(Config, <<"pages">>, #{acks => manual, receive_maximum => 1}),
    publish_numbers(C, <<"pages/both">>, 1, ?QUEUE + 10),
    {ok, 0} = publish(P, <<"pages/1">>, <<"other">>),
    ok = ?CLIENT:unsubscribe(C, <<"pages/both">>),
    lose(Config, C),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Config, #{})),
    ?assertEqual([<<"other">>], payloads(?CLIENT:receive_messages(Again, 1, 5000))),
    await([], fun() -> stored(Config) end).

a_page_of_qos_0_alone_is_followed_by_the_next(Config) ->
    C = connect(Config, #{acks => manual, receive_maximum => 1}),
    1 = ?CLIENT:subscribe(C, <<"zero/1">>, 1),
    lose(Config, C),
    P = publisher(Config),
    Payloads = publish_numbers(P, <<"zero/1">>, 1, 2 * ?QUEUE),
    Between = connect(Config, #{acks => manual, receive_maximum => 1}),
    0 = ?CLIENT:subscribe(Between, <<"zero/1">>, 0),
    lose(Config, Between),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Config, #{})),
    ?assertEqual(Payloads, payloads(?CLIENT:receive_messages(Again, 2 * ?QUEUE, 5000))),
    await([], fun() -> stored(Config) end).

%% To all below the prefix without its own messages, and besides to one topic with them.
subscribe_twice(Config, Prefix, Options) ->
    C = connect(Config, Options),
    1 = ?CLIENT:subscribe(C, <<Prefix/binary, "/#">>, #{qos => 1, nl => 1}),
    1 = ?CLIENT:subscribe(C, <<Prefix/binary, "/both">>, 1),
    {C, publisher(Config)}.

what_nobody_can_read_locks_nobody_out(Config) ->
    C = connect(Config, #{}),
    1 = ?CLIENT:subscribe(C, <<"garbage/1">>, 1),
    lose(Config, C),
    P = publisher(Config),
    publish_numbers(P, <<"garbage/1">>, 1, 5),
    {ok, Messages} = call(Config, emqx_redis_message, get_messages, [id(Config), 0, 10]),
    Keys = [<<"msg:", (id(Config))/binary, ":", MessageId/binary>> || #{id := MessageId} <- Messages],
    Bad = [lists:nth(N, Keys) || N <- [1, 3]],
    [1 = cli(Config, ["EXISTS", Key]) || Key <- Keys],
    [<<"OK">> = cli(Config, ["SET", Key, <<255, "garbage">>]) || Key <- Bad],
    %% This one can be read, and is no message of EMQX.
    ok = store(Config, id(Config), #{id => <<"none">>, payload => <<"none">>}),
    {ok, 0} = publish(P, <<"garbage/1">>, <<"6">>),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Config, #{})),
    ?assertEqual([<<"2">>, <<"4">>, <<"5">>, <<"6">>], payloads(receive_all(Again, 4))),
    await([], fun() -> stored(Config) end),
    await(lists:duplicate(5, 0), fun() -> [cli(Config, ["EXISTS", Key]) || Key <- Keys] end),
    ?assertEqual([], ?CLIENT:messages(Again)).

a_session_gone_from_redis_is_written_before_a_puback(Config) ->
    Topic = <<"expired/1">>,
    C = connect(Config, #{acks => manual}),
    1 = ?CLIENT:subscribe(C, Topic, 1),
    1 = cli(Config, ["DEL", <<"session:", (id(Config))/binary>>]),
    ?assertMatch([_], matching(Config, Topic)),
    ok = publish_until_acknowledged(Config, Topic, <<"x">>, 10),
    %% What was acknowledged is in Redis, and so is who is to have it.
    ?assertEqual([<<"x">>], lists:usort(stored(Config))),
    ?assertMatch({ok, #{subscriptions := #{Topic := _}}}, session(Config)),
    ?assertMatch([_], matching(Config, Topic)),
    ?assertEqual([<<"x">>], payloads(receive_all(C, 1))),
    timer:sleep(300),
    ?assertMatch([_], matching(Config, Topic)),
    ?assertEqual(connected, ?CLIENT:status(C)).

%% As a publisher does that is disconnected without a PUBACK.
publish_until_acknowledged(Config, Topic, Payload, Attempts) when Attempts > 0 ->
    case ?CLIENT:publish(publisher(Config), Topic, Payload, #{qos => 1}) of
        {ok, 0} ->
            ok;
        {error, _} ->
            timer:sleep(50),
            publish_until_acknowledged(Config, Topic, Payload, Attempts - 1)
    end.

a_subscription_without_a_session_is_deleted_by_the_first_publish(Config) ->
    Topic = <<"ghost/1">>,
    C = connect(Config, #{}),
    1 = ?CLIENT:subscribe(C, Topic, 1),
    lose(Config, C),
    1 = cli(Config, ["DEL", <<"session:", (id(Config))/binary>>]),
    ?assertMatch([_], matching(Config, Topic)),
    {ok, _} = publish(publisher(Config), Topic, <<"x">>),
    await([], fun() -> matching(Config, Topic) end),
    ?assertEqual([], stored(Config)).

%% Another node claims the session while EMQX opens it, under a lock of its own.
a_session_lost_in_connect_leaves_no_lock(Config) ->
    C = connect(Config, #{}),
    leave_offline(Config, C, id(Config)),
    ok = call(Config, emqx_hooks, put, ['session.resumed', {?MODULE, lose_session, [id(Config)]}, 1]),
    ?assertMatch({error, _}, ?CLIENT:connect(options(Config, #{}))),
    ok = call(Config, emqx_hooks, del, ['session.resumed', {?MODULE, lose_session}]),
    ?assertMatch({ok, _, #{session_present := true}}, ?CLIENT:connect(options(Config, #{}))).

lose_session(#{clientid := ClientId}, _Info, ClientId) ->
    #{epoch := Epoch} = emqx_redis_session_state:current(),
    emqx_redis_session_state:lost(Epoch);
lose_session(_ClientInfo, _Info, _ClientId) ->
    ok.

%% Its session has expired in Redis, and its subscription is still known.
a_client_back_without_a_session_blocks_no_publisher(Config) ->
    Topic = <<"back/1">>,
    ok = call(Config, emqx_redis_subscription, add_subscription, [Topic, id(Config), {1, 0, gone}]),
    C = connect(Config, #{expiry => 0, clean_start => true}),
    1 = ?CLIENT:subscribe(C, Topic, 1),
    {ok, 0} = publish(publisher(Config), Topic, <<"1">>),
    ?assertEqual([<<"1">>], payloads(receive_all(C, 1))),
    await([], fun() -> matching(Config, Topic) end).

%% Long after they were joined, unless a session is subscribed yet or a message is left.
groups_that_nobody_uses_are_forgotten(Config) ->
    C = connect(Config, #{}),
    1 = ?CLIENT:subscribe(C, <<"$share/used/g/#">>, 1),
    Groups = [{Name, <<"g/#">>} || Name <- [<<"used">>, <<"left">>, <<"unused">>]],
    ok = store(Config, <<0, "$share/left/g/#">>, #{id => <<"1">>, payload => <<"x">>}),
    LongAgo = call(Config, erlang, monotonic_time, [second]) - 4000,
    [true = call(Config, ets, insert, [emqx_redis_groups_known, {Group, LongAgo}]) || Group <- Groups],
    _ = call(Config, erlang, send, [emqx_redis_groups, round]),
    Known = fun(Group) -> call(Config, ets, member, [emqx_redis_groups_known, Group]) end,
    await(false, fun() -> Known(lists:last(Groups)) end),
    %% It is done with the round.
    _ = call(Config, sys, get_state, [emqx_redis_groups]),
    ?assertEqual([true, true, false], [Known(Group) || Group <- Groups]).

a_filter_that_emqx_refuses_does_not_stay(Config) ->
    [Refused | Granted] = [<<"quota/", N>> || N <- "01234"],
    C = connect(Config, #{}),
    Filters = [{Filter, 1} || Filter <- Granted],
    ?assertEqual([1, 1, 1, 1], ?CLIENT:subscribe(C, Filters, #{}, 15000)),
    ?assertEqual(?QUOTA_EXCEEDED, ?CLIENT:subscribe(C, Refused, 1)),
    await([], fun() -> matching(Config, Refused) end),
    await(Granted, fun() -> stored_filters(Config, id(Config)) end),
    %% Nor where only some of them are refused.
    ok = ?CLIENT:unsubscribe(C, <<"quota/4">>),
    Both = [{<<"quota/4">>, 1}, {Refused, 1}],
    ?assertEqual([1, ?QUOTA_EXCEEDED], ?CLIENT:subscribe(C, Both, #{}, 15000)),
    await([], fun() -> matching(Config, Refused) end),
    await(Granted, fun() -> stored_filters(Config, id(Config)) end),
    [?assertMatch([_], matching(Config, Filter)) || Filter <- Granted].

%%--------------------------------------------------------------------
%% Brokers of one's own
%%--------------------------------------------------------------------

%% The plugin has not seen their CONNECT, nor looked for their sessions.
a_connection_under_way_while_the_plugin_starts_deletes_nothing(Config) ->
    First = start(Config, #{}),
    Names = [<<"redis">>, <<"clean">>, <<"memory">>],
    Ids = [OnlyInRedis, Clean, InMemory] = [id(Config, Name) || Name <- Names],
    [
        begin
            C = connect(First, #{client_id => Id}),
            1 = ?CLIENT:subscribe(C, <<"way/1">>, 1)
        end
     || Id <- [OnlyInRedis, Clean]
    ],
    ok = ?NODE:kill(broker(First)),
    Second = start_again([{options, #{plugin => false}} | First]),
    D = connect(Second, #{client_id => InMemory}),
    1 = ?CLIENT:subscribe(D, <<"way/1">>, 1),
    ?CLIENT:drop(D),
    await(fun() -> length(channels(Second, InMemory)) =:= 1 end),
    hold(Second),
    Ways = [
        connect_async(options(Second, #{client_id => OnlyInRedis})),
        connect_async(options(Second, #{client_id => Clean, clean_start => true, expiry => 0})),
        connect_async(options(Second, #{client_id => InMemory}))
    ],
    await(fun() -> length(held(Second)) =:= 3 end),
    ok = ?NODE:start_plugin(broker(Second)),
    %% That was there before, and is kept by now.
    await([<<"way/1">>], fun() -> stored_filters(Second, InMemory) end),
    publish_numbers(publisher(Second), <<"way/1">>, 1, 3),
    release(Second),
    ?assertEqual([{error, closed} || _ <- Ways], [receive {Way, Result} -> Result end || Way <- Ways]),
    Payloads = [<<"1">>, <<"2">>, <<"3">>],
    [
        begin
            ?assertMatch({ok, #{subscriptions := #{<<"way/1">> := _}}}, session(Second, Id)),
            ?assertEqual(Payloads, stored(Second, Id)),
            {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Second, #{client_id => Id})),
            ?assertEqual(Payloads, payloads(receive_all(Again, 3)))
        end
     || Id <- Ids
    ],
    stop(Second).

a_smaller_window_completes_what_was_under_way(Config) ->
    First = start(Config, #{}),
    C = connect(First, #{acks => none}),
    2 = ?CLIENT:subscribe(C, <<"window/1">>, 2),
    P = publisher(First),
    [{ok, 0} = ?CLIENT:publish(P, <<"window/1">>, <<N>>, #{qos => 2}) || N <- "12345"],
    Received = receive_all(C, 5),
    Ids = [PacketId || #{packet_id := PacketId} <- Received],
    [ok = ?CLIENT:ack(C, Message) || Message <- Received],
    await(Ids, fun() -> ?CLIENT:pubrels(C) end),
    await([{Id, received} || Id <- Ids], fun() -> lists:sort(marks(First)) end),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    Q = publisher(Second),
    Late = publish_numbers(Q, <<"window/1">>, 6, 8),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Second, #{receive_maximum => 2})),
    await(Ids, fun() -> lists:usort(?CLIENT:pubrels(Again)) end),
    %% None of them comes once more.
    ?assertEqual(Late, payloads(receive_all(Again, 3))),
    await([], fun() -> stored(Second) end),
    ?assertEqual([], ?CLIENT:messages(Again)),
    stop(Second).

a_session_that_ended_without_redis_is_deleted_later(Config) ->
    [Gone, Back] = Ids = [id(Config, Name) || Name <- [<<"gone">>, <<"back">>]],
    Own = end_without_redis(Config, Ids, <<"ended/1">>),
    %% One connects anew before they are looked at again.
    New = connect(Own, #{client_id => Back, clean_start => true, acks => manual}),
    1 = ?CLIENT:subscribe(New, <<"ended/2">>, 1),
    {ok, 0} = publish(publisher(Own), <<"ended/2">>, <<"new">>),
    {ok, #{instance := Instance}} = session(Own, Back),
    ok = call(Own, sys, resume, [emqx_redis_discards]),
    await([], fun() -> keys_of(Own, Gone) end),
    ?assertEqual([], matching(Own, <<"ended/1">>)),
    %% As long as it takes to look at them once more.
    timer:sleep(1200),
    ?assertMatch({ok, #{instance := Instance, subscriptions := #{<<"ended/2">> := _}}}, session(Own, Back)),
    ?assertMatch([{_, Back, _}], matching(Own, <<"ended/2">>)),
    ?assertEqual([<<"new">>], stored(Own, Back)),
    ?assertEqual(connected, ?CLIENT:status(New)),
    stop(Own).

%% Though it is in Redis yet, and the client does not ask for a clean start.
a_session_that_ended_without_redis_is_not_taken_up_again(Config) ->
    Own = end_without_redis(Config, [id(Config)], <<"again/1">>),
    {ok, C, #{session_present := IsPresent}} = ?CLIENT:connect(options(Own, #{})),
    ok = call(Own, sys, resume, [emqx_redis_discards]),
    ?assertNot(IsPresent),
    ?assertEqual([], matching(Own, <<"again/1">>)),
    ?assertEqual([], stored(Own)),
    ?assertEqual([], ?CLIENT:messages(C)),
    ?assertMatch({ok, _}, session(Own)),
    stop(Own).

%% Redis is back, and nobody has looked yet at what ended meanwhile: that waits to be told to go on.
end_without_redis(Config, Ids, Topic) ->
    Own = start(Config, #{config => #{redis => #{outage_grace => <<"200ms">>, request_timeout => <<"1s">>}}}),
    Clients = [connect(Own, #{client_id => Id, acks => manual}) || Id <- Ids],
    [1 = ?CLIENT:subscribe(C, Topic, 1) || C <- Clients],
    Payloads = publish_numbers(publisher(Own), Topic, 1, 3),
    ok = ?SERVER:kill(server(Own)),
    await(fun() -> not is_available(Own) end),
    [?CLIENT:disconnect(C, #{'Session-Expiry-Interval' => 0}) || C <- Clients],
    await([], fun() -> lists:append([channels(Own, Id) || Id <- Ids]) end),
    ok = call(Own, sys, suspend, [emqx_redis_discards]),
    ok = ?SERVER:restart(server(Own)),
    await(fun() -> is_available(Own) end),
    [?assertEqual(Payloads, stored(Own, Id)) || Id <- Ids],
    Own.

%% Neither to connect nor to be served; its old session ends all the same, before it has another one.
a_client_without_a_session_does_not_wait_for_redis(Config) ->
    Own = start(Config, #{}),
    Old = connect(Own, #{}),
    1 = ?CLIENT:subscribe(Old, <<"wait/1">>, 1),
    leave_offline(Own, Old, id(Own)),
    ok = ?SERVER:pause(server(Own)),
    Before = erlang:monotonic_time(millisecond),
    C = connect(Own, #{client_id => id(Own, <<"other">>), clean_start => true, expiry => 0}),
    Clean = connect(Own, #{clean_start => true, expiry => 0}),
    Took = erlang:monotonic_time(millisecond) - Before,
    ok = ?SERVER:resume(server(Own)),
    ?assert(Took < 1000, Took),
    0 = ?CLIENT:subscribe(C, <<"wait/2">>, 0),
    ok = ?CLIENT:disconnect(Clean),
    {ok, _, #{session_present := false}} = ?CLIENT:connect(options(Own, #{})),
    ?assertEqual([], stored_filters(Own, id(Own))),
    stop(Own).

%% The plugin has just been started again, and has not come to this session yet.
a_session_that_ends_before_it_is_adopted_is_deleted(Config) ->
    Own = start(Config, #{}),
    C = connect(Own, #{}),
    1 = ?CLIENT:subscribe(C, <<"early/1">>, 1),
    ok = call(Own, emqx_redis_session_state, begin_run, []),
    ok = ?CLIENT:disconnect(C, #{'Session-Expiry-Interval' => 0}),
    await([], fun() -> keys_of(Own, id(Own)) end),
    stop(Own).

%% Whoever takes the session over finds nothing that was acknowledged before.
what_is_acknowledged_is_waited_for(Config) ->
    Own = start(Config, #{}),
    ok = store(Own, id(Own), #{id => <<"1">>, payload => <<"x">>}),
    {ok, #{epoch := Epoch}} = call(Own, emqx_redis_session, claim_session, [id(Own), #{}]),
    <<"OK">> = cli(Own, ["CLIENT", "PAUSE", "700", "WRITE"]),
    Before = erlang:monotonic_time(millisecond),
    ok = call(Own, emqx_redis_acks, ack, [id(Own), Epoch, <<"1">>]),
    ?assertEqual(ok, call(Own, emqx_redis_acks, flush, [id(Own)])),
    ?assert(erlang:monotonic_time(millisecond) - Before >= 500),
    ?assertEqual([], stored(Own)),
    %% And where there is nothing to wait for.
    ?assertEqual(ok, call(Own, emqx_redis_acks, flush, [id(Own)])),
    stop(Own).

%% More of them than are reserved at once.
packet_ids_of_a_time_without_the_plugin_are_not_used_again(Config) ->
    First = start(Config, #{mqtt => #{max_inflight => 2000}}),
    C = connect(First, #{acks => manual}),
    1 = ?CLIENT:subscribe(C, <<"ids/1">>, 1),
    P = publisher(First),
    publish_numbers(P, <<"ids/1">>, 1, 3),
    await_marks(First, 3),
    Epoch = epoch(First),
    ok = ?NODE:stop_plugin(broker(First)),
    Numbers = [integer_to_binary(N) || N <- lists:seq(4, 1053)],
    Requests = [?CLIENT:publish_async(P, <<"ids/1">>, Payload, #{qos => 1}) || Payload <- Numbers],
    [{reply, {ok, 0}} = gen_server:receive_response(Request, 10000) || Request <- Requests],
    Used = [PacketId || #{packet_id := PacketId} <- receive_all(C, 1053)],
    ok = ?NODE:start_plugin(broker(First)),
    %% It has taken the session over that EMQX had meanwhile.
    await(fun() -> epoch(First) =/= Epoch end),
    {ok, 0} = publish(P, <<"ids/1">>, <<"after">>),
    [#{packet_id := After}] = receive_all(C, 1),
    %% Long enough for a packet id to be noted.
    timer:sleep(300),
    Before = [integer_to_binary(N) || N <- lists:seq(1, 1053)] ++ [<<"after">>],
    await(Before, fun() -> stored(First) end),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    {ok, 0} = publish(publisher(Second), <<"ids/1">>, <<"new">>),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Second, #{})),
    Received = receive_all(Again, 1055),
    ?assertEqual(Before ++ [<<"new">>], payloads(Received)),
    Ids = fun(Messages) -> [Id || #{packet_id := Id} <- Messages] end,
    {Noted, Others} = lists:split(3, Received),
    ?assertEqual(lists:sublist(Used, 3), Ids(Noted)),
    [New | Unnoted] = lists:reverse(Ids(Others)),
    ?assertEqual([], [Id || Id <- Unnoted, Id =/= After, Id =< lists:max(Used)]),
    ?assert(New > lists:max([After | Used]), New),
    await([], fun() -> stored(Second) end),
    stop(Second).

%%--------------------------------------------------------------------
%% Connections that are held in authentication
%%--------------------------------------------------------------------

%% In the broker: who connects from now on waits.
hold(Config) ->
    ok = call(Config, persistent_term, put, [?HELD, true]),
    ok = call(Config, emqx_hooks, put, ['client.authenticate', {?MODULE, on_authenticate, []}, 1001]).

release(Config) ->
    true = call(Config, persistent_term, erase, [?HELD]).

%% Client ids of those that wait.
held(Config) -> [Id || {{?MODULE, waits, Id}, _} <- call(Config, persistent_term, get, [])].

on_authenticate(#{clientid := <<"publisher", _/binary>>}, _Result) ->
    ok;
on_authenticate(#{clientid := Id}, _Result) ->
    persistent_term:put({?MODULE, waits, Id}, true),
    wait_held().

wait_held() ->
    case persistent_term:get(?HELD, false) of
        true ->
            timer:sleep(10),
            wait_held();
        false ->
            ok
    end.

%% Sends `{Pid, Result}'.
connect_async(Options) ->
    Test = self(),
    spawn_link(fun() ->
        Test ! {self(), ?CLIENT:connect(Options)},
        receive stop -> ok end
    end).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

publish(Publisher, Topic, Payload) -> ?CLIENT:publish(Publisher, Topic, Payload, #{qos => 1}).

store(Config, Id, Message) -> call(Config, emqx_redis_message, store_message, [Id, Message]).

epoch(Config) -> cli(Config, ["GET", <<"epoch:", (id(Config))/binary>>]).

channels(Config, Id) -> call(Config, emqx_cm, lookup_channels, [Id]).

%% The client goes away, and its channel stays and has written the session.
%% Its channel ends as with its node: the session is in Redis alone.
lose(Config, Client) ->
    [Channel] = channels(Config, id(Config)),
    true = call(Config, erlang, exit, [Channel, kill]),
    closed = ?CLIENT:await_closed(Client),
    await([], fun() -> channels(Config, id(Config)) end).

%% A real EMQX waits ten seconds for the end of a takeover, and cannot be hurried.
expire(Config, Channel) ->
    _ = ?NODE:kind() =:= standin andalso call(Config, erlang, send, [Channel, expire_session]),
    emqx_redis_test_helpers:wait_until(
        fun() -> not call(Config, erlang, is_process_alive, [Channel]) end, 20000
    ).
