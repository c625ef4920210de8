%% The servers that a cell of the benchmark runs against, and how the contestants reach them.
-module(emqx_redis_bench_target).

-export([of_server/1, of_set/2, at_port/2, flush/1, used_memory/1]).

-export_type([target/0]).

-type target() :: #{
    %% For emqx_redis_storage:start/1.
    config := map(),
    %% The processes whose CPU time counts.
    os_pids := [pos_integer()],
    masters := [emqx_redis_test_server:server()],
    %% Of one server.
    port => inet:port_number(),
    folder => file:filename()
}.

-spec of_server(emqx_redis_test_server:server()) -> target().
of_server(Server) ->
    Target = of_set([Server], emqx_redis_test_server:config(Server)),
    Target#{port => emqx_redis_test_server:port(Server), folder => emqx_redis_test_server:folder(Server)}.

%% Several servers, the masters among them first asked to forget everything.
-spec of_set([emqx_redis_test_server:server()], map()) -> target().
of_set(Masters, Config) ->
    #{
        config => Config,
        masters => Masters,
        os_pids => [emqx_redis_test_server:os_pid(Master) || Master <- Masters]
    }.

%% The same through a proxy at another port.
-spec at_port(inet:port_number(), target()) -> target().
at_port(Port, Target) ->
    Servers = iolist_to_binary(["127.0.0.1:", integer_to_list(Port)]),
    Target#{port => Port, config => #{redis => #{type => single, servers => Servers}}}.

-spec flush(target()) -> ok.
flush(#{masters := Masters}) ->
    lists:foreach(
        fun(Master) -> <<"OK">> = emqx_redis_test_server:cli(Master, ["FLUSHALL"]) end, Masters
    ).

%% In bytes.
-spec used_memory(emqx_redis_test_server:server()) -> non_neg_integer().
used_memory(Server) ->
    Info = emqx_redis_test_server:cli(Server, ["INFO", "memory"]),
    {match, [Digits]} = re:run(Info, "used_memory:(\\d+)", [{capture, [1], binary}]),
    binary_to_integer(Digits).
