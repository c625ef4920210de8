%% The benchmark: this library, the design it replaces, and what the server itself can bear, side by
%% side in one run on one private Redis. The contestants take turns cell by cell and round by round,
%% and each figure is the median of its rounds, since a machine's speed drifts.
%%
%% Environment: QUICK=1 for a form of some minutes; OPERATIONS, CALLERS and CONTESTANTS, comma-separated, to
%% choose among them; ROUNDS and DURATION (milliseconds). Then come the routes, see emqx_redis_bench_routes:
%% ROUTES chooses numbers of filters, or is `none`. Then the topologies and levels of durability, see
%% emqx_redis_bench_topologies; TOPOLOGIES chooses among them, or is `none`.
-module(emqx_redis_bench).

-export([main/0]).

-define(OPERATIONS, [save_session, load_session, store_message, ack_message, get_messages, match_routes]).
-define(CONTESTANTS, [replaced, plain, full, epoch]).

main() ->
    try
        run(),
        halt(0)
    catch
        Class:Reason:Stack ->
            io:format(standard_error, "The benchmark failed: ~p~n~p~n", [{Class, Reason}, Stack]),
            halt(1)
    end.

run() ->
    Settings = settings(),
    ok = contest(Settings),
    Sizes = choice("ROUTES", emqx_redis_bench_routes:sizes(os:getenv("QUICK", ""))),
    ok = emqx_redis_bench_routes:run(Sizes, Settings),
    Topologies = choice("TOPOLOGIES", emqx_redis_bench_topologies:names()),
    emqx_redis_bench_topologies:run(Topologies, Settings).

contest(#{operations := []}) ->
    ok;
contest(Settings) ->
    Server = emqx_redis_test_server:start(#{tcp => true}),
    try
        ok = emqx_redis_bench_report:heading(Server, Settings),
        Results = [
            operation(Operation, Settings#{target => emqx_redis_bench_target:of_server(Server)})
         || Operation <- maps:get(operations, Settings)
        ],
        ok = emqx_redis_bench_report:ratios(Results),
        ok = emqx_redis_bench_report:markdown(Results)
    after
        emqx_redis_test_server:stop(Server)
    end.

settings() ->
    Defaults =
        case os:getenv("QUICK", "") of
            "1" -> #{callers => [1, 64], rounds => 1, duration => 300, warm_up => 100};
            "" -> #{callers => [1, 16, 64, 256], rounds => 3, duration => 1000, warm_up => 300}
        end,
    Defaults#{
        operations => [list_to_existing_atom(Name) || Name <- choice("OPERATIONS", names(?OPERATIONS))],
        callers => [list_to_integer(N) || N <- choice("CALLERS", numbers(maps:get(callers, Defaults)))],
        contestants => [list_to_atom(Name) || Name <- choice("CONTESTANTS", names(?CONTESTANTS))],
        rounds => list_to_integer(os:getenv("ROUNDS", integer_to_list(maps:get(rounds, Defaults)))),
        duration => list_to_integer(os:getenv("DURATION", integer_to_list(maps:get(duration, Defaults))))
    }.

choice(Variable, Default) ->
    case os:getenv(Variable, "") of
        "" -> Default;
        "none" -> [];
        Chosen -> string:lexemes(Chosen, ",")
    end.

names(Atoms) -> [atom_to_list(Atom) || Atom <- Atoms].
numbers(Integers) -> [integer_to_list(Integer) || Integer <- Integers].

%% {Operation, #{{Contestant, Callers} => Figures, {limit, Contestant} => Rate}}
operation(Operation, Settings = #{callers := CallerCounts, rounds := Rounds}) ->
    Cell = Settings#{operation => Operation},
    Contestants = contestants(Operation, Settings),
    %% Reads are not bound by the server: nothing is to be learnt from their limit.
    Limited = [
        {Name, Contestant}
     || lists:member(Operation, [save_session, store_message, ack_message]),
        {Name, Contestant} <- Contestants,
        Name =:= full orelse Name =:= epoch
    ],
    Files = maps:from_list([{Name, record(Contestant, Cell)} || {Name, Contestant} <- Limited]),
    Measured = [
        round(Cell, Contestants, Files, CallerCounts)
     || _ <- lists:seq(1, Rounds)
    ],
    maps:foreach(fun(_, File) -> ok = file:delete(File) end, Files),
    Result = maps:map(
        fun(Key, _) -> emqx_redis_bench_driver:median([maps:get(Key, Round) || Round <- Measured]) end,
        hd(Measured)
    ),
    ok = emqx_redis_bench_report:operation(Operation, Result),
    {Operation, Result}.

round(Cell, Contestants, Files, CallerCounts) ->
    Cells = [
        {{Name, Callers}, emqx_redis_bench_driver:run(Contestant, Cell#{callers => Callers})}
     || Callers <- CallerCounts,
        {Name, Contestant} <- Contestants
    ],
    Limits = [
        {{limit, Name}, #{rate => emqx_redis_bench_replay:run(Contestant, Cell, maps:get(Name, Files))}}
     || {Name, Contestant} <- Contestants,
        is_map_key(Name, Files)
    ],
    maps:from_list(Cells ++ Limits).

record(Contestant, Cell) ->
    File = filename:join(maps:get(folder, maps:get(target, Cell)), "recorded"),
    Name = lists:concat([File, "_", element(2, Contestant)]),
    ok = emqx_redis_bench_replay:record(Contestant, Cell, Name),
    Name.

%% Which forms an operation has: the plain form of a match is the scan itself, and only writes to a
%% session take an epoch.
contestants(Operation, #{contestants := Chosen}) ->
    [
        {Name, {module(Name), Name}}
     || Name <- Chosen,
        not (Name =:= plain andalso Operation =:= match_routes),
        Name =/= epoch orelse lists:member(Operation, [save_session, ack_message])
    ].

module(replaced) -> emqx_redis_bench_replaced;
module(_Form) -> emqx_redis_bench_library.
