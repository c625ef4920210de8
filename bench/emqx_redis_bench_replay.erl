%% The server-bound limit: what a contestant sends for each operation is recorded through a proxy, and
%% a Rust program replays it through one connection with 100 operations in flight.
-module(emqx_redis_bench_replay).

-export([record/3, run/3]).

-define(OPERATIONS, #{ack_message => 30000, match_routes => 5000, get_messages => 3000}).

%% Records operations into File.
-spec record(emqx_redis_bench_driver:contestant(), map(), file:filename()) -> ok.
record({Module, Form}, Cell = #{target := Target, operation := Operation}, File) ->
    Count = operation_count(Cell),
    ok = prepare({Module, Form}, Cell),
    {RecorderPort, Recorder} = start_recorder(maps:get(port, Target)),
    State = Module:start(emqx_redis_bench_target:at_port(RecorderPort, Target), Form),
    Fun = Module:operation(Operation, State),
    _ = take(Recorder),
    Records = [
        begin
            _ = Fun(N),
            Bytes = take(Recorder),
            <<(byte_size(Bytes)):32, (command_count(Bytes, 0)):32, Bytes/binary>>
        end
     || N <- lists:seq(0, Count - 1)
    ],
    ok = Module:stop(State),
    unlink(Recorder),
    exit(Recorder, kill),
    file:write_file(File, Records).

%% Replays File; returns operations per second.
-spec run(emqx_redis_bench_driver:contestant(), map(), file:filename()) -> float().
run(Contestant, Cell = #{target := Target, operation := Operation, duration := Duration}, File) ->
    ok = prepare(Contestant, Cell),
    Milliseconds =
        case Operation of
            ack_message -> 0;
            _ -> Duration
        end,
    Arguments = [integer_to_list(maps:get(port, Target)), File, integer_to_list(Milliseconds)],
    Port = open_port({spawn_executable, os:getenv("REPLAY")}, [
        {args, Arguments}, {line, 1000}, exit_status, stderr_to_stdout
    ]),
    {0, Line} = await_exit(Port, ""),
    [Done, Microseconds] = [list_to_integer(Number) || Number <- string:lexemes(Line, " ")],
    Done * 1.0e6 / Microseconds.

operation_count(#{operation := Operation, duration := Duration}) ->
    maps:get(Operation, ?OPERATIONS, 10000) * min(1000, Duration) div 1000.

prepare({Module, Form}, Cell = #{target := Target, operation := Operation}) ->
    ok = emqx_redis_bench_target:flush(Target),
    State = Module:start(Target, Form),
    ok = Module:prepare(Operation, operation_count(Cell), State),
    Module:stop(State).

await_exit(Port, Line) ->
    receive
        {Port, {data, {eol, Text}}} -> await_exit(Port, Text);
        {Port, {exit_status, Status}} -> {Status, Line}
    after 120000 -> error(replay_does_not_end)
    end.

%% Commands are arrays of bulk strings; each gets one reply.
command_count(<<>>, Count) ->
    Count;
command_count(<<"*", Rest/binary>>, Count) ->
    {Arguments, AfterLength} = number(Rest),
    command_count(skip_bulks(AfterLength, Arguments), Count + 1).

skip_bulks(Bytes, 0) ->
    Bytes;
skip_bulks(<<"$", Rest/binary>>, Left) ->
    {Length, AfterLength} = number(Rest),
    <<_:Length/binary, "\r\n", Next/binary>> = AfterLength,
    skip_bulks(Next, Left - 1).

number(Bytes) ->
    [Digits, Rest] = binary:split(Bytes, <<"\r\n">>),
    {binary_to_integer(Digits), Rest}.

%% The recorder: a proxy that keeps what goes to Redis until it is taken. A request is kept before it
%% is passed on, so whoever has its answer can take all of it.

start_recorder(RedisPort) ->
    Options = [binary, {active, true}, {nodelay, true}, {ip, {127, 0, 0, 1}}],
    {ok, Listener} = gen_tcp:listen(0, Options),
    {ok, Port} = inet:port(Listener),
    Recorder = spawn_link(fun() -> recorder([]) end),
    ok = gen_tcp:controlling_process(Listener, Recorder),
    _ = spawn(fun() ->
        link(Recorder),
        accept(Listener, RedisPort, Recorder)
    end),
    {Port, Recorder}.

recorder(Kept) ->
    receive
        {keep, Bytes} ->
            recorder([Kept, Bytes]);
        {take, From, Ref} ->
            From ! {Ref, iolist_to_binary(Kept)},
            recorder([])
    end.

take(Recorder) ->
    Ref = make_ref(),
    Recorder ! {take, self(), Ref},
    receive
        {Ref, Bytes} -> Bytes
    end.

accept(Listener, RedisPort, Recorder) ->
    {ok, Client} = gen_tcp:accept(Listener),
    Pump = spawn_link(fun() ->
        receive
            go -> ok
        end,
        {ok, Redis} = gen_tcp:connect({127, 0, 0, 1}, RedisPort, [binary, {nodelay, true}]),
        pump(Client, Redis, Recorder)
    end),
    ok = gen_tcp:controlling_process(Client, Pump),
    Pump ! go,
    accept(Listener, RedisPort, Recorder).

pump(Client, Redis, Recorder) ->
    receive
        {tcp, Client, Bytes} ->
            Recorder ! {keep, Bytes},
            ok = gen_tcp:send(Redis, Bytes),
            pump(Client, Redis, Recorder);
        {tcp, Redis, Bytes} ->
            ok = gen_tcp:send(Client, Bytes),
            pump(Client, Redis, Recorder);
        {tcp_closed, _} ->
            gen_tcp:close(Client),
            gen_tcp:close(Redis)
    end.
