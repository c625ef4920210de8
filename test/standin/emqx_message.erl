-module(emqx_message).

-export([make/6, id/1, qos/1, topic/1, from/1, timestamp/1, to_map/1, from_map/1]).
-export([get_header/3, set_header/3, get_flag/3, set_flag/3, is_expired/2, update_expiry/1]).

-include("emqx_standin.hrl").

make(From, QoS, Topic, Payload, Flags, Headers) ->
    #message{
        id = <<(erlang:system_time(microsecond)):64, (erlang:unique_integer([positive, monotonic])):64>>,
        qos = QoS,
        from = From,
        flags = Flags,
        headers = Headers,
        topic = Topic,
        payload = Payload,
        timestamp = erlang:system_time(millisecond)
    }.

id(#message{id = Id}) -> Id.

qos(#message{qos = QoS}) -> QoS.

topic(#message{topic = Topic}) -> Topic.

from(#message{from = From}) -> From.

timestamp(#message{timestamp = Timestamp}) -> Timestamp.

get_header(Name, #message{headers = Headers}, Default) -> maps:get(Name, Headers, Default).

set_header(Name, Value, #message{headers = Headers} = Message) ->
    Message#message{headers = Headers#{Name => Value}}.

get_flag(Name, #message{flags = Flags}, Default) -> maps:get(Name, Flags, Default).

set_flag(Name, Value, #message{flags = Flags} = Message) -> Message#message{flags = Flags#{Name => Value}}.

to_map(#message{} = Message) ->
    maps:from_list(lists:zip(record_info(fields, message), tl(tuple_to_list(Message)))).

%% Every field must be there.
from_map(Map) -> list_to_tuple([message | [maps:get(Field, Map) || Field <- record_info(fields, message)]]).

is_expired(#message{headers = #{properties := #{'Message-Expiry-Interval' := Seconds}}} = Message, _Zone) ->
    age(Message) > Seconds * 1000;
is_expired(Message, Zone) ->
    case emqx_config:get_zone_conf(Zone, [mqtt, message_expiry_interval], infinity) of
        infinity -> false;
        Milliseconds -> age(Message) > Milliseconds
    end.

%% What is left of it (MQTT 5.0 section 3.3.2.3.3).
update_expiry(#message{headers = #{properties := #{'Message-Expiry-Interval' := Seconds} = All}} = Message) ->
    Left = max(1, Seconds - age(Message) div 1000),
    set_header(properties, All#{'Message-Expiry-Interval' := Left}, Message);
update_expiry(Message) ->
    Message.

age(#message{timestamp = Timestamp}) -> max(0, erlang:system_time(millisecond) - Timestamp).
