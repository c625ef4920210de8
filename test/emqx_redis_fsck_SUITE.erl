%% What `emqx_redis_fsck' finds and mends: nothing in what the public API has written, and each kind of damage
%% that raw commands do.
-module(emqx_redis_fsck_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(STORAGE, emqx_redis_test_storage).
-define(FSCK, emqx_redis_fsck).
-define(CLIENT, <<"c1">>).
-define(LONER, <<"a:b">>).

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [{group, single}, {group, prefixed}, {group, cluster}].

groups() ->
    [
        {single, cases() ++ [writers_at_work_are_no_damage, redis_away_is_an_error]},
        {prefixed, [nothing_wrong, others_keys_are_left_alone]},
        {cluster, cases()}
    ].

cases() ->
    [
        nothing_wrong,
        nothing_at_all,
        damage_is_found_and_mended,
        messages_of_a_session_are_left,
        what_can_not_be_mended_is_told
    ].

init_per_group(prefixed, Config) -> ?STORAGE:start(Config, #{key_prefix => <<"e1.">>});
init_per_group(Topology, Config) -> ?STORAGE:start([{topology, Topology} | Config]).

end_per_group(_Group, Config) -> ?STORAGE:stop(Config).

init_per_testcase(redis_away_is_an_error, Config) -> Config;
init_per_testcase(_Case, Config) -> ?STORAGE:reset(Config).

end_per_testcase(_Case, _Config) ->
    [] = emqx_redis_test_helpers:stray_messages(20),
    ok.

nothing_at_all(_Config) ->
    ?assertMatch({ok, #{complete := true, notes := [], findings := None}} when None =:= #{}, ?FSCK:run()).

nothing_wrong(Config) ->
    ok = write_everything(),
    {ok, Result} = ?FSCK:run(#{settle => 0}),
    ?assertEqual(#{}, maps:get(findings, Result)),
    #{complete := true, servers := Servers, checked := Checked} = Result,
    ?assertEqual(case ?STORAGE:topology(Config) of single -> 1; cluster -> 3 end, Servers),
    Clients = length(?STORAGE:adversarial_ids()) + 2,
    ?assertMatch(#{sessions := Clients, messages := _, filters := _, queues := _}, Checked),
    %% A repair of what is right changes nothing.
    Keys = ?STORAGE:keys(Config),
    {ok, Result} = ?FSCK:run(#{settle => 0, repair => true}),
    ?assertEqual(Keys, ?STORAGE:keys(Config)).

damage_is_found_and_mended(Config) ->
    [
        begin
            _ = ?STORAGE:reset(Config),
            ok = write_some(),
            [?assertMatch({_, {ok, _}}, {Command, raw(Command)}) || Command <- damage(Config, Damage)],
            ?assertEqual({Damage, Expected}, {Damage, counts(?FSCK:run(#{settle => 0}), count)}),
            {ok, #{findings := Found}} = Repaired = ?FSCK:run(#{settle => 0, repair => true}),
            ?assertEqual({Damage, Expected}, {Damage, counts(Repaired, repaired)}),
            [
                ?assertMatch({_, _, #{Kind := #{examples := [Example | _]}}}, {Damage, Kind, Found})
             || {Kind, _} <- Expected
            ],
            ?assertEqual({Damage, []}, {Damage, counts(?FSCK:run(), count)})
        end
     || {Damage, Expected, Example} <- [
            {session_gone, [{index_without_session, 1}], #{client => ?CLIENT}},
            {not_in_sync_sessions, [{session_not_indexed, 1}], #{client => ?CLIENT}},
            {not_in_expiry_sessions, [{session_not_indexed, 1}], #{client => ?CLIENT}},
            {another_expiry_of_session, [{session_not_indexed, 1}], #{client => ?CLIENT}},
            {persistent_session, [{key_without_ttl, 1}, {session_not_indexed, 1}], #{client => ?CLIENT}},
            {persistent_epoch, [{key_without_ttl, 1}], #{client => <<"c9">>}},
            {persistent_message, [{key_without_ttl, 1}], #{client => ?CLIENT, message => <<"m1">>}},
            {persistent_foreign, [{key_without_ttl, 1}], #{key => <<"foreign:x:1">>}},
            {psub_gone, [{missing_subscription, 1}], #{client => ?CLIENT, filter => <<"a/+">>}},
            {ghost, [{ghost_subscription, 1}], #{client => <<"ghost">>, filter => <<"x/#">>}},
            {stray, [{stray_subscription, 1}], #{client => ?CLIENT, filter => <<"stray">>}},
            {not_in_sync_psubs, [{filter_not_indexed, 1}], #{filter => <<"b">>}},
            {not_in_ptrie, [{filter_not_indexed, 1}], #{filter => <<"a/+">>}},
            {ptrie_gone, [{filter_not_indexed, 1}], #{filter => <<"a/+">>}},
            {not_in_sync_routes, [{filter_not_indexed, 1}], #{filter => <<"r">>}},
            {route_gone, [{index_without_filter, 1}], #{filter => <<"r">>}},
            {wildcard_route_gone, [{index_without_filter, 2}], #{filter => <<"r/+">>}},
            {not_in_wildcards, [{filter_not_indexed, 1}], #{filter => <<"r/+">>, node => <<"n1@h">>}},
            {not_queued, [{message_not_queued, 1}], #{client => ?LONER, message => <<"m:1">>}},
            {not_in_expiry_messages, [{message_not_indexed, 1}],
                #{client => ?CLIENT, message => <<"m1">>}},
            {not_in_sync_messages, [{message_not_indexed, 1}],
                #{client => ?CLIENT, message => <<"m1">>}}
        ]
    ].

messages_of_a_session_are_left(Config) ->
    ok = write_some(),
    Message = ?STORAGE:key(Config, {message, ?CLIENT, <<"m1">>}),
    {ok, 1} = raw(["DEL", Message]),
    ?assertMatch(
        {ok, #{
            findings := #{
                queue_without_message := #{count := 1, repaired := 0},
                index_without_message := #{count := 1, repaired := 0}
            }
        }},
        ?FSCK:run(#{settle => 0, repair => true})
    ),
    %% Of a client without a session they go, though its epoch is still known.
    {ok, #{epoch := Epoch}} = emqx_redis_session:claim_session(?CLIENT, #{}),
    ok = emqx_redis_session:delete_session(?CLIENT, #{epoch => Epoch}),
    {ok, #{findings := #{index_without_message := #{repaired := 1}}}} =
        ?FSCK:run(#{settle => 0, repair => true}),
    {ok, #{findings := None}} = ?FSCK:run(),
    ?assertEqual(#{}, None).

what_can_not_be_mended_is_told(Config) ->
    ok = write_some(),
    Session = ?STORAGE:key(Config, {session, ?CLIENT}),
    Queue = ?STORAGE:key(Config, {queue, ?CLIENT}),
    {ok, _} = raw(["HSET", Session, "data", <<193>>]),
    {ok, _} = raw(["DEL", Queue]),
    {ok, _} = raw(["SET", Queue, "not a queue"]),
    {ok, _} = raw(["ZADD", index(Config, <<"sync:messages">>, ?CLIENT), 1, "nonsense"]),
    {ok, #{complete := true, findings := Findings}} = ?FSCK:run(#{settle => 0, repair => true}),
    ?assertMatch(
        #{
            session_unreadable := #{count := 1, repaired := 0, examples := [#{client := ?CLIENT}]},
            wrong_type := #{count := 1, repaired := 0, examples := [#{key := Queue}]},
            unreadable_member := #{count := 1, repaired := 0},
            message_not_queued := #{count := 1, repaired := 0}
        },
        Findings
    ),
    %% As many examples as are asked for.
    {ok, #{findings := #{wrong_type := #{examples := []}}}} = ?FSCK:run(#{settle => 0, examples => 0}),
    ?assertEqual([], maps:keys(Findings) -- [Kind || {Kind, _} <- ?FSCK:kinds()]).

others_keys_are_left_alone(Config) ->
    ok = write_some(),
    {ok, _} = raw(["ZADD", "sync:sessions", 1, "of another prefix"]),
    {ok, _} = raw(["SET", "msg:of:another", "prefix"]),
    {ok, _} = raw(["SET", "e1.other", "x"]),
    {ok, #{findings := Findings, checked := #{other_keys := 1}}} = ?FSCK:run(#{settle => 0}),
    ?assertEqual(#{}, Findings),
    {ok, 1} = raw(["DEL", "e1.session:c1"]),
    {ok, #{findings := Found}} = ?FSCK:run(#{settle => 0, repair => true}),
    ?assertMatch(#{index_without_session := #{repaired := 1}}, Found),
    ?assertEqual(<<"prefix">>, ?STORAGE:cli(Config, ["GET", "msg:of:another"])).

writers_at_work_are_no_damage(_Config) ->
    Workers = [
        spawn_monitor(fun() -> work(<<"w", (integer_to_binary(N))/binary>>) end)
     || N <- lists:seq(1, 8)
    ],
    End = erlang:monotonic_time(millisecond) + 1000,
    Results = check_until(End),
    [Pid ! stop || {Pid, _} <- Workers],
    [receive {'DOWN', M, process, P, Reason} -> ?assertEqual(normal, Reason) end || {P, M} <- Workers],
    ?assert(length(Results) > 3),
    [?assertEqual([], counts(Result, count)) || Result <- Results].

check_until(End) ->
    case erlang:monotonic_time(millisecond) < End of
        true -> [?FSCK:run(#{settle => 50}) | check_until(End)];
        false -> []
    end.

%% As the plugin does it.
work(Client) ->
    {ok, #{epoch := Epoch}} = emqx_redis_session:claim_session(Client, #{}),
    Opts = #{epoch => Epoch},
    ok = emqx_redis_session:save_session(Client, session([{<<"w/+">>, 1}]), Opts),
    ok = emqx_redis_subscription:add_subscription(<<"w/+">>, Client, {1, 0, 1}),
    ok = emqx_redis_message:store_message(Client, #{id => <<"m">>}),
    ok = emqx_redis_message:ack_message(Client, <<"m">>, Opts),
    ok = emqx_redis_session:save_session(Client, session([]), Opts),
    ok = emqx_redis_subscription:delete_subscription(<<"w/+">>, Client),
    ok = emqx_redis_session:delete_session(Client, Opts),
    receive stop -> ok after 0 -> work(Client) end.

redis_away_is_an_error(_Config) ->
    ok = emqx_redis_storage:stop(),
    ?assertEqual({error, stopped}, ?FSCK:run()).

%%--------------------------------------------------------------------
%% Data, and damage to it
%%--------------------------------------------------------------------

%% A session of the plugin, with a message and two subscriptions; messages of a client without a session;
%% routes of another node.
write_some() ->
    ok = save(?CLIENT, [{<<"a/+">>, 1}, {<<"b">>, 2}, {<<"zero">>, 0}]),
    ok = emqx_redis_message:store_message(?CLIENT, #{id => <<"m1">>}),
    ok = emqx_redis_message:store_message(?LONER, #{id => <<"m:1">>}),
    emqx_redis_router:add_routes([{<<"r">>, 'n1@h'}, {<<"r/+">>, 'n1@h'}]).

write_everything() ->
    ok = write_some(),
    Ids = ?STORAGE:adversarial_ids(),
    [
        begin
            Filters = [<<"a/#">>, <<"$share/g/a/+/b">>, <<"+">>, <<"s/", N, "/+">>],
            ok = save(Client, [{Filter, 1 + N rem 2} || Filter <- Filters]),
            ok = emqx_redis_message:store_messages(Client, [#{id => Id} || Id <- Ids])
        end
     || {N, Client} <- lists:zip(lists:seq($A, $A + length(Ids) - 1), Ids)
    ],
    %% Not only what the plugin writes.
    ok = emqx_redis_session:save_session(<<"for ever">>, any_term, #{ttl => infinity}),
    ok = emqx_redis_message:store_message(<<"for ever">>, #{id => <<"m">>}, #{ttl => infinity}),
    {ok, _} = emqx_redis_session:claim_session(<<"for ever">>, #{}),
    {ok, _} = emqx_redis_session:claim_session(<<"claimed only">>, #{}),
    ok = emqx_redis_message:store_message(<<"few">>, #{id => <<"m">>}, #{max_queue => 1}),
    {ok, _} = emqx_redis_message:store_message(<<"few">>, #{id => <<"n">>}, #{max_queue => 1}),
    Routed = [<<"wildcards">>, <<"%77ildcards">>, <<"a|b/+">>, <<"#">>, <<"$share/g/#">>, <<"a//+/">>],
    ok = emqx_redis_router:add_routes([{F, N} || F <- Routed, N <- ['n1@h', node()]]),
    ok = emqx_redis_subscription:add_subscription(<<"own/#">>, <<"for ever">>, {1, 0, 7}),
    %% Long indexes, which are walked in several slices.
    Many = [#{id => integer_to_binary(N)} || N <- lists:seq(1, 1500)],
    emqx_redis_message:store_messages(<<"many">>, Many).

save(Client, Subscribed) ->
    {ok, #{epoch := Epoch}} = emqx_redis_session:claim_session(Client, #{}),
    ok = emqx_redis_session:save_session(Client, session(Subscribed), #{epoch => Epoch}),
    emqx_redis_subscription:add_subscriptions([{F, Client, {Q, 0, 1}} || {F, Q} <- Subscribed, Q > 0]).

session(Subscribed) ->
    Subscriptions = maps:from_list([{F, #{qos => Q, nl => 0}} || {F, Q} <- Subscribed]),
    #{
        version => 1, node => node(), instance => 1, created_at => 0, expiry => 60000,
        subscriptions => Subscriptions
    }.

damage(Config, session_gone) ->
    %% Without the subscriptions that would be ghosts.
    Filters = [<<"a/+">>, <<"b">>],
    ok = emqx_redis_subscription:delete_subscriptions([{F, ?CLIENT} || F <- Filters]),
    [["DEL", ?STORAGE:key(Config, {session, ?CLIENT})]];
damage(Config, not_in_sync_sessions) ->
    [["ZREM", index(Config, <<"sync:sessions">>, ?CLIENT), ?CLIENT]];
damage(Config, not_in_expiry_sessions) ->
    [["ZREM", index(Config, <<"expiry:sessions">>, ?CLIENT), ?CLIENT]];
damage(Config, another_expiry_of_session) ->
    [["ZADD", index(Config, <<"expiry:sessions">>, ?CLIENT), "+inf", ?CLIENT]];
damage(Config, persistent_epoch) ->
    [["SET", ?STORAGE:key(Config, {epoch, <<"c9">>}), 1]];
damage(_Config, persistent_foreign) ->
    [["SET", "foreign:x:1", "moved"]];
damage(Config, persistent_session) ->
    [["PERSIST", ?STORAGE:key(Config, {session, ?CLIENT})]];
damage(Config, persistent_message) ->
    [["PERSIST", ?STORAGE:key(Config, {message, ?CLIENT, <<"m1">>})]];
damage(_Config, psub_gone) ->
    ok = emqx_redis_subscription:delete_subscription(<<"a/+">>, ?CLIENT),
    [];
damage(_Config, ghost) ->
    ok = emqx_redis_subscription:add_subscription(<<"x/#">>, <<"ghost">>, {1, 0, 1}),
    [];
damage(_Config, stray) ->
    ok = emqx_redis_subscription:add_subscription(<<"stray">>, ?CLIENT, {1, 0, 1}),
    [];
damage(Config, not_in_sync_psubs) ->
    [["ZREM", filter_key(Config, <<"sync:psubs">>, <<"b">>), "b"]];
damage(Config, not_in_ptrie) ->
    [["SREM", filter_key(Config, <<"ptrie:a/+">>, <<"a/+">>), "a/+"]];
damage(Config, ptrie_gone) ->
    [["DEL", filter_key(Config, <<"ptrie">>, <<"a/+">>)]];
damage(Config, not_in_sync_routes) ->
    [["ZREM", filter_key(Config, <<"sync:routes">>, <<"r">>), "r"]];
damage(Config, route_gone) ->
    [["DEL", filter_key(Config, <<"route:r">>, <<"r">>)]];
damage(Config, wildcard_route_gone) ->
    [["DEL", filter_key(Config, <<"route:r/+">>, <<"r/+">>)]];
damage(Config, not_in_wildcards) ->
    [["ZREM", filter_key(Config, <<"route:wildcards">>, <<"r/+">>), "r/+|n1@h"]];
damage(Config, not_queued) ->
    [["DEL", ?STORAGE:key(Config, {queue, ?LONER})]];
damage(Config, not_in_expiry_messages) ->
    [["ZREM", index(Config, <<"expiry:messages">>, ?CLIENT), member(Config, ?CLIENT, <<"m1">>)]];
damage(Config, not_in_sync_messages) ->
    [["ZREM", index(Config, <<"sync:messages">>, ?CLIENT), member(Config, ?CLIENT, <<"m1">>)]].

counts({ok, #{complete := true, findings := Findings}}, Of) ->
    lists:sort([{Kind, maps:get(Of, Finding)} || {Kind, Finding} <- maps:to_list(Findings)]).

raw(Command) -> emqx_redis_pool:query(Command).

%% The index of the client's slot: of the indexes of that name, the one in the slot of its session.
index(Config, Name, Client) -> in_slot(Config, Name, ?STORAGE:key(Config, {session, Client})).

%% The key of that plain name in the slot of the filter's clients.
filter_key(Config, Name, Filter) ->
    case ?STORAGE:topology(Config) of
        single ->
            Name;
        cluster ->
            [Place] = lists:usort([
                Tag
             || Key <- ?STORAGE:keys(Config),
                {match, [Word, Tag, F]} <- [
                    re:run(Key, "^(psub|route):({[0-9a-z]+}):(.*)$", [{capture, all_but_first, binary}])
                ],
                Word =/= <<>>,
                F =:= Filter
            ]),
            case binary:split(Name, <<":">>) of
                [Word, Filter] -> <<Word/binary, ":", Place/binary, ":", Filter/binary>>;
                _ -> <<Name/binary, ":", Place/binary>>
            end
    end.

in_slot(Config, Name, Key) ->
    case ?STORAGE:topology(Config) of
        single ->
            Name;
        cluster ->
            Slot = emqx_redis_test_cluster:key_slot(Key),
            Size = byte_size(Name),
            [Index] = [
                Each
             || <<Begin:Size/binary, ":{", _/binary>> = Each <- ?STORAGE:keys(Config),
                Begin =:= Name,
                emqx_redis_test_cluster:key_slot(Each) =:= Slot
            ],
            Index
    end.

member(Config, Client, Id) ->
    <<"msg:", Member/binary>> = ?STORAGE:key(Config, {message, Client, Id}),
    Member.
