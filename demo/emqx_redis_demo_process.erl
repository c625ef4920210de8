%% The demo's nodes as operating system processes: starting, commanding, killing.
-module(emqx_redis_demo_process).

-export([start/4, os_pid/1, command/4, kill/1, stop/1]).

-export_type([process/0, ending/0]).

-opaque process() :: #{
    port := port(), socket := gen_tcp:socket(), os_pid := pos_integer(), killer := port()
}.
%% How a command ended: the node said `done', or is gone, with the status that a shell would show.
-type ending() :: done | {exited, non_neg_integer()}.

%% Long past any working command: a node that hangs fails the demo.
-define(PATIENCE, 60000).

%% A node that reads no more than the first `Limit' publishes of the file. Its reports come through a unix
%% socket in `Folder': what the node has written to that is safe, whatever becomes of the node. `Config' is
%% what it starts the storage with.
-spec start(file:filename(), map(), file:filename(), pos_integer()) -> process().
start(Folder, Config, File, Limit) ->
    Text = binary_to_list(base64:encode(term_to_binary(Config))),
    Path = filename:join(Folder, "node" ++ integer_to_list(erlang:unique_integer([positive])) ++ ".sock"),
    {ok, Listener} = gen_tcp:listen(0, [{ifaddr, {local, Path}}, binary, {packet, 4}, {active, true}]),
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    Logger = "[{handler,default,logger_std_h,#{config=>#{type=>standard_error}}}]",
    Paths = [filename:dirname(code:which(Module)) || Module <- [emqx_redis_storage, emqx_redis_demo_node]],
    Arguments =
        ["+Bd", "-noinput", "-boot", "start_clean", "-kernel", "logger", Logger, "-pa"] ++ Paths ++
            ["-run", "emqx_redis_demo_node", "start", Path, Text, File, integer_to_list(Limit)],
    Port = open_port({spawn_executable, Erl}, [{args, Arguments}, exit_status]),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    {ok, Socket} = gen_tcp:accept(Listener, ?PATIENCE),
    ok = gen_tcp:close(Listener),
    #{port => Port, socket => Socket, os_pid => OsPid, killer => start_killer(OsPid)}.

%% A shell that waits for the word, so that the kill comes at once.
start_killer(OsPid) ->
    Script = "read -r word && kill -9 \"$1\"",
    open_port({spawn_executable, "/bin/sh"}, [{args, ["-c", Script, "sh", integer_to_list(OsPid)]}]).

-spec os_pid(process()) -> pos_integer().
os_pid(#{os_pid := OsPid}) -> OsPid.

%% Gives the node a command and folds over its reports, until it is done or gone. When it is gone, all that
%% it had written has been read. The seconds are those from the command to the last report.
-spec command(process(), term(), fun((tuple(), Acc) -> Acc), Acc) -> {ending(), Acc, Seconds :: float()}.
command(Process = #{socket := Socket}, Command, Fun, Acc) ->
    Begin = erlang:monotonic_time(microsecond),
    ok = gen_tcp:send(Socket, term_to_binary(Command)),
    fold(Process, Fun, Acc, Begin, Begin).

fold(Process = #{socket := Socket, port := Port}, Fun, Acc, Begin, Last) ->
    receive
        {tcp, Socket, Data} ->
            Now = erlang:monotonic_time(microsecond),
            case binary_to_term(Data) of
                done -> {done, Acc, (Now - Begin) / 1.0e6};
                Report -> fold(Process, Fun, Fun(Report, Acc), Begin, Now)
            end;
        {tcp_closed, Socket} ->
            receive
                {Port, {exit_status, Status}} -> {{exited, Status}, Acc, (Last - Begin) / 1.0e6}
            after ?PATIENCE -> error(node_does_not_end)
            end
    after ?PATIENCE -> error(node_hangs)
    end.

%% kill -9
-spec kill(process()) -> ok.
kill(#{killer := Killer}) ->
    true = port_command(Killer, "now\n"),
    ok.

%% An orderly end: the node sees its connection close.
-spec stop(process()) -> ok.
stop(#{port := Port, socket := Socket, killer := Killer}) ->
    ok = gen_tcp:close(Socket),
    true = port_close(Killer),
    receive
        {Port, {exit_status, 0}} -> ok
    after ?PATIENCE -> error(node_does_not_end)
    end.
