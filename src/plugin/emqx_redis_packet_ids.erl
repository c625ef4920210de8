%% Which packet ids a client's session gives out, as far as hooks tell.
%%
%% EMQX numbers the QoS 1 and 2 messages that it sends to a client, one after another, and tells of each in
%% that order (`message.delivered'). A session that is restored begins behind all ids that may have been in
%% use: they are reserved in blocks, and the end of the block is stored with the session. A client that has
%% an unfinished QoS 2 exchange under an id would take another message under it for the same one, and drop
%% it (MQTT 5.0 section 4.3.3).
-module(emqx_redis_packet_ids).

-export([new/0, restored/1, from/1, reserved/1, reserved_to/1, far_behind/1, next/1]).

-export_type([state/0]).

%% The id of the next message, and how many are left in the block.
-type state() :: {1..65535, non_neg_integer()}.

-define(MOST, 65535).
-define(BLOCK, 1000).
%% The next block is reserved when so many are left, so that it is stored before it is used.
-define(LOW, 100).

-spec new() -> state().
new() -> {1, ?BLOCK}.

%% Behind the block of which this is the last id.
-spec restored(1..65535) -> state().
restored(Reserved) -> {add(Reserved, 1), ?BLOCK}.

%% From the id of the next message on.
-spec from(1..65535) -> state().
from(Next) -> {Next, ?BLOCK}.

%% The last id of the block.
-spec reserved(state()) -> 1..65535.
reserved({Next, Left}) -> add(Next, Left - 1).

%% With that as the last id of the block.
-spec reserved_to(1..65535) -> state().
reserved_to(Last) -> {add(Last, ?MOST - ?BLOCK + 1), ?BLOCK}.

%% An id that a session which was not watched has not come to.
-spec far_behind(1..65535) -> 1..65535.
far_behind(Id) -> add(Id, 20000).

%% Gives the next id out. `reserve': the end of the block has moved, and must be stored.
-spec next(state()) -> {1..65535, keep | reserve, state()}.
next({Next, Left}) when Left =< ?LOW -> {Next, reserve, {add(Next, 1), Left - 1 + ?BLOCK}};
next({Next, Left}) -> {Next, keep, {add(Next, 1), Left - 1}}.

%% 65535 is followed by 1.
add(Id, More) -> (Id - 1 + More) rem ?MOST + 1.
