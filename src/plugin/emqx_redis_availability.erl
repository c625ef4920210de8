%% Whether Redis is there, and what the broker does where it is not.
%%
%% `mqtt.when_unavailable = reject' (the default): nothing is promised that can't be kept. `degrade': EMQX
%% works as without this plugin, an alarm says so, and what sessions have become meanwhile is written when
%% Redis is back.
-module(emqx_redis_availability).

-behaviour(gen_server).

-export([start_link/0, refuses/0, tolerates/1, policy/0, is_available/0, unstored/0]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-define(KEY, ?MODULE).
-define(ALARM, emqx_redis_storage_unavailable).
-define(INTERVAL, 500).
-define(UNSTORED, {?MODULE, unstored}).
%% How long a message may be on its way to sessions, in milliseconds.
-define(ROUTED_AFTER, 5000).
%% Not oftener than that.
-define(MADE_GOOD_EACH, 30000).

-type policy() :: reject | degrade.

-record(state, {
    was_connected = true :: boolean(),
    made_good = never :: never | integer()
}).

-spec start_link() -> gen_server:start_ret().
start_link() -> gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

-spec policy() -> policy().
policy() ->
    case emqx_redis_storage:config() of
        #{mqtt := #{when_unavailable := <<"degrade">>}} -> degrade;
        _ -> reject
    end.

-spec is_available() -> boolean().
is_available() -> element(1, persistent_term:get(?KEY, {true, reject})).

%% Whether connections that need the storage are turned away at once.
-spec refuses() -> boolean().
refuses() -> persistent_term:get(?KEY, {true, reject}) =:= {false, reject}.

%% Whether to go on in spite of an error. That another node has the session is no matter of Redis being away.
-spec tolerates(term()) -> boolean().
tolerates({unavailable, _}) -> degrades();
tolerates({unknown, _}) -> degrades();
tolerates({not_durable, _}) -> degrades();
tolerates({redis, _, _}) -> degrades();
tolerates(timeout) -> degrades();
tolerates(overloaded) -> degrades();
%% Among others `stopped': EMQX is stopping, see `emqx_redis_plugin:unhook/0'.
tolerates(_Reason) -> false.

%% A message went on unstored: when Redis is there, sessions of all nodes that have it by then store it.
-spec unstored() -> ok.
unstored() -> atomics:put(persistent_term:get(?UNSTORED), 1, 1).

degrades() ->
    is_pid(whereis(?MODULE)) andalso
        element(2, persistent_term:get(?KEY, {true, reject})) =:= degrade.

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

init([]) ->
    process_flag(trap_exit, true),
    %% Until it is known to be away, requests wait for it.
    persistent_term:put(?KEY, {true, policy()}),
    persistent_term:put(?UNSTORED, atomics:new(1, [])),
    _ = erlang:send_after(?INTERVAL, self(), look),
    {ok, #state{}}.

handle_call(_Request, _From, State) -> {reply, {error, unknown_call}, State}.

handle_cast(_Request, State) -> {noreply, State}.

handle_info(look, #state{was_connected = Was} = State) ->
    _ = erlang:send_after(?INTERVAL, self(), look),
    %% EMQX takes all collectors out when its own settings of Prometheus change.
    ok = emqx_redis_prometheus:register(),
    Is = is_connected(),
    Now = {Is, policy()},
    persistent_term:get(?KEY) =:= Now orelse persistent_term:put(?KEY, Now),
    changed(Was, Is),
    {noreply, make_good(State#state{was_connected = Is})};
handle_info(unstored, State) ->
    emqx_redis_owned:tell_everywhere({compare, missing}),
    {noreply, State};
handle_info(_Message, State) ->
    {noreply, State}.

terminate(_Reason, _State) ->
    emqx_redis_broker:deactivate_alarm(?ALARM).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

is_connected() -> maps:get(connected, emqx_redis_storage:status(), false).

make_good(#state{was_connected = IsConnected, made_good = MadeGood} = State) ->
    Now = erlang:monotonic_time(millisecond),
    IsTime = IsConnected andalso (MadeGood =:= never orelse Now - MadeGood >= ?MADE_GOOD_EACH),
    case IsTime andalso atomics:exchange(persistent_term:get(?UNSTORED), 1, 0) of
        1 ->
            _ = erlang:send_after(?ROUTED_AFTER, self(), unstored),
            State#state{made_good = Now};
        _ ->
            State
    end.

changed(Same, Same) ->
    ok;
changed(true, false) ->
    Details = #{servers => maps:get(servers, emqx_redis_storage:status(), []), policy => policy()},
    emqx_redis_broker:activate_alarm(?ALARM, Details, message(policy()));
changed(false, true) ->
    emqx_redis_broker:deactivate_alarm(?ALARM),
    %% What could not be written meanwhile; all of it, as some may have expired in Redis.
    emqx_redis_owned:tell_all(rewrite),
    emqx_redis_hook_keeper:adopt_all().

message(reject) -> <<"Redis is away: what needs it to be stored is refused">>;
message(degrade) -> <<"Redis is away: sessions and messages are lost with their node until it is back">>.
