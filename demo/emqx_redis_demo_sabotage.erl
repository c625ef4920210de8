%% Damages what the first node was told `ok' for, straight in Redis, so that the demo must fail: who would
%% believe a verdict that cannot be anything but good?
-module(emqx_redis_demo_sabotage).

-export([kinds/0, do/3, message_keys/1]).

%% Those that look into Redis with other code than the library's.
-define(REDIS, emqx_redis_demo_redis).
-define(KEYS, emqx_redis_fault_keys).

kinds() -> ["message", "content", "order", "session", "route"].

%% `Acknowledged' has the messages of each client in publish order. Says what was done.
-spec do(string(), ?REDIS:redis(), #{binary() => [emqx_redis_demo_input:message()]}) -> iodata().
do(Kind, Redis, Acknowledged) ->
    {Client, Messages} = hd([Entry || {_, [_, _, _ | _]} = Entry <- lists:sort(maps:to_list(Acknowledged))]),
    damage(Kind, Redis, Client, Messages).

damage("message", Redis, Client, [_, #{id := Id} | _]) ->
    Key = message_key(Redis, Client, Id),
    Queue = client_key(Redis, queue, Client),
    1 = ?REDIS:command(Redis, Key, ["DEL", Key]),
    1 = ?REDIS:command(Redis, Queue, ["ZREM", Queue, Id]),
    ["deleted a message of ", Client];
damage("content", Redis, Client, [_, #{id := Id, payload := Payload} | _]) ->
    Key = message_key(Redis, Client, Id),
    {Position, _} = binary:match(?REDIS:command(Redis, Key, ["GET", Key]), Payload),
    _ = ?REDIS:command(Redis, Key, ["SETRANGE", Key, Position, "?"]),
    ["changed a byte in a payload for ", Client];
damage("order", Redis, Client, [#{id := First}, #{id := Second} | _]) ->
    Queue = client_key(Redis, queue, Client),
    [Low, High] = [?REDIS:command(Redis, Queue, ["ZSCORE", Queue, Id]) || Id <- [First, Second]],
    2 = ?REDIS:command(Redis, Queue, ["ZADD", Queue, "CH", High, First, Low, Second]),
    ["exchanged two messages in the queue of ", Client];
damage("session", Redis, Client, _Messages) ->
    Key = client_key(Redis, session, Client),
    Indexes = [?REDIS:index_key(Redis, Name, Key) || Name <- ["sync:sessions", "expiry:sessions"]],
    1 = ?REDIS:command(Redis, Key, ["DEL", Key]),
    [1 = ?REDIS:command(Redis, Index, ["ZREM", Index, Client]) || Index <- Indexes],
    ["deleted the session of ", Client];
damage("route", Redis, _Client, _Messages) ->
    [Key] = ?REDIS:keys(Redis, "route:*tariffs/grid-1"),
    1 = ?REDIS:command(Redis, Key, ["DEL", Key]),
    "deleted the route of tariffs/grid-1".

message_key(Redis, Client, Id) ->
    ?KEYS:message_key(?REDIS:kind(Redis), Client, Id).

client_key(Redis, Kind, Client) ->
    ?KEYS:client_key(?REDIS:kind(Redis), Kind, Client).

%% The keys of all messages that are stored.
-spec message_keys(?REDIS:redis()) -> [binary()].
message_keys(Redis) ->
    ?REDIS:keys(Redis, "msg:*").
