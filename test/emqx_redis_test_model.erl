%% What sessions and messages ought to do, said in plain Erlang: the model that the storage is
%% compared with. Time stands still in it: nothing expires.
-module(emqx_redis_test_model).

-export([new/1, apply/2, epoch/2, clients/1]).

-export_type([model/0, operation/0]).

-record(session, {data :: term(), saved :: pos_integer()}).
-record(message, {place :: {integer(), pos_integer()}, term :: map()}).

-opaque model() :: #{
    %% Counts up with every write: the order within the same timestamp.
    count := non_neg_integer(),
    sessions := #{binary() => #session{}},
    epochs := #{binary() => non_neg_integer()},
    queues := #{binary() => #{binary() => #message{}}},
    %% Where a client's session is listed, before those with a higher number.
    slot := fun((binary()) -> non_neg_integer())
}.
-type operation() :: {Function :: atom(), Arguments :: [term()]}.

%% Where messages without a timestamp stand: tests use timestamps far from the present.
-define(NOW, 1700000000000).

-spec new(fun((Client :: binary()) -> Slot :: non_neg_integer())) -> model().
new(Slot) ->
    #{count => 0, sessions => #{}, epochs => #{}, queues => #{}, slot => Slot}.

-spec epoch(binary(), model()) -> non_neg_integer() | undefined.
epoch(Client, #{epochs := Epochs}) ->
    maps:get(Client, Epochs, undefined).

%% Whoever has a session, an epoch or messages.
-spec clients(model()) -> [binary()].
clients(#{sessions := Sessions, epochs := Epochs, queues := Queues}) ->
    lists:usort(maps:keys(Sessions) ++ maps:keys(Epochs) ++ maps:keys(Queues)).

%% The function's result, and the model after it.
-spec apply(operation(), model()) -> {term(), model()}.
apply({save_session, [Client, Data, Opts]}, Model) ->
    fenced(Client, Opts, Model, fun(#{sessions := Sessions} = M) ->
        {Count, Counted} = count(note_epoch(Client, Opts, M)),
        {ok, Counted#{sessions := Sessions#{Client => #session{data = Data, saved = Count}}}}
    end);
apply({load_session, [Client]}, Model = #{sessions := Sessions}) ->
    case Sessions of
        #{Client := #session{data = Data}} -> {{ok, Data}, Model};
        #{} -> {{error, not_found}, Model}
    end;
apply({delete_session, [Client, Opts]}, Model) ->
    fenced(Client, Opts, Model, fun(#{sessions := Sessions} = M) ->
        {ok, note_epoch(Client, Opts, M#{sessions := maps:remove(Client, Sessions)})}
    end);
apply({claim_session, [Client, _Opts]}, Model = #{sessions := Sessions, epochs := Epochs}) ->
    Epoch = maps:get(Client, Epochs, 0) + 1,
    Data =
        case Sessions of
            #{Client := #session{data = Found}} -> Found;
            #{} -> undefined
        end,
    {{ok, #{epoch => Epoch, session => Data}}, Model#{epochs := Epochs#{Client => Epoch}}};
apply({count_sessions, []}, Model = #{sessions := Sessions}) ->
    {{ok, map_size(Sessions)}, Model};
apply({list_sessions, [Limit, Offset]}, Model = #{sessions := Sessions, slot := Slot}) ->
    Places = [{Slot(Client), Saved, Client} || {Client, #session{saved = Saved}} <- maps:to_list(Sessions)],
    {{ok, page([Client || {_, _, Client} <- lists:sort(Places)], Offset, Limit)}, Model};
apply({store_message, [Client, Message, Opts]}, Model) ->
    store(Client, [Message], Opts, Model);
apply({store_messages, [Client, Messages, Opts]}, Model) ->
    store(Client, Messages, Opts, Model);
apply({store_message_for, [Clients, Message, Opts]}, Model) ->
    store_for(lists:usort(Clients), Message, Opts, Model);
apply({get_messages, [Client, Offset, Limit]}, Model) ->
    {{ok, page([Term || {_, Term} <- in_order(queue(Client, Model))], Offset, Limit)}, Model};
apply({ack_message, [Client, Id, Opts]}, Model) ->
    ?MODULE:apply({ack_messages, [Client, [Id], Opts]}, Model);
apply({ack_messages, [_Client, [], _Opts]}, Model) ->
    {ok, Model};
apply({ack_messages, [Client, Ids, Opts]}, Model) ->
    fenced(Client, Opts, Model, fun(M) ->
        {ok, put_queue(Client, maps:without(Ids, queue(Client, M)), M)}
    end);
apply({delete_messages, [Client, Opts]}, Model) ->
    fenced(Client, Opts, Model, fun(M) -> {ok, put_queue(Client, #{}, M)} end).

%% Internal

fenced(Client, Opts, Model = #{epochs := Epochs}, Fun) ->
    case {Epochs, Opts} of
        {#{Client := Stored}, #{epoch := Given}} when Given < Stored ->
            {{error, {stale_epoch, Stored}}, Model};
        {#{Client := _}, #{epoch := _}} ->
            Fun(Model);
        {#{Client := _}, #{}} ->
            {{error, fenced}, Model};
        {#{}, #{}} ->
            Fun(Model)
    end.

note_epoch(Client, #{epoch := Epoch}, Model = #{epochs := Epochs}) ->
    Model#{epochs := Epochs#{Client => Epoch}};
note_epoch(_Client, #{}, Model) ->
    Model.

count(Model = #{count := Count}) ->
    {Count + 1, Model#{count := Count + 1}}.

page(List, Offset, Limit) ->
    lists:sublist(lists:nthtail(min(Offset, length(List)), List), Limit).

queue(Client, #{queues := Queues}) ->
    maps:get(Client, Queues, #{}).

put_queue(Client, Queue, Model = #{queues := Queues}) when map_size(Queue) =:= 0 ->
    Model#{queues := maps:remove(Client, Queues)};
put_queue(Client, Queue, Model = #{queues := Queues}) ->
    Model#{queues := Queues#{Client => Queue}}.

in_order(Queue) ->
    Places = lists:sort([{Place, Id} || {Id, #message{place = Place}} <- maps:to_list(Queue)]),
    [{Id, (maps:get(Id, Queue))#message.term} || {_, Id} <- Places].

store(_Client, [], _Opts, Model) ->
    {ok, Model};
store(Client, Messages, Opts, Model) ->
    Queue = queue(Client, Model),
    New = lists:usort([id(Message) || Message <- Messages]) -- maps:keys(Queue),
    case Opts of
        #{max_queue := Most, on_full := reject} when New =/= [], map_size(Queue) + length(New) > Most ->
            {{error, queue_full}, Model};
        #{} ->
            Most = most(Opts),
            {Stored, Counted, Dropped} = store_each(Messages, Most, Queue, Model, []),
            {Trimmed, All} = drop(excess(map_size(Stored), Most), Stored, Dropped),
            Gone = [Id || Id <- unique(lists:reverse(All)), not is_map_key(Id, Trimmed)],
            {dropped(Gone), put_queue(Client, Trimmed, Counted)}
    end.

most(#{on_full := reject}) -> infinity;
most(Opts) -> maps:get(max_queue, Opts, infinity).

store_each([], _Most, Queue, Model, Dropped) ->
    {Queue, Model, Dropped};
store_each([Message | Rest], Most, Queue, Model, Dropped) ->
    {Count, Counted} = count(Model),
    Id = id(Message),
    Timestamp = timestamp(Message),
    case Queue of
        #{Id := Old = #message{place = {At, _}}} when Timestamp =:= none; Timestamp =:= At ->
            Same = Queue#{Id := Old#message{term = Message}},
            store_each(Rest, Most, Same, Counted, Dropped);
        #{Id := _} ->
            Moved = Queue#{Id := #message{place = {Timestamp, Count}, term = Message}},
            store_each(Rest, Most, Moved, Counted, Dropped);
        #{} ->
            {Room, More} = drop(excess(map_size(Queue) + 1, Most), Queue, Dropped),
            At = case Timestamp of none -> ?NOW; _ -> Timestamp end,
            Added = Room#{Id => #message{place = {At, Count}, term = Message}},
            store_each(Rest, Most, Added, Counted, More)
    end.

excess(_Length, infinity) -> 0;
excess(Length, Most) -> max(0, Length - Most).

drop(0, Queue, Dropped) ->
    {Queue, Dropped};
drop(N, Queue, Dropped) ->
    [{Oldest, _} | _] = in_order(Queue),
    drop(N - 1, maps:remove(Oldest, Queue), [Oldest | Dropped]).

unique([Id | Rest]) -> [Id | unique([Other || Other <- Rest, Other =/= Id])];
unique([]) -> [].

dropped([]) -> ok;
dropped(Ids) -> {ok, #{dropped => Ids}}.

store_for(Clients, Message, Opts, Model) ->
    {Results, Stored} = lists:mapfoldl(
        fun(Client, M) ->
            {Result, Next} = store(Client, [Message], Opts, M),
            {{Client, Result}, Next}
        end,
        Model,
        Clients
    ),
    Failed = [{Client, Reason} || {Client, {error, Reason}} <- Results],
    Dropped = [{Client, Ids} || {Client, {ok, #{dropped := Ids}}} <- Results],
    case Failed of
        [] -> {dropped(Dropped), Stored};
        _ -> {{error, {partial, Failed}}, Stored}
    end.

id(#{id := Id}) -> Id;
id(#{message_id := Id}) -> Id;
id(#{<<"id">> := Id}) -> Id;
id(#{<<"message_id">> := Id}) -> Id.

timestamp(#{timestamp := Timestamp}) -> Timestamp;
timestamp(#{<<"timestamp">> := Timestamp}) -> Timestamp;
timestamp(#{}) -> none.
