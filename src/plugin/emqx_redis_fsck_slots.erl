%% Redis Cluster's hash slots, as far as `emqx_redis_fsck' names keys. The storage itself has them in
%% lib/src/hash_slot.rs, and does not tell Erlang of slots.
-module(emqx_redis_fsck_slots).

-export([count/0, crc16/1, of_tag/1, tags/0]).

-define(SLOTS, 16384).

-spec count() -> pos_integer().
count() -> ?SLOTS.

%% The slot of keys with this hash tag.
-spec of_tag(binary()) -> non_neg_integer().
of_tag(Tag) -> crc16(Tag) rem ?SLOTS.

%% CRC16/XMODEM: polynomial 0x1021, from 0 on.
-spec crc16(binary()) -> 0..65535.
crc16(Bytes) -> crc16(Bytes, 0).

crc16(<<Byte, Rest/binary>>, Crc) -> crc16(Rest, shift(8, Crc bxor (Byte bsl 8)));
crc16(<<>>, Crc) -> Crc.

shift(0, Crc) -> Crc;
shift(Bits, Crc) -> shift(Bits - 1, ((Crc bsl 1) band 16#FFFF) bxor (16#1021 * (Crc bsr 15))).

%% A tag for each slot, in their order: of all strings over `0' to `9' and `a' to `z', in counting order, the
%% first that falls into it.
-spec tags() -> tuple().
tags() -> tags("0", #{}).

tags(_Reversed, Known) when map_size(Known) =:= ?SLOTS ->
    list_to_tuple([Tag || {_Slot, Tag} <- lists:sort(maps:to_list(Known))]);
tags(Reversed, Known) ->
    Tag = list_to_binary(lists:reverse(Reversed)),
    Slot = of_tag(Tag),
    case Known of
        #{Slot := _} -> tags(next(Reversed), Known);
        _ -> tags(next(Reversed), Known#{Slot => Tag})
    end.

next([$z | Rest]) -> [$0 | next(Rest)];
next([$9 | Rest]) -> [$a | Rest];
next([Digit | Rest]) -> [Digit + 1 | Rest];
next([]) -> "0".
