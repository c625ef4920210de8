%% Processes that write one after the other and in bursts, and read at once what they wrote, for tests that
%% disturb servers and networks. Every request must be done, in order: whoever finds another answer ends, and
%% stop/1 fails.
%%
%%     Writers = emqx_redis_test_writers:start([[<<"a">>, <<"b">>], [<<"c">>]]),
%%     ...
%%     emqx_redis_test_writers:check(emqx_redis_test_writers:stop(Writers)).
-module(emqx_redis_test_writers).

-include_lib("stdlib/include/assert.hrl").

-export([start/1, stop/1, check/1]).

-export_type([writers/0, written/0]).

-opaque writers() :: {[{pid(), reference()}], atomics:atomics_ref()}.
%% The last session of each client, and the ids of the messages that wait for it.
-type written() :: #{binary() => {non_neg_integer(), [binary()]}}.

-define(SESSION, emqx_redis_session).
-define(MESSAGE, emqx_redis_message).
%% Requests may have to wait for a slot that moves, or for a connection.
-define(PATIENT, #{timeout => 30000}).
-define(RESPONSE_TIMEOUT, 31000).

%% A writer for each list of client ids, which no other writer has.
-spec start([[binary()]]) -> writers().
start(Shares) ->
    Stop = atomics:new(1, []),
    Start = fun(Clients) -> spawn_monitor(fun() -> exit({written, write(Clients, Stop, 1, #{})}) end) end,
    {[Start(Clients) || Clients <- Shares], Stop}.

%% Lets each writer finish what it is at.
-spec stop(writers()) -> written().
stop({Writers, Stop}) ->
    ok = atomics:put(Stop, 1, 1),
    Written = [
        receive
            {'DOWN', Monitor, process, Pid, {written, Written}} -> Written;
            {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
        end
     || {Pid, Monitor} <- Writers
    ],
    lists:foldl(fun maps:merge/2, #{}, Written).

%% Fails unless Redis holds what was written, and no other session.
-spec check(written()) -> ok.
check(Written) ->
    maps:foreach(
        fun(C, {Last, Ids}) ->
            ?assertEqual({C, {ok, Last}}, {C, ?SESSION:load_session(C)}),
            ?assertEqual({C, {ok, messages(Ids)}}, {C, ?MESSAGE:get_messages(C, 0, 1000)})
        end,
        Written
    ),
    Saves = lists:sum([Last || {Last, _} <- maps:values(Written)]),
    ct:pal("~b clients, ~b saves", [map_size(Written), Saves]),
    ?assert(Saves > 0),
    ?assertEqual({ok, map_size(Written)}, ?SESSION:count_sessions()).

%% Internal

write(Clients, Stop, N, Written) ->
    case atomics:get(Stop, 1) of
        1 ->
            Written;
        0 ->
            C = lists:nth(rand:uniform(length(Clients)), Clients),
            Before = maps:get(C, Written, {0, []}),
            After =
                case N rem 2 of
                    0 -> one_by_one(C, N, Before);
                    1 -> burst(C, N, Before)
                end,
            write(Clients, Stop, N + 1, Written#{C => After})
    end.

one_by_one(C, N, {Last, Ids}) ->
    Id = integer_to_binary(N),
    {C, ok} = {C, ?SESSION:save_session(C, Last + 1, ?PATIENT)},
    {C, ok} = {C, ?MESSAGE:store_message(C, #{id => Id}, ?PATIENT)},
    ?assertEqual({C, {ok, Last + 1}}, {C, ?SESSION:load_session(C)}),
    {Old, Left} = lists:split(max(0, length(Ids) - 5), Ids),
    [{C, ok} = {C, ?MESSAGE:ack_message(C, Each, ?PATIENT)} || Each <- Old],
    {Last + 1, Left ++ [Id]}.

burst(C, N, {Last, Ids}) ->
    Id = integer_to_binary(N),
    Saves = [?SESSION:save_session_async(C, Last + Up, ?PATIENT) || Up <- lists:seq(1, 5)],
    Load = ?SESSION:load_session_async(C),
    Store = ?MESSAGE:store_message_async(C, #{id => Id}, ?PATIENT),
    Get = ?MESSAGE:get_messages_async(C, 0, 1000),
    Acks = [?MESSAGE:ack_message_async(C, Old, ?PATIENT) || Old <- Ids],
    GetLeft = ?MESSAGE:get_messages_async(C, 0, 1000),
    LastSave = ?SESSION:save_session_async(C, Last + 6, ?PATIENT),
    LastLoad = ?SESSION:load_session_async(C),
    Expected =
        [{Request, ok} || Request <- Saves ++ [Store, LastSave | Acks]] ++
            [{Load, {ok, Last + 5}}, {LastLoad, {ok, Last + 6}}] ++
            [{Get, {ok, messages(Ids ++ [Id])}}, {GetLeft, {ok, messages([Id])}}],
    Found = [emqx_redis_storage:receive_response(Request, ?RESPONSE_TIMEOUT) || {Request, _} <- Expected],
    ?assertEqual({C, [{reply, Result} || {_, Result} <- Expected]}, {C, Found}),
    {Last + 6, [Id]}.

messages(Ids) ->
    [#{id => Id} || Id <- Ids].
