%% QoS 1 and 2 messages that wait for a client, in Redis (MQTT 5.0 section 4.3).
%%
%% A message is a map with its id, a binary unique for the client, at the key `id' (or `message_id', or
%% either as a binary). Its `timestamp' (milliseconds since 1970, likewise) is its place in the client's
%% queue; without one it is the time of storing. All else in it is the caller's.
%%
%% Each function has a form `..._async' with the same arguments, which answers a request id for
%% `emqx_redis_storage:receive_response/2', `check_response/2' and `cancel/1'.
-module(emqx_redis_message).

-export([store_message/2, store_message/3, store_message_async/2, store_message_async/3]).
-export([store_messages/2, store_messages/3, store_messages_async/2, store_messages_async/3]).
-export([store_message_for/2, store_message_for/3]).
-export([store_message_for_async/2, store_message_for_async/3]).
-export([get_messages/3, get_messages_async/3]).
-export([ack_message/2, ack_message/3, ack_message_async/2, ack_message_async/3]).
-export([ack_messages/2, ack_messages/3, ack_messages_async/2, ack_messages_async/3]).
-export([mark_messages/2, mark_messages/3, mark_messages_async/2, mark_messages_async/3]).
-export([get_marks/2, get_marks_async/2]).
-export([delete_messages/1, delete_messages/2, delete_messages_async/1, delete_messages_async/2]).

-type client_id() :: emqx_redis_session:client_id().
-type message_id() :: binary().
-type message() :: map().
-type error() :: {error, emqx_redis_storage:error_reason()}.
-type request_id() :: emqx_redis_request:request_id().
%% A message was sent to the client with that packet id, or was received by it (PUBREC of QoS 2).
-type mark() :: {1..65535, sent | received}.
-export_type([message_id/0, message/0, mark/0]).

%% Stores a message for a client: message, queue and indexes in one atomic unit. It lives for `ttl' seconds
%% (option, else `persistence.message_ttl'). Stored again it replaces what was stored under its id
%% and keeps its place, unless its timestamp is another one.
%%
%% With `max_queue' the queue holds no more than that: `on_full => drop_oldest' (the default) makes room
%% and answers `{ok, #{dropped => Ids}}', `reject' stores nothing and answers `{error, queue_full}'.
%% Publishers need no epoch. Options: `ttl', `max_queue', `on_full', `timeout', `durability'.
-spec store_message(client_id(), message()) -> ok | {ok, #{dropped := [message_id()]}} | error().
store_message(ClientId, Message) -> store_message(ClientId, Message, #{}).

-spec store_message(client_id(), message(), emqx_redis_args:options()) ->
    ok | {ok, #{dropped := [message_id()]}} | error().
store_message(ClientId, Message, Opts) -> call(store(ClientId, Message, Opts)).

-spec store_message_async(client_id(), message()) -> request_id().
store_message_async(ClientId, Message) -> store_message_async(ClientId, Message, #{}).

-spec store_message_async(client_id(), message(), emqx_redis_args:options()) -> request_id().
store_message_async(ClientId, Message, Opts) -> async(store(ClientId, Message, Opts)).

store(ClientId, Message, Opts) ->
    {Ttl, Limit, Settings} = store_options(Opts),
    Messages = [emqx_redis_args:message(2, Message)],
    {{store_messages, emqx_redis_args:client_id(1, ClientId), Messages, Ttl, Limit}, Settings}.

%% Stores messages of one client in one atomic unit, in the order of the list.
-spec store_messages(client_id(), [message()]) ->
    ok | {ok, #{dropped := [message_id()]}} | error().
store_messages(ClientId, Messages) -> store_messages(ClientId, Messages, #{}).

-spec store_messages(client_id(), [message()], emqx_redis_args:options()) ->
    ok | {ok, #{dropped := [message_id()]}} | error().
store_messages(ClientId, Messages, Opts) -> call(store_all(ClientId, Messages, Opts)).

-spec store_messages_async(client_id(), [message()]) -> request_id().
store_messages_async(ClientId, Messages) -> store_messages_async(ClientId, Messages, #{}).

-spec store_messages_async(client_id(), [message()], emqx_redis_args:options()) -> request_id().
store_messages_async(ClientId, Messages, Opts) -> async(store_all(ClientId, Messages, Opts)).

store_all(ClientId, Messages, Opts) ->
    {Ttl, Limit, Settings} = store_options(Opts),
    All = emqx_redis_args:messages(2, Messages),
    {{store_messages, emqx_redis_args:client_id(1, ClientId), All, Ttl, Limit}, Settings}.

%% Stores one message for many clients: one atomic unit for each, all in one round trip. Where some fail,
%% `{error, {partial, [{ClientId, Reason}]}}' names them; the message is stored for the others. What full
%% queues dropped comes as `{ok, #{dropped => [{ClientId, Ids}]}}'.
%%
%% With `session => required' nothing is stored for a client that has no session: its reason is
%% `no_session'. Not together with `max_queue'.
-spec store_message_for([client_id()], message()) ->
    ok | {ok, #{dropped := [{client_id(), [message_id()]}]}} | error().
store_message_for(ClientIds, Message) -> store_message_for(ClientIds, Message, #{}).

-spec store_message_for([client_id()], message(), emqx_redis_args:options()) ->
    ok | {ok, #{dropped := [{client_id(), [message_id()]}]}} | error().
store_message_for(ClientIds, Message, Opts) -> call(store_for(ClientIds, Message, Opts)).

-spec store_message_for_async([client_id()], message()) -> request_id().
store_message_for_async(ClientIds, Message) -> store_message_for_async(ClientIds, Message, #{}).

-spec store_message_for_async([client_id()], message(), emqx_redis_args:options()) -> request_id().
store_message_for_async(ClientIds, Message, Opts) -> async(store_for(ClientIds, Message, Opts)).

store_for(ClientIds, Message, Opts) ->
    {Ttl, Limit, Settings} = store_options(Opts, [session]),
    NeedsSession = is_map_key(session, Opts),
    NeedsSession andalso Limit =/= undefined andalso
        emqx_redis_args:bad(3, "session: not together with max_queue"),
    Clients = lists:usort(emqx_redis_args:binaries(1, ClientIds)),
    Checked = emqx_redis_args:message(2, Message),
    {{store_message_for, Clients, Checked, Ttl, Limit, NeedsSession}, Settings}.

%% At most `Limit' messages after the first `Offset', in publish order. Expired and acknowledged ones
%% are not there and do not count; a page is full if enough messages exist. A stored value that is no
%% message of ours answers `{error, {undecodable, #{message_id := Id, reason := _}}}': it blocks the page
%% until it is acknowledged, so that nothing is skipped unseen.
%%
%% Binaries of more than 64 bytes in the messages are parts of pieces of up to 16 KiB: of one that is kept
%% for long, `binary:copy/1' lets the rest go.
-spec get_messages(client_id(), non_neg_integer(), non_neg_integer()) -> {ok, [message()]} | error().
get_messages(ClientId, Offset, Limit) -> call(get(ClientId, Offset, Limit)).

-spec get_messages_async(client_id(), non_neg_integer(), non_neg_integer()) -> request_id().
get_messages_async(ClientId, Offset, Limit) -> async(get(ClientId, Offset, Limit)).

get(ClientId, Offset, Limit) ->
    Page = {
        get_messages,
        emqx_redis_args:client_id(1, ClientId),
        emqx_redis_args:count(2, Offset),
        emqx_redis_args:count(3, Limit)
    },
    {Page, undefined}.

%% Removes a message that the client has acknowledged; that there was none is `ok' too.
%% Options: `epoch' as for `emqx_redis_session:save_session/3', `timeout', `durability'.
-spec ack_message(client_id(), message_id()) -> ok | error().
ack_message(ClientId, MessageId) -> ack_message(ClientId, MessageId, #{}).

-spec ack_message(client_id(), message_id(), emqx_redis_args:options()) -> ok | error().
ack_message(ClientId, MessageId, Opts) -> call(ack(ClientId, MessageId, Opts)).

-spec ack_message_async(client_id(), message_id()) -> request_id().
ack_message_async(ClientId, MessageId) -> ack_message_async(ClientId, MessageId, #{}).

-spec ack_message_async(client_id(), message_id(), emqx_redis_args:options()) -> request_id().
ack_message_async(ClientId, MessageId, Opts) -> async(ack(ClientId, MessageId, Opts)).

ack(ClientId, MessageId, Opts) ->
    ack_all(ClientId, [emqx_redis_args:message_id(2, MessageId)], Opts).

%% Removes messages that the client has acknowledged: up to 200 in one atomic unit, more in several.
-spec ack_messages(client_id(), [message_id()]) -> ok | error().
ack_messages(ClientId, MessageIds) -> ack_messages(ClientId, MessageIds, #{}).

-spec ack_messages(client_id(), [message_id()], emqx_redis_args:options()) -> ok | error().
ack_messages(ClientId, MessageIds, Opts) -> call(ack_all(ClientId, MessageIds, Opts)).

-spec ack_messages_async(client_id(), [message_id()]) -> request_id().
ack_messages_async(ClientId, MessageIds) -> ack_messages_async(ClientId, MessageIds, #{}).

-spec ack_messages_async(client_id(), [message_id()], emqx_redis_args:options()) -> request_id().
ack_messages_async(ClientId, MessageIds, Opts) -> async(ack_all(ClientId, MessageIds, Opts)).

ack_all(ClientId, MessageIds, Opts) ->
    [Epoch, Timeout, Durability] = emqx_redis_args:options(3, Opts, [epoch, timeout, durability]),
    Ids = emqx_redis_args:binaries(2, MessageIds),
    Ack = {ack_messages, emqx_redis_args:client_id(1, ClientId), Ids, Epoch},
    {Ack, emqx_redis_args:settings(Timeout, Durability)}.

%% Notes with which packet ids messages were sent to the client and not acknowledged yet, up to a day. The
%% note goes with the message; of one that is gone nothing is noted. Options: `epoch' as for
%% `emqx_redis_session:save_session/3', `timeout', `durability'.
-spec mark_messages(client_id(), [{message_id(), mark()}]) -> ok | error().
mark_messages(ClientId, Marks) -> mark_messages(ClientId, Marks, #{}).

-spec mark_messages(client_id(), [{message_id(), mark()}], emqx_redis_args:options()) ->
    ok | error().
mark_messages(ClientId, Marks, Opts) -> call(mark(ClientId, Marks, Opts)).

-spec mark_messages_async(client_id(), [{message_id(), mark()}]) -> request_id().
mark_messages_async(ClientId, Marks) -> mark_messages_async(ClientId, Marks, #{}).

-spec mark_messages_async(client_id(), [{message_id(), mark()}], emqx_redis_args:options()) ->
    request_id().
mark_messages_async(ClientId, Marks, Opts) -> async(mark(ClientId, Marks, Opts)).

mark(ClientId, Marks, Opts) ->
    [Epoch, Timeout, Durability] = emqx_redis_args:options(3, Opts, [epoch, timeout, durability]),
    Notes = emqx_redis_args:tuples(2, Marks, "{MessageId, {PacketId, sent | received}}", fun
        ({Id, {PacketId, sent}}) when is_binary(Id), PacketId > 0, PacketId < 65536 ->
            {Id, integer_to_binary(PacketId)};
        ({Id, {PacketId, received}}) when is_binary(Id), PacketId > 0, PacketId < 65536 ->
            {Id, <<(integer_to_binary(PacketId))/binary, "r">>};
        (_) ->
            false
    end),
    Mark = {mark_messages, emqx_redis_args:client_id(1, ClientId), Notes, Epoch},
    {Mark, emqx_redis_args:settings(Timeout, Durability)}.

%% What was noted of each of the messages, in their order; `undefined' where nothing was.
-spec get_marks(client_id(), [message_id()]) -> {ok, [mark() | undefined]} | error().
get_marks(ClientId, MessageIds) -> read_marks(call(marks(ClientId, MessageIds))).

%% The answer of the request holds the notes as they are stored: `<<"17">>', `<<"17r">>' or `undefined'.
-spec get_marks_async(client_id(), [message_id()]) -> request_id().
get_marks_async(ClientId, MessageIds) -> async(marks(ClientId, MessageIds)).

marks(ClientId, MessageIds) ->
    Ids = emqx_redis_args:binaries(2, MessageIds),
    {{get_marks, emqx_redis_args:client_id(1, ClientId), Ids}, undefined}.

read_marks({ok, Notes}) -> {ok, [read_mark(Note) || Note <- Notes]};
read_marks({error, _} = Error) -> Error.

read_mark(undefined) ->
    undefined;
read_mark(Note) ->
    case string:to_integer(Note) of
        {PacketId, <<>>} when is_integer(PacketId) -> {PacketId, sent};
        {PacketId, <<"r">>} when is_integer(PacketId) -> {PacketId, received};
        _ -> undefined
    end.

%% Removes all of a client's messages: up to 200 in one atomic unit, more in several.
%% Options: `epoch' as for `emqx_redis_session:save_session/3', `timeout', `durability'.
-spec delete_messages(client_id()) -> ok | error().
delete_messages(ClientId) -> delete_messages(ClientId, #{}).

-spec delete_messages(client_id(), emqx_redis_args:options()) -> ok | error().
delete_messages(ClientId, Opts) -> call(delete(ClientId, Opts)).

-spec delete_messages_async(client_id()) -> request_id().
delete_messages_async(ClientId) -> delete_messages_async(ClientId, #{}).

-spec delete_messages_async(client_id(), emqx_redis_args:options()) -> request_id().
delete_messages_async(ClientId, Opts) -> async(delete(ClientId, Opts)).

delete(ClientId, Opts) ->
    [Epoch, Timeout, Durability] = emqx_redis_args:options(2, Opts, [epoch, timeout, durability]),
    Delete = {delete_messages, emqx_redis_args:client_id(1, ClientId), Epoch},
    {Delete, emqx_redis_args:settings(Timeout, Durability)}.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

store_options(Opts) -> store_options(Opts, []).

store_options(Opts, More) ->
    Names = [ttl, max_queue, on_full, timeout, durability | More],
    [Ttl, Most, OnFull, Timeout, Durability | _] = emqx_redis_args:options(3, Opts, Names),
    {Ttl, queue_limit(Most, OnFull), emqx_redis_args:settings(Timeout, Durability)}.

queue_limit(undefined, _) -> undefined;
queue_limit(Most, undefined) -> {Most, drop_oldest};
queue_limit(Most, OnFull) -> {Most, OnFull}.

call({Operation, Settings}) -> emqx_redis_request:call(Operation, Settings).

async({Operation, Settings}) -> emqx_redis_request:async(Operation, Settings).
