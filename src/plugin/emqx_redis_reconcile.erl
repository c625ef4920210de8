%% Sessions in a node's memory and what Redis has of their messages: made the same again, where hooks have
%% missed something.
%%
%% That is so of sessions whose clients came while the plugin was not there or Redis was away (`degrade'),
%% and of messages that were published or acknowledged meanwhile. What EMQX holds of a session is the truth:
%% what Redis lacks of it is stored. What only Redis has is either behind what was handed to EMQX, and is
%% delivered, or was acknowledged unseen, and is removed.
%%
%% Only a channel's process can be asked for what its session holds, and it can't ask itself from a hook: so
%% some processes here do it for all, each for some of the clients, one session after another. A channel
%% remembers what it has asked for until it is answered (`emqx_redis_comparing'), and takes it along
%% where its session goes.
-module(emqx_redis_reconcile).

-behaviour(gen_server).

-export([prepare/0, names/0, start_link/1]).
-export([session/4, number/1, group_member/2, all_told/0, is_settled/0, is_idle/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type client_id() :: emqx_redis_session:client_id().
-type message_id() :: emqx_redis_message:message_id().
%% What becomes of a message that only Redis has. `keep': it stays as it is. `remove': it was acknowledged
%% by a client of this node while the plugin was stopped. `check': the channel is told that there is one.
-type surplus() :: keep | deliver | remove | check.
-export_type([surplus/0]).

-record(task, {
    client_id :: client_id(),
    channel :: pid(),
    %% `{groups, Member}': only what the session holds for shared groups is of interest.
    what :: surplus() | {groups, client_id() | pid()},
    %% Whether the channel wants to know its next packet id.
    is_id_wanted = false :: boolean(),
    %% All nodes must know subscriptions of that version before what only Redis has is looked for.
    version = none :: none | emqx_redis_router:version(),
    epoch :: emqx_redis_session:epoch() | none,
    attempts = 1 :: pos_integer(),
    %% What was stored here so far.
    stored = #{} :: #{message_id() => []},
    %% What only Redis had at the first look.
    seen = none :: none | [message_id()]
}).

-record(state, {
    number :: 1..4,
    %% Sessions that could not be looked at yet.
    waiting = 0 :: non_neg_integer()
}).

-define(WORKERS, 4).
-define(SETTLED, {?MODULE, settled}).
%% A channel may be busy or not be registered yet, and Redis may be away: so many attempts are made soon, so
%% many milliseconds apart, later ones ten times as far apart.
-define(SOON, 10).
-define(RETRY, 500).
-define(CALL_TIMEOUT, 1000).
-define(SYNC_TIMEOUT, 5000).
%% What is published now is in Redis before it is in a session. How long it may be on its way, in
%% milliseconds, before it counts as acknowledged unseen, and before it counts as routed elsewhere.
-define(ACKNOWLEDGED_AFTER, 10000).
-define(STRAY_AFTER, 8000).
-define(PAGE, 500).
%% The id of none, to ask whether the epoch is the session's yet.
-define(NO_MESSAGE, <<0>>).
%% A packet id is of use where nothing is sent while it is asked for: so often it is tried.
-define(ID_ATTEMPTS, 3).

%% Before the first process starts.
-spec prepare() -> ok.
prepare() -> persistent_term:put(?SETTLED, atomics:new(?WORKERS, [])).

-spec names() -> [{1..4, atom()}].
names() ->
    [
        {1, emqx_redis_reconcile_1},
        {2, emqx_redis_reconcile_2},
        {3, emqx_redis_reconcile_3},
        {4, emqx_redis_reconcile_4}
    ].

-spec start_link({1..4, atom()}) -> gen_server:start_ret().
start_link({Number, Name}) -> gen_server:start_link({local, Name}, ?MODULE, Number, []).

%% The calling process is the client's channel and holds that epoch. It is told what comes of it, see
%% `emqx_redis_compare:message()'; the last is `{compared, _, _, _}', but for `check', which has no such end.
%%
%% `is_id_wanted': the packet id of its next message is asked for before that, some times.
%% `version': of the session's subscriptions, which other nodes may not know yet.
-spec session(client_id(), emqx_redis_session:epoch(), surplus(), Options) -> ok when
    Options :: #{version := none | emqx_redis_router:version(), is_id_wanted := boolean()}.
session(ClientId, Epoch, Surplus, #{version := Version, is_id_wanted := IsIdWanted}) ->
    ask(#task{
        client_id = ClientId,
        channel = self(),
        what = Surplus,
        epoch = Epoch,
        version = Version,
        is_id_wanted = IsIdWanted
    }).

%% The calling process is the channel of a member of shared groups. `Member': as `emqx_redis_groups:hold/2'
%% has it.
-spec group_member(client_id(), client_id() | pid()) -> ok.
group_member(ClientId, Member) ->
    ask(#task{client_id = ClientId, channel = self(), what = {groups, Member}, epoch = none}).

ask(#task{client_id = ClientId} = Task) ->
    {_, Name} = lists:keyfind(number(ClientId), 1, names()),
    gen_server:cast(Name, Task).

%% Which of the processes has the client.
-spec number(client_id()) -> 1..4.
number(ClientId) -> 1 + erlang:phash2(ClientId, ?WORKERS).

%% All channels of this node were told that the plugin runs.
-spec all_told() -> ok.
all_told() -> lists:foreach(fun({_, Name}) -> gen_server:cast(Name, all_told) end, names()).

%% Whether it is known what the sessions of this node hold for shared groups.
-spec is_settled() -> boolean().
is_settled() ->
    Settled = persistent_term:get(?SETTLED),
    lists:all(fun(Number) -> atomics:get(Settled, Number) =:= 1 end, lists:seq(1, ?WORKERS)).

%% Whether there is nothing to do but what waits for another attempt.
-spec is_idle() -> boolean().
is_idle() ->
    lists:all(
        fun({_, Name}) ->
            Pid = whereis(Name),
            Pid =/= undefined andalso process_info(Pid, message_queue_len) =:= {message_queue_len, 0}
        end,
        names()
    ).

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

init(Number) ->
    process_flag(message_queue_data, off_heap),
    %% An earlier process may have ended in the middle of something.
    emqx_redis_owned:tell_all({compare, {again, Number}}),
    {ok, #state{number = Number}}.

handle_call(_Request, _From, State) -> {reply, {error, unknown_call}, State}.

handle_cast(#task{} = Task, State) ->
    {noreply, run(Task, State)};
%% Behind all that they have asked for.
handle_cast(all_told, #state{waiting = 0, number = Number} = State) ->
    ok = atomics:put(persistent_term:get(?SETTLED), Number, 1),
    is_settled() andalso emqx_redis_groups:look(),
    {noreply, State};
handle_cast(all_told, State) ->
    _ = erlang:send_after(?RETRY, self(), all_told),
    {noreply, State}.

handle_info({retry, Task}, #state{waiting = Waiting} = State) ->
    {noreply, run(Task, State#state{waiting = Waiting - 1})};
handle_info({look_again, Task}, State) ->
    {noreply, run(Task, State)};
handle_info(all_told, State) ->
    handle_cast(all_told, State);
handle_info(_Message, State) ->
    {noreply, State}.

%%--------------------------------------------------------------------
%% A task, and when it is made again
%%--------------------------------------------------------------------

run(Task, State) ->
    try attempt(Task) of
        done -> State;
        {look_again, Milliseconds, Next} ->
            _ = erlang:send_after(Milliseconds, self(), {look_again, Next}),
            State;
        {error, Reason} -> retry(Reason, Task, State);
        {error, Reason, Next} -> retry(Reason, Next, State)
    catch
        Class:Reason:Stack ->
            emqx_redis_plugin_log:log(error, "defect", {Class, Reason, Stack}),
            retry({Class, Reason}, Task, State)
    end.

%% A session that was taken over is its new channel's matter.
retry(Reason, #task{client_id = ClientId, channel = Channel, attempts = Attempts} = Task, State) ->
    tell(Channel, not_looking),
    Attempts =:= ?SOON andalso
        emqx_redis_plugin_log:log(
            warning, "could not compare a session with Redis yet, and goes on trying", {ClientId, Reason}
        ),
    case is_process_alive(Channel) of
        true when Attempts < ?SOON -> later(?RETRY, Task#task{attempts = Attempts + 1}, State);
        true -> later(?RETRY * 10, Task#task{attempts = Attempts + 1}, State);
        false -> State
    end.

later(Milliseconds, Task, #state{waiting = Waiting} = State) ->
    _ = erlang:send_after(Milliseconds, self(), {retry, Task}),
    State#state{waiting = Waiting + 1}.

attempt(#task{what = {groups, _}} = Task) ->
    case held(Task) of
        {ok, _Own} -> done;
        {error, _} = Error -> Error
    end;
attempt(Task) ->
    case emqx_redis_availability:is_available() of
        true -> attempt_available(Task);
        false -> {error, unavailable}
    end.

%% From then on what is published anywhere is stored for the session.
await_subscriptions(#task{what = deliver, version = Version} = Task) when Version =/= none ->
    case emqx_redis_router:sync(Version, #{nodes => all, timeout => ?SYNC_TIMEOUT}) of
        ok -> {ok, Task#task{version = none}};
        {error, _} = Error -> Error
    end;
await_subscriptions(Task) ->
    {ok, Task}.

%% Most have nothing in Redis.
attempt_available(#task{what = check, seen = none, client_id = ClientId} = Task) ->
    case emqx_redis_message:get_messages(ClientId, 0, 1) of
        {ok, []} -> done;
        {ok, _} -> compare(Task);
        {error, {undecodable, _}} -> compare(Task);
        {error, _} = Error -> Error
    end;
attempt_available(Task) ->
    compare(Task).

%%--------------------------------------------------------------------
%% Comparing
%%--------------------------------------------------------------------

%% The QoS 1 and 2 messages of the client's own that the session holds, in their order. What it holds for
%% shared groups is noted.
held(#task{client_id = ClientId, channel = Channel, what = What}) ->
    tell(Channel, looking),
    case emqx_redis_broker:held_messages(ClientId, Channel, ?CALL_TIMEOUT) of
        {ok, Messages} ->
            {Own, Groups} = lists:partition(
                fun(Message) -> emqx_redis_broker:group(Message) =:= none end,
                [Message || Message <- Messages, emqx_redis_broker:qos(Message) > 0]
            ),
            Member =
                case What of
                    {groups, Of} -> Of;
                    _ -> ClientId
                end,
            lists:foreach(fun(Message) -> emqx_redis_groups:hold(Member, Message) end, Groups),
            {ok, Own};
        {error, _} = Error ->
            Error
    end.

ids(Messages) -> maps:from_keys([emqx_redis_broker:message_id(It) || It <- Messages], []).

without(Some, Others) -> maps:without(maps:keys(Others), Some).

compare(Task) ->
    case await_subscriptions(Task) of
        {ok, #task{what = What, stored = StoredHere} = Next} ->
            case held(Next) of
                {ok, []} when What =:= keep, map_size(StoredHere) =:= 0 -> finish(#{}, Next);
                {ok, Held} -> compare(Held, Next);
                {error, Reason} -> {error, Reason, Next}
            end;
        {error, _} = Error ->
            Error
    end.

compare(Held, #task{client_id = ClientId, what = What} = Task) ->
    %% What is acknowledged and on its way out is no surplus.
    case What =:= keep orelse emqx_redis_acks:flush(ClientId) =:= ok of
        true -> compare_flushed(Held, Task);
        false -> {error, busy}
    end.

compare_flushed(Held, #task{client_id = ClientId} = Task) ->
    HeldIds = ids(Held),
    case stored_ids(ClientId, HeldIds, Task) of
        {ok, Stored} ->
            Missing = [It || It <- Held, not is_map_key(emqx_redis_broker:message_id(It), Stored)],
            Differs = Missing =/= [] orelse map_size(without(Stored, HeldIds)) > 0,
            case Differs andalso is_superseded(Task) of
                false -> compare_stored(Missing, Stored, HeldIds, Task);
                true -> done;
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

%% A channel that has slept through the takeover of its session holds what is long done with.
is_superseded(#task{client_id = ClientId, epoch = Epoch}) ->
    case emqx_redis_message:ack_message(ClientId, ?NO_MESSAGE, #{epoch => Epoch}) of
        ok ->
            false;
        {error, {stale_epoch, _}} ->
            emqx_redis_owned:lost(ClientId, Epoch),
            true;
        {error, _} = Error ->
            Error
    end.

compare_stored(Missing, Stored, HeldIds, Task) ->
    case store_missing(Missing, HeldIds, Task) of
        {ok, StillHeld, Next} -> remove_acknowledged(Stored, StillHeld, Next);
        {error, _} = Error -> Error
    end.

%% Of those that Redis has all, or until all that are looked for were found; each with when it was
%% published, in milliseconds.
stored_ids(ClientId, Wanted, #task{what = What}) ->
    IsAll = What =:= remove orelse What =:= check,
    stored_ids(ClientId, Wanted, IsAll, 0, #{}).

stored_ids(ClientId, Wanted, IsAll, Offset, Known) ->
    case emqx_redis_message:get_messages(ClientId, Offset, ?PAGE) of
        {ok, Messages} ->
            Read = maps:from_list([{Id, maps:get(published_at, It, 0)} || #{id := Id} = It <- Messages]),
            Next = maps:merge(Known, Read),
            IsEnough = not IsAll andalso map_size(without(Wanted, Next)) =:= 0,
            case IsEnough orelse length(Messages) < ?PAGE of
                true -> {ok, Next};
                false -> stored_ids(ClientId, Wanted, IsAll, Offset + length(Messages), Next)
            end;
        %% Whoever reads it in its turn removes it: this only looks.
        {error, {undecodable, #{message_id := Id}}} ->
            stored_ids(ClientId, Wanted, IsAll, Offset + 1, Known#{Id => 0});
        {error, _} = Error ->
            Error
    end.

%% What the session holds still was not acknowledged just before Redis was asked: it is missing there.
store_missing([], HeldIds, Task) ->
    {ok, HeldIds, Task};
store_missing(Missing, _HeldIds, #task{channel = Channel} = Task) ->
    %% It has heard of that when it has answered: it may be about to read a page.
    tell(Channel, {storing, ids(Missing)}),
    case held(Task) of
        {ok, Held} ->
            HeldIds = ids(Held),
            IsHeld = fun(It) -> is_map_key(emqx_redis_broker:message_id(It), HeldIds) end,
            case store(lists:filter(IsHeld, Missing), Task) of
                {ok, Next} -> {ok, HeldIds, Next};
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

store([], Task) ->
    {ok, Task};
store(Messages, #task{client_id = ClientId, stored = StoredHere} = Task) ->
    Expiring = [{emqx_redis_stored_message:ttl_left(It), It} || It <- Messages],
    Encoded = [{Ttl, emqx_redis_stored_message:encode_held(It)} || {Ttl, It} <- Expiring, Ttl =/= 0],
    case store_all(ClientId, Encoded) of
        ok ->
            emqx_redis_plugin_stats:count(messages_stored_later, length(Encoded)),
            {ok, Task#task{stored = maps:merge(StoredHere, ids(Messages))}};
        {error, _} = Error ->
            Error
    end.

%% Those that expire at the same time together.
store_all(_ClientId, []) ->
    ok;
store_all(ClientId, [{Ttl, _} | _] = Messages) ->
    {Same, Others} = lists:splitwith(fun({Other, _}) -> Other =:= Ttl end, Messages),
    {Now, Rest} = lists:split(min(?PAGE, length(Same)), Same),
    Options = maps:from_list([{ttl, Ttl} || Ttl =/= undefined]),
    case emqx_redis_message:store_messages(ClientId, [Message || {_, Message} <- Now], Options) of
        ok -> store_all(ClientId, Rest ++ Others);
        {error, _} = Error -> Error
    end.

%% An acknowledgement that came between has found nothing to remove; one that comes later finds it.
remove_acknowledged(Stored, HeldIds, #task{stored = StoredHere} = Task) when map_size(StoredHere) =:= 0 ->
    settle(without(Stored, HeldIds), HeldIds, Task);
remove_acknowledged(Stored, _HeldIds, Task) ->
    #task{client_id = ClientId, epoch = Epoch, stored = StoredHere} = Task,
    case held(Task) of
        {ok, Held} ->
            HeldIds = ids(Held),
            Gone = without(StoredHere, HeldIds),
            lists:foreach(fun(Id) -> emqx_redis_acks:ack(ClientId, Epoch, Id) end, maps:keys(Gone)),
            settle(without(without(Stored, HeldIds), Gone), HeldIds, Task);
        {error, Reason} ->
            {error, Reason, Task}
    end.

settle(_Surplus, HeldIds, #task{what = What} = Task) when What =:= keep; What =:= deliver ->
    finish(HeldIds, Task);
settle(Surplus, HeldIds, Task) when map_size(Surplus) =:= 0 ->
    finish(HeldIds, Task);
settle(Surplus, _HeldIds, #task{what = What, seen = none} = Task) ->
    Patience =
        case What of
            remove -> ?ACKNOWLEDGED_AFTER;
            check -> ?STRAY_AFTER
        end,
    {look_again, Patience, Task#task{seen = maps:keys(Surplus)}};
settle(Surplus, HeldIds, #task{seen = Seen} = Task) ->
    {Acknowledged, Strays} = maps:fold(
        fun(Id, PublishedAt, Acc) -> judge(Id, PublishedAt, Task, Acc) end,
        {[], []},
        maps:with(Seen, Surplus)
    ),
    #task{client_id = ClientId, channel = Channel, epoch = Epoch} = Task,
    lists:foreach(fun(Id) -> emqx_redis_acks:ack(ClientId, Epoch, Id) end, Acknowledged),
    emqx_redis_plugin_stats:count(strays_found, length(Strays)),
    Strays =/= [] andalso tell(Channel, strays),
    finish(HeldIds, Task).

%% What was published while the plugin was stopped here is in memory, or done with.
judge(Id, PublishedAt, #task{what = remove}, {Acknowledged, Strays}) ->
    case PublishedAt < emqx_redis_session_state:run_began() of
        true -> {[Id | Acknowledged], Strays};
        false -> {Acknowledged, [Id | Strays]}
    end;
judge(Id, _PublishedAt, #task{what = check}, {Acknowledged, Strays}) ->
    {Acknowledged, [Id | Strays]}.

finish(_HeldIds, #task{what = check}) ->
    done;
finish(HeldIds, #task{channel = Channel, what = What, stored = StoredHere} = Task) ->
    _ = [tell_id(Task) || Task#task.is_id_wanted, _ <- lists:seq(1, ?ID_ATTEMPTS)],
    tell(Channel, {compared, What, HeldIds, maps:with(maps:keys(HeldIds), StoredHere)}),
    done.

tell_id(#task{client_id = ClientId, channel = Channel}) ->
    tell(Channel, counting),
    case emqx_redis_broker:next_packet_id(ClientId, Channel, ?CALL_TIMEOUT) of
        {ok, Id} -> tell(Channel, {next_packet_id, Id});
        {error, _} -> ok
    end.

-spec tell(pid(), emqx_redis_compare:message()) -> ok.
tell(Channel, Message) ->
    Channel ! {emqx_redis_storage, {compare, Message}},
    ok.
