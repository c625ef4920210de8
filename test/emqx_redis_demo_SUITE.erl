%% The demo: that it passes on a part of its input, that it can fail, and that it leaves nothing behind.
-module(emqx_redis_demo_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SLICE, ["--messages", "3000"]).

suite() ->
    [{timetrap, {minutes, 3}}].

all() ->
    [
        passes,
        passes_through_a_fail_over,
        fails_if_damaged,
        fails_if_damaged_elsewhere,
        ended_early_leaves_nothing
    ].

passes(_Config) ->
    {Status, Output} = demo(?SLICE),
    ?assertEqual({0, match}, {Status, re:run(Output, "\nPASSED in ", [{capture, none}])}, Output),
    ?assertEqual([], left_by(Output)).

%% On all of the input: a part would be done before a replica is promoted.
passes_through_a_fail_over(_Config) ->
    [
        begin
            {Status, Output} = demo(["--topology", Topology]),
            Wanted = "kill -9 of a Redis master(.|\n)*\nPASSED in ",
            ?assertEqual({0, match}, {Status, re:run(Output, Wanted, [{capture, none}])}, Output),
            ?assertEqual([], left_by(Output))
        end
     || Topology <- ["sentinel", "cluster"]
    ].

fails_if_damaged(_Config) ->
    [fails([], Kind, Text) || {Kind, Text} <- [
        {"message", " 1  missing\n"},
        {"content", " 1  different in content\n"},
        {"order", " 1  out of order\n"},
        {"session", " 1  sessions missing in the list\n"},
        {"route", " 1  topics with wrong routes\n"}
    ]].

%% In a cluster the keys have other names, and lie on one master of several.
fails_if_damaged_elsewhere(_Config) ->
    fails(["--topology", "sentinel"], "order", " 1  out of order\n"),
    fails(["--topology", "cluster"], "message", " 1  missing\n").

fails(Arguments, Kind, Text) ->
    Slice =
        case Arguments of
            [] -> ?SLICE;
            _ -> []
        end,
    {Status, Output} = demo(["--sabotage", Kind] ++ Arguments ++ Slice),
    ?assertEqual({1, match}, {Status, re:run(Output, Text, [{capture, none}])}, Output),
    ?assertEqual([], left_by(Output)).

ended_early_leaves_nothing(_Config) ->
    %% At the first line of output, and when the first node is at work.
    [First, AtWork] = ["Redis   private", "sessions saved"],
    [
        ended_early(Signal, Line)
     || {Signal, Line} <- [{"TERM", First}, {"TERM", AtWork}, {"INT", AtWork}, {"KILL", AtWork}]
    ].

ended_early(Signal, Line) ->
    Port = start_demo([]),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    Output = output_until(Port, Line, <<>>),
    _ = os:cmd(lists:flatten(io_lib:format("kill -~s ~b", [Signal, OsPid]))),
    {_Status, Rest} = output(Port, <<>>),
    emqx_redis_test_helpers:wait_until(fun() -> left_by([Output, Rest]) =:= [] end, 10000).

%% Internal

demo(Arguments) ->
    output(start_demo(Arguments), <<>>).

start_demo(Arguments) ->
    Ebin = filename:join(code:lib_dir(emqx_redis_storage), "ebin"),
    open_port({spawn_executable, script(code:lib_dir(emqx_redis_storage))}, [
        {args, Arguments}, {env, [{"EMQX_REDIS_EBIN", Ebin}]}, binary, exit_status, stderr_to_stdout
    ]).

%% The library is built somewhere below the project's folder.
script(Folder) ->
    Script = filename:join([Folder, "scripts", "demo"]),
    case filelib:is_regular(Script) of
        true -> Script;
        false when Folder =/= "/" -> script(filename:dirname(Folder))
    end.

output(Port, Output) ->
    receive
        {Port, {data, More}} -> output(Port, <<Output/binary, More/binary>>);
        {Port, {exit_status, Status}} -> {Status, Output}
    end.

output_until(Port, Line, Output) ->
    case binary:match(Output, list_to_binary(Line)) of
        nomatch ->
            receive
                {Port, {data, More}} -> output_until(Port, Line, <<Output/binary, More/binary>>)
            end;
        _ ->
            Output
    end.

%% The demo's folder, and the processes that know of it.
left_by(Output) ->
    {match, [Folder]} = re:run(Output, "/tmp/emqx_redis_test_\\w+", [{capture, first, list}]),
    Processes = [
        File
     || File <- filelib:wildcard("/proc/[0-9]*/cmdline"),
        {ok, CommandLine} <- [file:read_file(File)],
        binary:match(CommandLine, list_to_binary(Folder)) =/= nomatch
    ],
    [Folder || filelib:is_dir(Folder)] ++ Processes.
