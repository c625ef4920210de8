%% Compares what came out with what must come out. Knows the input file's terms, and nothing of the library.
-module(emqx_redis_demo_judge).

-export([deliveries/3, order_by_publisher/2, routes/3, add/2, faults/1]).

-export_type([account/0]).

-type message() :: emqx_redis_demo_input:message().
-type account() :: #{
    %% Of the messages that must be there, how many are.
    found := non_neg_integer(),
    missing := non_neg_integer(),
    %% There although nobody was told `ok': the node died before it could say so.
    unacknowledged := non_neg_integer(),
    %% With another content than was published, to the last byte.
    different := non_neg_integer(),
    %% More than once, or to a client that has no subscription for it.
    surplus := non_neg_integer(),
    %% Ahead of one that was published before.
    disordered := non_neg_integer()
}.

%% What one client got: `All' is what was published for it, in order, `Ids' what of it must be there.
-spec deliveries([message()], sets:set(binary()), [message()]) -> account().
deliveries(All, Ids, Got) ->
    Expected = maps:from_list([
        {Id, {Place, Message}}
     || {Place, #{id := Id} = Message} <- lists:zip(lists:seq(1, length(All)), All)
    ]),
    GotIds = [id(Message) || Message <- Got],
    Known = [Id || Id <- GotIds, is_map_key(Id, Expected)],
    Distinct = sets:from_list(Known, [{version, 2}]),
    Found = sets:size(sets:intersection(Ids, Distinct)),
    #{
        found => Found,
        missing => sets:size(Ids) - Found,
        unacknowledged => sets:size(Distinct) - Found,
        different => length([Id || Message <- Got, Id <- [id(Message)], differs(Expected, Id, Message)]),
        surplus => length(GotIds) - sets:size(Distinct),
        disordered => descents([element(1, map_get(Id, Expected)) || Id <- Known])
    }.

id(#{id := Id}) -> Id;
id(_) -> none.

differs(Expected, Id, Message) ->
    case Expected of
        #{Id := {_Place, Message}} -> false;
        #{Id := _} -> true;
        #{} -> false
    end.

%% How often a lower or equal number follows a higher one. (Equal ones are surplus.)
descents([First | [Second | _] = Rest]) when Second < First -> 1 + descents(Rest);
descents([_ | Rest]) -> descents(Rest);
descents([]) -> 0.

%% Publishers that a client got in another order than they sent (MQTT 5.0 section 4.6), all rounds taken
%% together.
-spec order_by_publisher([message()], [message()]) -> non_neg_integer().
order_by_publisher(All, Got) ->
    Places = maps:from_list(lists:zip([Id || #{id := Id} <- All], lists:seq(1, length(All)))),
    ByPublisher = lists:foldr(
        fun
            (#{id := Id, from := From}, Map) when is_map_key(Id, Places) ->
                Place = map_get(Id, Places),
                maps:update_with(From, fun(Later) -> [Place | Later] end, [Place], Map);
            (_, Map) ->
                Map
        end,
        #{},
        Got
    ),
    length([From || {From, Sent} <- maps:to_list(ByPublisher), descents(Sent) > 0]).

%% Topics whose routes are not exactly those of the filters that match, all to this node.
-spec routes(#{binary() => [binary()]}, #{binary() => [{binary(), node()}]}, node()) -> non_neg_integer().
routes(Expected, Got, Node) ->
    length([
        Topic
     || {Topic, Filters} <- maps:to_list(Expected),
        lists:sort([{Filter, Node} || Filter <- Filters]) =/= lists:sort(maps:get(Topic, Got, []))
    ]).

-spec add(account(), account()) -> account().
add(A, B) ->
    maps:map(fun(Key, Number) -> Number + map_get(Key, B) end, A).

%% What must be none.
-spec faults(account()) -> [{non_neg_integer(), string()}].
faults(#{missing := Missing, disordered := Disordered, different := Different, surplus := Surplus}) ->
    [
        {Missing, "missing"},
        {Disordered, "out of order"},
        {Different, "different in content"},
        {Surplus, "surplus"}
    ].
