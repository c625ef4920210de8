%% `make fault', for a minute on each topology, and that it notices damage. The seeds are fixed, so that the
%% faults are the same each time; other seeds are for whoever types `make fault'.
-module(emqx_redis_fault_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SECONDS, "16").

suite() ->
    [{timetrap, {minutes, 5}}].

all() ->
    [
        single,
        sentinel,
        cluster,
        a_lossy_level_is_no_failure,
        damage_is_noticed,
        damage_in_a_cluster_is_noticed
    ].

single(_Config) ->
    passes([{"TOPOLOGY", "single"}, {"SECONDS", ?SECONDS}, {"SEED", "101"}]).

sentinel(_Config) ->
    passes([{"TOPOLOGY", "sentinel"}, {"SECONDS", ?SECONDS}, {"SEED", "102"}]).

cluster(_Config) ->
    passes([{"TOPOLOGY", "cluster"}, {"SECONDS", ?SECONDS}, {"SEED", "103"}]).

%% What is lost is shown, but order and content are as they must be.
a_lossy_level_is_no_failure(_Config) ->
    Output = passes([
        {"TOPOLOGY", "sentinel"},
        {"SECONDS", "10"},
        {"SEED", "104"},
        {"DURABILITY", "none"},
        {"FAULTS", "partition,freeze_master"}
    ]),
    ?assertMatch({match, _}, re:run(Output, "acknowledged writes [0-9,]+, lost [0-9,]+ \\([0-9.]+ %\\)")).

damage_is_noticed(_Config) ->
    [
        fails("single", Kind, Text)
     || {Kind, Text} <- [
            {"session", "wrong_session"},
            {"old_session", "wrong_session"},
            {"deleted_session", "(wrong_session|version_of_the_future)"},
            {"message", "wrong_messages,.*missing,{[0-9]"},
            {"content", "(message_differs|not_readable)"},
            {"order", "out_of_order"},
            {"acknowledged", "wrong_messages,.*back,{[0-9]"},
            {"route", "wrong_routes"},
            {"leak", "message_not_in_queue"}
        ]
    ].

damage_in_a_cluster_is_noticed(_Config) ->
    fails("cluster", "session", "wrong_session"),
    fails("cluster", "acknowledged", "wrong_messages,.*back,{[0-9]").

%% Internal

passes(Environment) ->
    {Status, Output} = fault(Environment),
    ct:pal("~ts", [Output]),
    ?assertEqual({0, match}, {Status, re:run(Output, "\n  PASSED\n", [{capture, none}])}, Output),
    Output.

fails(Topology, Kind, Text) ->
    {Status, Output} = fault([
        {"TOPOLOGY", Topology},
        {"SECONDS", "1"},
        {"SEED", "105"},
        {"WRITERS", "8"},
        {"FAULTS", "cut"},
        {"SABOTAGE", Kind}
    ]),
    Pattern = ["VIOLATION at .*", Text],
    ?assertEqual({1, match}, {Status, re:run(Output, Pattern, [{capture, none}])}, {Kind, Output}).

fault(Environment) ->
    Library = code:lib_dir(emqx_redis_storage),
    Ebin = {"EMQX_REDIS_EBIN", filename:join(Library, "ebin")},
    Port = open_port({spawn_executable, script(Library)}, [
        {env, [Ebin | Environment]}, binary, exit_status, stderr_to_stdout
    ]),
    output(Port, <<>>).

%% The library is built somewhere below the project's folder.
script(Folder) ->
    Script = filename:join([Folder, "scripts", "fault"]),
    case filelib:is_regular(Script) of
        true -> Script;
        false when Folder =/= "/" -> script(filename:dirname(Folder))
    end.

output(Port, Output) ->
    receive
        {Port, {data, More}} -> output(Port, <<Output/binary, More/binary>>);
        {Port, {exit_status, Status}} -> {Status, Output}
    end.
