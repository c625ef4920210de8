%% Owns the engine in the NIF library: starts it, hands its log events on, and awaits its end.
%%
%% Its state holds no configuration, so that no password can be seen in it.
-module(emqx_redis_server).

-behaviour(gen_server).

-export([start_link/0, start_link/1, stop/0, reconfigure/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

%% Where a configuration comes from.
-type source() :: {map | pool, map()} | {file, binary()}.
-export_type([source/0]).

%% The engine answers everything and closes its connections well within this.
-define(STOP_TIMEOUT, 10000).

%% With the configuration of the application.
-spec start_link() -> gen_server:start_ret() | {error, term()}.
start_link() ->
    start_link(emqx_redis_storage:config_source()).

-spec start_link(source()) -> {ok, pid()} | ignore | {error, term()}.
start_link(Source) ->
    %% Crash reports print a process's arguments, but not what is within a fun.
    gen_server:start_link({local, ?MODULE}, ?MODULE, fun() -> Source end, []).

-spec stop() -> ok.
stop() ->
    try
        gen_server:stop(?MODULE, normal, infinity)
    catch
        exit:noproc -> ok;
        exit:{noproc, _} -> ok
    end.

-spec reconfigure(source()) -> ok | {error, term()}.
reconfigure(Source) ->
    gen_server:call(?MODULE, {reconfigure, fun() -> Source end}, infinity).

%%--------------------------------------------------------------------
%% gen_server
%%--------------------------------------------------------------------

init(Source) ->
    process_flag(trap_exit, true),
    ok = emqx_redis_storage_app:load_library(),
    Node = atom_to_binary(node(), utf8),
    case start_engine(Node, Source) of
        ok -> {ok, running};
        %% `enable = false': calls answer `{error, stopped}'.
        disabled -> ignore;
        %% Not a crash: no report, as the caller is told what is wrong.
        {error, Reason} -> {stop, {shutdown, Reason}}
    end.

handle_call({reconfigure, Source}, _From, running) ->
    {reply, hide_arguments(fun() -> emqx_redis_nif:reconfigure(Source()) end), running};
handle_call(_Request, _From, running) ->
    {reply, {error, unknown_call}, running}.

handle_cast(_Request, running) ->
    {noreply, running}.

handle_info({emqx_redis_log, Level, Target, Message, Fields}, running) ->
    emqx_redis_log:log(Level, Target, Message, Fields),
    {noreply, running};
handle_info(emqx_redis_stopped, running) ->
    {stop, engine_ended, ended};
handle_info(_Message, running) ->
    {noreply, running}.

terminate(_Reason, ended) ->
    emqx_redis_nif:join(),
    ok;
terminate(_Reason, running) ->
    emqx_redis_nif:stop(),
    await_stopped(),
    emqx_redis_nif:join(),
    ok.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

start_engine(Node, Source) ->
    hide_arguments(fun() -> emqx_redis_nif:start(self(), self(), Node, Source()) end).

%% The arguments of a NIF that fails stand in the stack trace; a password may be among them.
hide_arguments(Fun) ->
    try
        Fun()
    catch
        Class:Reason -> {error, {internal, iolist_to_binary(io_lib:format("~p:~p", [Class, Reason]))}}
    end.

await_stopped() ->
    receive
        emqx_redis_stopped ->
            ok;
        {emqx_redis_log, Level, Target, Message, Fields} ->
            emqx_redis_log:log(Level, Target, Message, Fields),
            await_stopped()
    after ?STOP_TIMEOUT ->
        logger:error("emqx_redis_storage: the engine does not stop")
    end.
