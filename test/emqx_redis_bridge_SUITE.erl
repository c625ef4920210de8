%% What every request obeys, whatever it does: one answer, in time, in order, within limits.
-module(emqx_redis_bridge_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(SERVER, emqx_redis_test_server).
-define(HELPERS, emqx_redis_test_helpers).
-define(MIB, 1048576).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        one_answer_for_each_of_many_mixed_requests,
        a_deadline_is_kept,
        no_time_at_all_is_a_timeout_or_an_answer,
        no_message_comes_after_receive_response_timed_out,
        cancelled_before_it_was_sent,
        cancelled_after_it_was_sent,
        cancelled_after_it_was_answered,
        an_id_of_an_earlier_engine_cancels_nothing,
        fifty_thousand_waiting_requests_are_cancelled_swiftly,
        a_long_mailbox_does_not_slow_a_call,
        one_clients_requests_run_in_their_order,
        a_message_stored_behind_a_long_deletion_stays,
        order_holds_when_the_server_forgot_the_scripts,
        order_holds_over_lost_connections,
        too_many_requests_are_refused_at_once,
        too_many_bytes_are_refused_at_once,
        requests_of_dead_callers_are_dropped,
        large_terms_do_not_hold_a_scheduler,
        large_terms_come_back_whole
    ].

init_per_suite(Config) ->
    [{server, ?SERVER:start()} | Config].

end_per_suite(Config) ->
    ?SERVER:stop(server(Config)).

init_per_testcase(_Case, Config) ->
    <<"OK">> = ?SERVER:cli(server(Config), ["FLUSHALL"]),
    ok = emqx_redis_storage:start(?SERVER:config(server(Config))),
    await_connected(),
    Config.

end_per_testcase(_Case, Config) ->
    [exit(Killer, kill) || Killer <- [whereis(killer)], is_pid(Killer)],
    ?SERVER:resume(server(Config)),
    ok = emqx_redis_storage:stop(),
    ?assertEqual([], ?HELPERS:stray_messages(20)).

%%--------------------------------------------------------------------
%% One answer
%%--------------------------------------------------------------------

one_answer_for_each_of_many_mixed_requests(_Config) ->
    in_processes(8, fun(Worker) ->
        ?HELPERS:with_stray_check(fun() -> mixed(Worker, 25000) end)
    end),
    ?HELPERS:wait_until(fun() -> maps:get(inflight, emqx_redis_storage:status()) =:= 0 end),
    ?assertEqual(0, maps:get(inflight_bytes, emqx_redis_storage:status())).

mixed(_Worker, 0) ->
    ok;
mixed(Worker, Left) ->
    Client = <<"c", (integer_to_binary(Worker))/binary, (integer_to_binary(Left rem 50))/binary>>,
    case rand:uniform(10) of
        1 -> expected(emqx_redis_session:save_session(Client, Left));
        2 -> expected(emqx_redis_session:load_session(Client));
        3 -> expected(emqx_redis_pool:query(["PING"], #{timeout => rand:uniform(3) - 1}));
        4 -> expected(emqx_redis_session:save_session(Client, Left, #{timeout => rand:uniform(2) - 1}));
        5 ->
            Id = emqx_redis_session:save_session_async(Client, Left),
            cancelled(emqx_redis_storage:cancel(Id));
        6 ->
            Id = emqx_redis_pool:query_async(["PING"]),
            cancelled(emqx_redis_storage:cancel(Id));
        7 ->
            Id = emqx_redis_session:load_session_async(Client),
            case emqx_redis_storage:receive_response(Id, rand:uniform(2) - 1) of
                timeout -> ok;
                {reply, Result} -> expected(Result)
            end;
        _ ->
            Ids = [emqx_redis_session:save_session_async(Client, N) || N <- lists:seq(1, 3)],
            [
                ?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, 5000))
             || Id <- lists:reverse(Ids)
            ]
    end,
    mixed(Worker, Left - 1).

expected(ok) -> ok;
expected({ok, _}) -> ok;
expected({error, not_found}) -> ok;
expected({error, timeout}) -> ok.

cancelled(ok) -> ok;
cancelled({error, {unknown, cancelled}}) -> ok;
cancelled({reply, Result}) -> expected(Result).

%%--------------------------------------------------------------------
%% Time
%%--------------------------------------------------------------------

a_deadline_is_kept(Config) ->
    ok = ?SERVER:pause(server(Config)),
    [
        begin
            {Micros, Result} = timer:tc(fun() ->
                emqx_redis_session:save_session(<<"c">>, x, #{timeout => Timeout})
            end),
            ?assertEqual({error, timeout}, Result),
            ?assert(Micros >= Timeout * 1000, {Timeout, Micros}),
            %% The machine may be busy.
            ?assert(Micros < (Timeout + 300) * 1000, {Timeout, Micros})
        end
     || Timeout <- [0, 1, 2, 20, 100, 500, 1500]
    ],
    ok = ?SERVER:resume(server(Config)),
    ?assertMatch({ok, x}, emqx_redis_session:load_session(<<"c">>)).

no_time_at_all_is_a_timeout_or_an_answer(_Config) ->
    Results = [
        emqx_redis_session:save_session(<<"c">>, N, #{timeout => N rem 2})
     || N <- lists:seq(1, 2000)
    ],
    ?assertEqual([], lists:usort(Results) -- [ok, {error, timeout}]).

no_message_comes_after_receive_response_timed_out(Config) ->
    ok = ?SERVER:pause(server(Config)),
    Ids = [emqx_redis_session:save_session_async(<<"c">>, N) || N <- lists:seq(1, 20)],
    [?assertEqual(timeout, emqx_redis_storage:receive_response(Id, 1)) || Id <- Ids],
    ok = ?SERVER:resume(server(Config)),
    ok = emqx_redis_session:save_session(<<"c">>, last),
    ?assertEqual([], ?HELPERS:stray_messages(100)),
    %% It was given up: to ask again does not wait for ever.
    ?assertEqual(timeout, emqx_redis_storage:receive_response(hd(Ids), 10)).

%%--------------------------------------------------------------------
%% Cancelling
%%--------------------------------------------------------------------

cancelled_before_it_was_sent(_Config) ->
    ok = emqx_redis_storage:stop(),
    Away = #{redis => #{servers => <<"unix:///nowhere/redis.sock">>}},
    ok = emqx_redis_storage:start(Away),
    Id = emqx_redis_session:save_session_async(<<"c">>, x),
    ?assertEqual(ok, emqx_redis_storage:cancel(Id)).

cancelled_after_it_was_sent(Config) ->
    ok = ?SERVER:pause(server(Config)),
    Id = emqx_redis_session:save_session_async(<<"c">>, x),
    timer:sleep(50),
    ?assertEqual({error, {unknown, cancelled}}, emqx_redis_storage:cancel(Id)),
    ok = ?SERVER:resume(server(Config)).

cancelled_after_it_was_answered(_Config) ->
    Id = emqx_redis_session:save_session_async(<<"c">>, x),
    ok = emqx_redis_session:save_session(<<"c">>, y),
    ?assertEqual({reply, ok}, emqx_redis_storage:cancel(Id)).

an_id_of_an_earlier_engine_cancels_nothing(Config) ->
    ok = ?SERVER:pause(server(Config)),
    Old = [emqx_redis_session:save_session_async(<<"c">>, N) || N <- lists:seq(1, 50)],
    ok = emqx_redis_storage:stop(),
    [
        ?assertMatch(
            {reply, {error, Reason}} when Reason =:= stopped; Reason =:= {unknown, stopped},
            emqx_redis_storage:receive_response(Id, 0)
        )
     || Id <- Old
    ],
    ok = ?SERVER:resume(server(Config)),
    ok = emqx_redis_storage:start(?SERVER:config(server(Config))),
    await_connected(),
    ok = ?SERVER:pause(server(Config)),
    New = [emqx_redis_session:save_session_async(<<"c">>, N) || N <- lists:seq(1, 50)],
    [emqx_redis_nif:cancel(element(3, Id)) || Id <- Old],
    ok = ?SERVER:resume(server(Config)),
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, 5000)) || Id <- New].

fifty_thousand_waiting_requests_are_cancelled_swiftly(Config) ->
    ok = ?SERVER:pause(server(Config)),
    Ids = [
        emqx_redis_session:save_session_async(<<"c">>, N, #{timeout => 60000})
     || N <- lists:seq(1, 50000)
    ],
    {Micros, Results} = timer:tc(fun() -> [emqx_redis_storage:cancel(Id) || Id <- Ids] end),
    ok = ?SERVER:resume(server(Config)),
    %% On a busy machine the server counts as hung before the last is cancelled.
    Hung = [{reply, {error, {unknown, hung}}}, {reply, {error, {unavailable, hung}}}],
    ?assertEqual([], lists:usort(Results) -- [ok, {error, {unknown, cancelled}} | Hung]),
    ct:pal("50,000 cancelled in ~b ms", [Micros div 1000]),
    %% Each of them moving or searching all the others took minutes.
    ?assert(Micros < 20000000, Micros).

a_long_mailbox_does_not_slow_a_call(_Config) ->
    [
        begin
            Save = fun() -> emqx_redis_session:save_session(<<"c">>, Data) end,
            {Short, _, _} = least(300, Save),
            [self() ! {mail, N} || N <- lists:seq(1, 100000)],
            {Long, _, _} = least(300, Save),
            100000 = length(?HELPERS:flush()),
            ct:pal("~b us, ~b us with 100,000 messages in the mailbox", [Short, Long]),
            ?assert(Long < 3 * Short + 100, {Short, Long})
        end
     || Data <- [x, binary:copy(<<"x">>, 100000)]
    ].

%%--------------------------------------------------------------------
%% Order
%%--------------------------------------------------------------------

one_clients_requests_run_in_their_order(Config) ->
    in_processes(4, fun(Worker) ->
        Client = <<"c", (integer_to_binary(Worker))/binary>>,
        Saves = [emqx_redis_session:save_session_async(Client, N) || N <- lists:seq(1, 2000)],
        Load = emqx_redis_session:load_session_async(Client),
        [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, 5000)) || Id <- Saves],
        ?assertEqual({reply, {ok, 2000}}, emqx_redis_storage:receive_response(Load, 5000)),
        Stores = lists:append([
            [
                emqx_redis_message:store_message_async(Client, message(N)),
                emqx_redis_message:store_message_async(Client, message(-N)),
                emqx_redis_message:ack_message_async(Client, id(N))
            ]
         || N <- lists:seq(1, 500)
        ]),
        Page = emqx_redis_message:get_messages_async(Client, 0, 1000),
        [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, 5000)) || Id <- Stores],
        {reply, {ok, Messages}} = emqx_redis_storage:receive_response(Page, 5000),
        ?assertEqual([message(-N) || N <- lists:seq(1, 500)], Messages)
    end),
    ?assertEqual(2000, ?SERVER:cli(server(Config), ["ZCARD", "sync:messages"])).

a_message_stored_behind_a_long_deletion_stays(Config) ->
    ok = emqx_redis_message:store_messages(<<"c">>, [message(N) || N <- lists:seq(1, 5000)]),
    Ids = behind_a_pause(Config, fun() ->
        [
            emqx_redis_message:delete_messages_async(<<"c">>),
            emqx_redis_message:store_message_async(<<"c">>, message(6000)),
            emqx_redis_session:save_session_async(<<"d">>, x)
        ]
    end),
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, 5000)) || Id <- Ids],
    ?assertEqual({ok, [message(6000)]}, emqx_redis_message:get_messages(<<"c">>, 0, 10)),
    Many = [id(N) || N <- lists:seq(1, 1000)],
    ok = emqx_redis_message:store_messages(<<"c">>, [message(N) || N <- lists:seq(1, 1000)]),
    Acks = behind_a_pause(Config, fun() ->
        [
            emqx_redis_message:ack_messages_async(<<"c">>, Many),
            emqx_redis_message:store_message_async(<<"c">>, message(1000))
        ]
    end),
    [?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, 5000)) || Id <- Acks],
    {ok, Left} = emqx_redis_message:get_messages(<<"c">>, 0, 10),
    ?assertEqual(lists:sort([message(6000), message(1000)]), lists:sort(Left)).

order_holds_when_the_server_forgot_the_scripts(Config) ->
    ok = emqx_redis_message:store_message(<<"c">>, message(1)),
    ok = emqx_redis_session:save_session(<<"d">>, old),
    <<"OK">> = ?SERVER:cli(server(Config), ["SCRIPT", "FLUSH"]),
    [Delete, Store, Save, Load] = behind_a_pause(Config, fun() ->
        [
            emqx_redis_message:delete_messages_async(<<"c">>),
            emqx_redis_message:store_message_async(<<"c">>, message(2)),
            emqx_redis_session:save_session_async(<<"d">>, new),
            emqx_redis_session:load_session_async(<<"d">>)
        ]
    end),
    [
        ?assertEqual({reply, ok}, emqx_redis_storage:receive_response(Id, 5000))
     || Id <- [Delete, Store, Save]
    ],
    ?assertEqual({reply, {ok, new}}, emqx_redis_storage:receive_response(Load, 5000)),
    ?assertEqual({ok, [message(2)]}, emqx_redis_message:get_messages(<<"c">>, 0, 10)).

%% What was answered ok stays unless a later save took its place.
order_holds_over_lost_connections(Config) ->
    Killer = spawn(fun() -> kill_connections(server(Config)) end),
    register(killer, Killer),
    in_processes(3, fun(Worker) ->
        Client = <<"c", (integer_to_binary(Worker))/binary>>,
        lists:foldl(
            fun(Round, {Before, MaybeBefore}) ->
                Saves = [
                    {N, emqx_redis_session:save_session_async(Client, N)}
                 || N <- lists:seq(Round * 1000, Round * 1000 + 500)
                ],
                Results = [
                    {N, emqx_redis_storage:receive_response(Id, 10000)}
                 || {N, Id} <- Saves
                ],
                [
                    ?assertMatch(
                        {_, {reply, R}} when
                            R =:= ok orelse element(1, element(2, R)) =:= unknown,
                        Result
                    )
                 || Result <- Results
                ],
                Done = lists:max([Before | [N || {N, {reply, ok}} <- Results]]),
                Unknown = MaybeBefore ++ [N || {N, {reply, {error, _}}} <- Results],
                Maybe = [N || N <- Unknown, N > Done],
                {ok, Found} = retry(fun() -> emqx_redis_session:load_session(Client) end),
                ?assert(Found =:= Done orelse lists:member(Found, Maybe), {Found, Done, Maybe}),
                {Done, Maybe}
            end,
            {0, []},
            lists:seq(1, 12)
        )
    end),
    exit(Killer, kill),
    #{counters := #{disconnects := Lost}} = emqx_redis_storage:status(),
    ct:pal("~b connections lost", [Lost]),
    ?assert(Lost > 5, Lost).

kill_connections(Server) ->
    _ = ?SERVER:cli(Server, ["CLIENT", "KILL", "TYPE", "normal"]),
    timer:sleep(30),
    kill_connections(Server).

%% A read may be repeated by who made it.
retry(Fun) ->
    case Fun() of
        {error, {unknown, _}} -> retry(Fun);
        Result -> Result
    end.

%% Sent in one go: the server can read nothing meanwhile.
behind_a_pause(Config, Submit) ->
    ok = ?SERVER:pause(server(Config)),
    Ids = Submit(),
    timer:sleep(50),
    ok = ?SERVER:resume(server(Config)),
    Ids.

%%--------------------------------------------------------------------
%% Limits
%%--------------------------------------------------------------------

too_many_requests_are_refused_at_once(Config) ->
    limited(Config, #{max_inflight => 100}),
    {Accepted, Refused} = flood(Config, 200, fun(N) ->
        emqx_redis_session:save_session_async(<<"c">>, N)
    end),
    %% The engine's own requests, a heartbeat or a sweep, may be among the hundred.
    ?assert(Accepted >= 95 andalso Accepted =< 100, Accepted),
    ?assertEqual(200, Accepted + Refused).

too_many_bytes_are_refused_at_once(Config) ->
    limited(Config, #{max_inflight_bytes => <<"1MB">>}),
    Data = binary:copy(<<"x">>, 20000),
    {Accepted, Refused} = flood(Config, 100, fun(_) ->
        emqx_redis_session:save_session_async(<<"c">>, Data)
    end),
    ?assert(Accepted >= 48 andalso Accepted =< 53, Accepted),
    ?assertEqual(100, Accepted + Refused).

limited(Config, Limits) ->
    ok = emqx_redis_storage:start(maps:put(limits, Limits, ?SERVER:config(server(Config)))).

flood(Config, Count, Submit) ->
    ok = ?SERVER:pause(server(Config)),
    {Micros, Ids} = timer:tc(fun() -> [Submit(N) || N <- lists:seq(1, Count)] end),
    ?assert(Micros < 1000000, Micros),
    Refused = length([
        Id
     || Id <- Ids, {reply, {error, overloaded}} <- [look(Id)]
    ]),
    ok = ?SERVER:resume(server(Config)),
    timer:sleep(100),
    ok = emqx_redis_session:save_session(<<"c">>, x),
    Answered = [Result || {emqx_redis_reply, _, Result} <- ?HELPERS:flush()],
    ?assertEqual([ok], lists:usort(Answered)),
    #{inflight := Left, inflight_bytes := Bytes} = emqx_redis_storage:status(),
    ?assert(Left < 5 andalso Bytes < 1000, {Left, Bytes}),
    {length(Answered), Refused}.

%% The answer that is there already.
look({emqx_redis_request, Ref, _}) ->
    receive
        {emqx_redis_reply, Ref, Result} -> {reply, Result}
    after 0 -> none
    end.

requests_of_dead_callers_are_dropped(Config) ->
    ok = ?SERVER:kill(server(Config)),
    ?HELPERS:wait_until(fun() -> not maps:get(connected, emqx_redis_storage:status()) end),
    in_processes(100, fun(N) ->
        [
            emqx_redis_session:save_session_async(<<N, M>>, x, #{timeout => infinity})
         || M <- lists:seq(1, 10)
        ]
    end),
    ?assert(maps:get(inflight, emqx_redis_storage:status()) >= 1000),
    ok = ?SERVER:restart(server(Config)),
    await_connected(),
    ok = emqx_redis_session:save_session(<<"c">>, x),
    #{counters := #{abandoned := Abandoned}} = emqx_redis_storage:status(),
    ?assertEqual(1000, Abandoned),
    ?assertEqual({ok, 1}, emqx_redis_session:count_sessions()),
    ?HELPERS:wait_until(fun() -> maps:get(inflight, emqx_redis_storage:status()) < 3 end).

%%--------------------------------------------------------------------
%% Large terms
%%--------------------------------------------------------------------

%% A submission on a scheduler either is short or gives up early. The least of many timings is the
%% call's own time; a control of pure computation shows how much more the machine adds.
large_terms_do_not_hold_a_scheduler(_Config) ->
    Terms = [
        {"binary, 16 MiB", binary:copy(<<"x">>, 16 * ?MIB)},
        {"list of 1,048,576 binaries", lists:duplicate(?MIB, <<"0123456789">>)},
        {"list of 4,194,304 integers", lists:seq(1, 4 * ?MIB)},
        {"map of 100,000", maps:from_list([{N, N} || N <- lists:seq(1, 100000)])},
        {"integer of 500 kB", 1 bsl 4000000},
        {"integer of 16 KiB", 1 bsl (8 * 16 * 1024)},
        {"bit string of 16 MiB", <<0:(8 * 16 * ?MIB - 1)>>},
        {"tuple of 1,000,000", erlang:make_tuple(1000000, x)},
        {"string of 30,000", lists:duplicate(30000, $x)},
        {"deep list", lists:foldl(fun(N, Deep) -> [N, Deep] end, [], lists:seq(1, 100))},
        {"just under the budget, list", lists:seq(1, 10000)},
        {"just under the budget, binary", binary:copy(<<"x">>, 32000)}
    ],
    Control = least(200, fun() -> lists:foldl(fun(N, Sum) -> N + Sum end, 0, lists:seq(1, 1000)) end),
    Times = [{Name, least(200, fun() -> submit(Term) end)} || {Name, Term} <- Terms],
    ct:pal("control: ~p~n~p (least, median and greatest of 200, us)", [Control, Times]),
    [?assert(Least < 1000 andalso Median < 1500, Time) || {_, {Least, Median, _}} = Time <- Times],
    Status = least(200, fun() -> emqx_redis_nif:status() end),
    ct:pal("status: ~p us", [Status]),
    ?assert(element(1, Status) < 1000, Status).

submit(Term) ->
    Ref = make_ref(),
    Operation = {save_session, <<"large">>, Term, undefined, undefined},
    case emqx_redis_nif:submit(Ref, undefined, Operation) of
        over_budget -> ok;
        Number when is_integer(Number) -> {later, Ref}
    end.

least(Count, Fun) ->
    Times = lists:sort([time(Fun) || _ <- lists:seq(1, Count)]),
    {hd(Times), lists:nth(Count div 2, Times), lists:last(Times)}.

time(Fun) ->
    Begin = erlang:monotonic_time(),
    Result = Fun(),
    Micros = erlang:convert_time_unit(erlang:monotonic_time() - Begin, native, microsecond),
    case Result of
        {later, Ref} ->
            receive
                {emqx_redis_reply, Ref, ok} -> ok
            end;
        _ ->
            ok
    end,
    Micros.

large_terms_come_back_whole(_Config) ->
    [
        begin
            ?assertEqual(ok, emqx_redis_session:save_session(<<"large">>, Term)),
            ?assert({ok, Term} =:= emqx_redis_session:load_session(<<"large">>))
        end
     || Term <- [binary:copy(<<"x">>, 16 * ?MIB), lists:seq(1, 2 * ?MIB)]
    ],
    %% Answers that are built beside the engine's thread come also when the storage stops meanwhile.
    Ids = [emqx_redis_session:load_session_async(<<"large">>) || _ <- lists:seq(1, 10)],
    timer:sleep(100),
    ok = emqx_redis_storage:stop(),
    [?assertMatch({reply, _}, emqx_redis_storage:receive_response(Id, 1000)) || Id <- Ids].

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

server(Config) -> proplists:get_value(server, Config).

message(N) -> #{id => id(N), payload => N}.

id(N) -> <<"m", (integer_to_binary(N))/binary>>.

await_connected() ->
    ?HELPERS:wait_until(fun() -> maps:get(connected, emqx_redis_storage:status()) end).

%% Runs Fun(1), ..., Fun(Count) at once, each in a process of its own, and fails if one does.
in_processes(Count, Fun) ->
    Started = [spawn_monitor(fun() -> Fun(N) end) || N <- lists:seq(1, Count)],
    [
        receive
            {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason)
        end
     || {Pid, Monitor} <- Started
    ],
    ok.
