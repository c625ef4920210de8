%% The configuration as a schema of EMQX's library hocon, which is called at run time only.
%%
%% It has the keys, types and defaults of `docs/configuration.md'. What a value must be beyond its type, and
%% what must not stand together, is checked by the storage's own validation, on the whole section at once:
%% every fault comes with its key's path.
-module(emqx_redis_storage_schema).

-export([namespace/0, roots/0, fields/1, desc/1]).

-type struct() ::
    redis_storage | redis | ssl | sentinel_ssl | persistence | routes | mqtt | limits.
%% `hocon_schema:field_schema()'.
-type schema() :: map().

-spec namespace() -> atom().
namespace() -> redis_storage.

%% In errors the section's value would be shown, passwords and all: so all of it counts as sensitive.
-spec roots() -> [{atom(), schema()}].
roots() ->
    Meta = #{required => false, sensitive => true, validator => fun validate/1, desc => desc(redis_storage)},
    [{redis_storage, mk(ref(redis_storage), Meta)}].

-spec fields(struct()) -> [{atom(), schema()}].
fields(redis_storage) ->
    [
        field(enable, boolean, true, "Whether the storage takes part."),
        field(key_prefix, string, <<>>, "Stands before every key, for several EMQX clusters on one Redis."),
        section(redis),
        section(persistence),
        section(routes),
        section(mqtt),
        section(limits)
    ];
fields(redis) ->
    {type, Type} = field(type, [single, sentinel, cluster], single, "How the servers belong together."),
    [
        {type, Type#{aliases => [redis_type]}},
        field(servers, strings, <<"127.0.0.1:6379">>,
            "Comma-separated host:port, or unix:///path. Exactly one where the type is single."),
        field(sentinel, string, <<>>, "The master's name. Required where the type is sentinel, else unused."),
        field(pool_size, integer, 64, "Upper bound of connections, 1 to 1024."),
        field(database, integer, 0, "Number of the database, 0 to 65535; only 0 in a cluster."),
        field(username, string, <<>>, "ACL user; needs a password."),
        secret(password, "The password, or file:///path of a file that holds it."),
        field(connect_timeout, duration, <<"5s">>, "How long one attempt to connect may take."),
        field(request_timeout, duration, <<"5s">>, "Deadline of a call that sets none of its own."),
        field(outage_grace, duration, <<"3s">>,
            "How long requests wait for a Redis that has gone away before they fail at once."),
        section(ssl),
        field(sentinel_username, string, <<>>, "The sentinels' own ACL user; needs a sentinel_password."),
        secret(sentinel_password, "The sentinels' own password, or file:///path of a file that holds it."),
        section(sentinel_ssl)
    ];
fields(Ssl) when Ssl =:= ssl; Ssl =:= sentinel_ssl ->
    [
        field(enable, boolean, false, "Whether connections are encrypted; not on a unix socket."),
        field(cacertfile, string, <<>>, "Trusted authorities, PEM; without it, the system's."),
        field(certfile, string, <<>>, "This client's certificate, PEM; only together with keyfile."),
        field(keyfile, string, <<>>,
            "The certificate's key, PEM without a passphrase; only together with certfile."),
        field(verify, [verify_peer, verify_none], verify_peer,
            "Whether the server's certificate is checked."),
        field(server_name_indication, string, <<>>,
            "The name that the server's certificate must hold, instead of the host's; or disable.")
    ];
fields(persistence) ->
    [
        field(session_ttl, duration, <<"24h">>, "How long a session lives after its last save; or infinity."),
        field(message_ttl, duration, <<"24h">>, "How long a message lives after it was stored; or infinity."),
        field(rdb_enabled, boolean, true, "Whether the server is expected to write RDB snapshots."),
        field(aof_enabled, boolean, true, "Whether the server is expected to write an append-only file."),
        field(message_index, boolean, true, "Whether sync:messages is kept."),
        field(durability, string, <<"none">>, "What a write waits for: none, replicas:N or aof:L:R.")
    ];
fields(routes) ->
    [
        field(when_out_of_sync, [redis, stale], redis,
            "What answers a match while the routes in memory are not known to be those in Redis."),
        field(lease_timeout, duration, <<"30s">>,
            "How long a node shows no sign of life before the others purge its routes.")
    ];
fields(mqtt) ->
    [
        field(when_unavailable, [reject, degrade], reject,
            "What becomes of clients that need what can't be stored while Redis is away.")
    ];
fields(limits) ->
    [
        field(max_inflight, integer, 100000,
            "Requests in flight, 1 to 10000000; over it a request is refused."),
        field(max_inflight_bytes, size, <<"128MB">>, "Bytes of the requests in flight, likewise.")
    ].

-spec desc(struct()) -> binary() | undefined.
desc(redis_storage) -> <<"Keeps sessions and QoS 1/2 messages in Redis.">>;
desc(redis) -> <<"The Redis servers, and how to reach them.">>;
desc(ssl) -> <<"TLS to the servers.">>;
desc(sentinel_ssl) -> <<"TLS to the sentinels; nothing is taken over from ssl.">>;
desc(persistence) -> <<"How long what is stored lives, and how safe it is.">>;
desc(routes) -> <<"The routes in memory.">>;
desc(mqtt) -> <<"What MQTT clients see.">>;
desc(limits) -> <<"Bounds of what is in flight.">>;
desc(_) -> undefined.

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

field(Name, Type, Default, Desc) ->
    {Name, mk(type(Type), #{default => Default, required => false, desc => list_to_binary(Desc)})}.

secret(Name, Desc) ->
    {Name, Field} = field(Name, string, <<>>, Desc),
    {Name, Field#{sensitive => true}}.

section(Name) -> {Name, mk(ref(Name), #{required => false, default => #{}, desc => desc(Name)})}.

type(boolean) -> call(typerefl, boolean, []);
type(integer) -> call(typerefl, integer, []);
type(string) -> call(typerefl, binary, []);
type(strings) -> call(hoconsc, union, [[type(string), call(hoconsc, array, [type(string)])]]);
%% A bare integer counts milliseconds, seconds for the time to live, bytes.
type(Unit) when Unit =:= duration; Unit =:= size -> call(hoconsc, union, [[type(integer), type(string)]]);
type(Symbols) when is_list(Symbols) -> call(hoconsc, enum, [Symbols]).

ref(Struct) -> call(hoconsc, ref, [?MODULE, Struct]).

mk(Type, Meta) -> call(hoconsc, mk, [Type, Meta]).

validate(Section) ->
    ok = emqx_redis_storage_app:load_library(),
    case emqx_redis_nif:validate({map, unmask(Section)}) of
        {ok, _} -> ok;
        {error, {invalid_config, Errors}} -> {error, [explain(Error) || Error <- Errors]};
        {error, Reason} -> {error, Reason}
    end.

%% Where it is asked to hide secrets hocon has put its mask in their place by now.
unmask(#{redis := Redis} = Section) -> Section#{redis := maps:map(fun unmask/2, Redis)};
unmask(#{<<"redis">> := Redis} = Section) -> Section#{<<"redis">> := maps:map(fun unmask/2, Redis)};
unmask(Section) -> Section.

unmask(_Key, <<"******">>) -> <<"masked">>;
unmask(_Key, Value) -> Value.

explain(#{path := Path, found := Found, expected := Expected}) ->
    unicode:characters_to_binary([Path, ": found ", Found, ", expected ", Expected]).

call(Module, Function, Arguments) -> apply(Module, Function, Arguments).
