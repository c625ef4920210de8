%% What every contestant of the benchmark stores and asks for.
-module(emqx_redis_bench_data).

-export([client/1, client_count/0, session/0]).
-export([message/1, message_id/1, queue_client/1, queue_client_count/0, queue_length/0]).
-export([filters/0, topic/1, node_name/0]).
-export([filters/1, name/3, results/1]).

-define(CLIENTS, 10000).
-define(QUEUE_CLIENTS, 100).
-define(QUEUE_LENGTH, 100).
-define(DEVICES, 5000).
-define(SITES, 100).
%% Of the filters of which many match.
-define(LEVELS, 7).

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

%% So many filters, at least 1,000, of which as many match name(What, N, Size) as results(What) says.
filters(Size) ->
    Devices = lists:seq(0, Size div 2 - 1),
    Others = lists:seq(0, devices(Size) - 1),
    Sites = lists:seq(0, ?SITES - 1),
    [<<"site/+/device/", (integer_to_binary(I))/binary, "/#">> || I <- Devices] ++
        [<<"site/", (site(I))/binary, "/device/", (integer_to_binary(I))/binary, "/+">> || I <- Others] ++
        [<<"site/", (site(I))/binary, "/#">> || I <- Sites] ++
        [<<"site/", (site(I))/binary, "/status">> || I <- Sites] ++
        fan(?LEVELS).

%% A filter for each way to have `+' or not at each level.
fan(0) -> [<<"fan">>];
fan(Levels) -> [<<Filter/binary, Level/binary>> || Filter <- fan(Levels - 1), Level <- [<<"/x">>, <<"/+">>]].

results(none) -> 0;
results(two) -> 2;
results(three) -> 3;
results(many) -> 1 bsl ?LEVELS.

name(none, N, _Size) ->
    <<"site/new-", (site(N))/binary, "/device/new-", (integer_to_binary(N))/binary, "/temperature">>;
%% An exact filter and a wildcard.
name(two, N, _Size) ->
    <<"site/", (site(N))/binary, "/status">>;
name(three, N, Size) ->
    Device = N rem devices(Size),
    <<"site/", (site(Device))/binary, "/device/", (integer_to_binary(Device))/binary, "/temperature">>;
name(many, _N, _Size) ->
    <<"fan", (binary:copy(<<"/x">>, ?LEVELS))/binary>>.

%% Those that have a filter of their own at their site.
devices(Size) ->
    Size - Size div 2 - 2 * ?SITES - (1 bsl ?LEVELS).
