%% A Redis client for tests that shares no code with what is tested: one socket, RESP2, blocking.
-module(emqx_redis_test_client).

-export([connect/1, close/1, command/2, command/3, pipeline/2]).
-export([send/2, receive_reply/1, receive_reply/2, receive_bytes/2]).
-export([encode/1]).

-export_type([address/0, connection/0, reply/0]).

-type address() :: {unix, file:filename()} | {tcp, inet:port_number()}.
-opaque connection() :: gen_tcp:socket().
-type reply() :: binary() | integer() | undefined | [reply()] | {error, binary()}.

-define(TIMEOUT, 5000).

%% Connects to a unix socket, or to a port of 127.0.0.1.
-spec connect(address()) -> connection().
connect(Address) ->
    {Host, Port} =
        case Address of
            {unix, Path} -> {{local, Path}, 0};
            {tcp, TcpPort} -> {{127, 0, 0, 1}, TcpPort}
        end,
    case gen_tcp:connect(Host, Port, [binary, {active, false}, {packet, line}], ?TIMEOUT) of
        {ok, Connection} -> Connection;
        {error, Reason} -> error({cannot_connect, Address, Reason})
    end.

-spec close(connection()) -> ok.
close(Connection) ->
    gen_tcp:close(Connection).

%% One command and its reply. Integers in the command are written in decimal.
-spec command(connection(), [iodata() | atom() | integer()]) -> reply().
command(Connection, Command) ->
    command(Connection, Command, ?TIMEOUT).

-spec command(connection(), [iodata() | atom() | integer()], timeout()) -> reply().
command(Connection, Command, Timeout) ->
    ok = send(Connection, encode(Command)),
    receive_reply(Connection, Timeout).

%% All commands in one write, then all replies.
-spec pipeline(connection(), [[iodata() | atom() | integer()]]) -> [reply()].
pipeline(Connection, Commands) ->
    ok = send(Connection, [encode(Command) || Command <- Commands]),
    [receive_reply(Connection) || _ <- Commands].

%% Any bytes, broken protocol included.
-spec send(connection(), iodata()) -> ok | {error, term()}.
send(Connection, Bytes) ->
    gen_tcp:send(Connection, Bytes).

-spec receive_reply(connection()) -> reply().
receive_reply(Connection) ->
    receive_reply(Connection, ?TIMEOUT).

-spec receive_reply(connection(), timeout()) -> reply().
receive_reply(Connection, Timeout) ->
    case receive_line(Connection, Timeout) of
        <<"+", Text/binary>> -> Text;
        <<"-", Text/binary>> -> {error, Text};
        <<":", Integer/binary>> -> binary_to_integer(Integer);
        <<"$-1">> -> undefined;
        <<"*-1">> -> undefined;
        <<"$", Length/binary>> -> receive_bulk(Connection, binary_to_integer(Length), Timeout);
        <<"*", Count/binary>> ->
            [receive_reply(Connection, Timeout) || _ <- lists:seq(1, binary_to_integer(Count))]
    end.

%% What has arrived by the end of Timeout milliseconds, as it came from the wire.
-spec receive_bytes(connection(), timeout()) -> binary() | closed.
receive_bytes(Connection, Timeout) ->
    ok = inet:setopts(Connection, [{packet, raw}]),
    Received = gen_tcp:recv(Connection, 0, Timeout),
    _ = inet:setopts(Connection, [{packet, line}]),
    case Received of
        {ok, Bytes} -> Bytes;
        {error, timeout} -> <<>>;
        {error, closed} -> closed
    end.

-spec encode([iodata() | atom() | integer()]) -> iodata().
encode(Command) ->
    [$*, integer_to_list(length(Command)), "\r\n" | [encode_argument(Argument) || Argument <- Command]].

%% Internal

encode_argument(Atom) when is_atom(Atom) -> encode_argument(atom_to_binary(Atom));
encode_argument(Integer) when is_integer(Integer) -> encode_argument(integer_to_binary(Integer));
encode_argument(Bytes) -> [$$, integer_to_list(iolist_size(Bytes)), "\r\n", Bytes, "\r\n"].

%% In line mode the socket gives long lines in pieces.
receive_line(Connection, Timeout) ->
    case gen_tcp:recv(Connection, 0, Timeout) of
        {ok, Line} ->
            case byte_size(Line) >= 2 andalso binary:part(Line, byte_size(Line), -2) of
                <<"\r\n">> -> binary:part(Line, 0, byte_size(Line) - 2);
                _ -> <<Line/binary, (receive_line(Connection, Timeout))/binary>>
            end;
        {error, Reason} ->
            error({no_reply, Reason})
    end.

receive_bulk(Connection, Length, Timeout) ->
    ok = inet:setopts(Connection, [{packet, raw}]),
    {ok, <<Bulk:Length/binary, "\r\n">>} = gen_tcp:recv(Connection, Length + 2, Timeout),
    ok = inet:setopts(Connection, [{packet, line}]),
    Bulk.
