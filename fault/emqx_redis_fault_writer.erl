%% A process that writes without a pause to clients and routes of its own, until it is told to finish.
-module(emqx_redis_fault_writer).

-export([start/2, stop/1, finish/2, verify/3]).

-export_type([writer/0, items/0, violation/0]).

-opaque writer() :: {pid(), reference()}.
-type items() :: #{
    clients := [emqx_redis_fault_client:client()],
    routes := emqx_redis_fault_routes:routes() | dropped,
    %% Whether no client was dropped.
    complete := boolean()
}.
-type violation() :: #{item := binary(), what := term(), history := emqx_redis_fault_call:history()}.

%% Between two steps, at most: all writers together shall keep the machine busy, not drown it.
-define(PAUSE, 20).

%% The violations come to the caller as {violation, violation()}.
-spec start(emqx_redis_fault_call:context(), Seed :: integer()) -> writer().
start(Context = #{writer := Number}, Seed) ->
    Run = self(),
    spawn_monitor(fun() ->
        _ = rand:seed(exsss, {Seed, Number, 1}),
        Routes = emqx_redis_fault_routes:new(<<"w", (integer_to_binary(Number))/binary>>),
        loop(Context, Run, #{clients => clients(Number), routes => Routes, complete => true})
    end).

%% Has it end when its step is done.
-spec stop(writer()) -> ok.
stop({Pid, _Monitor}) ->
    Pid ! finish,
    ok.

%% What a writer that was stopped knows of its items; without those that have shown a violation.
-spec finish(writer(), timeout()) -> {ok, items()} | {error, term()}.
finish({Pid, Monitor}, Timeout) ->
    receive
        {'DOWN', Monitor, process, Pid, {finished, Items}} -> {ok, Items};
        {'DOWN', Monitor, process, Pid, Reason} -> {error, {ended, Reason}}
    after Timeout ->
        Info = process_info(Pid, [current_stacktrace, messages]),
        exit(Pid, kill),
        {error, {still_waits, Info}}
    end.

%% Fun(Item) for each item, and the violations; what Fun answered for those without one.
-spec verify(items(), fun((emqx_redis_fault_client:client()) -> Found), fun((term()) -> Found)) ->
    {[Found], [violation()]}.
verify(#{clients := Clients, routes := Routes}, OfClient, OfRoutes) ->
    Checks = [{Client, OfClient} || Client <- Clients] ++ [{Routes, OfRoutes} || Routes =/= dropped],
    lists:foldl(
        fun({Item, Fun}, {Found, Violations}) ->
            case attempt(fun() -> Fun(Item) end, Item) of
                {ok, Value} -> {[Value | Found], Violations};
                {violation, Violation} -> {Found, [Violation | Violations]}
            end
        end,
        {[], []},
        Checks
    ).

%% Internal

%% Names with all that means something in keys, one of each sort with epochs and with timestamps.
clients(Number) ->
    Name = integer_to_binary(Number),
    [
        emqx_redis_fault_client:new(<<"w", Name/binary, "-plain">>, true, false),
        emqx_redis_fault_client:new(<<"w:", Name/binary, ":%3A:">>, true, true),
        emqx_redis_fault_client:new(<<"{w}", Name/binary, "}%7D{">>, false, true),
        emqx_redis_fault_client:new(<<"w", Name/binary, 0, "\r\n">>, false, false)
    ].

loop(Context, Run, Items) ->
    receive
        finish ->
            finished(Context, Run, Items);
        Stray ->
            Run ! {violation, stray(Stray)},
            loop(Context, Run, Items)
    after rand:uniform(?PAUSE) ->
        loop(Context, Run, step(Context, Run, Items))
    end.

%% A message that comes after its answer would come soon.
finished(Context, Run, Items) ->
    receive
        Stray ->
            Run ! {violation, stray(Stray)},
            finished(Context, Run, Items)
    after 300 ->
        exit({finished, Items})
    end.

stray(Message) ->
    #{item => <<"a writer's mailbox">>, what => {stray_message, Message}, history => []}.

step(Context, Run, Items = #{clients := Clients, routes := Routes}) ->
    case rand:uniform(5) of
        1 when Routes =/= dropped ->
            case attempt(fun() -> emqx_redis_fault_routes:step(Context, Routes) end, Routes) of
                {ok, After} ->
                    Items#{routes := After};
                {violation, _} = Violation ->
                    Run ! Violation,
                    Items#{routes := dropped}
            end;
        _ when Clients =/= [] ->
            %% Round about, so that no client waits for long.
            [Client | Others] = Clients,
            case attempt(fun() -> emqx_redis_fault_client:step(Context, Client) end, Client) of
                {ok, After} ->
                    Items#{clients := Others ++ [After]};
                {violation, _} = Violation ->
                    Run ! Violation,
                    Items#{clients := Others, complete := false}
            end;
        _ ->
            Items
    end.

attempt(Fun, Item) ->
    try
        {ok, Fun()}
    catch
        throw:{violation, What} -> {violation, violation(What, Item)};
        throw:{violation, What, Later} -> {violation, violation(What, Later)}
    end.

violation(What, Item) ->
    {Name, History} =
        case Item of
            #{id := Id} -> {Id, emqx_redis_fault_client:history(Item)};
            #{name := Writer} -> {<<"the routes of ", Writer/binary>>, emqx_redis_fault_routes:history(Item)}
        end,
    #{item => Name, what => What, history => History}.
