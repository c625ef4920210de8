%% The routes of one writer: nobody else has filters with its name in them. As in emqx_redis_fault_client, an
%% item is a route, from a filter to a node, and what may hold of it is kept.
-module(emqx_redis_fault_routes).

-export([new/1, step/2, verify/2, history/1, certain/1]).

-export_type([routes/0]).

-type route() :: {Filter :: binary(), node()}.
-opaque routes() :: #{
    name := binary(),
    %% What is not here must not be there.
    routes := #{route() => certain | maybe},
    history := emqx_redis_fault_call:history()
}.
-type context() :: emqx_redis_fault_call:context().

-define(HISTORY, 40).
-define(NODES, ['emqx@n1', 'emqx@n2', 'emqx@n3']).
-define(KINDS, [exact, wildcards, parent, leading, shared]).
-define(NUMBERS, 3).

-spec new(binary()) -> routes().
new(Name) ->
    #{name => Name, routes => #{}, history => []}.

-spec history(routes()) -> emqx_redis_fault_call:history().
history(#{history := History}) -> History.

-spec step(context(), routes()) -> routes().
step(Context, Routes) ->
    Kind = pick(?KINDS),
    Number = rand:uniform(?NUMBERS),
    case rand:uniform(5) of
        1 -> match(Context, Routes, Kind, Number);
        2 -> delete(Context, Routes, {filter(Routes, Kind, Number), pick(?NODES)});
        3 -> delete(Context, Routes, {filter(Routes, Kind, Number), pick(?NODES)});
        _ -> add(Context, Routes, {filter(Routes, Kind, Number), pick(?NODES)})
    end.

%% When all is healthy and nobody writes: reads all routes, and answers the filters that have one.
-spec verify(context(), routes()) -> {[binary()], routes()}.
verify(Context, Routes) ->
    Topics = [{Kind, Number} || Kind <- ?KINDS, Number <- lists:seq(1, ?NUMBERS)],
    lists:foldl(
        fun({Kind, Number}, {Filters, Before}) ->
            {Found, After} = matched(Context, Before, Kind, Number, final),
            {[filter(Routes, Kind, Number) || Found =/= []] ++ Filters, After}
        end,
        {[], Routes},
        Topics
    ).

%% For sabotage: the routes that must be there.
-spec certain(routes()) -> [route()].
certain(#{routes := Routes}) ->
    lists:sort([Route || {Route, certain} <- maps:to_list(Routes)]).

%% Internal

%% Filters of one number match the same topic or none of it, but those of other numbers never.
filter(#{name := Name}, Kind, Number) ->
    N = integer_to_binary(Number),
    case Kind of
        exact -> <<Name/binary, "/", N/binary, "/x">>;
        wildcards -> <<Name/binary, "/", N/binary, "/+/y/#">>;
        parent -> <<Name/binary, "/", N/binary, "/z/#">>;
        leading -> <<"+/", Name/binary, "/", N/binary>>;
        shared -> <<"$share/g/", Name/binary, "/", N/binary, "/+/s">>
    end.

%% A topic that filters of this kind and number match, and no others.
topic(#{name := Name}, Kind, Number) ->
    N = integer_to_binary(Number),
    case Kind of
        exact -> <<Name/binary, "/", N/binary, "/x">>;
        wildcards -> <<Name/binary, "/", N/binary, "/any/y">>;
        parent -> <<Name/binary, "/", N/binary, "/z">>;
        leading -> <<"any/", Name/binary, "/", N/binary>>;
        shared -> <<Name/binary, "/", N/binary, "/any/s">>
    end.

add(Context, Routes, Route = {Filter, Node}) ->
    Called = emqx_redis_fault_call:call(Context, {add_route, Filter, Node}, #{}, fun() ->
        emqx_redis_router:add_route(Filter, Node)
    end),
    changed(Called, Routes, fun
        (done, Map) -> Map#{Route => certain};
        (maybe, Map) -> maps:merge(#{Route => maybe}, Map)
    end).

delete(Context, Routes, Route = {Filter, Node}) ->
    Called = emqx_redis_fault_call:call(Context, {delete_route, Filter, Node}, #{}, fun() ->
        emqx_redis_router:delete_route(Filter, Node)
    end),
    changed(Called, Routes, fun
        (done, Map) -> maps:remove(Route, Map);
        (maybe, Map) when is_map_key(Route, Map) -> Map#{Route := maybe};
        (maybe, Map) -> Map
    end).

changed({no, _Answer, Entry}, Routes, _Change) ->
    tell(Entry, Routes);
changed({Class, _Answer, Entry}, Routes = #{routes := Map}, Change) ->
    tell(Entry, Routes#{routes := Change(Class, Map)}).

match(Context, Routes, Kind, Number) ->
    {_Found, Matched} = matched(Context, Routes, Kind, Number, passing),
    Matched.

matched(Context, Routes, Kind, Number, When) ->
    Topic = topic(Routes, Kind, Number),
    Match =
        case When of
            passing -> fun() -> emqx_redis_router:match_routes(Topic) end;
            final -> fun() -> match_in_redis(Topic) end
        end,
    {Class, Answer, Entry} = emqx_redis_fault_call:call(Context, {match, Topic}, #{}, Match),
    Told = tell(Entry, Routes),
    case {Class, Answer, When} of
        {done, {ok, Found}, _} ->
            Seen = see(Context, Told, filter(Routes, Kind, Number), Found, When),
            When =:= passing orelse is_in_memory(Topic, Found) orelse
                violation({memory_differs, Topic, Found}, Told),
            {Found, Seen};
        {_, _, passing} -> {[], Told};
        {_, _, final} -> violation({not_readable, Answer}, Told)
    end.

%% In the end the table itself counts, and what is in memory must be the same.
match_in_redis(Topic) ->
    Request = emqx_redis_router:match_routes_async(Topic),
    {reply, Answer} = emqx_redis_storage:receive_response(Request, 30000),
    Answer.

is_in_memory(Topic, Routes) ->
    {ok, InMemory} = emqx_redis_router:match_routes(Topic),
    lists:sort(InMemory) =:= lists:sort(Routes).

see(#{strict := Strict, tally := Tally}, Told = #{routes := Map}, Filter, Found, When) ->
    Found -- lists:usort(Found) =:= [] orelse violation({route_twice, Found}, Told),
    [violation({other_filter, Other}, Told) || {Other, _} <- Found, real(Other) =/= real(Filter)],
    Missing = [Route || {Route = {F, _}, certain} <- maps:to_list(Map), F =:= Filter] -- named(Filter, Found),
    Back = [Route || Route <- named(Filter, Found), not is_map_key(Route, Map)],
    case {Missing, Back} of
        {[], []} ->
            Told;
        _ when Strict ->
            violation({wrong_routes, {missing, Missing}, {back, Back}}, Told);
        _ when When =:= passing ->
            Told;
        _ ->
            ok = emqx_redis_fault_tally:lose(Tally, routes, length(Missing)),
            ok = emqx_redis_fault_tally:lose(Tally, route_deletions, length(Back)),
            Told
    end.

%% A node's name comes back as it was given.
named(Filter, Found) ->
    [{Filter, Node} || {_, Node} <- Found].

%% Whether a shared filter is answered with its group is for other tests.
real(<<"$share/g/", Filter/binary>>) -> Filter;
real(Filter) -> Filter.

pick(List) ->
    lists:nth(rand:uniform(length(List)), List).

tell(Entry, Routes = #{history := History}) when length(History) < 2 * ?HISTORY ->
    Routes#{history := [Entry | History]};
tell(Entry, Routes = #{history := History}) ->
    Routes#{history := [Entry | lists:sublist(History, ?HISTORY)]}.

-spec violation(term(), routes()) -> no_return().
violation(What, Routes) ->
    throw({violation, What, Routes}).
