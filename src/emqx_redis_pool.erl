%% The connections to Redis, and commands of one's own on them.
-module(emqx_redis_pool).

-export([start_link/0, start_link/1, stop/0]).
-export([query/1, query/2, query_async/1, query_async/2]).
-export([pipeline/1, pipeline/2, pipeline_async/1, pipeline_async/2]).

-type command() :: [iodata() | atom() | number()].
-type value() :: binary() | integer() | undefined | [value() | error()].
-type error() :: {error, emqx_redis_storage:error_reason()}.
-type request_id() :: emqx_redis_request:request_id().

%% Starts the storage outside the application, linked to the caller, with the application's
%% configuration. It connects in the background. `ignore' where `enable' is false.
-spec start_link() -> {ok, pid()} | ignore | {error, term()}.
start_link() -> start_validated(emqx_redis_storage:config_source()).

%% The same with a configuration of its own: a map with the keys of the section `redis' (`redis_type' is
%% taken for `type'), or with all sections. `{error, {invalid_config, Errors}}' names every fault.
-spec start_link(map()) -> {ok, pid()} | ignore | {error, term()}.
start_link(Config) -> start_validated({pool, emqx_redis_args:config(1, Config)}).

%% A process that ends as it starts would take its caller, whom it is linked to, along.
start_validated(Source) ->
    ok = emqx_redis_storage_app:load_library(),
    case emqx_redis_nif:validate(Source) of
        {ok, _} -> emqx_redis_server:start_link(Source);
        {error, _} = Error -> Error
    end.

%% Stops what `start_link' started. What waits is answered `{error, stopped}'.
-spec stop() -> ok.
stop() -> emqx_redis_server:stop().

%% Does one command of any kind and answers as eredis does: strings and status replies are
%% binaries, nil is `undefined'. An error reply is `{error, {redis, Code, Text}}'. A command that
%% would change the connection's state or hold it up for others (SELECT, SUBSCRIBE, BLPOP, WATCH, ...) is
%% `{error, {not_allowed, Name}}'. In a cluster the command goes to the master that owns its first key, and
%% one without keys (SCAN, DBSIZE, ...) to any one master, which answers for itself. Options: `timeout'.
-spec query(command()) -> {ok, value()} | error().
query(Command) -> query(Command, #{}).

-spec query(command(), emqx_redis_args:options()) -> {ok, value()} | error().
query(Command, Opts) -> call(one(Command, Opts)).

-spec query_async(command()) -> request_id().
query_async(Command) -> query_async(Command, #{}).

-spec query_async(command(), emqx_redis_args:options()) -> request_id().
query_async(Command, Opts) -> async(one(Command, Opts)).

one(Command, Opts) ->
    [Timeout] = emqx_redis_args:options(2, Opts, [timeout]),
    {{query, emqx_redis_args:command(1, Command)}, Timeout}.

%% Does several commands in one go and answers each: `{ok, [{ok, Value} | {error, Reason}]}'. They are not
%% one atomic unit, unless they stand between MULTI and EXEC. In a cluster each goes where `query/1' would
%% send it; those on keys of one hash slot are done in order, others side by side; a MULTI whose keys are in
%% several slots is refused (CROSSSLOT). Options: `timeout'.
-spec pipeline([command()]) -> {ok, [{ok, value()} | error()]} | error().
pipeline(Commands) -> pipeline(Commands, #{}).

-spec pipeline([command()], emqx_redis_args:options()) -> {ok, [{ok, value()} | error()]} | error().
pipeline(Commands, Opts) -> call(several(Commands, Opts)).

-spec pipeline_async([command()]) -> request_id().
pipeline_async(Commands) -> pipeline_async(Commands, #{}).

-spec pipeline_async([command()], emqx_redis_args:options()) -> request_id().
pipeline_async(Commands, Opts) -> async(several(Commands, Opts)).

several(Commands, Opts) ->
    [Timeout] = emqx_redis_args:options(2, Opts, [timeout]),
    {{pipeline, emqx_redis_args:commands(1, Commands)}, Timeout}.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

call({Operation, Timeout}) -> emqx_redis_request:call(Operation, Timeout).

async({Operation, Timeout}) -> emqx_redis_request:async(Operation, Timeout).
