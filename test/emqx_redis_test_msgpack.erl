%% A MessagePack reader that shares no code with what is tested, written from the format's specification.
%% Strings come as {str, Binary}, extensions as {ext, Type, Binary}, binaries as they are.
-module(emqx_redis_test_msgpack).

-export([decode/1]).

-spec decode(binary()) -> term().
decode(Bytes) ->
    {Value, <<>>} = value(Bytes),
    Value.

value(<<0:1, N:7, Rest/binary>>) -> {N, Rest};
value(<<2#1000:4, N:4, Rest/binary>>) -> map(N, Rest);
value(<<2#1001:4, N:4, Rest/binary>>) -> array(N, Rest);
value(<<2#101:3, N:5, Text:N/binary, Rest/binary>>) -> {{str, Text}, Rest};
value(<<16#c0, Rest/binary>>) -> {nil, Rest};
value(<<16#c2, Rest/binary>>) -> {false, Rest};
value(<<16#c3, Rest/binary>>) -> {true, Rest};
value(<<16#c4, N:8, Bytes:N/binary, Rest/binary>>) -> {Bytes, Rest};
value(<<16#c5, N:16, Bytes:N/binary, Rest/binary>>) -> {Bytes, Rest};
value(<<16#c6, N:32, Bytes:N/binary, Rest/binary>>) -> {Bytes, Rest};
value(<<16#c7, N:8, Type:8/signed, Bytes:N/binary, Rest/binary>>) -> {{ext, Type, Bytes}, Rest};
value(<<16#c8, N:16, Type:8/signed, Bytes:N/binary, Rest/binary>>) -> {{ext, Type, Bytes}, Rest};
value(<<16#c9, N:32, Type:8/signed, Bytes:N/binary, Rest/binary>>) -> {{ext, Type, Bytes}, Rest};
value(<<16#ca, F:32/float, Rest/binary>>) -> {F, Rest};
value(<<16#cb, F:64/float, Rest/binary>>) -> {F, Rest};
value(<<16#cc, N:8, Rest/binary>>) -> {N, Rest};
value(<<16#cd, N:16, Rest/binary>>) -> {N, Rest};
value(<<16#ce, N:32, Rest/binary>>) -> {N, Rest};
value(<<16#cf, N:64, Rest/binary>>) -> {N, Rest};
value(<<16#d0, N:8/signed, Rest/binary>>) -> {N, Rest};
value(<<16#d1, N:16/signed, Rest/binary>>) -> {N, Rest};
value(<<16#d2, N:32/signed, Rest/binary>>) -> {N, Rest};
value(<<16#d3, N:64/signed, Rest/binary>>) -> {N, Rest};
value(<<16#d4, Type:8/signed, Bytes:1/binary, Rest/binary>>) -> {{ext, Type, Bytes}, Rest};
value(<<16#d5, Type:8/signed, Bytes:2/binary, Rest/binary>>) -> {{ext, Type, Bytes}, Rest};
value(<<16#d6, Type:8/signed, Bytes:4/binary, Rest/binary>>) -> {{ext, Type, Bytes}, Rest};
value(<<16#d7, Type:8/signed, Bytes:8/binary, Rest/binary>>) -> {{ext, Type, Bytes}, Rest};
value(<<16#d8, Type:8/signed, Bytes:16/binary, Rest/binary>>) -> {{ext, Type, Bytes}, Rest};
value(<<16#d9, N:8, Text:N/binary, Rest/binary>>) -> {{str, Text}, Rest};
value(<<16#da, N:16, Text:N/binary, Rest/binary>>) -> {{str, Text}, Rest};
value(<<16#db, N:32, Text:N/binary, Rest/binary>>) -> {{str, Text}, Rest};
value(<<16#dc, N:16, Rest/binary>>) -> array(N, Rest);
value(<<16#dd, N:32, Rest/binary>>) -> array(N, Rest);
value(<<16#de, N:16, Rest/binary>>) -> map(N, Rest);
value(<<16#df, N:32, Rest/binary>>) -> map(N, Rest);
value(<<2#111:3, N:5, Rest/binary>>) -> {N - 32, Rest}.

array(N, Bytes) -> lists:mapfoldl(fun(_, Rest) -> value(Rest) end, Bytes, lists:seq(1, N)).

map(N, Bytes) ->
    {Flat, Rest} = array(2 * N, Bytes),
    {maps:from_list(pairs(Flat)), Rest}.

pairs([Key, Value | Rest]) -> [{Key, Value} | pairs(Rest)];
pairs([]) -> [].
