%% An MQTT client for tests: version 3.1.1 or 5, one process for each client, linked to whoever starts it.
%%
%%     {ok, Client, #{session_present := false}} = connect(#{port => 1883, client_id => <<"c">>}),
%%     [1] = subscribe(Client, <<"a/+">>, 1),
%%     {ok, 0} = publish(Client, <<"a/b">>, <<"hello">>, #{qos => 1}),
%%     [#{payload := <<"hello">>}] = receive_messages(Client, 1),
%%     ok = disconnect(Client).
-module(emqx_redis_mqtt_client).

-behaviour(gen_server).

-export([connect/1, disconnect/1, disconnect/2, drop/1]).
-export([subscribe/3, subscribe/4, unsubscribe/2]).
-export([publish/4, publish_async/4]).
-export([messages/1, receive_messages/2, receive_messages/3, ack/2, pubrels/1, status/1, await_closed/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([client/0, message/0]).

-type client() :: pid().
-type options() :: #{
    port := inet:port_number(),
    client_id := binary(),
    version => 4 | 5,
    %% True unless set.
    clean_start => boolean(),
    %% Session Expiry Interval, in seconds.
    expiry => non_neg_integer(),
    receive_maximum => pos_integer(),
    %% With `manual' PUBACK and PUBREC are sent by ack/2 alone; with `none' PUBCOMP is not sent either.
    acks => auto | manual | none
}.
-type message() :: map().
%% What ended the connection: a DISCONNECT of the server with this reason code, or none.
-type status() :: connected | {disconnected, Code :: byte()} | closed.

-define(PACKET, emqx_redis_mqtt_packet).
-define(TIMEOUT, 15000).

-record(state, {
    socket :: gen_tcp:socket() | closed,
    version :: 4 | 5,
    acks :: auto | manual | none,
    buffer = <<>> :: binary(),
    connack = none :: none | emqx_redis_mqtt_packet:packet(),
    next_id = 1 :: pos_integer(),
    %% Who waits for the answer to a packet.
    calls = #{} :: #{term() => gen_server:from()},
    %% Received and not taken, newest first.
    messages = [] :: [message()],
    pubrels = [] :: [1..65535],
    waiting = none :: none | {pos_integer(), gen_server:from()},
    closed_waiting = [] :: [gen_server:from()],
    status = connected :: status()
}).

%% The client, and what CONNACK says. An error is a reason code other than 0, or `closed'.
-spec connect(options()) ->
    {ok, client(), #{session_present := boolean(), properties := map()}} | {error, byte() | closed}.
connect(Options) ->
    {ok, Client} = gen_server:start_link(?MODULE, Options, []),
    case gen_server:call(Client, connack, ?TIMEOUT) of
        {connack, Present, 0, Properties} ->
            {ok, Client, #{session_present => Present, properties => Properties}};
        {connack, _, Code, _} ->
            gen_server:stop(Client),
            {error, Code};
        {error, _} ->
            gen_server:stop(Client),
            {error, closed}
    end.

-spec disconnect(client()) -> ok.
disconnect(Client) -> disconnect(Client, #{}).

%% Says so; the properties may change the session's expiry.
-spec disconnect(client(), map()) -> ok.
disconnect(Client, Properties) ->
    ok = gen_server:call(Client, {send, {disconnect, 0, Properties}}),
    drop(Client).

%% Closes the socket without a word, and ends the process.
-spec drop(client()) -> ok.
drop(Client) -> gen_server:stop(Client).

%% The options of one filter, or only its QoS; answers its reason code.
-spec subscribe(client(), binary(), 0..2 | map()) -> byte() | {error, status()}.
subscribe(Client, Filter, Options) ->
    case subscribe(Client, [{Filter, options(Options)}], #{}, ?TIMEOUT) of
        [Code] -> Code;
        {error, _} = Error -> Error
    end.

-spec subscribe(client(), [{binary(), 0..2 | map()}], map(), timeout()) -> [byte()] | {error, status()}.
subscribe(Client, Filters, Properties, Timeout) ->
    Packet = {subscribe, Properties, [{Filter, options(Options)} || {Filter, Options} <- Filters]},
    gen_server:call(Client, Packet, Timeout).

options(QoS) when is_integer(QoS) -> #{qos => QoS};
options(Options) -> Options.

-spec unsubscribe(client(), binary()) -> ok | {error, status()}.
unsubscribe(Client, Filter) ->
    case gen_server:call(Client, {unsubscribe, [Filter]}, ?TIMEOUT) of
        Codes when is_list(Codes) -> ok;
        {error, _} = Error -> Error
    end.

%% Waits for PUBACK, or for PUBREC and PUBCOMP, and answers the reason code of the first one.
-spec publish(client(), binary(), binary(), map()) -> {ok, byte()} | {error, status()}.
publish(Client, Topic, Payload, Options) ->
    gen_server:call(Client, publish_request(Topic, Payload, Options), ?TIMEOUT).

%% The same; the answer is awaited with `gen_server:receive_response/2'.
-spec publish_async(client(), binary(), binary(), map()) -> gen_server:request_id().
publish_async(Client, Topic, Payload, Options) ->
    gen_server:send_request(Client, publish_request(Topic, Payload, Options)).

publish_request(Topic, Payload, Options) ->
    Default = #{qos => 0, retain => false, dup => false, properties => #{}},
    {publish, maps:merge(Default, Options#{topic => Topic, payload => Payload})}.

%% What has come since it was last asked for.
-spec messages(client()) -> [message()].
messages(Client) -> gen_server:call(Client, messages).

-spec receive_messages(client(), pos_integer()) -> [message()].
receive_messages(Client, Count) -> receive_messages(Client, Count, ?TIMEOUT).

%% Waits until so many have come, and answers all. Fails with those that came.
-spec receive_messages(client(), pos_integer(), timeout()) -> [message()].
receive_messages(Client, Count, Timeout) ->
    try
        gen_server:call(Client, {messages, Count}, Timeout)
    catch
        exit:{timeout, _} -> error({messages_missing, Count, messages(Client), status(Client)})
    end.

%% PUBACK or PUBREC for a message.
-spec ack(client(), message()) -> ok.
ack(Client, Message) -> gen_server:call(Client, {ack, Message}).

%% Packet ids of all PUBRELs so far.
-spec pubrels(client()) -> [1..65535].
pubrels(Client) -> gen_server:call(Client, pubrels).

-spec status(client()) -> status().
status(Client) -> gen_server:call(Client, status).

%% Waits until the server has closed the connection.
-spec await_closed(client()) -> {disconnected, byte()} | closed.
await_closed(Client) -> gen_server:call(Client, await_closed, ?TIMEOUT).

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

init(#{port := Port, client_id := ClientId} = Options) ->
    Version = maps:get(version, Options, 5),
    State = #state{socket = closed, version = Version, acks = maps:get(acks, Options, auto)},
    Properties = maps:from_list(
        [{'Session-Expiry-Interval', Seconds} || #{expiry := Seconds} <- [Options]] ++
            [{'Receive-Maximum', Maximum} || #{receive_maximum := Maximum} <- [Options]]
    ),
    Connect = #{
        version => Version,
        clean_start => maps:get(clean_start, Options, true),
        keepalive => 0,
        properties => Properties,
        client_id => ClientId
    },
    case gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, true}, {nodelay, true}], 5000) of
        {ok, Socket} -> {ok, send({connect, Connect}, State#state{socket = Socket})};
        {error, _} -> {ok, State#state{status = closed}}
    end.

handle_call(messages, _From, #state{messages = Messages} = State) ->
    {reply, lists:reverse(Messages), State#state{messages = []}};
handle_call(pubrels, _From, #state{pubrels = PubRels} = State) ->
    {reply, lists:reverse(PubRels), State};
handle_call(status, _From, State) ->
    {reply, State#state.status, State};
handle_call(await_closed, From, #state{status = connected, closed_waiting = Waiting} = State) ->
    {noreply, State#state{closed_waiting = [From | Waiting]}};
handle_call(await_closed, _From, State) ->
    {reply, State#state.status, State};
handle_call({messages, Count}, From, State) ->
    {noreply, give_messages(State#state{waiting = {Count, From}})};
handle_call({ack, #{qos := 1, packet_id := Id}}, _From, State) ->
    {reply, ok, send({puback, Id, 0}, State)};
handle_call({ack, #{qos := 2, packet_id := Id}}, _From, State) ->
    {reply, ok, send({pubrec, Id, 0}, State)};
handle_call(connack, _From, #state{connack = Packet} = State) when Packet =/= none ->
    {reply, Packet, State};
handle_call(_Request, _From, #state{status = Status} = State) when Status =/= connected ->
    {reply, {error, Status}, State};
handle_call(connack, From, State) ->
    {noreply, awaiting(connack, From, State)};
handle_call({send, Packet}, _From, State) ->
    {reply, ok, send(Packet, State)};
handle_call({publish, #{qos := 0} = Publish}, _From, State) ->
    {reply, {ok, 0}, send({publish, Publish#{packet_id => undefined}}, State)};
handle_call({publish, Publish}, From, #state{next_id = Id} = State) ->
    Next = awaiting({published, Id}, From, next_id(State)),
    {noreply, send({publish, Publish#{packet_id => Id}}, Next)};
handle_call({subscribe, Properties, Filters}, From, #state{next_id = Id} = State) ->
    Next = awaiting({suback, Id}, From, next_id(State)),
    {noreply, send({subscribe, Id, Properties, Filters}, Next)};
handle_call({unsubscribe, Filters}, From, #state{next_id = Id} = State) ->
    Next = awaiting({unsuback, Id}, From, next_id(State)),
    {noreply, send({unsubscribe, Id, Filters}, Next)}.

handle_cast(_Request, State) -> {noreply, State}.

handle_info({tcp, _, Bytes}, #state{buffer = Buffer} = State) ->
    {noreply, parse(State#state{buffer = <<Buffer/binary, Bytes/binary>>})};
handle_info({tcp_closed, _}, State) ->
    {noreply, closed(State)};
handle_info({tcp_error, _, _}, State) ->
    {noreply, closed(State)}.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

next_id(#state{next_id = Id} = State) -> State#state{next_id = Id rem 65535 + 1}.

awaiting(What, From, #state{calls = Calls} = State) -> State#state{calls = Calls#{What => From}}.

send(Packet, #state{socket = Socket, version = Version} = State) ->
    _ = gen_tcp:send(Socket, ?PACKET:serialize(Packet, Version)),
    State.

parse(#state{buffer = Buffer, version = Version} = State) ->
    case ?PACKET:parse(Buffer, Version) of
        {ok, Packet, Rest} -> parse(handle_packet(Packet, State#state{buffer = Rest}));
        more -> State
    end.

handle_packet({connack, _, _, _} = Packet, State) ->
    answer(connack, Packet, State#state{connack = Packet});
handle_packet({publish, Message}, #state{messages = Messages, acks = Acks} = State) ->
    Acknowledged =
        case Message of
            #{qos := 1, packet_id := Id} when Acks =:= auto -> send({puback, Id, 0}, State);
            #{qos := 2, packet_id := Id} when Acks =:= auto -> send({pubrec, Id, 0}, State);
            _ -> State
        end,
    give_messages(Acknowledged#state{messages = [Message | Messages]});
handle_packet({puback, Id, Code}, State) ->
    answer({published, Id}, {ok, Code}, State);
handle_packet({pubrec, Id, Code}, State) when Code >= 16#80 ->
    answer({published, Id}, {ok, Code}, State);
handle_packet({pubrec, Id, Code}, #state{calls = Calls} = State) ->
    case maps:take({published, Id}, Calls) of
        {From, Left} ->
            send({pubrel, Id, 0}, State#state{calls = Left#{{completed, Id} => {Code, From}}});
        error ->
            State
    end;
handle_packet({pubrel, Id, _}, #state{acks = Acks, pubrels = PubRels} = State) ->
    Next = State#state{pubrels = [Id | PubRels]},
    case Acks of
        none -> Next;
        _ -> send({pubcomp, Id, 0}, Next)
    end;
handle_packet({pubcomp, Id, _}, #state{calls = Calls} = State) ->
    case maps:take({completed, Id}, Calls) of
        {{Code, From}, Left} ->
            gen_server:reply(From, {ok, Code}),
            State#state{calls = Left};
        error ->
            State
    end;
handle_packet({suback, Id, Codes}, State) ->
    answer({suback, Id}, Codes, State);
handle_packet({unsuback, Id, Codes}, State) ->
    answer({unsuback, Id}, Codes, State);
handle_packet({disconnect, Code, _}, State) ->
    State#state{status = {disconnected, Code}};
handle_packet(pingresp, State) ->
    State.

answer(What, Answer, #state{calls = Calls} = State) ->
    case maps:take(What, Calls) of
        {From, Left} ->
            gen_server:reply(From, Answer),
            State#state{calls = Left};
        error ->
            State
    end.

give_messages(#state{waiting = {Count, From}, messages = Messages} = State) when
    length(Messages) >= Count
->
    gen_server:reply(From, lists:reverse(Messages)),
    State#state{waiting = none, messages = []};
give_messages(State) ->
    State.

closed(#state{status = Before, calls = Calls, closed_waiting = Waiting} = State) ->
    Status = case Before of connected -> closed; _ -> Before end,
    maps:foreach(fun(What, Caller) -> gen_server:reply(caller(What, Caller), {error, Status}) end, Calls),
    _ = [gen_server:reply(From, Status) || From <- Waiting],
    State#state{socket = closed, status = Status, calls = #{}, closed_waiting = []}.

caller({completed, _}, {_Code, From}) -> From;
caller(_What, From) -> From.
