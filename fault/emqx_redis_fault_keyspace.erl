%% Walks every key of every master, when nobody writes: whether each belongs to something, is named by the
%% indexes, goes away by itself, and lies where its slot is.
-module(emqx_redis_fault_keyspace).

-export([problems/1, tag/2]).

-define(TOPOLOGY, emqx_redis_fault_topology).
-define(KEYS, emqx_redis_fault_keys).
-define(SERVER, emqx_redis_test_server).
-define(CLIENT, emqx_redis_test_client).
-define(CLUSTER, emqx_redis_test_cluster).
-define(PATIENCE, 30000).

-type contents() :: #{
    kind := emqx_redis_fault_topology:kind(),
    %% Milliseconds to live, -1 for ever.
    ttls := #{binary() => integer()},
    %% Each sorted set's members.
    members := #{binary() => #{binary() => []}},
    %% The same of the indexes alone, by slot, which is 0 without a cluster.
    indexes := #{{atom(), 0..16383} => #{binary() => []}}
}.

-spec problems(?TOPOLOGY:topology()) -> {Keys :: non_neg_integer(), [term()]}.
problems(Topology) ->
    Kind = ?TOPOLOGY:kind(Topology),
    {Numbers, Problems} = lists:unzip([
        master_problems(Kind, Topology, Master)
     || Master <- ?TOPOLOGY:masters(Topology)
    ]),
    {lists:sum(Numbers), lists:append(Problems)}.

%% The tag of the indexes in which a client stands.
-spec tag(?TOPOLOGY:topology(), binary()) -> binary().
tag(Topology, Client) ->
    case ?TOPOLOGY:kind(Topology) of
        cluster ->
            Slot = ?CLUSTER:key_slot(?KEYS:client_key(cluster, session, Client)),
            Owner = ?CLUSTER:owner(?TOPOLOGY:handle(Topology), Slot),
            [Tag | _] = [
                Tag
             || Key <- ?SERVER:cli(Owner, ["KEYS", "sync:sessions:*"], ?PATIENCE),
                {index, sessions, Tag} <- [?KEYS:parse(cluster, Key)],
                ?CLUSTER:key_slot(Key) =:= Slot
            ],
            Tag;
        _ ->
            <<>>
    end.

%% Internal

master_problems(Kind, Topology, Master) ->
    Connection = ?SERVER:connect(Master),
    try
        Keys = ?CLIENT:command(Connection, ["KEYS", "*"], ?PATIENCE),
        Ttls = maps:from_list(lists:zip(Keys, ask(Connection, [["PTTL", Key] || Key <- Keys]))),
        Sorted = [Key || Key <- Keys, is_sorted_set(Kind, Key)],
        Listed = ask(Connection, [["ZRANGE", Key, 0, -1] || Key <- Sorted]),
        Members = maps:from_list(lists:zip(Sorted, [maps:from_keys(List, []) || List <- Listed])),
        Indexes = maps:from_list([
            {{Index, slot(Kind, Key)}, Set}
         || {Key, Set} <- maps:to_list(Members), {index, Index, _Tag} <- [?KEYS:parse(Kind, Key)]
        ]),
        Contents = #{kind => Kind, ttls => Ttls, members => Members, indexes => Indexes},
        Found = lists:append([key_problems(Key, Contents) || Key <- Keys]),
        {length(Keys), Found ++ misplaced(Kind, Topology, Master, Keys)}
    after
        ?CLIENT:close(Connection)
    end.

ask(_Connection, []) ->
    [];
ask(Connection, Commands) ->
    {Some, Rest} = lists:split(min(1000, length(Commands)), Commands),
    ?CLIENT:pipeline(Connection, Some) ++ ask(Connection, Rest).

is_sorted_set(Kind, Key) ->
    case ?KEYS:parse(Kind, Key) of
        {queue, _} -> true;
        {index, _, _} -> true;
        {route_index, _} -> true;
        {wildcards, _} -> true;
        _ -> false
    end.

-spec key_problems(binary(), contents()) -> [term()].
key_problems(Key, Contents = #{kind := Kind, ttls := Ttls}) ->
    Ttl = map_get(Key, Ttls),
    case ?KEYS:parse(Kind, Key) of
        {session, Client} ->
            [{lives_for_ever, Key} || Ttl < 0] ++
                [{session_not_in, Index, Key} || Index <- [sessions, session_expiry],
                    not is_indexed(Index, Key, Client, Contents)];
        {message, Client, Id} ->
            Member = iolist_to_binary(?KEYS:message_member(Kind, Client, Id)),
            Queue = iolist_to_binary(?KEYS:client_key(Kind, queue, Client)),
            [{lives_for_ever, Key} || Ttl < 0] ++
                [{message_not_in_queue, Key} || not is_map_key(Id, members(Queue, Contents))] ++
                [{message_not_in, Index, Key} || Index <- [messages, message_expiry],
                    not is_indexed(Index, Key, Member, Contents)];
        {epoch, _Client} ->
            [{lives_for_ever, Key} || Ttl < 0];
        {queue, Client} ->
            [
                {queue_without_message, Key, Id}
             || Id <- maps:keys(members(Key, Contents)),
                not is_map_key(iolist_to_binary(?KEYS:message_key(Kind, Client, Id)), Ttls)
            ];
        {index, Index, _Tag} ->
            [
                {index_without_item, Key, Member}
             || Member <- maps:keys(members(Key, Contents)), not is_map_key(item(Kind, Index, Member), Ttls)
            ];
        {route, Tag, Filter} ->
            [
                {route_not_in_index, Key}
             || not is_map_key(Filter, members(<<"sync:routes", Tag/binary>>, Contents))
            ];
        {route_index, Tag} ->
            [
                {route_index_without_route, Key, Filter}
             || Filter <- maps:keys(members(Key, Contents)),
                not is_map_key(?KEYS:route_key(Kind, Tag, Filter), Ttls)
            ];
        {wildcards, Tag} ->
            [
                {wildcard_without_route, Key, Member}
             || Member <- maps:keys(members(Key, Contents)),
                [Filter, _Node] <- [binary:split(Member, <<"|">>)],
                not is_map_key(?KEYS:route_key(Kind, Tag, Filter), Ttls)
            ];
        unknown ->
            [{unknown_key, Key}];
        _ ->
            []
    end.

is_indexed(Index, Key, Member, #{kind := Kind, indexes := Indexes}) ->
    is_map_key(Member, maps:get({Index, slot(Kind, Key)}, Indexes, #{})).

slot(cluster, Key) -> ?CLUSTER:key_slot(Key);
slot(_Kind, _Key) -> 0.

item(Kind, Index, Client) when Index =:= sessions; Index =:= session_expiry ->
    iolist_to_binary(?KEYS:client_key(Kind, session, Client));
item(_Kind, _Index, Member) ->
    <<"msg:", Member/binary>>.

members(Key, #{members := Members}) ->
    maps:get(Key, Members, #{}).

misplaced(cluster, Topology, Master, Keys) ->
    Slots = sets:from_list(?CLUSTER:slots(?TOPOLOGY:handle(Topology), Master), [{version, 2}]),
    [{key_in_a_foreign_slot, Key} || Key <- Keys, not sets:is_element(?CLUSTER:key_slot(Key), Slots)];
misplaced(_Kind, _Topology, _Master, _Keys) ->
    [].
