%% What the plugin costs a broker: two real EMQX nodes on this machine, one with the plugin and one without,
%% measured in turns. Run by scripts/bench_plugin with EMQX_LIB, the folder of EMQX's compiled applications.
%%
%% Environment: ROUNDS (5), DURATION in ms of one measurement (2000), SESSIONS (2000).
%%
%% Publishers and subscribers are processes of this VM that speak just enough MQTT 3.1.1 over sockets.
-module(emqx_redis_bench_plugin).

-export([main/0]).

-define(NODE, emqx_redis_broker_node).

main() ->
    Server = emqx_redis_test_server:start(),
    try
        Plain = ?NODE:start(#{plugin => false}),
        Plugin = ?NODE:start(#{config => emqx_redis_test_server:config(Server)}),
        %% Leases count once a connection has stood for some seconds.
        timer:sleep(5000),
        report([{plain, Plain}, {plugin, Plugin}], number("ROUNDS", 5), number("DURATION", 2000)),
        sessions(Plain, Plugin, Server, number("SESSIONS", 2000))
    after
        ?NODE:stop_all(),
        emqx_redis_test_server:stop(Server)
    end,
    halt(0).

number(Name, Default) -> list_to_integer(os:getenv(Name, integer_to_list(Default))).

%%--------------------------------------------------------------------
%% Publishing
%%--------------------------------------------------------------------

report(Brokers, Rounds, Duration) ->
    io:format("| publishing | broker | messages/s | p50, us | p99, us |~n|---|---|---:|---:|---:|~n"),
    lists:foreach(
        fun({Name, QoS, Publishers, Subscribers}) ->
            Ready = [{Kind, subscribe(Broker, Subscribers), Broker} || {Kind, Broker} <- Brokers],
            Runs = [
                {Kind, publish(Broker, QoS, Publishers, Duration)}
             || _ <- lists:seq(1, Rounds), {Kind, _, Broker} <- Ready
            ],
            Results = [{Kind, [Run || {K, Run} <- Runs, K =:= Kind]} || {Kind, _} <- Brokers],
            lists:foreach(fun(Result) -> row(Name, Result) end, Results),
            ratio(Results),
            [unsubscribe(Broker, Pids) || {_, Pids, Broker} <- Ready]
        end,
        [
            {"QoS 0, nobody, 50 publishers", 0, 50, 0},
            {"QoS 1, nobody, 1 publisher", 1, 1, 0},
            {"QoS 1, nobody, 50 publishers", 1, 50, 0},
            {"QoS 1, 1 persistent subscriber, 1 publisher", 1, 1, 1},
            {"QoS 1, 1 persistent subscriber, 50 publishers", 1, 50, 1},
            {"QoS 1, 100 persistent subscribers, 1 publisher", 1, 1, 100}
        ]
    ).

row(Name, {Kind, Runs}) ->
    {Rates, Latencies} = lists:unzip(Runs),
    Sorted = list_to_tuple(lists:sort(lists:append(Latencies))),
    io:format("| ~ts | ~ts | ~b | ~ts | ~ts |~n", [
        Name, Kind, median(Rates), quantile(0.5, Sorted), quantile(0.99, Sorted)
    ]).

%% Of each pair of neighbours in time, so that what the machine does beside weighs on both.
ratio([{_, Plain}, {_, Plugin}]) ->
    Ratios = [With / max(1, Without) || {{Without, _}, {With, _}} <- lists:zip(Plain, Plugin)],
    io:format("| | plugin / plain | ~.2f | | |~n", [median(Ratios)]).

median(List) -> lists:nth((length(List) + 1) div 2, lists:sort(List)).

quantile(_Part, {}) -> "-";
quantile(Part, Sorted) -> integer_to_list(element(max(1, ceil(Part * tuple_size(Sorted))), Sorted)).

%% Messages in a second, and the latencies in us, of QoS 1.
publish(Broker, QoS, Publishers, Duration) ->
    Self = self(),
    Pids = [
        spawn_link(fun() ->
            Socket = connect(Broker, client(N), true),
            Self ! {ready, self()},
            receive
                go -> ok
            end,
            Self ! {done, self(), publish_until(Socket, QoS, now_us() + Duration * 1000, 0, [])},
            gen_tcp:close(Socket)
        end)
     || N <- lists:seq(1, Publishers)
    ],
    [
        receive
            {ready, Pid} -> ok
        end
     || Pid <- Pids
    ],
    Began = now_us(),
    [Pid ! go || Pid <- Pids],
    Results = [
        receive
            {done, Pid, Result} -> Result
        end
     || Pid <- Pids
    ],
    {Counts, Latencies} = lists:unzip(Results),
    {round(lists:sum(Counts) * 1000000 / (now_us() - Began)), lists:append(Latencies)}.

publish_until(Socket, 0, Until, Count, _) ->
    Packets = binary:copy(publish_packet(0, 1), 100),
    ok = gen_tcp:send(Socket, Packets),
    case now_us() < Until of
        true ->
            publish_until(Socket, 0, Until, Count + 100, []);
        false ->
            %% Answered when all before it is done.
            ok = gen_tcp:send(Socket, publish_packet(1, 1)),
            {ok, <<16#40, 2, _:16>>} = gen_tcp:recv(Socket, 4, 60000),
            {Count + 100, []}
    end;
publish_until(Socket, 1, Until, Count, Latencies) ->
    Began = now_us(),
    ok = gen_tcp:send(Socket, publish_packet(1, Count rem 65535 + 1)),
    {ok, <<16#40, 2, _:16>>} = gen_tcp:recv(Socket, 4, 60000),
    Ended = now_us(),
    case Ended < Until of
        true -> publish_until(Socket, 1, Until, Count + 1, [Ended - Began | Latencies]);
        false -> {Count + 1, Latencies}
    end.

now_us() -> erlang:monotonic_time(microsecond).

%%--------------------------------------------------------------------
%% Persistent subscribers, which acknowledge what they get
%%--------------------------------------------------------------------

subscribe(Broker, Count) ->
    Self = self(),
    Pids = [
        spawn(fun() ->
            Socket = connect(Broker, subscriber(N), false),
            ok = gen_tcp:send(Socket, <<16#82, 12, 1:16, 7:16, "bench/#", 1>>),
            {ok, <<16#90, 3, 1:16, 1>>} = gen_tcp:recv(Socket, 5, 30000),
            Self ! {subscribed, self()},
            ok = inet:setopts(Socket, [{active, true}]),
            acknowledge(Socket, <<>>)
        end)
     || N <- lists:seq(1, Count)
    ],
    [
        receive
            {subscribed, Pid} -> ok
        end
     || Pid <- Pids
    ],
    Pids.

%% Their sessions end with them.
unsubscribe(Broker, Pids) ->
    [exit(Pid, kill) || Pid <- Pids],
    [gen_tcp:close(connect(Broker, subscriber(N), true)) || N <- lists:seq(1, length(Pids))].

acknowledge(Socket, Rest) ->
    receive
        {tcp, Socket, Data} -> acknowledge(Socket, packets(Socket, <<Rest/binary, Data/binary>>, []));
        {tcp_closed, Socket} -> ok
    end.

%% Packets of 200 bytes have two bytes of length.
packets(Socket, <<Type, 1:1, Low:7, 0:1, High:7, Rest/binary>>, Acks) when
    byte_size(Rest) >= High * 128 + Low
->
    <<Body:(High * 128 + Low)/binary, Left/binary>> = Rest,
    3 = Type bsr 4,
    <<Length:16, _:Length/binary, PacketId:16, _/binary>> = Body,
    packets(Socket, Left, [<<16#40, 2, PacketId:16>> | Acks]);
packets(Socket, Rest, Acks) ->
    ok = gen_tcp:send(Socket, lists:reverse(Acks)),
    Rest.

%%--------------------------------------------------------------------
%% Sessions: what a connection costs, what it takes of memory, and what restoring costs
%%--------------------------------------------------------------------

sessions(Plain, Plugin, Server, Count) ->
    io:format("~n| ~b persistent sessions | plain | plugin |~n|---|---:|---:|~n", [Count]),
    rows("new: connects/s, 50 at a time", Plain, Plugin, fun(Broker) -> connects(Broker, Count) end),
    rows("again on the same node: connects/s", Plain, Plugin, fun(Broker) -> connects(Broker, Count) end),
    Memory = fun(Broker) -> memory(Broker, Count) end,
    rows("memory of the node for one, connected, bytes", Plain, Plugin, Memory),
    ok = ?NODE:kill(Plugin),
    Fresh = ?NODE:start(#{config => emqx_redis_test_server:config(Server)}),
    io:format("| restored on a fresh node: connects/s | | ~b |~n", [connects(Fresh, Count)]).

rows(Name, Plain, Plugin, Measure) ->
    io:format("| ~ts | ~b | ~b |~n", [Name, Measure(Plain), Measure(Plugin)]).

connects(Broker, Count) ->
    Began = now_us(),
    each(Count, fun(N) -> gen_tcp:close(connect(Broker, session(N), false)) end),
    round(Count * 1000000 / (now_us() - Began)).

memory(Broker, Count) ->
    Total = fun() ->
        timer:sleep(1000),
        Processes = ?NODE:call(Broker, erlang, processes, []),
        _ = [?NODE:call(Broker, erlang, garbage_collect, [Pid]) || Pid <- Processes],
        ?NODE:call(Broker, erlang, memory, [total])
    end,
    Before = Total(),
    Self = self(),
    Keeper = spawn(fun() ->
        Sockets = [connect(Broker, kept(N), false) || N <- lists:seq(1, Count)],
        Self ! connected,
        receive
            stop -> Sockets
        end
    end),
    receive
        connected -> ok
    end,
    After = Total(),
    exit(Keeper, kill),
    (After - Before) div Count.

each(Count, Fun) ->
    Self = self(),
    Pids = [
        spawn_link(fun() ->
            [Fun(N) || N <- lists:seq(First, Count, 50)],
            Self ! {done, self()}
        end)
     || First <- lists:seq(1, 50)
    ],
    [
        receive
            {done, Pid} -> ok
        end
     || Pid <- Pids
    ].

session(N) -> <<"session", (integer_to_binary(N))/binary>>.

kept(N) -> <<"kept", (integer_to_binary(N))/binary>>.

subscriber(N) -> <<"subscriber", (integer_to_binary(N))/binary>>.

client(N) -> <<"publisher", (integer_to_binary(N))/binary>>.

%%--------------------------------------------------------------------
%% MQTT 3.1.1
%%--------------------------------------------------------------------

connect(Broker, ClientId, Clean) ->
    Options = [binary, {active, false}, {nodelay, true}],
    {ok, Socket} = gen_tcp:connect("127.0.0.1", ?NODE:port(Broker), Options),
    Flags =
        case Clean of
            true -> 2;
            false -> 0
        end,
    Body = <<4:16, "MQTT", 4, Flags, 0:16, (byte_size(ClientId)):16, ClientId/binary>>,
    ok = gen_tcp:send(Socket, <<16#10, (byte_size(Body)), Body/binary>>),
    {ok, <<16#20, 2, _, 0>>} = gen_tcp:recv(Socket, 4, 30000),
    Socket.

publish_packet(0, _) -> with_length(16#30, <<9:16, "bench/one", (payload())/binary>>);
publish_packet(1, PacketId) -> with_length(16#32, <<9:16, "bench/one", PacketId:16, (payload())/binary>>).

with_length(Type, Body) ->
    Size = byte_size(Body),
    <<Type, 1:1, (Size rem 128):7, 0:1, (Size div 128):7, Body/binary>>.

payload() -> binary:copy(<<"x">>, 200).
