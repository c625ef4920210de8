%% All that the plugin asks of EMQX, and nothing else: no other module names one of EMQX's.
%%
%% EMQX is there at run time only. So every call is made by name, and its records go through EMQX's own
%% functions or are taken for tuples (`{deliver, Filter, Message}', `{share, Group, Filter}').
-module(emqx_redis_broker).

-export([is_running/0, is_stopping/0, durable_sessions/0, nodes/0]).
-export([put_hook/3, delete_hook/2, monitor_hooks/0, await_hooks/0]).
-export([plugin_config/0]).
-export([register_command/2, unregister_command/1]).
-export([activate_alarm/3, deactivate_alarm/1]).
-export([message_id/1, qos/1, is_dup/1, published_at/1]).
-export([topic/1, from/1, header/3, set_header/3, message_to_map/1, message_from_map/1]).
-export([has_route/2, is_match/2, filter_to_binary/1, filter_from_binary/1, mount/2, unmount/2]).
-export([zone_setting/3]).
-export([create_session/2, set_session_field/3, session_stats/1]).
-export([hand_over/1, subscribe/4, subscriptions/1]).
-export([take_over/1, enrich/3, enqueue/3, into_inflight/3, received/2]).
-export([register_channel/4, unregister_channel/1, forget_channel/2]).
-export([unlock/1, is_channel/1]).
-export([lookup_channels/1, all_channels/0, channel_info/2, held_messages/3, next_packet_id/3]).
-export([drain_deliveries/0, redispatch/3, group/1]).

-export_type([message/0, delivery/0, session/0, client_info/0, conn_info/0, topic_filter/0]).

%% `#message{}' of EMQX.
-type message() :: tuple().
-type delivery() :: {deliver, Filter :: binary(), message()}.
%% `#session{}' of `emqx_session_mem'.
-type session() :: tuple().
%% `emqx_types:clientinfo()' and `emqx_types:conninfo()'.
-type client_info() :: #{clientid := binary(), zone := atom(), atom() => term()}.
-type conn_info() :: #{atom() => term()}.
%% As EMQX has it within: a shared one is a record.
-type topic_filter() :: binary() | {share, Group :: binary(), Filter :: binary()}.

%% More messages than any session holds.
-define(ALL, 16#FFFFFFF).

%% Whether this VM is a broker, rather than a shell or a test.
-spec is_running() -> boolean().
is_running() -> is_pid(whereis(emqx_hooks)).

%% Whether EMQX is about to stop, or to start anew as part of another cluster.
-spec is_stopping() -> boolean().
is_stopping() -> not call(emqx_app, init_load_done, []).

%% Whether EMQX keeps sessions on its own disk: then it looks at none in memory.
-spec durable_sessions() -> boolean().
durable_sessions() -> call(emqx, get_config, [[durable_sessions, enable], false]).

%% The running nodes of EMQX's cluster, this one among them.
-spec nodes() -> [node()].
nodes() -> call(emqx, running_nodes, []).

%% Has a function called at a hook point. `false' where the running version has no such point.
-spec put_hook(atom(), {module(), atom(), list()}, integer()) -> boolean().
put_hook(Point, Action, Priority) ->
    try
        ok = call(emqx_hooks, put, [Point, Action, Priority]),
        true
    catch
        error:{invalid_hookpoint, _} -> false
    end.

-spec delete_hook(atom(), {module(), atom()}) -> ok.
delete_hook(Point, Action) -> call(emqx_hooks, del, [Point, Action]).

%% Watches the process that has the hooks; they end with it.
-spec monitor_hooks() -> reference().
monitor_hooks() -> monitor(process, whereis(emqx_hooks)).

%% Waits until the broker has done with the hooks what it was told: it has answered something later.
-spec await_hooks() -> ok.
await_hooks() ->
    try sys:get_state(emqx_hooks) of
        _ -> ok
    catch
        %% It ends with them.
        exit:_ -> ok
    end.

%% The plugin's configuration, as it was set in the Dashboard or its file.
-spec plugin_config() -> {ok, map()} | {error, term()}.
plugin_config() ->
    {ok, Version} = application:get_key(emqx_redis_storage, vsn),
    NameVsn = iolist_to_binary(["emqx_redis_storage-", Version]),
    case call(emqx_plugins, get_config, [NameVsn, #{}]) of
        Config when is_map(Config) -> {ok, Config};
        Other -> {error, Other}
    end.

-spec register_command(atom(), {module(), atom()}) -> ok.
register_command(Name, Function) ->
    _ = call(emqx_ctl, register_command, [Name, Function, []]),
    ok.

-spec unregister_command(atom()) -> ok.
unregister_command(Name) ->
    _ = call(emqx_ctl, unregister_command, [Name]),
    ok.

%% An alarm that is active already stays as it is.
-spec activate_alarm(atom(), map(), binary()) -> ok.
activate_alarm(Name, Details, Message) ->
    _ = call(emqx_alarm, safe_activate, [Name, Details, Message]),
    ok.

-spec deactivate_alarm(atom()) -> ok.
deactivate_alarm(Name) ->
    _ = call(emqx_alarm, safe_deactivate, [Name]),
    ok.

%%--------------------------------------------------------------------
%% Messages and topics
%%--------------------------------------------------------------------

-spec message_id(message()) -> binary().
message_id(Message) -> call(emqx_message, id, [Message]).

-spec qos(message()) -> 0..2.
qos(Message) -> call(emqx_message, qos, [Message]).

-spec is_dup(message()) -> boolean().
is_dup(Message) -> call(emqx_message, get_flag, [dup, Message, false]).

%% In milliseconds, by the clock of the publisher's node.
-spec published_at(message()) -> integer().
published_at(Message) -> call(emqx_message, timestamp, [Message]).

-spec topic(message()) -> binary().
topic(Message) -> call(emqx_message, topic, [Message]).

-spec from(message()) -> binary() | atom().
from(Message) -> call(emqx_message, from, [Message]).

-spec header(atom(), message(), Default :: term()) -> term().
header(Name, Message, Default) -> call(emqx_message, get_header, [Name, Message, Default]).

-spec set_header(atom(), term(), message()) -> message().
set_header(Name, Value, Message) -> call(emqx_message, set_header, [Name, Value, Message]).

%% Keys `id', `qos', `from', `flags', `headers', `topic', `payload', `timestamp' (ms), `extra'.
-spec message_to_map(message()) -> map().
message_to_map(Message) -> call(emqx_message, to_map, [Message]).

-spec message_from_map(map()) -> message().
message_from_map(Map) -> call(emqx_message, from_map, [Map]).

%% Whether a subscription matches a topic name. One that is shared does not: its messages are the group's.
-spec is_match(Topic :: binary(), Filter :: binary()) -> boolean().
is_match(_Topic, <<"$share/", _/binary>>) -> false;
is_match(Topic, Filter) -> call(emqx_topic, match, [Topic, Filter]).

%% Whether this node routes what matches the filter to that node.
-spec has_route(binary(), node()) -> boolean().
has_route(Filter, Node) -> call(emqx_router, has_route, [Filter, Node]).

%% As a client writes it, but for `$queue/a', which is the group `$queue'.
-spec filter_to_binary(topic_filter()) -> binary().
filter_to_binary({share, Group, Filter}) -> <<"$share/", Group/binary, "/", Filter/binary>>;
filter_to_binary(Filter) -> Filter.

-spec filter_from_binary(binary()) -> topic_filter().
filter_from_binary(Filter) ->
    case emqx_redis_filter:group(Filter) of
        {Group, Real} -> call(emqx_topic, make_shared_record, [Group, Real]);
        none -> Filter
    end.

%% With the client's mount point before it.
-spec mount(client_info(), topic_filter()) -> topic_filter().
mount(#{mountpoint := MountPoint}, Filter) when is_binary(MountPoint) ->
    call(emqx_mountpoint, mount, [MountPoint, Filter]);
mount(_ClientInfo, Filter) ->
    Filter.

%% Without it: as the client wrote it.
-spec unmount(client_info(), topic_filter()) -> topic_filter().
unmount(#{mountpoint := MountPoint}, Filter) when is_binary(MountPoint) ->
    call(emqx_mountpoint, unmount, [MountPoint, Filter]);
unmount(_ClientInfo, Filter) ->
    Filter.

%% The setting `mqtt.Name' of the client's zone.
-spec zone_setting(client_info(), atom(), Default :: term()) -> term().
zone_setting(#{zone := Zone}, Name, Default) ->
    call(emqx_config, get_zone_conf, [Zone, [mqtt, Name], Default]).

%%--------------------------------------------------------------------
%% Sessions in memory
%%--------------------------------------------------------------------

-spec create_session(client_info(), conn_info()) -> session().
create_session(ClientInfo, ConnInfo) ->
    Names = [max_subscriptions, max_awaiting_rel, upgrade_qos, retry_interval, await_rel_timeout],
    Settings = maps:from_list([{Name, zone_setting(ClientInfo, Name, undefined)} || Name <- Names]),
    %% From 6.3 on a session has a quota of its listener's, unless this says no: the new connection brings
    %% its own.
    call(emqx_session_mem, create, [ClientInfo, ConnInfo, undefined, Settings#{enable_quota => false}]).

-spec set_session_field(atom(), term(), session()) -> session().
set_session_field(Name, Value, Session) -> call(emqx_session_mem, set_field, [Name, Value, Session]).

-spec session_stats(session()) -> [{atom(), term()}].
session_stats(Session) -> call(emqx_session, stats, [Session]).

%% Subscribes the calling process, and notes it in the session.
-spec subscribe(client_info(), topic_filter(), map(), session()) -> {ok, session()} | {error, integer()}.
subscribe(ClientInfo, Filter, SubOpts, Session) ->
    Arguments = [Filter, SubOpts, Session],
    case erlang:function_exported(emqx_session_mem, subscribe, 4) of
        false -> call(emqx_session_mem, subscribe, Arguments);
        %% From 6.3 on.
        true -> call(emqx_session_mem, subscribe, [ClientInfo | Arguments])
    end.

%% What a process is subscribed to.
-spec subscriptions(pid()) -> [{topic_filter(), map()}].
subscriptions(Pid) -> call(emqx_broker, subscriptions, [Pid]).

%% Another process has taken the session over: ends this one's subscriptions.
-spec take_over(session()) -> ok.
take_over(Session) -> call(emqx_session_mem, takeover, [Session]).

%% Messages as the subscription that each matched wants them: QoS, flags, subscription identifier.
%% A shared subscription is among them as EMQX has it, with its group.
-spec enrich(client_info(), [delivery()], session()) -> [message()].
enrich(ClientInfo, Deliveries, Session) ->
    call(emqx_session, enrich_delivers, [ClientInfo, Deliveries, Session]).

%% Behind what is queued.
-spec enqueue(client_info(), [message()], session()) -> session().
enqueue(ClientInfo, Messages, Session) -> call(emqx_session_mem, enqueue, [ClientInfo, Messages, Session]).

%% As if it had been sent with the next packet id, and not been acknowledged yet.
-spec into_inflight(client_info(), message(), session()) -> session().
into_inflight(ClientInfo, Message, Session) ->
    {_, _Packets, NewSession} =
        case erlang:function_exported(emqx_session_mem, deliver, 4) of
            false -> call(emqx_session_mem, deliver, [ClientInfo, [Message], Session]);
            %% From 6.3 on.
            true -> call(emqx_session_mem, deliver, [ClientInfo, [Message], [], Session])
        end,
    NewSession.

%% As a channel answers the one that takes its session over: from 6.3 on as a map.
-spec hand_over(session()) -> term().
hand_over(Session) ->
    case erlang:function_exported(emqx_session_mem, export, 1) of
        false -> Session;
        true -> call(emqx_session_mem, export, [Session])
    end.

%% As if the client had answered the QoS 2 message of that packet id with PUBREC.
-spec received(pos_integer(), session()) -> session().
received(PacketId, Session) ->
    {ok, _Message, NewSession} = call(emqx_session_mem, pubrec, [PacketId, Session]),
    NewSession.

%%--------------------------------------------------------------------
%% Channels
%%--------------------------------------------------------------------

%% The calling process becomes the client's channel, one that is not connected. The module in
%% `conn_mod' must have `call/3'.
-spec register_channel(binary(), conn_info(), Info :: map(), Stats :: list()) -> ok.
register_channel(ClientId, ConnInfo, Info, Stats) ->
    ok = call(emqx_cm, register_channel, [ClientId, self(), ConnInfo]),
    ok = call(emqx_cm, insert_channel_info, [ClientId, Info, Stats]),
    ok = call(emqx_cm, mark_channel_disconnected, [self()]).

%% The calling process is the client's channel no more.
-spec unregister_channel(binary()) -> ok.
unregister_channel(ClientId) -> call(emqx_cm, unregister_channel, [ClientId]).

%% EMQX opens a session under a lock of the client id. A process that ends in between must give it back
%% before.
-spec unlock(binary()) -> ok.
unlock(ClientId) ->
    _ = call(emqx_cm_locker, unlock, [ClientId]),
    ok.

%% Whether the calling process is a channel of the client's.
-spec is_channel(binary()) -> boolean().
is_channel(ClientId) -> lists:member(self(), call(emqx_cm, lookup_channels, [local, ClientId])).

%% Takes a dead process out of the registry of channels.
-spec forget_channel(binary(), pid()) -> ok.
forget_channel(ClientId, Pid) when node(Pid) =:= node() ->
    call(emqx_cm, unregister_channel, [ClientId, Pid]);
forget_channel(ClientId, Pid) ->
    call(emqx_cm_registry, unregister_channel, [{ClientId, Pid}]).

%% Whom this node takes for the client's channels, in the whole cluster; some may be dead.
-spec lookup_channels(binary()) -> [pid()].
lookup_channels(ClientId) ->
    Local = call(emqx_cm, lookup_channels, [local, ClientId]),
    Known = call(emqx_cm_registry, lookup_all_channels, [ClientId]),
    lists:usort(Local ++ Known).

%% All of this node.
-spec all_channels() -> [pid()].
all_channels() -> call(emqx_cm, all_channels, []).

%% What a channel of this node last said of itself.
-spec channel_info(binary(), pid()) -> map() | undefined.
channel_info(ClientId, Pid) -> call(emqx_cm, do_get_chan_info, [ClientId, Pid]).

%% What the session of a channel of this node holds, in the order in which it goes out: sent and not
%% acknowledged, then queued. Never of the calling process. From the queue first, so that a message that
%% goes from there is not missed.
-spec held_messages(binary(), pid(), timeout()) -> {ok, [message()]} | {error, term()}.
held_messages(ClientId, Pid, Timeout) ->
    Requests = [{mqueue_msgs, #{limit => ?ALL}}, {inflight_msgs, #{limit => ?ALL}}],
    case ask_channel(ClientId, Pid, Requests, Timeout) of
        {ok, [{Queued, _}, {Sent, _}]} -> {ok, Sent ++ without(Sent, Queued)};
        {ok, Other} -> {error, {no_messages, Other}};
        {error, _} = Error -> Error
    end.

%% With which packet id its session sends the next message. Never of the calling process.
-spec next_packet_id(binary(), pid(), timeout()) -> {ok, 1..65535} | {error, term()}.
next_packet_id(ClientId, Pid, Timeout) ->
    case ask_channel(ClientId, Pid, [stats], Timeout) of
        {ok, [Stats]} when is_list(Stats) ->
            case proplists:get_value(next_pkt_id, Stats) of
                Id when is_integer(Id) -> {ok, Id};
                Other -> {error, {no_packet_id, Other}}
            end;
        {ok, Other} ->
            {error, {no_stats, Other}};
        {error, _} = Error ->
            Error
    end.

ask_channel(ClientId, Pid, Requests, Timeout) ->
    case channel_info(ClientId, Pid) of
        #{conninfo := #{conn_mod := Module}} ->
            try
                {ok, [call(Module, call, [Pid, Request, Timeout]) || Request <- Requests]}
            catch
                exit:Reason -> {error, Reason}
            end;
        _ ->
            {error, no_channel}
    end.

without(Sent, Queued) ->
    Ids = maps:from_keys([message_id(Message) || Message <- Sent], []),
    [Message || Message <- Queued, not is_map_key(message_id(Message), Ids)].

%% Hands the message to a member of the shared group.
-spec redispatch(Group :: binary(), Filter :: binary(), message()) -> ok.
redispatch(Group, Filter, Message) ->
    _ = call(emqx_shared_sub, redispatch, [[set_header(redispatch_to, {Group, Filter}, Message)]]),
    ok.

%% Through which shared group a message has come to a session.
-spec group(message()) -> {Group :: binary(), Filter :: binary()} | none.
group(Message) ->
    case header(redispatch_to, Message, none) of
        {Group, Filter} -> {Group, Filter};
        {_Tag, Group, Filter} -> {Group, Filter};
        _ -> none
    end.

%% What was delivered to the calling process and not taken yet.
-spec drain_deliveries() -> [delivery()].
drain_deliveries() ->
    receive
        {deliver, _Filter, _Message} = Delivery -> [Delivery | drain_deliveries()]
    after 0 -> []
    end.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

call(Module, Function, Arguments) -> apply(Module, Function, Arguments).
