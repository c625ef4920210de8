%% Keeps the plugin's hooks registered. EMQX forgets them where its own process for hooks is started anew,
%% and where the node joins a cluster.
-module(emqx_redis_hook_keeper).

-behaviour(gen_server).

-export([start_link/0, adopt_all/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-define(RETRY, 20).
-define(ADOPT_AGAIN, 5000).
%% How long a channel may take to hear of it.
-define(HEARD_AFTER, 1000).
%% So many channels are asked at a time, with so many milliseconds between.
-define(SLICE, 100).
-define(PAUSE, 20).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Sessions that are in memory and not in Redis are written: those from before the plugin, and those that
%% could not be written while Redis was away.
-spec adopt_all() -> ok.
adopt_all() -> gen_server:cast(?MODULE, adopt_all).

init([]) ->
    %% The table of subscriptions is read from its first use on.
    _ = emqx_redis_subscription:match_subscriptions(<<"$redis_storage/start">>),
    {noreply, Monitor} = register_hooks(),
    {ok, Monitor}.

handle_call(_Request, _From, Monitor) -> {reply, {error, unknown_call}, Monitor}.

handle_cast(adopt_all, Monitor) ->
    self() ! {adopt, emqx_redis_broker:all_channels()},
    {noreply, Monitor};
handle_cast(_Request, Monitor) ->
    {noreply, Monitor}.

handle_info({'DOWN', Monitor, process, _, _}, Monitor) -> register_hooks();
handle_info(retry, none) -> register_hooks();
handle_info(adopt_again, Monitor) ->
    adopt_all(),
    {noreply, Monitor};
handle_info(all_told, Monitor) ->
    emqx_redis_reconcile:all_told(),
    %% What was published here without the plugin is in sessions of other nodes too.
    emqx_redis_owned:tell_everywhere({compare, missing}),
    {noreply, Monitor};
handle_info({adopt, []}, Monitor) ->
    _ = erlang:send_after(?HEARD_AFTER, self(), all_told),
    {noreply, Monitor};
handle_info({adopt, Channels}, Monitor) ->
    {Some, Others} = lists:split(min(?SLICE, length(Channels)), Channels),
    _ = [Pid ! {emqx_redis_storage, adopt} || Pid <- Some],
    _ = erlang:send_after(?PAUSE, self(), {adopt, Others}),
    {noreply, Monitor};
handle_info(_Message, Monitor) -> {noreply, Monitor}.

register_hooks() ->
    try
        Monitor = emqx_redis_broker:monitor_hooks(),
        ok = emqx_redis_hooks:register(),
        ok = emqx_redis_broker:register_command(redis_storage, {emqx_redis_cli, run}),
        adopt_all(),
        %% And those that were being opened just then.
        _ = erlang:send_after(?ADOPT_AGAIN, self(), adopt_again),
        {noreply, Monitor}
    catch
        %% It is not there again yet, or gone once more.
        _:_ ->
            _ = erlang:send_after(?RETRY, self(), retry),
            {noreply, none}
    end.
