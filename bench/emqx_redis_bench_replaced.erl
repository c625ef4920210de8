%% The design that this library replaces: eight eredis connections in a pool, one picked at random for
%% each operation, the operation's commands sent one after another. Terms are stored with
%% term_to_binary. (A pool such as ecpool costs one more call to a process for each operation; that is
%% left out in its favour.)
-module(emqx_redis_bench_replaced).

-behaviour(emqx_redis_bench_driver).

-export([start/2, stop/1, prepare/3, operation/2, ack_rate/0]).
%% For the library's plain form, which sends the very same commands.
-export([commands/2, decode/2, fill/3]).
%% For the benchmark of routes.
-export([match/1, fill_routes/2]).

-define(CONNECTIONS, 8).
-define(TTL, <<"86400">>).

start(#{port := Port}, _Form) ->
    Connections = [
        begin
            {ok, Connection} = eredis:start_link("127.0.0.1", Port),
            Connection
        end
     || _ <- lists:seq(1, ?CONNECTIONS)
    ],
    #{port => Port, pool => list_to_tuple(Connections)}.

stop(#{pool := Pool}) ->
    lists:foreach(fun eredis:stop/1, tuple_to_list(Pool)).

prepare(Operation, Count, #{port := Port}) ->
    Connection = emqx_redis_test_client:connect({tcp, Port}),
    ok = fill(Operation, Count, Connection),
    emqx_redis_test_client:close(Connection).

operation(match_routes, #{pool := Pool}) ->
    Match = match(Pool),
    fun(N) -> [_, _, _] = Match(emqx_redis_bench_data:topic(N)) end;
operation(get_messages, #{pool := Pool}) ->
    Last = integer_to_binary(emqx_redis_bench_data:queue_length() - 1),
    fun(N) ->
        Client = emqx_redis_bench_data:queue_client(N),
        Connection = pick(Pool),
        {ok, Ids} = query(Connection, ["ZRANGE", ["msgq:", Client], "0", Last]),
        {ok, Values} = query(Connection, ["MGET" | [["msg:", Client, $:, Id] || Id <- Ids]]),
        decode(get_messages, Values)
    end;
operation(Operation, #{pool := Pool}) ->
    fun(N) ->
        Connection = pick(Pool),
        decode(Operation, [
            begin
                {ok, Reply} = query(Connection, Command),
                Reply
            end
         || Command <- commands(Operation, N)
        ])
    end.

%% What finds all filters that match a topic name.
match(Pool) ->
    {ok, Sha} = query(element(1, Pool), ["SCRIPT", "LOAD", scan_script()]),
    fun(Topic) ->
        Connection = pick(Pool),
        {ok, []} = query(Connection, ["SMEMBERS", ["route:", Topic]]),
        {ok, Found} = query(Connection, ["EVALSHA", Sha, "1", "route:wildcards", Topic]),
        Found
    end.

ack_rate() ->
    50000.

%% 64 callers of the scan wait longer than eredis does by default.
query(Connection, Command) ->
    eredis:q(Connection, Command, infinity).

pick(Pool) ->
    element(rand:uniform(?CONNECTIONS), Pool).

%% The commands of an operation whose commands are known beforehand.
commands(save_session, N) ->
    Client = emqx_redis_bench_data:client(N),
    Key = ["session:", Client],
    Seconds = integer_to_binary(erlang:system_time(second)),
    Expiry = integer_to_binary(erlang:system_time(second) + 86400),
    Data = term_to_binary(emqx_redis_bench_data:session()),
    [
        ["HSET", Key, "data", Data, "created_at", Seconds, "updated_at", Seconds, "expires_at", Expiry] ++
            ["node", atom_to_binary(node())],
        ["EXPIRE", Key, ?TTL],
        ["ZADD", "sync:sessions", milliseconds(), Client]
    ];
commands(load_session, N) ->
    [["HGET", ["session:", emqx_redis_bench_data:client(N)], "data"]];
commands(store_message, N) ->
    Client = emqx_redis_bench_data:client(N),
    Message = #{id := Id, timestamp := Timestamp} = emqx_redis_bench_data:message(N),
    [
        ["SET", ["msg:", Client, $:, Id], term_to_binary(Message), "EX", ?TTL],
        ["ZADD", ["msgq:", Client], integer_to_binary(Timestamp), Id],
        ["ZADD", "sync:messages", milliseconds(), [Client, $:, Id]]
    ];
commands(ack_message, N) ->
    Client = emqx_redis_bench_data:client(N),
    Id = emqx_redis_bench_data:message_id(N),
    [
        ["DEL", ["msg:", Client, $:, Id]],
        ["ZREM", ["msgq:", Client], Id],
        ["ZREM", "sync:messages", [Client, $:, Id]]
    ].

%% Judges the replies, and decodes what was asked for.
decode(save_session, [_Fields, <<"1">>, _New]) -> ok;
decode(save_session, [_Fields, 1, _New]) -> ok;
decode(load_session, [Data]) -> binary_to_term(Data);
decode(store_message, [<<"OK">>, _, _]) -> ok;
decode(ack_message, [<<"1">>, <<"1">>, <<"1">>]) -> ok;
decode(ack_message, [1, 1, 1]) -> ok;
decode(get_messages, Values) when length(Values) =:= 100 -> [binary_to_term(Value) || Value <- Values].

milliseconds() ->
    integer_to_binary(erlang:system_time(millisecond)).

%% Reads every wildcard filter and matches each as a Lua pattern.
scan_script() ->
    <<
        "local found = {}\n"
        "for _, entry in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do\n"
        "  local filter = string.match(entry, '^(.*)|[^|]*$')\n"
        "  local pattern = string.gsub(filter, '[%^%$%(%)%%%.%[%]%*%-%?]', '%%%0')\n"
        "  pattern = string.gsub(pattern, '%+', '[^/]*')\n"
        "  pattern = '^' .. string.gsub(pattern, '/#$', '/')\n"
        "  if string.sub(filter, -2) ~= '/#' then pattern = pattern .. '/$' end\n"
        "  if string.match(ARGV[1] .. '/', pattern) then found[#found + 1] = entry end\n"
        "end\n"
        "return found\n"
    >>.

%% Puts into Redis what Operation finds there, in this design's layout.
fill(save_session, _Count, _Connection) ->
    ok;
fill(store_message, _Count, _Connection) ->
    ok;
fill(load_session, _Count, Connection) ->
    send_all(Connection, [commands(save_session, N) || N <- clients()]);
fill(ack_message, Count, Connection) ->
    fill_messages(Connection, 0, Count);
fill(get_messages, _Count, Connection) ->
    send_all(Connection, [
        [
            ["SET", ["msg:", Client, $:, Id], term_to_binary(Message), "EX", ?TTL],
            ["ZADD", ["msgq:", Client], integer_to_binary(Timestamp), Id]
        ]
     || C <- lists:seq(0, emqx_redis_bench_data:queue_client_count() - 1),
        Client <- [emqx_redis_bench_data:queue_client(C)],
        N <- lists:seq(1, emqx_redis_bench_data:queue_length()),
        Message = #{id := Id, timestamp := Timestamp} <- [emqx_redis_bench_data:message(N)]
    ]);
fill(match_routes, _Count, Connection) ->
    fill_routes(emqx_redis_bench_data:filters(), Connection).

fill_routes(Filters, Connection) ->
    Node = atom_to_binary(emqx_redis_bench_data:node_name()),
    send_all(Connection, [[["ZADD", "route:wildcards", "0", [Filter, $|, Node]]] || Filter <- Filters]).

fill_messages(Connection, From, Count) when From < Count ->
    To = min(From + 1000, Count),
    ok = send_all(Connection, [commands(store_message, N) || N <- lists:seq(From, To - 1)]),
    fill_messages(Connection, To, Count);
fill_messages(_Connection, _From, _Count) ->
    ok.

clients() ->
    lists:seq(0, emqx_redis_bench_data:client_count() - 1).

send_all(_Connection, []) ->
    ok;
send_all(Connection, Operations) ->
    {Some, Rest} = lists:split(min(200, length(Operations)), Operations),
    Replies = emqx_redis_test_client:pipeline(Connection, lists:append(Some)),
    [] = [Error || Error = {error, _} <- Replies],
    send_all(Connection, Rest).
