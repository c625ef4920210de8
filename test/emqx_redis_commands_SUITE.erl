%% Nothing that is sent is newer than Redis 5.0, unless somebody asks for it: neither a command nor a word
%% that it takes, by what the server's own documentation says of their age.
-module(emqx_redis_commands_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(CLIENT, emqx_redis_test_client).
-define(PROXY, emqx_redis_test_proxy).
-define(SET, emqx_redis_test_sentinels).
-define(CLUSTER, emqx_redis_test_cluster).
-define(ACL, emqx_redis_acl_SUITE).
-define(HELPERS, emqx_redis_test_helpers).
-define(TIMEOUT, 30000).

%% The oldest version that is supported.
-define(OLDEST, [5, 0, 0]).
%% What scripts may use of `redis`, in that version.
-define(LUA, ["call", "pcall", "error_reply", "status_reply", "sha1hex", "log", "replicate_commands"]).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        what_is_newer_is_noticed,
        one_server,
        append_only_files,
        a_sentinel_set,
        a_cluster
    ].

end_per_testcase(_Case, _Config) ->
    _ = emqx_redis_storage:stop(),
    ok = emqx_redis_test_topology:stop_all(),
    ok = ?SERVER:stop_all(),
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% Each topology
%%--------------------------------------------------------------------

what_is_newer_is_noticed(_Config) ->
    Server = ?SERVER:start(),
    Sent = [
        ["set", "k", "v", "px", "10"], ["Set", "k", "v", "Get"], ["GETEX", "k"], ["client", "no-evict", "on"],
        ["CLIENT", "ID"], ["ZRANGE", "k", "0", "1", "REV"], ["AUTH", "user", "password"], ["INFO", "a", "b"],
        ["script", "load", "#!lua\nreturn redis.setresp(3)"]
    ],
    ?assertEqual(
        [
            {"auth", "2 arguments"}, {"client|no-evict", [7, 0, 0]}, {"client|no-evict on", [7, 0, 0]},
            {"getex", [6, 2, 0]}, {"info", "2 arguments"}, {"script|load", "#!"},
            {"script|load", "redis.setresp"}, {"set get", [6, 2, 0]}, {"zrange rev", [6, 2, 0]}
        ],
        newer(Server, [[list_to_binary(Part) || Part <- Command] || Command <- Sent])
    ).

one_server(Config) ->
    Server = ?SERVER:start(#{tcp => true, requirepass => <<"secret">>}),
    #{redis := Redis} = ?SERVER:config(Server),
    Proxy = ?PROXY:start(?SERVER:address(Server)),
    Settings = #{redis => Redis#{servers := ?PROXY:servers(Proxy)}},
    Recording = record([Proxy], [Server]),
    %% Another database than the first is chosen anew on each connection.
    start(Settings, #{database => 1}),
    ok = emqx_redis_storage:stop(),
    start(Settings, #{}),
    use(?ACL:single(Server)),
    Sent = sent(Recording),
    ?assertEqual([], newer(Server, Sent)),
    %% All that there is was seen.
    ?assertEqual([], (allowed(single, Config) ++ ["auth"]) -- names(Server, Sent)),
    ?PROXY:stop(Proxy).

%% Who asks for a newer command gets it, where the server has it.
append_only_files(_Config) ->
    Server = ?SERVER:start(#{tcp => true, appendonly => true}),
    Proxy = ?PROXY:start(?SERVER:address(Server)),
    Recording = record([Proxy], [Server]),
    start(#{redis => #{servers => ?PROXY:servers(Proxy)}}, #{}),
    Level = #{durability => {aof, 1, 0}},
    case emqx_redis_session:save_session(<<"c">>, x, Level) of
        ok -> ?assertEqual([{"waitaof", [7, 2, 0]}], newer(Server, sent(Recording)));
        {error, {unsupported, _}} -> ?assertEqual([], newer(Server, sent(Recording)))
    end,
    ?PROXY:stop(Proxy).

a_sentinel_set(Config) ->
    One = #{replicas => 1, sentinels => 1, quorum => 1},
    Set = ?SET:start(One#{proxied => true, sentinel_password => <<"secret">>}),
    Servers = [Server | _] = ?SET:servers(Set),
    [Sentinel] = ?SET:sentinels(Set),
    Relay = ?PROXY:start({tcp, ?SERVER:port(Sentinel)}),
    Asked = record([Relay], []),
    Proxies = [?SET:proxy(Set, Each) || Each <- Servers],
    Recording = record(Proxies, Servers),
    #{redis := Redis} = Settings = ?SET:config(Set),
    start(Settings#{redis := Redis#{servers := ?PROXY:servers(Relay)}}, #{}),
    use(?ACL:single(?SET:master(Set))),
    Used = sent(Recording),
    %% Whom a sentinel names anew is asked for its role. Sentinels close the clients of those servers.
    _ = ?ACL:follow_failover(Set),
    Sent = lists:usort(Used ++ sent({Proxies, []})),
    ?assertEqual([], newer(Server, Sent)),
    ?assertEqual([], allowed(sentinel, Config) -- ["select" | names(Server, Sent)]),
    Questions = sent(Asked),
    ?assertEqual([], newer(Sentinel, Questions)),
    ?assertEqual(["auth" | allowed(watcher, Config)], names(Sentinel, Questions)),
    ?PROXY:stop(Relay).

a_cluster(Config) ->
    Cluster = ?CLUSTER:start(#{masters => 2, replicas => 0, proxied => true}),
    Nodes = [Node | _] = ?CLUSTER:nodes(Cluster),
    Recording = record([?CLUSTER:proxy(Cluster, Each) || Each <- Nodes], Nodes),
    start(?CLUSTER:config(Cluster), #{}),
    use(?ACL:clustered(Cluster)),
    ?assertEqual([], ?ACL:use_moving_slot(Cluster)),
    Sent = sent(Recording),
    ?assertEqual([], newer(Node, Sent)),
    ?assertEqual([], allowed(cluster, Config) -- names(Node, Sent)).

%%--------------------------------------------------------------------
%% Internal: using the storage
%%--------------------------------------------------------------------

start(#{redis := Redis} = Settings, More) ->
    Quick = #{outage_grace => <<"30s">>},
    All = maps:merge(maps:merge(Redis, Quick), More),
    ok = emqx_redis_storage:start(Settings#{redis := All, key_prefix => <<"test:">>}),
    ?ACL:connected().

use(#{servers := Servers} = Topology) ->
    ?assertEqual([], ?ACL:use_everything(Topology)),
    _ = [?SERVER:cli(Server, ["SCRIPT", "FLUSH"]) || Server <- Servers],
    Message = #{id => <<"m">>, payload => x},
    Limited = #{max_queue => 1, on_full => reject},
    ?assertEqual(ok, emqx_redis_message:store_messages(<<"other">>, [Message], Limited)),
    Full = emqx_redis_message:store_message(<<"other">>, Message#{id := <<"n">>}, Limited),
    ?assertEqual({error, queue_full}, Full),
    ?assertEqual(ok, emqx_redis_message:store_messages(<<"other">>, [Message#{id := <<"n">>}], #{ttl => 60})),
    ?assertEqual(ok, emqx_redis_message:ack_messages(<<"other">>, [<<"m">>, <<"n">>])),
    ?assertEqual(ok, emqx_redis_message:delete_messages(<<"other">>)),
    ?assertEqual(ok, emqx_redis_session:delete_session(<<"other">>)).

%%--------------------------------------------------------------------
%% Internal: recording
%%--------------------------------------------------------------------

%% What clients send goes through proxies, since servers keep some of it out of MONITOR (AUTH, CLIENT KILL).
%% What scripts call only servers see.
record(Proxies, Servers) ->
    lists:foreach(fun ?PROXY:record/1, Proxies),
    Monitors = [
        begin
            Monitor = ?SERVER:connect(Server),
            <<"OK">> = ?CLIENT:command(Monitor, ["MONITOR"]),
            {Server, Monitor}
        end
     || Server <- Servers
    ],
    {Proxies, Monitors}.

%% Every command that was sent or called by a script.
sent({Proxies, Monitors}) ->
    Connections = lists:append([?PROXY:recorded(Proxy) || Proxy <- Proxies]),
    Sent = [Command || Bytes <- Connections, is_ours(Bytes), Command <- commands(Bytes)],
    lists:usort(Sent ++ [Command || Monitor <- Monitors, Command <- called(Monitor)]).

%% Sentinels and replicas go through the proxies, too.
is_ours(Bytes) -> re:run(Bytes, "\r\n(sentinel-|replconf\r)", [caseless]) =:= nomatch.

%% `*2\r\n$3\r\nGET\r\n$1\r\nk\r\n'; the last one may not be whole.
commands(<<"*", Rest/binary>>) ->
    {Count, Arguments} = number(Rest),
    case arguments(Count, Arguments, []) of
        {Command, Others} -> [Command | commands(Others)];
        incomplete -> []
    end;
commands(<<>>) ->
    [].

arguments(0, Bytes, Command) ->
    {lists:reverse(Command), Bytes};
arguments(Count, <<"$", Rest/binary>>, Command) ->
    {Length, Bytes} = number(Rest),
    case Bytes of
        <<Argument:Length/binary, "\r\n", Others/binary>> ->
            arguments(Count - 1, Others, [Argument | Command]);
        _ ->
            incomplete
    end;
arguments(_Count, _Bytes, _Command) ->
    incomplete.

number(Bytes) ->
    case binary:split(Bytes, <<"\r\n">>) of
        [Digits, Rest] -> {binary_to_integer(Digits), Rest};
        [_] -> {0, <<>>}
    end.

%% `1339518083.107412 [0 lua] "HGET" "k" "f"'
called({Server, Monitor}) ->
    %% With this command the recording ends.
    End = <<"end-of-recording">>,
    _ = ?SERVER:cli(Server, ["PING", End]),
    Lines = lines(Monitor, End),
    ?CLIENT:close(Monitor),
    [quoted(Line) || Line <- Lines, string:find(Line, <<" lua] \"">>) =/= nomatch].

lines(Monitor, End) ->
    Line = ?CLIENT:receive_reply(Monitor),
    case string:find(Line, End) of
        nomatch -> [Line | lines(Monitor, End)];
        _ -> []
    end.

quoted(Line) ->
    Pattern = "\"((?:[^\"\\\\]|\\\\.)*)\"",
    {match, Arguments} = re:run(Line, Pattern, [global, {capture, [1], binary}]),
    lists:append(Arguments).

%%--------------------------------------------------------------------
%% Internal: how old something is
%%--------------------------------------------------------------------

%% What of it the oldest server would not know.
newer(Server, Commands) ->
    Documentation = documentation(Server, Commands),
    lists:usort(lists:append([newer_in(Command, Documentation) || Command <- Commands])).

newer_in(Command, Documentation) ->
    {Name, Arguments, #{since := Since, tokens := Tokens}} = look_up(Command, Documentation),
    Said = [lower(Argument) || Argument <- Arguments],
    Words = [{Name ++ " " ++ Word, At} || {Word, At} <- Tokens, lists:member(Word, Said)],
    [{What, At} || {What, At} <- [{Name, Since} | Words], At > ?OLDEST] ++ undated(Name, Arguments).

%% News that the documentation gives no date where it names arguments.
undated(Name, Arguments) when Name =:= "auth"; Name =:= "info"; Name =:= "config|get" ->
    [{Name, integer_to_list(length(Arguments)) ++ " arguments"} || length(Arguments) > 1];
undated("script|load" = Name, [Script]) ->
    [{Name, "#!"} || <<"#!", _/binary>> <- [Script]] ++
        [{Name, "redis." ++ Used} || Used <- lua(Script), not lists:member(Used, ?LUA)];
undated(_, _) ->
    [].

lua(Script) ->
    case re:run(Script, "\\bredis\\.(\\w+)", [global, {capture, [1], list}]) of
        {match, Names} -> lists:append(Names);
        nomatch -> []
    end.

names(Server, Commands) ->
    Documentation = documentation(Server, Commands),
    Names = lists:usort([element(1, look_up(Command, Documentation)) || Command <- Commands]),
    ct:pal("~p", [Names]),
    Names.

look_up([Command | Arguments], Documentation) ->
    Name = lower(Command),
    case maps:get(Name, Documentation) of
        #{subcommands := Subcommands} = Container when map_size(Subcommands) > 0 ->
            [Subcommand | Rest] = Arguments,
            Whole = Name ++ "|" ++ lower(Subcommand),
            {Whole, Rest, maps:get(Whole, Subcommands, Container)};
        Single ->
            {Name, Arguments, Single}
    end.

documentation(Server, Commands) ->
    Names = lists:usort([lower(Command) || [Command | _] <- Commands]),
    Documented = ?SERVER:cli(Server, ["COMMAND", "DOCS" | Names]),
    Documentation = maps:map(fun(_, Fields) -> described(pairs(Fields)) end, named(Documented)),
    %% Sentinels describe what they know alone.
    ?assertEqual([], Names -- maps:keys(Documentation)),
    Documentation.

described(#{<<"since">> := Since} = Fields) ->
    Subcommands = named(maps:get(<<"subcommands">>, Fields, [])),
    #{
        since => version(Since),
        tokens => tokens(Fields, version(Since)),
        subcommands => maps:map(fun(_, Sub) -> described(pairs(Sub)) end, Subcommands)
    }.

%% Each word that stands for itself. What belongs to a newer group is as new.
tokens(Fields, Since) ->
    Arguments = [pairs(Argument) || Argument <- maps:get(<<"arguments">>, Fields, [])],
    lists:append([
        begin
            Own = max(Since, version(maps:get(<<"since">>, Argument, <<"0">>))),
            [{lower(Token), Own} || #{<<"token">> := Token} <- [Argument]] ++ tokens(Argument, Own)
        end
     || Argument <- Arguments
    ]).

version(Text) -> [list_to_integer(Part) || Part <- string:lexemes(binary_to_list(Text), ".")].

pairs([Name, Value | Rest]) -> (pairs(Rest))#{Name => Value};
pairs([]) -> #{}.

named(List) -> maps:from_list([{lower(Name), Fields} || {Name, Fields} <- maps:to_list(pairs(List))]).

lower(Text) -> string:lowercase(binary_to_list(iolist_to_binary(Text))).

allowed(Name, Config) -> ?ACL:commands(?ACL:rule(Name, Config)).
