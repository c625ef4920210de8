%% The way of `emqx_redis_fsck' through the whole keyspace: SCAN on each server, and what the keys hold, in
%% slices of a few hundred.
-module(emqx_redis_fsck_walk).

-export([servers/1, scan/3]).

-export_type([server/0]).

%% Where SCAN is to go: `any', or a key in a slot of a cluster's master, with the slots that it has.
-type server() :: any | {Key :: binary(), Slots :: [tuple()]}.
-type layout() :: emqx_redis_fsck_keys:layout().
-type seen() :: emqx_redis_fsck_look:seen().

-import(emqx_redis_fsck_keys, [key/2, prefix/1]).
-import(emqx_redis_fsck_look, [look/3, count/3, suspect/2]).
-import(emqx_redis_fsck_redis, [ask/1, ask_one/1, transaction/1]).

-define(SLICE, 250).

-spec servers(layout()) -> [server(), ...].
servers(L) ->
    case emqx_redis_fsck_keys:is_clustered(L) of
        true -> masters(L);
        false -> [any]
    end.

masters(L) ->
    Slots = ask_one([<<"CLUSTER">>, <<"SLOTS">>]),
    Ranges = [{Id, First, Last} || [First, Last, [_Host, _Port, Id | _] | _] <- Slots],
    ByMaster = maps:groups_from_list(fun({Id, _, _}) -> Id end, lists:sort(Ranges)),
    [
        {<<(prefix(L))/binary, (emqx_redis_fsck_keys:slot_place(L, First))/binary>>, Own}
     || {_Id, [{_, First, _} | _] = Own} <- lists:sort(maps:to_list(ByMaster))
    ].

%% Looks at all that the server has.
-spec scan(layout(), server(), seen()) -> seen().
scan(L, Server, Seen) -> scan(L, Server, <<"0">>, Seen).

scan(L, Server, Cursor, Seen) ->
    [Next, Keys] = scan_slice(prefix(L), Server, Cursor),
    NewSeen = look_at_keys(L, Keys, Seen),
    case Next of
        <<"0">> -> NewSeen;
        _ -> scan(L, Server, Next, NewSeen)
    end.

scan_slice(Prefix, Server, Cursor) ->
    Match = [[<<"MATCH">>, <<Prefix/binary, "*">>] || Prefix =/= <<>>],
    Scan = [<<"SCAN">>, Cursor, <<"COUNT">>, ?SLICE | lists:append(Match)],
    case Server of
        any ->
            ask_one(Scan);
        {Key, _Slots} ->
            %% A command without keys goes to any master; one beside this, to the owner of the key.
            [_, Slice] = transaction([[<<"EXISTS">>, Key], Scan]),
            Slice
    end.

look_at_keys(L, Keys, Seen) ->
    Parsed = [{Key, emqx_redis_fsck_keys:parse(L, Key)} || Key <- Keys],
    Ours = [{Key, Item, Type} || {Key, {Item, Type}} <- Parsed],
    Types = ask([[<<"TYPE">>, Key] || {Key, _, _} <- Ours]),
    {Items, Wrong} = lists:foldl(fun by_type/2, {[], []}, lists:zip(Ours, Types)),
    Counts = [{other_keys, length(Keys) - length(Ours)}, {keys, length(Ours)}] ++
        [{sort_of(Item), 1} || Item <- Items],
    Counted = lists:foldl(fun({Sort, More}, Acc) -> count(Sort, More, Acc) end, Seen, Counts),
    Suspected = suspect([{wrong_type, Item} || Item <- Wrong], Counted),
    lists:foldl(fun(Item, Acc) -> look_at_members(L, Item, Acc) end, look(L, Items, Suspected), Items).

by_type({_, <<"none">>}, Acc) -> Acc;
by_type({{Key, temporary, _}, _}, {Items, Wrong}) -> {[{key, Key} | Items], Wrong};
by_type({{_, Item, Type}, Type}, {Items, Wrong}) -> {[Item | Items], Wrong};
by_type({{Key, _, Type}, _}, {Items, Wrong}) -> {Items, [{typed, Key, Type} | Wrong]}.

sort_of({session, _}) -> sessions;
sort_of({message, _, _}) -> messages;
sort_of({queue, _}) -> queues;
sort_of({psub, _, _}) -> filters;
sort_of({route, _, _}) -> filters;
sort_of(_) -> others.

%%--------------------------------------------------------------------
%% What a key holds that says something about other keys
%%--------------------------------------------------------------------

look_at_members(L, Item, Seen) ->
    case members_of(L, Item) of
        none -> Seen;
        {Command, ToItem} -> look_at_members(L, [Command, key(L, Item)], <<"0">>, ToItem, Seen)
    end.

look_at_members(L, [Command, Key] = Scan, Cursor, ToItem, Seen) ->
    case ask([[Command, Key, Cursor, <<"COUNT">>, ?SLICE]]) of
        [[Next, Slice]] ->
            NewSeen = look(L, [ToItem(Member) || Member <- names(Command, Slice)], Seen),
            case Next of
                <<"0">> -> NewSeen;
                _ -> look_at_members(L, Scan, Next, ToItem, NewSeen)
            end;
        %% It was replaced since its type was seen.
        [undefined] ->
            Seen
    end.

names(<<"SSCAN">>, Members) -> Members;
names(_, [Name, _Value | Rest]) -> [Name | names(pairs, Rest)];
names(_, []) -> [].

members_of(_L, {psub, _Place, Filter}) ->
    {<<"HSCAN">>, fun(Client) -> {subscription, Filter, Client} end};
members_of(_L, {route, Place, Filter}) ->
    case emqx_redis_fsck_keys:is_wildcard(Filter) of
        true -> {<<"SSCAN">>, fun(Node) -> {wildcard, Place, Filter, Node} end};
        false -> none
    end;
members_of(_L, {trie, Place, _Real}) ->
    {<<"SSCAN">>, fun(Member) -> route_member(Place, Member) end};
members_of(_L, {ptrie, Place, _Real}) ->
    {<<"SSCAN">>, fun(Filter) -> {psub, Place, Filter} end};
members_of(_L, {queue, Client}) ->
    {<<"ZSCAN">>, fun(Id) -> {message_member, Client, Id} end};
members_of(L, {{index, Which}, Place}) ->
    {<<"ZSCAN">>, fun(Member) -> index_member(L, Which, Place, Member) end};
members_of(_L, _) ->
    none.

index_member(_L, Which, _Place, Client) when Which =:= sessions; Which =:= sessions_expiry ->
    {session_member, Client};
index_member(L, Which, Place, Member) when Which =:= messages; Which =:= messages_expiry ->
    case emqx_redis_fsck_keys:split_member(L, Member) of
        {Client, Id} -> {message_member, Client, Id};
        error -> {unreadable, key(L, {{index, Which}, Place})}
    end;
index_member(_L, routes, Place, Filter) ->
    {route, Place, Filter};
index_member(_L, psubs, Place, Filter) ->
    {psub, Place, Filter};
index_member(_L, wildcards, Place, Member) ->
    route_member(Place, Member).

route_member(Place, Member) ->
    case emqx_redis_fsck_keys:split_route_member(Member) of
        {Filter, Node} -> {wildcard, Place, Filter, Node};
        error -> {unreadable, Member}
    end.
