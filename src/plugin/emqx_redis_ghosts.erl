%% Subscriptions whose client has no session any more: it has expired while no node held it. The first
%% message that would be stored for one finds it, and it is deleted here, beside the publisher.
-module(emqx_redis_ghosts).

-behaviour(gen_server).

-export([start_link/0, forget/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

%% As `emqx_redis_subscription:match_subscriptions/1' answers them.
-type subscription() :: {Filter :: binary(), emqx_redis_session:client_id(), Options :: term()}.

-define(BATCH, 1000).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

-spec forget([subscription()]) -> ok.
forget(Subscriptions) -> gen_server:cast(?MODULE, {forget, Subscriptions}).

init([]) -> {ok, none}.

handle_call(_Request, _From, State) -> {reply, {error, unknown_call}, State}.

%% Deleted is what was found and nothing else: a client that has come back meanwhile has a session of
%% another instance. What fails now is found again.
handle_cast({forget, Subscriptions}, State) ->
    {Now, _} = lists:split(min(?BATCH, length(Subscriptions)), Subscriptions),
    case emqx_redis_subscription:delete_subscriptions(Now) of
        ok -> emqx_redis_plugin_stats:count(ghosts_deleted, length(Now));
        {error, _} -> ok
    end,
    {noreply, State}.

handle_info(_Message, State) -> {noreply, State}.
