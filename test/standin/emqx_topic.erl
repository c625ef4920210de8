-module(emqx_topic).

-export([parse/2, match/2, make_shared_record/2]).

-include("emqx_standin.hrl").

%% As a client writes a filter; raises where it is none.
parse(<<"$queue/", Filter/binary>>, Options) -> {share(<<"$queue">>, Filter, Options), Options};
parse(<<"$share/", Rest/binary>>, Options) ->
    [Group, Filter] = binary:split(Rest, <<"/">>),
    {share(Group, Filter, Options), Options};
parse(#share{} = Share, Options) -> {Share, Options};
parse(<<_, _/binary>> = Filter, Options) -> {Filter, Options}.

%% MQTT 5.0 section 3.8.3.1: No Local does not go with a shared subscription.
share(Group, Filter, Options) when not is_map_key(nl, Options); map_get(nl, Options) =:= 0 ->
    make_shared_record(Group, Filter).

make_shared_record(Group, Filter) -> #share{group = Group, topic = Filter}.

match(<<$$, _/binary>>, <<First, _/binary>>) when First =:= $+; First =:= $# -> false;
match(Topic, Filter) -> match_levels(levels(Topic), levels(Filter)).

match_levels(_, [<<"#">>]) -> true;
match_levels([_ | Levels], [<<"+">> | Filter]) -> match_levels(Levels, Filter);
match_levels([Level | Levels], [Level | Filter]) -> match_levels(Levels, Filter);
match_levels([], []) -> true;
match_levels(_, _) -> false.

levels(Topic) -> binary:split(Topic, <<"/">>, [global]).
