%% A message of EMQX as it is stored, and back.
%%
%% It is stored as a map with the keys of `emqx_message:to_map/1', but for its time, which is at the key
%% `published_at' (milliseconds): its place in a client's queue is given by the time of storing, so that a
%% broker whose clock is wrong reorders nothing.
-module(emqx_redis_stored_message).

-export([encode/1, encode_held/1, decode/1, ttl/1, ttl_left/1, group_queue/2]).

-type message() :: emqx_redis_broker:message().

-spec encode(message()) -> emqx_redis_message:message().
encode(Message) ->
    {PublishedAt, Map} = maps:take(timestamp, emqx_redis_broker:message_to_map(Message)),
    Map#{published_at => PublishedAt, headers := headers(maps:get(headers, Map))}.

%% One that a session holds for its client, as it was before that: its place in the queue is given by the
%% time of its publication, since others were stored after it.
-spec encode_held(message()) -> emqx_redis_message:message().
encode_held(Message) ->
    #{published_at := PublishedAt, headers := Headers, flags := Flags} = Encoded = encode(Message),
    Plain = maps:map(
        fun
            (properties, Properties) -> maps:remove('Subscription-Identifier', Properties);
            (_, Value) -> Value
        end,
        maps:without([deliver_begin_at], Headers)
    ),
    Encoded#{timestamp => PublishedAt, headers := Plain, flags := Flags#{dup => false}, extra := #{}}.

%% What stands for this very node and moment has no meaning elsewhere.
headers(Headers) ->
    maps:filter(fun(_, Value) -> is_storable(Value) end, Headers).

is_storable(Value) when is_function(Value); is_port(Value); is_pid(Value); is_reference(Value) -> false;
is_storable(Value) when is_map(Value) ->
    is_storable(maps:keys(Value)) andalso is_storable(maps:values(Value));
is_storable(Value) when is_tuple(Value) -> is_storable(tuple_to_list(Value));
is_storable([Head | Tail]) -> is_storable(Head) andalso is_storable(Tail);
is_storable(_) -> true.

-spec decode(emqx_redis_message:message()) -> {ok, message()} | error.
decode(Stored) ->
    try
        {PublishedAt, Map} = maps:take(published_at, Stored),
        {ok, emqx_redis_broker:message_from_map(Map#{timestamp => PublishedAt})}
    catch
        error:_ -> error
    end.

%% How long it may be kept, in seconds: its Message Expiry Interval (MQTT 5.0 section 3.3.2.3.3), or else what
%% is configured.
-spec ttl(message()) -> pos_integer() | undefined.
ttl(Message) ->
    case emqx_redis_broker:header(properties, Message, #{}) of
        #{'Message-Expiry-Interval' := Seconds} when is_integer(Seconds) -> max(1, Seconds);
        _ -> undefined
    end.

%% The same for one that was published a while ago; 0 where it has expired.
-spec ttl_left(message()) -> non_neg_integer() | undefined.
ttl_left(Message) ->
    case ttl(Message) of
        undefined ->
            undefined;
        Seconds ->
            Age = erlang:system_time(millisecond) - emqx_redis_broker:published_at(Message),
            max(0, Seconds - max(0, Age) div 1000)
    end.

%% The name of the queue of a shared group. No client has it: a client id holds no null character
%% (MQTT 5.0 section 1.5.4).
-spec group_queue(Group :: binary(), Filter :: binary()) -> binary().
group_queue(Group, Filter) -> <<0, "$share/", Group/binary, "/", Filter/binary>>.
