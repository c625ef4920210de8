%% The persistent sessions whose channels are on this node: an index, beside what each channel's process
%% keeps.
-module(emqx_redis_owned).

-behaviour(gen_server).

-export([start_link/0, put/2, delete/1, has/1, lost/2, tell_all/1, tell_everywhere/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type client_id() :: emqx_redis_session:client_id().
-type epoch() :: emqx_redis_session:epoch().

-define(TABLE, ?MODULE).
%% Connected clients' sessions are saved again that often, so that they do not expire: see
%% `emqx_redis_session_state'. The table is looked through in slices.
-define(ROUND, 1200000).
-define(SLICE, 200).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The calling process is the client's channel, and holds that epoch.
-spec put(client_id(), epoch()) -> ok.
put(ClientId, Epoch) ->
    true = ets:insert(?TABLE, {ClientId, self(), Epoch}),
    ok.

-spec delete(client_id()) -> ok.
delete(ClientId) ->
    true = ets:match_delete(?TABLE, {ClientId, self(), '_'}),
    ok.

%% Whether a channel of this node keeps the client's session.
-spec has(client_id()) -> boolean().
has(ClientId) ->
    case ets:lookup(?TABLE, ClientId) of
        [{_, Pid, _}] -> is_process_alive(Pid);
        [] -> false
    end.

%% Another node has claimed the session since: the channel that holds that epoch is to end.
-spec lost(client_id(), epoch()) -> ok.
lost(ClientId, Epoch) ->
    Channels = [Pid || Pid <- emqx_redis_broker:lookup_channels(ClientId), node(Pid) =:= node()],
    lists:foreach(fun(Pid) -> Pid ! {emqx_redis_storage, {lost, Epoch}} end, Channels).

%% Sends every channel a message, in slices.
-spec tell_all(term()) -> ok.
tell_all(Message) -> gen_server:cast(?MODULE, {tell, Message}).

%% The same on all nodes.
-spec tell_everywhere(term()) -> ok.
tell_everywhere(Message) ->
    abcast = gen_server:abcast(emqx_redis_broker:nodes(), ?MODULE, {tell, Message}),
    ok.

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

init([]) ->
    ?TABLE = ets:new(?TABLE, [named_table, public, ordered_set, {write_concurrency, true}]),
    erlang:send_after(?ROUND, self(), round),
    {ok, none}.

handle_call(_Request, _From, State) -> {reply, {error, unknown_call}, State}.

handle_cast({tell, Message}, State) ->
    self() ! {slice, ets:first(?TABLE), Message, 0},
    {noreply, State}.

handle_info(round, State) ->
    erlang:send_after(?ROUND, self(), round),
    %% Spread over half of the time.
    Pause = ?ROUND div 2 * ?SLICE div max(?SLICE, ets:info(?TABLE, size)),
    self() ! {slice, ets:first(?TABLE), refresh, Pause},
    {noreply, State};
handle_info({slice, First, Message, Pause}, State) ->
    case slice(First, Message, ?SLICE) of
        '$end_of_table' ->
            ok;
        Next ->
            _ = erlang:send_after(Pause, self(), {slice, Next, Message, Pause}),
            ok
    end,
    {noreply, State};
handle_info(_Message, State) ->
    {noreply, State}.

slice('$end_of_table', _Message, _Left) ->
    '$end_of_table';
slice(Key, _Message, 0) ->
    Key;
slice(Key, Message, Left) ->
    Next = ets:next(?TABLE, Key),
    case ets:lookup(?TABLE, Key) of
        [{_, Pid, _} = Entry] ->
            _ =
                case is_process_alive(Pid) of
                    true -> Pid ! {emqx_redis_storage, Message};
                    false -> ets:delete_object(?TABLE, Entry)
                end,
            ok;
        [] ->
            ok
    end,
    slice(Next, Message, Left - 1).
