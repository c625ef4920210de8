%% What is in Redis, as others see it: keys, types, fields, times to live and encoding, read with an
%% independent client and an independent MessagePack reader.
-module(emqx_redis_data_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(STORAGE, emqx_redis_test_storage).
-define(HELPERS, emqx_redis_test_helpers).

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [
        a_session,
        a_message,
        message_ids_of_any_bytes,
        the_message_index_can_be_turned_off,
        routes,
        an_epoch,
        meta,
        values_are_plain_messagepack,
        a_prefix_stands_before_every_key
    ].

init_per_suite(Config) -> ?STORAGE:start(Config).

end_per_suite(Config) -> ?STORAGE:stop(Config).

init_per_testcase(_Case, Config) -> ?STORAGE:reset(Config).

a_session(Config) ->
    Mac = <<"00:1B:44:11:3A:B7">>,
    Now = os:system_time(millisecond),
    ok = emqx_redis_session:save_session(Mac, #{clean => false, <<"bin">> => 1}, #{ttl => 3600}),
    Key = <<"session:", Mac/binary>>,
    ?assertEqual([<<"expiry:sessions">>, <<"meta">>, Key, <<"sync:sessions">>], ?STORAGE:keys(Config)),
    ?assertEqual(<<"hash">>, cli(Config, ["TYPE", Key])),
    Hash = pairs(cli(Config, ["HGETALL", Key])),
    ?assertEqual(
        [<<"created_at">>, <<"data">>, <<"expires_at">>, <<"node">>, <<"updated_at">>],
        lists:sort(maps:keys(Hash))
    ),
    #{<<"created_at">> := Created, <<"updated_at">> := Created, <<"expires_at">> := Expires} = Hash,
    ?assert(abs(binary_to_integer(Created) - Now div 1000) =< 1),
    ?assertEqual(3600, binary_to_integer(Expires) - binary_to_integer(Created)),
    ?assertEqual(atom_to_binary(node()), maps:get(<<"node">>, Hash)),
    ?assertEqual(
        #{{str, <<"clean">>} => false, <<"bin">> => 1},
        emqx_redis_test_msgpack:decode(maps:get(<<"data">>, Hash))
    ),
    ?assert(abs(cli(Config, ["PTTL", Key]) - 3600000) < 3000),
    ?assert(abs(score(Config, "sync:sessions", Mac) - Now) < 3000),
    ?assert(abs(score(Config, "expiry:sessions", Mac) - Now - 3600000) < 3000),
    ok = emqx_redis_session:save_session(Mac, 1, #{ttl => infinity}),
    ?assertEqual(<<"infinity">>, cli(Config, ["HGET", Key, "expires_at"])),
    ?assertEqual(<<"inf">>, cli(Config, ["ZSCORE", "expiry:sessions", Mac])).

a_message(Config) ->
    M = #{id => <<"m1">>, timestamp => 1700000000000, qos => 1, payload => <<"hi">>},
    ok = emqx_redis_message:store_message(<<"c1">>, M, #{ttl => 60}),
    ?assertEqual(
        [<<"expiry:messages">>, <<"meta">>, <<"msg:c1:m1">>, <<"msgq:c1">>, <<"sync:messages">>],
        ?STORAGE:keys(Config)
    ),
    ?assertEqual(
        [<<"zset">>, <<"string">>, <<"zset">>, <<"zset">>],
        [cli(Config, ["TYPE", K]) || K <- ["expiry:messages", "msg:c1:m1", "msgq:c1", "sync:messages"]]
    ),
    ?assertEqual(
        #{{str, <<"id">>} => <<"m1">>, {str, <<"timestamp">>} => 1700000000000,
            {str, <<"qos">>} => 1, {str, <<"payload">>} => <<"hi">>},
        emqx_redis_test_msgpack:decode(cli(Config, ["GET", "msg:c1:m1"]))
    ),
    ?assert(abs(cli(Config, ["PTTL", "msg:c1:m1"]) - 60000) < 3000),
    ?assertEqual([<<"m1">>], cli(Config, ["ZRANGEBYSCORE", "msgq:c1", 1700000000000, "(1700000000001"])),
    ?assertEqual(1700000000000.0, score(Config, "sync:messages", "c1:m1")),
    ok = emqx_redis_message:store_message(<<"c1">>, M, #{ttl => infinity}),
    ?assertEqual(-1, cli(Config, ["TTL", "msg:c1:m1"])).

message_ids_of_any_bytes(Config) ->
    Pairs = [
        {Client, Id}
     || Client <- ?STORAGE:adversarial_ids(),
        Id <- [<<>>, <<"1">>, <<"1:1">>, <<":1">>, <<58, 0, 255, 37, 13, 10, 1:80>>, <<"%">>]
    ],
    [ok = emqx_redis_message:store_message(C, #{id => I, c => C}) || {C, I} <- Pairs],
    Keys = [<<"msg:", (escaped(C))/binary, ":", I/binary>> || {C, I} <- Pairs],
    ?assertEqual(length(Pairs), length(lists:usort(Keys))),
    Found = [Key || Key = <<"msg:", _/binary>> <- ?STORAGE:keys(Config)],
    ?assertEqual(lists:sort(Keys), Found),
    [
        ?assertEqual(
            #{{str, <<"id">>} => I, {str, <<"c">>} => C},
            emqx_redis_test_msgpack:decode(cli(Config, ["GET", Key]))
        )
     || {{C, I}, Key} <- lists:zip(Pairs, Keys)
    ],
    Queues = [<<"msgq:", C/binary>> || C <- ?STORAGE:adversarial_ids()],
    [6 = cli(Config, ["ZCARD", Queue]) || Queue <- Queues],
    ?assertEqual(length(Pairs), cli(Config, ["ZCARD", "sync:messages"])),
    [ok = emqx_redis_message:ack_message(C, I) || {C, I} <- Pairs],
    ?assertEqual([<<"meta">>], ?STORAGE:keys(Config)).

the_message_index_can_be_turned_off(Config) ->
    Server = proplists:get_value(server, Config),
    On = emqx_redis_test_server:config(Server),
    ok = emqx_redis_storage:start(On#{persistence => #{message_index => false, message_ttl => <<"2h">>}}),
    M = #{id => <<"m">>},
    [ok = emqx_redis_message:store_message(<<"c">>, M, Opts) || Opts <- [#{}, #{max_queue => 2}]],
    ?assertEqual(
        [<<"expiry:messages">>, <<"meta">>, <<"msg:c:m">>, <<"msgq:c">>], ?STORAGE:keys(Config)
    ),
    ?assert(abs(cli(Config, ["PTTL", "msg:c:m"]) - 7200000) < 3000),
    ok = emqx_redis_storage:start(On),
    ok = emqx_redis_message:store_message(<<"c">>, #{id => <<"n">>}),
    ?assertEqual(1, cli(Config, ["ZCARD", "sync:messages"])).

routes(Config) ->
    Node = 'n1@host',
    Filters = [<<"a/b">>, <<"a/+">>, <<"wildcards">>, <<"$share/g/x">>],
    [ok = emqx_redis_router:add_route(F, Node) || F <- Filters],
    ?assertEqual([<<"n1@host">>], cli(Config, ["SMEMBERS", "route:a/b"])),
    ?assertEqual([<<"n1@host">>], cli(Config, ["SMEMBERS", "route:a/+"])),
    ?assertEqual([<<"n1@host">>], cli(Config, ["SMEMBERS", "route:%77ildcards"])),
    ?assertEqual(
        [<<"$share/g/x|n1@host">>, <<"a/+|n1@host">>],
        lists:sort(cli(Config, ["ZRANGE", "route:wildcards", 0, -1]))
    ),
    ?assertEqual(
        [<<"$share/g/x">>, <<"a/+">>, <<"a/b">>, <<"wildcards">>],
        lists:sort(cli(Config, ["ZRANGE", "sync:routes", 0, -1]))
    ),
    ?assert(abs(score(Config, "sync:routes", "a/b") - os:system_time(millisecond)) < 3000).

an_epoch(Config) ->
    {ok, #{epoch := 1}} = emqx_redis_session:claim_session(<<"a:b">>, #{}),
    ?assertEqual(<<"1">>, cli(Config, ["GET", "epoch:a:b"])).

meta(Config) ->
    Meta = pairs(cli(Config, ["HGETALL", "meta"])),
    ?assertMatch(#{<<"layout">> := <<"1">>, <<"encoding">> := <<"1">>}, Meta).

values_are_plain_messagepack(Config) ->
    Session = #{
        subs => [{<<"a/+">>, #{qos => 1}}],
        <<"text">> => undefined,
        n => [1, -1, 255, 256, -129, 65536, 1 bsl 40, -(1 bsl 40), 1 bsl 63, 1 bsl 64],
        f => 1.5,
        yes => true,
        charlist => "abc"
    },
    ok = emqx_redis_session:save_session(<<"c">>, Session),
    Decoded = emqx_redis_test_msgpack:decode(cli(Config, ["HGET", "session:c", "data"])),
    S = fun(Text) -> {str, Text} end,
    #{<<"text">> := nil} = Decoded,
    ?assertEqual(1.5, maps:get(S(<<"f">>), Decoded)),
    ?assertEqual(true, maps:get(S(<<"yes">>), Decoded)),
    ?assertEqual("abc", maps:get(S(<<"charlist">>), Decoded)),
    [1, -1, 255, 256, -129, 65536, 1099511627776, -1099511627776, 9223372036854775808, {ext, _, _}] =
        maps:get(S(<<"n">>), Decoded),
    [{ext, _, _}] = maps:get(S(<<"subs">>), Decoded).

a_prefix_stands_before_every_key(Config) ->
    ok = emqx_redis_storage:stop(),
    Server = proplists:get_value(server, Config),
    Plain = emqx_redis_test_server:config(Server),
    ok = emqx_redis_storage:start(Plain#{key_prefix => <<"p%:">>}),
    ?STORAGE:wait_connected(),
    1 = cli(Config, ["DEL", "meta"]),
    Ids = ?STORAGE:adversarial_ids(),
    [
        begin
            {ok, #{epoch := E}} = emqx_redis_session:claim_session(C, #{}),
            ok = emqx_redis_session:save_session(C, C, #{epoch => E, ttl => 1}),
            ok = emqx_redis_message:store_message(C, #{id => <<"1">>}, #{ttl => 1}),
            ok = emqx_redis_message:store_message(C, #{id => C}, #{ttl => 1, max_queue => 5})
        end
     || C <- Ids
    ],
    Filters = [<<"a">>, <<"wildcards">>, <<"a/#">>, <<"$share/g/t">>],
    [ok = emqx_redis_router:add_route(F, node()) || F <- Filters],
    ?assertEqual([], [Key || Key <- ?STORAGE:keys(Config), binary:match(Key, <<"p%:">>) =/= {0, 3}]),
    ?assertEqual({ok, length(Ids)}, emqx_redis_session:count_sessions()),
    ?assertEqual({ok, Ids}, emqx_redis_session:list_sessions(100, 0)),
    {ok, [_, _]} = emqx_redis_router:match_routes(<<"a">>),
    %% Expiry finds its keys, too.
    Indexes = ["p%:sync:sessions", "p%:sync:messages", "p%:expiry:sessions", "p%:expiry:messages"],
    ?HELPERS:wait_until(fun() -> [0, 0, 0, 0] =:= [cli(Config, ["ZCARD", I]) || I <- Indexes] end, 4000),
    ?assertEqual([], [Key || Key = <<"p%:msgq:", _/binary>> <- ?STORAGE:keys(Config)]),
    ok = emqx_redis_storage:stop(),
    ok = emqx_redis_storage:start(Plain),
    ?STORAGE:wait_connected().

%% Internal

cli(Config, Command) -> ?STORAGE:cli(Config, Command).

score(Config, Key, Member) ->
    Score = cli(Config, ["ZSCORE", Key, Member]),
    try binary_to_float(Score) catch error:badarg -> float(binary_to_integer(Score)) end.

escaped(Client) ->
    Percent = binary:replace(Client, <<"%">>, <<"%25">>, [global]),
    binary:replace(Percent, <<":">>, <<"%3A">>, [global]).

pairs([Key, Value | Rest]) -> (pairs(Rest))#{Key => Value};
pairs([]) -> #{}.
