%% The plugin in EMQX: its processes, its hooks, its commands. It starts where EMQX runs in the same VM.
-module(emqx_redis_plugin).

-behaviour(supervisor).

-export([check_broker/0, start_link/0, unhook/0, config/0, change_config/1, health/0]).
-export([init/1]).

-spec start_link() -> supervisor:startlink_ret().
start_link() -> supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% With sessions on its own disk EMQX looks at none in memory, and so at none of ours.
-spec check_broker() -> ok | {error, {durable_sessions_enabled, binary()}}.
check_broker() ->
    case emqx_redis_broker:is_running() andalso emqx_redis_broker:durable_sessions() of
        true ->
            Advice = <<"set durable_sessions.enable = false in EMQX to use this plugin">>,
            {error, {durable_sessions_enabled, Advice}};
        false ->
            ok
    end.

%% The configuration that the Dashboard and the API show.
-spec config() -> map().
config() ->
    case emqx_redis_broker:plugin_config() of
        {ok, Config} -> Config;
        {error, Reason} -> erlang:error({no_plugin_config, Reason})
    end.

%% Where EMQX itself stops it stops plugins first and its listeners last. What is published in between must
%% not be acknowledged unstored: then the hooks stay, and refuse.
-spec unhook() -> ok.
unhook() ->
    case is_pid(whereis(?MODULE)) of
        true ->
            _ = supervisor:terminate_child(?MODULE, emqx_redis_hook_keeper),
            emqx_redis_broker:unregister_command(redis_storage),
            ok = emqx_redis_prometheus:deregister(),
            emqx_redis_broker:is_stopping() orelse forget_sessions(),
            ok;
        false ->
            ok
    end.

%% From now on they miss what becomes of their sessions.
forget_sessions() ->
    ok = emqx_redis_hooks:unregister(),
    emqx_redis_session_state:end_run().

-spec change_config(map()) -> ok | {error, binary()}.
change_config(New) ->
    ok = emqx_redis_storage_app:load_library(),
    IsRunning = is_pid(whereis(emqx_redis_server)),
    case emqx_redis_nif:validate({map, New}) of
        {error, Reason} ->
            {error, explain(Reason)};
        {ok, #{enable := false}} when IsRunning ->
            {error, <<"enable: stop the plugin to switch it off">>};
        {ok, _} when IsRunning ->
            case emqx_redis_server:reconfigure({map, New}) of
                ok -> ok;
                {error, Reason} -> {error, explain(Reason)}
            end;
        {ok, _} ->
            ok
    end.

explain({invalid_config, Errors}) ->
    Lines = [
        [Path, ": found ", Found, ", expected ", Expected]
     || #{path := Path, found := Found, expected := Expected} <- Errors
    ],
    unicode:characters_to_binary(lists:join("; ", Lines));
explain(Reason) ->
    unicode:characters_to_binary(io_lib:format("~0p", [Reason])).

-spec health() -> ok | {error, binary()}.
health() ->
    case emqx_redis_storage:status() of
        #{running := true, connected := true} -> ok;
        #{running := true} = Status -> {error, explain({not_connected, maps:get(connections, Status, [])})};
        #{running := false} -> {error, <<"the storage does not run (enable = false?)">>}
    end.

init([]) ->
    case is_pid(whereis(emqx_redis_server)) of
        true -> init(plugin);
        %% `enable = false'.
        false -> ignore
    end;
init(plugin) ->
    ok = emqx_redis_plugin_stats:init(),
    ok = emqx_redis_plugin_log:init(),
    ok = emqx_redis_session_state:begin_run(),
    ok = emqx_redis_reconcile:prepare(),
    Restored = #{
        id => emqx_redis_restored_sup,
        start => {supervisor, start_link, [{local, emqx_redis_restored_sup}, ?MODULE, restored]},
        type => supervisor
    },
    Modules = [
        emqx_redis_owned,
        emqx_redis_connect_lock,
        emqx_redis_availability,
        emqx_redis_discards,
        emqx_redis_ghosts,
        emqx_redis_strays,
        emqx_redis_groups
    ],
    Workers = [worker(Module) || Module <- Modules],
    Acks = [
        #{id => Name, start => {emqx_redis_acks, start_link, [Name]}}
     || Name <- emqx_redis_acks:names()
    ],
    Reconcile = [
        #{id => Name, start => {emqx_redis_reconcile, start_link, [Worker]}}
     || {_, Name} = Worker <- emqx_redis_reconcile:names()
    ],
    %% The last: from then on clients' sessions are kept.
    Children = Workers ++ Acks ++ Reconcile ++ [Restored, worker(emqx_redis_hook_keeper)],
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10}, Children}};
init(restored) ->
    Channel = #{
        id => emqx_redis_restored_channel,
        start => {emqx_redis_restored_channel, start_link, []},
        restart => temporary,
        shutdown => 1000
    },
    {ok, {#{strategy => simple_one_for_one}, [Channel]}}.

worker(Module) -> #{id => Module, start => {Module, start_link, []}}.
