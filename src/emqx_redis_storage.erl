%% Starting, stopping and watching the storage, and the results of asynchronous calls.
-module(emqx_redis_storage).

-export([start/0, start/1, stop/0, status/0, config/0]).
-export([receive_response/2, check_response/2, cancel/1]).
-export([config_source/0]).

-export_type([error_reason/0, why/0, tls_failure/0, request_id/0]).

-type request_id() :: emqx_redis_request:request_id().

%% Why a call failed. Of those marked (?) the operation may have happened, or may yet; of all others it
%% is certain that nothing was changed.
-type error_reason() ::
    %% (?) No answer within the call's timeout.
    timeout
    %% `limits.max_inflight' requests, or `limits.max_inflight_bytes' of them, are in flight.
    | overloaded
    %% The storage is not running, or was stopped before the request was sent.
    | stopped
    %% The caller cancelled the request before it was sent.
    | cancelled
    %% (?) The request may have reached Redis; then the connection was lost.
    | {unknown, why()}
    %% Redis has been away for longer than `redis.outage_grace'.
    | {unavailable, why()}
    %% There is no such session.
    | not_found
    %% There is no session to store for, and the option `session' wants one.
    | no_session
    %% The session was claimed, and the call named no epoch.
    | fenced
    %% The session was claimed again since; its epoch is this now.
    | {stale_epoch, emqx_redis_session:epoch()}
    %% The client's queue is full, and `on_full' is `reject'.
    | queue_full
    %% (?) Redis did a part of the operation: a value of another type stood at one of our keys. It was
    %% moved out of the way (to `foreign:...', for a week), so that the same call works now.
    | {partial, Text :: binary()}
    %% (?) Of a batch for many clients, these failed.
    | {partial, [{emqx_redis_session:client_id(), error_reason()}]}
    %% What is stored is not what this library stores.
    | {undecodable, #{reason := atom(), message_id => emqx_redis_message:message_id()}}
    %% (?) The write was done, and reached only so many copies: replicas, or for `{aof, _, _}' the append-only
    %% files of the server itself (0 or 1) and of replicas.
    | {not_durable, non_neg_integer() | {0..1, non_neg_integer()}}
    %% The server can't do what the level of durability asks for.
    | {unsupported, Text :: binary()}
    %% Redis refused: the code (`OOM', `NOPERM', `READONLY', ...) and the text of its answer.
    | {redis, Code :: binary(), Text :: binary()}
    %% The command would change or hold up a connection that others share.
    | {not_allowed, Command :: binary()}
    %% No valid topic filter or name.
    | {invalid_topic,
        empty
        | too_long
        | not_utf8
        | null_character
        | wildcard_in_name
        | multi_level_wildcard
        | single_level_wildcard
        | share_group_empty
        | share_group_wildcard
        | share_filter_missing
        | share_nested}
    %% (?) A defect of this library.
    | {internal, Text :: binary()}.

%% What is wrong with the connection.
-type why() ::
    connecting
    | econnrefused
    | connect_timeout
    | {nxdomain, binary()}
    | closed
    | hung
    | {wrong_password, binary()}
    | {no_permission, binary()}
    | loading
    | too_many_clients
    %% A fail-over is under way.
    | not_master
    | {unknown_master, Name :: binary()}
    | {cluster_down, binary()}
    | {server, binary()}
    | {protocol, binary()}
    | {io, binary()}
    | {layout, binary()}
    | {tls, tls_failure(), Text :: binary()}
    | stopped
    | cancelled.

%% What keeps a connection from being encrypted. The text that goes with it names the setting.
-type tls_failure() ::
    %% The server's certificate: signed by no trusted authority, for another host, and so on.
    unknown_ca
    | wrong_host
    | expired
    | not_yet_valid
    | bad_certificate
    %% The server wants a certificate of this client, or refuses the one it has.
    | client_certificate_required
    | client_certificate_refused
    %% The port takes plain connections.
    | not_tls
    %% Anything else, such as no cipher in common.
    | handshake_failed.

%% Starts the application with its own configuration: the environment's `config_file' (a HOCON file) or
%% `redis_storage' (a map), else defaults. Answers at once though Redis is away; `status/0' tells when it
%% is connected. Starting what runs is `ok'.
-spec start() -> ok | {error, term()}.
start() -> start_with(env_source()).

%% Starts the application with a configuration map: the section `redis_storage' of
%% `docs/configuration.md'. Where it runs already, a changed configuration is applied without
%% dropping requests in flight. `{error, {invalid_config, [#{path := _, found := _, expected := _}]}}'
%% names every fault, and nothing is started or changed.
-spec start(map()) -> ok | {error, term()}.
start(Config) -> start_with({map, emqx_redis_args:config(1, Config)}).

start_with(Source) ->
    ok = emqx_redis_storage_app:load_library(),
    case emqx_redis_nif:validate(Source) of
        {ok, _} ->
            %% Within a fun, so that no listing of the environment shows a password.
            _ = application:load(?MODULE),
            Previous = application:get_env(?MODULE, started_with),
            application:set_env(?MODULE, started_with, fun() -> Source end),
            Started =
                try
                    start_validated(Source)
                catch
                    %% Somebody else stops it meanwhile.
                    exit:_ -> {error, stopped}
                end,
            %% An owner that is started anew must not take what was refused.
            Started =:= ok orelse restore(Previous),
            Started;
        {error, _} = Error ->
            Error
    end.

restore({ok, Previous}) -> application:set_env(?MODULE, started_with, Previous);
restore(undefined) -> application:unset_env(?MODULE, started_with).

start_validated(Source) ->
    case {whereis(emqx_redis_server), is_running()} of
        {undefined, true} ->
            %% It was started with `enable = false', or its owner is being started anew.
            case supervisor:restart_child(emqx_redis_storage_sup, emqx_redis_server) of
                {ok, _} -> ok;
                {error, running} -> emqx_redis_server:reconfigure(Source);
                {error, restarting} -> ok;
                {error, _} = Error -> Error
            end;
        {undefined, false} ->
            case application:ensure_all_started(?MODULE) of
                {ok, _} -> ok;
                {error, {_App, Reason}} -> {error, Reason}
            end;
        {_, true} ->
            emqx_redis_server:reconfigure(Source);
        {Pid, false} ->
            %% emqx_redis_pool:start_link was first.
            {error, {already_started, Pid}}
    end.

is_running() ->
    lists:keymember(?MODULE, 1, application:which_applications()).

%% Stops the application. What waits is answered `{error, stopped}', what was sent and is not answered
%% `{error, {unknown, stopped}}'. All threads and connections have ended when this returns.
-spec stop() -> ok | {error, term()}.
stop() ->
    application:unset_env(?MODULE, started_with),
    case application:stop(?MODULE) of
        ok -> ok;
        {error, {not_started, ?MODULE}} -> ok;
        {error, _} = Error -> Error
    end.

%% What the storage does and has done: connections, the server and warnings about it, requests in
%% flight, counters, latencies in microseconds. `#{running => false}' when it does not run.
-spec status() -> map().
status() ->
    case erlang:module_loaded(emqx_redis_nif) andalso emqx_redis_nif:status() of
        false -> #{running => false};
        stopped -> #{running => false};
        Status -> Status#{running => true}
    end.

%% The configuration in force, defaults included, passwords hidden; an empty map when it does not run.
-spec config() -> map().
config() ->
    case erlang:module_loaded(emqx_redis_nif) andalso emqx_redis_nif:config() of
        false -> #{};
        stopped -> #{};
        Config -> Config
    end.

%% Awaits the result of an asynchronous call for at most so many milliseconds. After `timeout' the request
%% is cancelled and no message comes any more; whether it happened is then unknown.
-spec receive_response(request_id(), timeout()) ->
    {reply, emqx_redis_request:result()} | timeout.
receive_response(RequestId, Timeout) -> emqx_redis_request:receive_response(RequestId, Timeout).

%% Whether a message that the caller received is the result of this asynchronous call.
-spec check_response(term(), request_id()) -> {reply, emqx_redis_request:result()} | no_reply.
check_response(Message, RequestId) -> emqx_redis_request:check_response(Message, RequestId).

%% Gives up an asynchronous call whose result was not received: no message comes any more. `ok' is certain
%% not to have happened, of `{error, {unknown, cancelled}}' nobody knows; `{reply, Result}' was too late.
-spec cancel(request_id()) ->
    ok | {error, {unknown, cancelled}} | {reply, emqx_redis_request:result()}.
cancel(RequestId) -> emqx_redis_request:cancel(RequestId).

%% Where the running application's configuration comes from.
-spec config_source() -> emqx_redis_server:source().
config_source() ->
    case application:get_env(?MODULE, started_with) of
        {ok, Source} -> Source();
        undefined -> env_source()
    end.

env_source() ->
    %% `sys.config' and the command line count only once the application is loaded.
    _ = application:load(?MODULE),
    case application:get_env(?MODULE, config_file) of
        {ok, File} ->
            {file, unicode:characters_to_binary(File)};
        undefined ->
            {map, env_map()}
    end.

%% A plugin of EMQX has what is set there.
env_map() ->
    case application:get_env(?MODULE, redis_storage) of
        {ok, Map} -> Map;
        undefined ->
            case emqx_redis_broker:is_running() of
                true -> emqx_redis_plugin:config();
                false -> #{}
            end
    end.
