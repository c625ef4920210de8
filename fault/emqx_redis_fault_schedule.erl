%% Which faults happen in a run, in which order and with which numbers: all of it follows from the seed, so
%% that a run can be repeated. How many of them happen is a matter of the time that there is.
-module(emqx_redis_fault_schedule).

-export([new/3, next/1, preview/2, names/1]).

-export_type([schedule/0, fault/0, name/0]).

-type name() ::
    kill_master
    | kill_replica
    | freeze_master
    | freeze_replica
    | cut
    | partition
    | lose_replies
    | refuse
    | old_bytes
    | failover
    | reshard
    | grow_and_shrink
    | flush_scripts
    | kill_clients
    | out_of_memory.
%% `choice' (from 0 to 1) chooses a server or slots; `ms' is how long the fault lasts.
-type fault() :: #{
    name := name(), pause := pos_integer(), choice := float(), ms := pos_integer(), way := atom()
}.
-opaque schedule() :: #{seed := rand:state(), all := [name()], left := [name()]}.

-define(LONGEST_PAUSE, 1500).
-define(LONGEST, 8000).

-spec names(emqx_redis_fault_topology:kind()) -> [name()].
names(single) ->
    [kill_master, freeze_master, cut, partition, lose_replies, refuse, old_bytes, flush_scripts] ++
        [kill_clients, out_of_memory];
names(sentinel) ->
    names(single) ++ [kill_replica, freeze_replica, failover];
names(cluster) ->
    names(sentinel) ++ [reshard, grow_and_shrink].

%% Of all names these alone, unless it is `all'.
-spec new(emqx_redis_fault_topology:kind(), Seed :: integer(), [name()] | all) -> schedule().
new(Kind, Seed, all) ->
    #{seed => rand:seed_s(exsss, {Seed, 0, 0}), all => names(Kind), left => []};
new(Kind, Seed, Some) ->
    (new(Kind, Seed, all))#{all := [Name || Name <- names(Kind), lists:member(Name, Some)]}.

%% Each name once, in a random order, before any comes again.
-spec next(schedule()) -> {fault(), schedule()}.
next(Schedule = #{left := [], all := All, seed := Seed}) ->
    {Keyed, Rest} = lists:mapfoldl(
        fun(Name, S) ->
            {Key, Next} = rand:uniform_s(S),
            {{Key, Name}, Next}
        end,
        Seed,
        All
    ),
    next(Schedule#{left := [Name || {_, Name} <- lists:sort(Keyed)], seed := Rest});
next(Schedule = #{left := [Name | Left], seed := Seed0}) ->
    {Pause, Seed1} = rand:uniform_s(?LONGEST_PAUSE, Seed0),
    {Choice, Seed2} = rand:uniform_s(Seed1),
    {Milliseconds, Seed3} = rand:uniform_s(?LONGEST - 500, Seed2),
    {Way, Seed4} = rand:uniform_s(3, Seed3),
    Fault = #{
        name => Name,
        pause => 500 + Pause,
        choice => Choice,
        ms => 500 + Milliseconds,
        way => lists:nth(Way, [both, requests, replies])
    },
    {Fault, Schedule#{left := Left, seed := Seed4}}.

%% The names of the first faults.
-spec preview(schedule(), Number :: non_neg_integer()) -> [string()].
preview(_Schedule, 0) ->
    ["..."];
preview(Schedule, Number) ->
    {#{name := Name}, Rest} = next(Schedule),
    [atom_to_list(Name) | preview(Rest, Number - 1)].
