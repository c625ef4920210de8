-module(emqx_alarm).

-export([safe_activate/3, safe_deactivate/1, get_alarms/1]).

safe_activate(Name, Details, Message) ->
    Alarm = #{name => Name, details => Details, message => Message},
    case ets:insert_new(?MODULE, {Name, Alarm}) of
        true -> ok;
        false -> {error, already_existed}
    end.

safe_deactivate(Name) ->
    case ets:take(?MODULE, Name) of
        [_] -> ok;
        [] -> {error, not_found}
    end.

get_alarms(activated) -> [Alarm || {_, Alarm} <- ets:tab2list(?MODULE)].
