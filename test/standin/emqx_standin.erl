%% A stand-in of EMQX 6 for tests: what the plugin sees of a broker of one node, under the names that
%% EMQX gives it, with MQTT clients over TCP. It was written after EMQX's behaviour; see the suite
%% `emqx_redis_plugin_contract_SUITE', which asks the same of both.
%%
%% Left out: retained messages, wills, authentication, keep alive, resending in mid-connection, clusters.
-module(emqx_standin).

-export([start/1, stop/0]).

%% `port': where to listen. `plugin_config': what EMQX would have of the plugin's configuration. `mqtt':
%% settings of the zone.
-spec start(#{port := inet:port_number(), plugin_config => map(), mqtt => map()}) -> ok.
start(#{port := Port} = Options) ->
    persistent_term:put(emqx_plugins, maps:get(plugin_config, Options, #{})),
    persistent_term:put(emqx_config, maps:merge(defaults(), maps:get(mqtt, Options, #{}))),
    persistent_term:put(emqx_app, true),
    lists:foreach(
        fun(Module) -> {ok, _} = gen_server:start({local, Module}, Module, [], []) end,
        [emqx_hooks, emqx_broker, emqx_cm]
    ),
    {ok, Listener} = gen_tcp:listen(Port, [
        binary, {ip, {127, 0, 0, 1}}, {active, false}, {nodelay, true}, {reuseaddr, true}, {backlog, 128}
    ]),
    Acceptor = spawn(fun() -> own(Listener) end),
    ok = gen_tcp:controlling_process(Listener, Acceptor),
    ok.

%% In the order in which EMQX stops: plugins first, listeners and clients last.
-spec stop() -> ok.
stop() ->
    persistent_term:put(emqx_app, false),
    _ = application:stop(emqx_redis_storage),
    _ = [exit(Pid, kill) || Pid <- emqx_cm:all_channels()],
    init:stop().

own(Listener) ->
    register(emqx_listener, self()),
    accept(Listener).

accept(Listener) ->
    {ok, Socket} = gen_tcp:accept(Listener),
    {ok, Pid} = gen_server:start(emqx_connection, Socket, []),
    case gen_tcp:controlling_process(Socket, Pid) of
        ok -> Pid ! start;
        {error, _} -> exit(Pid, kill)
    end,
    accept(Listener).

defaults() ->
    #{
        max_inflight => 32,
        max_mqueue_len => 1000,
        mqueue_store_qos0 => true,
        max_subscriptions => infinity,
        max_awaiting_rel => 100,
        await_rel_timeout => 300000,
        retry_interval => infinity,
        upgrade_qos => false,
        message_expiry_interval => infinity,
        session_expiry_interval => 7200000
    }.
