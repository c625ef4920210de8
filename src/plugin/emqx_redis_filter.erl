%% Topic filters as clients write them (MQTT 5.0 sections 4.7 and 4.8).
-module(emqx_redis_filter).

-export([group/1, example/1]).

%% The shared group of a filter, and its filter within that.
-spec group(binary()) -> {Group :: binary(), Filter :: binary()} | none.
group(<<"$share/", Rest/binary>>) ->
    case binary:split(Rest, <<"/">>) of
        [Group, Filter] -> {Group, Filter};
        [_] -> none
    end;
group(_Filter) ->
    none.

%% A topic name that the filter matches.
-spec example(binary()) -> binary().
example(Filter) ->
    Real =
        case group(Filter) of
            {_Group, Within} -> Within;
            none -> Filter
        end,
    Levels = [name(Level) || Level <- binary:split(Real, <<"/">>, [global])],
    iolist_to_binary(lists:join(<<"/">>, Levels)).

name(<<"+">>) -> <<"x">>;
name(<<"#">>) -> <<"x">>;
name(Level) -> Level.
