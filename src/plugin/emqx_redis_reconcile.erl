%% Sessions in a node's memory and what Redis has of their messages: made the same again, where hooks have
%% missed something.
%%
%% That is so of sessions whose clients came while the plugin was not there or Redis was away (`degrade'),
%% and of messages that were published or acknowledged meanwhile. What EMQX holds of a session is the truth:
%% what Redis lacks of it is stored. What only Redis has is either behind what was handed to EMQX, and is
%% delivered, or was acknowledged unseen, and is removed.
%%
%% Only a channel's own process can be asked for what its session holds, and it can't ask itself from a
%% hook: so one process here does it for all, one session after another.
-module(emqx_redis_reconcile).

-behaviour(gen_server).

-export([start_link/0, session/3, group_member/2, all_told/0, is_settled/0, is_idle/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type client_id() :: emqx_redis_session:client_id().
-type message_id() :: emqx_redis_message:message_id().
%% What becomes of a message that only Redis has. `keep': it stays as it is. `check': the channel is told
%% that there is one.
-type surplus() :: keep | deliver | remove | check.
-export_type([surplus/0]).

-record(task, {
    client_id :: client_id(),
    channel :: pid(),
    %% `none': only what the session holds for shared groups is of interest.
    epoch :: emqx_redis_session:epoch() | none,
    surplus = keep :: surplus(),
    attempts = 1 :: pos_integer(),
    %% What only Redis had at the first look.
    seen = none :: none | [message_id()]
}).

-define(TABLE, ?MODULE).
%% A channel may be busy or not be registered yet, and Redis may be away: so many attempts are made at once,
%% with so many milliseconds between, later ones ten times as far apart.
-define(ATTEMPTS, 10).
-define(RETRY, 500).
-define(CALL_TIMEOUT, 5000).
%% What is published now is in Redis before it is in a session: how long it may be on its way.
-define(PATIENCE, 3000).
-define(PAGE, 500).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The calling process is the client's channel and holds that epoch.
-spec session(client_id(), emqx_redis_session:epoch(), surplus()) -> ok.
session(ClientId, Epoch, Surplus) ->
    gen_server:cast(
        ?MODULE, #task{client_id = ClientId, channel = self(), epoch = Epoch, surplus = Surplus}
    ).

%% The process is the channel of a client whose session is not persistent, and which is a member of shared
%% groups.
-spec group_member(client_id(), pid()) -> ok.
group_member(ClientId, Channel) ->
    gen_server:cast(?MODULE, #task{client_id = ClientId, channel = Channel, epoch = none}).

%% All channels of this node were told that the plugin runs.
-spec all_told() -> ok.
all_told() -> gen_server:cast(?MODULE, all_told).

%% Whether it is known what the sessions of this node hold for shared groups.
-spec is_settled() -> boolean().
is_settled() -> ets:whereis(?TABLE) =/= undefined andalso ets:member(?TABLE, settled).

%% Whether it has nothing to do.
-spec is_idle() -> boolean().
is_idle() ->
    case whereis(?MODULE) of
        undefined -> false;
        Pid -> process_info(Pid, message_queue_len) =:= {message_queue_len, 0}
    end.

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

init([]) ->
    process_flag(message_queue_data, off_heap),
    ?TABLE = ets:new(?TABLE, [named_table]),
    {ok, none}.

handle_call(_Request, _From, State) -> {reply, {error, unknown_call}, State}.

handle_cast(#task{} = Task, State) ->
    run(Task),
    {noreply, State};
%% Behind all that they have asked for.
handle_cast(all_told, State) ->
    ets:insert_new(?TABLE, {settled}) andalso emqx_redis_groups:look(),
    {noreply, State}.

handle_info({run, Task}, State) ->
    run(Task),
    {noreply, State};
handle_info(_Message, State) ->
    {noreply, State}.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

run(Task) ->
    case attempt(Task) of
        done -> ok;
        {again, Next} -> later(?PATIENCE, Next);
        {error, Reason} -> retry(Reason, Task)
    end.

attempt(#task{epoch = none} = Task) ->
    case held(Task) of
        {ok, _Messages} -> done;
        {error, _} = Error -> Error
    end;
%% Most have nothing in Redis.
attempt(#task{surplus = check, seen = none, client_id = ClientId} = Task) ->
    case emqx_redis_message:get_messages(ClientId, 0, 1) of
        {ok, []} -> done;
        {ok, _} -> attempt_held(Task);
        {error, {undecodable, _}} -> attempt_held(Task);
        {error, _} = Error -> Error
    end;
attempt(Task) ->
    attempt_held(Task).

attempt_held(#task{surplus = Surplus} = Task) ->
    case held(Task) of
        {ok, []} when Surplus =:= keep -> done;
        {ok, Held} -> compare(Held, Task);
        {error, _} = Error -> Error
    end.

%% A session that is gone, or was taken over, is another's matter.
retry(Reason, #task{channel = Channel, attempts = Attempts} = Task) ->
    Attempts =:= ?ATTEMPTS andalso
        emqx_redis_plugin_log:log(warning, "could not compare a session with Redis yet", Reason),
    case is_process_alive(Channel) of
        true when Attempts < ?ATTEMPTS -> later(?RETRY, Task#task{attempts = Attempts + 1});
        true -> later(?RETRY * ?ATTEMPTS, Task#task{attempts = Attempts + 1});
        false -> ok
    end.

later(Milliseconds, Task) ->
    _ = erlang:send_after(Milliseconds, self(), {run, Task}),
    ok.

%% The QoS 1 and 2 messages of the client's own that the session holds, in their order. What it holds for
%% shared groups is noted.
held(#task{client_id = ClientId, channel = Channel} = Task) ->
    case emqx_redis_broker:held_messages(ClientId, Channel, ?CALL_TIMEOUT) of
        {ok, Messages} ->
            {Own, Groups} = lists:partition(
                fun(Message) -> emqx_redis_broker:group(Message) =:= none end,
                [Message || Message <- Messages, emqx_redis_broker:qos(Message) > 0]
            ),
            lists:foreach(fun(Message) -> emqx_redis_groups:hold(member(Task), Message) end, Groups),
            {ok, Own};
        {error, _} = Error ->
            Error
    end.

%% As `emqx_redis_hooks' names it.
member(#task{epoch = none, channel = Channel}) -> Channel;
member(#task{client_id = ClientId}) -> ClientId.

compare(Held, #task{client_id = ClientId} = Task) ->
    HeldIds = ids(Held),
    %% What is acknowledged and on its way out is no surplus.
    case emqx_redis_acks:flush(ClientId) =:= ok andalso stored_ids(ClientId, HeldIds, Task) of
        false ->
            {error, busy};
        {ok, Stored} ->
            Missing = [It || It <- Held, not is_map_key(emqx_redis_broker:message_id(It), Stored)],
            case store(Missing, Task) of
                ok -> settle(maps:keys(maps:without(maps:keys(HeldIds), Stored)), HeldIds, Task);
                {error, _} = Error -> Error
            end;
        {error, _} = Error ->
            Error
    end.

ids(Messages) -> maps:from_keys([emqx_redis_broker:message_id(It) || It <- Messages], []).

%% Of those that Redis has, all, or until all that are looked for were found.
stored_ids(ClientId, Wanted, #task{surplus = Surplus}) -> stored_ids(ClientId, Wanted, Surplus, 0, #{}).

stored_ids(ClientId, Wanted, Surplus, Offset, Known) ->
    case emqx_redis_message:get_messages(ClientId, Offset, ?PAGE) of
        {ok, Messages} ->
            Next = maps:merge(Known, maps:from_keys([Id || #{id := Id} <- Messages], [])),
            HasWanted = map_size(maps:without(maps:keys(Next), Wanted)) =:= 0,
            IsEnough = HasWanted andalso (Surplus =:= keep orelse Surplus =:= deliver),
            case IsEnough orelse length(Messages) < ?PAGE of
                true -> {ok, Next};
                false -> stored_ids(ClientId, Wanted, Surplus, Offset + length(Messages), Next)
            end;
        %% Whoever reads it in its turn removes it: this only looks.
        {error, {undecodable, #{message_id := Id}}} ->
            stored_ids(ClientId, Wanted, Surplus, Offset + 1, Known#{Id => []});
        {error, _} = Error ->
            Error
    end.

store([], _Task) ->
    ok;
store(Messages, #task{client_id = ClientId} = Task) ->
    Expiring = [{emqx_redis_stored_message:ttl_left(It), It} || It <- Messages],
    Encoded = [{Ttl, emqx_redis_stored_message:encode_held(It)} || {Ttl, It} <- Expiring, Ttl =/= 0],
    case store_all(ClientId, Encoded) of
        ok ->
            emqx_redis_plugin_stats:count(messages_stored_later, length(Encoded)),
            remove_acknowledged(Messages, Task);
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
remove_acknowledged(Messages, #task{client_id = ClientId, epoch = Epoch} = Task) ->
    case held(Task) of
        {ok, Held} ->
            Gone = maps:keys(maps:without(maps:keys(ids(Held)), ids(Messages))),
            lists:foreach(fun(Id) -> emqx_redis_acks:ack(ClientId, Epoch, Id) end, Gone);
        %% It is delivered once more, if anything.
        {error, _} ->
            ok
    end.

settle(_Surplus, _Held, #task{surplus = keep}) ->
    done;
settle(_Surplus, Held, #task{surplus = deliver, channel = Channel}) ->
    Channel ! {emqx_redis_storage, {held, maps:keys(Held)}},
    done;
settle([], _Held, _Task) ->
    done;
settle(Surplus, _Held, #task{seen = none} = Task) ->
    {again, Task#task{seen = Surplus}};
settle(Surplus, _Held, #task{seen = Seen} = Task) ->
    Known = maps:from_keys(Seen, []),
    settle_seen([Id || Id <- Surplus, is_map_key(Id, Known)], Task).

settle_seen([], _Task) ->
    done;
settle_seen(Surplus, #task{surplus = remove, client_id = ClientId, epoch = Epoch}) ->
    lists:foreach(fun(Id) -> emqx_redis_acks:ack(ClientId, Epoch, Id) end, Surplus),
    done;
settle_seen(Surplus, #task{surplus = check, channel = Channel}) ->
    emqx_redis_plugin_stats:count(strays_found, length(Surplus)),
    Channel ! {emqx_redis_storage, compare},
    done.
