%% Messages of shared subscriptions (MQTT 5.0 section 4.8.2) whose member is gone.
%%
%% A message for a group is stored once, in the group's own queue, and EMQX hands it to one member. Each
%% node knows which of them its own members hold. What no member of the cluster holds any more has lost its
%% member with a node, or had none to go to: it is given to EMQX again, which picks another.
-module(emqx_redis_groups).

-behaviour(gen_server).

-export([start_link/0, joined/1, hold/2, release/3, look/0]).
-export([held/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type group() :: {Group :: binary(), Filter :: binary()}.

-define(HELD, emqx_redis_groups_held).
-define(KNOWN, emqx_redis_groups_known).
%% What is looked for after that, at most, and how long a message must have been nobody's: it may be on its
%% way.
-define(ROUND, 60000).
-define(PATIENCE, 3000).
-define(PAGE, 1000).
-define(NODE_TIMEOUT, 2000).
%% A note that a member holds a message, where nobody has said what became of it.
-define(FORGET_AFTER, 3600).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% A persistent session of this node is a member.
-spec joined(group()) -> ok.
joined(Group) ->
    IsKnown = ets:member(?KNOWN, Group),
    true = ets:insert(?KNOWN, {Group, erlang:monotonic_time(second)}),
    IsKnown orelse look(),
    ok.

%% Looks soon whether messages have lost their member.
-spec look() -> ok.
look() -> gen_server:cast(?MODULE, look).

%% A member of this node has the message: a client, whichever process its session is in, or a process. One
%% that is not stored for a group is none of this module's.
-spec hold(Member :: binary() | pid(), emqx_redis_broker:message()) -> ok.
hold(Member, Message) ->
    case emqx_redis_publish:is_groups(Message) andalso emqx_redis_broker:group(Message) of
        {_, _} = Group ->
            Key = {Group, emqx_redis_broker:message_id(Message)},
            true = ets:insert(?HELD, {Key, Member, erlang:monotonic_time(second)}),
            ok;
        _ ->
            ok
    end.

%% It is done with.
-spec release(Group :: binary(), Filter :: binary(), emqx_redis_message:message_id()) -> ok.
release(Group, Filter, MessageId) ->
    true = ets:delete(?HELD, {{Group, Filter}, MessageId}),
    ok.

%% Which of the messages members of this node hold: asked by other nodes. Until it is known, they may hold
%% any.
-spec held(group(), [emqx_redis_message:message_id()]) -> [emqx_redis_message:message_id()].
held(Group, MessageIds) ->
    case emqx_redis_reconcile:is_settled() of
        true -> [Id || Id <- MessageIds, is_held(ets:lookup(?HELD, {Group, Id}))];
        false -> MessageIds
    end.

is_held([{_, Pid, _}]) when is_pid(Pid) -> is_process_alive(Pid);
is_held([{_, ClientId, _}]) -> emqx_redis_broker:lookup_channels(ClientId) =/= [];
is_held([]) -> false.

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

-spec init([]) -> {ok, #{group() => [emqx_redis_message:message_id()]}}.
init([]) ->
    _ = [
        ets:new(Table, [named_table, public, set, {write_concurrency, true}])
     || Table <- [?HELD, ?KNOWN]
    ],
    _ = net_kernel:monitor_nodes(true),
    _ = erlang:send_after(?ROUND, self(), round),
    {ok, #{}}.

handle_call(_Request, _From, Seen) -> {reply, {error, unknown_call}, Seen}.

handle_cast(look, Seen) ->
    {noreply, look_twice(Seen)}.

handle_info(round, Seen) ->
    _ = erlang:send_after(?ROUND, self(), round),
    forget_old(),
    forget_unused(),
    {noreply, look_twice(Seen)};
handle_info({nodedown, _Node}, Seen) ->
    {noreply, look_twice(Seen)};
handle_info(look_again, Seen) ->
    maps:foreach(fun(Group, Ids) -> recover(Group, Ids) end, Seen),
    {noreply, #{}};
handle_info(_Message, Seen) ->
    {noreply, Seen}.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

%% Notes of members that are gone, where nobody has said what became of the message.
forget_old() ->
    Before = erlang:monotonic_time(second) - ?FORGET_AFTER,
    Old = ets:select(?HELD, [{{'_', '_', '$1'}, [{'<', '$1', Before}], ['$_']}]),
    lists:foreach(
        fun(Entry) -> is_held([Entry]) orelse ets:delete_object(?HELD, Entry) end,
        Old
    ).

%% Groups that no persistent session is a member of any more, and that have no message left. One that was
%% joined meanwhile stays.
forget_unused() ->
    Before = erlang:monotonic_time(second) - ?FORGET_AFTER,
    Old = ets:select(?KNOWN, [{{'_', '$1'}, [{'<', '$1', Before}], ['$_']}]),
    lists:foreach(
        fun({Group, _} = Entry) -> is_used(Group) orelse ets:delete_object(?KNOWN, Entry) end, Old
    ).

is_used({Group, Filter}) ->
    Shared = <<"$share/", Group/binary, "/", Filter/binary>>,
    case emqx_redis_subscription:match_subscriptions(emqx_redis_filter:example(Filter)) of
        {ok, Subscriptions} ->
            lists:keymember(Shared, 1, Subscriptions) orelse
                emqx_redis_message:get_messages(
                    emqx_redis_stored_message:group_queue(Group, Filter), 0, 1
                ) =/= {ok, []};
        {error, _} ->
            true
    end.

%% What is nobody's at two looks is not on its way.
look_twice(Seen) when map_size(Seen) > 0 ->
    Seen;
look_twice(_Seen) ->
    Found = [{Group, ids(orphans(Group))} || {Group, _} <- ets:tab2list(?KNOWN)],
    case maps:from_list([{Group, Ids} || {Group, [_ | _] = Ids} <- Found]) of
        None when map_size(None) =:= 0 ->
            None;
        Orphans ->
            _ = erlang:send_after(?PATIENCE, self(), look_again),
            Orphans
    end.

%% One node at a time, so that a message is given out once.
recover({Group, Filter}, Ids) ->
    Queue = emqx_redis_stored_message:group_queue(Group, Filter),
    case emqx_redis_connect_lock:acquire(Queue, ?NODE_TIMEOUT) of
        {ok, Lock} ->
            Orphans = [It || #{id := Id} = It <- orphans({Group, Filter}), lists:member(Id, Ids)],
            lists:foreach(fun(Stored) -> give_out(Group, Filter, Stored) end, Orphans),
            emqx_redis_connect_lock:release(Lock);
        {error, timeout} ->
            ok
    end.

give_out(Group, Filter, Stored) ->
    case emqx_redis_stored_message:decode(Stored) of
        {ok, Message} ->
            emqx_redis_plugin_stats:count(messages_restored),
            emqx_redis_broker:redispatch(Group, Filter, emqx_redis_publish:mark_group(Message));
        error ->
            ok
    end.

ids(Messages) -> [Id || #{id := Id} <- Messages].

%% Of the oldest messages of the group those that no member of any node holds. Where a node can't be asked
%% nothing is.
orphans({Name, Filter} = Group) ->
    Queue = emqx_redis_stored_message:group_queue(Name, Filter),
    case emqx_redis_message:get_messages(Queue, 0, ?PAGE) of
        {ok, [_ | _] = Messages} ->
            Nodes = emqx_redis_broker:nodes(),
            Args = [Group, ids(Messages)],
            Answers = erpc:multicall(Nodes, ?MODULE, held, Args, ?NODE_TIMEOUT),
            case [Answer || {Class, _} = Answer <- Answers, Class =/= ok] of
                [] ->
                    Held = maps:from_keys(lists:append([Ids || {ok, Ids} <- Answers]), []),
                    [It || #{id := Id} = It <- Messages, not is_map_key(Id, Held)];
                _ ->
                    []
            end;
        _ ->
            []
    end.
