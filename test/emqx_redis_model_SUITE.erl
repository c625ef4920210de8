%% Random sequences of session and message operations, synchronous and asynchronous, against the model
%% in emqx_redis_test_model, on a real Redis.
-module(emqx_redis_model_SUITE).

-compile([export_all, nowarn_export_all]).

-include("emqx_redis_proper.hrl").

-import(proper_types, [
    binary/0, binary/1, bitstring/0, exactly/1, float/0, frequency/1, integer/0, largeint/0, list/1,
    loose_tuple/1, oneof/1, range/2, resize/2, string/0
]).

-define(MODEL, emqx_redis_test_model).
-define(STORAGE, emqx_redis_test_storage).
-define(HELPERS, emqx_redis_test_helpers).

suite() ->
    [{timetrap, {minutes, 4}}].

all() ->
    [{group, single}, {group, cluster}].

groups() ->
    [{single, cases()}, {cluster, cases()}].

cases() ->
    [sessions_and_messages_follow_the_model, values_round_trip_exactly].

init_per_group(Topology, Config) -> ?STORAGE:start([{topology, Topology} | Config]).

end_per_group(_Topology, Config) -> ?STORAGE:stop(Config).

init_per_testcase(_Case, Config) ->
    ?STORAGE:reset(Config).

sessions_and_messages_follow_the_model(Config) ->
    check(?FORALL(Bursts, list(burst()), follows(Bursts, Config)), Config).

values_round_trip_exactly(Config) ->
    check(
        ?FORALL({Client, Id, Value}, {name(), name(), value()}, begin
            Message = #{id => Id, payload => Value, Value => 1},
            ok = emqx_redis_session:save_session(Client, Value),
            ok = emqx_redis_message:store_message(Client, Message),
            Loaded = emqx_redis_session:load_session(Client),
            Messages = emqx_redis_message:get_messages(Client, 0, 10),
            ok = emqx_redis_message:delete_messages(Client),
            Loaded =:= {ok, Value} andalso Messages =:= {ok, [Message]}
        end),
        Config
    ).

%% Lists and counts of a cluster's slots take longer.
runs(single) -> 300;
runs(cluster) -> 100.

check(Property, Config) ->
    Print = fun
        (".", []) -> ok;
        (Format, Arguments) -> ct:pal(Format, Arguments)
    end,
    Runs = runs(?STORAGE:topology(Config)),
    true = proper:quickcheck(Property, [{numtests, Runs}, {max_size, 30}, {on_output, Print}]).

%% All operations of a burst are for the same client, so that their order is certain even where
%% they are submitted one after another without waiting.
follows(Bursts, Config) ->
    ?STORAGE:reset(Config),
    %% A cluster lists sessions slot by slot.
    try run(Bursts, ?MODEL:new(fun(Client) -> ?STORAGE:slot(Config, Client) end)) of
        {[], Model} ->
            nothing_leaks(Model, Config) andalso ?HELPERS:stray_messages(0) =:= [];
        {Wrong, _} ->
            [ct:pal("~p~nexpected ~p~nfound    ~p", [Op, Expected, Found]) || {Op, Expected, Found} <- Wrong],
            false
    catch
        %% PropEr 1.2 itself fails on an exception in a property on an OTP that is as new as ours.
        Class:Reason:Stack ->
            ct:pal("~p:~p~n~p", [Class, Reason, Stack]),
            false
    end.

run([{Form, Operations} | Bursts], Model) ->
    Resolved = [resolve(Operation, Model) || Operation <- Operations],
    {Expected, Next} = lists:mapfoldl(fun ?MODEL:apply/2, Model, Resolved),
    Found = execute(Form, Resolved),
    case lists:zip3(Resolved, Expected, Found) of
        Triples when Expected =/= Found -> {[T || {_, E, F} = T <- Triples, E =/= F], Next};
        _ -> run(Bursts, Next)
    end;
run([], Model) ->
    {[], Model}.

execute(sync, Operations) ->
    [erlang:apply(module(F), F, Arguments) || {F, Arguments} <- Operations];
execute(async, Operations) ->
    Requests = [erlang:apply(module(F), async(F), Arguments) || {F, Arguments} <- Operations],
    [
        case emqx_redis_storage:receive_response(Request, 5000) of
            {reply, Result} -> Result;
            timeout -> timeout
        end
     || Request <- Requests
    ].

async(Function) -> list_to_atom(atom_to_list(Function) ++ "_async").

module(Function) ->
    case re:run(atom_to_list(Function), "session") of
        {match, _} -> emqx_redis_session;
        nomatch -> emqx_redis_message
    end.

%% Epochs are chosen when the model is known.
resolve({Function, Arguments = [Client | _]}, Model) when is_binary(Client) ->
    case lists:last(Arguments) of
        Opts = #{epoch := Which} ->
            Current =
                case ?MODEL:epoch(Client, Model) of
                    undefined -> 1;
                    Stored -> Stored
                end,
            Epoch =
                case Which of
                    stale -> max(0, Current - 1);
                    current -> Current;
                    later -> Current + 3
                end,
            {Function, lists:droplast(Arguments) ++ [Opts#{epoch := Epoch}]};
        _ ->
            {Function, Arguments}
    end;
resolve(Operation, _Model) ->
    Operation.

nothing_leaks(Model, Config) ->
    lists:foreach(
        fun(Client) ->
            Opts =
                case ?MODEL:epoch(Client, Model) of
                    undefined -> #{};
                    Epoch -> #{epoch => Epoch}
                end,
            ok = emqx_redis_session:delete_session(Client, Opts),
            ok = emqx_redis_message:delete_messages(Client, Opts)
        end,
        ?MODEL:clients(Model)
    ),
    Claimed = [C || C <- ?MODEL:clients(Model), ?MODEL:epoch(C, Model) =/= undefined],
    Epochs = [?STORAGE:key(Config, {epoch, C}) || C <- Claimed],
    case ?STORAGE:keys(Config) -- [<<"meta">> | Epochs] of
        [] -> true;
        Left -> ct:pal("left over: ~p", [Left]), false
    end.

%% Generators

burst() ->
    oneof([
        {sync, ?LET(Client, client(), resize(6, list(operation(Client, limits()))))},
        %% A queue either has a limit or not, as long as its operations are not waited for.
        {async, ?LET(Client, client(), resize(6, list(operation(Client, limit_of(range(1, 4))))))},
        {async, ?LET(Client, client(), resize(6, list(operation(Client, #{}))))},
        {oneof([sync, async]), [global()]}
    ]).

global() ->
    oneof([
        {list_sessions, [limit(), offset()]},
        {count_sessions, []},
        {store_message_for, [resize(5, list(client())), message(), limits()]}
    ]).

operation(Client, Limits) ->
    frequency([
        {3, {save_session, [Client, resize(5, value()), fencing(ttl())]}},
        {2, {load_session, [Client]}},
        {1, {delete_session, [Client, fencing(#{})]}},
        {1, {claim_session, [Client, #{}]}},
        {5, {store_message, [Client, message(), ttl(Limits)]}},
        {3, {store_messages, [Client, resize(5, list(message())), ttl(Limits)]}},
        {4, {get_messages, [Client, offset(), limit()]}},
        {2, {ack_message, [Client, id(), fencing(#{})]}},
        {1, {ack_messages, [Client, resize(4, list(id())), fencing(#{})]}},
        {1, {delete_messages, [Client, fencing(#{})]}}
    ]).

client() -> oneof(lists:sublist(?STORAGE:adversarial_ids(), 1, 8) ++ [<<0>>, <<"sessions">>, mac()]).

mac() -> <<"00:1B:44:11:3A:B7">>.

name() -> oneof([oneof(?STORAGE:adversarial_ids()), binary(), binary(16)]).

id() -> oneof([<<"1">>, <<"c:1">>, <<>>, <<":">>, <<"%3A">>, <<0>>, <<58, 0, 255, 37, 1:96>>]).

offset() -> frequency([{5, 0}, {3, range(0, 4)}, {1, 4294967295}]).

limit() -> frequency([{5, 1000000}, {3, range(0, 4)}, {1, 4294967295}]).

ttl() -> ttl(#{}).

ttl(Opts) -> ?LET({Base, Ttl}, {Opts, oneof([none, 1000, 4294967295, infinity])}, with(ttl, Ttl, Base)).

fencing(Opts) ->
    ?LET(
        {Base, Epoch}, {Opts, frequency([{4, current}, {2, none}, {1, stale}, {1, later}])},
        with(epoch, Epoch, Base)
    ).

limits() ->
    limit_of(oneof([none, range(1, 4)])).

limit_of(Most) ->
    Policy = oneof([none, drop_oldest, reject]),
    ?LET({N, OnFull}, {Most, Policy}, with(max_queue, N, with(on_full, OnFull, #{}))).

with(_Key, none, Opts) -> Opts;
with(Key, Value, Opts) -> Opts#{Key => Value}.

message() ->
    Timestamp = oneof([none, none, 0, 5, 6, 1000, -1, -7, 4000000000000]),
    ?LET(
        {IdKey, Id, At, Payload},
        {oneof([id, message_id, <<"id">>, <<"message_id">>]), id(), Timestamp, resize(3, value())},
        with(timestamp, At, #{IdKey => Id, payload => Payload})
    ).

value() ->
    ?SIZED(Size, value(Size)).

value(0) ->
    oneof([
        integer(),
        largeint(),
        ?LET(Bits, integer(), 1 bsl 64 + Bits),
        float(),
        -0.0,
        binary(),
        bitstring(),
        oneof([true, false, undefined, nil, ok, '', 'Größe', '$bad atom']),
        exactly(self()),
        exactly(make_ref()),
        exactly(fun lists:map/2),
        []
    ]);
value(Size) ->
    Smaller = value(Size div 3),
    oneof([
        value(0),
        list(Smaller),
        string(),
        ?LET({Head, Tail}, {Smaller, integer()}, [Head | Tail]),
        loose_tuple(Smaller),
        ?LET(Pairs, list({Smaller, Smaller}), maps:from_list(Pairs))
    ]).
