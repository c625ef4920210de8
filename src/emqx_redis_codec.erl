%% Terms as the plain MessagePack that is stored in Redis.
%%
%% The README says which term becomes what. For looking at stored values by hand, and for tools: the
%% other modules encode and decode on their own.
-module(emqx_redis_codec).

-export([encode/1, decode/1, new_atoms_left/0]).

-type encode_error() :: too_large | emqx_redis_nif:unencodable().
-type decode_error() :: emqx_redis_nif:undecodable().

-export_type([encode_error/0, decode_error/0]).

%% Encodes any term but local funs and ports. `{unencodable, What, Path}' says what was found and
%% where: `.subs[3]{2}' is the second element of the tuple that is the third element of the list at
%% the key `subs'. `too_large' is an encoding of more than 64 MiB.
-spec encode(term()) -> {ok, binary()} | {error, encode_error()}.
encode(Term) ->
    case emqx_redis_nif:encode(Term) of
        over_budget ->
            case emqx_redis_nif:encode_dirty(Term) of
                over_budget -> {error, too_large};
                Result -> Result
            end;
        Result ->
            Result
    end.

%% Decodes what `encode/1', or any other MessagePack library, made. Safe for bytes of any origin: it
%% makes no more than 10,000 new atoms in the life of the VM, and then answers `atom_budget'.
-spec decode(binary()) -> {ok, term()} | {error, decode_error()}.
decode(Binary) ->
    case emqx_redis_nif:decode(Binary) of
        over_budget -> emqx_redis_nif:decode_dirty(Binary);
        Result -> Result
    end.

%% How many atoms that this VM does not have yet decoding may still make. At 0, a value that names
%% another one is refused until the VM is restarted.
-spec new_atoms_left() -> non_neg_integer().
new_atoms_left() ->
    emqx_redis_nif:new_atoms_left().
