%% `emqx ctl redis_storage ...': looks at what is in Redis. With `--json' as JSON, for programs.
%%
%% A client id that is shown as hexadecimal (see `emqx_redis_cli_format') may be given so, too.
-module(emqx_redis_cli).

-export([run/1]).

-import(emqx_redis_cli_format, [table/1, table/2, text/1, term/1, printable/1, to_binary/1]).
-import(emqx_redis_cli_format, [time/1, expiry/1, duration/1]).

-define(LIMIT, 50).
-define(MOST, 10000).

%% EMQX asks for `usage' when it lists all commands. What fails is printed, and answered `{error, Text}',
%% for the exit code of `emqx ctl'.
-spec run([string()] | usage) -> ok | {error, binary()}.
run(usage) ->
    usage();
run(Arguments) ->
    AsJson = lists:member("--json", Arguments),
    case lists:delete("--json", Arguments) of
        [Name | Rest] -> command(list_to_binary(Name), Rest, AsJson);
        [] -> usage()
    end.

command(<<"status">>, [], AsJson) ->
    show(<<"status">>, status(), AsJson, fun format_status/1);
command(<<"sessions">>, Page, AsJson) ->
    paged(<<"sessions">>, Page, 2, AsJson, fun sessions/2, fun format_sessions/1);
command(<<"session">>, [Client], AsJson) ->
    show(<<"session">>, for_client(Client, fun session/1), AsJson, fun format_session/1);
command(<<"messages">>, [Client | Page], AsJson) ->
    Read = fun(Limit, Offset) -> for_client(Client, fun(Id) -> messages(Id, Limit, Offset) end) end,
    paged(<<"messages">>, Page, 2, AsJson, Read, fun format_messages/1);
command(<<"routes">>, Page, AsJson) ->
    paged(<<"routes">>, Page, 1, AsJson, fun(Limit, 0) -> routes(Limit) end, fun format_routes/1);
command(<<"fsck">>, [], AsJson) ->
    show(<<"fsck">>, emqx_redis_fsck:run(), AsJson, fun format_fsck/1);
command(<<"fsck">>, ["--repair"], AsJson) ->
    show(<<"fsck">>, emqx_redis_fsck:run(#{repair => true}), AsJson, fun format_fsck/1);
command(_, _, _) ->
    usage().

usage() ->
    Rows = [
        ["status", "the storage: connection, routes, warnings, counters"],
        ["sessions [LIMIT [OFFSET]]", "the sessions in Redis, those saved longest ago first"],
        ["session CLIENT", "a client's session"],
        ["messages CLIENT [LIMIT [OFFSET]]", "the messages that wait for a client"],
        ["routes [LIMIT]", "the filters that have subscriptions of sessions, or routes to nodes"],
        ["fsck [--repair]", "looks for what does not fit together in Redis, and mends it"],
        ["... --json", "the same as JSON"]
    ],
    print(table([["redis_storage " ++ Command, "# " ++ Text] || [Command, Text] <- Rows], none)).

%% `LIMIT [OFFSET]', as many of them as there may be.
paged(Name, Arguments, Most, AsJson, Read, Format) ->
    Numbers = [string:to_integer(Argument) || Argument <- Arguments],
    case Numbers of
        _ when length(Numbers) > Most -> usage();
        [] -> show(Name, Read(?LIMIT, 0), AsJson, Format);
        [{Limit, []}] when Limit > 0, Limit =< ?MOST -> show(Name, Read(Limit, 0), AsJson, Format);
        [{Limit, []}, {Offset, []}] when Limit > 0, Limit =< ?MOST, Offset >= 0 ->
            show(Name, Read(Limit, Offset), AsJson, Format);
        _ -> fail(Name, ["LIMIT is a number from 1 to ", integer_to_list(?MOST), ", OFFSET one from 0"])
    end.

show(_Name, {ok, Value}, true, _Format) -> print([emqx_redis_cli_format:json(Value), $\n]);
show(_Name, {ok, Value}, false, Format) -> print(Format(Value));
show(Name, {error, Reason}, _AsJson, _Format) -> fail(Name, reason(Reason)).

fail(Name, Why) ->
    Text = unicode:characters_to_binary([Name, ": ", Why]),
    print(["ERROR ", Text, $\n]),
    {error, Text}.

print(Text) -> io:put_chars(Text).

reason(not_found) -> "there is no such session";
reason(stopped) -> "the storage does not run (enable = false?)";
reason(timeout) -> "Redis did not answer in time";
reason({unavailable, Why}) -> io_lib:format("Redis is away: ~0tp", [Why]);
reason({redis, _Code, Text}) -> ["Redis refused: ", Text];
reason({undecodable, #{message_id := Id, reason := Why}}) ->
    io_lib:format("the message ~ts is none of ours: ~0tp", [printable(Id), Why]);
reason({undecodable, #{reason := Why}}) -> io_lib:format("what is stored is none of ours: ~0tp", [Why]);
reason(Reason) -> io_lib:format("~0tp", [Reason]).

%% An id that was shown as hexadecimal is found, too, unless a client has just that id.
for_client(Argument, Read) ->
    Client = unicode:characters_to_binary(Argument),
    case Read(Client) of
        Nothing when Nothing =:= {error, not_found}; Nothing =:= {ok, []} ->
            case from_hex(Client) of
                {ok, Bytes} -> Read(Bytes);
                error -> Nothing
            end;
        Found ->
            Found
    end.

from_hex(<<"0x", Hex/binary>>) ->
    try
        {ok, binary:decode_hex(Hex)}
    catch
        error:_ -> error
    end;
from_hex(_) ->
    error.

%%--------------------------------------------------------------------
%% status
%%--------------------------------------------------------------------

status() ->
    case emqx_redis_storage:status() of
        #{running := false} ->
            {error, stopped};
        Status ->
            {ok, Status#{
                policy => emqx_redis_availability:policy(),
                available => emqx_redis_availability:is_available(),
                leased => emqx_redis_router:is_leased(),
                plugin => emqx_redis_plugin_stats:read()
            }}
    end.

format_status(Status) ->
    #{
        topology := Topology, servers := Servers, connected := IsConnected, connections := Connections,
        policy := Policy, available := Available, uptime_ms := Uptime, inflight := Inflight,
        inflight_bytes := Bytes, routes := Shards, leased := Leased, warnings := Warnings,
        counters := Counters, plugin := Plugin
    } = Status,
    Ready = length([Each || #{state := connected} = Each <- Connections]),
    Server = maps:get(server, Status, #{}),
    Connected = io_lib:format("~s (~b of ~b connections)", [yes_no(IsConnected), Ready, length(Connections)]),
    Rows = [
        ["running for", duration(Uptime)],
        ["topology", Topology],
        ["servers", lists:join(", ", Servers)],
        ["version", maps:get(version, Server, <<"unknown">>)],
        ["connected", Connected],
        ["when unavailable", Policy],
        ["available", yes_no(Available)],
        ["in flight", io_lib:format("~b requests, ~b bytes", [Inflight, Bytes])],
        ["routes in memory", number(routes, Shards)],
        ["subscriptions in memory", number(subscriptions, Shards)],
        ["in sync", in_sync(Shards)],
        ["lease", case Leased of true -> "held"; false -> "not held" end]
    ],
    Help = maps:from_list(emqx_redis_plugin_stats:help()),
    Own = [[Name, Value, maps:get(Name, Help, <<>>)] || {Name, Value} <- lists:sort(maps:to_list(Plugin))],
    Counted = [[Name, Value] || {Name, Value} <- lists:sort(maps:to_list(Counters))],
    Latencies = [
        [Name, Count, P50, P99, P999]
     || {Name, #{count := Count, p50 := P50, p99 := P99, p999 := P999}} <-
            lists:sort(maps:to_list(maps:get(latency_us, Status, #{})))
    ],
    Tables = [table(Rows ++ [["warning", Text] || #{text := Text} <- Warnings], none)] ++
        [table([["PLUGIN", "COUNT", "OF"] | Own], none) || Own =/= []] ++
        [
            table([["STORAGE", "COUNT"] | Counted]),
            table([["OPERATION", "COUNT", "P50, us", "P99, us", "P99.9, us"] | Latencies])
        ],
    lists:join("\n", Tables).

number(Name, Shards) -> lists:sum([maps:get(Name, Shard, 0) || Shard <- Shards]).

in_sync([]) -> "not in use";
in_sync(Shards) ->
    InSync = length([Each || #{in_sync := true} = Each <- Shards]),
    io_lib:format("~b of ~b shards", [InSync, length(Shards)]).

yes_no(true) -> "yes";
yes_no(false) -> "no".

%%--------------------------------------------------------------------
%% Sessions, messages, routes
%%--------------------------------------------------------------------

sessions(Limit, Offset) ->
    case emqx_redis_session:list_sessions(Limit, Offset) of
        {ok, Clients} -> load_all(Clients);
        {error, _} = Error -> Error
    end.

%% Side by side; one that has ended meanwhile is left out.
load_all(Clients) ->
    Requests = [{Client, emqx_redis_session:load_session_async(Client)} || Client <- Clients],
    Loaded = [
        {Client, emqx_redis_storage:receive_response(Request, infinity)}
     || {Client, Request} <- Requests
    ],
    {ok, lists:append([loaded(Client, Result) || {Client, {reply, Result}} <- Loaded])}.

loaded(Client, {ok, Session}) -> [described(Client, Session)];
loaded(_Client, {error, not_found}) -> [];
loaded(Client, {error, Reason}) -> [#{client => Client, error => to_binary(reason(Reason))}].

session(Client) ->
    case emqx_redis_session:load_session(Client) of
        {ok, Session} -> {ok, described(Client, Session)};
        {error, _} = Error -> Error
    end.

%% See `emqx_redis_session_state'. Another application's session is any term.
described(Client, #{version := 1, subscriptions := #{}} = Session) -> Session#{client => Client};
described(Client, Other) -> #{client => Client, session => term(Other)}.

format_sessions(Sessions) ->
    table([["CLIENT", "NODE", "CREATED", "EXPIRY", "SUBSCRIPTIONS"] | [session_row(S) || S <- Sessions]]).

session_row(#{client := Client, subscriptions := Subscriptions} = Session) ->
    #{node := Node, created_at := CreatedAt, expiry := Expiry} = Session,
    [Client, Node, time(CreatedAt), expiry(Expiry), map_size(Subscriptions)];
session_row(#{client := Client, error := Error}) ->
    [Client, Error];
session_row(#{client := Client, session := _}) ->
    [Client, "(of another application)"].

format_session(#{client := Client, subscriptions := Subscriptions} = Session) ->
    #{node := Node, instance := Instance, created_at := CreatedAt, expiry := Expiry} = Session,
    [
        table([
            ["client", Client],
            ["node", Node],
            ["created", time(CreatedAt)],
            ["expiry", expiry(Expiry)],
            ["began at epoch", Instance]
        ]),
        "\n",
        table([["SUBSCRIPTION", "QOS", "NO LOCAL", "RETAIN AS PUBLISHED", "RETAIN HANDLING"] | [
            [Filter | [maps:get(Name, SubOpts, 0) || Name <- [qos, nl, rap, rh]]]
         || {Filter, SubOpts} <- lists:sort(maps:to_list(Subscriptions))
        ]])
    ];
format_session(#{client := Client, session := Session}) ->
    table([["client", Client], ["session", Session]]).

messages(Client, Limit, Offset) -> emqx_redis_message:get_messages(Client, Offset, Limit).

%% See `emqx_redis_stored_message'.
format_messages(Messages) ->
    table([["ID", "PUBLISHED", "FROM", "QOS", "TOPIC", "PAYLOAD"] | [
        [
            first_of([id, message_id, <<"id">>, <<"message_id">>], Message),
            time(first_of([published_at, timestamp], Message)),
            maps:get(from, Message, ""),
            maps:get(qos, Message, ""),
            maps:get(topic, Message, ""),
            maps:get(payload, Message, "")
        ]
     || Message <- Messages
    ]]).

first_of([Key | Keys], Map) ->
    case Map of
        #{Key := Value} -> Value;
        _ -> first_of(Keys, Map)
    end;
first_of([], _Map) ->
    "".

%% Those of sessions' subscriptions, and of the library's routes, which the plugin itself does not use.
routes(Limit) ->
    Listed = [emqx_redis_router:topics(Limit, start), emqx_redis_subscription:filters(Limit, start)],
    case [Error || {error, _} = Error <- Listed] of
        [] ->
            Filters = lists:usort(lists:append([Filters || {ok, {Filters, _}} <- Listed])),
            {ok, [route(Filter) || Filter <- lists:sublist(Filters, Limit)]};
        [Error | _] ->
            Error
    end.

%% Of all that matches a name that the filter matches, its own.
route(Filter) ->
    Name = emqx_redis_filter:example(Filter),
    Routes = matches(emqx_redis_router:match_routes(Name)),
    Subscriptions = matches(emqx_redis_subscription:match_subscriptions(Name)),
    #{
        filter => Filter,
        nodes => [Node || {Matching, Node} <- Routes, Matching =:= Filter],
        clients => length([Client || {Matching, Client, _} <- Subscriptions, Matching =:= Filter])
    }.

matches({ok, Found}) -> lists:sort(Found);
matches({error, _}) -> [].

format_routes(Routes) ->
    table([["FILTER", "SESSIONS", "NODES"] | [
        [Filter, Clients, lists:join(", ", [atom_to_list(Node) || Node <- Nodes])]
     || #{filter := Filter, clients := Clients, nodes := Nodes} <- Routes
    ]]).

%%--------------------------------------------------------------------
%% fsck
%%--------------------------------------------------------------------

format_fsck(#{complete := Complete, notes := Notes, checked := Checked, findings := Findings} = Result) ->
    Sorts = [[io_lib:format("~ts", [Sort]), Count] || {Sort, Count} <- lists:sort(maps:to_list(Checked))],
    [
        table([["servers", maps:get(servers, Result)] | Sorts]),
        "\n",
        format_findings(Findings),
        [["NOTE ", Note, $\n] || Note <- Notes],
        ["Not all of Redis was seen.\n" || not Complete]
    ].

format_findings(Findings) when map_size(Findings) =:= 0 ->
    "Nothing was found that does not fit together.\n";
format_findings(Findings) ->
    Known = [
        {Kind, Text, maps:get(Kind, Findings)}
     || {Kind, Text} <- emqx_redis_fsck:kinds(), is_map_key(Kind, Findings)
    ],
    [
        table([["FOUND", "COUNT", "REPAIRED", "WHAT IT IS; WHAT REPAIR DOES"] | [
            [Kind, Count, Repaired, Text]
         || {Kind, Text, #{count := Count, repaired := Repaired}} <- Known
        ]], none),
        "\n",
        table([["FOUND", "FOR EXAMPLE"] | [
            [Kind, format_example(Example)]
         || {Kind, _, #{examples := Examples}} <- Known, Example <- Examples
        ]], none)
    ].

format_example(Example) ->
    lists:join(", ", [[text(Name), " ", text(Value)] || {Name, Value} <- maps:to_list(Example)]).
