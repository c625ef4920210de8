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

-export([first_page/5, is_refused/2, completed/2, load/5, go_on/1, handed_over/2]).
-export([unknown/2, is_unknown/1, held/2, add_known/2, has_room/2]).
-export([limits/2, set_stored/2, is_marked/1]).

-export_type([state/0]).

-type client_id() :: emqx_redis_session:client_id().
-type owner() :: {client_id(), emqx_redis_session:epoch()}.
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
    not_before := integer(),
    %% Whether it is not known what the session holds, see `unknown/2'.
    unknown := boolean()
}.

%% Marks what comes from here among what is delivered, and what a publisher has stored for clients.
-define(MARK, emqx_redis_backlog).
-define(STORED, emqx_redis_stored).
-define(LARGEST_PAGE, 1000).
-define(RETRY, 1000).

%% How many messages may be in flight to the client, and how many its session queues beside; 0 and
%% `infinity' of the queue mean no limit.
-spec limits(emqx_redis_broker:client_info(), emqx_redis_broker:conn_info()) ->
    {Window :: non_neg_integer(), MaxQueue :: non_neg_integer() | infinity}.
limits(ClientInfo, ConnInfo) ->
    Window = maps:get(receive_maximum, ConnInfo, 32),
    {Window, emqx_redis_broker:zone_setting(ClientInfo, max_mqueue_len, 1000)}.

%% The first messages of the queue, as the broker delivers them, and what is left. `Window' is how many may
%% be in flight to the client, `MaxQueue' how many its session holds beside.
-spec first_page(
    owner(),
    subscriptions(),
    #{emqx_redis_message:message_id() => term()},
    Window :: non_neg_integer(),
    MaxQueue :: non_neg_integer() | infinity
) -> {ok, [emqx_redis_broker:delivery()], state()} | {error, term()}.
first_page(Owner, Subscriptions, Sent, Window, MaxQueue) ->
    #{page := Page} = State = new(Window, MaxQueue),
    case Window of
        %% Nothing ever waits in such a session: all of it goes out at once.
        0 -> read_all(Owner, Subscriptions, Sent, State, []);
        %% All of it stands in the queue at first.
        _ -> read(Owner, Subscriptions, Sent, State, min(Window + Page, queue(MaxQueue)))
    end.

new(Window, MaxQueue) ->
    Page = max(1, queue(MaxQueue) div 2),
    #{
        known => #{},
        more => true,
        low => low(Window, Page),
        page => Page,
        not_before => erlang:monotonic_time(millisecond),
        unknown => false
    }.

queue(infinity) -> 2 * ?LARGEST_PAGE;
queue(0) -> 2 * ?LARGEST_PAGE;
queue(MaxQueue) -> min(MaxQueue, 2 * ?LARGEST_PAGE).

%% Of a session that EMQX has, and of which nobody here knows what it holds: nothing is read until `held/2'
%% says so, and until then what is stored and finds the window full stays in Redis alone.
-spec unknown(Window :: non_neg_integer(), MaxQueue :: non_neg_integer() | infinity) -> state().
unknown(Window, MaxQueue) -> (new(Window, MaxQueue))#{unknown := true}.

-spec is_unknown(state() | none) -> boolean().
is_unknown(#{unknown := Unknown}) -> Unknown;
is_unknown(none) -> false.

%% It is known now: the session holds those.
-spec held(#{emqx_redis_message:message_id() => []}, state()) -> state().
held(Ids, State) -> State#{known := Ids, unknown := false}.

%% Whether the session can take the next page. Of a client that is away all may stand in the queue, which is
%% twice as long as a page.
-spec has_room(state(), IsConnected :: boolean()) -> boolean().
has_room(#{unknown := true}, _IsConnected) -> false;
has_room(#{known := Known, low := Low} = State, IsConnected) ->
    map_size(Known) < Low andalso room(State, IsConnected) > 0.

room(#{page := Page}, true) -> Page;
room(#{known := Known, page := Page}, false) -> min(Page, 2 * Page - map_size(Known)).

%% The session holds those beside, and Redis has them since now.
-spec add_known(#{emqx_redis_message:message_id() => []}, state()) -> state().
add_known(Ids, #{known := Known} = State) -> State#{known := maps:merge(Known, Ids)}.

%% Above the window, so that live messages find it full: also when the client has acknowledged all that was in
%% flight while the next page was read, if the queue is as long as that.
low(Window, Page) -> Window + min(Page, Window + Page div 2).

read_all(Owner, Subscriptions, Sent, State, Read) ->
    case read(Owner, Subscriptions, Sent, State, ?LARGEST_PAGE) of
        {ok, Page, #{more := true} = Next} -> read_all(Owner, Subscriptions, Sent, Next, [Page | Read]);
        {ok, Page, Next} -> {ok, lists:append(lists:reverse([Page | Read])), Next};
        {error, _} = Error -> Error
    end.

%% Reads on from the beginning: what is known stands there, unless it was completed. (By a place to go on
%% from, a message would be passed over that another node stored at the same moment, and placed before it.)
read({ClientId, Epoch} = Owner, Subscriptions, Sent, #{known := Known} = State, Page) ->
    Limit = map_size(Known) + Page,
    case emqx_redis_message:get_messages(ClientId, 0, Limit) of
        {ok, Stored} ->
            %% What came live before and is under way is no part of it.
            Others = [It || #{id := Id} = It <- Stored, not is_map_key(Id, Known), not is_map_key(Id, Sent)],
            %% No more than there is room for.
            New = lists:sublist(Others, Page),
            {Deliveries, Ids} = deliveries(Owner, Subscriptions, New, [], []),
            emqx_redis_plugin_stats:count(messages_restored, length(Deliveries)),
            Next = State#{
                known := maps:merge(Known, maps:from_keys(Ids, [])),
                more := length(Stored) >= Limit orelse length(Others) > Page
            },
            {ok, Deliveries, Next};
        %% What nobody can read blocks nobody.
        {error, {undecodable, #{message_id := Id} = What}} ->
            emqx_redis_plugin_log:log(error, "a stored message can't be read and is removed", What),
            case emqx_redis_message:ack_message(ClientId, Id, #{epoch => Epoch}) of
                ok -> read(Owner, Subscriptions, Sent, State, Page);
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

%% What the client does not acknowledge, since it is subscribed with QoS 0 or wants none of its own, is done
%% with.
deliveries({ClientId, Epoch} = Owner, Subscriptions, [#{id := Id} = Stored | Rest], Deliveries, Ids) ->
    case emqx_redis_stored_message:decode(Stored) of
        {ok, Message} ->
            Marked = emqx_redis_broker:set_header(?MARK, true, Message),
            case delivery(ClientId, Marked, Subscriptions) of
                {QoS, Delivery} when QoS > 0 ->
                    deliveries(Owner, Subscriptions, Rest, [Delivery | Deliveries], [Id | Ids]);
                {0, Delivery} ->
                    emqx_redis_acks:ack(ClientId, Epoch, Id),
                    deliveries(Owner, Subscriptions, Rest, [Delivery | Deliveries], Ids);
                own ->
                    emqx_redis_acks:ack(ClientId, Epoch, Id),
                    deliveries(Owner, Subscriptions, Rest, Deliveries, Ids)
            end;
        error ->
            emqx_redis_plugin_log:log(error, "a stored message is none and is removed", {ClientId, Id}),
            emqx_redis_acks:ack(ClientId, Epoch, Id),
            deliveries(Owner, Subscriptions, Rest, Deliveries, Ids)
    end;
deliveries(_Owner, _Subscriptions, [], Deliveries, Ids) ->
    {lists:reverse(Deliveries), Ids}.

%% By the subscription that grants it most, and where none matches any more by its topic, as it was promised.
delivery(ClientId, Message, Subscriptions) ->
    Topic = emqx_redis_broker:topic(Message),
    QoS = emqx_redis_broker:qos(Message),
    IsOwn = emqx_redis_broker:from(Message) =:= ClientId,
    Matching = [
        {min(QoS, maps:get(qos, SubOpts, 0)), is_no_local(SubOpts), Filter}
     || {Filter, SubOpts} <- maps:to_list(Subscriptions), emqx_redis_broker:is_match(Topic, Filter)
    ],
    Wanted = [{Granted, Filter} || {Granted, NoLocal, Filter} <- Matching, not (IsOwn andalso NoLocal)],
    case {Matching, Wanted} of
        {[], _} ->
            {QoS, {deliver, Topic, Message}};
        {_, []} ->
            own;
        _ ->
            {Granted, Filter} = lists:max(Wanted),
            {Granted, {deliver, Filter, Message}}
    end.

is_no_local(#{nl := 1}) -> true;
is_no_local(_) -> false.

%% Whether a publisher has stored it for the clients that are to have it.
-spec set_stored(boolean(), emqx_redis_broker:message()) -> emqx_redis_broker:message().
set_stored(true, Message) -> emqx_redis_broker:set_header(?STORED, true, Message);
set_stored(false, Message) -> Message.

%% Whether it comes from here.
-spec is_marked(emqx_redis_broker:message()) -> boolean().
is_marked(Message) -> emqx_redis_broker:header(?MARK, Message, false).

%% Whether the session must not take this message now: it comes from Redis in its turn, or has already.
-spec is_refused(emqx_redis_broker:message(), state() | none) -> boolean().
is_refused(_Message, none) ->
    false;
is_refused(Message, #{known := Known, more := More}) ->
    emqx_redis_broker:qos(Message) > 0 andalso
        emqx_redis_broker:group(Message) =:= none andalso
        emqx_redis_broker:header(?STORED, Message, false) andalso
        not is_marked(Message) andalso
        (More orelse is_map_key(emqx_redis_broker:message_id(Message), Known)).

%% A message has left the session: it was acknowledged, or dropped. `load': it is time for the next page.
-spec completed(emqx_redis_message:message_id(), state()) -> {wait | load | done, state()}.
completed(_Id, #{unknown := true} = State) ->
    {wait, State};
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

%% Has the next page delivered to the calling process. Live messages that came meanwhile and wait to be
%% taken by it stand behind the page, but for those that are in it, or stand behind it in Redis. `Sent':
%% what is under way already.
-spec load(owner(), subscriptions(), Sent, IsConnected :: boolean(), state()) -> state() when
    Sent :: #{emqx_redis_message:message_id() => term()}.
load({ClientId, _} = Owner, Subscriptions, Sent, IsConnected, State) ->
    case emqx_redis_availability:is_available() andalso emqx_redis_acks:flush(ClientId) of
        ok ->
            case read(Owner, Subscriptions, Sent, State, room(State, IsConnected)) of
                {ok, Deliveries, Next} ->
                    deliver(Deliveries, Next),
                    go_on(Next);
                {error, _} ->
                    later(State)
            end;
        _ ->
            later(State)
    end.

%% Nothing that the session has been given is to be acknowledged, and so brings the next page.
-spec go_on(state() | none) -> state() | none.
go_on(#{known := Known, more := true, unknown := false} = State) when map_size(Known) =:= 0 ->
    self() ! {emqx_redis_storage, load_backlog},
    State;
go_on(State) ->
    State.

%% The channel's process is told to try again, see `emqx_redis_hooks'.
later(State) ->
    erlang:send_after(?RETRY, self(), {emqx_redis_storage, load_backlog}),
    State#{not_before := erlang:monotonic_time(millisecond) + ?RETRY}.

deliver(Deliveries, State) ->
    {Earlier, Live} = lists:partition(
        fun({deliver, _, Message}) -> is_marked(Message) end, emqx_redis_broker:drain_deliveries()
    ),
    Wanted = [Delivery || {deliver, _, Message} = Delivery <- Live, not is_refused(Message, State)],
    lists:foreach(fun(Delivery) -> self() ! Delivery end, Earlier ++ Deliveries ++ Wanted).

%% As another channel has handed it over, for a client that may have so many in flight. The clocks of other
%% nodes mean nothing here.
-spec handed_over(state() | none, Window :: non_neg_integer()) -> state() | none.
handed_over(none, _Window) ->
    none;
handed_over(#{page := Page} = State, Window) ->
    State#{low := low(Window, Page), not_before := erlang:monotonic_time(millisecond)}.
