%% What the nodes of a test cluster say about it: their CLUSTER NODES, read.
-module(emqx_redis_test_cluster_view).

-export([rows/2, own_rows/1, saved_row/2, owner/2, masters/1, replicas_of/2, id/1, health/1, agreed_owner/2]).
-export([key_slot/1]).

-export_type([row/0]).

-type slot() :: 0..16383.
-type row() :: #{
    id := binary(),
    %% What the row is about; `unknown` where it is none of ours.
    node := emqx_redis_test_server:server() | unknown,
    flags := [binary()],
    %% The id of a replica's master, <<"-">> for a master.
    master := binary(),
    epoch := non_neg_integer(),
    link := binary(),
    slots := [{slot(), slot()}],
    %% In a node's own row: the slots that leave it, each with the id of the node that imports it.
    leaving := #{slot() => binary()}
}.

-define(SERVER, emqx_redis_test_server).
-define(TOPOLOGY, emqx_redis_test_topology).
-define(SLOTS, 16384).
-define(BUS_OFFSET, 10000).
-define(ID_SIZE, 40).

%% What Node says about all nodes.
-spec rows(emqx_redis_test_topology:topology(), ?SERVER:server()) -> [row()] | unreachable.
rows(Cluster, Node) ->
    case ?TOPOLOGY:ask(Node, ["CLUSTER", "NODES"]) of
        Text when is_binary(Text) -> parse(Cluster, Text);
        _ -> unreachable
    end.

%% What each node that can be reached says about itself.
-spec own_rows(emqx_redis_test_topology:topology()) -> [row()].
own_rows(Cluster) ->
    [
        Row
     || Node <- members(Cluster),
        Rows <- [rows(Cluster, Node)],
        is_list(Rows),
        Row <- Rows,
        has_flag(Row, <<"myself">>)
    ].

%% What the node last wrote to its file about itself, or about its master if it is a replica by now:
%% so a node that is dead can be asked too.
-spec saved_row(emqx_redis_test_topology:topology(), ?SERVER:server()) -> row().
saved_row(Cluster, Node) ->
    {ok, Text} = file:read_file(filename:join(?SERVER:folder(Node), "nodes.conf")),
    Rows = parse(Cluster, Text),
    [Own] = [Row || Row <- Rows, has_flag(Row, <<"myself">>)],
    case Own of
        #{master := <<"-">>} -> Own;
        #{master := MasterId} -> hd([Row || Row = #{id := Id} <- Rows, Id =:= MasterId])
    end.

%% Of all nodes that claim the slot, the one whose claim is the newest.
-spec owner(emqx_redis_test_topology:topology(), slot()) -> ?SERVER:server() | unknown.
owner(Cluster, Slot) ->
    newest_claim(own_rows(Cluster), Slot).

%% The nodes that say that they are masters, but for those whose slots have a newer owner.
-spec masters(emqx_redis_test_topology:topology()) -> [?SERVER:server()].
masters(Cluster) ->
    Rows = own_rows(Cluster),
    [
        Node
     || Row = #{node := Node, slots := Slots} <- Rows,
        has_flag(Row, <<"master">>),
        Slots =:= [] orelse newest_claim(Rows, element(1, hd(Slots))) =:= Node
    ].

-spec replicas_of(emqx_redis_test_topology:topology(), ?SERVER:server()) -> [?SERVER:server()].
replicas_of(Cluster, Master) ->
    #{id := MasterId} = saved_row(Cluster, Master),
    [Node || #{node := Node, master := Id} <- own_rows(Cluster), Id =:= MasterId].

-spec id(?SERVER:server()) -> binary().
id(Node) ->
    ?SERVER:cli(Node, ["CLUSTER", "MYID"]).

%% The owner of a slot in the eyes of every node that can be reached.
-spec agreed_owner(emqx_redis_test_topology:topology(), slot()) -> {ok, ?SERVER:server()} | term().
agreed_owner(Cluster, Slot) ->
    Views = [Rows || Node <- members(Cluster), Rows <- [rows(Cluster, Node)], is_list(Rows)],
    Owners = [[Node || Row = #{node := Node} <- Rows, has_slot(Row, Slot)] || Rows <- Views],
    case lists:usort(Owners) of
        [[Owner]] -> {ok, Owner};
        Several -> {owners, Several}
    end.

%% {ok, ok} if every node finds the cluster to be in order and complete, all have the same view, and
%% every replica is in sync.
-spec health(emqx_redis_test_topology:topology()) -> {ok, ok} | term().
health(Cluster) ->
    Nodes = members(Cluster),
    States = [cluster_state(Node) || Node <- Nodes],
    Views = [rows(Cluster, Node) || Node <- Nodes],
    case {lists:usort(States), lists:member(unreachable, Views)} of
        {[ok], false} -> view_health(Nodes, Views);
        _ -> {states, States}
    end.

%% As Redis computes it: of what stands between the first { and the } that follows it, if that is
%% something, else of the whole key.
-spec key_slot(iodata()) -> slot().
key_slot(Key) ->
    crc16(hash_tag(iolist_to_binary(Key)), 0) rem ?SLOTS.

%% Internal

members(Cluster) ->
    ?TOPOLOGY:members(Cluster, data).

has_flag(#{flags := Flags}, Flag) ->
    lists:member(Flag, Flags).

has_slot(#{slots := Ranges}, Slot) ->
    lists:any(fun({First, Last}) -> First =< Slot andalso Slot =< Last end, Ranges).

newest_claim(Rows, Slot) ->
    case [{Epoch, Node} || Row = #{epoch := Epoch, node := Node} <- Rows, has_slot(Row, Slot)] of
        [] -> unknown;
        Claims -> element(2, lists:max(Claims))
    end.

cluster_state(Node) ->
    case ?TOPOLOGY:ask(Node, ["CLUSTER", "INFO"]) of
        <<"cluster_state:ok", _/binary>> -> ok;
        <<"cluster_state:", State:4/binary, _/binary>> -> State;
        _ -> unreachable
    end.

view_health(Nodes, Views) ->
    Roles = [lists:sort([role(Row) || Row <- Rows]) || Rows <- Views],
    Complete = lists:all(
        fun(Rows) -> lists:sort([Node || #{node := Node} <- Rows]) =:= lists:sort(Nodes) end, Views
    ),
    Sound = lists:all(fun is_sound/1, lists:append(Views)),
    case lists:usort(Roles) of
        [Role] when Complete, Sound -> replication_health(Role);
        _ -> {views, Complete, Sound, Views}
    end.

role(#{node := Node, id := Id, master := Master, slots := Slots}) ->
    {Node, Id, Master, Slots}.

is_sound(Row = #{link := Link}) ->
    Faults = [<<"fail?">>, <<"fail">>, <<"handshake">>, <<"noaddr">>],
    Link =:= <<"connected">> andalso not lists:any(fun(Fault) -> has_flag(Row, Fault) end, Faults).

%% In sync: every replica has all that its master had written when that was asked.
replication_health(Roles) ->
    Written = maps:from_list([
        {Id, written(?TOPOLOGY:ask(Node, ["ROLE"]))}
     || {Node, Id, <<"-">>, _Slots} <- Roles
    ]),
    Replicas = [
        {Node, ?TOPOLOGY:ask(Node, ["ROLE"]), maps:get(Master, Written, unknown)}
     || {Node, _Id, Master, _Slots} <- Roles, Master =/= <<"-">>
    ],
    case [Replica || Replica = {_Node, Role, Offset} <- Replicas, not is_in_sync(Role, Offset)] of
        [] -> {ok, ok};
        Late -> {replicas, Late}
    end.

written([<<"master">>, Offset, _Replicas]) -> Offset;
written(_Role) -> unknown.

is_in_sync([<<"slave">>, _Host, _Port, <<"connected">>, Read], Written) ->
    is_integer(Written) andalso Read >= Written;
is_in_sync(_Role, _Written) ->
    false.

%% A node's file has a line that begins with no id.
parse(Cluster, Text) ->
    [
        parse_row(Cluster, Columns)
     || Line <- binary:split(Text, <<"\n">>, [global]),
        Columns = [Id | _] <- [binary:split(Line, <<" ">>, [global])],
        byte_size(Id) =:= ?ID_SIZE
    ].

parse_row(Cluster, [Id, Address, Flags, Master, _Ping, _Pong, Epoch, Link | Slots]) ->
    #{
        id => Id,
        node => find_node(Cluster, Address),
        flags => binary:split(Flags, <<",">>, [global]),
        master => Master,
        epoch => binary_to_integer(Epoch),
        link => Link,
        slots => [range(Slot) || Slot <- Slots, binary:first(Slot) =/= $[],
        leaving => maps:from_list([leaving(Slot) || Slot <- Slots, binary:match(Slot, <<"->-">>) =/= nomatch])
    }.

%% By the port of the bus: the other one may be a proxy's, and it is 0 where the cluster speaks TLS and
%% the one who asks does not.
find_node(Cluster, Address) ->
    [Ports | _] = binary:split(Address, <<",">>),
    [_, BusPort] = binary:split(Ports, <<"@">>),
    Port = binary_to_integer(BusPort) - ?BUS_OFFSET,
    hd([Node || Node <- members(Cluster), ?SERVER:port(Node) =:= Port] ++ [unknown]).

range(Slot) ->
    case binary:split(Slot, <<"-">>) of
        [First, Last] -> {binary_to_integer(First), binary_to_integer(Last)};
        [Only] -> {binary_to_integer(Only), binary_to_integer(Only)}
    end.

%% [SLOT->-ID]
leaving(Text) ->
    [Slot, Id] = binary:split(binary:part(Text, 1, byte_size(Text) - 2), <<"->-">>),
    {binary_to_integer(Slot), Id}.

hash_tag(Key) ->
    case binary:split(Key, <<"{">>) of
        [_, Rest] ->
            case binary:split(Rest, <<"}">>) of
                [Tag, _] when Tag =/= <<>> -> Tag;
                _ -> Key
            end;
        _ ->
            Key
    end.

%% CRC16 as XMODEM has it.
crc16(<<Byte, Rest/binary>>, Crc) ->
    crc16(Rest, shift(Crc bxor (Byte bsl 8), 8));
crc16(<<>>, Crc) ->
    Crc.

shift(Crc, 0) -> Crc;
shift(Crc, Bits) when Crc band 16#8000 =/= 0 -> shift(((Crc bsl 1) bxor 16#1021) band 16#FFFF, Bits - 1);
shift(Crc, Bits) -> shift((Crc bsl 1) band 16#FFFF, Bits - 1).
