%% What writers write: it follows from its number, to the last byte, so that none of it has to be kept.
-module(emqx_redis_fault_terms).

-export([session/2, message/3, message_id/1]).

-export_type([version/0, sequence/0]).

%% 0 is no session.
-type version() :: non_neg_integer().
-type sequence() :: pos_integer().

%% Long ago, so that they are no time of storing.
-define(FIRST_TIMESTAMP, 1700000000000).

-spec session(Client :: binary(), version()) -> map().
session(Client, Version) ->
    #{
        client => Client,
        version => Version,
        subscriptions => #{<<"a/+/#">> => #{qos => Version rem 3}, {tuple, 1.5} => [Client]},
        padding => binary:copy(<<(Version rem 251)>>, Version * 37 rem 400)
    }.

%% With timestamps, some in a row have the same one.
-spec message(Client :: binary(), Timestamps :: boolean(), sequence()) -> map().
message(Client, Timestamps, Sequence) ->
    Message = #{
        id => message_id(Sequence),
        topic => <<"to/", Client/binary>>,
        qos => 1 + Sequence rem 2,
        payload => binary:copy(<<(Sequence rem 251)>>, Sequence * 53 rem 600)
    },
    case Timestamps of
        true -> Message#{timestamp => ?FIRST_TIMESTAMP + Sequence div 3};
        false -> Message
    end.

%% Raw bytes, as EMQX has them; their order is not that of the numbers, so that it is of no help.
-spec message_id(sequence()) -> binary().
message_id(Sequence) ->
    <<(erlang:phash2(Sequence)):32, ":", Sequence:64>>.
