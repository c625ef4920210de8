%% What every contestant of the benchmark stores and asks for.
-module(emqx_redis_bench_data).

-export([client/1, client_count/0, session/0]).
-export([message/1, message_id/1, queue_client/1, queue_client_count/0, queue_length/0]).
-export([filters/0, topic/1, node_name/0]).

-define(CLIENTS, 10000).
-define(QUEUE_CLIENTS, 100).
-define(QUEUE_LENGTH, 100).
-define(DEVICES, 5000).
-define(SITES, 100).

%% The client that operation N is about.
client(N) ->
    <<"client-", (integer_to_binary(100000 + N rem ?CLIENTS))/binary>>.

client_count() ->
    ?CLIENTS.

%% A session of 1 KB when encoded: a few facts about the client and its subscriptions. Made once, so
%% that no contestant pays for making it.
session() ->
    case persistent_term:get(?MODULE, undefined) of
        undefined ->
            persistent_term:put(?MODULE, make_session()),
            session();
        Session ->
            Session
    end.

make_session() ->
    #{
        clean_start => false,
        created_at => 1700000000000,
        expiry_interval => 7200,
        proto_ver => 5,
        receive_maximum => 32,
        username => <<"meter-fleet-7">>,
        peerhost => <<"203.0.113.17">>,
        subscriptions => maps:from_list([
            {<<"site/", (integer_to_binary(I))/binary, "/device/+/temperature/#">>, #{
                qos => 1, nl => 0, rap => 1, rh => 0
            }}
         || I <- lists:seq(10, 21)
        ])
    }.

%% A message of 256 B when encoded.
message(N) ->
    #{
        id => message_id(N),
        qos => 1,
        from => <<"meter-4711">>,
        topic => <<"site/17/device/4711/temperature">>,
        timestamp => 1700000000000 + N,
        flags => #{retain => false, dup => false},
        payload =>
            <<"{\"t\":21.4,\"h\":48.2,\"seq\":1234567,\"unit\":\"C\",\"state\":\"ok\",\"battery\":87}">>
    }.

%% 16 bytes, as EMQX's are.
message_id(N) ->
    <<16#00063a1c5e7d9f02:64, N:64>>.

%% The client whose waiting messages operation N asks for.
queue_client(N) ->
    client(N rem ?QUEUE_CLIENTS).

queue_client_count() ->
    ?QUEUE_CLIENTS.

queue_length() ->
    ?QUEUE_LENGTH.

%% 10,000 filters, of which three match any topic(N).
filters() ->
    [<<"site/+/device/", (integer_to_binary(I))/binary, "/#">> || I <- lists:seq(0, ?DEVICES - 1)] ++
        [
            <<"site/", (site(I))/binary, "/device/", (integer_to_binary(I))/binary, "/+">>
         || I <- lists:seq(0, ?DEVICES - ?SITES - 1)
        ] ++
        [<<"site/", (site(I))/binary, "/#">> || I <- lists:seq(0, ?SITES - 1)].

topic(N) ->
    Device = N rem (?DEVICES - ?SITES),
    <<"site/", (site(Device))/binary, "/device/", (integer_to_binary(Device))/binary, "/temperature">>.

node_name() ->
    'emqx@10.0.0.1'.

site(Device) ->
    integer_to_binary(Device rem ?SITES).
