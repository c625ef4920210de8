%% The plugin where hooks have missed something: what was published, acknowledged, subscribed to while the
%% plugin was stopped, or Redis away, or was routed past its session. On the stand-in of EMQX, or on a real
%% one: see `emqx_redis_broker_node'.
-module(emqx_redis_plugin_reconcile_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-import(emqx_redis_test_plugin, [start/2, start_again/1, stop/1, server/1, broker/1, call/4, id/1, id/2]).
-import(emqx_redis_test_plugin, [options/2, connect/2, leave_offline/3, publisher/1, publish_numbers/4]).
-import(emqx_redis_test_plugin, [payloads/1, receive_all/2, receive_and_ack/2, await/1, await/2, cli/2]).
-import(emqx_redis_test_plugin, [stored/1, stored/2, stored_filters/2, is_available/1]).

-define(SERVER, emqx_redis_test_server).
-define(NODE, emqx_redis_broker_node).
-define(CLIENT, emqx_redis_mqtt_client).
-define(HELPERS, emqx_redis_test_helpers).

-define(QUEUE, 50).
-define(WINDOW, 20).

%% A real EMQX takes its time to start.
suite() -> [{timetrap, {minutes, 4}}].

all() -> [{group, no_broker}, {group, own_brokers}].

groups() ->
    [
        {no_broker, [parallel], [
            a_page_is_asked_for_in_time,
            one_comparison_at_a_time,
            an_id_counts_if_nothing_was_sent_since
        ]},
        {own_brokers, [parallel], [
            what_happened_without_the_plugin_is_made_good,
            an_unsubscribe_without_the_plugin_stays,
            a_backlog_goes_on_when_the_plugin_is_back,
            a_backlog_behind_a_full_queue_overflows_nothing,
            a_message_that_takes_its_time_to_be_routed_stays,
            messages_that_a_member_holds_are_not_given_out_again,
            messages_that_a_member_without_a_session_holds_are_not_either,
            what_is_to_be_looked_at_again_holds_no_group_up,
            messages_of_an_outage_are_stored_afterwards,
            messages_of_an_outage_are_delivered_once_behind_a_backlog,
            a_client_that_reconnects_is_compared_all_the_same,
            a_write_that_fails_is_made_good_later,
            a_qos_2_exchange_of_an_outage_goes_on,
            a_comparison_that_is_broken_off_is_begun_anew,
            comparing_under_load_delivers_nothing_twice,
            a_channel_that_has_lost_its_session_writes_nothing_back,
            packet_ids_are_known_again,
            a_message_that_was_routed_past_its_session_comes,
            what_is_found_for_a_client_that_is_away_fits_its_queue
        ]}
    ].

init_per_suite(Config) -> Config.

end_per_suite(_Config) -> ?NODE:stop_all().

init_per_group(_Group, Config) -> Config.

end_per_group(_Group, _Config) -> ok.

init_per_testcase(Case, Config) -> [{client_id, atom_to_binary(Case)} | Config].

end_per_testcase(_Case, _Config) -> ok.

%% While twice the window is left, if the queue has room for that: so the window is full yet when all that was
%% in flight is acknowledged before the page is there. And a page never overflows the queue.
a_page_is_asked_for_in_time(_Config) ->
    [
        begin
            #{low := Low, page := Page} = emqx_redis_backlog:unknown(Window, Queue),
            ?assert(Low > Window, {Window, Queue, Low}),
            ?assert(Low >= min(2 * Window, Window + Page), {Window, Queue, Low}),
            ?assert(Low - 1 + Page =< Window + Queue, {Window, Queue, Low, Page})
        end
     || Window <- [1, 20, 32, 100, 1000], Queue <- [1, 2, 10, 50, 100, 1000]
    ].

%% What is asked for meanwhile is done behind it, as the strongest of all.
one_comparison_at_a_time(_Config) ->
    {ask, First} = emqx_redis_comparing:request(keep, none),
    {wait, Second} = emqx_redis_comparing:request(keep, First),
    {wait, Third} = emqx_redis_comparing:request(deliver, Second),
    {wait, Fourth} = emqx_redis_comparing:request(remove, Third),
    ?assertEqual(keep, emqx_redis_comparing:current(Fourth)),
    ?assertEqual(deliver, emqx_redis_comparing:strongest(Fourth)),
    Left = emqx_redis_comparing:left(<<"1">>, emqx_redis_comparing:looking(Fourth)),
    ?assertEqual(#{<<"1">> => []}, emqx_redis_comparing:left(Left)),
    ?assertEqual(#{}, emqx_redis_comparing:left(emqx_redis_comparing:looking(Left))),
    ?assertEqual(#{}, emqx_redis_comparing:left(emqx_redis_comparing:left(<<"1">>, Fourth))),
    Next = emqx_redis_comparing:done(Left),
    ?assertEqual(deliver, emqx_redis_comparing:current(Next)),
    ?assertEqual(none, emqx_redis_comparing:done(Next)).

%% In this process, as in a channel's.
an_id_counts_if_nothing_was_sent_since(_Config) ->
    State = emqx_redis_session_state:new(<<"c">>, 1, #{packet_id => 20000, expiry => 1000}),
    _ = emqx_redis_session_state:keep(State#{exact_ids := false}),
    Told = fun(Message) -> emqx_redis_compare:handle(Message, #{clientid => <<"c">>, zone => default}) end,
    IsExact = fun() -> maps:get(exact_ids, emqx_redis_session_state:current()) end,
    ok = Told(counting),
    ok = emqx_redis_delivery:delivered(<<"1">>, true, false),
    ok = Told({next_packet_id, 7}),
    ?assertNot(IsExact()),
    ok = Told(counting),
    ok = Told({next_packet_id, 8}),
    ?assert(IsExact()),
    #{packet_ids := Ids, sent := Sent} = emqx_redis_session_state:current(),
    ?assertMatch({8, keep, _}, emqx_redis_packet_ids:next(Ids)),
    ?assertEqual(#{<<"1">> => unknown}, Sent).

%% Published, acknowledged, queued and subscribed to while the plugin was stopped.
what_happened_without_the_plugin_is_made_good(Config) ->
    First = start(Config, #{mqtt => #{max_inflight => 3}}),
    Topic = <<"without/1">>,
    C = connect(First, #{acks => manual}),
    1 = ?CLIENT:subscribe(C, Topic, #{qos => 1}),
    P = publisher(First),
    _ = publish_numbers(P, Topic, 1, 4),
    [One, Two, Three] = receive_all(C, 3),
    ok = ?NODE:stop_plugin(broker(First)),
    [ok = ?CLIENT:ack(C, Message) || Message <- [One, Three]],
    [_] = receive_all(C, 1),
    _ = publish_numbers(P, Topic, 5, 7),
    {ok, 0} = ?CLIENT:publish(P, Topic, <<"expires">>, #{
        qos => 1, properties => #{'Message-Expiry-Interval' => 100}
    }),
    timer:sleep(2500),
    ok = ?NODE:start_plugin(broker(First)),
    Held = [<<"2">>, <<"4">>, <<"5">>, <<"6">>, <<"7">>, <<"expires">>],
    ?HELPERS:wait_until(fun() -> stored(First) =:= Held end, 30000),
    %% Its time has run on meanwhile.
    ?assert(lists:min([cli(First, ["TTL", Key]) || Key <- cli(First, ["KEYS", "msg:*"])]) =< 98),
    %% What is acknowledged now is gone.
    ok = ?CLIENT:ack(C, Two),
    await(tl(Held), fun() -> stored(First) end),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Second, #{})),
    Received = receive_all(Again, 5),
    ?assertEqual(tl(Held), payloads(Received)),
    #{properties := #{'Message-Expiry-Interval' := Left}} = lists:last(Received),
    ?assert(Left > 50 andalso Left =< 100, Left),
    await([], fun() -> stored(Second) end),
    stop(Second).

%% What Redis still has for the client comes when the plugin is there again, and once.
a_backlog_goes_on_when_the_plugin_is_back(Config) ->
    {Second, _, Payloads, Again} = with_backlog(Config, 400),
    Some = receive_all(Again, ?WINDOW),
    ok = ?NODE:stop_plugin(broker(Second)),
    {Acked, Unacked} = lists:split(10, Some),
    [ok = ?CLIENT:ack(Again, Message) || Message <- Acked],
    More = receive_all(Again, 10),
    ok = ?NODE:start_plugin(broker(Second)),
    [ok = ?CLIENT:ack(Again, Message) || Message <- Unacked ++ More],
    %% Those that were acknowledged unseen come again, and no others.
    Rest = receive_and_ack(Again, length(Payloads) - length(Some ++ More) + length(Acked)),
    All = payloads(Some ++ More ++ Rest),
    ?assertEqual([], Payloads -- All),
    ?assertEqual(payloads(Acked), lists:sort(fun by_number/2, All -- Payloads)),
    await([], fun() -> stored(Second) end),
    stop(Second).

messages_that_a_member_holds_are_not_given_out_again(Config) ->
    hold_over_a_restart(Config, #{}).

messages_that_a_member_without_a_session_holds_are_not_either(Config) ->
    hold_over_a_restart(Config, #{clean_start => true, expiry => 0}).

hold_over_a_restart(Config, Options) ->
    Own = start(Config, #{mqtt => #{max_inflight => 2}}),
    Filter = <<"$share/g/holds/1">>,
    C = connect(Own, Options#{acks => manual}),
    1 = ?CLIENT:subscribe(C, Filter, 1),
    %% The group has a persistent member, which no node has.
    ok = call(Own, emqx_redis_subscription, add_subscription, [Filter, id(Own, <<"away">>), {1, 0, 1}]),
    Payloads = publish_numbers(publisher(Own), <<"holds/1">>, 1, 4),
    Queue = <<0, Filter/binary>>,
    ?assertEqual(Payloads, stored(Own, Queue)),
    Two = receive_all(C, 2),
    ok = ?NODE:stop_plugin(broker(Own)),
    ok = ?NODE:start_plugin(broker(Own)),
    %% Longer than a message may be nobody's.
    timer:sleep(6000),
    Other = connect(Own, #{client_id => id(Own, <<"other">>)}),
    1 = ?CLIENT:subscribe(Other, Filter, 1),
    timer:sleep(5000),
    ?assertEqual([], ?CLIENT:messages(Other)),
    ?assertEqual(Payloads, stored(Own, Queue)),
    [ok = ?CLIENT:ack(C, Message) || Message <- Two],
    [ok = ?CLIENT:ack(C, Message) || Message <- receive_all(C, 2)],
    await([], fun() -> stored(Own, Queue) end),
    stop(Own).

%% Only that all were looked at once must be awaited before it is known what members hold.
what_is_to_be_looked_at_again_holds_no_group_up(Config) ->
    Own = start(Config, #{}),
    C = connect(Own, #{acks => manual}),
    1 = ?CLIENT:subscribe(C, <<"again/1">>, 1),
    _ = publish_numbers(publisher(Own), <<"again/1">>, 1, 1),
    [Message] = receive_all(C, 1),
    ok = ?NODE:stop_plugin(broker(Own)),
    ok = ?CLIENT:ack(C, Message),
    ok = ?NODE:start_plugin(broker(Own)),
    ?HELPERS:wait_until(fun() -> call(Own, emqx_redis_reconcile, is_settled, []) end, 6000),
    ?assertEqual([<<"1">>], stored(Own)),
    ?HELPERS:wait_until(fun() -> stored(Own) =:= [] end, 30000),
    stop(Own).

%% Redis was away and EMQX went on: what sessions hold is stored when it is back, in its place.
messages_of_an_outage_are_stored_afterwards(Config) ->
    First = start(Config, degrading(#{max_inflight => 3})),
    Topic = <<"outage/1">>,
    C = connect(First, #{acks => manual}),
    1 = ?CLIENT:subscribe(C, Topic, 1),
    Away = id(First, <<"away">>),
    A = connect(First, #{client_id => Away}),
    1 = ?CLIENT:subscribe(A, Topic, 1),
    leave_offline(First, A, Away),
    P = publisher(First),
    _ = publish_numbers(P, Topic, 1, 2),
    [One, Two] = receive_all(C, 2),
    ok = ?SERVER:kill(server(First)),
    await(false, fun() -> is_available(First) end),
    ok = ?CLIENT:ack(C, One),
    _ = publish_numbers(P, Topic, 3, 5),
    [Three, _] = receive_all(C, 2),
    ok = ?CLIENT:ack(C, Three),
    ok = ?SERVER:restart(server(First)),
    await(fun() -> is_available(First) end),
    _ = publish_numbers(P, Topic, 6, 6),
    Numbers = fun(List) -> [integer_to_binary(N) || N <- List] end,
    await(Numbers([2, 4, 5, 6]), fun() -> stored(First) end),
    await(Numbers([1, 2, 3, 4, 5, 6]), fun() -> stored(First, Away) end),
    ok = ?CLIENT:ack(C, Two),
    await(Numbers([4, 5, 6]), fun() -> stored(First) end),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Second, #{})),
    ?assertEqual(Numbers([4, 5, 6]), payloads(receive_all(Again, 3))),
    {ok, AwayAgain, #{session_present := true}} = ?CLIENT:connect(options(Second, #{client_id => Away})),
    ?assertEqual(Numbers([1, 2, 3, 4, 5, 6]), payloads(receive_all(AwayAgain, 6))),
    [await([], fun() -> stored(Second, Id) end) || Id <- [id(First), Away]],
    stop(Second).

%% As by a node that was paused, and believes in old routes. Beside it nothing comes twice.
a_message_that_was_routed_past_its_session_comes(Config) ->
    Own = start(Config, #{}),
    Topic = <<"stray/1">>,
    C = connect(Own, #{acks => manual}),
    1 = ?CLIENT:subscribe(C, Topic, 1),
    P = publisher(Own),
    Payloads = publish_numbers(P, Topic, 1, 3),
    Before = receive_all(C, 3),
    Arguments = [<<"paused">>, 1, Topic, <<"stray">>, #{}, #{}],
    Stray = call(Own, emqx_message, make, Arguments),
    Stored = call(Own, emqx_redis_stored_message, encode, [Stray]),
    ok = call(Own, emqx_redis_message, store_message, [id(Own), Stored]),
    ok = call(Own, emqx_redis_strays, doubt_everywhere, []),
    [#{payload := <<"stray">>, dup := false}] = After = ?CLIENT:receive_messages(C, 1, 30000),
    Payloads2 = publish_numbers(P, Topic, 4, 5),
    More = receive_all(C, 2),
    ?assertEqual(Payloads2, payloads(More)),
    timer:sleep(1000),
    ?assertEqual([], ?CLIENT:messages(C)),
    ?assertEqual(Payloads ++ [<<"stray">>] ++ Payloads2, stored(Own)),
    [ok = ?CLIENT:ack(C, Message) || Message <- Before ++ After ++ More],
    await([], fun() -> stored(Own) end),
    stop(Own).

an_unsubscribe_without_the_plugin_stays(Config) ->
    {Own, Topic, _, C} = with_backlog(Config, 400),
    1 = ?CLIENT:subscribe(C, <<"unwanted/1">>, 1),
    ok = ?NODE:stop_plugin(broker(Own)),
    ok = ?CLIENT:unsubscribe(C, <<"unwanted/1">>),
    ok = ?NODE:start_plugin(broker(Own)),
    await([Topic], fun() -> stored_filters(Own, id(Own)) end),
    timer:sleep(1000),
    [Channel] = call(Own, emqx_cm, lookup_channels, [id(Own)]),
    ?assertEqual([Topic], [Filter || {Filter, _} <- call(Own, emqx_broker, subscriptions, [Channel])]),
    stop(Own).

%% The queue is filled while the plugin is stopped: what Redis still has waits for room.
a_backlog_behind_a_full_queue_overflows_nothing(Config) ->
    {Own, Topic, Payloads, C} = with_backlog(Config, 400),
    Some = receive_all(C, ?WINDOW),
    ok = ?NODE:stop_plugin(broker(Own)),
    More = publish_numbers(publisher(Own), Topic, 401, 425),
    ok = ?NODE:start_plugin(broker(Own)),
    await(Payloads, fun() -> [It || It <- stored(Own), not lists:member(It, More)] end),
    await(425, fun() -> length(stored(Own)) end),
    timer:sleep(1000),
    [ok = ?CLIENT:ack(C, Message) || Message <- Some],
    Received = payloads(Some ++ receive_and_ack(C, 425 - ?WINDOW)),
    ?assertEqual(lists:sort(Payloads ++ More), lists:sort(Received)),
    await([], fun() -> stored(Own) end),
    stop(Own).

%% Stored before the plugin's sessions are compared, and routed long after.
a_message_that_takes_its_time_to_be_routed_stays(Config) ->
    Own = start(Config, #{}),
    Topic = <<"slow/1">>,
    C = connect(Own, #{acks => manual}),
    1 = ?CLIENT:subscribe(C, Topic, 1),
    P = publisher(Own),
    ok = ?NODE:stop_plugin(broker(Own)),
    ok = ?NODE:start_plugin(broker(Own)),
    ok = call(Own, emqx_hooks, put, ['message.publish', {?MODULE, take_time, []}, -2]),
    Request = ?CLIENT:publish_async(P, Topic, <<"slow">>, #{qos => 1}),
    {reply, {ok, 0}} = gen_server:receive_response(Request, 30000),
    [_] = receive_all(C, 1),
    %% The session is looked at a second time meanwhile.
    timer:sleep(8000),
    ?assertEqual([<<"slow">>], stored(Own)),
    ?assertEqual([], ?CLIENT:messages(C)),
    stop(Own).

take_time(_Message) -> timer:sleep(6000).

messages_of_an_outage_are_delivered_once_behind_a_backlog(Config) ->
    {Own, Topic, Payloads, C} = with_backlog(Config, 60),
    Some = receive_all(C, ?WINDOW),
    ok = ?SERVER:kill(server(Own)),
    await(false, fun() -> is_available(Own) end),
    More = publish_numbers(publisher(Own), Topic, 61, 63),
    ok = ?SERVER:restart(server(Own)),
    await(fun() -> is_available(Own) end),
    await(63, fun() -> length(stored(Own)) end),
    [ok = ?CLIENT:ack(C, Message) || Message <- Some],
    Received = payloads(Some ++ receive_and_ack(C, 63 - ?WINDOW)),
    ?assertEqual(lists:sort(Payloads ++ More), lists:sort(Received)),
    await([], fun() -> stored(Own) end),
    ?assertEqual([], ?CLIENT:messages(C)),
    stop(Own).

%% While its session waits to be compared.
a_client_that_reconnects_is_compared_all_the_same(Config) ->
    Own = start(Config, degrading(#{})),
    Payloads = publish_without_redis(Own, 1),
    Workers = workers(Own),
    [ok = call(Own, sys, suspend, [Worker]) || Worker <- Workers],
    ok = ?SERVER:restart(server(Own)),
    await(fun() -> is_available(Own) end),
    %% Its channel has asked, and no other request is to come.
    timer:sleep(8000),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Own, #{acks => manual})),
    ?assertEqual(Payloads, payloads(receive_all(Again, 3))),
    [ok = call(Own, sys, resume, [Worker]) || Worker <- Workers],
    await(Payloads, fun() -> stored(Own) end),
    stop(Own).

%% Redis is back, and away again when the session is to be written.
a_write_that_fails_is_made_good_later(Config) ->
    Own = start(Config, degrading(#{})),
    Payloads = publish_without_redis(Own, 1),
    ok = call(Own, sys, suspend, [emqx_redis_owned]),
    ok = ?SERVER:restart(server(Own)),
    await(fun() -> is_available(Own) end),
    <<"OK">> = cli(Own, ["CLIENT", "PAUSE", "1600"]),
    ok = call(Own, sys, resume, [emqx_redis_owned]),
    timer:sleep(2000),
    ?HELPERS:wait_until(fun() -> stored(Own) =:= Payloads end, 30000),
    stop(Own).

%% The client has answered it with PUBREC: after a crash it gets no second PUBLISH.
a_qos_2_exchange_of_an_outage_goes_on(Config) ->
    First = start(Config, degrading(#{})),
    Topic = <<"mark/1">>,
    C = connect(First, #{acks => none}),
    2 = ?CLIENT:subscribe(C, Topic, 2),
    P = publisher(First),
    ok = ?SERVER:kill(server(First)),
    await(false, fun() -> is_available(First) end),
    {ok, 0} = ?CLIENT:publish(P, Topic, <<"once">>, #{qos => 2}),
    [#{packet_id := Id} = Message] = receive_all(C, 1),
    ok = ?CLIENT:ack(C, Message),
    await([Id], fun() -> ?CLIENT:pubrels(C) end),
    ok = ?SERVER:restart(server(First)),
    await(fun() -> is_available(First) end),
    await([<<"once">>], fun() -> stored(First) end),
    await([{Id, received}], fun() -> emqx_redis_test_plugin:marks(First) end),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Second, #{})),
    await([], fun() -> stored(Second) end),
    ?assertEqual([], ?CLIENT:messages(Again)),
    stop(Second).

%% A process that compares ends in the middle of it.
a_comparison_that_is_broken_off_is_begun_anew(Config) ->
    {Own, _, Payloads, C} = with_backlog(Config, 200),
    Some = receive_all(C, ?WINDOW),
    ok = ?NODE:stop_plugin(broker(Own)),
    ok = ?NODE:start_plugin(broker(Own)),
    [ok = call(Own, sys, suspend, [Worker]) || Worker <- workers(Own)],
    timer:sleep(1500),
    [true = call(Own, erlang, exit, [call(Own, erlang, whereis, [Worker]), kill]) || Worker <- workers(Own)],
    [ok = ?CLIENT:ack(C, Message) || Message <- Some],
    Received = payloads(Some ++ receive_and_ack(C, 200 - ?WINDOW)),
    ?assertEqual(lists:sort(Payloads), lists:sort(Received)),
    await([], fun() -> stored(Own) end),
    await(fun() -> call(Own, emqx_redis_reconcile, is_settled, []) end),
    stop(Own).

%% An acknowledgement may come at any moment of a comparison.
comparing_under_load_delivers_nothing_twice(Config) ->
    {Own, Topic, Payloads, C} = with_backlog(Config, 1000),
    P = publisher(Own),
    Compare = fun Compare() ->
        ok = call(Own, emqx_redis_owned, tell_all, [{compare, missing}]),
        receive
            stop -> ok
        after 3 -> Compare()
        end
    end,
    Comparing = spawn_link(Compare),
    Publishing = spawn_link(fun() -> exit({published, publish_numbers(P, Topic, 1001, 2000)}) end),
    Monitor = monitor(process, Publishing),
    unlink(Publishing),
    Received = payloads(receive_and_ack(C, 2000)),
    {published, More} = receive {'DOWN', Monitor, process, _, Reason} -> Reason end,
    Comparing ! stop,
    All = Payloads ++ More,
    ?assertEqual({[], []}, {Received -- All, All -- Received}),
    ?assertEqual([], out_of_order(Received)),
    await([], fun() -> stored(Own) end),
    ?assertMatch(#{messages_stored_later := 0}, call(Own, emqx_redis_plugin_stats, read, [])),
    ?assertEqual([], ?CLIENT:messages(C)),
    stop(Own).

%% Another node has claimed the session, and its client has acknowledged there what this channel holds.
a_channel_that_has_lost_its_session_writes_nothing_back(Config) ->
    Own = start(Config, #{}),
    C = connect(Own, #{acks => manual}),
    1 = ?CLIENT:subscribe(C, <<"lost/1">>, 1),
    _ = publish_numbers(publisher(Own), <<"lost/1">>, 1, 3),
    _ = receive_all(C, 3),
    [Channel] = call(Own, emqx_cm, lookup_channels, [id(Own)]),
    {ok, #{epoch := Epoch}} = call(Own, emqx_redis_session, claim_session, [id(Own), #{}]),
    ok = call(Own, emqx_redis_message, delete_messages, [id(Own), #{epoch => Epoch}]),
    ok = call(Own, emqx_redis_owned, tell_all, [{compare, missing}]),
    await(false, fun() -> call(Own, erlang, is_process_alive, [Channel]) end),
    ?assertEqual([], stored(Own)),
    stop(Own).

%% After a takeover from a connection that lived, and after a time without the plugin.
packet_ids_are_known_again(Config) ->
    First = start(Config, #{}),
    Topic = <<"ids/1">>,
    P = publisher(First),
    Old = connect(First, #{acks => manual}),
    1 = ?CLIENT:subscribe(Old, Topic, 1),
    {ok, 0} = ?CLIENT:publish(P, Topic, <<"one">>, #{qos => 1}),
    [#{packet_id := One}] = receive_all(Old, 1),
    {ok, C, #{session_present := true}} = ?CLIENT:connect(options(First, #{acks => manual})),
    [#{packet_id := One, dup := true}] = receive_all(C, 1),
    IsExact = fun() ->
        [Channel] = call(First, emqx_cm, lookup_channels, [id(First)]),
        {dictionary, Dictionary} = call(First, erlang, process_info, [Channel, dictionary]),
        {_, #{exact_ids := Exact}} = lists:keyfind(emqx_redis_session, 1, Dictionary),
        Exact
    end,
    await(IsExact),
    {ok, 0} = ?CLIENT:publish(P, Topic, <<"two">>, #{qos => 1}),
    [#{packet_id := Two}] = receive_all(C, 1),
    Marks = fun() -> lists:sort(emqx_redis_test_plugin:marks(First)) end,
    await([{One, sent}, {Two, sent}], Marks),
    ok = ?NODE:stop_plugin(broker(First)),
    {ok, 0} = ?CLIENT:publish(P, Topic, <<"unseen">>, #{qos => 1}),
    [_] = receive_all(C, 1),
    ok = ?NODE:start_plugin(broker(First)),
    await([<<"one">>, <<"two">>, <<"unseen">>], fun() -> stored(First) end),
    await(IsExact),
    {ok, 0} = ?CLIENT:publish(P, Topic, <<"three">>, #{qos => 1}),
    [#{packet_id := Three}] = receive_all(C, 1),
    await([{One, sent}, {Two, sent}, {Three, sent}], Marks),
    %% What is sent again takes no id, also where it was first sent unseen.
    leave_offline(First, C, id(First)),
    {ok, C2, #{session_present := true}} = ?CLIENT:connect(options(First, #{acks => manual})),
    [#{dup := true} = _ | _] = receive_all(C2, 4),
    {ok, 0} = ?CLIENT:publish(P, Topic, <<"four">>, #{qos => 1}),
    [#{packet_id := Four}] = receive_all(C2, 1),
    await([{One, sent}, {Two, sent}, {Three, sent}, {Four, sent}], Marks),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Second, #{})),
    ?assertMatch(
        [
            #{payload := <<"one">>, packet_id := One, dup := true},
            #{payload := <<"two">>, packet_id := Two, dup := true},
            #{payload := <<"three">>, packet_id := Three, dup := true},
            #{payload := <<"four">>, packet_id := Four, dup := true},
            #{payload := <<"unseen">>, dup := false}
        ],
        receive_all(Again, 5)
    ),
    await([], fun() -> stored(Second) end),
    stop(Second).

%% Its session, taken over from a plugin that was stopped, is not for longer than it was, and holds some
%% already.
what_is_found_for_a_client_that_is_away_fits_its_queue(Config) ->
    Own = start(Config, degrading(#{max_inflight => ?WINDOW, max_mqueue_len => ?QUEUE})),
    Topic = <<"stray/2">>,
    C = connect(Own, #{}),
    1 = ?CLIENT:subscribe(C, Topic, 1),
    leave_offline(Own, C, id(Own)),
    Epoch = cli(Own, ["GET", <<"epoch:", (id(Own))/binary>>]),
    ok = ?NODE:stop_plugin(broker(Own)),
    ok = ?NODE:start_plugin(broker(Own)),
    await(fun() -> cli(Own, ["GET", <<"epoch:", (id(Own))/binary>>]) =/= Epoch end),
    ?assert(emqx_redis_test_plugin:ttl(Own) =< 300),
    Payloads = publish_numbers(publisher(Own), Topic, 1, 30),
    Strays = [integer_to_binary(N) || N <- lists:seq(31, 90)],
    Messages = [call(Own, emqx_message, make, [<<"paused">>, 1, Topic, It, #{}, #{}]) || It <- Strays],
    Stored = [call(Own, emqx_redis_stored_message, encode, [Message]) || Message <- Messages],
    ok = call(Own, emqx_redis_message, store_messages, [id(Own), Stored]),
    ok = call(Own, emqx_redis_strays, doubt_everywhere, []),
    Restored = fun() -> maps:get(messages_restored, call(Own, emqx_redis_plugin_stats, read, [])) end,
    ?HELPERS:wait_until(fun() -> Restored() > 0 end, 30000),
    Again = connect(Own, #{acks => manual}),
    Received = payloads(receive_and_ack(Again, 90)),
    ?assertEqual(Payloads ++ Strays, lists:sort(fun by_number/2, Received)),
    await([], fun() -> stored(Own) end),
    stop(Own).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

degrading(Mqtt) ->
    #{
        mqtt => Mqtt,
        config => #{
            redis => #{outage_grace => <<"200ms">>, request_timeout => <<"1s">>},
            mqtt => #{when_unavailable => <<"degrade">>}
        }
    }.

%% A client of a restored session of which most is in Redis alone.
with_backlog(Config, Count) ->
    First = start(Config, degrading(#{max_inflight => ?WINDOW, max_mqueue_len => ?QUEUE})),
    Topic = <<"backlog/1">>,
    C = connect(First, #{}),
    1 = ?CLIENT:subscribe(C, Topic, 1),
    leave_offline(First, C, id(First)),
    ok = ?NODE:kill(broker(First)),
    Second = start_again(First),
    Payloads = publish_numbers(publisher(Second), Topic, 1, Count),
    {ok, Again, #{session_present := true}} = ?CLIENT:connect(options(Second, #{acks => manual})),
    {Second, Topic, Payloads, Again}.

%% What a connected client has and Redis, which is away now, has not.
publish_without_redis(Config, QoS) ->
    Topic = <<"away/1">>,
    C = connect(Config, #{acks => manual}),
    QoS = ?CLIENT:subscribe(C, Topic, QoS),
    P = publisher(Config),
    ok = ?SERVER:kill(server(Config)),
    await(false, fun() -> is_available(Config) end),
    Payloads = publish_numbers(P, Topic, 1, 3),
    _ = receive_all(C, 3),
    Payloads.

workers(Config) -> [Name || {_, Name} <- call(Config, emqx_redis_reconcile, names, [])].

out_of_order(Payloads) ->
    Numbers = [binary_to_integer(Payload) || Payload <- Payloads],
    [Pair || {A, B} = Pair <- lists:zip(lists:droplast(Numbers), tl(Numbers)), A > B].

by_number(A, B) -> binary_to_integer(A) =< binary_to_integer(B).
