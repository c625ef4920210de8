%% MQTT 3.1.1 and 5 on the wire, for the client of the tests and for the broker's stand-in.
%%
%% Packets are tuples, properties a map with the names that EMQX gives them. `Version' is 4 (3.1.1) or 5.
-module(emqx_redis_mqtt_packet).

-export([parse/2, serialize/2]).

-export_type([packet/0, properties/0]).

-type properties() :: #{atom() => term()}.
-type publish() :: #{
    topic := binary(),
    payload := binary(),
    qos := 0..2,
    retain := boolean(),
    dup := boolean(),
    packet_id := 1..65535 | undefined,
    properties := properties()
}.
-type packet() ::
    {connect, #{
        version := 4 | 5,
        clean_start := boolean(),
        keepalive := non_neg_integer(),
        properties := properties(),
        client_id := binary()
    }}
    | {connack, SessionPresent :: boolean(), Code :: byte(), properties()}
    | {publish, publish()}
    | {puback | pubrec | pubrel | pubcomp, PacketId :: 1..65535, Code :: byte()}
    | {subscribe, 1..65535, properties(), [{Filter :: binary(), #{qos | nl | rap | rh => 0..2}}]}
    | {suback | unsuback, 1..65535, Codes :: [byte()]}
    | {unsubscribe, 1..65535, [Filter :: binary()]}
    | {disconnect, Code :: byte(), properties()}
    | pingreq
    | pingresp.

%% The first packet of these bytes, and what follows it. A CONNECT says its version itself.
-spec parse(binary(), 4 | 5) -> {ok, packet(), Rest :: binary()} | more.
parse(<<Type:4, Flags:4, Bytes/binary>>, Version) ->
    case varint(Bytes) of
        {Length, Left} when byte_size(Left) >= Length ->
            <<Body:Length/binary, Rest/binary>> = Left,
            {ok, body(Type, Flags, Body, Version), Rest};
        _ ->
            more
    end;
parse(<<>>, _Version) ->
    more.

-spec serialize(packet(), 4 | 5) -> iodata().
serialize(Packet, Version) ->
    {Type, Flags, Body} = fields(Packet, Version),
    [<<Type:4, Flags:4>>, to_varint(iolist_size(Body)), Body].

%%--------------------------------------------------------------------
%% Reading
%%--------------------------------------------------------------------

%% No user name, no password, no will.
body(1, _, <<4:16, "MQTT", Version, 0:6, CleanStart:1, 0:1, KeepAlive:16, Bytes/binary>>, _) ->
    {Properties, <<Length:16, ClientId:Length/binary>>} = properties(Bytes, Version),
    {connect, #{
        version => Version,
        clean_start => CleanStart =:= 1,
        keepalive => KeepAlive,
        properties => Properties,
        client_id => ClientId
    }};
body(2, _, <<_:7, Present:1, Code, Bytes/binary>>, Version) ->
    {Properties, _} = properties(Bytes, Version),
    {connack, Present =:= 1, Code, Properties};
body(3, Flags, <<Length:16, Topic:Length/binary, Bytes/binary>>, Version) ->
    <<Dup:1, QoS:2, Retain:1>> = <<Flags:4>>,
    {PacketId, Left} =
        case {QoS, Bytes} of
            {0, _} -> {undefined, Bytes};
            {_, <<Id:16, More/binary>>} -> {Id, More}
        end,
    {Properties, Payload} = properties(Left, Version),
    {publish, #{
        topic => Topic,
        payload => Payload,
        qos => QoS,
        retain => Retain =:= 1,
        dup => Dup =:= 1,
        packet_id => PacketId,
        properties => Properties
    }};
body(Type, _, <<PacketId:16, Code, _/binary>>, _) when Type >= 4, Type =< 7 ->
    {acknowledgement(Type), PacketId, Code};
body(Type, _, <<PacketId:16>>, _) when Type >= 4, Type =< 7 ->
    {acknowledgement(Type), PacketId, 0};
body(8, _, <<PacketId:16, Bytes/binary>>, Version) ->
    {Properties, Filters} = properties(Bytes, Version),
    {subscribe, PacketId, Properties, [
        {Filter, #{qos => QoS, nl => NoLocal, rap => AsPublished, rh => Handling}}
     || <<Length:16, Filter:Length/binary, _:2, Handling:2, AsPublished:1, NoLocal:1, QoS:2>> <= Filters
    ]};
body(9, _, <<PacketId:16, Bytes/binary>>, Version) ->
    {_, Codes} = properties(Bytes, Version),
    {suback, PacketId, binary_to_list(Codes)};
body(10, _, <<PacketId:16, Bytes/binary>>, Version) ->
    {_, Filters} = properties(Bytes, Version),
    {unsubscribe, PacketId, [Filter || <<Length:16, Filter:Length/binary>> <= Filters]};
body(11, _, <<PacketId:16, Bytes/binary>>, Version) ->
    {_, Codes} = properties(Bytes, Version),
    {unsuback, PacketId, binary_to_list(Codes)};
body(12, _, <<>>, _) ->
    pingreq;
body(13, _, <<>>, _) ->
    pingresp;
body(14, _, <<>>, _) ->
    {disconnect, 0, #{}};
body(14, _, <<Code, Bytes/binary>>, Version) ->
    {Properties, _} = properties(Bytes, Version),
    {disconnect, Code, Properties}.

acknowledgement(Type) -> lists:nth(Type - 3, [puback, pubrec, pubrel, pubcomp]).

properties(Bytes, 5) when Bytes =/= <<>> ->
    {Length, Left} = varint(Bytes),
    <<Properties:Length/binary, Rest/binary>> = Left,
    {read_properties(Properties, #{}), Rest};
properties(Bytes, _) ->
    {#{}, Bytes}.

read_properties(<<>>, Read) ->
    Read;
read_properties(<<Id, Bytes/binary>>, Read) ->
    {Id, Name, Type} = lists:keyfind(Id, 1, properties()),
    {Value, Rest} = value(Type, Bytes),
    case {Type, Read} of
        {pair, #{Name := Pairs}} -> read_properties(Rest, Read#{Name := Pairs ++ [Value]});
        {pair, _} -> read_properties(Rest, Read#{Name => [Value]});
        _ -> read_properties(Rest, Read#{Name => Value})
    end.

value(byte, <<Value, Rest/binary>>) -> {Value, Rest};
value(two, <<Value:16, Rest/binary>>) -> {Value, Rest};
value(four, <<Value:32, Rest/binary>>) -> {Value, Rest};
value(varint, Bytes) -> varint(Bytes);
value(binary, <<Length:16, Value:Length/binary, Rest/binary>>) -> {Value, Rest};
value(pair, <<L1:16, Key:L1/binary, L2:16, Value:L2/binary, Rest/binary>>) -> {{Key, Value}, Rest}.

varint(<<0:1, Value:7, Rest/binary>>) ->
    {Value, Rest};
varint(<<1:1, Low:7, Bytes/binary>>) ->
    case varint(Bytes) of
        {High, Rest} -> {High bsl 7 + Low, Rest};
        more -> more
    end;
varint(<<>>) ->
    more.

%%--------------------------------------------------------------------
%% Writing
%%--------------------------------------------------------------------

fields({connect, Connect}, _) ->
    #{version := Version, clean_start := CleanStart, keepalive := KeepAlive} = Connect,
    #{properties := Properties, client_id := ClientId} = Connect,
    Begin = <<4:16, "MQTT", Version, 0:6, (flag(CleanStart)):1, 0:1, KeepAlive:16>>,
    {1, 0, [Begin, to_properties(Properties, Version), string(ClientId)]};
fields({connack, Present, Code, Properties}, Version) ->
    {2, 0, [<<(flag(Present)), Code>>, to_properties(Properties, Version)]};
fields({publish, #{qos := QoS, packet_id := PacketId} = Publish}, Version) ->
    #{topic := Topic, payload := Payload, retain := Retain, dup := Dup, properties := Properties} = Publish,
    <<Flags:4>> = <<(flag(Dup)):1, QoS:2, (flag(Retain)):1>>,
    Id = [<<PacketId:16>> || QoS > 0],
    {3, Flags, [string(Topic), Id, to_properties(Properties, Version), Payload]};
fields({puback, PacketId, Code}, Version) ->
    {4, 0, acknowledge(PacketId, Code, Version)};
fields({pubrec, PacketId, Code}, Version) ->
    {5, 0, acknowledge(PacketId, Code, Version)};
fields({pubrel, PacketId, Code}, Version) ->
    {6, 2, acknowledge(PacketId, Code, Version)};
fields({pubcomp, PacketId, Code}, Version) ->
    {7, 0, acknowledge(PacketId, Code, Version)};
fields({subscribe, PacketId, Properties, Filters}, Version) ->
    {8, 2, [
        <<PacketId:16>>,
        to_properties(Properties, Version)
        | [[string(Filter), options(Options)] || {Filter, Options} <- Filters]
    ]};
fields({suback, PacketId, Codes}, Version) ->
    {9, 0, [<<PacketId:16>>, to_properties(#{}, Version), Codes]};
fields({unsubscribe, PacketId, Filters}, Version) ->
    {10, 2, [<<PacketId:16>>, to_properties(#{}, Version) | [string(Filter) || Filter <- Filters]]};
fields({unsuback, PacketId, Codes}, Version) ->
    {11, 0, [<<PacketId:16>>, to_properties(#{}, Version), [Codes || Version =:= 5]]};
fields(pingreq, _) ->
    {12, 0, []};
fields(pingresp, _) ->
    {13, 0, []};
fields({disconnect, Code, Properties}, 5) ->
    {14, 0, [Code, to_properties(Properties, 5)]};
fields({disconnect, _, _}, _) ->
    {14, 0, []}.

acknowledge(PacketId, Code, 5) when Code > 0 -> <<PacketId:16, Code>>;
acknowledge(PacketId, _Code, _) -> <<PacketId:16>>.

options(Options) ->
    #{qos := QoS, nl := NoLocal, rap := AsPublished, rh := Handling} =
        maps:merge(#{qos => 0, nl => 0, rap => 0, rh => 0}, Options),
    <<0:2, Handling:2, AsPublished:1, NoLocal:1, QoS:2>>.

to_properties(Properties, 5) ->
    Bytes = [to_property(Name, Value) || {Name, Value} <- maps:to_list(Properties)],
    [to_varint(iolist_size(Bytes)), Bytes];
to_properties(_Properties, _) ->
    [].

to_property(Name, Value) ->
    {Id, Name, Type} = lists:keyfind(Name, 2, properties()),
    case Type of
        byte -> <<Id, Value>>;
        two -> <<Id, Value:16>>;
        four -> <<Id, Value:32>>;
        varint -> [Id, to_varint(Value)];
        binary -> [Id, string(Value)];
        pair -> [[Id, string(Key), string(Text)] || {Key, Text} <- Value]
    end.

string(Bytes) -> [<<(byte_size(Bytes)):16>>, Bytes].

to_varint(Value) when Value < 128 -> [Value];
to_varint(Value) -> [128 bor (Value band 127) | to_varint(Value bsr 7)].

flag(true) -> 1;
flag(false) -> 0.

%% MQTT 5.0 section 2.2.2.2.
properties() ->
    [
        {1, 'Payload-Format-Indicator', byte},
        {2, 'Message-Expiry-Interval', four},
        {3, 'Content-Type', binary},
        {8, 'Response-Topic', binary},
        {9, 'Correlation-Data', binary},
        {11, 'Subscription-Identifier', varint},
        {17, 'Session-Expiry-Interval', four},
        {18, 'Assigned-Client-Identifier', binary},
        {19, 'Server-Keep-Alive', two},
        {26, 'Response-Information', binary},
        {28, 'Server-Reference', binary},
        {31, 'Reason-String', binary},
        {33, 'Receive-Maximum', two},
        {34, 'Topic-Alias-Maximum', two},
        {35, 'Topic-Alias', two},
        {36, 'Maximum-QoS', byte},
        {37, 'Retain-Available', byte},
        {38, 'User-Property', pair},
        {39, 'Maximum-Packet-Size', four},
        {40, 'Wildcard-Subscription-Available', byte},
        {41, 'Subscription-Identifier-Available', byte},
        {42, 'Shared-Subscription-Available', byte}
    ].
