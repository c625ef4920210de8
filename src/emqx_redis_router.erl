%% Routes: which nodes have subscribers to a topic filter (MQTT 5.0 section 4.7).
%%
%% They are in Redis, and in the memory of every node that uses them, kept true by a feed of changes. A match
%% is answered from memory; where what is there is not known to be true, by Redis. A filter is exact (`a/b'),
%% has wildcards (`a/+/#') or is shared (`$share/Group/a/b', MQTT 5.0 section 4.8.2). What is no valid filter
%% or topic name answers `{error, {invalid_topic, Reason}}'.
%%
%% The functions of the change and of the match have a form `..._async' with the same arguments, which answers
%% a request id for `emqx_redis_storage:receive_response/2', `check_response/2' and `cancel/1'.
-module(emqx_redis_router).

-export([add_route/2, add_route/3, add_route_async/2, add_route_async/3]).
-export([delete_route/2, delete_route/3, delete_route_async/2, delete_route_async/3]).
-export([add_routes/1, add_routes/2, delete_routes/1, delete_routes/2]).
-export([match_routes/1, match_routes_async/1]).
-export([topics/0, topics_async/0, topics/2]).
-export([sync/1, sync/2, is_leased/0]).
-export([cleanup_routes/1, cleanup_routes/2]).

-export_type([version/0, topics_cursor/0, change_options/0]).

-type filter() :: binary().
-type route() :: {filter(), node()}.
-type error() :: {error, emqx_redis_storage:error_reason()}.
-type request_id() :: emqx_redis_request:request_id().
%% A place in the history of changes, of one or more route shards.
-opaque version() :: [{Shard :: non_neg_integer(), Version :: non_neg_integer()}].
-opaque topics_cursor() :: start | {non_neg_integer(), binary(), binary()}.
%% `version': answer `{ok, Version}' for `sync/1,2'. `timeout', `durability': as everywhere.
-type change_options() :: #{
    version => boolean(),
    timeout => timeout(),
    durability => emqx_redis_args:durability()
}.

%% Routes what matches `Filter' to `Node'. Adding a route that is there changes nothing. This node sees it at
%% once, others within milliseconds (`feed_lag' in `emqx_redis_storage:status/0'). What a node adds for itself
%% it adds again where Redis has lost it, until it is deleted.
-spec add_route(filter(), node()) -> ok | error().
add_route(Filter, Node) -> add_route(Filter, Node, #{}).

-spec add_route(filter(), node(), change_options()) -> ok | {ok, version()} | error().
add_route(Filter, Node, Opts) -> call(add_routes, [route(Filter, Node)], Opts, 3).

-spec add_route_async(filter(), node()) -> request_id().
add_route_async(Filter, Node) -> add_route_async(Filter, Node, #{}).

-spec add_route_async(filter(), node(), change_options()) -> request_id().
add_route_async(Filter, Node, Opts) -> async(add_routes, [route(Filter, Node)], Opts, 3).

%% Takes the route back. Deleting a route that is not there changes nothing; with its last node a filter
%% leaves every index.
-spec delete_route(filter(), node()) -> ok | error().
delete_route(Filter, Node) -> delete_route(Filter, Node, #{}).

-spec delete_route(filter(), node(), change_options()) -> ok | {ok, version()} | error().
delete_route(Filter, Node, Opts) -> call(delete_routes, [route(Filter, Node)], Opts, 3).

-spec delete_route_async(filter(), node()) -> request_id().
delete_route_async(Filter, Node) -> delete_route_async(Filter, Node, #{}).

-spec delete_route_async(filter(), node(), change_options()) -> request_id().
delete_route_async(Filter, Node, Opts) -> async(delete_routes, [route(Filter, Node)], Opts, 3).

%% Adds up to 10,000 routes. Each is a unit of its own: after an error some may have been added, and the same
%% call again adds the rest.
-spec add_routes([route()]) -> ok | error().
add_routes(Routes) -> add_routes(Routes, #{}).

-spec add_routes([route()], change_options()) -> ok | {ok, version()} | error().
add_routes(Routes, Opts) -> call(add_routes, routes(Routes), Opts, 2).

%% Deletes up to 10,000 routes, in the same way.
-spec delete_routes([route()]) -> ok | error().
delete_routes(Routes) -> delete_routes(Routes, #{}).

-spec delete_routes([route()], change_options()) -> ok | {ok, version()} | error().
delete_routes(Routes, Opts) -> call(delete_routes, routes(Routes), Opts, 2).

%% The routes whose filters match the topic name, each once, in no particular order. A match costs the
%% levels of the name, however many filters there are.
-spec match_routes(binary()) -> {ok, [route()]} | error().
match_routes(Topic) -> emqx_redis_match:match(match_routes, emqx_redis_args:topic(1, Topic)).

%% The same asked of Redis, past the memory of this node.
-spec match_routes_async(binary()) -> request_id().
match_routes_async(Topic) ->
    emqx_redis_request:async({match_routes, emqx_redis_args:topic(1, Topic)}, undefined).

%% Every filter that has a route.
-spec topics() -> {ok, [filter()]} | error().
topics() -> emqx_redis_request:call({topics}, undefined).

-spec topics_async() -> request_id().
topics_async() -> emqx_redis_request:async({topics}, undefined).

%% At most `Limit' filters that have a route, and where to go on; `start' is the beginning. Every filter that
%% has routes all the while is listed, perhaps twice.
-spec topics(Limit :: pos_integer(), start | topics_cursor()) ->
    {ok, {[filter()], topics_cursor() | done}} | error().
topics(Limit, Cursor) ->
    Arguments = {topics, emqx_redis_args:limit(1, Limit), emqx_redis_args:topics_cursor(2, Cursor)},
    emqx_redis_request:errand(Arguments, undefined).

%% Waits until this node has applied the change that answered `Version': a match sees it.
-spec sync(version()) -> ok | error().
sync(Version) -> sync(Version, #{}).

%% With `nodes => all' waits until every node that holds a lease has. A node that is up to date holds one; one
%% that lags for seven seconds loses it, and nobody waits for it: it must ask `is_leased/0' before it does
%% what needs all routes.
-spec sync(version(), #{nodes => this | all, timeout => timeout()}) -> ok | error().
sync(Version, Opts) ->
    [Nodes, Timeout] = emqx_redis_args:options(2, Opts, [nodes, timeout]),
    emqx_redis_request:errand({sync, emqx_redis_args:version(1, Version), Nodes =:= all}, Timeout).

%% Whether this node holds its lease: all that others were told that every node knows, it knows.
-spec is_leased() -> boolean().
is_leased() ->
    erlang:module_loaded(emqx_redis_nif) andalso emqx_redis_nif:is_leased().

%% Deletes all routes of a node by hand, and answers how many there were. Of this very node it deletes those
%% that it has not added in this life. One that lives adds its own again.
-spec cleanup_routes(node()) -> {ok, non_neg_integer()} | error().
cleanup_routes(Node) -> cleanup_routes(Node, #{}).

-spec cleanup_routes(node(), #{timeout => timeout()}) -> {ok, non_neg_integer()} | error().
cleanup_routes(Node, Opts) ->
    [Timeout] = emqx_redis_args:options(2, Opts, [timeout]),
    emqx_redis_request:errand({cleanup_routes, emqx_redis_args:node_name(1, Node)}, Timeout).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

route(Filter, Node) ->
    {emqx_redis_args:topic(1, Filter), emqx_redis_args:node_name(2, Node)}.

routes(Routes) ->
    emqx_redis_args:tuples(1, Routes, "{Filter, Node}", fun
        ({Filter, Node}) -> {emqx_redis_args:topic(1, Filter), emqx_redis_args:node_name(1, Node)};
        (_) -> false
    end).

call(Change, Routes, Opts, Position) ->
    {Operation, Settings} = change(Change, Routes, Opts, Position),
    emqx_redis_request:call(Operation, Settings).

async(Change, Routes, Opts, Position) ->
    {Operation, Settings} = change(Change, Routes, Opts, Position),
    emqx_redis_request:async(Operation, Settings).

change(Change, Routes, Opts, Position) ->
    [Version, Timeout, Durability] =
        emqx_redis_args:options(Position, Opts, [version, timeout, durability]),
    {{Change, Routes, Version =:= true}, emqx_redis_args:settings(Timeout, Durability)}.
