%% What `emqx ctl redis_storage' prints, for people and for programs.
-module(emqx_redis_cli_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(STORAGE, emqx_redis_test_storage).
-define(CLI, emqx_redis_cli).
%% As EMQX makes them.
-define(ID, <<0, 6, 63, 255, 58, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11>>).
-define(HEX, "0x00063FFF3A0102030405060708090A0B").

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [
        usage,
        status,
        sessions_in_pages,
        one_session,
        sessions_of_others,
        messages_in_pages,
        a_client_given_in_hexadecimal,
        routes,
        fsck,
        json_of_anything,
        faults_are_clear_lines,
        a_storage_that_does_not_run
    ].

init_per_suite(Config) -> ?STORAGE:start(Config).

end_per_suite(Config) -> ?STORAGE:stop(Config).

init_per_testcase(a_storage_that_does_not_run, Config) -> Config;
init_per_testcase(_Case, Config) -> ?STORAGE:reset(Config).

end_per_testcase(_Case, _Config) ->
    [] = emqx_redis_test_helpers:stray_messages(20),
    ok.

usage(_Config) ->
    {ok, Usage} = printed(usage),
    Words = ["status", "sessions [LIMIT", "fsck [--repair]", "--json"],
    [?assert(contains(Usage, Word), Word) || Word <- Words],
    [
        ?assertEqual({ok, Usage}, printed(Arguments), Arguments)
     || Arguments <- [
            [], ["--json"], ["help"], ["session"], ["sessions", "1", "2", "3"], ["status", "now"],
            ["messages"], ["routes", "1", "2"], ["fsck", "--force"]
        ]
    ].

status(_Config) ->
    {ok, Text} = printed(["status"]),
    [
        ?assert(contains(Text, Word), Word)
     || Word <- [
            "topology                 single", "connected                yes (2 of 2 connections)",
            "when unavailable         reject", "warning", "submitted", "OPERATION"
        ]
    ],
    #{<<"connected">> := true, <<"policy">> := <<"reject">>, <<"counters">> := #{<<"sent">> := Sent}} =
        json(["status"]),
    ?assert(is_integer(Sent)).

sessions_in_pages(_Config) ->
    ?assertEqual({ok, ["CLIENT  NODE  CREATED  EXPIRY  SUBSCRIPTIONS"]}, lines(["sessions"])),
    ?assertEqual([], json(["sessions"])),
    Clients = [<<"c", (integer_to_binary(N))/binary>> || N <- lists:seq(1, 60)],
    [ok = save(Client, #{}) || Client <- Clients],
    {ok, [_ | Rows]} = lines(["sessions"]),
    ?assertEqual(50, length(Rows)),
    {ok, [Head, One, Two]} = lines(["sessions", "2", "9"]),
    ?assertEqual(["c10", atom_to_list(node()), "2023-11-14T22:13:20.000Z", "2h", "0"], words(One)),
    %% Columns stand below one another.
    [
        ?assertEqual(element(1, binary:match(to_binary(Head), Title)), string:length(Before))
     || {Title, At} <- [{<<"NODE">>, atom_to_list(node())}, {<<"CREATED">>, "2023"}],
        Before <- [hd(string:split(Two, At))]
    ],
    ?assertEqual([<<"c60">>], [maps:get(<<"client">>, S) || S <- json(["sessions", "5", "59"])]).

one_session(_Config) ->
    SubOpts = #{qos => 1, nl => 1, rap => 0, rh => 2},
    ok = save(<<"c1">>, #{<<"a/+">> => SubOpts, <<"b">> => #{qos => 2}}),
    {ok, Lines} = lines(["session", "c1"]),
    ?assertMatch([["client", "c1"], ["node", _] | _], [words(Line) || Line <- lists:sublist(Lines, 2)]),
    ?assertEqual(
        [["a/+", "1", "1", "0", "2"], ["b", "2", "0", "0", "0"]],
        [words(Line) || Line <- lists:nthtail(6, Lines)]
    ),
    ?assertMatch(
        #{<<"subscriptions">> := #{<<"a/+">> := #{<<"qos">> := 1}}, <<"expiry">> := 7200000},
        json(["session", "c1"])
    ),
    %% 0xFFFFFFFF seconds.
    {ok, Session} = emqx_redis_session:load_session(<<"c1">>),
    ok = emqx_redis_session:save_session(<<"c1">>, Session#{expiry := 16#FFFFFFFF * 1000}),
    {ok, Endless} = printed(["session", "c1"]),
    ?assert(contains(Endless, "never")).

sessions_of_others(Config) ->
    ok = emqx_redis_session:save_session(<<"other">>, {any, <<"term">>}),
    ok = emqx_redis_session:save_session(<<"broken">>, x),
    _ = ?STORAGE:cli(Config, ["HSET", "session:broken", "data", <<193>>]),
    {ok, [_ | Rows]} = lines(["sessions"]),
    ?assertMatch(["other   (of another application)", "broken  what is stored is none of ours" ++ _], Rows),
    ?assertMatch({ok, ["client   other", "session  {any,<<\"term\">>}"]}, lines(["session", "other"])),
    {{error, _}, ["ERROR session: what is stored is none of ours: " ++ _]} = lines(["session", "broken"]).

messages_in_pages(_Config) ->
    Message = #{
        id => ?ID, topic => <<"a/b">>, qos => 1, from => <<"pub">>, payload => <<"two\nlines\"">>,
        published_at => 1700000000000, headers => #{peername => {{127, 0, 0, 1}, 1}, odd => [a | b]}
    },
    ok = emqx_redis_message:store_message(<<"c1">>, Message),
    Binary = binary:copy(<<255, 0>>, 100),
    ok = emqx_redis_message:store_message(<<"c1">>, #{<<"id">> => <<"m2">>, payload => Binary}),
    {ok, [_, First, Second]} = lines(["messages", "c1"]),
    ?assertEqual([?HEX, "2023-11-14T22:13:20.000Z", "pub", "1", "a/b", "two\\nlines\""], words(First)),
    ?assertMatch(["m2", "0xFF00FF" ++ _], words(Second)),
    ?assert(string:length(Second) < 200),
    ?assertEqual({ok, 2}, count(lines(["messages", "c1", "1", "1"]))),
    [One, Two] = json(["messages", "c1", "10"]),
    Hex = list_to_binary(?HEX),
    ?assertMatch(#{<<"id">> := Hex, <<"payload">> := <<"two\nlines\"">>}, One),
    ?assertMatch(#{<<"headers">> := #{<<"odd">> := <<"[a|b]">>}}, One),
    Shown = <<"0x", (binary:encode_hex(Binary))/binary>>,
    ?assertMatch(#{<<"payload">> := Shown}, Two).

a_client_given_in_hexadecimal(_Config) ->
    Queue = emqx_redis_stored_message:group_queue(<<"g">>, <<"a">>),
    ok = emqx_redis_message:store_message(Queue, #{id => <<"m1">>}),
    Hex = "0x" ++ binary_to_list(binary:encode_hex(Queue)),
    ?assertEqual({ok, 2}, count(lines(["messages", Hex]))),
    ok = save(<<"0xAB">>, #{}),
    {ok, ["client          0xAB" | _]} = lines(["session", "0xAB"]),
    ok = save(<<"Größe"/utf8>>, #{}),
    {ok, ["client          Größe" | _]} = lines(["session", "Größe"]).

routes(_Config) ->
    Filters = [<<"a/b">>, <<"a/+">>, <<"$share/g/a/#">>, <<"z">>],
    ok = emqx_redis_router:add_routes([{F, N} || F <- Filters, N <- ['n1@h', 'n2@h']]),
    {ok, [_ | Rows]} = lines(["routes"]),
    ?assertEqual(
        ["$share/g/a/#", "a/+", "a/b", "z"],
        [hd(words(Row)) || Row <- Rows, tl(words(Row)) =:= ["0", "n1@h, n2@h"]]
    ),
    ?assertEqual(1, length(json(["routes", "1"]))),
    #{<<"nodes">> := [<<"n1@h">>, <<"n2@h">>]} = lists:last(json(["routes"])),
    %% A session's subscriptions are what the plugin has.
    Subscribed = [{<<"a/+">>, <<"c1">>}, {<<"a/+">>, <<"c2">>}, {<<"b/#">>, <<"c1">>}],
    ok = emqx_redis_subscription:add_subscriptions([{F, C, {1, 0, 1}} || {F, C} <- Subscribed]),
    ?assertMatch(
        [
            #{<<"filter">> := <<"$share/g/a/#">>, <<"clients">> := 0},
            #{<<"filter">> := <<"a/+">>, <<"clients">> := 2, <<"nodes">> := [_, _]},
            #{<<"filter">> := <<"a/b">>, <<"clients">> := 0},
            #{<<"filter">> := <<"b/#">>, <<"clients">> := 1, <<"nodes">> := []},
            #{<<"filter">> := <<"z">>}
        ],
        json(["routes"])
    ).

fsck(Config) ->
    ok = emqx_redis_session:save_session(<<"c1">>, x),
    {ok, Fine} = printed(["fsck"]),
    ?assert(contains(Fine, "Nothing was found")),
    _ = ?STORAGE:cli(Config, ["DEL", "session:c1"]),
    {ok, Found} = printed(["fsck"]),
    [?assert(contains(Found, Word), Word) || Word <- ["index_without_session  1      0", "client c1"]],
    #{<<"findings">> := #{<<"index_without_session">> := #{<<"repaired">> := 1}}} =
        json(["fsck", "--repair"]),
    ?assertEqual(#{}, maps:get(<<"findings">>, json(["fsck"]))).

%% The encoder against a strict parser.
json_of_anything(_Config) ->
    Session = #{
        version => 1, node => node(), instance => 1, created_at => 0, expiry => 0, float => 1.5,
        nothing => undefined, yes => true, text => <<"\"\\/ \t\r\n äß€𝄞"/utf8>>,
        list => [1, [], #{}], tuple => {a, 1}, <<"bin">> => -1, 1 => one,
        <<255>> => <<0>>, control => <<"a", 1>>, subscriptions => #{}
    },
    ok = emqx_redis_session:save_session(<<"c1">>, Session),
    ?assertMatch(
        #{
            <<"float">> := 1.5, <<"nothing">> := null, <<"yes">> := true, <<"tuple">> := <<"{a,1}">>,
            <<"text">> := <<"\"\\/ \t\r\n äß€𝄞"/utf8>>, <<"list">> := [1, [], #{}], <<"bin">> := -1,
            <<"1">> := <<"one">>, <<"0xFF">> := <<"0x00">>, <<"control">> := <<"0x6101">>
        },
        json(["session", "c1"])
    ).

faults_are_clear_lines(_Config) ->
    [
        ?assertEqual({{error, list_to_binary(Text)}, ["ERROR " ++ Text]}, lines(Arguments), Arguments)
     || {Arguments, Text} <- [
            {["session", "nobody"], "session: there is no such session"},
            {["session", "nobody", "--json"], "session: there is no such session"},
            {["sessions", "many"], "sessions: LIMIT is a number from 1 to 10000, OFFSET one from 0"},
            {["sessions", "0"], "sessions: LIMIT is a number from 1 to 10000, OFFSET one from 0"},
            {["messages", "c1", "5", "-1"], "messages: LIMIT is a number from 1 to 10000, OFFSET one from 0"},
            {["routes", "10001"], "routes: LIMIT is a number from 1 to 10000, OFFSET one from 0"}
        ]
    ].

a_storage_that_does_not_run(_Config) ->
    ok = emqx_redis_storage:stop(),
    [
        begin
            Text = <<Name/binary, ": the storage does not run (enable = false?)">>,
            {Result, Lines} = lines([binary_to_list(Name) | Rest]),
            ?assertEqual({error, Text}, Result),
            %% A report of the stop may be printed beside it.
            ?assertMatch([_], [Line || Line <- Lines, contains(Line, "ERROR " ++ binary_to_list(Text))])
        end
     || {Name, Rest} <- [
            {<<"status">>, []}, {<<"sessions">>, []}, {<<"session">>, ["c1"]}, {<<"messages">>, ["c1"]},
            {<<"routes">>, []}, {<<"fsck">>, []}
        ]
    ].

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

save(Client, Subscriptions) ->
    emqx_redis_session:save_session(Client, #{
        version => 1, node => node(), instance => 1, created_at => 1700000000000, expiry => 7200000,
        subscriptions => Subscriptions
    }).

%% What a command answers, and prints.
printed(Arguments) ->
    ct:capture_start(),
    Result = ?CLI:run(Arguments),
    ct:capture_stop(),
    {Result, lists:flatten(ct:capture_get([]))}.

lines(Arguments) ->
    {Result, Text} = printed(Arguments),
    {Result, string:lexemes(Text, "\n")}.

%% Columns have two blanks at least between them.
words(Line) -> [Word || Part <- string:split(Line, "  ", all), Word <- [string:trim(Part)], Word =/= []].

count({Result, Lines}) -> {Result, length(Lines)}.

contains(Text, Word) -> string:find(Text, Word) =/= nomatch.

to_binary(Text) -> unicode:characters_to_binary(Text).

%% A parser that takes nothing that RFC 8259 does not allow.
json(Arguments) ->
    {ok, Text} = printed(Arguments ++ ["--json"]),
    {Json, []} = parse(skip(Text)),
    Json.

parse("null" ++ Rest) -> {null, skip(Rest)};
parse("true" ++ Rest) -> {true, skip(Rest)};
parse("false" ++ Rest) -> {false, skip(Rest)};
parse("[" ++ Rest) -> parse_list(skip(Rest), []);
parse("{" ++ Rest) -> parse_map(skip(Rest), #{});
parse("\"" ++ Rest) -> parse_string(Rest, []);
parse(Text) ->
    {Number, Rest} = lists:splitwith(fun(Character) -> lists:member(Character, "-+.e0123456789") end, Text),
    Value = try list_to_integer(Number) catch error:_ -> list_to_float(Number) end,
    {Value, skip(Rest)}.

parse_list("]" ++ Rest, Done) -> {lists:reverse(Done), skip(Rest)};
parse_list("," ++ Rest, [_ | _] = Done) -> parse_element(skip(Rest), Done);
parse_list(Text, []) -> parse_element(Text, []).

parse_element(Text, Done) ->
    {Value, Rest} = parse(Text),
    parse_list(Rest, [Value | Done]).

parse_map("}" ++ Rest, Done) -> {Done, skip(Rest)};
parse_map("," ++ Rest, Done) when map_size(Done) > 0 -> parse_pair(skip(Rest), Done);
parse_map(Text, Done) when map_size(Done) =:= 0 -> parse_pair(Text, Done).

parse_pair(Text, Done) ->
    {Key, ":" ++ Rest} = parse(Text),
    {Value, Behind} = parse(skip(Rest)),
    parse_map(Behind, Done#{Key => Value}).

parse_string("\"" ++ Rest, Done) -> {unicode:characters_to_binary(lists:reverse(Done)), skip(Rest)};
parse_string("\\n" ++ Rest, Done) -> parse_string(Rest, [$\n | Done]);
parse_string("\\r" ++ Rest, Done) -> parse_string(Rest, [$\r | Done]);
parse_string("\\t" ++ Rest, Done) -> parse_string(Rest, [$\t | Done]);
parse_string([$\\, Character | Rest], Done) when Character =:= $"; Character =:= $\\ ->
    parse_string(Rest, [Character | Done]);
parse_string([Character | Rest], Done) when Character >= 32 -> parse_string(Rest, [Character | Done]).

skip(Text) -> string:trim(Text, leading).
