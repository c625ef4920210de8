%% This library as a contestant, in three forms: `plain` sends the replaced design's very commands as
%% one pipeline, `full` calls the API as users do, `epoch` does so on claimed sessions.
-module(emqx_redis_bench_library).

-behaviour(emqx_redis_bench_driver).

-export([start/2, stop/1, prepare/3, operation/2, ack_rate/0]).

-define(FILLERS, 16).

start(Target = #{config := Config}, Form) ->
    ok = emqx_redis_storage:start(Config),
    ok = emqx_redis_test_helpers:wait_until(fun() ->
        emqx_redis_pool:query(["PING"]) =:= {ok, <<"PONG">>}
    end),
    Target#{form => Form}.

stop(_State) ->
    emqx_redis_storage:stop().

ack_rate() ->
    350000.

prepare(Operation, Count, State = #{form := plain}) ->
    emqx_redis_bench_replaced:prepare(Operation, Count, State);
prepare(Operation, Count, #{form := full}) ->
    fill(Operation, Count);
prepare(Operation, Count, #{form := epoch}) ->
    in_parallel(0, emqx_redis_bench_data:client_count(), fun(N) ->
        {ok, #{epoch := 1}} = emqx_redis_session:claim_session(emqx_redis_bench_data:client(N), #{})
    end),
    fill(Operation, Count).

operation(get_messages, #{form := plain}) ->
    Last = integer_to_binary(emqx_redis_bench_data:queue_length() - 1),
    fun(N) ->
        Client = emqx_redis_bench_data:queue_client(N),
        {ok, Ids} = emqx_redis_pool:query(["ZRANGE", ["msgq:", Client], "0", Last]),
        {ok, Values} = emqx_redis_pool:query(["MGET" | [["msg:", Client, $:, Id] || Id <- Ids]]),
        emqx_redis_bench_replaced:decode(get_messages, Values)
    end;
operation(Operation, #{form := plain}) ->
    fun(N) ->
        {ok, Replies} = emqx_redis_pool:pipeline(emqx_redis_bench_replaced:commands(Operation, N)),
        emqx_redis_bench_replaced:decode(Operation, [Reply || {ok, Reply} <- Replies])
    end;
operation(save_session, #{form := Form}) ->
    Options = options(Form),
    fun(N) ->
        Session = emqx_redis_bench_data:session(),
        ok = emqx_redis_session:save_session(emqx_redis_bench_data:client(N), Session, Options)
    end;
operation(load_session, _State) ->
    fun(N) -> {ok, #{}} = emqx_redis_session:load_session(emqx_redis_bench_data:client(N)) end;
operation(store_message, _State) ->
    fun(N) ->
        Client = emqx_redis_bench_data:client(N),
        ok = emqx_redis_message:store_message(Client, emqx_redis_bench_data:message(N))
    end;
operation(ack_message, #{form := Form}) ->
    Options = options(Form),
    fun(N) ->
        Id = emqx_redis_bench_data:message_id(N),
        ok = emqx_redis_message:ack_message(emqx_redis_bench_data:client(N), Id, Options)
    end;
operation(get_messages, _State) ->
    Length = emqx_redis_bench_data:queue_length(),
    fun(N) ->
        {ok, Messages} = emqx_redis_message:get_messages(emqx_redis_bench_data:queue_client(N), 0, Length),
        Length = length(Messages)
    end;
operation(match_routes, _State) ->
    fun(N) -> {ok, [_, _, _]} = emqx_redis_router:match_routes(emqx_redis_bench_data:topic(N)) end.

options(epoch) -> #{epoch => 1};
options(full) -> #{}.

%% Internal: what an operation finds there, written through the API.

fill(load_session, _Count) ->
    in_parallel(0, emqx_redis_bench_data:client_count(), fun(N) ->
        Session = emqx_redis_bench_data:session(),
        case emqx_redis_session:save_session(emqx_redis_bench_data:client(N), Session) of
            ok -> ok;
            {error, fenced} -> ok = emqx_redis_session:save_session(
                emqx_redis_bench_data:client(N), Session, #{epoch => 1}
            )
        end
    end);
fill(ack_message, Count) ->
    Clients = emqx_redis_bench_data:client_count(),
    in_parallel(0, min(Clients, Count), fun(C) ->
        Messages = [emqx_redis_bench_data:message(N) || N <- lists:seq(C, Count - 1, Clients)],
        ok = emqx_redis_message:store_messages(emqx_redis_bench_data:client(C), Messages)
    end);
fill(get_messages, _Count) ->
    Messages = [emqx_redis_bench_data:message(N) || N <- lists:seq(1, emqx_redis_bench_data:queue_length())],
    in_parallel(0, emqx_redis_bench_data:queue_client_count(), fun(N) ->
        ok = emqx_redis_message:store_messages(emqx_redis_bench_data:queue_client(N), Messages)
    end);
fill(match_routes, _Count) ->
    Filters = list_to_tuple(emqx_redis_bench_data:filters()),
    in_parallel(0, tuple_size(Filters), fun(N) ->
        ok = emqx_redis_router:add_route(element(N + 1, Filters), emqx_redis_bench_data:node_name())
    end);
fill(Operation, _Count) when Operation =:= save_session; Operation =:= store_message ->
    ok.

%% Calls Fun with From, From + 1, ... Count - 1, some at a time.
in_parallel(From, Count, Fun) ->
    Fillers = [
        spawn_monitor(fun() -> lists:foreach(Fun, lists:seq(From + I, Count - 1, ?FILLERS)) end)
     || I <- lists:seq(0, ?FILLERS - 1)
    ],
    lists:foreach(
        fun({Pid, Monitor}) ->
            receive
                {'DOWN', Monitor, process, Pid, normal} -> ok;
                {'DOWN', Monitor, process, Pid, Reason} -> error({preparation_failed, Reason})
            end
        end,
        Fillers
    ).
