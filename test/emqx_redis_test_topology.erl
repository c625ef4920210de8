%% What emqx_redis_test_sentinels and emqx_redis_test_cluster have in common: a process that keeps the
%% servers of a topology and the proxies before them, and asks and waits.
%%
%% Every server ends with that process, and so with the VM. It ends by stop/1.
-module(emqx_redis_test_topology).

-behaviour(gen_server).

-export([start/1, stop/1, stop_all/0, running/0]).
-export([add/3, remove/2, members/2, options/1, proxy/2, port/2, find/2]).
-export([data_options/3, ask/2, ask/3, await/2, await/3, note/3, noted/3]).

-export([init/1, handle_call/3, handle_cast/2, terminate/2]).

-export_type([topology/0, options/0, kind/0]).

-opaque topology() :: pid().
-type kind() :: data | sentinel.
%% What both kinds of topology understand; each has options of its own beside these.
-type options() :: #{
    %% Of every data server. With `user` this user has the password and `default` is off.
    password => binary(),
    user => binary(),
    %% More lines for the data servers' ACL file.
    users => iodata(),
    tls => emqx_redis_test_server:tls(),
    appendonly => boolean(),
    args => [iodata()],
    %% Every data server announces the port of a proxy that stands before it, so that a test can part it
    %% from its clients. Other servers go through that proxy as well: replicas to their master,
    %% sentinels to all. What does not is the bus of a cluster and MIGRATE.
    proxied => boolean(),
    atom() => term()
}.

-define(SERVER, emqx_redis_test_server).
-define(PROXY, emqx_redis_test_proxy).
%% A server that takes longer is one that a test has paused.
-define(REPLY_TIMEOUT, 500).
-define(DEADLINE, 30000).
-define(POLL, 20).

%% API

-spec start(options()) -> topology().
start(Options) ->
    {ok, Topology} = gen_server:start(?MODULE, Options, []),
    Topology.

-spec stop(topology()) -> ok.
stop(Topology) ->
    gen_server:stop(Topology).

-spec stop_all() -> ok.
stop_all() ->
    lists:foreach(fun stop/1, running()).

%% The topologies of this VM that were not stopped.
-spec running() -> [topology()].
running() ->
    [
        Pid
     || Pid <- processes(),
        {dictionary, Dictionary} <- [process_info(Pid, dictionary)],
        {'$initial_call', {?MODULE, init, 1}} <- Dictionary
    ].

%% Starts a server, behind a proxy if it is one for data and `proxied` is set.
-spec add(topology(), kind(), emqx_redis_test_server:options()) -> emqx_redis_test_server:server().
add(Topology, Kind, ServerOptions) ->
    case gen_server:call(Topology, {add, Kind, ServerOptions}, infinity) of
        {ok, Server} -> Server;
        {error, Reason} -> error(Reason)
    end.

-spec remove(topology(), emqx_redis_test_server:server()) -> ok.
remove(Topology, Server) ->
    gen_server:call(Topology, {remove, Server}, infinity).

%% Dead ones too, in the order in which they were added.
-spec members(topology(), kind()) -> [emqx_redis_test_server:server()].
members(Topology, Kind) ->
    [Server || {Server, OfKind, _Proxy} <- info(Topology, members), OfKind =:= Kind].

-spec options(topology()) -> options().
options(Topology) ->
    info(Topology, options).

-spec proxy(topology(), emqx_redis_test_server:server()) -> emqx_redis_test_proxy:proxy().
proxy(Topology, Server) ->
    {Server, _Kind, Proxy} = lists:keyfind(Server, 1, info(Topology, members)),
    Proxy =:= none andalso error({not_proxied, Server}),
    Proxy.

%% Where others find the server: its proxy's port if it has one.
-spec port(topology(), emqx_redis_test_server:server()) -> inet:port_number().
port(Topology, Server) ->
    port_of(lists:keyfind(Server, 1, info(Topology, members))).

%% The server that others find at this port.
-spec find(topology(), inet:port_number()) -> emqx_redis_test_server:server() | unknown.
find(Topology, Port) ->
    Members = info(Topology, members),
    case [Server || Member = {Server, _Kind, _Proxy} <- Members, port_of(Member) =:= Port] of
        [Server] -> Server;
        [] -> unknown
    end.

%% The options of a data server: Config is lines of its redis.conf, Arguments come before `args`.
-spec data_options(options(), iodata(), [iodata()]) -> emqx_redis_test_server:options().
data_options(Options, Config, Arguments) ->
    Login = login_options(Options),
    Kept = maps:with([tls, appendonly], Options),
    Args = Arguments ++ replication_arguments(Options) ++ maps:get(args, Options, []),
    maps:merge(maps:merge(Login, Kept), #{tcp => true, config => Config, args => Args}).

%% As emqx_redis_test_server:cli/2, but a server that is down or paused is `unreachable` soon.
-spec ask(emqx_redis_test_server:server(), [iodata() | atom() | integer()]) ->
    emqx_redis_test_client:reply() | unreachable.
ask(Server, Command) ->
    ask(Server, Command, ?REPLY_TIMEOUT).

-spec ask(emqx_redis_test_server:server(), [iodata() | atom() | integer()], timeout()) ->
    emqx_redis_test_client:reply() | unreachable.
ask(Server, Command, Timeout) ->
    try
        ?SERVER:cli(Server, Command, Timeout)
    catch
        error:{cannot_connect, _, _} -> unreachable;
        error:{no_reply, _} -> unreachable;
        error:{badmatch, {error, _}} -> unreachable
    end.

%% Calls Fun until it gives {ok, Value}, and says what it gave last if the time is up.
-spec await(What :: term(), fun(() -> {ok, Value} | term())) -> Value.
await(What, Fun) ->
    await(What, Fun, ?DEADLINE).

-spec await(What :: term(), fun(() -> {ok, Value} | term()), timeout()) -> Value.
await(What, Fun, Timeout) ->
    await_until(What, Fun, erlang:monotonic_time(millisecond) + Timeout).

%% Keeps something that one call knows and a later one needs.
-spec note(topology(), Key :: term(), Value :: term()) -> ok.
note(Topology, Key, Value) ->
    gen_server:call(Topology, {note, Key, Value}, infinity).

-spec noted(topology(), Key :: term(), Default :: term()) -> term().
noted(Topology, Key, Default) ->
    maps:get(Key, info(Topology, notes), Default).

%% gen_server

init(Options) ->
    process_flag(trap_exit, true),
    {ok, #{options => Options, members => [], notes => #{}}}.

handle_call({info, Key}, _From, State) ->
    {reply, maps:get(Key, State), State};
handle_call({note, Key, Value}, _From, State = #{notes := Notes}) ->
    {reply, ok, State#{notes := Notes#{Key => Value}}};
handle_call({add, Kind, ServerOptions}, _From, State = #{options := Options, members := Members}) ->
    try ?SERVER:start(ServerOptions#{owner => self()}) of
        Server ->
            Proxied = Kind =:= data andalso maps:get(proxied, Options, false),
            Member = {Server, Kind, make_proxy(Server, Proxied)},
            {reply, {ok, Server}, State#{members := Members ++ [Member]}}
    catch
        error:Reason -> {reply, {error, Reason}, State}
    end;
handle_call({remove, Server}, _From, State = #{members := Members}) ->
    {value, Member, Others} = lists:keytake(Server, 1, Members),
    stop_member(Member),
    {reply, ok, State#{members := Others}}.

handle_cast(_Request, State) ->
    {noreply, State}.

terminate(_Reason, #{members := Members}) ->
    lists:foreach(fun stop_member/1, Members).

%% Internal

info(Topology, Key) ->
    gen_server:call(Topology, {info, Key}, infinity).

make_proxy(Server, true) -> ?PROXY:start(?SERVER:address(Server));
make_proxy(_Server, false) -> none.

port_of({Server, _Kind, none}) -> ?SERVER:port(Server);
port_of({_Server, _Kind, Proxy}) -> ?PROXY:port(Proxy).

%% A test may have stopped a server by itself.
stop_member({Server, _Kind, Proxy}) ->
    is_process_alive(Server) andalso ?SERVER:stop(Server),
    Proxy =:= none orelse ?PROXY:stop(Proxy).

login_options(Options = #{user := User, password := Password}) ->
    Lines = ["user default off\nuser ", User, " on >", Password, " ~* &* +@all\n", users(Options)],
    #{login => {User, Password}, aclfile => Lines};
login_options(Options = #{password := Password}) ->
    case Options of
        #{users := _} ->
            Lines = ["user default on >", Password, " ~* &* +@all\n", users(Options)],
            #{login => {<<"default">>, Password}, aclfile => Lines};
        #{} ->
            #{requirepass => Password}
    end;
login_options(Options = #{users := _}) ->
    #{aclfile => ["user default on nopass ~* &* +@all\n", users(Options)]};
login_options(#{}) ->
    #{}.

users(Options) ->
    [maps:get(users, Options, ""), "\n"].

%% How a data server reaches its master. A link that is dead is noticed soon.
replication_arguments(Options) ->
    Login = [["--masteruser", User] || #{user := User} <- [Options]] ++
        [["--masterauth", Password] || #{password := Password} <- [Options]],
    Tls = [["--tls-replication", "yes"] || #{tls := _} <- [Options]],
    Fast = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", "--repl-timeout", "5"],
    lists:append([Fast | Login ++ Tls]).

await_until(What, Fun, Deadline) ->
    case Fun() of
        {ok, Value} ->
            Value;
        Other ->
            case erlang:monotonic_time(millisecond) > Deadline of
                true ->
                    error({What, Other});
                false ->
                    timer:sleep(?POLL),
                    await_until(What, Fun, Deadline)
            end
    end.
