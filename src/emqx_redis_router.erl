%% Routes: which nodes have subscribers to a topic filter (MQTT 5.0 section 4.7), in Redis.
%%
%% A filter is exact (`a/b'), has wildcards (`a/+/#') or is shared (`$share/Group/a/b', MQTT 5.0 section
%% 4.8.2). What is no valid filter or topic name answers `{error, {invalid_topic, Reason}}'.
%%
%% Each function has a form `..._async' with the same arguments, which answers a request id for
%% `emqx_redis_storage:receive_response/2', `check_response/2' and `cancel/1'.
-module(emqx_redis_router).

-export([add_route/2, add_route_async/2]).
-export([delete_route/2, delete_route_async/2]).
-export([match_routes/1, match_routes_async/1]).
-export([topics/0, topics_async/0]).

-type filter() :: binary().
-type error() :: {error, emqx_redis_storage:error_reason()}.
-type request_id() :: emqx_redis_request:request_id().

%% Routes what matches `Filter' to `Node'. Adding a route that is there changes nothing.
-spec add_route(filter(), node()) -> ok | error().
add_route(Filter, Node) -> call(change(add_route, Filter, Node)).

-spec add_route_async(filter(), node()) -> request_id().
add_route_async(Filter, Node) -> async(change(add_route, Filter, Node)).

%% Takes the route back. Deleting a route that is not there changes nothing; with its last node a filter
%% leaves every index.
-spec delete_route(filter(), node()) -> ok | error().
delete_route(Filter, Node) -> call(change(delete_route, Filter, Node)).

-spec delete_route_async(filter(), node()) -> request_id().
delete_route_async(Filter, Node) -> async(change(delete_route, Filter, Node)).

change(Change, Filter, Node) ->
    {Change, emqx_redis_args:topic(1, Filter), emqx_redis_args:node_name(2, Node)}.

%% The routes whose filters match the topic name, each once, in no particular order. A match costs the
%% levels of the name, however many filters there are.
-spec match_routes(binary()) -> {ok, [{filter(), node()}]} | error().
match_routes(Topic) -> call(match(Topic)).

-spec match_routes_async(binary()) -> request_id().
match_routes_async(Topic) -> async(match(Topic)).

match(Topic) ->
    {match_routes, emqx_redis_args:topic(1, Topic)}.

%% Every filter that has a route.
-spec topics() -> {ok, [filter()]} | error().
topics() -> call({topics}).

-spec topics_async() -> request_id().
topics_async() -> async({topics}).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

call(Operation) -> emqx_redis_request:call(Operation, undefined).

async(Operation) -> emqx_redis_request:async(Operation, undefined).
