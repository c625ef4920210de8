%% Damages what the first node was told `ok' for, straight in Redis, so that the demo must fail: who would
%% believe a verdict that cannot be anything but good?
-module(emqx_redis_demo_sabotage).

-export([kinds/0, do/3, message_keys/1]).

-define(CLIENT, emqx_redis_test_client).

kinds() -> ["message", "content", "order", "session", "route"].

%% `Acknowledged' has the messages of each client in publish order. Says what was done.
-spec do(string(), file:filename(), #{binary() => [emqx_redis_demo_input:message()]}) -> iodata().
do(Kind, Socket, Acknowledged) ->
    {Client, Messages} = hd([Entry || {_, [_, _, _ | _]} = Entry <- lists:sort(maps:to_list(Acknowledged))]),
    Redis = ?CLIENT:connect({unix, Socket}),
    Text = damage(Kind, Redis, Client, Messages),
    ok = ?CLIENT:close(Redis),
    Text.

damage("message", Redis, Client, [_, #{id := Id} | _]) ->
    1 = ?CLIENT:command(Redis, ["DEL", message_key(Client, Id)]),
    1 = ?CLIENT:command(Redis, ["ZREM", ["msgq:", Client], Id]),
    ["deleted a message of ", Client];
damage("content", Redis, Client, [_, #{id := Id, payload := Payload} | _]) ->
    Key = message_key(Client, Id),
    {Position, _} = binary:match(?CLIENT:command(Redis, ["GET", Key]), Payload),
    _ = ?CLIENT:command(Redis, ["SETRANGE", Key, Position, "?"]),
    ["changed a byte in a payload for ", Client];
damage("order", Redis, Client, [#{id := First}, #{id := Second} | _]) ->
    Queue = ["msgq:", Client],
    [Low, High] = [?CLIENT:command(Redis, ["ZSCORE", Queue, Id]) || Id <- [First, Second]],
    2 = ?CLIENT:command(Redis, ["ZADD", Queue, "CH", High, First, Low, Second]),
    ["exchanged two messages in the queue of ", Client];
damage("session", Redis, Client, _Messages) ->
    1 = ?CLIENT:command(Redis, ["DEL", ["session:", Client]]),
    1 = ?CLIENT:command(Redis, ["ZREM", "sync:sessions", Client]),
    1 = ?CLIENT:command(Redis, ["ZREM", "expiry:sessions", Client]),
    ["deleted the session of ", Client];
damage("route", Redis, _Client, _Messages) ->
    1 = ?CLIENT:command(Redis, ["DEL", "route:tariffs/grid-1"]),
    "deleted the route of tariffs/grid-1".

message_key(Client, Id) ->
    ["msg:", binary:replace(Client, <<":">>, <<"%3A">>, [global]), ":", Id].

%% The keys of all messages that are stored.
-spec message_keys(file:filename()) -> [binary()].
message_keys(Socket) ->
    Redis = ?CLIENT:connect({unix, Socket}),
    Keys = ?CLIENT:command(Redis, ["KEYS", "msg:*"]),
    ok = ?CLIENT:close(Redis),
    Keys.
