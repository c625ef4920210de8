%% Damages, straight in Redis, what writers were told `ok' for, before the check, which must then fail: who
%% would believe a verdict that cannot be anything but good?
-module(emqx_redis_fault_sabotage).

-export([kinds/0, do/3]).

-define(TOPOLOGY, emqx_redis_fault_topology).
-define(KEYS, emqx_redis_fault_keys).
-define(KEYSPACE, emqx_redis_fault_keyspace).
-define(CLIENT, emqx_redis_fault_client).
-define(SERVER, emqx_redis_test_server).

-spec kinds() -> [string()].
kinds() ->
    ["session", "old_session", "deleted_session", "message", "content", "order", "acknowledged"] ++
        ["route", "leak"].

%% What the writers know is the answer, with what was done through the library beside.
-spec do(string() | none, ?TOPOLOGY:topology(), [emqx_redis_fault_writer:items()]) ->
    [emqx_redis_fault_writer:items()].
do(none, _Topology, AllItems) ->
    AllItems;
do("route", Topology, AllItems) ->
    [Filter | _] = [
        Filter
     || #{routes := Routes} <- AllItems,
        Routes =/= dropped,
        {Filter, _Node} <- emqx_redis_fault_routes:certain(Routes),
        binary:match(Filter, [<<"+">>, <<"#">>]) =:= nomatch
    ],
    told(["deleted the key of the route ", Filter]),
    [Key] = [
        Key
     || Server <- ?TOPOLOGY:masters(Topology),
        Key <- ?SERVER:cli(Server, ["KEYS", "route:*"], 30000),
        {route, _Tag, Found} <- [?KEYS:parse(kind(Topology), Key)],
        Found =:= Filter
    ],
    1 = command(Topology, Key, ["DEL", Key]),
    AllItems;
do(Kind, Topology, AllItems) ->
    [{Items, Client, Sequences} | _] = [
        {Items, Client, Sequences}
     || Items = #{clients := Clients} <- AllItems,
        Client <- Clients,
        {true, [_, _ | _] = Sequences} <- [?CLIENT:certain(Client)]
    ],
    {Text, Changed} = damage(Kind, Topology, Client, Sequences),
    told([Text, io_lib:format(" ~0tp", [?CLIENT:id(Client)])]),
    #{clients := Clients} = Items,
    [Items#{clients := [Changed | Clients -- [Client]]} | AllItems -- [Items]].

%% Internal

damage("session", Topology, Client, _) ->
    remove_session(Topology, Client),
    {"deleted the session of", Client};
damage("deleted_session", Topology, Client, _) ->
    %% As if the deletion had not been the last word.
    Key = session_key(Topology, Client),
    Old = command(Topology, Key, ["DUMP", Key]),
    Left = command(Topology, Key, ["PTTL", Key]),
    remove_session(Topology, Client),
    <<"OK">> = command(Topology, Key, ["RESTORE", Key, Left, Old]),
    {"brought back the deleted session of", ?CLIENT:advance(Client, 0)};
damage("old_session", Topology, Client, _) ->
    Key = session_key(Topology, Client),
    Old = command(Topology, Key, ["HGET", Key, "data"]),
    Saved = ?CLIENT:save_again(Client),
    _ = command(Topology, Key, ["HSET", Key, "data", Old]),
    {"put back an older session of", Saved};
damage("message", Topology, Client, [_, Sequence | _]) ->
    ok = ack(Topology, Client, Sequence),
    {"deleted a message of", Client};
damage("content", Topology, Client, [Sequence | _]) ->
    Key = message_key(Topology, Client, Sequence),
    _ = command(Topology, Key, ["SETRANGE", Key, 12, "?"]),
    {"changed a byte of a message of", Client};
damage("order", Topology, Client, [First, Second | _]) ->
    Queue = queue_key(Topology, Client),
    [Id1, Id2] = [emqx_redis_fault_terms:message_id(Sequence) || Sequence <- [First, Second]],
    [Low, High] = [command(Topology, Queue, ["ZSCORE", Queue, Id]) || Id <- [Id1, Id2]],
    2 = command(Topology, Queue, ["ZADD", Queue, "CH", High, Id1, Low, Id2]),
    {"exchanged two messages of", Client};
damage("acknowledged", Topology, Client, [Sequence | _]) ->
    Key = message_key(Topology, Client, Sequence),
    Queue = queue_key(Topology, Client),
    Id = emqx_redis_fault_terms:message_id(Sequence),
    Value = command(Topology, Key, ["GET", Key]),
    Score = command(Topology, Queue, ["ZSCORE", Queue, Id]),
    ok = ack(Topology, Client, Sequence),
    <<"OK">> = command(Topology, Key, ["SET", Key, Value, "PX", 100000]),
    1 = command(Topology, Queue, ["ZADD", Queue, Score, Id]),
    {"brought back an acknowledged message of", ?CLIENT:forget_message(Client, Sequence)};
damage("leak", Topology, Client, _) ->
    Key = iolist_to_binary(?KEYS:message_key(kind(Topology), ?CLIENT:id(Client), <<"nobody's">>)),
    <<"OK">> = command(Topology, Key, ["SET", Key, "x"]),
    {"left a message without a queue for", Client}.

remove_session(Topology, Client) ->
    Key = session_key(Topology, Client),
    Id = ?CLIENT:id(Client),
    Tag = ?KEYSPACE:tag(Topology, Id),
    1 = command(Topology, Key, ["DEL", Key]),
    lists:foreach(
        fun(Index) ->
            1 = command(Topology, Key, ["ZREM", ?KEYS:index_key(kind(Topology), Index, Tag), Id])
        end,
        [sessions, session_expiry]
    ).

%% Without the library, which would have it that the message was acknowledged.
ack(Topology, Client, Sequence) ->
    Id = ?CLIENT:id(Client),
    Tag = ?KEYSPACE:tag(Topology, Id),
    MessageId = emqx_redis_fault_terms:message_id(Sequence),
    Key = message_key(Topology, Client, Sequence),
    1 = command(Topology, Key, ["DEL", Key]),
    1 = command(Topology, Key, ["ZREM", queue_key(Topology, Client), MessageId]),
    Member = ?KEYS:message_member(kind(Topology), Id, MessageId),
    lists:foreach(
        fun(Index) ->
            1 = command(Topology, Key, ["ZREM", ?KEYS:index_key(kind(Topology), Index, Tag), Member])
        end,
        [messages, message_expiry]
    ).

session_key(Topology, Client) ->
    iolist_to_binary(?KEYS:client_key(kind(Topology), session, ?CLIENT:id(Client))).

queue_key(Topology, Client) ->
    iolist_to_binary(?KEYS:client_key(kind(Topology), queue, ?CLIENT:id(Client))).

message_key(Topology, Client, Sequence) ->
    Id = emqx_redis_fault_terms:message_id(Sequence),
    iolist_to_binary(?KEYS:message_key(kind(Topology), ?CLIENT:id(Client), Id)).

kind(Topology) ->
    ?TOPOLOGY:kind(Topology).

%% To the master that has the key.
command(Topology, Key, Command) ->
    case ?TOPOLOGY:kind(Topology) of
        cluster -> emqx_redis_test_cluster:command_by_key(?TOPOLOGY:handle(Topology), Key, Command);
        _ -> ?SERVER:cli(hd(?TOPOLOGY:masters(Topology)), Command)
    end.

told(Text) ->
    io:format("  ! sabotage, straight in Redis: ~ts~n", [Text]).
