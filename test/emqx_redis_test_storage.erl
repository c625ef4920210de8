%% A running storage on a private Redis or a cluster of three, for the suites of the public API. A suite whose
%% tests run on both has a group for each:
%%
%%     groups() -> [{single, cases()}, {cluster, cases()}].
%%     init_per_group(Topology, Config) -> emqx_redis_test_storage:start([{topology, Topology} | Config]).
-module(emqx_redis_test_storage).

-export([start/1, start/2, stop/1, reset/1, config/1, topology/1]).
-export([match_in_redis/1, is_of_followers/1, feeds/1]).
-export([cli/2, keys/1, key/2, named_keys/1, index_size/2, pause/1, resume/1, wait_connected/0]).
-export([in_list_order/2, slot/2, sweep_time/1, adversarial_ids/0]).

-type key() ::
    {session | epoch | queue, Client :: binary()} | {message, Client :: binary(), Id :: binary()}.

-define(SERVER, emqx_redis_test_server).
-define(CLUSTER, emqx_redis_test_cluster).
-define(CLIENT, emqx_redis_test_client).

%% For init_per_suite or init_per_group: Redis and the storage on it.
-spec start(list()) -> list().
start(Config) -> start(Config, #{}).

-spec start(list(), map()) -> list().
start(Config, Settings) ->
    Started =
        case topology(Config) of
            single -> [{server, ?SERVER:start()} | Config];
            cluster -> [{cluster, ?CLUSTER:start(#{masters => 3, replicas => 0})} | Config]
        end,
    ok = emqx_redis_storage:start(maps:merge(config(Started), Settings)),
    wait_connected(),
    Started.

%% For end_per_suite or end_per_group.
-spec stop(list()) -> ok.
stop(Config) ->
    ok = emqx_redis_storage:stop(),
    case topology(Config) of
        single -> ?SERVER:stop(proplists:get_value(server, Config));
        cluster -> ?CLUSTER:stop(proplists:get_value(cluster, Config))
    end.

%% For init_per_testcase: an empty Redis, but for what the storage wrote when it connected.
-spec reset(list()) -> list().
reset(Config) ->
    UsesRoutes = maps:get(routes, emqx_redis_storage:status(), []) =/= [],
    UsesRoutes andalso forget_routes(),
    lists:foreach(fun delete_all/1, servers(Config)),
    UsesRoutes andalso await_no_routes(),
    Config.

%% What this node has added for itself it would add again.
forget_routes() ->
    {ok, Filters} = emqx_redis_router:topics(),
    delete_own(Filters).

delete_own([]) ->
    ok;
delete_own(Filters) ->
    {Some, Others} = lists:split(min(10000, length(Filters)), Filters),
    ok = emqx_redis_router:delete_routes([{Filter, node()} || Filter <- Some]),
    delete_own(Others).

await_no_routes() ->
    #{routes := Shards} = emqx_redis_storage:status(),
    IsEmpty = fun(Shard) ->
        Empty = #{in_sync => true, routes => 0, subscriptions => 0},
        maps:with(maps:keys(Empty), Shard) =:= Empty
    end,
    case lists:all(IsEmpty, Shards) andalso lists:all(fun(#{version := V}) -> V < 2 end, Shards) of
        true ->
            ok;
        false ->
            timer:sleep(5),
            await_no_routes()
    end.

%% Past the memory of this node.
-spec match_in_redis(binary()) -> {ok, [{binary(), node()}]} | {error, term()}.
match_in_redis(Topic) ->
    Request = emqx_redis_router:match_routes_async(Topic),
    {reply, Result} = emqx_redis_storage:receive_response(Request, 10000),
    Result.

-spec topology(list()) -> single | cluster.
topology(Config) -> proplists:get_value(topology, Config, single).

%% What emqx_redis_storage:start/1 takes.
-spec config(list()) -> map().
config(Config) ->
    case topology(Config) of
        single -> ?SERVER:config(proplists:get_value(server, Config));
        cluster -> ?CLUSTER:config(proplists:get_value(cluster, Config))
    end.

%% What an independent client is answered. In a cluster the command goes to the owner of its first argument.
-spec cli(list(), [iodata() | atom() | integer()]) -> emqx_redis_test_client:reply().
cli(Config, Command) ->
    case topology(Config) of
        single ->
            ?SERVER:cli(proplists:get_value(server, Config), Command);
        cluster ->
            ?CLUSTER:command_by_key(proplists:get_value(cluster, Config), lists:nth(2, Command), Command)
    end.

-spec keys(list()) -> [binary()].
keys(Config) ->
    Keys = lists:append([?SERVER:cli(Server, ["KEYS", "*"]) || Server <- servers(Config)]),
    lists:sort([Key || Key <- Keys, not is_of_followers(Key)]).

-spec feeds(list()) -> [Key :: binary()].
feeds(Config) -> lists:append([?SERVER:cli(Server, ["KEYS", "feed*"]) || Server <- servers(Config)]).

%% Feeds keep what has been, and leases who lives.
-spec is_of_followers(binary()) -> boolean().
is_of_followers(Key) ->
    lists:any(fun(Name) -> string:prefix(Key, Name) =/= nomatch end, [<<"feed">>, <<"leases">>]).

%% The name of what belongs to a client.
-spec key(list(), key()) -> binary().
key(Config, {message, Client, Id}) ->
    Encoded =
        case topology(Config) of
            single -> percent_encode(Client, [<<"%">>, <<":">>]);
            cluster -> tag(Client)
        end,
    <<"msg:", Encoded/binary, ":", Id/binary>>;
key(Config, {Kind, Client}) ->
    Name = case Kind of session -> <<"session:">>; epoch -> <<"epoch:">>; queue -> <<"msgq:">> end,
    case topology(Config) of
        single -> <<Name/binary, Client/binary>>;
        cluster -> <<Name/binary, (tag(Client))/binary>>
    end.

%% The keys that there are, by the names that they have on a single server, where client ids hold nothing that
%% is encoded.
-spec named_keys(list()) -> #{Name :: binary() => Key :: binary()}.
named_keys(Config) ->
    maps:from_list([{plain_name(Key), Key} || Key <- keys(Config)]).

%% How many members an index has; in a cluster all slots' together.
-spec index_size(list(), Name :: binary()) -> non_neg_integer().
index_size(Config, Name) ->
    case topology(Config) of
        single ->
            cli(Config, ["ZCARD", Name]);
        cluster ->
            Length = byte_size(Name),
            Indexes = [Key || Key = <<Begin:Length/binary, ":{", _/binary>> <- keys(Config), Begin =:= Name],
            lists:sum([cli(Config, ["ZCARD", Key]) || Key <- Indexes])
    end.

-spec pause(list()) -> ok.
pause(Config) -> lists:foreach(fun ?SERVER:pause/1, servers(Config)).

-spec resume(list()) -> ok.
resume(Config) -> lists:foreach(fun ?SERVER:resume/1, servers(Config)).

%% Client ids that were saved in this order, in that in which emqx_redis_session:list_sessions/2 gives them:
%% in a cluster slot by slot.
-spec in_list_order(list(), [binary()]) -> [binary()].
in_list_order(Config, Clients) ->
    [Client || {_, Client} <- lists:keysort(1, [{slot(Config, Client), Client} || Client <- Clients])].

-spec slot(list(), Client :: binary()) -> non_neg_integer().
slot(Config, Client) ->
    case topology(Config) of
        single -> 0;
        cluster -> ?CLUSTER:key_slot(key(Config, {session, Client}))
    end.

%% How long it may take until what has expired has left the indexes: in a cluster the slots take turns.
-spec sweep_time(list()) -> timeout().
sweep_time(Config) ->
    case topology(Config) of
        single -> 3000;
        cluster -> 30000
    end.

-spec wait_connected() -> ok.
wait_connected() ->
    emqx_redis_test_helpers:wait_until(fun() ->
        maps:get(connected, emqx_redis_storage:status(), false)
    end).

%% Names that confuse whoever puts keys together carelessly: the second part of one may be the first
%% of another, and every byte that means something to Redis, Lua or our encoding is there.
-spec adversarial_ids() -> [binary()].
adversarial_ids() ->
    [
        <<>>,
        <<"c">>,
        <<"c:1">>,
        <<"c%3A1">>,
        <<"c%253A1">>,
        <<":">>,
        <<"::">>,
        <<"%">>,
        <<"{c}">>,
        <<"}{">>,
        <<"*">>,
        <<"a?[b]">>,
        <<0>>,
        <<"c", 0, "1">>,
        <<"00:1B:44:11:3A:B7">>,
        <<"\r\n">>,
        <<"Größe/Ω"/utf8>>,
        <<0, 58, 255, 37, 123, 10, 13, 125, 128, 7, 42, 92, 34, 39, 254, 58>>,
        <<"sessions">>,
        <<"meta">>
    ].

%% Internal

servers(Config) ->
    case topology(Config) of
        single -> [proplists:get_value(server, Config)];
        cluster -> ?CLUSTER:nodes(proplists:get_value(cluster, Config))
    end.

delete_all(Server) ->
    Connection = ?SERVER:connect(Server),
    Keys = ?CLIENT:command(Connection, ["KEYS", "*"]),
    _ = ?CLIENT:pipeline(Connection, [["DEL", Key] || Key <- Keys, Key =/= <<"meta">>]),
    ?CLIENT:close(Connection).

%% Of a client's key the tag is its id, elsewhere it stands for a slot.
plain_name(Key) ->
    Client = "^(session:|epoch:|msgq:|msg:)\\{([^}]*)\\}(.*)$",
    case re:run(Key, Client, [{capture, all_but_first, binary}, dotall]) of
        {match, Parts} -> iolist_to_binary(Parts);
        nomatch -> re:replace(Key, ":\\{[^}]*\\}", "", [{return, binary}])
    end.

tag(<<>>) -> <<"{%}">>;
tag(Client) -> <<"{", (percent_encode(Client, [<<"%">>, <<"}">>]))/binary, "}">>.

percent_encode(Name, Bytes) ->
    Encode = fun(Byte, Done) ->
        binary:replace(Done, Byte, <<"%", (binary:encode_hex(Byte))/binary>>, [global])
    end,
    lists:foldl(Encode, Name, Bytes).
