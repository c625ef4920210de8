%% Stored terms come back as they were, however large: through the engine's threads, where the virtual
%% machine makes no large maps, and through the caller.
-module(emqx_redis_terms_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-export([all/0, init_per_suite/1, end_per_suite/1]).
-export([maps_of_any_size/1, garbage_within_a_large_page/1]).

all() -> [maps_of_any_size, garbage_within_a_large_page].

init_per_suite(Config) ->
    Server = emqx_redis_test_server:start(#{}),
    ok = emqx_redis_storage:start(emqx_redis_test_server:config(Server)),
    [{server, Server} | Config].

end_per_suite(Config) ->
    ok = emqx_redis_storage:stop(),
    emqx_redis_test_server:stop(?config(server, Config)).

maps_of_any_size(_) ->
    [round_trip(Size) || Size <- [0, 31, 32, 33, 127, 128, 129, 500, 16384, 20000, 100000]],
    ?assertEqual([], element(2, process_info(self(), messages))).

round_trip(Size) ->
    Map = large_map(Size),
    Client = integer_to_binary(Size),
    ok = emqx_redis_session:save_session(Client, Map),
    ?assertEqual({ok, Map}, emqx_redis_session:load_session(Client)),
    RequestId = emqx_redis_session:load_session_async(Client),
    ?assertEqual({reply, {ok, Map}}, emqx_redis_storage:receive_response(RequestId, 30000)),
    {ok, #{epoch := 1, session := Claimed}} = emqx_redis_session:claim_session(Client, #{}),
    ?assertEqual(Map, Claimed),
    Messages = [#{id => <<"1">>, map => Map}, #{id => <<"2">>, map => [Map, Map]}],
    ok = emqx_redis_message:store_messages(Client, Messages),
    ?assertEqual({ok, Messages}, emqx_redis_message:get_messages(Client, 0, 10)),
    Other = emqx_redis_message:get_messages_async(Client, 1, 1),
    receive
        Reply ->
            Answer = emqx_redis_storage:check_response(Reply, Other),
            ?assertEqual({reply, {ok, tl(Messages)}}, Answer)
    after 30000 -> error(no_reply)
    end.

garbage_within_a_large_page(Config) ->
    ok = emqx_redis_message:store_message(<<"g">>, #{id => <<"1">>, map => large_map(20000)}),
    ok = emqx_redis_message:store_message(<<"g">>, #{id => <<"2">>}),
    _ = emqx_redis_test_server:cli(?config(server, Config), ["SET", "msg:g:2", <<16#c1>>]),
    Error = {error, {undecodable, #{reason => reserved_byte, message_id => <<"2">>}}},
    ?assertEqual(Error, emqx_redis_message:get_messages(<<"g">>, 0, 10)),
    ok = emqx_redis_message:ack_message(<<"g">>, <<"2">>),
    ?assertMatch({ok, [#{id := <<"1">>}]}, emqx_redis_message:get_messages(<<"g">>, 0, 10)).

large_map(Size) -> maps:from_list([{N, <<N:32>>} || N <- lists:seq(1, Size)]).
