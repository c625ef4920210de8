%% A broker with the plugin in it, as an operating system process of its own, for tests:
%%
%%     Broker = start(#{config => emqx_redis_test_server:config(Server)}),
%%     {ok, Client, _} = emqx_redis_mqtt_client:connect(#{port => port(Broker), client_id => <<"c">>}),
%%     ok = kill(Broker).
%%
%% It is the stand-in of `standin/', or a real EMQX where the environment's EMQX_LIB names the folder of its
%% compiled applications (each with `ebin' in it, as in a release's `lib'). Then this VM has to be of the
%% OTP release that EMQX was compiled with.
-module(emqx_redis_broker_node).

-export([start/1, kill/1, stop/1, stop_all/0]).
-export([call/4, port/1, kind/0, is_alive/1, start_plugin/1, stop_plugin/1, is_hooked/1, log/1]).
%% Within the broker.
-export([boot/1, is_ready/0]).

-export_type([broker/0]).

-type broker() :: #{
    peer := pid(),
    os_pid := string(),
    port := inet:port_number(),
    folder := file:filename(),
    config := map()
}.
-type options() :: #{
    %% The plugin's.
    config => map(),
    %% Settings of EMQX's section `mqtt', such as `max_mqueue_len'.
    mqtt => #{atom() => term()},
    %% Whether the plugin is started in it; it is unless this is false.
    plugin => boolean(),
    %% A name of its own unless set.
    name => atom(),
    %% Where it may keep files, which are left there.
    folder => file:filename()
}.

-define(RUNNING, {?MODULE, running}).
%% Above those of Redis servers, and each given out once: a broker is slow to listen on it.
-define(FIRST_PORT, 22000).
-define(PORTS, 10000).
-define(CALL_TIMEOUT, 30000).
%% Many may start at once.
-define(START_TIMEOUT, 120000).

%% Returns when it takes connections and the plugin runs.
-spec start(options()) -> broker().
start(Options) ->
    Config = maps:get(config, Options, #{}),
    Name = maps:get(name, Options, unique_name()),
    Port = free_port(),
    Folder = filename:join(maps:get(folder, Options, "/tmp"), unique_name()),
    ok = filelib:ensure_dir(filename:join(Folder, "any")),
    Broker = start_node(kind(), Name, Folder, Port, maps:get(mqtt, Options, #{}), Config),
    update_running(fun(Running) -> [Broker | Running] end),
    maps:get(plugin, Options, true) andalso (ok = start_plugin(Broker)),
    Broker.

%% As power that fails.
-spec kill(broker()) -> ok.
kill(#{os_pid := OsPid} = Broker) ->
    _ = os:cmd("kill -KILL " ++ OsPid),
    ended(Broker).

%% As the operator stops it.
-spec stop(broker()) -> ok.
stop(#{os_pid := OsPid} = Broker) ->
    case kind() of
        standin ->
            ok = call(Broker, emqx_standin, stop, []);
        emqx ->
            %% As it would be done to a plugin that was installed.
            ok = call(Broker, emqx_conf_app, unset_config_loaded, []),
            _ = call(Broker, application, stop, [emqx_redis_storage]),
            os:cmd("kill -TERM " ++ OsPid)
    end,
    ended(Broker).

%% For end_per_suite: kills all that were not ended.
-spec stop_all() -> ok.
stop_all() -> lists:foreach(fun kill/1, persistent_term:get(?RUNNING, [])).

ended(#{peer := Peer, os_pid := OsPid} = Broker) ->
    emqx_redis_test_helpers:wait_until(fun() -> not is_running(OsPid) end, 60000),
    try peer:stop(Peer) catch exit:_ -> ok end,
    update_running(fun(Running) -> lists:delete(Broker, Running) end).

update_running(Change) ->
    global:trans({?RUNNING, self()}, fun() ->
        persistent_term:put(?RUNNING, Change(persistent_term:get(?RUNNING, [])))
    end).

%% A process that ended and was not waited for is a zombie.
is_running(OsPid) ->
    case file:read_file(["/proc/", OsPid, "/stat"]) of
        {ok, Stat} -> nomatch =:= re:run(Stat, "^[^)]*\\) Z");
        {error, _} -> false
    end.

-spec is_alive(broker()) -> boolean().
is_alive(#{os_pid := OsPid}) -> is_running(OsPid).

-spec call(broker(), module(), atom(), list()) -> term().
call(#{peer := Peer}, Module, Function, Arguments) ->
    peer:call(Peer, Module, Function, Arguments, ?CALL_TIMEOUT).

-spec port(broker()) -> inet:port_number().
port(#{port := Port}) -> Port.

-spec kind() -> standin | emqx.
kind() ->
    case os:getenv("EMQX_LIB", "") of
        "" -> standin;
        _ -> emqx
    end.

-spec start_plugin(broker()) -> ok.
start_plugin(#{config := Config} = Broker) ->
    _ = call(Broker, application, load, [emqx_redis_storage]),
    %% It is no installed plugin, so EMQX has no configuration of it.
    kind() =:= emqx andalso
        (ok = call(Broker, application, set_env, [emqx_redis_storage, redis_storage, as_json(Config)])),
    {ok, _} = call(Broker, application, ensure_all_started, [emqx_redis_storage]),
    emqx_redis_test_helpers:wait_until(
        fun() ->
            maps:get(connected, call(Broker, emqx_redis_storage, status, []), false) andalso is_hooked(Broker)
        end,
        10000
    ).

%% Whether EMQX calls the plugin.
-spec is_hooked(broker()) -> boolean().
is_hooked(Broker) ->
    Callbacks = call(Broker, emqx_hooks, lookup, ['delivery.dropped']),
    nomatch =/= string:find(io_lib:format("~0p", [Callbacks]), "emqx_redis_hooks").

-spec stop_plugin(broker()) -> ok.
stop_plugin(Broker) -> call(Broker, application, stop, [emqx_redis_storage]).

%% What the broker has logged.
-spec log(broker()) -> binary().
log(#{folder := Folder}) ->
    iolist_to_binary([
        element(2, file:read_file(File)) || File <- filelib:wildcard(filename:join(Folder, "*.log*"))
    ]).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

unique_name() ->
    Name = io_lib:format("broker~s_~b", [os:getpid(), erlang:unique_integer([positive])]),
    list_to_atom(lists:flatten(Name)).

free_port() ->
    Next = global:trans({?FIRST_PORT, self()}, fun() ->
        Last = persistent_term:get({?MODULE, port}, rand:uniform(?PORTS)),
        persistent_term:put({?MODULE, port}, Last + 1),
        Last
    end),
    Port = ?FIRST_PORT + Next rem ?PORTS,
    case gen_tcp:listen(Port, [{ip, {127, 0, 0, 1}}, {reuseaddr, true}]) of
        {ok, Socket} ->
            ok = gen_tcp:close(Socket),
            Port;
        {error, eaddrinuse} ->
            free_port()
    end.

start_node(standin, Name, Folder, Port, Mqtt, Config) ->
    %% Also what was logged just before it is killed is in the file.
    ToFile = #{file => filename:join(Folder, "broker.log"), modes => [append, raw]},
    Handler = #{config => ToFile, filters => [], filter_default => log},
    Logger = io_lib:format("[{handler,default,logger_std_h,~0p}]", [Handler]),
    Broker = start_peer(Name, Folder, Port, Config, ["-kernel", "logger", lists:flatten(Logger)], []),
    _ = [
        {module, Module} = call(Broker, code, load_binary, [Module, File, Beam])
     || {Module, File, Beam} <- standin()
    ],
    Options = #{port => Port, plugin_config => as_json(Config), mqtt => Mqtt},
    ok = call(Broker, emqx_standin, start, [Options]),
    Broker;
start_node(emqx, Name, Folder, Port, Mqtt, Config) ->
    Lib = os:getenv("EMQX_LIB"),
    Schema =
        case filelib:is_dir(filename:join(Lib, "emqx_enterprise")) of
            true -> "emqx_enterprise_schema";
            false -> "emqx_conf_schema"
        end,
    Environment = [
        {"ERL_LIBS", Lib},
        {"SCHEMA_MOD", Schema},
        {"EMQX_ETC_DIR", Folder},
        {"EMQX_LOG_DIR", Folder},
        {"EMQX_DATA_DIR", Folder}
    ],
    ok = file:write_file(filename:join(Folder, "emqx.conf"), emqx_conf(Name, Folder, Port, Mqtt)),
    AppConfig = generate(Folder, Schema, Environment),
    Mnesia = io_lib:format("~p", [filename:join(Folder, "mnesia")]),
    Arguments = ["-config", AppConfig, "-mnesia", "dir", lists:flatten(Mnesia)],
    Broker = start_peer(Name, Folder, Port, Config, Arguments, Environment),
    ok = peer:call(maps:get(peer, Broker), ?MODULE, boot, [Lib], ?START_TIMEOUT),
    emqx_redis_test_helpers:wait_until(fun() -> call(Broker, ?MODULE, is_ready, []) end, ?START_TIMEOUT),
    Broker.

start_peer(Name, Folder, Port, Config, Arguments, Environment) ->
    %% Nothing else that this VM has: rebar3's own libraries are there too.
    Paths = [filename:join(code:lib_dir(emqx_redis_storage), "ebin"), filename:dirname(code:which(?MODULE))],
    {ok, Peer, _Node} = peer:start(#{
        name => Name,
        host => "127.0.0.1",
        longnames => true,
        connection => standard_io,
        wait_boot => ?START_TIMEOUT,
        args => ["-start_epmd", "false", "-dist_listen", "false", "-pa" | Paths] ++ Arguments,
        env => Environment
    }),
    OsPid = peer:call(Peer, os, getpid, []),
    #{peer => Peer, os_pid => OsPid, port => Port, folder => Folder, config => Config}.

%% The stand-in, compiled once; no file of it is where another suite would find it.
standin() ->
    case persistent_term:get({?MODULE, standin}, none) of
        none ->
            Files = filelib:wildcard(filename:join([filename:dirname(source()), "standin", "*.erl"])),
            Compiled = [
                begin
                    {ok, Module, Beam} = compile:file(File, [binary, debug_info, report]),
                    {Module, File, Beam}
                end
             || File <- Files
            ],
            persistent_term:put({?MODULE, standin}, Compiled),
            Compiled;
        Compiled ->
            Compiled
    end.

source() -> proplists:get_value(source, ?MODULE:module_info(compile)).

%% As the Dashboard gives it: the keys are binaries, names are texts.
as_json(Map) when is_map(Map) ->
    maps:from_list([{as_json(Key), as_json(Value)} || {Key, Value} <- maps:to_list(Map)]);
as_json(Value) when is_atom(Value), not is_boolean(Value) -> atom_to_binary(Value);
as_json(Value) -> Value.

%%--------------------------------------------------------------------
%% A real EMQX
%%--------------------------------------------------------------------

emqx_conf(Name, Folder, Port, Mqtt) ->
    Lines = [
        "node { name = \"~s@127.0.0.1\", cookie = emqxsecretcookie, data_dir = ~p, db_backend = mnesia }",
        "cluster { name = emqxcl, discovery_strategy = manual }",
        "listeners.tcp.default { bind = \"127.0.0.1:~b\" }",
        "listeners.ssl.default { enable = false, bind = \"127.0.0.1:0\" }",
        "listeners.ws.default { enable = false, bind = \"127.0.0.1:0\" }",
        "listeners.wss.default { enable = false, bind = \"127.0.0.1:0\" }",
        "dashboard { listeners.http.bind = 0 }",
        "authorization { no_match = allow, sources = [] }",
        "durable_sessions.enable = false",
        "telemetry.enable = false",
        "log.console.enable = false",
        "log.file { enable = true, path = ~p, level = warning }",
        "rpc { port_discovery = manual, tcp_server_port = ~b, listen_address = \"127.0.0.1\" }"
    ],
    Values = [Name, Folder, Port, filename:join(Folder, "emqx.log"), free_port()],
    Settings = [io_lib:format("mqtt.~s = ~p~n", [Key, Value]) || {Key, Value} <- maps:to_list(Mqtt)],
    [io_lib:format(lists:append([Line ++ "~n" || Line <- Lines]), Values) | Settings].

%% What EMQX's start script does: makes a configuration of the VM from that of the broker.
generate(Folder, Schema, Environment) ->
    Configs = filename:join(Folder, "configs"),
    Conf = filename:join(Folder, "emqx.conf"),
    Eval = io_lib:format("hocon_cli:main(~p), halt(0).", [
        ["-t", "2000.01.01.00.00.00", "-s", Schema, "-c", Conf, "-d", Configs, "generate"]
    ]),
    Arguments = ["-noinput", "-boot", "start_clean", "-eval", lists:flatten(Eval)],
    Port = open_port({spawn_executable, os:find_executable("erl")}, [
        {args, Arguments}, {env, Environment}, exit_status, stderr_to_stdout, binary
    ]),
    Output = output(Port, []),
    AppConfig = filename:join(Configs, "app.2000.01.01.00.00.00.config"),
    filelib:is_regular(AppConfig) orelse error({no_configuration, Output}),
    AppConfig.

output(Port, Printed) ->
    receive
        {Port, {data, More}} -> output(Port, [Printed, More]);
        {Port, {exit_status, _}} -> iolist_to_binary(Printed)
    end.

%% Runs in the broker: what the boot script of a release does.
boot(Lib) ->
    First = [
        sasl, crypto, public_key, asn1, syntax_tools, ssl, inets, compiler, runtime_tools, xmerl, tools,
        telemetry, redbug, observer_cli
    ],
    _ = [application:ensure_all_started(Application) || Application <- First],
    Files = filelib:wildcard(filename:join([Lib, "{emqx*,mria,ekka,hocon,system_monitor}", "ebin", "*.app"])),
    _ = [application:load(list_to_atom(filename:basename(File, ".app"))) || File <- Files],
    _ = [application:load(Application) || Application <- [mnesia, os_mon]],
    {ok, _} = application:ensure_all_started(emqx_ctl, permanent),
    {ok, _} = application:ensure_all_started(emqx_machine, permanent),
    ok.

is_ready() ->
    try
        emqx:is_running() andalso emqx_machine:is_ready() andalso
            is_list(supervisor:which_children(emqx_plugins_sup))
    catch
        _:_ -> false
    end.
