%% Private Redis servers for tests: each on a unix socket in a folder of its own under /tmp, and on a
%% free TCP port if asked for, which a sentinel or a TLS server can be as well.
%%
%%     Server = emqx_redis_test_server:start(#{}),
%%     ok = emqx_redis_storage:start(emqx_redis_test_server:config(Server)),
%%     <<"PONG">> = emqx_redis_test_server:cli(Server, ["PING"]),
%%     ok = emqx_redis_test_server:stop(Server).
%%
%% The server program is redis-server, or what the environment's REDIS_SERVER names. The unix socket
%% stays plain where the port speaks TLS, so cli/2 reaches every server.
%%
%% A server lives until stop/1, until its `owner` dies if one was named, or until the VM ends, however
%% it ends: a shell script stands between, which kills the server and removes its folder when its
%% input closes. (Common Test runs init_per_suite in a process that is gone afterwards, so the caller
%% is no owner by default.)
-module(emqx_redis_test_server).

-behaviour(gen_server).

-export([start/0, start/1, stop/1, stop_all/0, running/0]).
-export([kill/1, shutdown/1, pause/1, resume/1, restart/1, is_alive/1]).
-export([cli/2, cli/3, connect/1, servers/1, config/1, ssl_config/1, login_config/1]).
-export([socket/1, port/1, plain_port/1, address/1, folder/1, os_pid/1, log/1]).
-export([free_port/0]).

-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([server/0, options/0, tls/0]).

-opaque server() :: pid().
-type options() :: #{
    %% Listen on 127.0.0.1 too: on this port, or on a free one.
    tcp => boolean() | inet:port_number(),
    requirepass => binary(),
    %% Lines of an ACL file, `user NAME on >PASSWORD ~* &* +@all` for instance.
    aclfile => iodata(),
    %% As whom cli/2 and connect/1 log in, where `requirepass` does not say it.
    login => {User :: binary(), Password :: binary()},
    %% The TCP port, which there is then in any case, speaks TLS.
    tls => tls(),
    %% With `tls`: listen on another free port without it.
    plain_port => boolean(),
    %% Lines of redis.conf, which the server itself may rewrite; what else is asked for here outdoes
    %% them at each start.
    config => iodata(),
    %% A sentinel; its `config` names what it watches.
    sentinel => boolean(),
    appendonly => boolean(),
    %% As redis.conf has it, <<"10mb">> for instance.
    maxmemory => binary(),
    %% More arguments of the command line.
    args => [iodata()],
    %% The server is stopped when this process dies.
    owner => pid()
}.

-type tls() :: #{
    certfile := file:filename(),
    keyfile := file:filename(),
    cacertfile := file:filename(),
    %% Whether clients must show a certificate; no is the default.
    auth_clients => yes | no | optional,
    %% What config/1 tells clients to show.
    client_certfile => file:filename(),
    client_keyfile => file:filename()
}.

-define(START_TIMEOUT, 20000).
-define(REPLY_TIMEOUT, 5000).
%% Below the ports that the system gives to outgoing connections, so that nobody takes the port of a
%% server that is down for a while; and a cluster's bus is at 10000 above.
-define(FIRST_PORT, 10000).
-define(LAST_PORT, 21999).
-define(PORT_ATTEMPTS, 10).

%% Takes the folder and the server's command line; obeys lines from its input.
-define(WRAPPER,
    "exec 2>/dev/null; folder=$1; shift; pid=\n"
    "while read -r command argument; do\n"
    "    case $command in\n"
    "        start) \"$@\" $argument </dev/null >>\"$folder/output\" 2>&1 & pid=$!; echo $pid ;;\n"
    "        signal) kill -s \"$argument\" $pid; echo done ;;\n"
    "        wait) wait $pid; echo $?; pid= ;;\n"
    "    esac\n"
    "done\n"
    "[ -n \"$pid\" ] && kill -s KILL $pid && wait $pid\n"
    "rm -rf \"$folder\"\n"
).

%% API

-spec start() -> server().
start() ->
    start(#{}).

%% Returns when the server answers.
-spec start(options()) -> server().
start(Options) ->
    case gen_server:start(?MODULE, Options, [{timeout, infinity}]) of
        {ok, Server} -> Server;
        {error, Reason} -> error({redis_server, Reason})
    end.

%% Kills the server if it still runs, and removes its folder.
-spec stop(server()) -> ok.
stop(Server) ->
    gen_server:stop(Server).

-spec stop_all() -> ok.
stop_all() ->
    lists:foreach(fun stop/1, running()).

%% The servers of this VM that were not stopped.
-spec running() -> [server()].
running() ->
    [
        Pid
     || Pid <- processes(),
        {dictionary, Dictionary} <- [process_info(Pid, dictionary)],
        {'$initial_call', {?MODULE, init, 1}} <- Dictionary
    ].

%% SIGKILL; returns when the server is gone. Its folder stays for restart/1.
-spec kill(server()) -> ok.
kill(Server) ->
    gen_server:call(Server, {end_by, "KILL"}, ?START_TIMEOUT).

%% SIGTERM: an orderly end, which writes an append-only file to the disk.
-spec shutdown(server()) -> ok.
shutdown(Server) ->
    gen_server:call(Server, {end_by, "TERM"}, ?START_TIMEOUT).

%% SIGSTOP: connections stay open, nothing is answered.
-spec pause(server()) -> ok.
pause(Server) ->
    gen_server:call(Server, {signal, "STOP"}).

-spec resume(server()) -> ok.
resume(Server) ->
    gen_server:call(Server, {signal, "CONT"}).

%% Ends the server if it runs, starts it again at the same address, and returns when it answers. Data
%% survives with `appendonly` alone.
-spec restart(server()) -> ok.
restart(Server) ->
    case gen_server:call(Server, restart, infinity) of
        ok -> ok;
        {error, Reason} -> error({redis_server, Reason})
    end.

-spec is_alive(server()) -> boolean().
is_alive(Server) ->
    process_is_alive(os_pid(Server)).

%% One command on a connection of its own, logged in as far as `requirepass` or `login` goes.
-spec cli(server(), [iodata() | atom() | integer()]) -> emqx_redis_test_client:reply().
cli(Server, Command) ->
    cli(Server, Command, ?REPLY_TIMEOUT).

-spec cli(server(), [iodata() | atom() | integer()], timeout()) -> emqx_redis_test_client:reply().
cli(Server, Command, Timeout) ->
    Connection = connect(Server, Timeout),
    try
        emqx_redis_test_client:command(Connection, Command, Timeout)
    after
        emqx_redis_test_client:close(Connection)
    end.

-spec connect(server()) -> emqx_redis_test_client:connection().
connect(Server) ->
    connect(Server, ?REPLY_TIMEOUT).

%% The address as our configuration writes it: of the TCP port if there is one, else of the socket.
-spec servers(server()) -> binary().
servers(Server) ->
    case address(Server) of
        {tcp, Port} -> iolist_to_binary(["127.0.0.1:", integer_to_list(Port)]);
        {unix, Path} -> iolist_to_binary(["unix://", Path])
    end.

%% What emqx_redis_storage:start/1 takes; merge what else a test wants.
-spec config(server()) -> #{redis := #{atom() => term()}}.
config(Server) ->
    Redis = #{type => single, servers => servers(Server)},
    #{redis => maps:merge(Redis, maps:merge(login_config(Server), ssl_config(Server)))}.

%% The part of config/1 that logs in, empty without a password.
-spec login_config(server()) -> #{username => binary(), password => binary()}.
login_config(Server) ->
    case login(Server) of
        none -> #{};
        [User, Password] -> #{username => User, password => Password};
        [Password] -> #{password => Password}
    end.

%% The part of config/1 that asks for TLS, empty for a plain server.
-spec ssl_config(server()) -> #{ssl => #{atom() => boolean() | binary()}}.
ssl_config(Server) ->
    case info(Server) of
        #{options := #{tls := Tls = #{cacertfile := CaFile}}} ->
            Ssl = #{enable => true, cacertfile => iolist_to_binary(CaFile)},
            case Tls of
                #{client_certfile := CertFile, client_keyfile := KeyFile} ->
                    Shown = #{
                        certfile => iolist_to_binary(CertFile), keyfile => iolist_to_binary(KeyFile)
                    },
                    #{ssl => maps:merge(Ssl, Shown)};
                #{} ->
                    #{ssl => Ssl}
            end;
        #{} ->
            #{}
    end.

-spec address(server()) -> emqx_redis_test_client:address().
address(Server) ->
    case info(Server) of
        #{port := 0} -> {unix, socket(Server)};
        #{port := Port} -> {tcp, Port}
    end.

-spec socket(server()) -> file:filename().
socket(Server) ->
    filename:join(folder(Server), "redis.sock").

%% The TCP port, which speaks TLS if the server does; 0 if there is none.
-spec port(server()) -> inet:port_number().
port(Server) ->
    maps:get(port, info(Server)).

%% The TCP port without TLS, 0 if there is none.
-spec plain_port(server()) -> inet:port_number().
plain_port(Server) ->
    maps:get(plain_port, info(Server)).

-spec folder(server()) -> file:filename().
folder(Server) ->
    maps:get(folder, info(Server)).

-spec os_pid(server()) -> pos_integer().
os_pid(Server) ->
    maps:get(os_pid, info(Server)).

%% What the server has printed so far.
-spec log(server()) -> binary().
log(Server) ->
    read_log(folder(Server)).

%% A port of 127.0.0.1 that nobody listens on at this moment.
-spec free_port() -> inet:port_number().
free_port() ->
    Port = ?FIRST_PORT + rand:uniform(?LAST_PORT - ?FIRST_PORT + 1) - 1,
    case gen_tcp:listen(Port, [{ip, {127, 0, 0, 1}}, {reuseaddr, true}]) of
        {ok, Socket} ->
            ok = gen_tcp:close(Socket),
            Port;
        {error, eaddrinuse} ->
            free_port()
    end.

%% gen_server

init(Options) ->
    process_flag(trap_exit, true),
    case Options of
        #{owner := Owner} -> monitor(process, Owner);
        #{} -> ok
    end,
    Folder = make_folder(),
    ok = write_file(Folder, "users.acl", maps:get(aclfile, Options, none)),
    ok = write_file(Folder, "redis.conf", maps:get(config, Options, none)),
    State = #{folder => Folder, options => Options, port => 0, plain_port => 0, os_pid => undefined},
    Wrapper = open_wrapper(Folder, Options),
    Attempts =
        case tcp(Options) of
            true -> ?PORT_ATTEMPTS;
            _ -> 1
        end,
    case start_program(State#{wrapper => Wrapper}, Attempts) of
        {ok, Started} ->
            {ok, Started};
        {error, Reason} ->
            close_wrapper(Wrapper, Folder),
            {stop, Reason}
    end.

handle_call(info, _From, State) ->
    {reply, State, State};
handle_call({signal, Signal}, _From, State) ->
    _ = wrapper_call(State, ["signal ", Signal]),
    {reply, ok, State};
handle_call({end_by, Signal}, _From, State) ->
    end_program(State, Signal),
    {reply, ok, State};
handle_call(restart, _From, State = #{os_pid := OsPid}) ->
    case process_is_alive(OsPid) of
        true -> end_program(State, "TERM");
        false -> ok
    end,
    case launch(State) of
        {ok, Started} -> {reply, ok, Started};
        {error, Reason} -> {reply, {error, Reason}, State}
    end.

handle_cast(_Request, State) ->
    {noreply, State}.

handle_info({'DOWN', _Monitor, process, _Owner, _Reason}, State) ->
    {stop, normal, State};
handle_info({'EXIT', Wrapper, Reason}, State = #{wrapper := Wrapper}) ->
    {stop, {wrapper, Reason}, State};
handle_info(_Other, State) ->
    {noreply, State}.

terminate(_Reason, #{wrapper := Wrapper, folder := Folder}) ->
    close_wrapper(Wrapper, Folder).

%% Internal

connect(Server, Timeout) ->
    Connection = emqx_redis_test_client:connect({unix, socket(Server)}),
    try login(Server) of
        none ->
            Connection;
        Login ->
            <<"OK">> = emqx_redis_test_client:command(Connection, ["AUTH" | Login], Timeout),
            Connection
    catch
        Class:Reason:Stack ->
            ok = emqx_redis_test_client:close(Connection),
            erlang:raise(Class, Reason, Stack)
    end.

info(Server) ->
    gen_server:call(Server, info).

make_folder() ->
    Unique = [os:getpid(), "_", integer_to_list(erlang:unique_integer([positive]))],
    Folder = lists:flatten(["/tmp/emqx_redis_test_", Unique]),
    ok = file:make_dir(Folder),
    ok = file:change_mode(Folder, 8#700),
    Folder.

write_file(_Folder, _Name, none) -> ok;
write_file(Folder, Name, Lines) -> file:write_file(filename:join(Folder, Name), Lines).

login(Server) ->
    case info(Server) of
        #{options := #{login := {User, Password}}} -> [User, Password];
        #{options := #{requirepass := Password}} -> [Password];
        #{} -> none
    end.

tcp(#{tcp := Tcp}) -> Tcp;
tcp(#{tls := _}) -> true;
tcp(#{}) -> false.

%% Starts the program on the port that the options ask for; a free port may be taken by the time that
%% the program listens, so that is tried again.
start_program(State = #{options := Options}, Attempts) ->
    Port =
        case tcp(Options) of
            true -> free_port();
            false -> 0;
            Chosen -> Chosen
        end,
    PlainPort =
        case Options of
            #{tls := _, plain_port := true} -> free_port();
            #{tls := _} -> 0;
            #{} -> Port
        end,
    case launch(State#{port := Port, plain_port := PlainPort}) of
        {error, {ended, Log}} when Attempts > 1 ->
            case binary:match(Log, <<"already in use">>) of
                nomatch -> {error, {ended, Log}};
                _ -> start_program(State, Attempts - 1)
            end;
        Result ->
            Result
    end.

launch(State = #{folder := Folder}) ->
    _ = file:delete(filename:join(Folder, "output")),
    OsPid = wrapper_call(State, ["start ", ports(State)]),
    Deadline = erlang:monotonic_time(millisecond) + ?START_TIMEOUT,
    case wait_until_it_answers(Folder, OsPid, Deadline) of
        ok -> {ok, State#{os_pid := OsPid}};
        {error, Reason} -> {error, Reason}
    end.

ports(#{options := #{tls := _}, port := Port, plain_port := PlainPort}) ->
    ["--port ", integer_to_list(PlainPort), " --tls-port ", integer_to_list(Port)];
ports(#{port := Port}) ->
    ["--port ", integer_to_list(Port)].

end_program(State, Signal) ->
    _ = wrapper_call(State, ["signal ", Signal]),
    _ = wrapper_call(State, "wait"),
    ok.

%% The wrapper removes the folder when the server has ended: so wait for the folder to go.
close_wrapper(Wrapper, Folder) ->
    catch port_close(Wrapper),
    wait_until_removed(Folder, 500).

wait_until_removed(Folder, Attempts) ->
    case filelib:is_dir(Folder) of
        true when Attempts > 0 ->
            timer:sleep(10),
            wait_until_removed(Folder, Attempts - 1);
        _ ->
            ok
    end.

open_wrapper(Folder, Options) ->
    Program = os:getenv("REDIS_SERVER", "redis-server"),
    Fixed = ["--bind", "127.0.0.1", "--unixsocket", filename:join(Folder, "redis.sock"), "--dir", Folder],
    Optional = maps:values(maps:map(fun arguments/2, Options)),
    Always = Fixed ++ ["--save", "", "--daemonize", "no"],
    Arguments = lists:append([first_arguments(Options), Always | Optional]),
    open_port({spawn_executable, "/bin/sh"}, [
        {args, ["-c", ?WRAPPER, "sh", Folder, Program | with_folder(Folder, Arguments)]},
        {line, 1000},
        stream,
        use_stdio
    ]).

%% The configuration's file comes before everything else.
first_arguments(Options) ->
    [{folder, "redis.conf"} || is_map_key(config, Options)] ++
        ["--sentinel" || maps:get(sentinel, Options, false)].

arguments(requirepass, Password) -> ["--requirepass", Password];
arguments(aclfile, _Lines) -> ["--aclfile", {folder, "users.acl"}];
arguments(appendonly, true) -> ["--appendonly", "yes", "--appendfsync", "always"];
arguments(appendonly, false) -> [];
arguments(maxmemory, Limit) -> ["--maxmemory", Limit];
arguments(args, Arguments) -> Arguments;
arguments(tls, Tls) -> tls_arguments(Tls);
arguments(login, _Login) -> [];
arguments(config, _Lines) -> [];
arguments(sentinel, _Sentinel) -> [];
arguments(plain_port, _PlainPort) -> [];
arguments(tcp, _Port) -> [];
arguments(owner, _Pid) -> [];
arguments(Unknown, Value) -> error(badarg, [{Unknown, Value}]).

tls_arguments(Tls = #{certfile := CertFile, keyfile := KeyFile, cacertfile := CaFile}) ->
    AuthClients = atom_to_list(maps:get(auth_clients, Tls, no)),
    Files = ["--tls-cert-file", CertFile, "--tls-key-file", KeyFile, "--tls-ca-cert-file", CaFile],
    Files ++ ["--tls-auth-clients", AuthClients].

with_folder(Folder, Arguments) ->
    [
        case Argument of
            {folder, Name} -> filename:join(Folder, Name);
            _ -> Argument
        end
     || Argument <- Arguments
    ].

%% One line to the wrapper, one line back, always a number or "done".
wrapper_call(#{wrapper := Wrapper}, Line) ->
    true = port_command(Wrapper, [Line, "\n"]),
    receive
        {Wrapper, {data, {eol, "done"}}} -> done;
        {Wrapper, {data, {eol, Number}}} -> list_to_integer(Number)
    after ?START_TIMEOUT ->
        error({no_answer_from_wrapper, Line})
    end.

wait_until_it_answers(Folder, OsPid, Deadline) ->
    case ping(filename:join(Folder, "redis.sock")) of
        true ->
            ok;
        false ->
            TimeIsUp = erlang:monotonic_time(millisecond) > Deadline,
            case process_is_alive(OsPid) of
                true when TimeIsUp -> {error, {no_answer, read_log(Folder)}};
                true ->
                    timer:sleep(5),
                    wait_until_it_answers(Folder, OsPid, Deadline);
                false -> {error, {ended, read_log(Folder)}}
            end
    end.

%% A server that wants a login answers too; one that is loading its data is not ready.
ping(Socket) ->
    try emqx_redis_test_client:connect({unix, Socket}) of
        Connection ->
            try emqx_redis_test_client:command(Connection, ["PING"]) of
                <<"PONG">> -> true;
                {error, <<"NOAUTH", _/binary>>} -> true;
                _ -> false
            catch
                error:_ -> false
            after
                emqx_redis_test_client:close(Connection)
            end
    catch
        error:_ -> false
    end.

%% A process that ended and was not waited for is a zombie.
process_is_alive(OsPid) ->
    case file:read_file(["/proc/", integer_to_list(OsPid), "/stat"]) of
        {ok, Stat} ->
            [_, <<" ", State, _/binary>>] = binary:split(Stat, <<")">>),
            State =/= $Z;
        {error, _} ->
            false
    end.

read_log(Folder) ->
    case file:read_file(filename:join(Folder, "output")) of
        {ok, Log} -> Log;
        {error, _} -> <<>>
    end.
