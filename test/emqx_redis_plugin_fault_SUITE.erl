%% Clients exchange numbered messages while their node is killed, Redis stands still, the plugin is stopped
%% and started: at whatever moment, what was acknowledged arrives, and in its order. On the stand-in of
%% EMQX, or on a real one: see `emqx_redis_broker_node'. FAULTS=100 makes a long run of it, SEED=N one like
%% an earlier one.
-module(emqx_redis_plugin_fault_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-import(emqx_redis_test_plugin, [start/2, start_again/1, stop/1, server/1, broker/1, stored/2, await/2]).

-define(SERVER, emqx_redis_test_server).
-define(NODE, emqx_redis_broker_node).
-define(CLIENT, emqx_redis_mqtt_client).

-define(CLIENTS, 8).
-define(FAULTS, 8).
%% What one client may receive in a tenth of a second before a kill, and while the plugin is stopped.
-define(UNDER_WAY, 50).
%% How long a client may take to get through, in milliseconds.
-define(PATIENCE, 60000).

suite() -> [{timetrap, {minutes, 5 + faults() div 4}}].

all() -> [nothing_that_was_acknowledged_is_lost].

init_per_suite(Config) -> Config.

end_per_suite(_Config) -> ?NODE:stop_all().

nothing_that_was_acknowledged_is_lost(Config) ->
    Seed = number("SEED", erlang:system_time(millisecond)),
    _ = rand:seed(exsss, Seed),
    ct:pal("SEED=~b", [Seed]),
    First = start(Config, #{}),
    Table = ets:new(?MODULE, [public]),
    point_to(First, Table),
    Clients = [start_client(N, Table) || N <- lists:seq(0, ?CLIENTS - 1)],
    [call(Client, subscribed) || Client <- Clients],
    Last = lists:foldl(
        fun(Round, Current) -> fault(Round, Current, Table) end, First, lists:seq(1, faults())
    ),
    timer:sleep(500),
    Published = [call(Client, stop) || Client <- Clients],
    [await([], fun() -> stored(Last, client_id(N)) end) || N <- lists:seq(0, ?CLIENTS - 1)],
    Received = [call(Client, received) || Client <- Clients],
    ct:pal("acknowledged ~p~nreceived ~p", [Published, [length(Each) || Each <- Received]]),
    [judge(N, lists:nth(N + 1, Published), Received) || N <- lists:seq(0, ?CLIENTS - 1)],
    stop(Last).

faults() -> number("FAULTS", ?FAULTS).

number(Name, Default) ->
    case os:getenv(Name) of
        false -> Default;
        Text -> list_to_integer(Text)
    end.

%% Client N publishes 1, 2, ... for the next one; all up to `Count' were acknowledged.
judge(N, Count, Received) ->
    Numbers = lists:nth((N + 1) rem ?CLIENTS + 1, Received),
    ?assertEqual({N, []}, {N, lists:seq(1, Count) -- Numbers}),
    %% What comes again comes behind; each for the first time in its order.
    Firsts = firsts(Numbers, #{}),
    ?assertEqual({N, lists:sort(Firsts)}, {N, Firsts}),
    %% Twice comes at most what was under way at a fault.
    ?assert(length(Numbers) - length(Firsts) =< ?UNDER_WAY * faults(), {N, length(Numbers), length(Firsts)}).

firsts([Number | Numbers], Seen) when is_map_key(Number, Seen) -> firsts(Numbers, Seen);
firsts([Number | Numbers], Seen) -> [Number | firsts(Numbers, Seen#{Number => []})];
firsts([], _Seen) -> [].

%%--------------------------------------------------------------------
%% Faults
%%--------------------------------------------------------------------

fault(Round, Config, Table) ->
    Fault = lists:nth(rand:uniform(6), [kill, kill, kill, kill_twice, redis_stands_still, plugin_restarts]),
    Delay = rand:uniform(1500),
    ct:pal("~b: ~s after ~b ms", [Round, Fault, Delay]),
    timer:sleep(Delay),
    fault(Fault, Config, Table, Round).

fault(kill, Config, Table, _Round) ->
    ok = ?NODE:kill(broker(Config)),
    Next = start_again(Config),
    point_to(Next, Table),
    Next;
%% The second time while clients come back.
fault(kill_twice, Config, Table, Round) ->
    Next = fault(kill, Config, Table, Round),
    timer:sleep(rand:uniform(200)),
    fault(kill, Next, Table, Round);
fault(redis_stands_still, Config, _Table, _Round) ->
    ok = ?SERVER:pause(server(Config)),
    timer:sleep(rand:uniform(1500)),
    ok = ?SERVER:resume(server(Config)),
    Config;
fault(plugin_restarts, Config, _Table, _Round) ->
    ok = ?NODE:stop_plugin(broker(Config)),
    timer:sleep(rand:uniform(300)),
    ok = ?NODE:start_plugin(broker(Config)),
    %% What was published without it is in the node's memory alone for a moment.
    timer:sleep(4000),
    Config.

point_to(Config, Table) -> true = ets:insert(Table, {port, ?NODE:port(broker(Config))}).

%%--------------------------------------------------------------------
%% A client, which goes on wherever its node is
%%--------------------------------------------------------------------

client_id(N) -> <<"client", (integer_to_binary(N))/binary>>.

topic(N) -> <<"ring/", (integer_to_binary(N rem ?CLIENTS))/binary>>.

qos(N) -> 1 + N rem 2.

start_client(N, Table) ->
    spawn_link(fun() ->
        Client = connect(N, Table),
        QoS = qos(N + ?CLIENTS - 1),
        QoS = ?CLIENT:subscribe(Client, topic(N), QoS),
        receive
            {subscribed, From} -> From ! {self(), ok}
        end,
        publish(Client, 1, #{n => N, table => Table, received => []})
    end).

call(Pid, Request) ->
    Monitor = monitor(process, Pid),
    Pid ! {Request, self()},
    receive
        {Pid, Answer} ->
            demonitor(Monitor, [flush]),
            Answer;
        {'DOWN', Monitor, process, Pid, Reason} ->
            error(Reason)
    after 2 * ?PATIENCE -> error({no_answer, Request})
    end.

connect(N, Table) -> connect(N, Table, erlang:monotonic_time(millisecond) + ?PATIENCE).

connect(N, Table, Until) ->
    Options = #{
        port => ets:lookup_element(Table, port, 2), client_id => client_id(N), clean_start => false,
        expiry => 300, version => 4 + (N div 2) rem 2
    },
    case catch ?CLIENT:connect(Options) of
        {ok, Client, _} ->
            Client;
        Other ->
            erlang:monotonic_time(millisecond) < Until orelse error({not_connected, N, Other}),
            timer:sleep(50),
            connect(N, Table, Until)
    end.

%% The next number, until it is acknowledged.
publish(Client, Number, #{n := N} = State) ->
    receive
        {stop, From} ->
            From ! {self(), Number - 1},
            go_on_receiving(Client, Number, State)
    after 0 ->
        Payload = integer_to_binary(Number),
        case catch ?CLIENT:publish(Client, topic(N + 1), Payload, #{qos => qos(N)}) of
            {ok, _} -> publish(Client, Number + 1, State);
            _ -> reconnect(Client, Number, State, fun publish/3)
        end
    end.

go_on_receiving(Client, Number, State) ->
    receive
        {received, From} -> From ! {self(), numbers(Client, State)}
    after 100 ->
        case ?CLIENT:status(Client) of
            connected -> go_on_receiving(Client, Number, State);
            _ -> reconnect(Client, Number, State, fun go_on_receiving/3)
        end
    end.

reconnect(Client, Number, #{n := N, table := Table} = State, Next) ->
    Received = numbers(Client, State),
    ?CLIENT:drop(Client),
    Next(connect(N, Table), Number, State#{received := Received}).

numbers(Client, #{received := Received}) ->
    Received ++ [binary_to_integer(Payload) || #{payload := Payload} <- ?CLIENT:messages(Client)].
