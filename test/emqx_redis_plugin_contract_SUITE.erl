%% What the plugin takes for granted of EMQX, asked through `emqx_redis_broker' in a broker's VM: of the
%% stand-in, so that other suites may trust it, and of a real EMQX where there is one, with the same
%% expectations. See `emqx_redis_broker_node'.
-module(emqx_redis_plugin_contract_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-import(emqx_redis_test_plugin, [broker/1, call/4, id/1, id/2]).

-define(NODE, emqx_redis_broker_node).
-define(CLIENT, emqx_redis_mqtt_client).
-define(HELPERS, emqx_redis_test_helpers).
-define(BROKER, emqx_redis_broker).
-define(EVENTS, emqx_redis_contract_events).

suite() -> [{timetrap, {minutes, 2}}].

%% Those of the first group run in the broker's VM, those of the second look at it from clients.
all() -> [{group, functions}, {group, clients}].

groups() ->
    [
        {functions, [
            the_state_of_the_broker,
            messages_and_maps,
            hooks_by_priority,
            topic_filters,
            a_session_in_memory,
            deliveries_by_options,
            a_full_queue_drops_its_oldest,
            channels,
            the_lock_of_a_client,
            redispatch_to_another_member,
            alarms_and_commands
        ]},
        {clients, [
            a_message_of_a_client,
            hooks_of_a_life,
            hooks_of_a_full_window,
            hooks_of_an_end,
            hooks_refuse,
            messages_to_a_channel,
            what_a_session_holds,
            a_foreign_channel_is_taken_over,
            a_message_of_a_group_goes_to_one_member,
            an_expired_message_is_dropped
        ]}
    ].

init_per_suite(Config) ->
    Folder = proplists:get_value(priv_dir, Config),
    Broker = ?NODE:start(#{plugin => false, folder => Folder, mqtt => #{max_mqueue_len => 10}}),
    true = ?NODE:call(Broker, ?MODULE, start_events, []),
    [{broker, Broker} | Config].

end_per_suite(_Config) -> ?NODE:stop_all().

init_per_group(_Group, Config) -> Config.

end_per_group(_Group, _Config) -> ok.

init_per_testcase(Case, Config) -> [{client_id, atom_to_binary(Case)} | Config].

end_per_testcase(_Case, Config) -> call(Config, ?MODULE, forget_probes, []).

%%--------------------------------------------------------------------
%% Functions
%%--------------------------------------------------------------------

the_state_of_the_broker(Config) -> in_broker(Config, fun the_state_of_the_broker_here/0).

the_state_of_the_broker_here() ->
    ?assert(?BROKER:is_running()),
    ?assertNot(?BROKER:is_stopping()),
    ?assertNot(?BROKER:durable_sessions()),
    ?assertEqual([node()], ?BROKER:nodes()),
    ?assertEqual(10, ?BROKER:zone_setting(client_info(), max_mqueue_len, 1000)),
    ?assertEqual(default, ?BROKER:zone_setting(client_info(), no_such_setting, default)),
    ?assertEqual(infinity, ?BROKER:zone_setting(client_info(), max_subscriptions, undefined)),
    _ = application:load(emqx_redis_storage),
    ?assertEqual({ok, #{}}, ?BROKER:plugin_config()).

messages_and_maps(Config) -> in_broker(Config, fun messages_and_maps_here/0).

messages_and_maps_here() ->
    Map = #{
        id => <<1:128>>,
        qos => 2,
        from => <<"client">>,
        flags => #{retain => true, dup => false},
        headers => #{properties => #{'Content-Type' => <<"text">>}, username => undefined},
        topic => <<"a/b">>,
        payload => <<"payload">>,
        timestamp => 1700000000000,
        extra => #{}
    },
    Message = ?BROKER:message_from_map(Map),
    ?assertEqual(Map, ?BROKER:message_to_map(Message)),
    ?assertEqual(message, element(1, Message)),
    ?assertEqual(<<1:128>>, ?BROKER:message_id(Message)),
    ?assertEqual(2, ?BROKER:qos(Message)),
    ?assertEqual(<<"a/b">>, ?BROKER:topic(Message)),
    ?assertEqual(<<"client">>, ?BROKER:from(Message)),
    ?assertNot(?BROKER:is_dup(Message)),
    ?assert(?BROKER:is_dup(?BROKER:message_from_map(Map#{flags := #{dup => true}}))),
    ?assertNot(?BROKER:is_dup(?BROKER:message_from_map(Map#{flags := #{}}))),
    ?assertEqual(undefined, ?BROKER:header(username, Message, default)),
    ?assertEqual(default, ?BROKER:header(other, Message, default)),
    ?assertEqual(1, ?BROKER:header(other, ?BROKER:set_header(other, 1, Message), default)),
    [?assertError(_, ?BROKER:message_from_map(maps:remove(Key, Map))) || Key <- maps:keys(Map)].

hooks_by_priority(Config) -> in_broker(Config, fun hooks_by_priority_here/0).

hooks_by_priority_here() ->
    Fold = fun() -> emqx_hooks:run_fold('message.nack', [message], []) end,
    ?assertNot(?BROKER:put_hook('no.such.hook', {?MODULE, hook, [1]}, 0)),
    [?assert(?BROKER:put_hook('message.nack', {?MODULE, Name, [Name]}, Priority))
     || {Name, Priority} <- [{hook_b, 0}, {hook_last, -1}, {hook_a, 0}, {hook_first, 1001}]],
    ?assertEqual([hook_first, hook_a, hook_b, hook_last], lists:reverse(Fold())),
    %% Put again, it takes the place of the first.
    ?assert(?BROKER:put_hook('message.nack', {?MODULE, hook_a, [again]}, 0)),
    ?assertEqual([hook_first, again, hook_b, hook_last], lists:reverse(Fold())),
    %% One that crashes says nothing; one that stops is the last.
    ?assert(?BROKER:put_hook('message.nack', {?MODULE, hook_a, [crash]}, 0)),
    ?assertEqual([hook_first, hook_b, hook_last], lists:reverse(Fold())),
    ?assert(?BROKER:put_hook('message.nack', {?MODULE, hook_b, [stop]}, 0)),
    ?assertEqual([hook_first, stop], lists:reverse(Fold())),
    Names = [hook_first, hook_a, hook_b, hook_last],
    [ok = ?BROKER:delete_hook('message.nack', {?MODULE, Name}) || Name <- Names],
    ?HELPERS:wait_until(fun() -> [] =:= Fold() end),
    ok = ?BROKER:delete_hook('message.nack', {?MODULE, never_put}),
    Monitor = ?BROKER:monitor_hooks(),
    ?assert(demonitor(Monitor, [flush, info])).

hook(_Message, _Acc, crash) -> error(crash);
hook(_Message, Acc, stop) -> {stop, [stop | Acc]};
hook(_Message, Acc, What) -> {ok, [What | Acc]}.

hook_first(Message, Acc, What) -> hook(Message, Acc, What).
hook_a(Message, Acc, What) -> hook(Message, Acc, What).
hook_b(Message, Acc, What) -> hook(Message, Acc, What).
hook_last(Message, Acc, What) -> hook(Message, Acc, What).

topic_filters(Config) -> in_broker(Config, fun topic_filters_here/0).

topic_filters_here() ->
    Share = {share, <<"g">>, <<"a/+">>},
    [
        begin
            ?assertEqual(Filter, ?BROKER:filter_from_binary(Binary)),
            ?assertEqual(Binary, ?BROKER:filter_to_binary(Filter))
        end
     || {Filter, Binary} <- [
            {<<"a/+">>, <<"a/+">>},
            {Share, <<"$share/g/a/+">>},
            {{share, <<"$queue">>, <<"a">>}, <<"$share/$queue/a">>},
            {<<"$SYS/#">>, <<"$SYS/#">>},
            {<<>>, <<>>}
        ]
    ],
    ?assertEqual(<<"$share/g">>, ?BROKER:filter_from_binary(<<"$share/g">>)),
    [
        ?assertEqual(Expected, ?BROKER:is_match(Topic, Filter), {Topic, Filter})
     || {Topic, Filter, Expected} <- [
            {<<"a/b">>, <<"a/b">>, true},
            {<<"a/b">>, <<"a/+">>, true},
            {<<"a">>, <<"a/#">>, true},
            {<<"a/b/c">>, <<"#">>, true},
            {<<"a/b">>, <<"a/+/+">>, false},
            {<<"a/">>, <<"a/+">>, true},
            {<<"/">>, <<"+/+">>, true},
            {<<"$SYS/a">>, <<"#">>, false},
            {<<"$SYS/a">>, <<"+/a">>, false},
            {<<"$SYS/a">>, <<"$SYS/+">>, true},
            {<<"a/b">>, <<"$share/g/a/b">>, false}
        ]
    ],
    Mounted = (client_info())#{mountpoint := <<"m/">>},
    ?assertEqual(<<"m/a/+">>, ?BROKER:mount(Mounted, <<"a/+">>)),
    ?assertEqual({share, <<"g">>, <<"m/a/+">>}, ?BROKER:mount(Mounted, Share)),
    ?assertEqual(<<"a/+">>, ?BROKER:unmount(Mounted, <<"m/a/+">>)),
    ?assertEqual(Share, ?BROKER:unmount(Mounted, ?BROKER:mount(Mounted, Share))),
    ?assertEqual(Share, ?BROKER:mount(client_info(), Share)),
    ?assertEqual(Share, ?BROKER:unmount(client_info(), Share)).

a_session_in_memory(Config) -> in_broker(Config, fun a_session_in_memory_here/0).

a_session_in_memory_here() ->
    ClientInfo = client_info(),
    Empty = ?BROKER:create_session(ClientInfo, conn_info()),
    ?assertMatch(
        #{
            subscriptions_cnt := 0, inflight_cnt := 0, inflight_max := 2, mqueue_len := 0, mqueue_max := 10,
            mqueue_dropped := 0, next_pkt_id := 1, awaiting_rel_cnt := 0, awaiting_rel_max := 100
        },
        stats(Empty)
    ),
    ?assertMatch(#{next_pkt_id := 700}, stats(?BROKER:set_session_field(next_pkt_id, 700, Empty))),
    %% Subscriptions of the calling process.
    Options = #{qos => 1, nl => 0, rap => 1, rh => 0, subid => 4},
    Share = ?BROKER:filter_from_binary(<<"$share/g/session/+">>),
    {ok, One} = ?BROKER:subscribe(ClientInfo, <<"session/1">>, Options, Empty),
    {ok, Two} = ?BROKER:subscribe(ClientInfo, Share, Options, One),
    {ok, Two} = ?BROKER:subscribe(ClientInfo, Share, Options, Two),
    ?assertMatch(#{subscriptions_cnt := 2}, stats(Two)),
    %% The broker itself keeps the client's id in the place of the subscription identifier.
    ?assertMatch(
        [
            {Share, #{qos := 1, rap := 1, subid := <<"contract">>}},
            {<<"session/1">>, #{qos := 1, rap := 1, subid := <<"contract">>}}
        ],
        lists:sort(?BROKER:subscriptions(self()))
    ),
    ?assert(?BROKER:has_route(<<"session/1">>, node())),
    ?assertNot(?BROKER:has_route(<<"session/2">>, node())),
    ?assertNot(?BROKER:has_route(<<"session/1">>, 'other@127.0.0.1')),
    %% What is published comes as a message; here it is for both.
    emqx_broker:publish(message(<<"session/1">>, 1)),
    Deliveries = lists:sort(await_deliveries(2)),
    ?assertMatch([{deliver, <<"session/+">>, _}, {deliver, <<"session/1">>, _}], Deliveries),
    ?assertEqual([], ?BROKER:drain_deliveries()),
    [{deliver, _, Grouped}, {deliver, _, Plain}] = Deliveries,
    ?assertEqual({<<"g">>, <<"session/+">>}, ?BROKER:group(Grouped)),
    ?assertEqual(none, ?BROKER:group(Plain)),
    %% Into the window, with the ids from 9 on.
    [M1, M2] = [message(<<"session/1">>, QoS) || QoS <- [1, 2]],
    Nine = ?BROKER:set_session_field(next_pkt_id, 9, Two),
    Sent = ?BROKER:into_inflight(ClientInfo, M2, ?BROKER:into_inflight(ClientInfo, M1, Nine)),
    ?assertMatch(#{inflight_cnt := 2, next_pkt_id := 11, mqueue_len := 0}, stats(Sent)),
    Received = ?BROKER:received(10, Sent),
    ?assertMatch(#{inflight_cnt := 2}, stats(Received)),
    Queued = ?BROKER:enqueue(ClientInfo, [M1, M2], Received),
    ?assertMatch(#{mqueue_len := 2}, stats(Queued)),
    %% 65535 is followed by 1.
    Last = ?BROKER:set_session_field(next_pkt_id, 65535, Empty),
    ?assertMatch(#{next_pkt_id := 1}, stats(?BROKER:into_inflight(ClientInfo, M1, Last))),
    ok = ?BROKER:take_over(Queued),
    ?assertEqual([], ?BROKER:subscriptions(self())),
    ?HELPERS:wait_until(fun() -> not ?BROKER:has_route(<<"session/1">>, node()) end).

deliveries_by_options(Config) -> in_broker(Config, fun deliveries_by_options_here/0).

deliveries_by_options_here() ->
    Subscribe = fun(Filter, Options, Session) ->
        Internal = ?BROKER:filter_from_binary(Filter),
        {ok, Next} = ?BROKER:subscribe(client_info(), Internal, Options, Session),
        Next
    end,
    Empty = ?BROKER:create_session(client_info(), conn_info()),
    Session = lists:foldl(fun({Filter, Options}, Acc) -> Subscribe(Filter, Options, Acc) end, Empty, [
        {<<"d/0">>, #{qos => 0, nl => 0, rap => 0}},
        {<<"d/1">>, #{qos => 1, nl => 0, rap => 1, subid => 3}},
        {<<"d/2">>, #{qos => 2, nl => 1, rap => 0}},
        {<<"$share/g/d/+">>, #{qos => 1, nl => 0, rap => 0, subid => 8}}
    ]),
    Enrich = fun(Filter, Message) ->
        Enriched = ?BROKER:enrich(client_info(), [{deliver, Filter, Message}], Session),
        [?BROKER:message_to_map(It) || It <- Enriched]
    end,
    Identifier = fun(#{headers := #{properties := Properties}}) ->
        maps:get('Subscription-Identifier', Properties, none)
    end,
    Retained = message(<<"d/1">>, 2),
    [#{qos := 0, flags := #{retain := false}} = Zero] = Enrich(<<"d/0">>, Retained),
    ?assertEqual(none, Identifier(Zero)),
    [#{qos := 1, flags := #{retain := true}} = One] = Enrich(<<"d/1">>, Retained),
    ?assertEqual(3, Identifier(One)),
    ?assertMatch([#{qos := 2, flags := #{retain := false, nl := true}}], Enrich(<<"d/2">>, Retained)),
    %% No Local.
    Map = ?BROKER:message_to_map(Retained),
    Own = ?BROKER:message_from_map(Map#{from := <<"contract">>}),
    ?assertEqual([], Enrich(<<"d/2">>, Own)),
    ?assertMatch([_], Enrich(<<"d/1">>, Own)),
    %% The group's options, whatever the filter.
    Shared = ?BROKER:set_header(redispatch_to, {<<"g">>, <<"d/+">>}, Retained),
    [#{qos := 1} = ForGroup] = Enrich(<<"d/+">>, Shared),
    ?assertEqual(8, Identifier(ForGroup)),
    %% Where nothing is subscribed any more, it stays as it is.
    ?assertEqual([Map], Enrich(<<"other">>, Retained)),
    ok = ?BROKER:take_over(Session).

a_full_queue_drops_its_oldest(Config) -> in_broker(Config, fun a_full_queue_drops_its_oldest_here/0).

a_full_queue_drops_its_oldest_here() ->
    true = probe('delivery.dropped'),
    Session = ?BROKER:create_session(client_info(), conn_info()),
    Messages = [message(<<"q/", (integer_to_binary(N))/binary>>, 1) || N <- lists:seq(1, 12)],
    ?assertMatch(
        #{mqueue_len := 10, mqueue_dropped := 2}, stats(?BROKER:enqueue(client_info(), Messages, Session))
    ),
    ?assertEqual(
        [{<<"contract">>, <<"q/1">>, queue_full}, {<<"contract">>, <<"q/2">>, queue_full}],
        [
            {ClientId, ?BROKER:topic(Message), Reason}
         || {'delivery.dropped', [#{clientid := ClientId}, Message, Reason]} <- events_of(self())
        ]
    ).

channels(Config) -> in_broker(Config, fun channels_here/0).

channels_here() ->
    Id = <<"contract">>,
    Info = channel_info(Id),
    ?assertEqual([], ?BROKER:lookup_channels(Id)),
    ok = ?BROKER:register_channel(Id, conn_info(), Info, []),
    ?assertEqual([self()], ?BROKER:lookup_channels(Id)),
    ?assert(lists:member(self(), ?BROKER:all_channels())),
    ?assertEqual(Info, ?BROKER:channel_info(Id, self())),
    ?assertEqual(undefined, ?BROKER:channel_info(<<"other">>, self())),
    ok = ?BROKER:unregister_channel(Id),
    ?assertEqual([], ?BROKER:lookup_channels(Id)),
    ?assertEqual(undefined, ?BROKER:channel_info(Id, self())),
    %% One that ends is forgotten after a while, or at once where it is asked for.
    Registered = fun() ->
        Test = self(),
        Pid = spawn(fun() ->
            ok = ?BROKER:register_channel(Id, conn_info(), Info, []),
            Test ! registered,
            receive stop -> ok end
        end),
        receive registered -> Pid end
    end,
    First = Registered(),
    ?assertEqual([First], ?BROKER:lookup_channels(Id)),
    exit(First, kill),
    ?HELPERS:wait_until(fun() -> [] =:= ?BROKER:lookup_channels(Id) end),
    Second = Registered(),
    ok = ?BROKER:forget_channel(Id, Second),
    ?assertEqual([], ?BROKER:lookup_channels(Id)),
    exit(Second, kill).

%% Under which EMQX opens a client's session.
the_lock_of_a_client(Config) ->
    Holder = call(Config, ?MODULE, start_holder, [id(Config)]),
    ?assertEqual({error, 16#89}, ?CLIENT:connect(options(Config, #{}))),
    ok = call(Config, ?MODULE, tell, [Holder, unlock]),
    {_, false} = connect(Config, #{}),
    %% Who does not have it gives nothing back.
    Again = call(Config, ?MODULE, start_holder, [id(Config)]),
    ok = call(Config, ?BROKER, unlock, [id(Config)]),
    ?assertEqual({error, 16#89}, ?CLIENT:connect(options(Config, #{}))),
    ok = call(Config, ?MODULE, tell, [Again, unlock]).

start_holder(Id) ->
    Test = self(),
    Pid = spawn(fun() ->
        {true, _} = emqx_cm_locker:lock(Id),
        Test ! {self(), locked},
        receive {From, unlock} -> From ! {self(), ?BROKER:unlock(Id)} end
    end),
    receive {Pid, locked} -> Pid end.

tell(Pid, What) ->
    Pid ! {self(), What},
    receive {Pid, Answer} -> Answer end.

redispatch_to_another_member(Config) -> in_broker(Config, fun redispatch_to_another_member_here/0).

redispatch_to_another_member_here() ->
    Session = ?BROKER:create_session(client_info(), conn_info()),
    Share = ?BROKER:filter_from_binary(<<"$share/r/re/+">>),
    {ok, Subscribed} = ?BROKER:subscribe(client_info(), Share, #{qos => 1}, Session),
    Message = message(<<"re/1">>, 1),
    ?assertEqual(none, ?BROKER:group(Message)),
    %% It is the only member.
    Test = self(),
    spawn(fun() -> Test ! ?BROKER:redispatch(<<"r">>, <<"re/+">>, Message) end),
    receive ok -> ok end,
    [{deliver, <<"re/+">>, Delivered}] = await_deliveries(1),
    ?assertEqual({<<"r">>, <<"re/+">>}, ?BROKER:group(Delivered)),
    ?assertEqual(?BROKER:message_id(Message), ?BROKER:message_id(Delivered)),
    ok = ?BROKER:take_over(Subscribed),
    %% Nobody is there.
    ok = ?BROKER:redispatch(<<"r">>, <<"re/+">>, Message),
    ?assertEqual([], ?BROKER:drain_deliveries()).

await_deliveries(Count) ->
    ?HELPERS:wait_until(fun() -> Count =:= length(element(2, process_info(self(), messages))) end),
    ?BROKER:drain_deliveries().

alarms_and_commands(Config) -> in_broker(Config, fun alarms_and_commands_here/0).

alarms_and_commands_here() ->
    Name = emqx_redis_contract,
    Active = fun() -> [It || #{name := N} = It <- emqx_alarm:get_alarms(activated), N =:= Name] end,
    ok = ?BROKER:deactivate_alarm(Name),
    ok = ?BROKER:activate_alarm(Name, #{a => 1}, <<"first">>),
    ok = ?BROKER:activate_alarm(Name, #{a => 2}, <<"second">>),
    ?assertMatch([#{details := #{a := 1}, message := <<"first">>}], Active()),
    ok = ?BROKER:deactivate_alarm(Name),
    ?assertEqual([], Active()),
    ok = ?BROKER:register_command(Name, {?MODULE, run}),
    ?assertEqual({ok, {?MODULE, run}}, emqx_ctl:lookup_command(Name)),
    ok = ?BROKER:unregister_command(Name),
    ?HELPERS:wait_until(fun() -> {error, cmd_not_found} =:= emqx_ctl:lookup_command(Name) end).

%%--------------------------------------------------------------------
%% Clients
%%--------------------------------------------------------------------

%% The message that a hook sees, and what it knows of the client.
a_message_of_a_client(Config) ->
    probe(Config, ['message.publish', 'client.connect', 'client.check_authn_complete']),
    {C, _} = connect(Config, #{receive_maximum => 7, expiry => 60}),
    Properties = #{'User-Property' => [{<<"a">>, <<"b">>}], 'Message-Expiry-Interval' => 9},
    {ok, 16#10} = ?CLIENT:publish(C, <<"nobody/1">>, <<"x">>, #{
        qos => 1, retain => true, properties => Properties
    }),
    Id = id(Config),
    [[Connect, Authenticated, Publish]] = lives(Config),
    {'client.connect', [ConnInfo, #{'Session-Expiry-Interval' := 60}]} = Connect,
    ?assertMatch(
        #{
            clientid := Id, clean_start := true, expiry_interval := 60000, receive_maximum := 7,
            proto_ver := 5, conn_mod := _, peername := {_, _}, sockname := {_, _}
        },
        ConnInfo
    ),
    {'client.check_authn_complete', [ClientInfo, #{reason_code := success}]} = Authenticated,
    ?assertMatch(#{clientid := Id, zone := default, mountpoint := undefined}, ClientInfo),
    {'message.publish', [Message]} = Publish,
    #{id := MessageId, timestamp := Timestamp, headers := Headers} = Map = to_map(Config, Message),
    ?assertMatch(
        #{
            qos := 1, from := Id, topic := <<"nobody/1">>, payload := <<"x">>,
            flags := #{dup := false, retain := true}, extra := #{}
        },
        Map
    ),
    ?assertEqual(16, byte_size(MessageId)),
    ?assert(abs(Timestamp - os:system_time(millisecond)) < 5000),
    ?assertMatch(#{properties := Properties, proto_ver := 5, protocol := mqtt}, Headers).

%% From the first connection to the second, which takes the session over.
hooks_of_a_life(Config) ->
    probe(Config, points()),
    Id = id(Config),
    {C, false} = connect(Config, #{clean_start => false, expiry => 60}),
    Filters = [{<<"life/1">>, 1}, {<<"life/2">>, 2}],
    [1, 2] = ?CLIENT:subscribe(C, Filters, #{'Subscription-Identifier' => 3}, 5000),
    1 = ?CLIENT:subscribe(C, <<"$share/g/life/+">>, 1),
    ok = ?CLIENT:unsubscribe(C, <<"$share/g/life/+">>),
    {ok, 0} = ?CLIENT:publish(C, <<"life/1">>, <<"one">>, #{qos => 1}),
    [_] = ?CLIENT:receive_messages(C, 1),
    await_events(Config, 'message.acked', 1),
    {ok, 0} = ?CLIENT:publish(C, <<"life/2">>, <<"two">>, #{qos => 2}),
    [_] = ?CLIENT:receive_messages(C, 1),
    await_events(Config, 'delivery.completed', 2),
    {ok, 16#10} = ?CLIENT:publish(C, <<"life/nobody">>, <<"no">>, #{qos => 1}),
    ?CLIENT:drop(C),
    await_events(Config, 'client.disconnected', 1),
    {P, false} = connect(Config, #{client_id => <<"publisher">>}),
    {ok, 0} = ?CLIENT:publish(P, <<"life/1">>, <<"off">>, #{qos => 1}),
    await_events(Config, 'message.nack', 1),
    {D, true} = connect(Config, #{clean_start => false, expiry => 60}),
    [_] = ?CLIENT:receive_messages(D, 1),
    await_events(Config, 'message.acked', 3),
    await_events(Config, 'session.takenover', 1),
    {share, <<"g">>, _} = Share = {share, <<"g">>, <<"life/+">>},
    [First, Second] = simple_lives(Config),
    ?assertEqual(
        [
            {'client.connect', {clean_start, false}},
            {'client.check_authn_complete', {Id, success}},
            {'session.created', {Id, []}},
            {'client.connected', Id},
            {'client.connack', success},
            {'client.subscribe', {Id, [<<"life/1">>, <<"life/2">>]}},
            {'session.subscribed', {Id, <<"life/1">>, {1, 3, true}}},
            {'session.subscribed', {Id, <<"life/2">>, {2, 3, true}}},
            {'client.subscribe', {Id, [Share]}},
            {'session.subscribed', {Id, Share, {1, none, true}}},
            {'client.unsubscribe', {Id, [Share]}},
            {'session.unsubscribed', {Id, Share}},
            {'message.publish', <<"one">>},
            {'message.puback', {<<"one">>, 1, 0}},
            {'message.delivered', {Id, <<"one">>, false}},
            {'delivery.completed', {Id, <<"one">>}},
            {'message.acked', {Id, <<"one">>}},
            {'message.publish', <<"two">>},
            {'message.delivered', {Id, <<"two">>, false}},
            {'message.acked', {Id, <<"two">>}},
            {'delivery.completed', {Id, <<"two">>}},
            {'message.publish', <<"no">>},
            {'message.dropped', {<<"no">>, no_subscribers}},
            {'message.puback', {<<"no">>, 0, 16#10}},
            {'session.disconnected', {Id, [<<"life/1">>, <<"life/2">>]}},
            {'client.disconnected', {Id, tcp_closed, 60000}},
            {'message.nack', <<"off">>},
            {'cm.channel.unregistered', self},
            {'session.takenover', {Id, [<<"life/1">>, <<"life/2">>]}}
        ],
        First
    ),
    ?assertEqual(
        [
            {'client.connect', {clean_start, false}},
            {'client.check_authn_complete', {Id, success}},
            {'session.resumed', {Id, [<<"life/1">>, <<"life/2">>]}},
            {'client.connected', Id},
            {'client.connack', success},
            {'message.delivered', {Id, <<"off">>, false}},
            {'delivery.completed', {Id, <<"off">>}},
            {'message.acked', {Id, <<"off">>}}
        ],
        Second
    ).

hooks_of_a_full_window(Config) ->
    probe(Config, points()),
    Id = id(Config),
    {C, false} = connect(Config, #{receive_maximum => 2, acks => manual}),
    2 = ?CLIENT:subscribe(C, <<"window">>, 2),
    [
        {ok, 0} = ?CLIENT:publish(C, <<"window">>, <<"m", N>>, #{qos => 1})
     || N <- "123"
    ],
    await_events(Config, 'message.nack', 1),
    [M1, _] = ?CLIENT:receive_messages(C, 2),
    ok = ?CLIENT:ack(C, M1),
    [_] = ?CLIENT:receive_messages(C, 1),
    [Life] = simple_lives(Config),
    ?assertEqual(
        [
            {'message.delivered', {Id, <<"m1">>, false}},
            {'message.delivered', {Id, <<"m2">>, false}},
            {'message.nack', <<"m3">>},
            {'delivery.completed', {Id, <<"m1">>}},
            {'message.acked', {Id, <<"m1">>}},
            {'message.delivered', {Id, <<"m3">>, false}}
        ],
        [Event || {Point, _} = Event <- Life, lists:member(Point, [
            'message.delivered', 'message.nack', 'delivery.completed', 'message.acked'
        ])]
    ).

hooks_of_an_end(Config) ->
    probe(Config, points()),
    Begin = fun(More, Options) ->
        Id = id(Config, More),
        {C, _} = connect(Config, Options#{client_id => Id}),
        {Id, C}
    end,
    End = fun(Id) ->
        Names = ['session.terminated', 'session.discarded', 'session.disconnected', 'client.disconnected'],
        [Event || Life <- simple_lives(Config, Id), {Point, _} = Event <- Life, lists:member(Point, Names)]
    end,
    %% Its expiry is 0 from the first.
    {Id1, C1} = Begin(<<"none">>, #{}),
    ok = ?CLIENT:disconnect(C1),
    await([
        {'session.disconnected', {Id1, []}},
        {'client.disconnected', {Id1, normal, 0}},
        {'session.terminated', {Id1, {shutdown, normal}}}
    ], fun() -> End(Id1) end),
    %% It was set to 0 by DISCONNECT: of the session nothing is said.
    {Id2, C2} = Begin(<<"zero">>, #{expiry => 60}),
    ok = ?CLIENT:disconnect(C2, #{'Session-Expiry-Interval' => 0}),
    await([{'client.disconnected', {Id2, normal, 0}}], fun() -> End(Id2) end),
    %% Kicked while connected, and while not.
    {Id3, C3} = Begin(<<"kicked">>, #{expiry => 60}),
    ok = call(Config, emqx_cm, kick_session, [Id3]),
    ?assertEqual({disconnected, 16#98}, ?CLIENT:await_closed(C3)),
    await([
        {'client.disconnected', {Id3, kicked, 60000}},
        {'session.terminated', {Id3, kicked}}
    ], fun() -> End(Id3) end),
    {Id4, C4} = Begin(<<"kicked_offline">>, #{expiry => 60}),
    ok = ?CLIENT:disconnect(C4),
    Offline = [{'session.disconnected', {Id4, []}}, {'client.disconnected', {Id4, normal, 60000}}],
    await(Offline, fun() -> End(Id4) end),
    ok = call(Config, emqx_cm, kick_session, [Id4]),
    await(Offline ++ [{'session.terminated', {Id4, kicked}}], fun() -> End(Id4) end),
    %% A clean start ends the one before.
    {Id5, C5} = Begin(<<"discarded">>, #{expiry => 60}),
    {_, _} = connect(Config, #{client_id => Id5, clean_start => true}),
    ?assertEqual({disconnected, 16#8E}, ?CLIENT:await_closed(C5)),
    await([
        {'client.disconnected', {Id5, discarded, 60000}},
        {'session.discarded', {Id5, []}}
    ], fun() -> End(Id5) end),
    %% Expired.
    {Id6, C6} = Begin(<<"expired">>, #{expiry => 60}),
    ok = ?CLIENT:disconnect(C6, #{'Session-Expiry-Interval' => 1}),
    await([
        {'session.disconnected', {Id6, []}},
        {'client.disconnected', {Id6, normal, 1000}},
        {'session.terminated', {Id6, expired}}
    ], fun() -> End(Id6) end).

%% What a hook says is done.
hooks_refuse(Config) ->
    {C, _} = connect(Config, #{client_id => <<"subscriber">>}),
    1 = ?CLIENT:subscribe(C, <<"refuse/#">>, 1),
    %% A message, with or without the connection.
    put_hook(Config, 'message.publish', publish_hook),
    {P, _} = connect(Config, #{client_id => id(Config, <<"1">>)}),
    ?assertEqual({ok, 16#10}, ?CLIENT:publish(P, <<"refuse/silently">>, <<"x">>, #{qos => 1})),
    ?assertEqual(
        {error, {disconnected, 16#83}}, ?CLIENT:publish(P, <<"refuse/disconnect">>, <<"x">>, #{qos => 1})
    ),
    {P2, _} = connect(Config, #{client_id => id(Config, <<"2">>)}),
    ?assertEqual(
        {error, {disconnected, 16#83}}, ?CLIENT:publish(P2, <<"refuse/disconnect">>, <<"x">>, #{qos => 2})
    ),
    {P3, _} = connect(Config, #{client_id => id(Config, <<"3">>), version => 4}),
    ?assertEqual({error, closed}, ?CLIENT:publish(P3, <<"refuse/disconnect">>, <<"x">>, #{qos => 1})),
    %% A crash lets it pass.
    {P4, _} = connect(Config, #{}),
    ?assertEqual({ok, 0}, ?CLIENT:publish(P4, <<"refuse/crash">>, <<"crash">>, #{qos => 1})),
    ?assertMatch([#{payload := <<"crash">>}], ?CLIENT:receive_messages(C, 1)),
    %% Another answer.
    put_hook(Config, 'message.puback', puback_hook),
    ?assertEqual({ok, 16#97}, ?CLIENT:publish(P4, <<"refuse/puback">>, <<"x">>, #{qos => 1})),
    %% A subscription, in its place another one.
    put_hook(Config, 'client.subscribe', subscribe_hook),
    ?assertEqual([16#83], ?CLIENT:subscribe(P4, [{<<"refuse/subscribe">>, 1}], #{}, 5000)),
    ?assertEqual(
        [<<"$refused">>],
        [Filter || Pid <- channel(Config), {Filter, _} <- call(Config, ?BROKER, subscriptions, [Pid])]
    ),
    %% A connection.
    put_hook(Config, 'client.connect', connect_hook),
    ?assertEqual({error, 16#88}, ?CLIENT:connect(options(Config, #{}))),
    ?assertEqual({error, 3}, ?CLIENT:connect(options(Config, #{version => 4}))).

publish_hook(Message) ->
    case ?BROKER:topic(Message) of
        <<"refuse/silently">> -> {ok, ?BROKER:set_header(allow_publish, false, Message)};
        <<"refuse/disconnect">> -> {ok, ?BROKER:set_header(should_disconnect, true, Message)};
        <<"refuse/crash">> -> error(crash);
        _ -> ok
    end.

puback_hook(_PacketId, Message, Routed, 0) ->
    case ?BROKER:topic(Message) of
        <<"refuse/puback">> when is_list(Routed), Routed =/= [] -> {ok, 16#97};
        _ -> ok
    end;
puback_hook(_PacketId, _Message, _Routed, _Code) ->
    ok.

subscribe_hook(_ClientInfo, _Properties, [{<<"refuse/subscribe">>, SubOpts}]) ->
    {ok, [{<<"$refused">>, SubOpts#{qos => 16#83}}]};
subscribe_hook(_ClientInfo, _Properties, _Filters) ->
    ok.

connect_hook(_ConnInfo, _Properties) -> {stop, {error, 16#88}}.

%% What others may send to a channel's process.
messages_to_a_channel(Config) ->
    {C, _} = connect(Config, #{expiry => 60}),
    [Pid] = channel(Config),
    put_hook(Config, 'client.handle_info', handle_info_hook),
    Send = fun(Message) -> call(Config, erlang, send, [Pid, Message]) end,
    Send({contract, deliver}),
    ?assertMatch([#{payload := <<"from a hook">>, qos := 1}], ?CLIENT:receive_messages(C, 1)),
    Send({subscribe, [{<<"told/1">>, #{qos => 1}}]}),
    await(fun() -> call(Config, ?BROKER, has_route, [<<"told/1">>, call(Config, erlang, node, [])]) end),
    {ok, 0} = ?CLIENT:publish(C, <<"told/1">>, <<"x">>, #{qos => 1}),
    ?assertMatch([#{payload := <<"x">>}], ?CLIENT:receive_messages(C, 1)),
    #{session := #{created_at := _}} = call(Config, ?BROKER, channel_info, [id(Config), Pid]),
    Send({unsubscribe, [{<<"told/1">>, #{}}]}),
    await([], fun() -> call(Config, ?BROKER, subscriptions, [Pid]) end),
    Send({disconnect, 16#88, server_unavailable, #{}}),
    ?assertEqual({disconnected, 16#88}, ?CLIENT:await_closed(C)),
    %% The session stays.
    ?assertMatch({_, true}, connect(Config, #{clean_start => false, expiry => 60})).

handle_info_hook(_ClientInfo, {contract, deliver}, Acc) ->
    Map = ?BROKER:message_to_map(message(<<"hook">>, 1)),
    Message = ?BROKER:message_from_map(Map#{payload := <<"from a hook">>}),
    {ok, Acc#{deliver := [{deliver, <<"hook">>, Message}]}};
handle_info_hook(_ClientInfo, _Message, _Acc) ->
    ok.

%% What is sent and not acknowledged, and what is queued behind it.
what_a_session_holds(Config) ->
    {C, _} = connect(Config, #{expiry => 60, acks => manual, receive_maximum => 2}),
    1 = ?CLIENT:subscribe(C, <<"holds/1">>, 1),
    Other = id(Config, <<"publisher">>),
    {P, _} = connect(Config, #{client_id => Other}),
    [{ok, 0} = ?CLIENT:publish(P, <<"holds/1">>, <<N>>, #{qos => 1}) || N <- "abcd"],
    [First, _] = ?CLIENT:receive_messages(C, 2),
    [Pid] = channel(Config),
    Held = fun(Id, Channel) -> call(Config, ?BROKER, held_messages, [Id, Channel, 5000]) end,
    Payloads = fun() ->
        {ok, Messages} = Held(id(Config), Pid),
        [maps:get(payload, to_map(Config, Message)) || Message <- Messages]
    end,
    ?assertEqual([<<"a">>, <<"b">>, <<"c">>, <<"d">>], Payloads()),
    ?assertEqual({ok, 3}, call(Config, ?BROKER, next_packet_id, [id(Config), Pid, 5000])),
    ok = ?CLIENT:ack(C, First),
    [_] = ?CLIENT:receive_messages(C, 1),
    ?assertEqual([<<"b">>, <<"c">>, <<"d">>], Payloads()),
    ok = ?CLIENT:drop(C),
    State = fun() -> maps:get(conn_state, call(Config, ?BROKER, channel_info, [id(Config), Pid])) end,
    await(disconnected, State),
    ?assertEqual([<<"b">>, <<"c">>, <<"d">>], Payloads()),
    [Idle] = channel(Config, Other),
    ?assertEqual({ok, []}, Held(Other, Idle)),
    ?assertEqual({ok, 4}, call(Config, ?BROKER, next_packet_id, [id(Config), Pid, 5000])),
    ?assertMatch({error, _}, call(Config, ?BROKER, next_packet_id, [Other, Pid, 5000])),
    ?assertMatch({error, _}, Held(id(Config, <<"nobody">>), Pid)).

%% As the plugin's own: it holds a session for a client that is to come.
a_foreign_channel_is_taken_over(Config) ->
    Id = id(Config),
    Pid = call(Config, ?MODULE, start_foreign, [Id]),
    {C, true} = connect(Config, #{clean_start => false, expiry => 60}),
    Received = ?CLIENT:receive_messages(C, 3),
    ?assertMatch(
        [
            #{payload := <<"sent">>, dup := true, packet_id := 5, qos := 1},
            #{payload := <<"queued">>, dup := false, packet_id := 6},
            #{payload := <<"pending">>, dup := false, packet_id := 7}
        ],
        Received
    ),
    ?assertMatch(#{properties := #{'Subscription-Identifier' := 2}}, lists:last(Received)),
    ?assertEqual(
        [{takeover, 'begin'}, {takeover, 'end'}], call(Config, ?MODULE, calls_of_foreign, [Pid])
    ),
    %% Its subscription is the client's now, once.
    {ok, 0} = ?CLIENT:publish(C, <<"foreign/1">>, <<"live">>, #{qos => 1}),
    ?assertMatch([#{payload := <<"live">>, packet_id := 8}], ?CLIENT:receive_messages(C, 1)),
    ?assertMatch([_], channel(Config)).

%% Both members of a group are alive: one of them gets it, with the group's name.
a_message_of_a_group_goes_to_one_member(Config) ->
    Members = [element(1, connect(Config, #{client_id => id(Config, N)})) || N <- [<<"1">>, <<"2">>]],
    [1 = ?CLIENT:subscribe(C, <<"$share/g/group/+">>, 1) || C <- Members],
    {P, _} = connect(Config, #{}),
    [{ok, 0} = ?CLIENT:publish(P, <<"group/1">>, <<"x">>, #{qos => 1}) || _ <- lists:seq(1, 40)],
    await(fun() -> 40 =:= lists:sum([counted(C) || C <- Members]) end),
    [First, Last] = Members,
    Before = counted(Last),
    ?assert(Before > 0 andalso Before < 40),
    %% The last one gets all.
    ok = ?CLIENT:disconnect(First),
    await([], fun() -> channel(Config, id(Config, <<"1">>)) end),
    [{ok, 0} = ?CLIENT:publish(P, <<"group/1">>, <<"x">>, #{qos => 1}) || _ <- lists:seq(1, 5)],
    await(Before + 5, fun() -> counted(Last) end).

an_expired_message_is_dropped(Config) ->
    probe(Config, ['delivery.dropped']),
    {C, _} = connect(Config, #{expiry => 60}),
    1 = ?CLIENT:subscribe(C, <<"expired">>, 1),
    ok = ?CLIENT:disconnect(C),
    {P, _} = connect(Config, #{client_id => <<"publisher">>}),
    Publish = fun(Payload, Seconds) ->
        {ok, 0} = ?CLIENT:publish(P, <<"expired">>, Payload, #{
            qos => 1, properties => #{'Message-Expiry-Interval' => Seconds}
        })
    end,
    Publish(<<"short">>, 1),
    Publish(<<"long">>, 100),
    timer:sleep(1100),
    {D, true} = connect(Config, #{clean_start => false, expiry => 60}),
    [#{payload := <<"long">>, properties := Properties}] = ?CLIENT:receive_messages(D, 1),
    ?assert(maps:get('Message-Expiry-Interval', Properties) < 100),
    ?assertMatch(
        [{<<"short">>, expired}],
        [
            {maps:get(payload, to_map(Config, Message)), Reason}
         || {_, _, 'delivery.dropped', [_, Message, Reason]} <- events(Config)
        ]
    ).

%%--------------------------------------------------------------------
%% Within the broker
%%--------------------------------------------------------------------

client_info() ->
    #{clientid => <<"contract">>, zone => default, mountpoint => undefined, username => undefined}.

conn_info() ->
    Info = #{conn_mod => ?MODULE, clean_start => false, expiry_interval => 60000},
    Info#{receive_maximum => 2, proto_ver => 5}.

channel_info(Id) ->
    ClientInfo = (client_info())#{clientid := Id},
    #{conninfo => conn_info(), clientinfo => ClientInfo, conn_state => disconnected, session => #{}}.

stats(Session) -> maps:from_list(?BROKER:session_stats(Session)).

message(Topic, QoS) ->
    ?BROKER:message_from_map(#{
        id => crypto:strong_rand_bytes(16),
        qos => QoS,
        from => <<"other">>,
        flags => #{dup => false, retain => true},
        headers => #{properties => #{}},
        topic => Topic,
        payload => Topic,
        timestamp => erlang:system_time(millisecond),
        extra => #{}
    }).

%% A channel of a module of ours, with a message in flight, one that is queued, and one that comes late.
start_foreign(Id) ->
    Test = self(),
    Pid = spawn(fun() -> foreign(Id, Test) end),
    receive {Pid, ready} -> Pid end.

foreign(Id, Test) ->
    ClientInfo = (client_info())#{clientid := Id},
    Payload = fun(Text) ->
        ?BROKER:message_from_map((?BROKER:message_to_map(message(<<"foreign/1">>, 1)))#{payload := Text})
    end,
    Empty = ?BROKER:set_session_field(next_pkt_id, 5, ?BROKER:create_session(ClientInfo, conn_info())),
    Options = #{qos => 1, nl => 0, rap => 0, subid => 2},
    {ok, Subscribed} = ?BROKER:subscribe(ClientInfo, <<"foreign/+">>, Options, Empty),
    Sent = ?BROKER:into_inflight(ClientInfo, Payload(<<"sent">>), Subscribed),
    Session = ?BROKER:enqueue(ClientInfo, [Payload(<<"queued">>)], Sent),
    ok = ?BROKER:register_channel(Id, conn_info(), channel_info(Id), ?BROKER:session_stats(Session)),
    Test ! {self(), ready},
    foreign_loop(Id, Session, Payload(<<"pending">>), []).

foreign_loop(Id, Session, Pending, Calls) ->
    receive
        {'$gen_call', From, {takeover, 'begin'} = Request} ->
            ok = ?BROKER:unregister_channel(Id),
            gen_server:reply(From, ?BROKER:hand_over(Session)),
            foreign_loop(Id, Session, Pending, [Request | Calls]);
        {'$gen_call', From, {takeover, 'end'} = Request} ->
            ok = ?BROKER:take_over(Session),
            gen_server:reply(From, [{deliver, <<"foreign/+">>, Pending}]),
            foreign_loop(Id, Session, Pending, [Request | Calls]);
        {'$gen_call', From, calls} ->
            gen_server:reply(From, lists:reverse(Calls))
    end.

calls_of_foreign(Pid) -> gen_server:call(Pid, calls).

%% What the broker calls, as this module is its `conn_mod'.
call(Pid, Request, Timeout) -> gen_server:call(Pid, Request, Timeout).

%%--------------------------------------------------------------------
%% Probes: which hooks were called in which process, with what
%%--------------------------------------------------------------------

points() ->
    [
        'client.connect', 'client.check_authn_complete', 'client.connack', 'client.connected',
        'client.disconnected', 'client.subscribe', 'client.unsubscribe', 'session.created', 'session.resumed',
        'session.subscribed', 'session.unsubscribed', 'session.disconnected', 'session.discarded',
        'session.takenover', 'session.terminated', 'message.publish', 'message.puback', 'message.dropped',
        'message.delivered', 'message.acked', 'message.nack', 'delivery.dropped', 'delivery.completed',
        'cm.channel.unregistered'
    ].

start_events() ->
    Test = self(),
    Owner = spawn(fun() ->
        ets:new(?EVENTS, [named_table, public, ordered_set]),
        Test ! created,
        receive stop -> ok end
    end),
    receive created -> is_pid(Owner) end.

probe(Point) -> ?BROKER:put_hook(Point, {?MODULE, record, [Point]}, -1000).

record(A, Point) -> note(Point, [A]).
record(A, B, Point) -> note(Point, [A, B]).
record(A, B, C, Point) -> note(Point, [A, B, C]).
record(A, B, C, D, Point) -> note(Point, [A, B, C, D]).

note(Point, Arguments) ->
    Event = {erlang:unique_integer([monotonic]), self(), Point, Arguments},
    _ = is_of_broker(Point, Arguments) orelse ets:insert(?EVENTS, Event),
    ok.

%% EMQX publishes of itself, partly in clients' processes.
is_of_broker(Point, [Message | _]) when Point =:= 'message.publish'; Point =:= 'message.dropped' ->
    string:prefix(?BROKER:topic(Message), "$SYS/") =/= nomatch;
is_of_broker(_Point, _Arguments) ->
    false.

forget_probes() ->
    _ = [?BROKER:delete_hook(Point, {?MODULE, record}) || Point <- points()],
    Hooks = [
        {'message.publish', publish_hook}, {'message.puback', puback_hook},
        {'client.subscribe', subscribe_hook}, {'client.connect', connect_hook},
        {'client.handle_info', handle_info_hook}
    ],
    _ = [?BROKER:delete_hook(Point, {?MODULE, Name}) || {Point, Name} <- Hooks],
    true = ets:delete_all_objects(?EVENTS),
    ok.

events_of(Pid) -> [{Point, Arguments} || {_, P, Point, Arguments} <- ets:tab2list(?EVENTS), P =:= Pid].

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

in_broker(Config, Fun) -> call(Config, erlang, apply, [Fun, []]).

probe(Config, Points) -> [true = call(Config, ?MODULE, probe, [Point]) || Point <- Points].

put_hook(Config, Point, Name) ->
    ?assert(call(Config, ?BROKER, put_hook, [Point, {?MODULE, Name, []}, 0])).

to_map(Config, Message) -> call(Config, ?BROKER, message_to_map, [Message]).

events(Config) -> call(Config, ets, tab2list, [?EVENTS]).

await_events(Config, Point, Count) ->
    await(Count, fun() -> length([Point || {_, _, P, _} <- events(Config), P =:= Point]) end).

lives(Config) -> lives(Config, id(Config)).

%% Of each process that was this client's, all that happened in it.
lives(Config, Id) ->
    Events = events(Config),
    Pids = [Pid || {_, Pid, 'client.connect', [#{clientid := It} | _]} <- Events, It =:= Id],
    [[{Point, Arguments} || {_, P, Point, Arguments} <- Events, P =:= Pid] || Pid <- Pids].

simple_lives(Config) -> simple_lives(Config, id(Config)).

simple_lives(Config, Id) ->
    [[{Point, simple(Config, Point, Arguments)} || {Point, Arguments} <- Life] || Life <- lives(Config, Id)].

simple(_, 'client.connect', [#{clean_start := CleanStart}, _]) -> {clean_start, CleanStart};
simple(_, 'client.check_authn_complete', [#{clientid := Id}, #{reason_code := Reason}]) -> {Id, Reason};
simple(_, 'client.connack', [#{}, Reason, #{}]) -> Reason;
simple(_, 'client.connected', [#{clientid := Id}, #{connected_at := _}]) -> Id;
simple(_, 'client.disconnected', [#{clientid := Id}, Reason, #{expiry_interval := Expiry}]) ->
    {Id, Reason, Expiry};
simple(_, 'client.subscribe', [#{clientid := Id}, #{}, Filters]) ->
    {Id, [Filter || {Filter, #{qos := _}} <- Filters]};
simple(_, 'client.unsubscribe', [#{clientid := Id}, #{}, Filters]) ->
    {Id, [Filter || {Filter, #{}} <- Filters]};
simple(_, 'session.subscribed', [#{clientid := Id}, Filter, #{qos := QoS, is_new := IsNew} = Options]) ->
    #{nl := 0, rap := 0, rh := 0} = Options,
    {Id, Filter, {QoS, maps:get(subid, Options, none), IsNew}};
simple(_, 'session.unsubscribed', [#{clientid := Id}, Filter, #{}]) -> {Id, Filter};
simple(_, 'session.terminated', [#{clientid := Id}, Reason, #{created_at := _}]) -> {Id, Reason};
simple(_, 'cm.channel.unregistered', [Pid]) when is_pid(Pid) -> self;
simple(_, Point, [#{clientid := Id}, #{subscriptions := Subscriptions, created_at := _}]) when
    Point =:= 'session.created'; Point =:= 'session.resumed'; Point =:= 'session.disconnected';
    Point =:= 'session.discarded'; Point =:= 'session.takenover'
->
    {Id, lists:sort(maps:keys(Subscriptions))};
simple(Config, 'message.publish', [Message]) -> payload(Config, Message);
simple(Config, 'message.puback', [_, Message, Routed, Code]) ->
    {payload(Config, Message), length(Routed), Code};
simple(Config, 'message.dropped', [Message, #{node := _}, Reason]) -> {payload(Config, Message), Reason};
simple(Config, 'message.delivered', [#{clientid := Id}, Message]) ->
    {Id, payload(Config, Message), call(Config, ?BROKER, is_dup, [Message])};
simple(Config, 'message.acked', [#{clientid := Id}, Message]) -> {Id, payload(Config, Message)};
simple(Config, 'message.nack', [Message, false]) -> payload(Config, Message);
simple(Config, 'delivery.completed', [Message, #{clientid := Id}]) -> {Id, payload(Config, Message)};
simple(Config, 'delivery.dropped', [#{clientid := Id}, Message, Reason]) ->
    {Id, payload(Config, Message), Reason}.

payload(Config, Message) -> maps:get(payload, to_map(Config, Message)).

options(Config, Options) ->
    maps:merge(#{port => ?NODE:port(broker(Config)), client_id => id(Config)}, Options).

%% The client, and whether it has found its session.
connect(Config, Options) ->
    {ok, Client, #{session_present := Present}} = ?CLIENT:connect(options(Config, Options)),
    {Client, Present}.

channel(Config) -> channel(Config, id(Config)).

channel(Config, Id) -> call(Config, ?BROKER, lookup_channels, [Id]).

%% How many messages have come in all.
counted(Client) ->
    Before = case get({counted, Client}) of undefined -> 0; N -> N end,
    Now = Before + length(?CLIENT:messages(Client)),
    _ = put({counted, Client}, Now),
    Now.

await(Condition) -> await(true, Condition).

await(Expected, Fun) ->
    try
        ?HELPERS:wait_until(fun() -> Expected =:= Fun() end, 5000)
    catch
        error:{still_false_after, _} -> ?assertEqual(Expected, Fun())
    end.
