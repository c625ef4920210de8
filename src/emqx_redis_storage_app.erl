%% The application. It starts although Redis is unreachable: connections are made in the background.
-module(emqx_redis_storage_app).

-behaviour(application).

-export([start/2, stop/1]).

start(_Type, _Args) ->
    {module, emqx_redis_nif} = code:ensure_loaded(emqx_redis_nif),
    emqx_redis_storage_sup:start_link().

%% The engine has ended by now. Without this, a plugin that is loaded again (`code:purge',
%% `code:load_file') would find the library in use and fail to load it.
stop(_State) ->
    code:delete(emqx_redis_nif),
    code:purge(emqx_redis_nif),
    ok.
