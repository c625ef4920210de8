%% The keys in Redis as docs/data-layout.md describes them, read and written by other code than the library's.
-module(emqx_redis_fault_keys).

-export([parse/2, client_key/3, message_key/3, index_key/3, message_member/3, route_key/3]).

-export_type([kind/0, parsed/0]).

-type kind() :: emqx_redis_fault_topology:kind().
-type parsed() ::
    {session | queue | epoch, Client :: binary()}
    | {message, Client :: binary(), Id :: binary()}
    %% An index of a slot, whose tag it is; <<>> without a cluster.
    | {index, sessions | session_expiry | messages | message_expiry, Tag :: binary()}
    | {route_index, Tag :: binary()}
    | {wildcards, Tag :: binary()}
    | {route, Tag :: binary(), Filter :: binary()}
    | other
    | unknown.

-spec parse(kind(), binary()) -> parsed().
parse(_Kind, <<"meta", _/binary>>) -> other;
parse(_Kind, <<"durable", _/binary>>) -> other;
parse(_Kind, <<"feed", _/binary>>) -> other;
parse(_Kind, <<"leases", _/binary>>) -> other;
parse(Kind, <<"session:", Name/binary>>) -> {session, client(Kind, Name)};
parse(Kind, <<"msgq:", Name/binary>>) -> {queue, client(Kind, Name)};
parse(Kind, <<"epoch:", Name/binary>>) -> {epoch, client(Kind, Name)};
parse(Kind, <<"msg:", Member/binary>>) -> message(Kind, Member);
parse(_Kind, <<"sync:sessions", Tag/binary>>) -> {index, sessions, Tag};
parse(_Kind, <<"expiry:sessions", Tag/binary>>) -> {index, session_expiry, Tag};
parse(_Kind, <<"sync:messages", Tag/binary>>) -> {index, messages, Tag};
parse(_Kind, <<"expiry:messages", Tag/binary>>) -> {index, message_expiry, Tag};
parse(_Kind, <<"sync:routes", Tag/binary>>) -> {route_index, Tag};
parse(_Kind, <<"route:wildcards", Tag/binary>>) -> {wildcards, Tag};
parse(Kind, <<"route:", Rest/binary>>) -> route(Kind, Rest);
parse(_Kind, <<"trie", _/binary>>) -> other;
parse(_Kind, _) -> unknown.

-spec client_key(kind(), session | queue | epoch, binary()) -> iodata().
client_key(Kind, What, Client) ->
    Word =
        case What of
            session -> "session:";
            queue -> "msgq:";
            epoch -> "epoch:"
        end,
    [Word, tagged(Kind, Client)].

-spec message_key(kind(), binary(), binary()) -> iodata().
message_key(Kind, Client, Id) ->
    ["msg:", message_member(Kind, Client, Id)].

%% What stands for a message in the indexes.
-spec message_member(kind(), binary(), binary()) -> iodata().
message_member(cluster, Client, Id) -> [tagged(cluster, Client), ":", Id];
message_member(_Kind, Client, Id) -> [encode(Client, <<":">>, <<"%3A">>), ":", Id].

%% The index in which a client stands, given the tag that its slot's indexes have.
-spec index_key(kind(), sessions | session_expiry | messages | message_expiry, binary()) -> iodata().
index_key(_Kind, Index, Tag) ->
    Word =
        case Index of
            sessions -> "sync:sessions";
            session_expiry -> "expiry:sessions";
            messages -> "sync:messages";
            message_expiry -> "expiry:messages"
        end,
    [Word, Tag].

%% The tag is that of the route's shard, <<>> without a cluster.
-spec route_key(kind(), binary(), binary()) -> binary().
route_key(cluster, Tag, Filter) -> <<"route", Tag/binary, ":", Filter/binary>>;
route_key(_Kind, <<>>, Filter) -> <<"route:", (replace(Filter, <<"%">>, <<"%25">>))/binary>>.

%% Internal

tagged(cluster, Client) -> ["{", encode(Client, <<"}">>, <<"%7D">>), "}"];
tagged(_Kind, Client) -> Client.

client(cluster, Tagged) ->
    Size = byte_size(Tagged) - 2,
    <<"{", Name:Size/binary, "}">> = Tagged,
    decode(Name, <<"%7D">>, <<"}">>);
client(_Kind, Name) ->
    Name.

message(cluster, Member) ->
    [Name, Id] = binary:split(Member, <<"}:">>),
    {message, client(cluster, <<Name/binary, "}">>), Id};
message(_Kind, Member) ->
    [Name, Id] = binary:split(Member, <<":">>),
    {message, decode(Name, <<"%3A">>, <<":">>), Id}.

%% {TAG}:{filter}; no tag holds a brace.
route(cluster, Rest) ->
    [Tag, Filter] = binary:split(Rest, <<"}:">>),
    {route, <<":", Tag/binary, "}">>, Filter};
route(_Kind, Name) ->
    {route, <<>>, decode(Name, <<"%77">>, <<"w">>)}.

encode(Name, Byte, Code) ->
    replace(replace(Name, <<"%">>, <<"%25">>), Byte, Code).

decode(Name, Code, Byte) ->
    replace(replace(Name, Code, Byte), <<"%25">>, <<"%">>).

replace(Name, From, To) ->
    binary:replace(Name, From, To, [global]).
