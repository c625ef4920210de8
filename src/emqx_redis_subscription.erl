%% Subscriptions of persistent clients: whom a message must be stored for.
%%
%% A table like that of routes, from topic filters to client ids, each with the options of its subscription
%% (any term that can be stored, for instance `#{qos => 1, nl => 0}'). It is in Redis, and in the memory of
%% every node that uses it; see `emqx_redis_router' for how that is kept true, `sync/1,2' and `is_leased/0'.
%% Unlike a node's routes, a client's subscriptions stay when the node is gone.
-module(emqx_redis_subscription).

-export([add_subscription/3, add_subscription/4, delete_subscription/2, delete_subscription/3]).
-export([add_subscriptions/1, add_subscriptions/2, delete_subscriptions/1, delete_subscriptions/2]).
-export([match_subscriptions/1, filters/2]).

-type filter() :: binary().
-type client_id() :: emqx_redis_session:client_id().
-type error() :: {error, emqx_redis_storage:error_reason()}.
-type options() :: emqx_redis_router:change_options().

%% Adds a subscription, or changes its options. Adding what is there changes nothing.
-spec add_subscription(filter(), client_id(), SubscriptionOptions :: term()) -> ok | error().
add_subscription(Filter, ClientId, SubOpts) -> add_subscription(Filter, ClientId, SubOpts, #{}).

-spec add_subscription(filter(), client_id(), term(), options()) ->
    ok | {ok, emqx_redis_router:version()} | error().
add_subscription(Filter, ClientId, SubOpts, Opts) ->
    Subscription = {emqx_redis_args:topic(1, Filter), emqx_redis_args:client_id(2, ClientId), SubOpts},
    call(add_subscriptions, [Subscription], Opts, 4).

%% Deletes a subscription. Deleting one that is not there changes nothing.
-spec delete_subscription(filter(), client_id()) -> ok | error().
delete_subscription(Filter, ClientId) -> delete_subscription(Filter, ClientId, #{}).

-spec delete_subscription(filter(), client_id(), options()) ->
    ok | {ok, emqx_redis_router:version()} | error().
delete_subscription(Filter, ClientId, Opts) ->
    Subscription = {emqx_redis_args:topic(1, Filter), emqx_redis_args:client_id(2, ClientId)},
    call(delete_subscriptions, [Subscription], Opts, 3).

%% Adds up to 10,000 subscriptions. Each is a unit of its own: after an error some may have been added, and
%% the same call again adds the rest.
-spec add_subscriptions([{filter(), client_id(), term()}]) -> ok | error().
add_subscriptions(All) -> add_subscriptions(All, #{}).

-spec add_subscriptions([{filter(), client_id(), term()}], options()) ->
    ok | {ok, emqx_redis_router:version()} | error().
add_subscriptions(All, Opts) ->
    Checked = emqx_redis_args:tuples(1, All, "{Filter, ClientId, Options}", fun
        ({Filter, ClientId, SubOpts}) ->
            {emqx_redis_args:topic(1, Filter), emqx_redis_args:client_id(1, ClientId), SubOpts};
        (_) ->
            false
    end),
    call(add_subscriptions, Checked, Opts, 2).

%% Deletes up to 10,000 subscriptions, in the same way. One that is given with options is deleted only where
%% it has exactly these: what somebody else has changed meanwhile stays.
-spec delete_subscriptions([{filter(), client_id()} | {filter(), client_id(), term()}]) ->
    ok | error().
delete_subscriptions(All) -> delete_subscriptions(All, #{}).

-spec delete_subscriptions([{filter(), client_id()} | {filter(), client_id(), term()}], options()) ->
    ok | {ok, emqx_redis_router:version()} | error().
delete_subscriptions(All, Opts) ->
    Checked = emqx_redis_args:tuples(1, All, "{Filter, ClientId} or {Filter, ClientId, Options}", fun
        ({Filter, ClientId}) ->
            {emqx_redis_args:topic(1, Filter), emqx_redis_args:client_id(1, ClientId)};
        ({Filter, ClientId, SubOpts}) ->
            {emqx_redis_args:topic(1, Filter), emqx_redis_args:client_id(1, ClientId), SubOpts};
        (_) ->
            false
    end),
    call(delete_subscriptions, Checked, Opts, 2).

%% The subscriptions whose filters match the topic name, each once, in no particular order: of one client
%% several, where several of its filters match.
-spec match_subscriptions(binary()) ->
    {ok, [{filter(), client_id(), SubscriptionOptions :: term()}]} | error().
match_subscriptions(Topic) ->
    emqx_redis_match:match(match_subscriptions, emqx_redis_args:topic(1, Topic)).

%% At most `Limit' filters that have subscriptions, and where to go on; as `emqx_redis_router:topics/2' does.
-spec filters(Limit :: pos_integer(), start | emqx_redis_router:topics_cursor()) ->
    {ok, {[filter()], emqx_redis_router:topics_cursor() | done}} | error().
filters(Limit, Cursor) ->
    Arguments = {filters, emqx_redis_args:limit(1, Limit), emqx_redis_args:topics_cursor(2, Cursor)},
    emqx_redis_request:errand(Arguments, undefined).

call(Change, Subscriptions, Opts, Position) ->
    [Version, Timeout, Durability] =
        emqx_redis_args:options(Position, Opts, [version, timeout, durability]),
    Settings = emqx_redis_args:settings(Timeout, Durability),
    emqx_redis_request:call({Change, Subscriptions, Version =:= true}, Settings).
