%% Reads the demo's input file, whose head explains its lines, and says what must come out in the end. This
%% knows nothing of the library: it matches topics in its own, simple way.
-module(emqx_redis_demo_input).

-export([read/2, filters/1, receivers/2, matching_filters/2]).

-export_type([input/0, client_id/0, filter/0, topic/0, publish_number/0, message/0]).

-type client_id() :: binary().
-type filter() :: binary().
-type topic() :: binary().
%% Publishes are numbered from 1 in the order of the file, which is the order of their times.
-type publish_number() :: pos_integer().
-type session() :: #{client_id := client_id(), subscriptions := #{filter() => map()}, atom() => term()}.
-type message() :: #{id := binary(), topic := topic(), from := binary(), atom() => term()}.
-type input() :: #{
    sessions := #{client_id() => session()},
    publishes := [{publish_number(), message()}]
}.

%% With no more than the first `Limit' publishes.
-spec read(file:filename(), pos_integer() | all) -> input().
read(File, Limit) ->
    {ok, Text} = file:read_file(File),
    Start = #{start => 0, limit => Limit, number => 1, client => none, sessions => #{}, publishes => []},
    Read = lists:foldl(fun line/2, Start, binary:split(Text, <<"\n">>, [global])),
    #{sessions := Sessions, publishes := Publishes} = Read,
    #{sessions => Sessions, publishes => lists:reverse(Publishes)}.

line(<<>>, Read) ->
    Read;
line(<<"#", _/binary>>, Read) ->
    Read;
line(<<"start ", Time/binary>>, Read) ->
    Read#{start := calendar:rfc3339_to_system_time(binary_to_list(Time), [{unit, millisecond}])};
line(<<"session ", Rest/binary>>, Read = #{sessions := Sessions}) ->
    [ClientId, Kind, KeepAlive, Expiry] = binary:split(Rest, <<" ">>, [global]),
    Session = #{
        client_id => ClientId,
        kind => Kind,
        keep_alive => binary_to_integer(KeepAlive),
        expiry_interval => binary_to_integer(Expiry),
        clean_start => false,
        will => undefined,
        subscriptions => #{}
    },
    Read#{client := ClientId, sessions := Sessions#{ClientId => Session}};
line(<<"sub ", Rest/binary>>, Read = #{client := ClientId, sessions := Sessions}) ->
    [Qos, Filter] = binary:split(Rest, <<" ">>),
    #{ClientId := Session = #{subscriptions := Subscriptions}} = Sessions,
    Options = #{qos => binary_to_integer(Qos), no_local => false, retain_as_published => false},
    Subscribed = Session#{subscriptions := Subscriptions#{Filter => Options}},
    Read#{sessions := Sessions#{ClientId := Subscribed}};
line(<<"pub ", _/binary>>, Read = #{number := Number, limit := Limit}) when Number > Limit ->
    Read;
line(<<"pub ", Rest/binary>>, Read = #{start := Start, number := Number, publishes := Publishes}) ->
    [Time, <<Qos>>, From, Topic, Payload] = split(Rest, 5),
    Timestamp = Start + binary_to_integer(Time),
    Message = #{
        id => message_id(Timestamp, Number),
        timestamp => Timestamp,
        qos => Qos - $0,
        from => From,
        topic => Topic,
        payload => Payload,
        flags => #{retain => false, dup => false},
        headers => #{properties => #{'Message-Expiry-Interval' => 86400}, protocol => mqtt}
    },
    Read#{number := Number + 1, publishes := [{Number, Message} | Publishes]}.

split(Text, 1) ->
    [Text];
split(Text, Parts) ->
    [First, Rest] = binary:split(Text, <<" ">>),
    [First | split(Rest, Parts - 1)].

%% 16 raw bytes, as EMQX makes them: microseconds, a node's number, a counter.
message_id(Timestamp, Number) ->
    <<(Timestamp * 1000):64, 16#3A25:48, Number:16>>.

%% Every filter that somebody subscribed to, each once.
-spec filters(input()) -> [filter()].
filters(#{sessions := Sessions}) ->
    lists:usort([Filter || #{subscriptions := Map} <- maps:values(Sessions), Filter <- maps:keys(Map)]).

%% For each topic the clients that have a subscription that matches it (MQTT 5.0 section 4.7), each once.
-spec receivers(input(), [topic()]) -> #{topic() => [client_id()]}.
receivers(Input = #{sessions := Sessions}, Topics) ->
    Subscribers = maps:fold(
        fun(ClientId, #{subscriptions := Subscriptions}, All) ->
            lists:foldl(
                fun(Filter, Map) -> Map#{Filter => [ClientId | maps:get(Filter, Map, [])]} end,
                All,
                maps:keys(Subscriptions)
            )
        end,
        #{},
        Sessions
    ),
    maps:map(
        fun(_Topic, Filters) -> lists:usort(lists:append([maps:get(F, Subscribers) || F <- Filters])) end,
        matching_filters(filters(Input), Topics)
    ).

%% For each topic the filters that match it: every filter is tried.
-spec matching_filters([filter()], [topic()]) -> #{topic() => [filter()]}.
matching_filters(Filters, Topics) ->
    Split = [{Filter, levels(Filter)} || Filter <- Filters],
    maps:from_list([
        {Topic, [Filter || {Filter, Levels} <- Split, matches_name(Levels, levels(Topic))]}
     || Topic <- lists:usort(Topics)
    ]).

levels(Topic) ->
    binary:split(Topic, <<"/">>, [global]).

%% A wildcard never stands for a first level that begins with `$'.
matches_name([<<"#">> | _], [<<"$", _/binary>> | _]) -> false;
matches_name([<<"+">> | _], [<<"$", _/binary>> | _]) -> false;
matches_name(Filter, Topic) -> matches(Filter, Topic).

matches([<<"#">>], _) -> true;
matches([<<"+">> | Filter], [_ | Topic]) -> matches(Filter, Topic);
matches([Level | Filter], [Level | Topic]) -> matches(Filter, Topic);
matches([], []) -> true;
matches(_, _) -> false.
