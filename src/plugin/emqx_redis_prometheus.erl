%% The storage's metrics among EMQX's own: a collector of the library prometheus, in the registry that EMQX's
%% endpoint `/api/v5/prometheus/stats' and its push gateway show. Each node shows its own.
%%
%% A change of EMQX's Prometheus settings takes out every collector that EMQX does not know: so `register/0'
%% is to be called again now and then. It costs a write to a table.
-module(emqx_redis_prometheus).

-export([register/0, deregister/0]).
%% Callbacks of `prometheus_collector'.
-export([collect_mf/2, deregister_cleanup/1]).

-define(REGISTRY, default).
-define(PREFIX, "emqx_redis_storage_").

%% Where the application prometheus does not run nothing happens.
-spec register() -> ok.
register() -> change(register_collector).

%% Must be called before this module is unloaded: a collector that is not there fails the whole endpoint.
-spec deregister() -> ok.
deregister() -> change(deregister_collector).

change(Change) ->
    try
        ok = call(prometheus_registry, Change, [?REGISTRY, ?MODULE])
    catch
        %% Not there, or not running: its table is missing.
        error:_ -> ok
    end.

-spec deregister_cleanup(atom()) -> ok.
deregister_cleanup(_Registry) -> ok.

-spec collect_mf(atom(), fun((tuple()) -> term())) -> ok.
collect_mf(?REGISTRY, Callback) ->
    Status = emqx_redis_storage:status(),
    Families = gauges(Status) ++ counters(Status) ++ plugin() ++ latencies(Status),
    lists:foreach(
        fun({Name, Help, Type, Metrics}) ->
            Family = call(prometheus_model_helpers, create_mf, [[?PREFIX, Name], Help, Type, Metrics]),
            Callback(Family)
        end,
        Families
    );
collect_mf(_Registry, _Callback) ->
    ok.

gauges(#{running := false}) ->
    [{"running", "Whether the storage runs", gauge, [{[], 0}]}];
gauges(#{connected := Connected, inflight := Inflight, inflight_bytes := Bytes} = Status) ->
    Shards = maps:get(routes, Status, []),
    [
        {"running", "Whether the storage runs", gauge, [{[], 1}]},
        {"connected", "Whether the storage is connected to Redis", gauge, [{[], number(Connected)}]},
        {"leased", "Whether this node is known to have all subscriptions in memory", gauge,
            [{[], number(emqx_redis_router:is_leased())}]},
        {"inflight", "Requests in flight", gauge, [{[], Inflight}]},
        {"inflight_bytes", "Bytes of the requests in flight", gauge, [{[], Bytes}]},
        {"warnings", "Warnings about the Redis servers, see emqx ctl redis_storage status", gauge,
            [{[], length(maps:get(warnings, Status, []))}]},
        {"routes", "Routes in memory", gauge, [{[], sum(routes, Shards)}]},
        {"subscriptions", "Subscriptions of persistent sessions in memory, of all nodes", gauge,
            [{[], sum(subscriptions, Shards)}]},
        {"routes_in_sync", "Route shards whose table in memory is known to be true", gauge,
            [{[], length([Shard || #{in_sync := true} = Shard <- Shards])}]},
        {"route_shards", "Route shards in use", gauge, [{[], length(Shards)}]}
    ].

counters(#{counters := Counters}) ->
    [
        {[atom_to_list(Name), "_total"], counter_help(Name), counter, [{[], Value}]}
     || {Name, Value} <- lists:sort(maps:to_list(Counters))
    ];
counters(_) ->
    [].

plugin() ->
    Values = emqx_redis_plugin_stats:read(),
    [
        {["mqtt_", atom_to_list(Name), "_total"], Help, counter, [{[], maps:get(Name, Values)}]}
     || {Name, Help} <- emqx_redis_plugin_stats:help(), is_map_key(Name, Values)
    ].

%% The storage knows quantiles since its start, and no sums: so these are gauges and no summary.
latencies(#{latency_us := Latencies}) ->
    All = lists:sort(maps:to_list(Latencies)),
    Quantiles = [
        {[{operation, Operation}, {quantile, Label}], maps:get(Key, Latency) / 1000000}
     || {Operation, Latency} <- All, {Key, Label} <- [{p50, "0.5"}, {p99, "0.99"}, {p999, "0.999"}]
    ],
    Counts = [{[{operation, Operation}], Count} || {Operation, #{count := Count}} <- All],
    [
        {"latency_seconds", "From a request's submission to its answer, since the start", gauge, Quantiles},
        {"operations_total", "Requests answered, by their operation", counter, Counts}
    ];
latencies(_) ->
    [].

number(true) -> 1;
number(false) -> 0.

sum(Name, Shards) -> lists:sum([maps:get(Name, Shard, 0) || Shard <- Shards]).

%% As lib/src/metrics.rs has them.
counter_help(submitted) -> "Requests accepted";
counter_help(answered) -> "Requests answered, whatever the answer";
counter_help(sent) -> "Requests whose bytes were handed to a connection, each step counted";
counter_help(retried) -> "Steps sent again: a script was unknown, or the bytes had not left";
counter_help(redirected) -> "Steps that a server did not do: sent elsewhere, or again later";
counter_help(timed_out) -> "Requests answered {error, timeout}";
counter_help(refused_overloaded) -> "Requests refused for want of room";
counter_help(refused_unavailable) -> "Requests answered {error, {unavailable, _}}";
counter_help(failed_unknown) -> "Requests answered {error, {unknown, _}}";
counter_help(failed_redis) -> "Requests that Redis answered with an error";
counter_help(failed_fenced) -> "Requests refused for want of the session's epoch";
counter_help(failed_other) -> "Requests that failed for another reason";
counter_help(cancelled) -> "Requests cancelled by their caller";
counter_help(abandoned) -> "Requests dropped unsent because their caller had died";
counter_help(writes) -> "Writes to sockets";
counter_help(bytes_out) -> "Bytes written";
counter_help(bytes_in) -> "Bytes read";
counter_help(connects) -> "Connections made";
counter_help(connect_failures) -> "Attempts to connect that failed";
counter_help(disconnects) -> "Connections lost";
counter_help(expired_sessions) -> "Expired sessions removed from the indexes";
counter_help(expired_messages) -> "Expired messages removed from the queues";
counter_help(dropped_messages) -> "Messages dropped by a full queue";
counter_help(quarantined) -> "Foreign values moved out of the way";
counter_help(resyncs) -> "Times that the table of a route shard was read from Redis as a whole";
counter_help(feed_entries) -> "Changes of routes and subscriptions read from the feed";
counter_help(reasserted_routes) -> "Routes of this node that Redis had lost and that were added again";
counter_help(purged_routes) -> "Routes of dead nodes that this node purged";
counter_help(panics) -> "Panics contained";
counter_help(Other) -> ["The counter ", atom_to_list(Other), " of emqx_redis_storage:status()"].

call(Module, Function, Arguments) -> apply(Module, Function, Arguments).
