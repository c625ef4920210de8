%% Certificates for tests, good ones and bad ones, made by the openssl program in a fifth of a second.
%%
%%     Certificates = emqx_redis_test_certificates:make(Folder),
%%     Tls = emqx_redis_test_certificates:server_tls(Certificates),
%%     Server = emqx_redis_test_server:start(#{tls => Tls#{auth_clients => yes}})
-module(emqx_redis_test_certificates).

-export([make/1, server_tls/1]).

-export_type([certificates/0]).

-type certificates() :: #{
    %% The authority that signed everything here but `other_cacertfile`.
    cacertfile := file:filename(),
    %% For 127.0.0.1 and localhost. A server shows it as a client too, to other servers.
    server_certfile := file:filename(),
    server_keyfile := file:filename(),
    client_certfile := file:filename(),
    client_keyfile := file:filename(),
    %% As the server's, but it ended years ago.
    expired_certfile := file:filename(),
    expired_keyfile := file:filename(),
    %% For redis.example alone.
    other_host_certfile := file:filename(),
    other_host_keyfile := file:filename(),
    %% An authority that signed nothing.
    other_cacertfile := file:filename()
}.

-define(LOCAL, "IP:127.0.0.1,DNS:localhost").

%% `openssl ca` is the one command that takes a certificate's beginning and end in OpenSSL 3.0 and in 3.5.
-define(CONFIGURATION,
    "[ca]\n"
    "default_ca = authority\n"
    "[authority]\n"
    "database = index.txt\n"
    "new_certs_dir = .\n"
    "rand_serial = yes\n"
    "unique_subject = no\n"
    "default_md = sha256\n"
    "policy = policy\n"
    "[policy]\n"
    "commonName = supplied\n"
).

%% Makes the folder if it is not there.
-spec make(file:filename()) -> certificates().
make(Path) ->
    Folder = filename:absname(Path),
    ok = filelib:ensure_dir(filename:join(Folder, "file")),
    ok = file:write_file(filename:join(Folder, "ca.cnf"), ?CONFIGURATION),
    ok = file:write_file(filename:join(Folder, "index.txt"), ""),
    ok = make_authority(Folder, "ca"),
    ok = make_authority(Folder, "other_ca"),
    Now = erlang:system_time(second),
    Day = 24 * 3600,
    Valid = {Now - Day, Now + 3650 * Day},
    ok = make_certificate(Folder, "server", ?LOCAL, "serverAuth,clientAuth", Valid),
    ok = make_certificate(Folder, "client", "DNS:client.example", "clientAuth", Valid),
    Past = {Now - 3650 * Day, Now - 365 * Day},
    ok = make_certificate(Folder, "expired", ?LOCAL, "serverAuth,clientAuth", Past),
    ok = make_certificate(Folder, "other_host", "DNS:redis.example", "serverAuth,clientAuth", Valid),
    File = fun(Name) -> filename:join(Folder, Name) end,
    #{
        cacertfile => File("ca.crt"),
        server_certfile => File("server.crt"),
        server_keyfile => File("server.key"),
        client_certfile => File("client.crt"),
        client_keyfile => File("client.key"),
        expired_certfile => File("expired.crt"),
        expired_keyfile => File("expired.key"),
        other_host_certfile => File("other_host.crt"),
        other_host_keyfile => File("other_host.key"),
        other_cacertfile => File("other_ca.crt")
    }.

%% What emqx_redis_test_server's option `tls` takes: the good certificates.
-spec server_tls(certificates()) -> emqx_redis_test_server:tls().
server_tls(Certificates) ->
    #{
        certfile => maps:get(server_certfile, Certificates),
        keyfile => maps:get(server_keyfile, Certificates),
        cacertfile => maps:get(cacertfile, Certificates),
        client_certfile => maps:get(client_certfile, Certificates),
        client_keyfile => maps:get(client_keyfile, Certificates)
    }.

%% Internal

make_authority(Folder, Name) ->
    openssl(Folder, ["req", "-x509", "-days", "3650", "-out", Name ++ ".crt", "-sha256"
        | key_and_subject(Name)] ++ ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]).

make_certificate(Folder, Name, AlternativeNames, Usage, {From, Until}) ->
    Extensions = [
        "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\n",
        "extendedKeyUsage = ", Usage, "\nsubjectAltName = ", AlternativeNames, "\n"
    ],
    ok = file:write_file(filename:join(Folder, Name ++ ".ext"), Extensions),
    ok = openssl(Folder, ["req", "-new", "-out", Name ++ ".csr" | key_and_subject(Name)]),
    openssl(Folder, ["ca", "-batch", "-notext", "-config", "ca.cnf", "-cert", "ca.crt",
        "-keyfile", "ca.key", "-in", Name ++ ".csr", "-out", Name ++ ".crt", "-extfile", Name ++ ".ext",
        "-startdate", time(From), "-enddate", time(Until)]).

key_and_subject(Name) ->
    ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", Name ++ ".key",
        "-subj", "/CN=" ++ Name].

%% With two digits for the year, as certificates must have it until 2049.
time(Seconds) ->
    {{Year, Month, Day}, {Hour, Minute, Second}} = calendar:system_time_to_universal_time(Seconds, second),
    lists:flatten([
        io_lib:format("~2..0b", [Number])
     || Number <- [Year rem 100, Month, Day, Hour, Minute, Second]
    ] ++ "Z").

openssl(Folder, Arguments) ->
    Program =
        case os:find_executable("openssl") of
            false -> error({missing_program, "openssl"});
            Found -> Found
        end,
    Port = open_port({spawn_executable, Program}, [
        {args, Arguments}, {cd, Folder}, binary, exit_status, stderr_to_stdout
    ]),
    case collect(Port, <<>>) of
        {0, _Output} -> ok;
        {Status, Output} -> error({openssl, Status, Arguments, Output})
    end.

collect(Port, Output) ->
    receive
        {Port, {data, Bytes}} -> collect(Port, <<Output/binary, Bytes/binary>>);
        {Port, {exit_status, Status}} -> {Status, Output}
    end.
