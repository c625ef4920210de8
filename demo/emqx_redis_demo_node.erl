%% A broker node of the demo: a virtual machine of its own that does what a broker does with the library.
%%
%% It takes commands from whoever started it and reports each item right after the library said `ok' for
%% it, both through a unix socket. It ends when that closes.
%%
%%     command               reports, then `done'
%%     {hello, Name}         nothing: the storage is started and connected
%%     connect_clients       {claimed, Client, us} and {session, Client, us} for each session of the input
%%     add_routes            {route, Filter, us} for each filter of the sessions that this node holds
%%     {publish, Numbers}    {matched, Number, us} and {message, Number, us} for each, and {again, Number}
%%                           where that was not ok, so that the publisher sends again
%%     list_sessions         {listed, [Client]} for each page
%%     {take_over, Clients}  {loaded, Client, Session, us}, {claimed, Client, us} and
%%                           {late_write, Client, Answer, us} and {kept, Client, Session, us} for each
%%                           client
%%     {match, Topics}       {routes, Topic, [{Filter, Name}], us} for each
%%     {drop_routes, Name}   {dropped, Filter, us} for each filter of the sessions that this node holds
%%     drain                 {drained, Client, [Message], us} for each page that is not empty,
%%                           {acknowledged, Client, us} for its messages
%%
%% An answer that is not what it must be is reported as {failed, What, Answer}.
-module(emqx_redis_demo_node).

-export([start/1]).

-define(WORKERS, 64).
-define(PAGE, 100).
%% Of a publisher that gets no ok, and milliseconds between them.
-define(ATTEMPTS, 100).
-define(PAUSE, 100).

%% {Client id, fencing epoch} of the sessions that this node holds.
-define(EPOCHS, emqx_redis_demo_epochs).
%% {Filter, client id}, a bag.
-define(SUBSCRIPTIONS, emqx_redis_demo_subscriptions).
%% {{Client id, message id}} of what was delivered.
-define(DELIVERED, emqx_redis_demo_delivered).

-spec start([string()]) -> pid().
start([Path, Text, File, Limit]) ->
    Config = binary_to_term(base64:decode(Text)),
    spawn(fun() ->
        try
            run(Path, Config, File, list_to_integer(Limit))
        after
            erlang:halt(1, [{flush, false}])
        end
    end).

run(Path, Config, File, Limit) ->
    process_flag(trap_exit, true),
    {ok, Socket} = gen_tcp:connect({local, Path}, 0, [binary, {packet, 4}, {active, true}]),
    lists:foreach(
        fun({Table, Type}) -> ets:new(Table, [named_table, public, Type]) end,
        [{?EPOCHS, set}, {?SUBSCRIPTIONS, bag}, {?DELIVERED, set}]
    ),
    Node = #{socket => Socket, name => undefined},
    Input = emqx_redis_demo_input:read(File, Limit),
    Broker = spawn_link(fun() -> broker(Node, Config, Input) end),
    forward(Socket, Broker).

%% The end of the connection is the end of the node, whatever it is doing.
forward(Socket, Broker) ->
    receive
        {tcp, Socket, Command} ->
            Broker ! {command, binary_to_term(Command)},
            forward(Socket, Broker);
        {tcp_closed, Socket} ->
            erlang:halt(0, [{flush, false}]);
        {'EXIT', Broker, Reason} ->
            io:format(standard_error, "The node's broker ended: ~tp~n", [Reason])
    end.

broker(Node, Config, Input) ->
    receive
        {command, {hello, Name}} ->
            ok = emqx_redis_storage:start(Config),
            %% Requests wait for the connection.
            {ok, _} = emqx_redis_session:count_sessions(),
            report(Node, done),
            broker(Node#{name := Name}, Config, Input);
        {command, Command} ->
            obey(Command, Node, Input),
            report(Node, done),
            broker(Node, Config, Input)
    end.

%% Node goes to every worker; the input, which is large, stays here.
obey(connect_clients, Node, #{sessions := Sessions}) ->
    in_parallel(Node, fun connect_client/2, maps:values(Sessions));
obey(add_routes, Node, _Input) ->
    in_parallel(Node, fun add_route/2, held_filters());
obey({publish, Numbers}, Node, #{publishes := Publishes}) ->
    Wanted = sets:from_list(Numbers, [{version, 2}]),
    publish_all(Node, [Publish || {Number, _} = Publish <- Publishes, sets:is_element(Number, Wanted)]);
obey(list_sessions, Node, _Input) ->
    list_sessions(Node, 0);
obey({take_over, Clients}, Node, _Input) ->
    in_parallel(Node, fun take_over/2, Clients);
obey({match, Topics}, Node, _Input) ->
    in_parallel(Node, fun match/2, Topics);
obey({drop_routes, Name}, Node, _Input) ->
    in_parallel(Node#{name := Name}, fun drop_route/2, held_filters());
obey(drain, Node, _Input) ->
    in_parallel(Node, fun drain/2, ets:tab2list(?EPOCHS)).

%% A client connects: the node claims its session, so that no other node writes it, and saves it.
connect_client(Node, Session = #{client_id := Client}) ->
    case timed(fun() -> emqx_redis_session:claim_session(Client, #{}) end) of
        {{ok, #{epoch := Epoch, session := undefined}}, ClaimTime} ->
            report(Node, {claimed, Client, ClaimTime}),
            Save = fun() -> emqx_redis_session:save_session(Client, Session, #{epoch => Epoch}) end,
            case timed(Save) of
                {ok, SaveTime} ->
                    report(Node, {session, Client, SaveTime}),
                    hold(Session, Epoch);
                {Answer, _} ->
                    report(Node, {failed, {save_session, Client}, Answer})
            end;
        {Answer, _} ->
            report(Node, {failed, {claim_session, Client}, Answer})
    end.

hold(#{client_id := Client, subscriptions := Subscriptions}, Epoch) ->
    ets:insert(?EPOCHS, {Client, Epoch}),
    ets:insert(?SUBSCRIPTIONS, [{Filter, Client} || Filter <- maps:keys(Subscriptions)]).

held_filters() ->
    lists:usort([Filter || {Filter, _Client} <- ets:tab2list(?SUBSCRIPTIONS)]).

add_route(Node = #{name := Name}, Filter) ->
    case timed(fun() -> emqx_redis_router:add_route(Filter, Name) end) of
        {ok, Time} -> report(Node, {route, Filter, Time});
        {Answer, _} -> report(Node, {failed, {add_route, Filter}, Answer})
    end.

drop_route(Node = #{name := Name}, Filter) ->
    case timed(fun() -> emqx_redis_router:delete_route(Filter, Name) end) of
        {ok, Time} -> report(Node, {dropped, Filter, Time});
        {Answer, _} -> report(Node, {failed, {delete_route, Filter}, Answer})
    end.

%% Each publisher sends on a connection of its own, one message after another; all of them at once.
publish_all(Node, Publishes) ->
    ByPublisher = lists:foldr(
        fun({_, #{from := From}} = Publish, Map) ->
            maps:update_with(From, fun(Later) -> [Publish | Later] end, [Publish], Map)
        end,
        #{},
        Publishes
    ),
    await(Node, [spawn_monitor(fun() -> publisher(Node, Own) end) || Own <- maps:values(ByPublisher)]).

publisher(Node, Publishes) ->
    lists:foreach(fun({Number, Message}) -> publish(Node, Number, Message) end, Publishes).

publish(Node, Number, Message = #{id := Id, topic := Topic}) ->
    Again = fun() -> report(Node, {again, Number}) end,
    case timed(fun() -> persistent(Again, fun() -> emqx_redis_router:match_routes(Topic) end) end) of
        {{ok, Routes}, MatchTime} ->
            report(Node, {matched, Number, MatchTime}),
            %% A message that was stored although its `ok' got lost may have been delivered by now.
            All = receivers(Node, Routes),
            Receivers = [Client || Client <- All, not ets:member(?DELIVERED, {Client, Id})],
            Store = fun() -> emqx_redis_message:store_message_for(Receivers, Message) end,
            case timed(fun() -> persistent(Again, Store) end) of
                {ok, StoreTime} -> report(Node, {message, Number, StoreTime});
                {Answer, _} -> report(Node, {failed, {store_message_for, Receivers, Id}, Answer})
            end;
        {Answer, _} ->
            report(Node, {failed, {match_routes, Topic}, Answer})
    end.

%% A publisher that gets no ok because Redis fails over sends again. To store a message once more changes
%% nothing.
persistent(Again, Fun) ->
    persistent(Again, Fun, ?ATTEMPTS).

persistent(Again, Fun, Attempts) ->
    case Fun() of
        {error, Reason} when Attempts > 1 ->
            case is_passing(Reason) of
                true ->
                    Again(),
                    timer:sleep(?PAUSE),
                    persistent(Again, Fun, Attempts - 1);
                false ->
                    {error, Reason}
            end;
        Answer ->
            Answer
    end.

is_passing(timeout) -> true;
is_passing({unknown, _}) -> true;
is_passing({unavailable, _}) -> true;
is_passing({not_durable, _}) -> true;
is_passing({partial, [_ | _] = Clients}) -> lists:all(fun({_, Reason}) -> is_passing(Reason) end, Clients);
is_passing(_) -> false.

receivers(#{name := Name}, Routes) ->
    lists:usort([
        Client
     || {Filter, Node} <- Routes, Node =:= Name, {_, Client} <- ets:lookup(?SUBSCRIPTIONS, Filter)
    ]).

list_sessions(Node, Offset) ->
    case emqx_redis_session:list_sessions(?PAGE, Offset) of
        {ok, []} ->
            ok;
        {ok, Clients} ->
            report(Node, {listed, Clients}),
            list_sessions(Node, Offset + length(Clients));
        Answer ->
            report(Node, {failed, list_sessions, Answer})
    end.

take_over(Node, Client) ->
    case timed(fun() -> emqx_redis_session:load_session(Client) end) of
        {{ok, Session}, LoadTime} ->
            report(Node, {loaded, Client, Session, LoadTime}),
            case timed(fun() -> emqx_redis_session:claim_session(Client, #{}) end) of
                {{ok, #{epoch := Epoch, session := Session}}, ClaimTime} ->
                    report(Node, {claimed, Client, ClaimTime}),
                    hold(Session, Epoch),
                    late_write(Node, Client, Epoch - 1);
                {Answer, _} ->
                    report(Node, {failed, {claim_session, Client}, Answer})
            end;
        {Answer, _} ->
            report(Node, {failed, {load_session, Client}, Answer})
    end.

%% What a node that was only paused would do when it wakes up: save the session under its old epoch.
late_write(Node, Client, OldEpoch) ->
    Save = fun() -> emqx_redis_session:save_session(Client, overwritten, #{epoch => OldEpoch}) end,
    {Answer, Time} = timed(Save),
    report(Node, {late_write, Client, Answer, Time}),
    case timed(fun() -> emqx_redis_session:load_session(Client) end) of
        {{ok, Session}, LoadTime} -> report(Node, {kept, Client, Session, LoadTime});
        {LoadAnswer, _} -> report(Node, {failed, {load_session, Client}, LoadAnswer})
    end.

match(Node, Topic) ->
    case timed(fun() -> emqx_redis_router:match_routes(Topic) end) of
        {{ok, Routes}, Time} -> report(Node, {routes, Topic, Routes, Time});
        {Answer, _} -> report(Node, {failed, {match_routes, Topic}, Answer})
    end.

%% Delivers what waits for a client, page by page; what the client has acknowledged is removed.
drain(Node, {Client, Epoch}) ->
    case timed(fun() -> emqx_redis_message:get_messages(Client, 0, ?PAGE) end) of
        {{ok, []}, _} ->
            ok;
        {{ok, Messages}, ReadTime} ->
            report(Node, {drained, Client, Messages, ReadTime}),
            Ids = [Id || #{id := Id} <- Messages],
            ets:insert(?DELIVERED, [{{Client, Id}} || Id <- Ids]),
            case timed(fun() -> emqx_redis_message:ack_messages(Client, Ids, #{epoch => Epoch}) end) of
                {ok, AckTime} ->
                    report(Node, {acknowledged, Client, AckTime}),
                    drain(Node, {Client, Epoch});
                {Answer, _} ->
                    report(Node, {failed, {ack_messages, Client}, Answer})
            end;
        {Answer, _} ->
            report(Node, {failed, {get_messages, Client}, Answer})
    end.

%% Returns when the kernel has it.
report(#{socket := Socket}, Report) ->
    ok = gen_tcp:send(Socket, term_to_binary(Report)).

%% Result and microseconds.
timed(Fun) ->
    Begin = erlang:monotonic_time(),
    Result = Fun(),
    {Result, erlang:convert_time_unit(erlang:monotonic_time() - Begin, native, microsecond)}.

%% Fun(Node, Item) for each item, by many workers.
in_parallel(Node, Fun, Items) ->
    await(Node, [
        spawn_monitor(fun() -> lists:foreach(fun(Item) -> Fun(Node, Item) end, Share) end)
     || Share <- shares(Items, ?WORKERS)
    ]).

%% Every Number-th item in one share.
shares(Items, Number) ->
    Tagged = lists:zip([Index rem Number || Index <- lists:seq(1, length(Items))], Items),
    [[Item || {Tag, Item} <- Tagged, Tag =:= Share] || Share <- lists:seq(0, Number - 1)].

await(Node, Workers) ->
    lists:foreach(
        fun({Pid, Monitor}) ->
            receive
                {'DOWN', Monitor, process, Pid, normal} -> ok;
                {'DOWN', Monitor, process, Pid, Reason} -> report(Node, {failed, worker, Reason})
            end
        end,
        Workers
    ).
