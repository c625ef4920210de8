%% The application. It starts although Redis is unreachable: connections are made in the background.
-module(emqx_redis_storage_app).

-behaviour(application).

-export([start/2, prep_stop/1, stop/1]).
-export([on_config_changed/2, on_health_check/1]).
-export([load_library/0]).

start(_Type, _Args) ->
    case emqx_redis_plugin:check_broker() of
        ok -> emqx_redis_storage_sup:start_link();
        {error, _} = Error -> Error
    end.

%% While everything still runs.
prep_stop(State) ->
    ok = emqx_redis_plugin:unhook(),
    State.

%% EMQX asks on every node of the cluster, also where the plugin is stopped, whether a new configuration may
%% be. Where it runs it is applied, and no request is dropped.
-spec on_config_changed(Old :: map(), New :: map()) -> ok | {error, binary()}.
on_config_changed(_Old, New) -> emqx_redis_plugin:change_config(New).

%% Shown in the Dashboard and by `emqx ctl plugins describe'.
-spec on_health_check(map()) -> ok | {error, binary()}.
on_health_check(_Options) -> emqx_redis_plugin:health().

%% The engine has ended by now. Without this, a plugin that is loaded again (`code:purge',
%% `code:load_file') would find the library in use and fail to load it.
stop(_State) ->
    code:delete(emqx_redis_nif),
    purge(250).

%% A caller may be in the library still, on a dirty scheduler, with a large request; it is about to be
%% told that the storage was stopped. `code:purge' would kill it.
purge(0) ->
    code:purge(emqx_redis_nif),
    ok;
purge(Attempts) ->
    case code:soft_purge(emqx_redis_nif) of
        true ->
            ok;
        false ->
            timer:sleep(20),
            purge(Attempts - 1)
    end.

%% Releases run in embedded mode, where a module is not loaded when it is called.
-spec load_library() -> ok.
load_library() ->
    case code:ensure_loaded(emqx_redis_nif) of
        {module, emqx_redis_nif} ->
            ok;
        {error, embedded} ->
            {module, emqx_redis_nif} = code:load_file(emqx_redis_nif),
            ok
    end.
