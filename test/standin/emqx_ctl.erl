-module(emqx_ctl).

-export([register_command/3, unregister_command/1, lookup_command/1]).

register_command(Name, Function, _Options) ->
    true = ets:insert(?MODULE, {Name, Function}),
    ok.

unregister_command(Name) ->
    true = ets:delete(?MODULE, Name),
    ok.

lookup_command(Name) ->
    case ets:lookup(?MODULE, Name) of
        [{_, Function}] -> {ok, Function};
        [] -> {error, cmd_not_found}
    end.
