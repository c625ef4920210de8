%% The usual way of a broker in Erlang, for comparison: a trie of topic filters in ETS, a level at a time,
%% walked by the caller. Nothing keeps it true to anything.
-module(emqx_redis_bench_ets_trie).

-export([new/0, delete/1, add/3, match/2, memory/1]).

-export_type([trie/0]).

%% edges: {{Node, Level}, Child}; routes: {{Node, here | multi}, Filter, Destination}, several of a key.
-type trie() :: #{edges := ets:table(), routes := ets:table()}.

-define(ROOT, 0).

-spec new() -> trie().
new() ->
    Options = [public, {read_concurrency, true}],
    #{
        edges => ets:new(edges, [set | Options]),
        routes => ets:new(routes, [duplicate_bag | Options])
    }.

-spec delete(trie()) -> ok.
delete(#{edges := Edges, routes := Routes}) ->
    true = ets:delete(Edges),
    true = ets:delete(Routes),
    ok.

-spec add(trie(), binary(), node()) -> ok.
add(#{edges := Edges, routes := Routes}, Filter, Destination) ->
    {Node, End} = descend(Edges, ?ROOT, levels(Filter)),
    true = ets:insert(Routes, {{Node, End}, Filter, Destination}),
    ok.

descend(_Edges, Node, []) -> {Node, here};
descend(_Edges, Node, [<<"#">>]) -> {Node, multi};
descend(Edges, Node, [Level | Levels]) ->
    case ets:lookup(Edges, {Node, Level}) of
        [{_, Child}] ->
            descend(Edges, Child, Levels);
        [] ->
            Child = ets:info(Edges, size) + 1,
            true = ets:insert(Edges, {{Node, Level}, Child}),
            descend(Edges, Child, Levels)
    end.

%% Only for names that do not begin with `$'.
-spec match(trie(), binary()) -> [{binary(), node()}].
match(#{edges := Edges, routes := Routes}, Name) ->
    walk(Edges, Routes, ?ROOT, levels(Name), []).

walk(_Edges, Routes, Node, [], Found) ->
    collect(Routes, {Node, here}, collect(Routes, {Node, multi}, Found));
walk(Edges, Routes, Node, [Level | Levels], Found0) ->
    Found1 = collect(Routes, {Node, multi}, Found0),
    Found2 = follow(Edges, Routes, {Node, <<"+">>}, Levels, Found1),
    follow(Edges, Routes, {Node, Level}, Levels, Found2).

follow(Edges, Routes, Edge, Levels, Found) ->
    case ets:lookup(Edges, Edge) of
        [{_, Child}] -> walk(Edges, Routes, Child, Levels, Found);
        [] -> Found
    end.

collect(Routes, Key, Found) ->
    lists:foldl(fun({_, Filter, Node}, All) -> [{Filter, Node} | All] end, Found, ets:lookup(Routes, Key)).

%% In bytes.
-spec memory(trie()) -> non_neg_integer().
memory(#{edges := Edges, routes := Routes}) ->
    Words = ets:info(Edges, memory) + ets:info(Routes, memory),
    Words * erlang:system_info(wordsize).

levels(Topic) -> binary:split(Topic, <<"/">>, [global]).
