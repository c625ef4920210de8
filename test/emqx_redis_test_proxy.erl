%% A TCP proxy that stands between the library and Redis and does what networks do: it freezes,
%% delays, loses replies, cuts connections and refuses new ones.
%%
%%     Proxy = emqx_redis_test_proxy:start(emqx_redis_test_server:address(Server)),
%%     Config = #{redis => #{servers => emqx_redis_test_proxy:servers(Proxy)}},
%%     emqx_redis_test_proxy:set_mode(Proxy, freeze)
%%
%% Each direction of a connection has a reader, which takes bytes from one socket, and a writer, which
%% gives them to the other when the mode allows it. The proxy ends with the process that started it.
-module(emqx_redis_test_proxy).

-export([start/1, stop/1, port/1, servers/1, set_mode/2, cut/1, connection_count/1, accepted_count/1]).

-export_type([proxy/0, mode/0]).

-type proxy() :: {pid(), inet:port_number(), ets:table()}.
-type mode() ::
    forward
    %% Nothing passes in either direction, nothing is lost; connections stay open.
    | freeze
    %% Every byte arrives so many milliseconds later.
    | {delay, pos_integer()}
    %% Requests reach Redis, what Redis answers from now on is lost.
    | drop_replies
    %% What the client sends from now on is lost.
    | drop_requests
    %% New connections are closed at once; old ones go on.
    | refuse.

-define(POLL, 5).

-spec start(emqx_redis_test_client:address()) -> proxy().
start(Target) ->
    Parent = self(),
    Pid = spawn_link(fun() -> init(Parent, Target) end),
    receive
        {Pid, Port, Table} -> {Pid, Port, Table}
    end.

%% Closes every connection and the listening port.
-spec stop(proxy()) -> ok.
stop({Pid, _Port, _Table}) ->
    unlink(Pid),
    Monitor = monitor(process, Pid),
    exit(Pid, shutdown),
    receive
        {'DOWN', Monitor, process, Pid, _Reason} -> ok
    end.

-spec port(proxy()) -> inet:port_number().
port({_Pid, Port, _Table}) ->
    Port.

-spec servers(proxy()) -> binary().
servers({_Pid, Port, _Table}) ->
    iolist_to_binary(["127.0.0.1:", integer_to_list(Port)]).

-spec set_mode(proxy(), mode()) -> ok.
set_mode({_Pid, _Port, Table}, Mode) ->
    true = ets:insert(Table, {mode, Mode}),
    ok.

%% Closes every connection, and stays ready for new ones.
-spec cut(proxy()) -> ok.
cut({Pid, _Port, _Table}) ->
    Ref = make_ref(),
    Pid ! {cut, self(), Ref},
    receive
        {cut, Ref} -> ok
    end.

-spec connection_count(proxy()) -> non_neg_integer().
connection_count({_Pid, _Port, Table}) ->
    ets:lookup_element(Table, open, 2).

%% How many connections were made since the start.
-spec accepted_count(proxy()) -> non_neg_integer().
accepted_count({_Pid, _Port, Table}) ->
    ets:lookup_element(Table, accepted, 2).

%% Internal: the proxy's main process owns the table and starts one process for each connection.

init(Parent, Target) ->
    process_flag(trap_exit, true),
    Table = ets:new(?MODULE, [public, {read_concurrency, true}]),
    true = ets:insert(Table, [{mode, forward}, {open, 0}, {accepted, 0}]),
    {ok, Listener} = gen_tcp:listen(0, [
        binary, {active, false}, {ip, {127, 0, 0, 1}}, {reuseaddr, true}, {nodelay, true}, {backlog, 128}
    ]),
    {ok, Port} = inet:port(Listener),
    Parent ! {self(), Port, Table},
    Proxy = self(),
    Acceptor = spawn_link(fun() -> accept(Proxy, Listener) end),
    loop(#{
        parent => Parent,
        acceptor => Acceptor,
        target => Target,
        table => Table,
        connections => #{}
    }).

accept(Proxy, Listener) ->
    {ok, Client} = gen_tcp:accept(Listener),
    ok = gen_tcp:controlling_process(Client, Proxy),
    Proxy ! {accepted, Client},
    accept(Proxy, Listener).

loop(State = #{parent := Parent, acceptor := Acceptor, table := Table, connections := Connections}) ->
    true = ets:insert(Table, {open, map_size(Connections)}),
    receive
        {accepted, Client} ->
            loop(accepted(Client, State));
        {cut, From, Ref} ->
            maps:foreach(fun(Pid, _) -> end_connection(Pid) end, Connections),
            true = ets:insert(Table, {open, 0}),
            From ! {cut, Ref},
            loop(State#{connections := #{}});
        {'EXIT', Pid, _Reason} when is_map_key(Pid, Connections) ->
            loop(State#{connections := maps:remove(Pid, Connections)});
        {'EXIT', Pid, Reason} when Pid =:= Parent; Pid =:= Acceptor ->
            maps:foreach(fun(Connection, _) -> end_connection(Connection) end, Connections),
            exit(Reason);
        {'EXIT', _Other, shutdown} ->
            maps:foreach(fun(Connection, _) -> end_connection(Connection) end, Connections),
            exit(shutdown);
        _Other ->
            loop(State)
    end.

accepted(Client, State = #{table := Table, target := Target, connections := Connections}) ->
    _ = ets:update_counter(Table, accepted, 1),
    case mode(Table) of
        refuse ->
            ok = gen_tcp:close(Client),
            State;
        _ ->
            Pid = spawn_link(fun() ->
                receive
                    go -> connection(Client, Target, Table)
                end
            end),
            ok = gen_tcp:controlling_process(Client, Pid),
            Pid ! go,
            State#{connections := Connections#{Pid => Client}}
    end.

end_connection(Pid) ->
    Monitor = monitor(process, Pid),
    exit(Pid, kill),
    receive
        {'DOWN', Monitor, process, Pid, _Reason} -> ok
    end.

%% Owns both sockets, so that its end, for whatever reason, closes them.
connection(Client, Target, Table) ->
    case connect(Target) of
        {ok, Redis} ->
            _ = spawn_link(fun() -> direction(Client, Redis, requests, Table) end),
            _ = spawn_link(fun() -> direction(Redis, Client, replies, Table) end),
            receive
                _Nothing -> ok
            end;
        {error, _} ->
            ok
    end.

connect({unix, Path}) -> gen_tcp:connect({local, Path}, 0, [binary, {active, false}]);
connect({tcp, Port}) -> gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}, {nodelay, true}]).

direction(From, To, Direction, Table) ->
    Writer = spawn_link(fun() -> write(To, Direction, Table) end),
    read(From, Writer, Table).

%% A frozen reader reads no further, so that the sender's socket fills up as it would in the world.
read(From, Writer, Table) ->
    Received = gen_tcp:recv(From, 0),
    At = now_ms(),
    wait_while_frozen(Table),
    case Received of
        {ok, Bytes} ->
            Writer ! {bytes, At, Bytes},
            read(From, Writer, Table);
        {error, _} ->
            Writer ! closed,
            timer:sleep(infinity)
    end.

write(To, Direction, Table) ->
    receive
        {bytes, At, Bytes} ->
            wait_until_due(At, Table),
            wait_while_frozen(Table),
            Lost =
                case mode(Table) of
                    drop_replies -> Direction =:= replies;
                    drop_requests -> Direction =:= requests;
                    _ -> false
                end,
            case Lost orelse gen_tcp:send(To, Bytes) of
                {error, _} -> exit(shutdown);
                _ -> write(To, Direction, Table)
            end;
        closed ->
            exit(shutdown)
    end.

wait_until_due(At, Table) ->
    case mode(Table) of
        {delay, Milliseconds} ->
            Left = At + Milliseconds - now_ms(),
            Left > 0 andalso timer:sleep(Left);
        _ ->
            ok
    end.

wait_while_frozen(Table) ->
    case mode(Table) of
        freeze ->
            timer:sleep(?POLL),
            wait_while_frozen(Table);
        _ ->
            ok
    end.

mode(Table) ->
    ets:lookup_element(Table, mode, 2).

now_ms() ->
    erlang:monotonic_time(millisecond).
