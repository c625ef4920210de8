%% What waits in Redis for a client that is being served again, page by page.
%%
%% A session in memory holds a bounded queue. So of a long backlog only a page is handed to EMQX, and the
%% next one when the client has acknowledged most of it. Until the last page is there, live messages that
%% are stored are refused by the session (`message.nack'): they stand behind the backlog in Redis, and come
%% with its last pages. That works as long as the window of messages in flight is full, which a low-water
%% mark above it sees to.
%%
%% All functions run in the process of the client's channel, or of the restored one that stands in for it.
-module(emqx_redis_backlog).

-export([first_page/3, is_refused/2, completed/2, load/3, handed_over/1, delivery/2]).

-export_type([state/0]).

-type client_id() :: emqx_redis_session:client_id().
-type subscriptions() :: #{Filter :: binary() => SubOpts :: map()}.
-type state() :: #{
    %% Messages that EMQX has been given and that are not completed.
    known := #{emqx_redis_message:message_id() => []},
    %% Whether there may be more in Redis.
    more := boolean(),
    %% Fewer known ones than that call for the next page, of so many.
    low := non_neg_integer(),
    page := pos_integer(),
    %% The next page is not asked for before that, in milliseconds of the monotonic clock.
    not_before := integer()
}.

%% Marks what comes from here among what is delivered.
-define(MARK, emqx_redis_backlog).
-define(LARGEST_PAGE, 1000).
-define(RETRY, 1000).

%% The first messages of the queue, and what is left. `Window' is how many may be in flight to the client,
%% `MaxQueue' how many its session holds beside.
-spec first_page(client_id(), Window :: non_neg_integer(), MaxQueue :: non_neg_integer() | infinity) ->
    {ok, [emqx_redis_broker:message()], state()} | {error, term()}.
first_page(ClientId, Window, MaxQueue) ->
    Queue =
        case MaxQueue of
            infinity -> 2 * ?LARGEST_PAGE;
            0 -> 2 * ?LARGEST_PAGE;
            _ -> min(MaxQueue, 2 * ?LARGEST_PAGE)
        end,
    State = #{
        known => #{},
        more => true,
        low => Window + Queue div 4,
        page => max(1, Queue div 2),
        not_before => erlang:monotonic_time(millisecond)
    },
    case Window of
        %% Nothing ever waits in such a session: all of it goes out at once.
        0 -> read_all(ClientId, State, []);
        _ -> read(ClientId, State, Window + Queue div 2)
    end.

read_all(ClientId, State, Read) ->
    case read(ClientId, State, ?LARGEST_PAGE) of
        {ok, Messages, #{more := true} = Next} -> read_all(ClientId, Next, [Messages | Read]);
        {ok, Messages, Next} -> {ok, lists:append(lists:reverse([Messages | Read])), Next};
        {error, _} = Error -> Error
    end.

%% Reads on from the beginning: what is known stands there, unless it was completed. (By a place to go on
%% from, a message would be passed over that another node stored at the same moment, and placed before it.)
read(ClientId, #{known := Known} = State, Page) ->
    Limit = map_size(Known) + Page,
    case emqx_redis_message:get_messages(ClientId, 0, Limit) of
        {ok, Stored} ->
            New = [Message || #{id := Id} = Message <- Stored, not is_map_key(Id, Known)],
            Ids = maps:from_list([{Id, []} || #{id := Id} <- New]),
            emqx_redis_plugin_stats:count(messages_restored, length(New)),
            Messages = lists:filtermap(fun decode/1, New),
            {ok, Messages, State#{known := maps:merge(Known, Ids), more := length(Stored) >= Limit}};
        {error, _} = Error ->
            Error
    end.

decode(Stored) ->
    case emqx_redis_stored_message:decode(Stored) of
        {ok, Message} -> {true, emqx_redis_broker:set_header(?MARK, true, Message)};
        error -> false
    end.

%% As the broker delivers it: by the subscription that grants it most, and where none matches any more by
%% its topic.
-spec delivery(emqx_redis_broker:message(), subscriptions()) -> emqx_redis_broker:delivery().
delivery(Message, Subscriptions) ->
    Topic = emqx_redis_broker:topic(Message),
    Matching = [
        {maps:get(qos, SubOpts, 0), Filter}
     || {Filter, SubOpts} <- maps:to_list(Subscriptions),
        emqx_redis_broker:is_match(Topic, Filter)
    ],
    case Matching of
        [] ->
            {deliver, Topic, Message};
        _ ->
            {_, Filter} = lists:max(Matching),
            {deliver, Filter, Message}
    end.

%% Whether the session must not take this message now: it comes from Redis in its turn, or has already.
-spec is_refused(emqx_redis_broker:message(), state() | none) -> boolean().
is_refused(_Message, none) ->
    false;
is_refused(Message, #{known := Known, more := More}) ->
    emqx_redis_broker:qos(Message) > 0 andalso
        emqx_redis_broker:group(Message) =:= none andalso
        not emqx_redis_broker:header(?MARK, Message, false) andalso
        (More orelse is_map_key(emqx_redis_broker:message_id(Message), Known)).

%% A message has left the session: it was acknowledged, or dropped. `load': it is time for the next page.
-spec completed(emqx_redis_message:message_id(), state()) -> {wait | load | done, state()}.
completed(Id, #{known := Known, more := More, low := Low} = State) ->
    Left = maps:remove(Id, Known),
    Next = State#{known := Left},
    case More of
        true when map_size(Left) < Low -> {due(Next), Next};
        false when map_size(Left) =:= 0 -> {done, Next};
        _ -> {wait, Next}
    end.

due(#{not_before := NotBefore}) ->
    case erlang:monotonic_time(millisecond) >= NotBefore of
        true -> load;
        false -> wait
    end.

%% Has the next page delivered to the calling process. Behind the last page live messages are taken again;
%% those that came meanwhile and are in the page are dropped, the others stand behind it.
-spec load(client_id(), subscriptions(), state()) -> state().
load(ClientId, Subscriptions, #{page := Page} = State) ->
    case emqx_redis_acks:flush(ClientId) of
        ok ->
            case read(ClientId, State, Page) of
                {ok, Messages, Next} ->
                    deliver(Messages, Subscriptions, Next),
                    Next;
                {error, _} ->
                    later(State)
            end;
        {error, _} ->
            later(State)
    end.

%% Redis is away. The channel's process is told to try again, see `emqx_redis_hooks'.
later(State) ->
    erlang:send_after(?RETRY, self(), {emqx_redis_storage, load_backlog}),
    State#{not_before := erlang:monotonic_time(millisecond) + ?RETRY}.

deliver(Messages, Subscriptions, #{known := Known, more := More}) ->
    Live =
        case More of
            true -> [];
            false -> emqx_redis_broker:drain_deliveries()
        end,
    _ = [self() ! delivery(Message, Subscriptions) || Message <- Messages],
    _ = [self() ! Delivery || {deliver, _, Message} = Delivery <- Live, is_new(Message, Known)],
    ok.

is_new(Message, Known) ->
    emqx_redis_broker:header(?MARK, Message, false) orelse
        not is_map_key(emqx_redis_broker:message_id(Message), Known).

%% As another channel has handed it over: the clocks of other nodes mean nothing here.
-spec handed_over(state() | none) -> state() | none.
handed_over(none) -> none;
handed_over(State) -> State#{not_before := erlang:monotonic_time(millisecond)}.
