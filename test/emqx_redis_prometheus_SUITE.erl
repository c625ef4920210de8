%% The storage's metrics as the library prometheus is given them: names, types and help. The library is not
%% there; a stand-in has the functions that are called.
-module(emqx_redis_prometheus_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(STORAGE, emqx_redis_test_storage).
-define(COLLECTOR, emqx_redis_prometheus).
-define(TABLE, prometheus_registry_table).

suite() ->
    [{timetrap, {seconds, 30}}].

all() ->
    [
        names_types_and_values,
        every_counter_of_the_storage_has_its_help,
        every_counter_of_the_plugin_has_its_help,
        gauges_and_latencies,
        another_registry_gets_nothing,
        register_and_deregister_may_be_repeated,
        nothing_happens_while_prometheus_does_not_run,
        nothing_happens_where_prometheus_is_missing,
        a_storage_that_does_not_run
    ].

init_per_suite(Config) ->
    ok = emqx_redis_plugin_stats:init(),
    ?STORAGE:start(Config).

end_per_suite(Config) ->
    _ = persistent_term:erase(emqx_redis_plugin_stats),
    ?STORAGE:stop(Config).

init_per_testcase(nothing_happens_where_prometheus_is_missing, Config) ->
    Config;
init_per_testcase(_Case, Config) ->
    [load(Module, Source) || {Module, Source} <- stand_in()],
    ?TABLE = ets:new(?TABLE, [bag, public, named_table]),
    Config.

%% The table has gone with the process of the case.
end_per_testcase(_Case, _Config) ->
    [begin code:purge(Module), code:delete(Module), code:purge(Module) end || {Module, _} <- stand_in()],
    [] = emqx_redis_test_helpers:stray_messages(20),
    ok.

%%--------------------------------------------------------------------
%% What is collected
%%--------------------------------------------------------------------

%% See https://prometheus.io/docs/concepts/data_model/ and https://prometheus.io/docs/practices/naming/.
names_types_and_values(_Config) ->
    Families = collect(),
    Names = [Name || {Name, _, _, _} <- Families],
    ?assertEqual(lists:sort(Names), lists:usort(Names)),
    [
        begin
            ?assertMatch({match, _}, re:run(Name, "^emqx_redis_storage_[a-z][a-z0-9_]*$"), Name),
            ?assertMatch({match, _}, re:run(Help, "^[^ ].*[^. ]$"), {Name, Help}),
            ?assertEqual(Type =:= counter, re:run(Name, "_total$") =/= nomatch, {Name, Type}),
            ?assert(lists:member(Type, [counter, gauge]), {Name, Type}),
            Labels = [L || {L, _} <- Metrics],
            ?assertEqual(lists:sort(Labels), lists:usort(Labels), Name),
            [?assert(is_number(Value) andalso Value >= 0, {Name, Value}) || {_, Value} <- Metrics]
        end
     || {Name, Help, Type, Metrics} <- Families
    ].

every_counter_of_the_storage_has_its_help(_Config) ->
    Families = collect(),
    #{counters := Counters} = emqx_redis_storage:status(),
    ?assert(map_size(Counters) > 20),
    [
        begin
            {_, Help, counter, [{[], Value}]} = family(Counter, "_total", Families),
            ?assert(Value =< Now, Counter),
            %% What a counter has that was not thought of.
            ?assertEqual(nomatch, string:find(Help, "The counter"), Counter)
        end
     || {Counter, Now} <- maps:to_list(Counters)
    ],
    ?assertMatch({_, _, _, [{[], Sent}]} when Sent > 0, family(sent, "_total", Families)).

every_counter_of_the_plugin_has_its_help(_Config) ->
    ok = emqx_redis_plugin_stats:init(),
    ok = emqx_redis_plugin_stats:count(messages_stored, 7),
    Families = collect(),
    [
        ?assertMatch(
            {_, Help, counter, [{[], Value}]} when Value =:= 7 andalso Counter =:= messages_stored orelse
                Value =:= 0,
            family(["mqtt_", atom_to_list(Counter)], "_total", Families),
            Counter
        )
     || {Counter, Help} <- emqx_redis_plugin_stats:help()
    ].

gauges_and_latencies(_Config) ->
    {ok, _} = emqx_redis_pool:query([<<"PING">>]),
    Families = collect(),
    [
        ?assertMatch({_, _, gauge, [{[], Value}]}, family(Gauge, "", Families), Gauge)
     || {Gauge, Value} <- [{running, 1}, {connected, 1}, {inflight, 0}, {inflight_bytes, 0}]
    ],
    [
        ?assertMatch({_, _, gauge, [{[], _}]}, family(Gauge, "", Families), Gauge)
     || Gauge <- [leased, warnings, routes, subscriptions, routes_in_sync, route_shards]
    ],
    {_, _, counter, Operations} = family(operations, "_total", Families),
    ?assertMatch(#{[{operation, query}] := Count} when Count > 0, maps:from_list(Operations)),
    {_, _, gauge, Latencies} = family(latency_seconds, "", Families),
    ByLabels = maps:from_list(Latencies),
    Quantiles = [
        maps:get([{operation, query}, {quantile, Quantile}], ByLabels)
     || Quantile <- ["0.5", "0.99", "0.999"]
    ],
    ?assertEqual(lists:sort(Quantiles), Quantiles),
    ?assert(lists:max(Quantiles) < 10, Quantiles).

another_registry_gets_nothing(_Config) ->
    ?assertEqual(ok, ?COLLECTOR:collect_mf(another, fun(_) -> error(collected) end)).

a_storage_that_does_not_run(Config) ->
    ok = emqx_redis_storage:stop(),
    Families = collect(),
    ?assertMatch({_, _, gauge, [{[], 0}]}, family(running, "", Families)),
    %% The plugin's own remain.
    ?assertEqual(1 + length(emqx_redis_plugin_stats:help()), length(Families)),
    ok = emqx_redis_storage:start(?STORAGE:config(Config)).

%%--------------------------------------------------------------------
%% The registry
%%--------------------------------------------------------------------

register_and_deregister_may_be_repeated(_Config) ->
    ?assertEqual(ok, ?COLLECTOR:deregister()),
    [?assertEqual(ok, ?COLLECTOR:register()) || _ <- [1, 2]],
    ?assertEqual([{default, ?COLLECTOR}], ets:tab2list(?TABLE)),
    [?assertEqual(ok, ?COLLECTOR:deregister()) || _ <- [1, 2]],
    ?assertEqual([], ets:tab2list(?TABLE)).

nothing_happens_while_prometheus_does_not_run(_Config) ->
    true = ets:delete(?TABLE),
    ?assertEqual(ok, ?COLLECTOR:register()),
    ?assertEqual(ok, ?COLLECTOR:deregister()).

nothing_happens_where_prometheus_is_missing(_Config) ->
    ?assertEqual(non_existing, code:which(prometheus_registry)),
    ?assertEqual(ok, ?COLLECTOR:register()),
    ?assertEqual(ok, ?COLLECTOR:deregister()).

%%--------------------------------------------------------------------
%% Helpers
%%--------------------------------------------------------------------

collect() ->
    Self = self(),
    Ref = make_ref(),
    ok = ?COLLECTOR:collect_mf(default, fun(Family) -> Self ! {Ref, Family} end),
    received(Ref).

received(Ref) ->
    receive {Ref, Family} -> [Family | received(Ref)] after 0 -> [] end.

family(Name, Suffix, Families) when is_atom(Name) -> family(atom_to_list(Name), Suffix, Families);
family(Name, Suffix, Families) ->
    Full = iolist_to_binary(["emqx_redis_storage_", Name, Suffix]),
    case lists:keyfind(Full, 1, Families) of
        false -> ct:fail({missing, Full});
        Family -> Family
    end.

%% As the library does it, but that a family is a tuple of the four arguments.
stand_in() ->
    [
        {prometheus_registry, [
            "-module(prometheus_registry).",
            "-export([register_collector/2, deregister_collector/2]).",
            "register_collector(Registry, Collector) ->"
            "    ets:insert(prometheus_registry_table, {Registry, Collector}), ok.",
            "deregister_collector(Registry, Collector) ->"
            "    ets:delete_object(prometheus_registry_table, {Registry, Collector}),"
            "    ok = Collector:deregister_cleanup(Registry)."
        ]},
        {prometheus_model_helpers, [
            "-module(prometheus_model_helpers).",
            "-export([create_mf/4]).",
            "create_mf(Name, Help, Type, Metrics) ->"
            "    {iolist_to_binary(Name), iolist_to_binary(Help), Type, Metrics}."
        ]}
    ].

load(Module, Source) ->
    Forms = [
        begin
            {ok, Tokens, _} = erl_scan:string(Text),
            {ok, Form} = erl_parse:parse_form(Tokens),
            Form
        end
     || Text <- Source
    ],
    {ok, Module, Code} = compile:forms(Forms),
    {module, Module} = code:load_binary(Module, "stand-in", Code).
