%% The clients' channels of this node, and the way of a session from one to another.
-module(emqx_cm).

-behaviour(gen_server).

-export([register_channel/3, insert_channel_info/3, set_chan_info/2, mark_channel_disconnected/1]).
-export([unregister_channel/1, unregister_channel/2]).
-export([lookup_channels/1, lookup_channels/2, do_get_chan_info/2, all_channels/0]).
-export([open_session/3, takeover_session_begin/1, takeover_session_end/1, kick_session/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(CHANNELS, emqx_channel).
-define(CONNECTIONS, emqx_channel_conn).
-define(INFO, emqx_channel_info).
-define(LIVE, emqx_channel_live).
-define(TIMEOUT, 5000).

register_channel(ClientId, Pid, #{conn_mod := Module}) ->
    true = ets:insert(?CONNECTIONS, {Pid, Module, ClientId}),
    ok = gen_server:cast(?MODULE, {registered, Pid}),
    true = ets:insert(?CHANNELS, {ClientId, Pid}),
    ok = emqx_cm_registry:register_channel({ClientId, Pid}),
    true = ets:insert(?LIVE, {Pid}),
    ok.

insert_channel_info(ClientId, Info, Stats) ->
    true = ets:insert(?INFO, {{ClientId, self()}, Info, Stats}),
    ok.

set_chan_info(ClientId, Info) -> ets:update_element(?INFO, {ClientId, self()}, {2, Info}).

mark_channel_disconnected(Pid) ->
    true = ets:delete(?LIVE, Pid),
    ok.

unregister_channel(ClientId) -> unregister_channel(ClientId, self()).

unregister_channel(ClientId, Pid) ->
    ok = emqx_cm_registry:unregister_channel({ClientId, Pid}),
    true = ets:delete(?CONNECTIONS, Pid),
    true = ets:delete(?INFO, {ClientId, Pid}),
    true = ets:delete_object(?CHANNELS, {ClientId, Pid}),
    ok = emqx_hooks:run('cm.channel.unregistered', [Pid]).

lookup_channels(ClientId) -> lookup_channels(global, ClientId).

lookup_channels(global, ClientId) -> emqx_cm_registry:lookup_channels(ClientId);
lookup_channels(local, ClientId) -> [Pid || {_, Pid} <- ets:lookup(?CHANNELS, ClientId)].

do_get_chan_info(ClientId, Pid) ->
    case ets:lookup(?INFO, {ClientId, Pid}) of
        [{_, Info, _}] -> Info;
        [] -> undefined
    end.

all_channels() -> [Pid || {_, Pid} <- ets:tab2list(?CHANNELS)].

%%--------------------------------------------------------------------
%% A client connects
%%--------------------------------------------------------------------

%% Whether there was a session, the session, and how to end its taking over.
open_session(CleanStart, #{clientid := ClientId} = ClientInfo, ConnInfo) ->
    case lists:all(fun is_process_alive/1, emqx_cm_registry:lookup_all_channels(ClientId)) of
        true ->
            Open = fun() -> do_open_session(CleanStart, ClientInfo, ConnInfo) end,
            emqx_cm_locker:trans(ClientId, Open);
        %% An earlier one is being cleaned up.
        false ->
            {error, client_id_unavailable}
    end.

do_open_session(true, #{clientid := ClientId} = ClientInfo, ConnInfo) ->
    _ = [request(discard, Pid) || Pid <- lookup_channels(ClientId)],
    {ok, false, emqx_session:create(ClientInfo, ConnInfo), none};
do_open_session(false, ClientInfo, ConnInfo) ->
    emqx_session:open(ClientInfo, ConnInfo).

takeover_session_begin(ClientId) ->
    case lists:reverse(lookup_channels(ClientId)) of
        [] ->
            none;
        [Pid | Others] ->
            _ = [request(discard, Other) || Other <- Others],
            case request({takeover, 'begin'}, Pid) of
                {ok, Module, Session} -> {ok, Session, {Module, Pid}};
                error -> none
            end
    end.

takeover_session_end({Module, Pid}) ->
    case request({takeover, 'end'}, Module, Pid) of
        {ok, _, Pending} -> {ok, Pending};
        error -> error
    end.

kick_session(ClientId) ->
    _ = [request(kick, Pid) || Pid <- lookup_channels(ClientId)],
    ok.

request(What, Pid) ->
    case ets:lookup(?CONNECTIONS, Pid) of
        [{_, Module, _}] -> request(What, Module, Pid);
        [] -> error
    end.

request(What, Module, Pid) ->
    try
        {ok, Module, Module:call(Pid, What, ?TIMEOUT)}
    catch
        _:_ ->
            exit(Pid, kill),
            error
    end.

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

init([]) ->
    _ = [ets:new(Table, [named_table, public]) || Table <- [?CONNECTIONS, ?INFO, ?LIVE, emqx_cm_locker]],
    _ = [ets:new(Table, [named_table, public, bag]) || Table <- [?CHANNELS, emqx_cm_registry]],
    {ok, none}.

handle_call(_Request, _From, State) -> {reply, ignored, State}.

handle_cast({registered, Pid}, State) ->
    _ = monitor(process, Pid),
    {noreply, State}.

handle_info({'DOWN', _, process, Pid, _}, State) ->
    _ = mark_channel_disconnected(Pid),
    _ = [unregister_channel(ClientId, Pid) || {_, _, ClientId} <- ets:lookup(?CONNECTIONS, Pid)],
    {noreply, State}.
