%% Messages that clients have acknowledged, on their way out of Redis, and packet ids of those that they
%% have not.
%%
%% A client's process only says so, and goes on. What comes within some milliseconds goes out as one request
%% for each client. A request that fails while Redis is away is made again; what is lost here (the node
%% dies) is delivered once more after a restart, which QoS 1 allows. With which packet id a message was sent
%% is noted in Redis only if it is not acknowledged soon.
-module(emqx_redis_acks).

-behaviour(gen_server).

-export([start_link/1, names/0]).
-export([ack/3, mark/4, flush/1, flush/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-type client_id() :: emqx_redis_session:client_id().
%% None for the queue of a shared group, which nobody owns.
-type epoch() :: emqx_redis_session:epoch() | undefined.

%% How long the first acknowledgement waits for company, and how long one that failed waits.
-define(LINGER, 5).
-define(RETRY, 500).
%% A packet id is noted after one to two times that.
-define(NOTE_AFTER, 50).
%% Acknowledgements in one request, requests under way, and acknowledgements kept while Redis is away:
%% beyond, new ones are dropped, and their messages come again after a restart.
-define(BATCH, 500).
-define(NOTES, 200).
-define(REQUESTS, 256).
-define(KEPT, 200000).
%% How long a caller waits for a client's to be done.
-define(FLUSH_TIMEOUT, 2000).
%% How long the end of the plugin waits for them.
-define(FINISH, 2000).

-record(state, {
    %% What waits: newest first.
    waiting = #{} :: #{{client_id(), epoch()} => [binary()]},
    count = 0 :: non_neg_integer(),
    timer :: reference() | undefined,
    %% Packet ids to be noted: those that came since the timer was set, and those before.
    young = #{} :: #{client_id() => {epoch(), #{binary() => emqx_redis_message:mark()}}},
    old = #{} :: #{client_id() => {epoch(), #{binary() => emqx_redis_message:mark()}}},
    note_timer :: reference() | undefined,
    requests = #{} :: #{
        reference() => {emqx_redis_storage:request_id(), {client_id(), epoch()}, [binary()]}
    },
    %% Who waits until those requests are done.
    flushing = [] :: [{gen_server:from(), #{reference() => []}}]
}).

-spec start_link(atom()) -> gen_server:start_ret().
start_link(Name) -> gen_server:start_link({local, Name}, ?MODULE, [], []).

%% The processes that share the work, each some of the clients.
-spec names() -> [atom()].
names() -> [emqx_redis_acks_1, emqx_redis_acks_2, emqx_redis_acks_3, emqx_redis_acks_4].

-spec ack(client_id(), epoch(), emqx_redis_message:message_id()) -> ok.
ack(ClientId, Epoch, MessageId) -> gen_server:cast(name(ClientId), {ack, {ClientId, Epoch}, MessageId}).

%% The message was sent to the client, or received by it, with that packet id.
-spec mark(client_id(), epoch(), emqx_redis_message:message_id(), emqx_redis_message:mark()) -> ok.
mark(ClientId, Epoch, MessageId, Mark) ->
    gen_server:cast(name(ClientId), {mark, {ClientId, Epoch}, MessageId, Mark}).

%% Waits until what the client has acknowledged so far is done, or has failed for good, and until all packet
%% ids that are known are noted.
-spec flush(client_id()) -> ok | {error, timeout | stopped | failed}.
flush(ClientId) -> flush(node(), ClientId).

%% The same on another node.
-spec flush(node(), client_id()) -> ok | {error, timeout | stopped | failed}.
flush(Node, ClientId) ->
    try
        gen_server:call({name(ClientId), Node}, {flush, ClientId}, ?FLUSH_TIMEOUT)
    catch
        exit:{timeout, _} -> {error, timeout};
        exit:_ -> {error, stopped}
    end.

name(ClientId) -> element(1 + erlang:phash2(ClientId, 4), list_to_tuple(names())).

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

init([]) ->
    process_flag(message_queue_data, off_heap),
    process_flag(trap_exit, true),
    {ok, #state{}}.

handle_call({flush, ClientId}, From, State) ->
    #state{requests = Requests, flushing = Flushing} = Sent = send_now(ClientId, note_now(ClientId, State)),
    case [{Ref, []} || {Ref, {_, {Client, _}, _}} <- maps:to_list(Requests), Client =:= ClientId] of
        [] -> {reply, ok, Sent};
        Refs -> {noreply, Sent#state{flushing = [{From, maps:from_list(Refs)} | Flushing]}}
    end.

handle_cast({ack, Owner, MessageId}, #state{young = Young, old = Old} = State) ->
    Unmarked = State#state{
        young = unmark(Owner, MessageId, Young), old = unmark(Owner, MessageId, Old)
    },
    {noreply, wait(Owner, [MessageId], 1, ?LINGER, Unmarked)};
handle_cast({mark, {ClientId, Epoch}, MessageId, Mark}, #state{young = Young} = State) ->
    Marks =
        case Young of
            #{ClientId := {Epoch, Known}} -> Known;
            _ -> #{}
        end,
    Next = Young#{ClientId => {Epoch, Marks#{MessageId => Mark}}},
    {noreply, set_note_timer(State#state{young = Next})}.

handle_info(send, State) ->
    {noreply, send(State#state{timer = undefined})};
handle_info(note, #state{young = Young, old = Old} = State) ->
    %% What fails is not noted: the message comes again with another id.
    Requests = maps:fold(fun note/3, State#state.requests, Old),
    Next = State#state{young = #{}, old = Young, requests = Requests, note_timer = undefined},
    {noreply, set_note_timer(Next)};
handle_info({emqx_redis_reply, Ref, _} = Message, #state{requests = Requests} = State) ->
    case maps:take(Ref, Requests) of
        {{RequestId, Owner, Ids}, Left} ->
            {reply, Result} = emqx_redis_storage:check_response(Message, RequestId),
            Done = done(Result, Owner, Ids, State#state{requests = Left}),
            {noreply, answer_flushed(Ref, outcome(Result), send_waiting(Done))};
        error ->
            {noreply, State}
    end;
handle_info(_Message, State) ->
    {noreply, State}.

%% The plugin is stopped: what is known by now is done yet.
terminate(_Reason, State) -> finish(drain(State), erlang:monotonic_time(millisecond) + ?FINISH).

drain(State) ->
    receive
        {'$gen_cast', Request} ->
            {noreply, Next} = handle_cast(Request, State),
            drain(Next)
    after 0 -> State
    end.

finish(State, Until) ->
    #state{waiting = Waiting, requests = Requests} = Sent = send(State),
    case map_size(Waiting) + map_size(Requests) of
        0 ->
            ok;
        _ ->
            receive
                {emqx_redis_reply, _, _} = Reply ->
                    {noreply, Next} = handle_info(Reply, Sent),
                    finish(Next, Until)
            after max(0, Until - erlang:monotonic_time(millisecond)) -> ok
            end
    end.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

wait(_Owner, _Ids, Count, _Linger, #state{count = Kept} = State) when Kept >= ?KEPT ->
    emqx_redis_plugin_stats:count(acks_dropped, Count),
    State;
wait(Owner, Ids, Count, Linger, #state{waiting = Waiting} = State) ->
    NewWaiting = maps:update_with(Owner, fun(Known) -> Ids ++ Known end, Ids, Waiting),
    set_timer(Linger, State#state{waiting = NewWaiting, count = State#state.count + Count}).

set_timer(Linger, #state{timer = undefined} = State) ->
    State#state{timer = erlang:send_after(Linger, self(), send)};
set_timer(_Linger, State) ->
    State.

set_note_timer(#state{young = Young, old = Old, note_timer = undefined} = State) when
    map_size(Young) > 0; map_size(Old) > 0
->
    State#state{note_timer = erlang:send_after(?NOTE_AFTER, self(), note)};
set_note_timer(State) ->
    State.

unmark({ClientId, Epoch}, MessageId, Marks) ->
    case Marks of
        #{ClientId := {Epoch, #{MessageId := _} = Known}} when map_size(Known) =:= 1 ->
            maps:remove(ClientId, Marks);
        #{ClientId := {Epoch, #{MessageId := _} = Known}} ->
            Marks#{ClientId := {Epoch, maps:remove(MessageId, Known)}};
        _ ->
            Marks
    end.

%% Ahead of others.
send_now(ClientId, #state{waiting = Waiting} = State) ->
    Owners = [Owner || {Client, _} = Owner <- maps:keys(Waiting), Client =:= ClientId],
    lists:foldl(
        fun(Owner, #state{waiting = Left} = Next) ->
            {Ids, Others} = maps:take(Owner, Left),
            request(Owner, lists:reverse(Ids), Next#state{waiting = Others})
        end,
        State,
        Owners
    ).

%% Later the session may be another epoch's.
note_now(ClientId, #state{young = Young, old = Old, requests = Requests} = State) ->
    Notes = [Marks || #{ClientId := Marks} <- [Old, Young]],
    State#state{
        young = maps:remove(ClientId, Young),
        old = maps:remove(ClientId, Old),
        requests = lists:foldl(fun(Marks, Acc) -> note(ClientId, Marks, Acc) end, Requests, Notes)
    }.

note(ClientId, {Epoch, Marks}, Requests) -> note_some({ClientId, Epoch}, maps:to_list(Marks), Requests).

note_some(_Owner, [], Requests) ->
    Requests;
note_some({ClientId, Epoch} = Owner, Marks, Requests) ->
    {Now, Later} = lists:split(min(?NOTES, length(Marks)), Marks),
    RequestId = emqx_redis_message:mark_messages_async(ClientId, Now, #{epoch => Epoch}),
    Key = emqx_redis_request:reference(RequestId),
    note_some(Owner, Later, Requests#{Key => {RequestId, Owner, []}}).

%% More can be sent once an answer has come; a timer that is set says that nothing is urgent.
send_waiting(#state{timer = undefined} = State) -> send(State);
send_waiting(State) -> State.

send(#state{waiting = Waiting, requests = Requests} = State) when
    map_size(Waiting) =:= 0; map_size(Requests) >= ?REQUESTS
->
    State;
send(#state{waiting = Waiting} = State) ->
    {Owner, Ids, _} = maps:next(maps:iterator(Waiting)),
    send(request(Owner, lists:reverse(Ids), State#state{waiting = maps:remove(Owner, Waiting)})).

request(_Owner, [], State) ->
    State;
request({ClientId, Epoch} = Owner, Ids, State) ->
    {Now, Later} = lists:split(min(?BATCH, length(Ids)), Ids),
    Options = maps:from_list([{epoch, Epoch} || Epoch =/= undefined]),
    RequestId = emqx_redis_message:ack_messages_async(ClientId, Now, Options),
    Ref = emqx_redis_request:reference(RequestId),
    Requests = (State#state.requests)#{Ref => {RequestId, Owner, Now}},
    Count = State#state.count - length(Now),
    request(Owner, Later, State#state{requests = Requests, count = Count}).

done(ok, _Owner, _Ids, State) ->
    State;
done({error, {stale_epoch, _}}, {ClientId, Epoch}, _Ids, State) ->
    emqx_redis_owned:lost(ClientId, Epoch),
    State;
done({error, fenced}, _Owner, _Ids, State) ->
    State;
done({error, stopped}, _Owner, _Ids, State) ->
    State;
done({error, _}, _Owner, [], State) ->
    State;
done({error, _}, Owner, Ids, State) ->
    wait(Owner, lists:reverse(Ids), length(Ids), ?RETRY, State).

%% What a flush answers: there is nothing more to be done where the session is another's by now.
outcome({error, {stale_epoch, _}}) -> ok;
outcome({error, fenced}) -> ok;
outcome({error, _}) -> {error, failed};
outcome(_) -> ok.

answer_flushed(_Ref, _Result, #state{flushing = []} = State) ->
    State;
answer_flushed(Ref, Result, #state{flushing = Flushing} = State) ->
    State#state{flushing = lists:filtermap(fun(Each) -> flushed(Ref, Result, Each) end, Flushing)}.

flushed(Ref, Result, {From, Refs}) when is_map_key(Ref, Refs) ->
    case {Result, maps:remove(Ref, Refs)} of
        {ok, Left} when map_size(Left) > 0 ->
            {true, {From, Left}};
        _ ->
            gen_server:reply(From, Result),
            false
    end;
flushed(_Ref, _Result, _Flushing) ->
    true.
