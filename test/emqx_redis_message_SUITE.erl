%% Messages: what the model does not cover. Expiry, order under load, long queues, limits of many clients.
-module(emqx_redis_message_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(MESSAGE, emqx_redis_message).
-define(STORAGE, emqx_redis_test_storage).
-define(HELPERS, emqx_redis_test_helpers).

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [{group, single}, {group, cluster}].

groups() ->
    [{single, cases()}, {cluster, cases()}].

cases() ->
    [
        expired_messages_are_gone,
        offsets_and_limits_count_live_messages_only,
        an_expired_message_stored_again_is_new,
        storing_again_renews_the_time_to_live,
        order_within_a_millisecond,
        order_of_more_messages_than_a_millisecond_has_places,
        order_of_many_clients_at_once,
        order_of_operations_that_are_not_waited_for,
        a_lowered_limit_shortens_a_long_queue,
        expired_messages_make_room,
        one_message_for_many_clients,
        only_for_clients_with_a_session,
        packet_ids_are_noted_and_go_with_their_message,
        a_note_takes_the_epoch,
        long_queues,
        large_messages,
        empty_lists,
        misuse_raises_badarg
    ].

init_per_group(Topology, Config) -> ?STORAGE:start([{topology, Topology} | Config]).

end_per_group(_Topology, Config) -> ?STORAGE:stop(Config).

init_per_testcase(_Case, Config) -> ?STORAGE:reset(Config).

end_per_testcase(_Case, _Config) ->
    [] = ?HELPERS:stray_messages(20),
    ok.

expired_messages_are_gone(Config) ->
    Pairs = [{Client, Id} || Client <- ?STORAGE:adversarial_ids(), Id <- [<<>>, <<":">>, <<"m">>, <<0>>]],
    [ok = ?MESSAGE:store_message(Client, #{id => Id}, #{ttl => 1}) || {Client, Id} <- Pairs],
    [{ok, [_, _, _, _]} = ?MESSAGE:get_messages(Client, 0, 10) || {Client, _} <- Pairs],
    timer:sleep(1010),
    [?assertEqual({ok, []}, ?MESSAGE:get_messages(Client, 0, 10)) || {Client, _} <- Pairs],
    ?HELPERS:wait_until(fun() -> ?STORAGE:keys(Config) =:= [<<"meta">>] end, ?STORAGE:sweep_time(Config)).

offsets_and_limits_count_live_messages_only(Config) ->
    Ids = [integer_to_binary(N) || N <- lists:seq(1000, 1299)],
    Short = fun(Id) -> binary_to_integer(Id) rem 3 =/= 0 end,
    Store = fun(Id, Ttl) -> ok = ?MESSAGE:store_message(<<"c">>, #{id => Id}, #{ttl => Ttl}) end,
    [case Short(Id) of true -> Store(Id, 1); false -> Store(Id, 100) end || Id <- Ids],
    %% Some vanish without our doing.
    {Stay, Vanish} = lists:split(90, [Id || Id <- Ids, not Short(Id)]),
    timer:sleep(1010),
    1 = ?STORAGE:cli(Config, ["DEL", ?STORAGE:key(Config, {message, <<"c">>, hd(Vanish)})]),
    Live = [#{id => Id} || Id <- Stay ++ tl(Vanish)],
    ?assertEqual({ok, lists:sublist(Live, 50)}, ?MESSAGE:get_messages(<<"c">>, 0, 50)),
    ?assertEqual({ok, lists:sublist(Live, 81, 50)}, ?MESSAGE:get_messages(<<"c">>, 80, 50)),
    ?assertEqual({ok, Live}, ?MESSAGE:get_messages(<<"c">>, 0, 1000000)),
    ?assertEqual({ok, []}, ?MESSAGE:get_messages(<<"c">>, length(Live), 10)),
    ?assertEqual(length(Live), queue_length(Config, <<"c">>)).

an_expired_message_stored_again_is_new(_Config) ->
    [
        begin
            ok = ?MESSAGE:store_message(<<"c">>, #{id => <<"1">>}, Opts#{ttl => 1}),
            ok = ?MESSAGE:store_message(<<"c">>, #{id => <<"2">>}, Opts),
            timer:sleep(1003),
            ok = ?MESSAGE:store_message(<<"c">>, #{id => <<"1">>, again => true}, Opts),
            Expected = [#{id => <<"2">>}, #{id => <<"1">>, again => true}],
            ?assertEqual({ok, Expected}, ?MESSAGE:get_messages(<<"c">>, 0, 10)),
            ok = ?MESSAGE:delete_messages(<<"c">>)
        end
     || Opts <- [#{}, #{max_queue => 2}, #{max_queue => 2, on_full => reject}]
    ].

storing_again_renews_the_time_to_live(Config) ->
    M = #{id => <<"m">>},
    Left = fun() -> ?STORAGE:cli(Config, ["TTL", ?STORAGE:key(Config, {message, <<"c">>, <<"m">>})]) end,
    ok = ?MESSAGE:store_message(<<"c">>, M),
    ?assert(Left() > 86390),
    ok = ?MESSAGE:store_message(<<"c">>, M, #{ttl => infinity}),
    ?assertEqual(-1, Left()),
    ok = ?MESSAGE:store_message(<<"c">>, M, #{ttl => 1, max_queue => 3}),
    ok = ?MESSAGE:store_message(<<"c">>, M, #{ttl => 100, max_queue => 3}),
    timer:sleep(1050),
    ?assert(Left() > 90),
    ?assertEqual({ok, [M]}, ?MESSAGE:get_messages(<<"c">>, 0, 1)).

%% The ids are such that their own order is another one.
order_within_a_millisecond(_Config) ->
    [
        begin
            Messages = [Stamp#{id => integer_to_binary(N)} || N <- lists:seq(300, 1, -1)],
            {First, Second} = lists:split(150, Messages),
            Requests = [?MESSAGE:store_message_async(<<"c">>, M) || M <- First],
            [{reply, ok} = emqx_redis_storage:receive_response(R, 5000) || R <- Requests],
            ok = ?MESSAGE:store_messages(<<"c">>, Second),
            ?assertEqual({ok, Messages}, ?MESSAGE:get_messages(<<"c">>, 0, 1000)),
            %% Repeated, they stay where they are.
            ok = ?MESSAGE:store_messages(<<"c">>, lists:reverse(Messages)),
            ?assertEqual({ok, Messages}, ?MESSAGE:get_messages(<<"c">>, 0, 1000)),
            ok = ?MESSAGE:delete_messages(<<"c">>)
        end
     || Stamp <- [#{}, #{timestamp => 1700000000000}, #{timestamp => 0}, #{<<"timestamp">> => -5}]
    ].

order_of_more_messages_than_a_millisecond_has_places(_Config) ->
    [
        begin
            Messages = [Stamp#{id => integer_to_binary(N)} || N <- lists:seq(9999, 5000, -1)],
            ok = ?MESSAGE:store_messages(<<"c">>, Messages),
            ?assertEqual({ok, Messages}, ?MESSAGE:get_messages(<<"c">>, 0, 10000)),
            ok = ?MESSAGE:delete_messages(<<"c">>)
        end
     || Stamp <- [#{}, #{timestamp => 1700000000000}]
    ].

order_of_many_clients_at_once(_Config) ->
    Clients = [integer_to_binary(N) || N <- lists:seq(1, 1000)],
    Ids = [<<"c">>, <<"b">>, <<"a">>],
    Requests = [
        ?MESSAGE:store_message_async(Client, #{id => Id, timestamp => 1000})
     || Id <- Ids, Client <- Clients
    ],
    [{reply, ok} = emqx_redis_storage:receive_response(R, 10000) || R <- Requests],
    Expected = {ok, [#{id => Id, timestamp => 1000} || Id <- Ids]},
    [?assertEqual(Expected, ?MESSAGE:get_messages(Client, 0, 10), Client) || Client <- Clients].

order_of_operations_that_are_not_waited_for(_Config) ->
    Messages = [#{id => integer_to_binary(N)} || N <- lists:seq(1000, 1999)],
    Last = #{id => <<"last">>},
    Requests = [
        ?MESSAGE:store_messages_async(<<"c">>, Messages),
        ?MESSAGE:get_messages_async(<<"c">>, 0, 10000),
        ?MESSAGE:delete_messages_async(<<"c">>),
        ?MESSAGE:store_message_async(<<"c">>, Last),
        ?MESSAGE:get_messages_async(<<"c">>, 0, 10),
        ?MESSAGE:ack_messages_async(<<"c">>, [<<"last">> | [Id || #{id := Id} <- Messages]]),
        ?MESSAGE:store_message_async(<<"c">>, Last#{again => true}),
        ?MESSAGE:get_messages_async(<<"c">>, 0, 10)
    ],
    Replies = [emqx_redis_storage:receive_response(R, 5000) || R <- Requests],
    Expected = [ok, {ok, Messages}, ok, ok, {ok, [Last]}, ok, ok, {ok, [Last#{again => true}]}],
    ?assertEqual([{reply, Result} || Result <- Expected], Replies).

a_lowered_limit_shortens_a_long_queue(Config) ->
    Ids = [integer_to_binary(N) || N <- lists:seq(10000, 12999)],
    ok = ?MESSAGE:store_messages(<<"c">>, [#{id => Id} || Id <- Ids]),
    {ok, #{dropped := Dropped}} = ?MESSAGE:store_message(<<"c">>, #{id => <<"new">>}, #{max_queue => 10}),
    ?assertEqual(lists:sublist(Ids, 2991), Dropped),
    Left = [#{id => Id} || Id <- lists:nthtail(2991, Ids) ++ [<<"new">>]],
    ?assertEqual({ok, Left}, ?MESSAGE:get_messages(<<"c">>, 0, 100)),
    ?assertEqual(10, queue_length(Config, <<"c">>)),
    [10 = ?STORAGE:index_size(Config, Index) || Index <- [<<"sync:messages">>, <<"expiry:messages">>]].

expired_messages_make_room(_Config) ->
    [ok = ?MESSAGE:store_message(<<"c">>, #{id => <<N>>}, #{ttl => 1}) || N <- [1, 2, 3]],
    Reject = #{max_queue => 3, on_full => reject},
    ?assertEqual({error, queue_full}, ?MESSAGE:store_message(<<"c">>, #{id => <<4>>}, Reject)),
    timer:sleep(1003),
    ?assertEqual(ok, ?MESSAGE:store_message(<<"c">>, #{id => <<4>>}, Reject)),
    %% What had expired was not dropped.
    ?assertEqual(ok, ?MESSAGE:store_messages(<<"c">>, [#{id => <<N>>} || N <- [5, 6]], #{max_queue => 3})),
    ?assertEqual({ok, [#{id => <<N>>} || N <- [4, 5, 6]]}, ?MESSAGE:get_messages(<<"c">>, 0, 10)).

one_message_for_many_clients(_Config) ->
    Clients = [integer_to_binary(N) || N <- lists:seq(1000, 2999)],
    M = #{id => <<"m">>, timestamp => 5},
    ok = ?MESSAGE:store_message(<<"1000">>, M#{id => <<"old">>}),
    ok = ?MESSAGE:store_message_for(Clients ++ [<<"2000">>], M),
    {ok, [_, M]} = ?MESSAGE:get_messages(<<"1000">>, 0, 10),
    [{ok, [M]} = ?MESSAGE:get_messages(Client, 0, 10) || Client <- [<<"1001">>, <<"2000">>, <<"2999">>]],
    New = M#{id => <<"new">>},
    Limit = #{max_queue => 2},
    ?assertEqual(
        {ok, #{dropped => [{<<"1000">>, [<<"old">>]}]}}, ?MESSAGE:store_message_for(Clients, New, Limit)
    ),
    %% One client's acknowledgement is nothing to the others.
    ok = ?MESSAGE:ack_message(<<"1001">>, <<"m">>),
    {ok, [New]} = ?MESSAGE:get_messages(<<"1001">>, 0, 10),
    {ok, [M, New]} = ?MESSAGE:get_messages(<<"1002">>, 0, 10),
    Reject = Limit#{on_full => reject},
    {error, {partial, Failed}} = ?MESSAGE:store_message_for(Clients, M#{id => <<"third">>}, Reject),
    ?assertEqual([{Client, queue_full} || Client <- Clients -- [<<"1001">>]], lists:sort(Failed)).

only_for_clients_with_a_session(Config) ->
    Clients = [<<"has">>, <<"has not">>, <<"had">>, <<"has too">>],
    [ok = emqx_redis_session:save_session(C, session, #{}) || C <- Clients -- [<<"has not">>]],
    ok = emqx_redis_session:delete_session(<<"had">>),
    M = #{id => <<"m">>, payload => <<"p">>},
    Before = ?STORAGE:keys(Config),
    {error, {partial, Failed}} = ?MESSAGE:store_message_for(Clients, M, #{session => required}),
    ?assertEqual([{<<"had">>, no_session}, {<<"has not">>, no_session}], lists:sort(Failed)),
    [?assertEqual({ok, [M]}, ?MESSAGE:get_messages(C, 0, 9)) || C <- [<<"has">>, <<"has too">>]],
    [?assertEqual({ok, []}, ?MESSAGE:get_messages(C, 0, 9)) || {C, _} <- Failed],
    ok = ?MESSAGE:store_message_for([<<"has">>], M#{id => <<"n">>}, #{session => required}),
    [ok = ?MESSAGE:delete_messages(C) || C <- [<<"has">>, <<"has too">>]],
    %% Nothing of those without a session is left anywhere.
    ?assertEqual(lists:sort(Before), lists:sort(?STORAGE:keys(Config))).

packet_ids_are_noted_and_go_with_their_message(Config) ->
    Client = <<"c:%}">>,
    Before = ?STORAGE:keys(Config),
    Ids = [<<"a">>, <<":">>, <<0>>],
    ok = ?MESSAGE:store_messages(Client, [#{id => Id} || Id <- Ids]),
    Marks = [{<<"a">>, {1, sent}}, {<<":">>, {65535, received}}, {<<"gone">>, {7, sent}}],
    ok = ?MESSAGE:mark_messages(Client, Marks),
    Asked = Ids ++ [<<"gone">>],
    ?assertEqual(
        {ok, [{1, sent}, {65535, received}, undefined, undefined]}, ?MESSAGE:get_marks(Client, Asked)
    ),
    ok = ?MESSAGE:mark_messages(Client, [{<<"a">>, {1, received}}]),
    ?assertEqual({ok, [{1, received}]}, ?MESSAGE:get_marks(Client, [<<"a">>])),
    ok = ?MESSAGE:ack_message(Client, <<"a">>),
    ?assertEqual({ok, [undefined]}, ?MESSAGE:get_marks(Client, [<<"a">>])),
    ok = ?MESSAGE:delete_messages(Client),
    ?assertEqual({ok, []}, ?MESSAGE:get_marks(Client, [])),
    ?assertEqual(lists:sort(Before), lists:sort(?STORAGE:keys(Config))),
    ?assertError(badarg, ?MESSAGE:mark_messages(Client, [{<<"a">>, {0, sent}}])),
    ?assertError(badarg, ?MESSAGE:mark_messages(Client, [{<<"a">>, {1, seen}}])).

a_note_takes_the_epoch(_Config) ->
    {ok, #{epoch := Epoch}} = emqx_redis_session:claim_session(<<"c">>, #{}),
    ok = ?MESSAGE:store_message(<<"c">>, #{id => <<"m">>}),
    Marks = [{<<"m">>, {1, sent}}],
    ?assertEqual({error, fenced}, ?MESSAGE:mark_messages(<<"c">>, Marks)),
    {ok, #{epoch := Later}} = emqx_redis_session:claim_session(<<"c">>, #{}),
    ?assertEqual(
        {error, {stale_epoch, Later}}, ?MESSAGE:mark_messages(<<"c">>, Marks, #{epoch => Epoch})
    ),
    ?assertEqual({ok, [undefined]}, ?MESSAGE:get_marks(<<"c">>, [<<"m">>])),
    ok = ?MESSAGE:mark_messages(<<"c">>, Marks, #{epoch => Later}),
    ?assertEqual({ok, [{1, sent}]}, ?MESSAGE:get_marks(<<"c">>, [<<"m">>])).

long_queues(Config) ->
    Messages = [#{id => integer_to_binary(N), n => N} || N <- lists:seq(1, 3000)],
    ok = ?MESSAGE:store_messages(<<"c">>, Messages),
    [
        ?assertEqual({ok, lists:sublist(Messages, O + 1, L)}, ?MESSAGE:get_messages(<<"c">>, O, L))
     || {O, L} <- [{0, 0}, {0, 1}, {0, 500}, {0, 501}, {499, 1002}, {2999, 10}, {3000, 1}, {0, 1000000}]
    ],
    ok = ?MESSAGE:ack_messages(<<"c">>, [Id || #{id := Id, n := N} <- Messages, N rem 2 =:= 0]),
    Odd = [M || #{n := N} = M <- Messages, N rem 2 =:= 1],
    ?assertEqual({ok, Odd}, ?MESSAGE:get_messages(<<"c">>, 0, 4294967295)),
    ok = ?MESSAGE:delete_messages(<<"c">>),
    ?assertEqual([<<"meta">>], ?STORAGE:keys(Config)).

large_messages(_Config) ->
    [
        begin
            Bytes = crypto:strong_rand_bytes(Size),
            M = #{id => <<Size:32>>, payload => Bytes, more => lists:duplicate(Size div 8, x)},
            ok = ?MESSAGE:store_message(<<"c">>, M),
            ok = ?MESSAGE:store_message_for([<<"d">>, <<"e">>], M, #{max_queue => 10}),
            Clients = [<<"c">>, <<"d">>, <<"e">>],
            [?assert({ok, [M]} =:= ?MESSAGE:get_messages(C, 0, 10), {C, Size}) || C <- Clients],
            [ok = ?MESSAGE:delete_messages(C) || C <- Clients]
        end
     || Size <- [0, 1 bsl 16, 1 bsl 20, 1 bsl 23]
    ].

empty_lists(Config) ->
    ?assertEqual(ok, ?MESSAGE:store_messages(<<"c">>, [])),
    ?assertEqual(ok, ?MESSAGE:store_messages(<<"c">>, [], #{max_queue => 1, ttl => 5})),
    ?assertEqual(ok, ?MESSAGE:store_message_for([], #{id => <<"m">>})),
    ?assertEqual(ok, ?MESSAGE:ack_messages(<<"c">>, [])),
    Request = ?MESSAGE:store_messages_async(<<"c">>, []),
    ?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Request, 1000)),
    ?assertEqual([<<"meta">>], ?STORAGE:keys(Config)).

misuse_raises_badarg(Config) ->
    C = <<"c">>,
    M = #{id => <<"m">>},
    Misuses = [
        {store_message, [c, M]},
        {store_message, [C, [{id, <<"m">>}]]},
        {store_message, [C, #{}]},
        {store_message, [C, #{id => m}]},
        {store_message, [C, M#{timestamp => 1.5}]},
        {store_message, [C, M#{timestamp => 1 bsl 70}]},
        {store_message, [C, M, #{max_queue => 0}]},
        {store_message, [C, M, #{max_queue => infinity}]},
        {store_message, [C, M, #{on_full => drop_newest}]},
        {store_message, [C, M, #{epoch => 1}]},
        {store_message, [C, M, #{ttl => -1}]},
        {store_messages, [C, M]},
        {store_messages, [C, [M | M]]},
        {store_messages, [C, [M, m]]},
        {store_messages, [C, undefined, #{}]},
        {store_message_for, [C, M]},
        {store_message_for, [[C, c], M]},
        {store_message_for, [[C | C], M]},
        {get_messages, [C, -1, 1]},
        {get_messages, [C, 0, -1]},
        {get_messages, [C, 0, all]},
        {get_messages, ["c", 0, 1]},
        {ack_message, [C, 1]},
        {ack_message, [C, <<"m">>, #{ttl => 1}]},
        {ack_messages, [C, <<"m">>]},
        {ack_messages, [C, [m]]},
        {delete_messages, [1]},
        {delete_messages, [C, #{epoch => x}]}
    ],
    ?HELPERS:with_stray_check(fun() ->
        [
            ?assertError(badarg, apply(?MESSAGE, Function, Arguments), {Function, Arguments})
         || {Name, Arguments} <- Misuses,
            Function <- [Name, list_to_atom(atom_to_list(Name) ++ "_async")]
        ]
    end),
    ?assertEqual([<<"meta">>], ?STORAGE:keys(Config)).

%% Internal

queue_length(Config, Client) -> ?STORAGE:cli(Config, ["ZCARD", ?STORAGE:key(Config, {queue, Client})]).
