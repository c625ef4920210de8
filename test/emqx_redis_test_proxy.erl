%% A TCP proxy that stands between the library and Redis and does what networks do: it freezes,
%% delays, loses replies, cuts connections, refuses new ones, and delivers late what broken connections
%% have sent. It does not look at what passes: TLS is bytes like any other. It keeps it, if asked to.
%%
%%     Proxy = emqx_redis_test_proxy:start(emqx_redis_test_server:address(Server)),
%%     Config = #{redis => #{servers => emqx_redis_test_proxy:servers(Proxy)}},
%%     emqx_redis_test_proxy:set_mode(Proxy, freeze)
%%
%% Each direction of a connection has a reader, which takes bytes from one socket, and a writer, which
%% gives them to the other when the mode allows it. The proxy ends with the process that started it.
-module(emqx_redis_test_proxy).

-export([start/1, stop/1, port/1, servers/1, set_mode/2, cut/1, connection_count/1, accepted_count/1]).
-export([hold_existing/1, held_bytes/1, release/1]).
-export([record/1, recorded/1]).

-export_type([proxy/0, mode/0]).

-type proxy() :: {pid(), inet:port_number(), ets:table()}.
-type mode() ::
    forward
    %% Nothing passes in either direction, nothing is lost; connections stay open.
    | freeze
    %% The same in one direction alone.
    | {freeze, direction()}
    %% Every byte arrives so many milliseconds later.
    | {delay, pos_integer()}
    | {delay, direction(), pos_integer()}
    %% Requests reach Redis, what Redis answers from now on is lost.
    | drop_replies
    %% What the client sends from now on is lost.
    | drop_requests
    %% New connections are closed at once; old ones go on.
    | refuse.

-type direction() :: requests | replies.

-define(POLL, 5).
-define(DELIVERY_TIMEOUT, 5000).

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

%% Closes every connection, and stays ready for new ones. Of a connection that is held the client's side
%% alone is closed: Redis does not know yet.
-spec cut(proxy()) -> ok.
cut(Proxy) ->
    call(Proxy, cut).

%% What clients send from now on over the connections that are open now stays in the network until
%% release/1, also if the client closes its side meanwhile; replies pass, and so do new connections. If
%% Redis closes its side first, what is held is lost, as it would be in the world.
-spec hold_existing(proxy()) -> ok.
hold_existing(Proxy) ->
    call(Proxy, hold).

%% How many bytes would reach Redis now.
-spec held_bytes(proxy()) -> non_neg_integer().
held_bytes({_Pid, _Port, Table}) ->
    lists:sum([waiting(Connection, Table) || [Connection] <- ets:match(Table, {{hold, '$1'}, holding})]).

%% Returns when all that was held has been given to Redis's sockets.
-spec release(proxy()) -> ok.
release({_Pid, _Port, Table}) ->
    Connections = [Connection || [Connection] <- ets:match(Table, {{hold, '$1'}, holding})],
    lists:foreach(fun(Each) -> ets:update_element(Table, {hold, Each}, {2, released}) end, Connections),
    Delivered = fun(Connection) -> waiting(Connection, Table) =:= 0 end,
    emqx_redis_test_helpers:wait_until(fun() -> lists:all(Delivered, Connections) end, ?DELIVERY_TIMEOUT).

-spec connection_count(proxy()) -> non_neg_integer().
connection_count({_Pid, _Port, Table}) ->
    ets:lookup_element(Table, open, 2).

%% How many connections were made since the start.
-spec accepted_count(proxy()) -> non_neg_integer().
accepted_count({_Pid, _Port, Table}) ->
    ets:lookup_element(Table, accepted, 2).

%% Keeps what clients send from now on.
-spec record(proxy()) -> ok.
record({_Pid, _Port, Table}) ->
    true = ets:insert(Table, {recording, true}),
    ok.

%% What clients have sent since, all bytes of a connection in one.
-spec recorded(proxy()) -> [binary()].
recorded({_Pid, _Port, Table}) ->
    Parts = lists:sort(ets:match(Table, {{recorded, '$1', '$2'}, '$3'})),
    Connections = lists:usort([Connection || [Connection, _Number, _Bytes] <- Parts]),
    [iolist_to_binary([Bytes || [Of, _, Bytes] <- Parts, Of =:= Each]) || Each <- Connections].

%% Internal

call({Pid, _Port, _Table}, Request) ->
    Ref = make_ref(),
    Pid ! {Request, self(), Ref},
    receive
        {Ref, Result} -> Result
    end.

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
    case gen_tcp:accept(Listener) of
        {ok, Client} ->
            %% Refused where the client has gone already, as later uses of the socket will be.
            _ = gen_tcp:controlling_process(Client, Proxy),
            Proxy ! {accepted, Client},
            accept(Proxy, Listener);
        %% The proxy ends.
        {error, closed} ->
            exit(shutdown)
    end.

loop(State = #{parent := Parent, acceptor := Acceptor, table := Table, connections := Connections}) ->
    true = ets:insert(Table, {open, map_size(Connections)}),
    receive
        {accepted, Client} ->
            loop(accepted(Client, State));
        {cut, From, Ref} ->
            Left = maps:filter(fun(Pid, Client) -> cut_connection(Pid, Client, Table) end, Connections),
            true = ets:insert(Table, {open, map_size(Left)}),
            From ! {Ref, ok},
            loop(State#{connections := Left});
        {hold, From, Ref} ->
            true = ets:insert(Table, [{{hold, Pid}, holding} || Pid <- maps:keys(Connections)]),
            From ! {Ref, ok},
            loop(State);
        {'EXIT', Pid, _Reason} when is_map_key(Pid, Connections) ->
            forget(Pid, Table),
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
            _ = gen_tcp:controlling_process(Client, Pid),
            Pid ! go,
            State#{connections := Connections#{Pid => Client}}
    end.

%% Whether something of the connection is left.
cut_connection(Pid, Client, Table) ->
    case hold_state(Pid, Table) of
        holding ->
            ok = gen_tcp:close(Client),
            true;
        _ ->
            end_connection(Pid),
            forget(Pid, Table),
            false
    end.

forget(Pid, Table) ->
    true = ets:delete(Table, {hold, Pid}),
    true = ets:delete(Table, {waiting, Pid}).

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
            Self = self(),
            _ = spawn_link(fun() -> direction(Client, Redis, {Self, requests}, Table) end),
            _ = spawn_link(fun() -> direction(Redis, Client, {Self, replies}, Table) end),
            receive
                _Nothing -> ok
            end;
        {error, _} ->
            ok
    end.

connect({unix, Path}) -> gen_tcp:connect({local, Path}, 0, [binary, {active, false}]);
connect({tcp, Port}) -> gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}, {nodelay, true}]).

direction(From, To, Lane, Table) ->
    Writer = spawn_link(fun() -> write(To, Lane, Table) end),
    read(From, Writer, Lane, Table).

%% A frozen reader reads no further, so that the sender's socket fills up as it would in the world. One
%% that is held reads on, since its sender may close the connection.
read(From, Writer, Lane = {Connection, Direction}, Table) ->
    Received = gen_tcp:recv(From, 0),
    At = now_ms(),
    wait_while_frozen(Direction, Table),
    case Received of
        {ok, Bytes} ->
            Direction =:= requests andalso count_waiting(Connection, byte_size(Bytes), Table),
            Direction =:= requests andalso keep(Connection, Bytes, Table),
            Writer ! {bytes, At, Bytes},
            read(From, Writer, Lane, Table);
        {error, _} ->
            Writer ! closed,
            timer:sleep(infinity)
    end.

write(To, Lane = {Connection, Direction}, Table) ->
    receive
        {bytes, At, Bytes} ->
            wait_until_due(At, Direction, Table),
            wait_while_frozen(Direction, Table),
            Direction =:= requests andalso wait_while_held(Connection, Table),
            Sent = is_lost(Direction, mode(Table)) orelse gen_tcp:send(To, Bytes),
            Direction =:= requests andalso count_waiting(Connection, -byte_size(Bytes), Table),
            case Sent of
                {error, _} -> receiver_ended(Lane, Table);
                _ -> ok
            end,
            write(To, Lane, Table);
        closed ->
            sender_ended(To, Lane, Table)
    end.

is_lost(Direction, drop_replies) -> Direction =:= replies;
is_lost(Direction, drop_requests) -> Direction =:= requests;
is_lost(_Direction, _Mode) -> false.

%% One side's end is the connection's. But of a connection that was held the client's is not: there
%% Redis reads all that comes late, then the end, and closes its side.
receiver_ended({Connection, replies}, Table) ->
    hold_state(Connection, Table) =/= none orelse exit(shutdown);
receiver_ended({_Connection, requests}, _Table) ->
    exit(shutdown).

sender_ended(Redis, {Connection, requests}, Table) ->
    wait_while_held(Connection, Table),
    hold_state(Connection, Table) =/= none orelse exit(shutdown),
    _ = gen_tcp:shutdown(Redis, write),
    timer:sleep(infinity);
sender_ended(_Client, {_Connection, replies}, _Table) ->
    exit(shutdown).

wait_until_due(At, Direction, Table) ->
    Delay =
        case mode(Table) of
            {delay, Milliseconds} -> Milliseconds;
            {delay, Direction, Milliseconds} -> Milliseconds;
            _ -> 0
        end,
    Left = At + Delay - now_ms(),
    Left > 0 andalso timer:sleep(Left).

wait_while_frozen(Direction, Table) ->
    Mode = mode(Table),
    case Mode =:= freeze orelse Mode =:= {freeze, Direction} of
        true ->
            timer:sleep(?POLL),
            wait_while_frozen(Direction, Table);
        false ->
            ok
    end.

wait_while_held(Connection, Table) ->
    case hold_state(Connection, Table) of
        holding ->
            timer:sleep(?POLL),
            wait_while_held(Connection, Table);
        _ ->
            ok
    end.

hold_state(Connection, Table) ->
    case ets:lookup(Table, {hold, Connection}) of
        [{_, State}] -> State;
        [] -> none
    end.

count_waiting(Connection, Bytes, Table) ->
    ets:update_counter(Table, {waiting, Connection}, Bytes, {{waiting, Connection}, 0}).

keep(Connection, Bytes, Table) ->
    Key = {recorded, Connection, erlang:unique_integer([monotonic])},
    ets:member(Table, recording) andalso ets:insert(Table, {Key, Bytes}).

waiting(Connection, Table) ->
    case ets:lookup(Table, {waiting, Connection}) of
        [{_, Bytes}] -> Bytes;
        [] -> 0
    end.

mode(Table) ->
    ets:lookup_element(Table, mode, 2).

now_ms() ->
    erlang:monotonic_time(millisecond).
