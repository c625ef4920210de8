%% The names of keys, as `emqx_redis_fsck' builds and reads them: docs/data-layout.md, and lib/src/keys.rs for
%% the storage itself. No other module of it spells a key.
-module(emqx_redis_fsck_keys).

-export([layout/0, prefix/1, is_clustered/1, keeps_message_index/1]).
-export([key/2, parse/2, score/4]).
-export([slot_place/2, client_place/2, filter_place/2]).
-export([member/3, split_member/2, route_member/2, split_route_member/1]).
-export([is_wildcard/1, real_filter/1]).

-export_type([layout/0, place/0, client/0, filter/0]).

-record(layout, {
    prefix :: binary(),
    %% In a cluster the tag of each slot, and the number of route shards.
    tags :: tuple() | none,
    shards = 0 :: non_neg_integer(),
    keeps_index :: boolean()
}).

-opaque layout() :: #layout{}.
%% What stands behind the word in a slot's keys: nothing in the plain layout.
-type place() :: binary().
-type client() :: binary().
-type filter() :: binary().
-type index() ::
    {index, sessions | sessions_expiry | messages | messages_expiry | routes | psubs | wildcards}.
-type table() :: trie | ptrie.
-type name() ::
    {session | epoch | queue, client()}
    | {message, client(), Id :: binary()}
    | {index(), place()}
    | {trie_nodes, table(), place()}
    | {route | psub | table(), place(), filter()}.

%% Each: the word that it begins with, what it is, its type. Longer words stand before their beginnings.
key_table() ->
    [
        {<<"session">>, session, <<"hash">>},
        {<<"epoch">>, epoch, <<"string">>},
        {<<"msgq">>, queue, <<"zset">>},
        {<<"msg">>, message, <<"string">>},
        {<<"sent">>, temporary, <<"string">>},
        {<<"sync:sessions">>, {index, sessions}, <<"zset">>},
        {<<"expiry:sessions">>, {index, sessions_expiry}, <<"zset">>},
        {<<"sync:messages">>, {index, messages}, <<"zset">>},
        {<<"expiry:messages">>, {index, messages_expiry}, <<"zset">>},
        {<<"sync:routes">>, {index, routes}, <<"zset">>},
        {<<"sync:psubs">>, {index, psubs}, <<"zset">>},
        {<<"route:wildcards">>, {index, wildcards}, <<"zset">>},
        {<<"route">>, route, <<"set">>},
        {<<"trie">>, trie, <<"set">>},
        {<<"psub">>, psub, <<"hash">>},
        {<<"ptrie">>, ptrie, <<"set">>},
        {<<"feed">>, shared, <<"stream">>},
        {<<"leases">>, shared, <<"hash">>},
        {<<"meta">>, shared, <<"hash">>},
        {<<"durable">>, temporary, <<"string">>},
        {<<"foreign">>, temporary, any}
    ].

word(What) ->
    {Word, What, _Type} = lists:keyfind(What, 2, key_table()),
    Word.

%%--------------------------------------------------------------------
%% The layout
%%--------------------------------------------------------------------

%% Of the storage that runs; asks Redis in a cluster.
-spec layout() -> layout().
layout() ->
    case emqx_redis_storage:config() of
        #{key_prefix := Prefix, redis := #{type := Type}, persistence := #{message_index := KeepsIndex}} ->
            Plain = #layout{prefix = Prefix, tags = none, keeps_index = KeepsIndex},
            case Type of
                <<"cluster">> -> clustered(Plain);
                _ -> Plain
            end;
        _ ->
            throw({failed, stopped})
    end.

clustered(Plain) ->
    case emqx_redis_fsck_redis:ask_one([<<"HGET">>, join(Plain, [<<"meta">>]), <<"route_shards">>]) of
        undefined ->
            throw({failed, {unavailable, connecting}});
        Shards ->
            Plain#layout{tags = emqx_redis_fsck_slots:tags(), shards = binary_to_integer(Shards)}
    end.

-spec prefix(layout()) -> binary().
prefix(#layout{prefix = Prefix}) -> Prefix.

-spec is_clustered(layout()) -> boolean().
is_clustered(#layout{tags = Tags}) -> Tags =/= none.

-spec keeps_message_index(layout()) -> boolean().
keeps_message_index(#layout{keeps_index = KeepsIndex}) -> KeepsIndex.

%%--------------------------------------------------------------------
%% Building names
%%--------------------------------------------------------------------

-spec key(layout(), name()) -> binary().
key(L, {What, Client}) when What =:= session; What =:= epoch; What =:= queue ->
    join(L, [word(What), ":", client(L, Client)]);
key(L, {message, Client, Id}) -> join(L, [word(message), ":", member(L, Client, Id)]);
key(L, {{index, _} = Index, Place}) -> join(L, [word(Index), Place]);
key(L, {route, <<>>, <<"wildcards">>}) -> join(L, [word(route), ":%77ildcards"]);
key(L, {route, <<>>, Filter}) -> join(L, [word(route), ":", encode(Filter, "%")]);
key(L, {trie_nodes, Table, Place}) -> join(L, [word(Table), Place]);
key(L, {What, Place, Filter}) -> join(L, [word(What), Place, ":", Filter]).

join(#layout{prefix = Prefix}, Parts) -> iolist_to_binary([Prefix | Parts]).

%% The command that asks for a member of an index.
-spec score(layout(), index(), place(), binary()) -> [binary()].
score(L, Index, Place, Member) -> [<<"ZSCORE">>, key(L, {Index, Place}), Member].

%% As it stands in keys of its own.
client(#layout{tags = none}, Client) -> Client;
client(_, <<>>) -> <<"{%}">>;
client(_, Client) -> <<"{", (encode(Client, "%}"))/binary, "}">>.

%% Of the messages' indexes.
-spec member(layout(), client(), binary()) -> binary().
member(#layout{tags = none}, Client, Id) -> <<(encode(Client, "%:"))/binary, ":", Id/binary>>;
member(L, Client, Id) -> <<(client(L, Client))/binary, ":", Id/binary>>.

%% Of the wildcard routes' index and of their trie's sets.
-spec route_member(filter(), binary()) -> binary().
route_member(Filter, Node) -> <<Filter/binary, "|", Node/binary>>.

-spec slot_place(layout(), non_neg_integer()) -> place().
slot_place(#layout{tags = Tags}, Slot) -> <<":{", (element(Slot + 1, Tags))/binary, "}">>.

-spec client_place(layout(), client()) -> place().
client_place(#layout{tags = none}, _Client) ->
    <<>>;
client_place(L, Client) ->
    Tagged = client(L, Client),
    slot_place(L, emqx_redis_fsck_slots:of_tag(binary:part(Tagged, 1, byte_size(Tagged) - 2))).

%% See lib/src/keys.rs, shard and shard_slot.
-spec filter_place(layout(), filter()) -> place().
filter_place(#layout{tags = none}, _Filter) ->
    <<>>;
filter_place(#layout{shards = Shards} = L, Filter) ->
    Slots = emqx_redis_fsck_slots:count(),
    case hd(binary:split(real_filter(Filter), <<"/">>)) of
        Wild when Wild =:= <<"+">>; Wild =:= <<"#">> ->
            slot_place(L, Slots div 2 + Shards rem 2);
        First ->
            Shard = emqx_redis_fsck_slots:crc16(First) rem Shards,
            slot_place(L, (2 * Shard + 1) * Slots div (2 * Shards))
    end.

%%--------------------------------------------------------------------
%% Reading names
%%--------------------------------------------------------------------

%% What a key is, and the type that it should have: `other' where it is none of ours.
-spec parse(layout(), binary()) -> {name() | shared | temporary, Type :: binary() | any} | other.
parse(#layout{prefix = Prefix} = L, Key) ->
    Size = byte_size(Prefix),
    case Key of
        <<Prefix:Size/binary, Rest/binary>> -> parse(L, Rest, key_table());
        _ -> other
    end.

parse(_L, _Rest, []) ->
    other;
parse(L, Rest, [{Word, What, Type} | Table]) ->
    Size = byte_size(Word),
    case Rest of
        <<Word:Size/binary, Behind/binary>> when Behind =:= <<>>; binary_part(Behind, 0, 1) =:= <<":">> ->
            case parse_behind(L, What, Behind) of
                other -> parse(L, Rest, Table);
                trie_nodes -> {shared, <<"hash">>};
                Item -> {Item, Type}
            end;
        _ ->
            parse(L, Rest, Table)
    end.

parse_behind(_L, What, _) when What =:= shared; What =:= temporary ->
    What;
parse_behind(L, message, <<":", Member/binary>>) ->
    case split_member(L, Member) of
        {Client, Id} -> {message, Client, Id};
        error -> other
    end;
parse_behind(L, What, <<":", Encoded/binary>>) when What =:= session; What =:= epoch; What =:= queue ->
    case client_of(L, Encoded) of
        {ok, Client} -> {What, Client};
        error -> other
    end;
parse_behind(L, What, Behind) ->
    case {split_place(L, Behind), What} of
        {{Place, <<>>}, {index, _}} -> {What, Place};
        {{_Place, <<>>}, _} when What =:= trie; What =:= ptrie -> trie_nodes;
        {{Place, <<":", Filter/binary>>}, _} when is_atom(What) ->
            {What, Place, filter_of(What, Place, Filter)};
        _ -> other
    end.

split_place(#layout{tags = none}, Behind) -> {<<>>, Behind};
split_place(_, Behind) ->
    case re:run(Behind, "^:{[0-9a-z]+}", [{capture, first, index}]) of
        {match, [{0, Size}]} -> split_binary(Behind, Size);
        nomatch -> other
    end.

filter_of(route, <<>>, Filter) -> decode(Filter, [{<<"%77">>, <<"w">>}, {<<"%25">>, <<"%">>}]);
filter_of(_, _, Filter) -> Filter.

client_of(#layout{tags = none}, Client) -> {ok, Client};
client_of(_, <<"{%}">>) -> {ok, <<>>};
client_of(_, Tagged) when byte_size(Tagged) > 2, binary_part(Tagged, 0, 1) =:= <<"{">> ->
    case binary:split(Tagged, <<"}">>) of
        [<<"{", Encoded/binary>>, <<>>] ->
            {ok, decode(Encoded, [{<<"%7D">>, <<"}">>}, {<<"%25">>, <<"%">>}])};
        _ -> error
    end;
client_of(_, _) -> error.

%% Client and id of a member of the messages' indexes.
-spec split_member(layout(), binary()) -> {client(), Id :: binary()} | error.
split_member(#layout{tags = none}, Member) ->
    case binary:split(Member, <<":">>) of
        [Client, Id] -> {decode(Client, [{<<"%3A">>, <<":">>}, {<<"%25">>, <<"%">>}]), Id};
        [_] -> error
    end;
split_member(L, Member) ->
    case binary:split(Member, <<"}:">>) of
        [Tag, Id] ->
            case client_of(L, <<Tag/binary, "}">>) of
                {ok, Client} -> {Client, Id};
                error -> error
            end;
        [_] ->
            error
    end.

%% No node's name holds the bar, though a filter may.
-spec split_route_member(binary()) -> {filter(), Node :: binary()} | error.
split_route_member(Member) ->
    case lists:reverse(binary:matches(Member, <<"|">>)) of
        [{At, 1} | _] ->
            <<Filter:At/binary, "|", Node/binary>> = Member,
            {Filter, Node};
        [] ->
            error
    end.

encode(Name, Bytes) ->
    IsSpecial = fun(Byte) -> lists:member(Byte, Bytes) end,
    << <<(case IsSpecial(B) of true -> <<$%, (binary:encode_hex(<<B>>))/binary>>; false -> <<B>> end)/binary>>
       || <<B>> <= Name >>.

decode(Name, Pairs) ->
    lists:foldl(fun({From, To}, Done) -> binary:replace(Done, From, To, [global]) end, Name, Pairs).

%%--------------------------------------------------------------------
%% Filters
%%--------------------------------------------------------------------

%% Whether it stands in a trie: shared filters do, too.
-spec is_wildcard(filter()) -> boolean().
is_wildcard(Filter) ->
    real_filter(Filter) =/= Filter orelse binary:match(Filter, [<<"+">>, <<"#">>]) =/= nomatch.

%% Without `$share/Group/' before it.
-spec real_filter(filter()) -> filter().
real_filter(<<"$share/", Rest/binary>> = Filter) ->
    case binary:split(Rest, <<"/">>) of
        [_Group, Real] -> Real;
        [_] -> Filter
    end;
real_filter(Filter) ->
    Filter.
