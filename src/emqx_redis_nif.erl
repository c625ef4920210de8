%% The functions of the NIF library, and nothing else.
-module(emqx_redis_nif).

-export([
    encode/1, encode_dirty/1, decode/1, decode_dirty/1, new_atoms_left/0,
    start/4, reconfigure/1, validate/1, stop/0, join/0,
    submit/3, submit_dirty/3, cancel/1,
    match_in_memory/2, match_in_memory_dirty/2, is_leased/0, errand/3,
    status/0, config/0
]).

-nifs([
    encode/1, encode_dirty/1, decode/1, decode_dirty/1, new_atoms_left/0,
    start/4, reconfigure/1, validate/1, stop/0, join/0,
    submit/3, submit_dirty/3, cancel/1,
    match_in_memory/2, match_in_memory_dirty/2, is_leased/0, errand/3,
    status/0, config/0
]).

-on_load(load/0).

-type unencodable() :: {unencodable, What :: binary(), Path :: binary()}.
-type undecodable() ::
    truncated
    | trailing_bytes
    | too_deep
    | too_large
    | reserved_byte
    | not_finite
    | atom_budget
    | atom_too_long
    | atom_not_utf8
    | duplicate_key
    | unknown_extension
    | bad_extension.

-export_type([unencodable/0, undecodable/0]).

%% On a scheduler: gives up as soon as the term proves to be large.
-spec encode(term()) -> {ok, binary()} | over_budget | {error, unencodable()}.
encode(_Term) -> erlang:nif_error(not_loaded).

%% On a dirty scheduler: gives up at 64 MiB.
-spec encode_dirty(term()) -> {ok, binary()} | over_budget | {error, unencodable()}.
encode_dirty(_Term) -> erlang:nif_error(not_loaded).

%% On a scheduler: takes up to 4 KiB.
-spec decode(binary()) -> {ok, term()} | over_budget | {error, undecodable()}.
decode(_Binary) -> erlang:nif_error(not_loaded).

%% On a dirty scheduler.
-spec decode_dirty(binary()) -> {ok, term()} | {error, undecodable()}.
decode_dirty(_Binary) -> erlang:nif_error(not_loaded).

-spec new_atoms_left() -> non_neg_integer().
new_atoms_left() -> erlang:nif_error(not_loaded).

%%--------------------------------------------------------------------
%% The engine; `native/src/nif.rs' documents each
%%--------------------------------------------------------------------

-spec start(pid(), pid(), binary(), emqx_redis_server:source()) ->
    ok | disabled | {error, term()}.
start(_Owner, _Logger, _Node, _Source) -> erlang:nif_error(not_loaded).

-spec reconfigure(emqx_redis_server:source()) -> ok | {error, term()}.
reconfigure(_Source) -> erlang:nif_error(not_loaded).

-spec validate(emqx_redis_server:source()) -> {ok, map()} | {error, term()}.
validate(_Source) -> erlang:nif_error(not_loaded).

-spec stop() -> ok.
stop() -> erlang:nif_error(not_loaded).

-spec join() -> ok.
join() -> erlang:nif_error(not_loaded).

-spec submit(reference(), emqx_redis_request:settings(), emqx_redis_request:operation()) ->
    non_neg_integer() | over_budget | {error, term()}.
submit(_Ref, _Settings, _Operation) -> erlang:nif_error(not_loaded).

-spec submit_dirty(reference(), emqx_redis_request:settings(), emqx_redis_request:operation()) ->
    non_neg_integer() | over_budget | {error, term()}.
submit_dirty(_Ref, _Settings, _Operation) -> erlang:nif_error(not_loaded).

-spec cancel(non_neg_integer()) -> ok.
cancel(_Number) -> erlang:nif_error(not_loaded).

%%--------------------------------------------------------------------
%% Routes; `native/src/routes.rs' documents each
%%--------------------------------------------------------------------

-spec match_in_memory(match_routes | match_subscriptions, binary()) ->
    {ok, list()} | out_of_sync | busy | over_budget | stopped | {error, term()}.
match_in_memory(_What, _Topic) -> erlang:nif_error(not_loaded).

-spec match_in_memory_dirty(match_routes | match_subscriptions, binary()) ->
    {ok, list()} | out_of_sync | busy | stopped | {error, term()}.
match_in_memory_dirty(_What, _Topic) -> erlang:nif_error(not_loaded).

-spec is_leased() -> boolean().
is_leased() -> erlang:nif_error(not_loaded).

-spec errand(reference(), timeout() | undefined, tuple()) -> ok | stopped.
errand(_Ref, _Timeout, _Errand) -> erlang:nif_error(not_loaded).

-spec status() -> map() | stopped.
status() -> erlang:nif_error(not_loaded).

-spec config() -> map() | stopped.
config() -> erlang:nif_error(not_loaded).

%%--------------------------------------------------------------------
%% Loading
%%--------------------------------------------------------------------

load() ->
    erlang:load_nif(filename:join(priv_dir(), ?MODULE_STRING), 0).

%% `priv' of the application, or beside the directory of this module where the application is not
%% known by its name, as in a shell that was started with `erl -pa ebin'.
priv_dir() ->
    case code:priv_dir(emqx_redis_storage) of
        {error, bad_name} ->
            filename:join(filename:dirname(filename:dirname(code:which(?MODULE))), "priv");
        Dir ->
            Dir
    end.
