%% What strangers leave at our keys: it harms nobody but the items that it stands in for, and is moved
%% away where it stands in the way.
-module(emqx_redis_garbage_SUITE).

-compile([export_all, nowarn_export_all]).

-define(STORAGE, emqx_redis_test_storage).

-import(emqx_redis_session, [claim_session/2, save_session/2]).
-import(emqx_redis_message, [get_messages/3, store_message/2, store_message/3, store_messages/2]).
-import(emqx_redis_router, [add_route/2]).
-import(emqx_redis_test_storage, [match_in_redis/1]).

all() ->
    [{group, single}, {group, cluster}].

groups() ->
    [{single, cases()}, {cluster, cases()}].

cases() ->
    [
        a_member_of_the_expiry_index_that_is_none_of_ours,
        a_foreign_queue_holds_up_no_other_client,
        a_foreign_set_of_a_wildcard_filter,
        a_foreign_value_at_a_filter,
        a_trie_that_is_none_of_ours,
        an_epoch_that_can_not_be_raised,
        a_page_is_full_after_keys_were_deleted_by_hand
    ].

init_per_group(Topology, Config) ->
    ?STORAGE:start([{topology, Topology} | Config]).

end_per_group(_Topology, Config) ->
    ?STORAGE:stop(Config).

init_per_testcase(_Case, Config) ->
    ?STORAGE:reset(Config).

a_member_of_the_expiry_index_that_is_none_of_ours(Config) ->
    Message = #{id => <<"1">>},
    ok = store_message(<<"c">>, Message),
    #{<<"expiry:messages">> := Index} = ?STORAGE:named_keys(Config),
    1 = ?STORAGE:cli(Config, ["ZADD", Index, 0, "no colon"]),
    {ok, [Message]} = get_messages(<<"c">>, 0, 10),
    Members = [member(Config, <<"c">>, <<"1">>)],
    Members = ?STORAGE:cli(Config, ["ZRANGE", Index, 0, -1]).

%% Messages of one client that expire are noticed by whoever comes first.
a_foreign_queue_holds_up_no_other_client(Config) ->
    Message = #{id => <<"1">>},
    {A, B} = neighbours(Config),
    ok = store_message(A, Message, #{ttl => 1}),
    ok = store_message(B, Message),
    #{<<"expiry:messages">> := Index} = ?STORAGE:named_keys(Config),
    <<"OK">> = ?STORAGE:cli(Config, ["SET", ?STORAGE:key(Config, {queue, A}), "foreign"]),
    timer:sleep(1100),
    {ok, [Message]} = get_messages(B, 0, 10),
    Members = [member(Config, B, <<"1">>)],
    Members = ?STORAGE:cli(Config, ["ZRANGE", Index, 0, -1]),
    {error, {partial, _}} = get_messages(A, 0, 10),
    {ok, []} = get_messages(A, 0, 10).

%% Clients of one index.
neighbours(Config) ->
    {<<"a">>, neighbour(Config, ?STORAGE:slot(Config, <<"a">>), 1)}.

neighbour(Config, Slot, N) ->
    Id = integer_to_binary(N),
    case ?STORAGE:slot(Config, Id) of
        Slot -> Id;
        _ -> neighbour(Config, Slot, N + 1)
    end.

%% What stands for a message in the indexes.
member(Config, Client, Id) ->
    <<"msg:", Member/binary>> = ?STORAGE:key(Config, {message, Client, Id}),
    Member.

a_foreign_set_of_a_wildcard_filter(Config) ->
    ok = add_route(<<"a/+">>, n1),
    ok = add_route(<<"a/b">>, n2),
    #{<<"trie:a/+">> := Key} = ?STORAGE:named_keys(Config),
    <<"OK">> = ?STORAGE:cli(Config, ["SET", Key, "foreign"]),
    {error, {partial, Text}} = match_in_redis(<<"a/b">>),
    {_, _} = binary:match(Text, Key),
    %% What the set held is put back.
    {ok, Routes} = match_in_redis(<<"a/b">>),
    [{<<"a/+">>, n1}, {<<"a/b">>, n2}] = lists:sort(Routes).

%% It keeps no node from reading all the other routes.
a_foreign_value_at_a_filter(Config) ->
    ok = add_route(<<"g/+">>, n1),
    ok = add_route(<<"g/b">>, n2),
    #{<<"route:g/+">> := Key} = ?STORAGE:named_keys(Config),
    <<"OK">> = ?STORAGE:cli(Config, ["SET", Key, "foreign"]),
    #{counters := #{resyncs := Before}} = emqx_redis_storage:status(),
    [1 = ?STORAGE:cli(Config, ["DEL", Feed]) || Feed <- ?STORAGE:feeds(Config)],
    InSync = fun() ->
        #{counters := #{resyncs := After}, routes := Shards} = emqx_redis_storage:status(),
        After > Before andalso lists:all(fun(#{in_sync := It}) -> It end, Shards)
    end,
    ok = emqx_redis_test_helpers:wait_until(InSync),
    {ok, [{<<"g/b">>, n2}]} = emqx_redis_router:match_routes(<<"g/b">>),
    {error, {partial, _}} = add_route(<<"g/+">>, n1),
    ok = add_route(<<"g/+">>, n1),
    {ok, Routes} = emqx_redis_router:match_routes(<<"g/b">>),
    [{<<"g/+">>, n1}, {<<"g/b">>, n2}] = lists:sort(Routes).

%% Whatever stands in the way of the trie, or within it, no route is lost. All filters are of one shard.
a_trie_that_is_none_of_ours(Config) ->
    Filters = [<<"f/", (integer_to_binary(N))/binary, "/+">> || N <- lists:seq(1, 450)],
    [ok = add_route(Filter, n1) || Filter <- Filters],
    ok = add_route(<<"$share/g/f/1/+">>, n2),
    #{<<"trie">> := Trie} = ?STORAGE:named_keys(Config),
    Plants = [
        ["SET", Trie, "foreign"],
        ["HSET", Trie, "root", "garbage"],
        ["HSET", Trie, "next", "garbage"]
    ],
    [a_trie_with(Config, Plant, Filters) || Plant <- Plants].

a_trie_with(Config, Plant, Filters) ->
    _ = ?STORAGE:cli(Config, Plant),
    {error, {partial, _}} = add_route(<<"f/new/", (list_to_binary(lists:last(Plant)))/binary, "/+">>, n1),
    ok = add_route(<<"f/new/+">>, n1),
    {ok, [{<<"f/new/+">>, n1}]} = match_in_redis(<<"f/new/x">>),
    {ok, Shared} = match_in_redis(<<"f/1/x">>),
    [{<<"$share/g/f/1/+">>, n2}, {<<"f/1/+">>, n1}] = lists:sort(Shared),
    [
        {ok, [{Filter, n1}]} = match_in_redis(binary:replace(Filter, <<"+">>, <<"x">>))
     || Filter <- tl(Filters)
    ],
    ok = emqx_redis_router:delete_route(<<"f/new/+">>, n1).

an_epoch_that_can_not_be_raised(Config) ->
    ok = save_session(<<"c">>, session),
    <<"OK">> = ?STORAGE:cli(Config, ["SET", ?STORAGE:key(Config, {epoch, <<"c">>}), "9223372036854775807"]),
    {error, {partial, _}} = claim_session(<<"c">>, #{}),
    {ok, #{epoch := 1, session := session}} = claim_session(<<"c">>, #{}).

a_page_is_full_after_keys_were_deleted_by_hand(Config) ->
    Messages = [#{id => integer_to_binary(N)} || N <- lists:seq(1, 2000)],
    ok = store_messages(<<"c">>, Messages),
    {Dead, Alive} = lists:split(1900, Messages),
    _ = ?STORAGE:cli(Config, ["DEL" | [?STORAGE:key(Config, {message, <<"c">>, Id}) || #{id := Id} <- Dead]]),
    Page = lists:sublist(Alive, 20),
    {ok, Page} = get_messages(<<"c">>, 0, 20).
