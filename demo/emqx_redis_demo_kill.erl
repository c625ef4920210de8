%% The demo's second step: the first node takes on messages while Redis loses a master, where it has more than
%% one server, and is killed itself in the middle of it.
-module(emqx_redis_demo_kill).

-export([publish/4]).

-type result() :: #{
    ending := emqx_redis_demo_process:ending(),
    %% By their kinds, the newest first.
    reports := #{atom() => [tuple()]},
    seconds := float(),
    failed_over := {Promoted :: non_neg_integer(), Healthy :: non_neg_integer()} | none
}.

%% A master is killed when half of `Enough' messages are acknowledged; the node when `Enough' are and there is
%% another master. Returns when all servers are in sync again.
-spec publish(
    emqx_redis_demo_process:process(), emqx_redis_demo_redis:redis(), [pos_integer()], pos_integer()
) -> result().
publish(Node, Redis, Numbers, Enough) ->
    State = #{
        node => Node,
        redis => Redis,
        acknowledged => 0,
        enough => Enough,
        %% `none' to be done, or `waiting', then the process that does it and whether a replica is promoted.
        fail_over =>
            case emqx_redis_demo_redis:kind(Redis) of
                single -> none;
                _ -> waiting
            end,
        is_killed => false,
        reports => #{}
    },
    Publish = {publish, Numbers},
    {Ending, Last, Seconds} = emqx_redis_demo_process:command(Node, Publish, fun report/2, State),
    #{fail_over := FailOver, reports := Reports} = Last,
    #{ending => Ending, reports => Reports, seconds => Seconds, failed_over => awaited(FailOver)}.

%% Internal

%% The journal goes on with what the dead node wrote.
report(Report, State = #{reports := Reports, acknowledged := Acknowledged}) ->
    Kind = element(1, Report),
    More = maps:update_with(Kind, fun(List) -> [Report | List] end, [Report], Reports),
    Added = State#{reports := More},
    case Kind of
        message -> kill_in_time(Added#{acknowledged := Acknowledged + 1});
        _ -> kill_in_time(Added)
    end.

kill_in_time(State = #{fail_over := waiting, acknowledged := N, enough := Enough, redis := Redis}) ->
    case N >= Enough div 2 of
        true -> State#{fail_over := begin_fail_over(Redis)};
        false -> State
    end;
kill_in_time(State = #{fail_over := {Pid, Monitor, false}}) ->
    receive
        {Pid, promoted} -> kill_in_time(State#{fail_over := {Pid, Monitor, true}});
        {'DOWN', Monitor, process, Pid, Reason} -> error({no_fail_over, Reason})
    after 0 ->
        State
    end;
kill_in_time(State = #{is_killed := false, node := Node, acknowledged := N, enough := Enough}) when
    N >= Enough
->
    ok = emqx_redis_demo_process:kill(Node),
    State#{is_killed := true};
kill_in_time(State) ->
    State.

begin_fail_over(Redis) ->
    Journal = self(),
    {Pid, Monitor} = spawn_monitor(fun() ->
        Begin = erlang:monotonic_time(millisecond),
        Server = emqx_redis_demo_redis:kill_master(Redis),
        Journal ! {self(), promoted},
        Promoted = erlang:monotonic_time(millisecond) - Begin,
        ok = emqx_redis_demo_redis:bring_back(Redis, Server),
        exit({done, {Promoted, erlang:monotonic_time(millisecond) - Begin}})
    end),
    {Pid, Monitor, false}.

awaited({Pid, Monitor, _IsPromoted}) ->
    receive
        {'DOWN', Monitor, process, Pid, {done, Times}} -> Times;
        {'DOWN', Monitor, process, Pid, Reason} -> error({no_fail_over, Reason})
    end;
awaited(_) ->
    none.
