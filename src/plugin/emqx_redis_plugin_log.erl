%% What the plugin logs: at most some lines a second, since what goes wrong for one client goes wrong for all.
-module(emqx_redis_plugin_log).

-export([init/0, log/3]).

-define(KEY, ?MODULE).
-define(LINES_A_SECOND, 10).

-spec init() -> ok.
init() ->
    case persistent_term:get(?KEY, undefined) of
        undefined -> persistent_term:put(?KEY, atomics:new(3, []));
        _ -> ok
    end.

-spec log(error | warning | info, iodata(), term()) -> ok.
log(Level, What, Reason) ->
    Counters = persistent_term:get(?KEY),
    Second = erlang:monotonic_time(second),
    case atomics:exchange(Counters, 1, Second) of
        Second -> ok;
        _ -> atomics:put(Counters, 2, 0)
    end,
    case atomics:add_get(Counters, 2, 1) of
        Line when Line =< ?LINES_A_SECOND ->
            Suppressed = atomics:exchange(Counters, 3, 0),
            Fields =
                [{<<"reason">>, unicode:characters_to_binary(io_lib:format("~0P", [Reason, 30]))}] ++
                    [{<<"suppressed">>, integer_to_list(Suppressed)} || Suppressed > 0],
            emqx_redis_log:log(atom_to_binary(Level), <<"plugin">>, iolist_to_binary(What), Fields);
        _ ->
            atomics:add(Counters, 3, 1)
    end.
