%% Sessions of MQTT clients in Redis (MQTT 5.0 section 4.1). A session is any term.
%%
%% Each function has a form `..._async' with the same arguments, which answers a request id for
%% `emqx_redis_storage:receive_response/2', `check_response/2' and `cancel/1'.
-module(emqx_redis_session).

-export([save_session/2, save_session/3, save_session_async/2, save_session_async/3]).
-export([load_session/1, load_session_async/1]).
-export([delete_session/1, delete_session/2, delete_session_async/1, delete_session_async/2]).
-export([list_sessions/2, list_sessions_async/2]).
-export([count_sessions/0, count_sessions_async/0]).
-export([claim_session/2, claim_session_async/2]).

-type client_id() :: binary().
-type epoch() :: non_neg_integer().
-type error() :: {error, emqx_redis_storage:error_reason()}.
-type request_id() :: emqx_redis_request:request_id().
-export_type([client_id/0, epoch/0]).

%% Writes the session in one atomic unit: data, time of the save, expiry, this node's name, and the
%% indexes. It lives for `ttl' seconds from now (option, else `persistence.session_ttl').
%%
%% A session that was claimed takes the option `epoch': a lower one than stored answers
%% `{error, {stale_epoch, Stored}}', none answers `{error, fenced}'.
%% Options: `ttl', `epoch', `timeout', `durability'.
-spec save_session(client_id(), term()) -> ok | error().
save_session(ClientId, Session) -> save_session(ClientId, Session, #{}).

-spec save_session(client_id(), term(), emqx_redis_args:options()) -> ok | error().
save_session(ClientId, Session, Opts) -> call(save(ClientId, Session, Opts)).

-spec save_session_async(client_id(), term()) -> request_id().
save_session_async(ClientId, Session) -> save_session_async(ClientId, Session, #{}).

-spec save_session_async(client_id(), term(), emqx_redis_args:options()) -> request_id().
save_session_async(ClientId, Session, Opts) -> async(save(ClientId, Session, Opts)).

save(ClientId, Session, Opts) ->
    Known = [ttl, epoch, timeout, durability],
    [Ttl, Epoch, Timeout, Durability] = emqx_redis_args:options(3, Opts, Known),
    Save = {save_session, emqx_redis_args:client_id(1, ClientId), Session, Ttl, Epoch},
    {Save, emqx_redis_args:settings(Timeout, Durability)}.

%% Reads a session: the very term that was saved. `{error, not_found}' when there is none, also when it
%% has expired; `{error, {undecodable, _}}' when something else is stored in its place.
-spec load_session(client_id()) -> {ok, term()} | error().
load_session(ClientId) -> call(load(ClientId)).

-spec load_session_async(client_id()) -> request_id().
load_session_async(ClientId) -> async(load(ClientId)).

load(ClientId) ->
    {{load_session, emqx_redis_args:client_id(1, ClientId)}, undefined}.

%% Deletes a session; that there was none is `ok' too. Its messages stay: see
%% `emqx_redis_message:delete_messages/1'. A claimed session's epoch is kept for a day, so that a node that
%% was paused cannot bring the session back.
%% Options: `epoch' as for `save_session/3', `timeout', `durability'.
-spec delete_session(client_id()) -> ok | error().
delete_session(ClientId) -> delete_session(ClientId, #{}).

-spec delete_session(client_id(), emqx_redis_args:options()) -> ok | error().
delete_session(ClientId, Opts) -> call(delete(ClientId, Opts)).

-spec delete_session_async(client_id()) -> request_id().
delete_session_async(ClientId) -> delete_session_async(ClientId, #{}).

-spec delete_session_async(client_id(), emqx_redis_args:options()) -> request_id().
delete_session_async(ClientId, Opts) -> async(delete(ClientId, Opts)).

delete(ClientId, Opts) ->
    [Epoch, Timeout, Durability] = emqx_redis_args:options(2, Opts, [epoch, timeout, durability]),
    Delete = {delete_session, emqx_redis_args:client_id(1, ClientId), Epoch},
    {Delete, emqx_redis_args:settings(Timeout, Durability)}.

%% At most `Limit' client ids after the first `Offset', in the order of their last save, the oldest
%% first; no expired session is among them. A page is full if enough sessions exist. In a cluster they come
%% hash slot by hash slot, in that order within each.
-spec list_sessions(non_neg_integer(), non_neg_integer()) -> {ok, [client_id()]} | error().
list_sessions(Limit, Offset) -> call(list(Limit, Offset)).

-spec list_sessions_async(non_neg_integer(), non_neg_integer()) -> request_id().
list_sessions_async(Limit, Offset) -> async(list(Limit, Offset)).

list(Limit, Offset) ->
    {{list_sessions, emqx_redis_args:count(1, Limit), emqx_redis_args:count(2, Offset)}, undefined}.

%% How many sessions there are that have not expired.
-spec count_sessions() -> {ok, non_neg_integer()} | error().
count_sessions() -> call(count()).

-spec count_sessions_async() -> request_id().
count_sessions_async() -> async(count()).

count() ->
    {{count_sessions}, undefined}.

%% Takes a session over: raises its epoch, so that whoever held it before can write no more, and reads
%% it, in one atomic unit. `session' is `undefined' where none is stored; the epoch counts all the same.
%% Options: `timeout', `durability'.
-spec claim_session(client_id(), emqx_redis_args:options()) ->
    {ok, #{epoch := epoch(), session := term() | undefined}} | error().
claim_session(ClientId, Opts) -> call(claim(ClientId, Opts)).

-spec claim_session_async(client_id(), emqx_redis_args:options()) -> request_id().
claim_session_async(ClientId, Opts) -> async(claim(ClientId, Opts)).

claim(ClientId, Opts) ->
    [Timeout, Durability] = emqx_redis_args:options(2, Opts, [timeout, durability]),
    Claim = {claim_session, emqx_redis_args:client_id(1, ClientId)},
    {Claim, emqx_redis_args:settings(Timeout, Durability)}.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

call({Operation, Settings}) -> emqx_redis_request:call(Operation, Settings).

async({Operation, Settings}) -> emqx_redis_request:async(Operation, Settings).
