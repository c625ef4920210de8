%% Private Redis servers for tests: each on a unix socket in a folder of its own under /tmp, and on a
%% free TCP port if asked for.
%%
%%     Server = emqx_redis_test_server:start(#{}),
%%     ok = emqx_redis_storage:start(emqx_redis_test_server:config(Server)),
%%     <<"PONG">> = emqx_redis_test_server:cli(Server, ["PING"]),
%%     ok = emqx_redis_test_server:stop(Server).
%%
%% The server program is redis-server, or what the environment's REDIS_SERVER names.
%%
%% A server lives until stop/1, until its `owner` dies if one was named, or until the VM ends, however
%% it ends: a shell script stands between, which kills the server and removes its folder when its
%% input closes. (Common Test runs init_per_suite in a process that is gone afterwards, so the caller
%% is no owner by default.)
-module(emqx_redis_test_server).

-behaviour(gen_server).

-export([start/0, start/1, stop/1, stop_all/0, running/0]).
-export([kill/1, shutdown/1, pause/1, resume/1, restart/1, is_alive/1]).
-export([cli/2, connect/1, servers/1, config/1, socket/1, port/1, address/1, folder/1, os_pid/1, log/1]).
-export([free_port/0]).

-export([init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).

-export_type([server/0, options/0]).

-opaque server() :: pid().
-type options() :: #{
    %% Listen on 127.0.0.1 too: on this port, or on a free one.
    tcp => boolean() | inet:port_number(),
    requirepass => binary(),
    %% Lines of an ACL file, `user NAME on >PASSWORD ~* &* +@all` for instance.
    aclfile => iodata(),
    appendonly => boolean(),
    %% As redis.conf has it, <<"10mb">> for instance.
    maxmemory => binary(),
    %% More arguments of the command line.
    args => [iodata()],
    %% The server is stopped when this process dies.
    owner => pid()
}.

-define(START_TIMEOUT, 10000).
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

%% One command on a connection of its own, logged in as far as `requirepass` goes.
-spec cli(server(), [iodata() | atom() | integer()]) -> emqx_redis_test_client:reply().
cli(Server, Command) ->
    Connection = connect(Server),
    try
        emqx_redis_test_client:command(Connection, Command)
    after
        emqx_redis_test_client:close(Connection)
    end.

-spec connect(server()) -> emqx_redis_test_client:connection().
connect(Server) ->
    Connection = emqx_redis_test_client:connect({unix, socket(Server)}),
    case info(Server) of
        #{options := #{requirepass := Password}} ->
            <<"OK">> = emqx_redis_test_client:command(Connection, ["AUTH", Password]);
        #{} ->
            ok
    end,
    Connection.

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
    case info(Server) of
        #{options := #{requirepass := Password}} -> #{redis => Redis#{password => Password}};
        #{} -> #{redis => Redis}
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

%% The TCP port, 0 if there is none.
-spec port(server()) -> inet:port_number().
port(Server) ->
    maps:get(port, info(Server)).

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
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}, {reuseaddr, true}]),
    {ok, Port} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    Port.

%% gen_server

init(Options) ->
    process_flag(trap_exit, true),
    case Options of
        #{owner := Owner} -> monitor(process, Owner);
        #{} -> ok
    end,
    Folder = make_folder(),
    ok = write_acl_file(Folder, Options),
    State = #{folder => Folder, options => Options, port => 0, os_pid => undefined},
    Wrapper = open_wrapper(Folder, Options),
    Attempts =
        case Options of
            #{tcp := true} -> ?PORT_ATTEMPTS;
            #{} -> 1
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

info(Server) ->
    gen_server:call(Server, info).

make_folder() ->
    Unique = [os:getpid(), "_", integer_to_list(erlang:unique_integer([positive]))],
    Folder = lists:flatten(["/tmp/emqx_redis_test_", Unique]),
    ok = file:make_dir(Folder),
    ok = file:change_mode(Folder, 8#700),
    Folder.

write_acl_file(Folder, #{aclfile := Lines}) ->
    file:write_file(filename:join(Folder, "users.acl"), Lines);
write_acl_file(_Folder, #{}) ->
    ok.

%% Starts the program on the port that the options ask for; a free port may be taken by the time that
%% the program listens, so that is tried again.
start_program(State = #{options := Options}, Attempts) ->
    Port =
        case Options of
            #{tcp := true} -> free_port();
            #{tcp := Chosen} when is_integer(Chosen) -> Chosen;
            #{} -> 0
        end,
    case launch(State#{port := Port}) of
        {error, {ended, Log}} when Attempts > 1 ->
            case binary:match(Log, <<"already in use">>) of
                nomatch -> {error, {ended, Log}};
                _ -> start_program(State, Attempts - 1)
            end;
        Result ->
            Result
    end.

launch(State = #{folder := Folder, port := Port}) ->
    _ = file:delete(filename:join(Folder, "output")),
    OsPid = wrapper_call(State, ["start --port ", integer_to_list(Port)]),
    Deadline = erlang:monotonic_time(millisecond) + ?START_TIMEOUT,
    case wait_until_it_answers(Folder, OsPid, Deadline) of
        ok -> {ok, State#{os_pid := OsPid}};
        {error, Reason} -> {error, Reason}
    end.

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
    Arguments = lists:append([Fixed, ["--save", "", "--daemonize", "no"] | Optional]),
    open_port({spawn_executable, "/bin/sh"}, [
        {args, ["-c", ?WRAPPER, "sh", Folder, Program | with_folder(Folder, Arguments)]},
        {line, 1000},
        stream,
        use_stdio
    ]).

arguments(requirepass, Password) -> ["--requirepass", Password];
arguments(aclfile, _Lines) -> ["--aclfile", {folder, "users.acl"}];
arguments(appendonly, true) -> ["--appendonly", "yes", "--appendfsync", "always"];
arguments(appendonly, false) -> [];
arguments(maxmemory, Limit) -> ["--maxmemory", Limit];
arguments(args, Arguments) -> Arguments;
arguments(tcp, _Port) -> [];
arguments(owner, _Pid) -> [];
arguments(Unknown, Value) -> error(badarg, [{Unknown, Value}]).

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
