%% What comes to `logger' while a test looks, whatever its level.
%%
%%     ok = emqx_redis_test_log:start(),
%%     ...
%%     Lines = emqx_redis_test_log:stop().
-module(emqx_redis_test_log).

-export([start/0, lines/0, stop/0]).
-export([log/2]).

%% The table belongs to the caller: both end together.
-spec start() -> ok.
start() ->
    ?MODULE = ets:new(?MODULE, [named_table, public, ordered_set]),
    #{level := Level} = logger:get_primary_config(),
    true = ets:insert(?MODULE, {level, Level}),
    ok = logger:add_handler(?MODULE, ?MODULE, #{}),
    logger:set_primary_config(level, debug).

%% Formatted, in the order in which they came.
-spec lines() -> [binary()].
lines() ->
    [Line || {Number, Line} <- ets:tab2list(?MODULE), is_integer(Number)].

-spec stop() -> [binary()].
stop() ->
    ok = logger:set_primary_config(level, ets:lookup_element(?MODULE, level, 2)),
    ok = logger:remove_handler(?MODULE),
    Lines = lines(),
    true = ets:delete(?MODULE),
    Lines.

%% A handler of logger.
-spec log(logger:log_event(), logger:handler_config()) -> ok.
log(Event, _Config) ->
    Line = unicode:characters_to_binary(logger_formatter:format(Event, #{single_line => true})),
    true = ets:insert(?MODULE, {erlang:unique_integer([monotonic]), Line}),
    ok.
