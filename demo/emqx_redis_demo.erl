%% `make demo': a node takes on sessions, routes and messages and is killed in mid-write; another node, a
%% fresh process, must have everything that the first one was told `ok' for.
%%
%% This virtual machine only looks on: it starts a private Redis (emqx_redis_demo_redis), which loses a master
%% too where it is a sentinel set or a cluster, and the two nodes (emqx_redis_demo_node), keeps a journal of
%% every `ok' that the first node reports, and compares what the second node finds with the input file.
-module(emqx_redis_demo).

-export([start/0]).

-define(NODE_1, 'emqx@node1').
-define(NODE_2, 'emqx@node2').
%% Topics whose routes are compared with those of a plain matcher.
-define(SAMPLE, 500).
-define(DEFAULTS, #{messages => 1 bsl 30, sabotage => none, topology => single}).

-type demo() :: #{
    input := emqx_redis_demo_input:input(),
    %% What each client is to receive, in publish order.
    copies := #{binary() => [emqx_redis_demo_input:message()]},
    sample := #{binary() => [binary()]},
    sabotage := string() | none,
    start_node := fun(() -> emqx_redis_demo_process:process()),
    redis := emqx_redis_demo_redis:redis()
}.
%% How many of what there must be none of.
-type faults() :: [{non_neg_integer(), iodata()}].

%% The command line: the input file, --messages N (only the first N of the file), --sabotage KIND,
%% --topology KIND.
-spec start() -> pid().
start() ->
    [File | Arguments] = init:get_plain_arguments(),
    spawn(fun() ->
        Status =
            try
                show(File, options(Arguments, ?DEFAULTS))
            catch
                throw:{usage, Text} ->
                    io:format(standard_error, "~s~n", [Text]),
                    2;
                Class:Reason:Stack ->
                    io:format("~nFAILED: the demo itself broke: ~tp~n", [{Class, Reason, Stack}]),
                    1
            end,
        erlang:halt(Status)
    end).

options([], Options) ->
    Options;
options(["--messages", Number | Rest], Options) ->
    case string:to_integer(Number) of
        {Messages, ""} when Messages >= 100 -> options(Rest, Options#{messages := Messages});
        _ -> throw({usage, "--messages: a number from 100 on"})
    end;
options(["--sabotage", Kind | Rest], Options) ->
    lists:member(Kind, emqx_redis_demo_sabotage:kinds()) orelse
        throw({usage, ["--sabotage: one of ", lists:join(", ", emqx_redis_demo_sabotage:kinds())]}),
    options(Rest, Options#{sabotage := Kind});
options(["--topology", Name | Rest], Options) ->
    Kinds = emqx_redis_demo_redis:kinds(),
    case [Kind || Kind <- Kinds, atom_to_list(Kind) =:= Name] of
        [Kind] -> options(Rest, Options#{topology := Kind});
        [] -> throw({usage, ["--topology: one of ", lists:join(", ", [atom_to_list(K) || K <- Kinds])]})
    end;
options([Unknown | _], _Options) ->
    throw({usage, ["unknown: ", Unknown, "; known: --messages N, --sabotage KIND, --topology KIND"]}).

%% The exit status.
show(File, #{messages := Limit, sabotage := Sabotage, topology := Kind}) ->
    Begin = erlang:monotonic_time(millisecond),
    Input = emqx_redis_demo_input:read(File, Limit),
    Copies = copies(Input),
    Redis = emqx_redis_demo_redis:start(Kind),
    Folder = emqx_redis_demo_redis:folder(Redis),
    Config = emqx_redis_demo_redis:config(Redis),
    introduce(File, Input, Copies, Redis),
    Faults =
        try
            demo(#{
                input => Input,
                copies => Copies,
                sample => sample(Input),
                sabotage => Sabotage,
                redis => Redis,
                start_node => fun() -> emqx_redis_demo_process:start(Folder, Config, File, Limit) end
            })
        after
            emqx_redis_demo_redis:stop(Redis)
        end,
    judge(Faults, (erlang:monotonic_time(millisecond) - Begin) / 1000).

introduce(File, #{sessions := Sessions, publishes := Publishes}, Copies, Redis) ->
    Subscriptions = lists:sum([map_size(Map) || #{subscriptions := Map} <- maps:values(Sessions)]),
    io:format(
        "A node is killed in mid-write. Has another one everything that the first was told ok for?~n~n"
        "  input   ~s sessions with ~s subscriptions; ~s messages of QoS 1 and 2, of~n"
        "          which subscribers are to get ~s copies (~ts)~n"
        "  Redis   ~ts~n"
        "          ~ts~n"
        "  nodes   processes of Erlang/OTP ~s that share nothing but this Redis~n",
        [
            emqx_redis_demo_table:number(map_size(Sessions)),
            emqx_redis_demo_table:number(Subscriptions),
            emqx_redis_demo_table:number(length(Publishes)),
            emqx_redis_demo_table:number(count(Copies)),
            File,
            emqx_redis_demo_redis:describe(Redis),
            lists:join("\n          ", emqx_redis_demo_redis:promise(Redis)),
            erlang:system_info(otp_release)
        ]
    ),
    emqx_redis_demo_table:head().

-spec demo(demo()) -> faults().
demo(Demo = #{start_node := StartNode, sabotage := Sabotage}) ->
    Node1 = StartNode(),
    {Numbers, Faults1} = first_node(Demo, Node1),
    Acknowledged = of_publishes(Demo, Numbers),
    sabotage(Sabotage, Demo, Acknowledged),
    Node2 = StartNode(),
    emqx_redis_demo_table:step(3, "Node 2 (process ~b), a fresh one, takes over", [os_pid(Node2)]),
    Faults2 = take_over(Demo, Node2),
    {Drained, Faults3} = drain(Demo, Node2, Acknowledged),
    Faults4 = move_routes(Demo, Node2),
    emqx_redis_demo_table:step(4, "Node 2 takes on what no publisher got an ok for", []),
    Faults5 = take_on_rest(Demo, Node2, Numbers, Acknowledged, Drained),
    ok = emqx_redis_demo_process:stop(Node2),
    Faults1 ++ Faults2 ++ Faults3 ++ Faults4 ++ Faults5.

%%--------------------------------------------------------------------
%% The steps
%%--------------------------------------------------------------------

%% The numbers of the publishes that the first node was told `ok' for.
-spec first_node(demo(), emqx_redis_demo_process:process()) -> {[pos_integer()], faults()}.
first_node(#{input := Input, redis := Redis}, Node) ->
    #{sessions := Sessions, publishes := Publishes} = Input,
    Filters = emqx_redis_demo_input:filters(Input),
    emqx_redis_demo_table:step(1, "Node 1 (process ~b) takes on the clients", [os_pid(Node)]),
    {#{}, _} = ask(Node, {hello, ?NODE_1}),
    {Connected, Seconds} = ask(Node, connect_clients),
    row("sessions saved", map_size(Sessions), session, Connected, Seconds),
    {Routed, RouteSeconds} = ask(Node, add_routes),
    row("routes added", length(Filters), route, Routed, RouteSeconds),

    Publishers = lists:usort([From || {_, #{from := From}} <- Publishes]),
    Enough = length(Publishes) div 3,
    emqx_redis_demo_table:step(2, "~s publishers send at once; kill -9 at ~s acknowledged messages", [
        emqx_redis_demo_table:number(length(Publishers)), emqx_redis_demo_table:number(Enough)
    ]),
    Result = emqx_redis_demo_kill:publish(Node, Redis, [Number || {Number, _} <- Publishes], Enough),
    #{ending := Ending, reports := Stored, seconds := StoreSeconds} = Result,
    failed_over(Result),
    row("topics matched to subscribers", none, matched, Stored, StoreSeconds),
    row("messages acknowledged before the end", none, message, Stored, StoreSeconds),
    Numbers = lists:sort([Number || {message, Number, _} <- of_kind(message, Stored)]),
    Done = sets:from_list(Numbers, [{version, 2}]),
    Unfinished = lists:usort([
        From
     || {Number, #{from := From}} <- Publishes, not sets:is_element(Number, Done)
    ]),
    emqx_redis_demo_table:row("publishers cut short", none, length(Unfinished)),
    {Numbers, [
        {map_size(Sessions) - length(of_kind(session, Connected)), "sessions not saved"},
        {length(Filters) - length(of_kind(route, Routed)), "routes not added"},
        {one_if(Ending =/= {exited, 128 + 9}), io_lib:format("node 1 was not killed: ~p", [Ending])},
        {one_if(length(Unfinished) < 2), "node 1 had (nearly) finished before the kill"}
        | lists:append([failures(Reports) || Reports <- [Connected, Routed, Stored]])
    ]}.

%% What Redis went through in the second step.
failed_over(#{failed_over := none}) ->
    ok;
failed_over(#{failed_over := {Promoted, Healthy}, reports := Reports}) ->
    io:format(
        "   (kill -9 of a Redis master at half of that: a replica in its place ~.1f s later, the dead~n"
        "   server back as a replica, in sync, after ~.1f s; node 1 dies when there is a new master)~n",
        [Promoted / 1000, Healthy / 1000]
    ),
    emqx_redis_demo_table:row("not ok meanwhile, so sent again", none, length(of_kind(again, Reports))).

sabotage(none, _Demo, _Acknowledged) ->
    ok;
sabotage(Kind, #{redis := Redis}, Acknowledged) ->
    Text = emqx_redis_demo_sabotage:do(Kind, Redis, Acknowledged),
    io:format("!  Sabotage, straight in Redis: ~ts~n", [Text]).

take_over(#{input := #{sessions := Sessions}, sample := Sample}, Node) ->
    {#{}, _} = ask(Node, {hello, ?NODE_2}),
    {Listing, _} = ask(Node, list_sessions),
    Listed = lists:append([Clients || {listed, Clients} <- of_kind(listed, Listing)]),
    {Matched, MatchSeconds} = ask(Node, {match, maps:keys(Sample)}),
    row("topics matched, all routes to node 1", map_size(Sample), routes, Matched, MatchSeconds),
    {Taken, Seconds} = ask(Node, {take_over, Listed}),
    Equal = equal_sessions(loaded, Taken, Sessions),
    Kept = equal_sessions(kept, Taken, Sessions),
    Refused = [Late || {late_write, _, {error, {stale_epoch, 2}}, _} = Late <- of_kind(late_write, Taken)],
    row("sessions found and loaded", map_size(Sessions), loaded, Taken, Seconds),
    row("sessions claimed, epoch raised to 2", map_size(Sessions), claimed, Taken, Seconds),
    row("late writes of node 1 (epoch 1) refused", map_size(Sessions), late_write, Taken, Seconds),
    Expected = lists:sort(maps:keys(Sessions)),
    [
        {length(Expected -- lists:sort(Listed)), "sessions missing in the list"},
        {length(Listed) - length(lists:usort(Listed)), "sessions listed twice"},
        {length(Expected) - length(Equal), "sessions missing or different"},
        {length(Expected) - length(Refused), "late writes not refused"},
        {length(Expected) - length(Kept), "sessions changed by a late write"},
        {emqx_redis_demo_judge:routes(Sample, matches(Matched), ?NODE_1), "topics with wrong routes"}
        | failures(Listing) ++ failures(Matched) ++ failures(Taken)
    ].

equal_sessions(Kind, Reports, Sessions) ->
    [
        Client
     || {_, Client, Session, _} <- of_kind(Kind, Reports), {ok, Session} =:= maps:find(Client, Sessions)
    ].

%% What was drained, in the order of each client's queue.
drain(#{copies := Copies}, Node, Acknowledged) ->
    {Reports, Seconds} = ask(Node, drain),
    Drained = drained(Reports),
    Account = account(Copies, Acknowledged, Drained),
    drained_row("acknowledged copies delivered in order", Acknowledged, Account, Reports, Seconds),
    Unacknowledged = map_get(unacknowledged, Account),
    emqx_redis_demo_table:row("more: stored, but the kill cut off the ok", none, Unacknowledged),
    {Drained, emqx_redis_demo_judge:faults(Account) ++ failures(Reports)}.

move_routes(#{input := Input, sample := Sample}, Node) ->
    Filters = emqx_redis_demo_input:filters(Input),
    {Added, AddSeconds} = ask(Node, add_routes),
    {Dropped, DropSeconds} = ask(Node, {drop_routes, ?NODE_1}),
    row("routes moved to node 2", length(Filters), dropped, Dropped, AddSeconds + DropSeconds),
    {Matched, MatchSeconds} = ask(Node, {match, maps:keys(Sample)}),
    row("topics matched, all routes to node 2", map_size(Sample), routes, Matched, MatchSeconds),
    [
        {length(Filters) - length(of_kind(dropped, Dropped)), "routes not moved"},
        {emqx_redis_demo_judge:routes(Sample, matches(Matched), ?NODE_2), "topics with unmoved routes"}
        | failures(Added) ++ failures(Dropped) ++ failures(Matched)
    ].

%% The publishers send again what they have no acknowledgement for.
take_on_rest(Demo, Node, Numbers, Acknowledged, Drained) ->
    #{input := #{publishes := Publishes}, copies := Copies, redis := Redis} = Demo,
    Again = [Number || {Number, _} <- Publishes] -- Numbers,
    {Stored, StoreSeconds} = ask(Node, {publish, Again}),
    row("messages acknowledged", length(Again), message, Stored, StoreSeconds),
    Rest = without(without(Copies, Acknowledged), Drained),
    {Reports, Seconds} = ask(Node, drain),
    Last = drained(Reports),
    Account = account(Rest, Rest, Last),
    drained_row("copies delivered in order", Rest, Account, Reports, Seconds),
    All = maps:map(fun(Client, _) -> of_client(Client, Drained) ++ of_client(Client, Last) end, Copies),
    Found = map_get(found, account(Copies, Copies, All)),
    emqx_redis_demo_table:row("copies delivered by node 2 in all", count(Copies), Found),
    Left = length(emqx_redis_demo_sabotage:message_keys(Redis)),
    emqx_redis_demo_table:row("messages left in Redis", 0, Left),
    [
        {length(Again) - length(of_kind(message, Stored)), "messages not acknowledged by node 2"},
        {Left, "messages left in Redis"},
        {
            lists:sum([
                emqx_redis_demo_judge:order_by_publisher(Messages, map_get(Client, All))
             || {Client, Messages} <- maps:to_list(Copies)
            ]),
            "publishers whose messages arrived in another order"
        }
        | emqx_redis_demo_judge:faults(Account) ++ failures(Stored) ++ failures(Reports)
    ].

-spec judge(faults(), float()) -> 0 | 1.
judge(Faults, Seconds) ->
    io:nl(),
    case [Fault || {Number, _} = Fault <- Faults, Number > 0] of
        [] ->
            io:format(
                "Missing 0, out of order 0, different 0, surplus 0: all that was told ok is there.~n"
                "PASSED in ~.1f s~n",
                [Seconds]
            ),
            0;
        Found ->
            lists:foreach(fun({Number, What}) -> io:format("~8b  ~ts~n", [Number, What]) end, Found),
            io:format("FAILED in ~.1f s~n", [Seconds]),
            1
    end.

%%--------------------------------------------------------------------
%% What was expected, what was reported
%%--------------------------------------------------------------------

%% What each client is to receive, in publish order.
copies(Input = #{sessions := Sessions, publishes := Publishes}) ->
    Receivers = emqx_redis_demo_input:receivers(Input, [Topic || {_, #{topic := Topic}} <- Publishes]),
    lists:foldr(
        fun({_, #{topic := Topic} = Message}, All) ->
            lists:foldl(
                fun(Client, Copies) -> Copies#{Client := [Message | map_get(Client, Copies)]} end,
                All,
                map_get(Topic, Receivers)
            )
        end,
        maps:map(fun(_, _) -> [] end, Sessions),
        Publishes
    ).

%% Of these copies those of the publishes with these numbers.
of_publishes(#{input := #{publishes := Publishes}, copies := Copies}, Numbers) ->
    Wanted = sets:from_list(Numbers, [{version, 2}]),
    Ids = set([Message || {Number, Message} <- Publishes, sets:is_element(Number, Wanted)]),
    maps:map(fun(_, Messages) -> [M || #{id := Id} = M <- Messages, sets:is_element(Id, Ids)] end, Copies).

without(Copies, Others) ->
    maps:map(
        fun(Client, Messages) ->
            Ids = set(of_client(Client, Others)),
            [Message || #{id := Id} = Message <- Messages, not sets:is_element(Id, Ids)]
        end,
        Copies
    ).

set(Messages) ->
    sets:from_list([Id || #{id := Id} <- Messages], [{version, 2}]).

of_client(Client, Copies) ->
    maps:get(Client, Copies, []).

count(Copies) ->
    lists:sum([length(Messages) || Messages <- maps:values(Copies)]).

%% For some topics that are published to, and for every filter without wildcards, the filters that match.
sample(Input = #{publishes := Publishes}) ->
    Topics = lists:usort([Topic || {_, #{topic := Topic}} <- Publishes]),
    Step = 1 + length(Topics) div ?SAMPLE,
    Numbered = lists:zip(lists:seq(1, length(Topics)), Topics),
    Some = [Topic || {Number, Topic} <- Numbered, Number rem Step =:= 0],
    Filters = emqx_redis_demo_input:filters(Input),
    Exact = [Filter || Filter <- Filters, binary:match(Filter, [<<"+">>, <<"#">>]) =:= nomatch],
    emqx_redis_demo_input:matching_filters(Filters, Some ++ Exact).

account(Copies, Wanted, Got) ->
    Accounts = [
        emqx_redis_demo_judge:deliveries(Messages, set(of_client(Client, Wanted)), of_client(Client, Got))
     || {Client, Messages} <- maps:to_list(Copies)
    ],
    lists:foldl(fun emqx_redis_demo_judge:add/2, hd(Accounts), tl(Accounts)).

%% A node's reports by their kinds, in the order they came.
ask(Node, Command) ->
    case emqx_redis_demo_process:command(Node, Command, fun add/2, #{}) of
        {done, Reports, Seconds} -> {maps:map(fun(_, List) -> lists:reverse(List) end, Reports), Seconds};
        {Ending, _, _} -> error({node_ended, Ending, Command})
    end.

add(Report, Reports) ->
    maps:update_with(element(1, Report), fun(List) -> [Report | List] end, [Report], Reports).

of_kind(Kind, Reports) ->
    maps:get(Kind, Reports, []).

failures(Reports) ->
    case of_kind(failed, Reports) of
        [] -> [];
        [First | _] = All -> [{length(All), io_lib:format("unexpected answers, such as ~0tP", [First, 30])}]
    end.

matches(Reports) ->
    maps:from_list([{Topic, Routes} || {routes, Topic, Routes, _} <- of_kind(routes, Reports)]).

drained(Reports) ->
    lists:foldr(
        fun({drained, Client, Page, _}, All) -> All#{Client => Page ++ of_client(Client, All)} end,
        #{},
        of_kind(drained, Reports)
    ).

%% The table's line for reports of one kind.
row(Text, Expected, Kind, Reports, Seconds) ->
    List = of_kind(Kind, Reports),
    emqx_redis_demo_table:row(Text, Expected, length(List), Seconds, times(List)).

%% Here an item is a message, and the times are those of reading a page.
drained_row(Text, Wanted, #{found := Found}, Reports, Seconds) ->
    emqx_redis_demo_table:row(Text, count(Wanted), Found, Seconds, times(of_kind(drained, Reports))).

times(Reports) ->
    [element(tuple_size(Report), Report) || Report <- Reports].

os_pid(Node) ->
    emqx_redis_demo_process:os_pid(Node).

one_if(true) -> 1;
one_if(false) -> 0.
