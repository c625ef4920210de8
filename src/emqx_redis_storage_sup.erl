%% The owner of the engine and, within EMQX, the plugin.
-module(emqx_redis_storage_sup).

-behaviour(supervisor).

-export([start_link/0]).
-export([init/1]).

-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

init([]) ->
    %% The child reads its configuration itself: a child specification is shown in reports.
    Server = #{
        id => emqx_redis_server,
        start => {emqx_redis_server, start_link, []},
        shutdown => 15000
    },
    Plugin = #{
        id => emqx_redis_plugin,
        start => {emqx_redis_plugin, start_link, []},
        type => supervisor
    },
    Plugins = [Plugin || emqx_redis_broker:is_running()],
    {ok, {#{strategy => one_for_one, intensity => 5, period => 10}, [Server | Plugins]}}.
