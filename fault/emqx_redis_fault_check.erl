%% The end of a run: all is healthy and nobody writes any more. Compares what the library reads with what the
%% writers were answered, item by item; then what it lists and counts; then every key that is in Redis.
-module(emqx_redis_fault_check).

-export([check/3]).

-export_type([result/0]).

-type result() :: #{
    violations := [emqx_redis_fault_writer:violation()],
    sessions := non_neg_integer(),
    messages := non_neg_integer(),
    filters := non_neg_integer(),
    keys := non_neg_integer()
}.

-define(PAGE, 100).

-spec check(
    emqx_redis_fault_topology:topology(), emqx_redis_fault_call:context(), [emqx_redis_fault_writer:items()]
) -> result().
check(Topology, Context, AllItems) ->
    {Found, Violations} = lists:unzip([verify(Context, Items) || Items <- AllItems]),
    All = lists:append(Found),
    Sessions = lists:sort([Id || {client, Id, has_session, _} <- All]),
    Filters = lists:sort(lists:append([Filters || {routes, Filters} <- All])),
    %% What is known of an item that was dropped is no longer exact: then neither are lists.
    Exact = lists:all(fun is_complete/1, AllItems) andalso lists:append(Violations) =:= [],
    {Keys, Problems} = emqx_redis_fault_keyspace:problems(Topology),
    #{
        violations => lists:append([
            lists:append(Violations),
            [V || Exact, V <- list_violations(Sessions, Filters)],
            [violation(<<"keys in Redis">>, Problem) || Problem <- Problems],
            settled()
        ]),
        sessions => length(Sessions),
        messages => lists:sum([Messages || {client, _, _, Messages} <- All]),
        filters => length(Filters),
        keys => Keys
    }.

%% Internal

verify(Context, Items) ->
    emqx_redis_fault_writer:verify(
        Items,
        fun(Client) ->
            {Session, Messages, Verified} = emqx_redis_fault_client:verify(Context, Client),
            {client, emqx_redis_fault_client:id(Verified), Session, Messages}
        end,
        fun(Routes) ->
            {Filters, _Verified} = emqx_redis_fault_routes:verify(Context, Routes),
            {routes, Filters}
        end
    ).

is_complete(#{routes := dropped}) -> false;
is_complete(#{complete := Complete}) -> Complete.

list_violations(Sessions, Filters) ->
    Listed = pages(0, []),
    Count = emqx_redis_session:count_sessions(),
    Topics = emqx_redis_router:topics(),
    [violation(<<"list_sessions">>, differences(Sessions, Listed)) || lists:sort(Listed) =/= Sessions] ++
        [
            violation(<<"count_sessions">>, {Count, {expected, length(Sessions)}})
         || Count =/= {ok, length(Sessions)}
        ] ++
        case Topics of
            {ok, Found} ->
                [violation(<<"topics">>, differences(Filters, Found)) || lists:sort(Found) =/= Filters];
            Error ->
                [violation(<<"topics">>, Error)]
        end.

pages(Offset, Listed) ->
    case emqx_redis_session:list_sessions(?PAGE, Offset) of
        {ok, []} -> Listed;
        {ok, Page} -> pages(Offset + length(Page), Page ++ Listed);
        {error, _} = Error -> [Error | Listed]
    end.

differences(Expected, Found) ->
    {{missing, Expected -- Found}, {surplus, Found -- Expected}}.

%% Nothing is left behind in the engine.
settled() ->
    case emqx_redis_storage:status() of
        #{inflight := 0} -> [];
        #{inflight := InFlight} -> [violation(<<"requests in flight">>, InFlight)]
    end.

violation(Item, What) ->
    #{item => Item, what => What, history => []}.
