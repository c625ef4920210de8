%% `make fault': many processes write without a pause while servers are killed, frozen, cut off, replaced and
%% moved. What was answered `ok' must be there in the end.
%%
%% Environment: TOPOLOGY (single, sentinel, cluster; all by default), SECONDS of each, SEED, WRITERS,
%% DURABILITY (none, replicas:N, aof:L:R; by default what loses nothing), FAULTS (comma-separated, else all),
%% SABOTAGE.
-module(emqx_redis_fault).

-export([start/0]).

-define(SCHEDULE, emqx_redis_fault_schedule).
-define(TOPOLOGY, emqx_redis_fault_topology).

-spec start() -> pid().
start() ->
    spawn(fun main/0).

main() ->
    Status =
        try
            Results = [emqx_redis_fault_run:run(Options) || Options <- options()],
            length([failed || failed <- Results])
        catch
            throw:{usage, Text} ->
                io:format(standard_error, "~ts~n", [Text]),
                2;
            Class:Reason:Stack ->
                io:format("~nFAILED: the run itself broke: ~0tp~n~tp~n", [{Class, Reason}, Stack]),
                1
        end,
    halt(min(Status, 2)).

options() ->
    Kinds = chosen("TOPOLOGY", ?TOPOLOGY:kinds(), ?TOPOLOGY:kinds()),
    Seed = number("SEED", 1 + erlang:system_time(microsecond) rem 1000000),
    [
        #{
            kind => Kind,
            seed => Seed,
            seconds => number("SECONDS", 60),
            writers => number("WRITERS", 64),
            level => level(os:getenv("DURABILITY", ""), Kind),
            faults => chosen("FAULTS", ?SCHEDULE:names(cluster), all),
            sabotage => sabotage(os:getenv("SABOTAGE", ""))
        }
     || Kind <- Kinds
    ].

%% Some of these names, comma-separated.
chosen(Variable, Known, Default) ->
    case os:getenv(Variable, "") of
        "" ->
            Default;
        Text ->
            Names = [{Name, atom_to_list(Name)} || Name <- Known],
            [
                case lists:keyfind(Word, 2, Names) of
                    {Name, _} -> Name;
                    false -> usage(Variable, [Name || {_, Name} <- Names])
                end
             || Word <- string:lexemes(Text, ", ")
            ]
    end.

number(Variable, Default) ->
    case string:to_integer(os:getenv(Variable, integer_to_list(Default))) of
        {Number, ""} when Number > 0 -> Number;
        {error, no_integer} when Default > 0 -> Default;
        _ -> usage(Variable, ["a number from 1 on"])
    end.

level("", Kind) ->
    ?TOPOLOGY:level(Kind);
level(Text, _Kind) ->
    case [string:to_integer(Part) || Part <- tl(string:lexemes(Text, ":"))] of
        [] when Text =:= "none" -> none;
        [{N, ""}] when N > 0 -> {replicas, N};
        [{L, ""}, {R, ""}] when L + R > 0 -> {aof, L, R};
        _ -> usage("DURABILITY", ["none", "replicas:N", "aof:L:R"])
    end.

sabotage("") ->
    none;
sabotage(Kind) ->
    lists:member(Kind, emqx_redis_fault_sabotage:kinds()) orelse
        usage("SABOTAGE", emqx_redis_fault_sabotage:kinds()),
    Kind.

-spec usage(string(), [string()]) -> no_return().
usage(Variable, Known) ->
    throw({usage, [Variable, ": one of ", lists:join(", ", Known)]}).
