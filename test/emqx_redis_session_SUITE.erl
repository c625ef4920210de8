%% Sessions: what the model does not cover. Expiry, fencing over time, long lists, large terms.
-module(emqx_redis_session_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(SESSION, emqx_redis_session).
-define(STORAGE, emqx_redis_test_storage).
-define(HELPERS, emqx_redis_test_helpers).

suite() ->
    [{timetrap, {minutes, 1}}].

all() ->
    [{group, single}, {group, cluster}].

groups() ->
    [{single, cases()}, {cluster, cases()}].

cases() ->
    [
        expired_sessions_are_gone,
        saving_renews_the_time_to_live,
        a_claimed_session_is_fenced,
        the_epoch_outlives_the_session,
        claims_from_many_processes_give_different_epochs,
        created_at_survives,
        the_list_is_in_the_order_of_saves,
        pages_of_many_sessions,
        large_sessions,
        what_cannot_be_stored_is_refused,
        misuse_raises_badarg,
        each_function_has_an_asynchronous_form
    ].

init_per_group(Topology, Config) -> ?STORAGE:start([{topology, Topology} | Config]).

end_per_group(_Topology, Config) -> ?STORAGE:stop(Config).

init_per_testcase(_Case, Config) -> ?STORAGE:reset(Config).

end_per_testcase(_Case, _Config) ->
    [] = ?HELPERS:stray_messages(20),
    ok.

expired_sessions_are_gone(Config) ->
    Ids = ?STORAGE:adversarial_ids(),
    [ok = ?SESSION:save_session(<<"stays", Id/binary>>, Id, #{ttl => infinity}) || Id <- Ids],
    [ok = ?SESSION:save_session(Id, Id, #{ttl => 1}) || Id <- Ids],
    ?assertEqual({ok, 2 * length(Ids)}, ?SESSION:count_sessions()),
    timer:sleep(1010),
    Stay = {ok, ?STORAGE:in_list_order(Config, [<<"stays", Id/binary>> || Id <- Ids])},
    ?assertEqual({ok, length(Ids)}, ?SESSION:count_sessions()),
    ?assertEqual(Stay, ?SESSION:list_sessions(100, 0)),
    ?assertEqual([{error, not_found}], lists:usort([?SESSION:load_session(Id) || Id <- Ids])),
    Count = length(Ids),
    Indexes = [<<"sync:sessions">>, <<"expiry:sessions">>],
    ?HELPERS:wait_until(
        fun() -> [Count, Count] =:= [?STORAGE:index_size(Config, Index) || Index <- Indexes] end,
        ?STORAGE:sweep_time(Config)
    ).

saving_renews_the_time_to_live(Config) ->
    Left = fun() -> ttl(Config, {session, <<"c">>}) end,
    ok = ?SESSION:save_session(<<"c">>, 1),
    ?assert(Left() > 86390),
    ok = ?SESSION:save_session(<<"c">>, 2, #{ttl => 1000}),
    ?assert(Left() =< 1000),
    ok = ?SESSION:save_session(<<"c">>, 3, #{ttl => infinity}),
    ?assertEqual(-1, Left()),
    ok = ?SESSION:save_session(<<"c">>, 4, #{ttl => 1}),
    ok = ?SESSION:save_session(<<"c">>, 5),
    timer:sleep(1050),
    ?assertEqual({ok, 5}, ?SESSION:load_session(<<"c">>)),
    ?assertEqual({ok, 1}, ?SESSION:count_sessions()),
    ?assertEqual({ok, [<<"c">>]}, ?SESSION:list_sessions(10, 0)).

a_claimed_session_is_fenced(_Config) ->
    C = <<"c">>,
    ok = ?SESSION:save_session(C, old),
    {ok, #{epoch := First, session := old}} = ?SESSION:claim_session(C, #{}),
    ok = ?SESSION:save_session(C, first, #{epoch => First}),
    {ok, #{epoch := Second, session := first}} = ?SESSION:claim_session(C, #{timeout => 1000}),
    Stale = {error, {stale_epoch, Second}},
    Old = #{epoch => First},
    ?assertEqual(Stale, ?SESSION:save_session(C, late, Old)),
    ?assertEqual(Stale, ?SESSION:delete_session(C, Old)),
    ?assertEqual(Stale, emqx_redis_message:ack_message(C, <<"m">>, Old)),
    ?assertEqual(Stale, emqx_redis_message:ack_messages(C, [<<"m">>], Old)),
    ?assertEqual(Stale, emqx_redis_message:delete_messages(C, Old)),
    Fenced = {error, fenced},
    ?assertEqual(Fenced, ?SESSION:save_session(C, late)),
    ?assertEqual(Fenced, ?SESSION:delete_session(C)),
    ?assertEqual(Fenced, emqx_redis_message:ack_message(C, <<"m">>)),
    ?assertEqual(Fenced, emqx_redis_message:delete_messages(C)),
    %% Publishers need no epoch.
    ?assertEqual(ok, emqx_redis_message:store_message(C, #{id => <<"m">>})),
    ?assertEqual({ok, first}, ?SESSION:load_session(C)),
    ?assertEqual(ok, emqx_redis_message:delete_messages(C, #{epoch => Second})).

the_epoch_outlives_the_session(Config) ->
    {ok, #{epoch := Epoch, session := undefined}} = ?SESSION:claim_session(<<"a">>, #{}),
    ok = ?SESSION:save_session(<<"a">>, 1, #{epoch => Epoch}),
    ok = ?SESSION:delete_session(<<"a">>, #{epoch => Epoch}),
    ?assertEqual({error, fenced}, ?SESSION:save_session(<<"a">>, late)),
    ok = ?SESSION:save_session(<<"b">>, 1, #{ttl => 1}),
    {ok, #{epoch := Other}} = ?SESSION:claim_session(<<"b">>, #{}),
    timer:sleep(1050),
    ?assertEqual({error, not_found}, ?SESSION:load_session(<<"b">>)),
    ?assertEqual({error, fenced}, ?SESSION:save_session(<<"b">>, late)),
    {ok, #{epoch := Next, session := undefined}} = ?SESSION:claim_session(<<"b">>, #{}),
    ?assertEqual({error, {stale_epoch, Next}}, ?SESSION:save_session(<<"b">>, late, #{epoch => Other})),
    %% It has an end, unless the session has none.
    [?assert(ttl(Config, {epoch, C}) > 3600) || C <- [<<"a">>, <<"b">>]],
    ok = ?SESSION:save_session(<<"b">>, 1, #{epoch => Next, ttl => infinity}),
    ?assertEqual(-1, ttl(Config, {epoch, <<"b">>})).

claims_from_many_processes_give_different_epochs(_Config) ->
    Claims = parallel(20, fun(_) ->
        [maps:get(epoch, element(2, ?SESSION:claim_session(<<"c">>, #{}))) || _ <- lists:seq(1, 20)]
    end),
    [?assertEqual(lists:sort(Own), Own) || Own <- Claims],
    ?assertEqual(lists:seq(1, 400), lists:sort(lists:append(Claims))).

created_at_survives(Config) ->
    Fields = ["created_at", "updated_at", "expires_at"],
    Key = ?STORAGE:key(Config, {session, <<"c">>}),
    Read = fun() -> [binary_to_integer(T) || T <- ?STORAGE:cli(Config, ["HMGET", Key | Fields])] end,
    ok = ?SESSION:save_session(<<"c">>, 1, #{ttl => 100}),
    [Created, Created, Expires] = Read(),
    ?assert(abs(Created - os:system_time(second)) =< 1),
    ?assertEqual(100, Expires - Created),
    timer:sleep(1100),
    ok = ?SESSION:save_session(<<"c">>, 2, #{ttl => 100}),
    [Created, Updated, Later] = Read(),
    ?assert(Updated > Created),
    ?assertEqual(100, Later - Updated).

%% Also of those within the same millisecond. In a cluster this holds within each slot.
the_list_is_in_the_order_of_saves(Config) ->
    Ids = [integer_to_binary(N) || N <- lists:seq(200, 1, -1)],
    [ok = ?SESSION:save_session(Id, Id) || Id <- Ids],
    ?assertEqual({ok, ?STORAGE:in_list_order(Config, Ids)}, ?SESSION:list_sessions(1000, 0)),
    ok = ?SESSION:save_session(<<"200">>, again),
    Later = ?STORAGE:in_list_order(Config, tl(Ids) ++ [<<"200">>]),
    ?assertEqual({ok, Later}, ?SESSION:list_sessions(1000, 0)).

pages_of_many_sessions(_Config) ->
    Ids = [integer_to_binary(N) || N <- lists:seq(1, 2500)],
    Requests = [?SESSION:save_session_async(Id, Id) || Id <- Ids],
    [{reply, ok} = emqx_redis_storage:receive_response(R, 5000) || R <- Requests],
    ?assertEqual({ok, 2500}, ?SESSION:count_sessions()),
    {ok, All} = ?SESSION:list_sessions(1000000, 0),
    ?assertEqual(lists:sort(Ids), lists:sort(All)),
    ?assertEqual({ok, All}, ?SESSION:list_sessions(4294967295, 0)),
    [?assertEqual({ok, lists:sublist(All, O + 1, L)}, ?SESSION:list_sessions(L, O))
     || {L, O} <- [{0, 0}, {1, 0}, {1000, 0}, {1001, 0}, {1000, 1500}, {1000, 2499}, {10, 2500}, {700, 999}]],
    ?assertEqual({ok, []}, ?SESSION:list_sessions(10, 4294967295)).

large_sessions(Config) ->
    [
        begin
            Session = #{binary => crypto:strong_rand_bytes(Size div 2), list => lists:seq(1, Size div 16)},
            ok = ?SESSION:save_session(<<"c">>, Session),
            ?assert({ok, Session} =:= ?SESSION:load_session(<<"c">>)),
            {ok, #{session := Claimed, epoch := Epoch}} = ?SESSION:claim_session(<<"c">>, #{}),
            ?assert(Claimed =:= Session),
            ok = ?SESSION:delete_session(<<"c">>, #{epoch => Epoch}),
            {ok, 1} = emqx_redis_pool:query(["DEL", ?STORAGE:key(Config, {epoch, <<"c">>})])
        end
     || Size <- [1 bsl 10, 1 bsl 16, 1 bsl 20, 1 bsl 24]
    ].

what_cannot_be_stored_is_refused(_Config) ->
    Local = fun() -> ok end,
    ?assertError({unencodable, _, _}, ?SESSION:save_session(<<"c">>, #{a => [Local]})),
    ?assertError({unencodable, _, _}, ?SESSION:save_session_async(<<"c">>, Local)),
    ?assertEqual({error, not_found}, ?SESSION:load_session(<<"c">>)).

misuse_raises_badarg(_Config) ->
    Misuses = [
        {save_session, [c, 1]},
        {save_session, ["c", 1, #{}]},
        {save_session, [<<1:7>>, 1]},
        {save_session, [<<"c">>, 1, []]},
        {save_session, [<<"c">>, 1, #{ttl => 0}]},
        {save_session, [<<"c">>, 1, #{ttl => 1.5}]},
        {save_session, [<<"c">>, 1, #{ttl => 4294967296}]},
        {save_session, [<<"c">>, 1, #{epoch => -1}]},
        {save_session, [<<"c">>, 1, #{timeout => -1}]},
        {save_session, [<<"c">>, 1, #{unknown => 1}]},
        {load_session, [undefined]},
        {delete_session, [1]},
        {delete_session, [<<"c">>, #{ttl => 1}]},
        {claim_session, [<<"c">>, undefined]},
        {claim_session, [<<"c">>, #{epoch => 1}]},
        {list_sessions, [-1, 0]},
        {list_sessions, [0, -1]},
        {list_sessions, [1.0, 0]},
        {list_sessions, [infinity, 0]}
    ],
    ?HELPERS:with_stray_check(fun() ->
        [
            ?assertError(badarg, apply(?SESSION, Function, Arguments), {Function, Arguments})
         || {Name, Arguments} <- Misuses,
            Function <- [Name, list_to_atom(atom_to_list(Name) ++ "_async")]
        ]
    end),
    ?assertEqual({ok, 0}, ?SESSION:count_sessions()).

each_function_has_an_asynchronous_form(_Config) ->
    Exports = [Export || Export = {F, _} <- ?SESSION:module_info(exports), F =/= module_info],
    [
        ?assert(lists:member({list_to_atom(atom_to_list(F) ++ "_async"), A}, Exports), {F, A})
     || {F, A} <- Exports, nomatch =:= string:find(atom_to_list(F), "_async")
    ].

%% Internal

ttl(Config, Key) -> ?STORAGE:cli(Config, ["TTL", ?STORAGE:key(Config, Key)]).

parallel(Count, Fun) ->
    Parent = self(),
    Workers = [spawn_monitor(fun() -> Parent ! {self(), Fun(N)} end) || N <- lists:seq(1, Count)],
    [
        receive
            {Pid, Result} -> erlang:demonitor(Monitor, [flush]), Result;
            {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
        end
     || {Pid, Monitor} <- Workers
    ].
