%% Long queues of one client: of messages within one millisecond, and of requests.
-module(emqx_redis_queue_SUITE).

-compile([export_all, nowarn_export_all]).

-define(STORAGE, emqx_redis_test_storage).

-import(emqx_redis_message, [
    ack_message_async/2, get_messages/3, get_messages_async/3, store_message/2, store_message/3,
    store_message_async/2, store_messages/2
]).

suite() ->
    [{timetrap, {minutes, 2}}].

all() ->
    [{group, single}, {group, cluster}].

groups() ->
    [{single, cases()}, {cluster, cases()}].

cases() ->
    [
        a_repeated_store_keeps_its_place_in_a_crowded_millisecond,
        many_pages_of_one_client_at_once,
        pages_see_exactly_what_was_submitted_before_them
    ].

init_per_group(Topology, Config) -> ?STORAGE:start([{topology, Topology} | Config]).

end_per_group(_Topology, Config) -> ?STORAGE:stop(Config).

init_per_testcase(_Case, Config) ->
    ?STORAGE:reset(Config).

%% A score has 2,048 places within a millisecond; more messages go on in the next one.
a_repeated_store_keeps_its_place_in_a_crowded_millisecond(_Config) ->
    Messages = [#{id => integer_to_binary(N), timestamp => 1000} || N <- lists:seq(1, 5000)],
    ok = store_messages(<<"c">>, Messages),
    {ok, Messages} = get_messages(<<"c">>, 0, 5000),
    [ok = store_message(<<"c">>, lists:nth(N, Messages)) || N <- [1, 2048, 2049, 4500]],
    [ok = store_message(<<"c">>, lists:nth(N, Messages), #{max_queue => 5000}) || N <- [2, 2500, 5000]],
    {ok, Messages} = get_messages(<<"c">>, 0, 5000).

%% A page takes two steps, for which later requests of the client wait. That a hundred thousand do
%% must not make each of them slower.
many_pages_of_one_client_at_once(_Config) ->
    Message = #{id => <<"m">>},
    ok = store_message(<<"c">>, Message),
    Requests = [get_messages_async(<<"c">>, 0, 10) || _ <- lists:seq(1, 20000)],
    [{reply, {ok, [Message]}} = receive_response(Request) || Request <- Requests],
    ok.

pages_see_exactly_what_was_submitted_before_them(_Config) ->
    Submit = fun(N, Requests) ->
        Id = integer_to_binary(N),
        Store = store_message_async(<<"c">>, #{id => Id, timestamp => N}),
        Full = get_messages_async(<<"c">>, 0, 10),
        Ack = ack_message_async(<<"c">>, Id),
        Empty = get_messages_async(<<"c">>, 0, 10),
        [{Store, ok}, {Full, {ok, [#{id => Id, timestamp => N}]}}, {Ack, ok}, {Empty, {ok, []}} | Requests]
    end,
    Expected = lists:foldl(Submit, [], lists:seq(1, 2000)),
    [{reply, Result} = receive_response(Request) || {Request, Result} <- Expected],
    ok.

receive_response(Request) ->
    emqx_redis_storage:receive_response(Request, 30000).
