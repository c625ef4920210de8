%% The schema for EMQX's library hocon: that it has the keys and defaults of the documentation; and, where
%% EMQX_LIB names a folder of compiled applications (hocon, typerefl), that the library itself takes it.
-module(emqx_redis_schema_SUITE).

-compile([export_all, nowarn_export_all]).

-include_lib("stdlib/include/assert.hrl").

-define(SCHEMA, emqx_redis_storage_schema).
-define(SECRET, "S3cret-w0rd").

suite() ->
    [{timetrap, {minutes, 1}}].

%% A skipped test counts as failed, and the library is no part of the project: what needs it is left out where
%% it is not there.
all() ->
    case os:getenv("EMQX_LIB") of
        false ->
            io:format(user, "WARNING: the schema is NOT tried with hocon itself: EMQX_LIB is not set~n", []),
            [{group, without_library}];
        _ ->
            [{group, without_library}, {group, with_library}]
    end.

groups() ->
    [
        {without_library, [
            keys_are_those_of_the_documentation,
            defaults_are_those_of_the_storage,
            everything_is_described,
            the_validator_tells_every_fault
        ]},
        {with_library, [
            defaults_are_filled_in,
            good_configurations,
            bad_configurations,
            secrets_are_hidden,
            documents_are_made_of_it
        ]}
    ].

init_per_group(without_library, Config) ->
    [load_stand_in(Module, Functions) || {Module, Functions} <- stand_ins()],
    Config;
init_per_group(with_library, Config) ->
    Paths = filelib:wildcard(filename:join(os:getenv("EMQX_LIB"), "*/ebin")),
    ok = code:add_pathsz(Paths),
    [{module, Module} = code:ensure_loaded(Module) || Module <- [hocon, hoconsc, hocon_tconf, typerefl]],
    [{paths, Paths} | Config].

end_per_group(without_library, _Config) ->
    [true = code:delete(Module) andalso not code:purge(Module) || {Module, _} <- stand_ins()],
    ok;
end_per_group(with_library, Config) ->
    [code:del_path(Path) || Path <- proplists:get_value(paths, Config)],
    ok.

end_per_testcase(_Case, _Config) ->
    [] = emqx_redis_test_helpers:stray_messages(20),
    ok.

%%--------------------------------------------------------------------
%% Without the library
%%--------------------------------------------------------------------

keys_are_those_of_the_documentation(_Config) ->
    Documented = [Key || {Key, _Type, _Default} <- documented()],
    ?assert(length(Documented) > 30),
    Known = [Key || {Key, _} <- leaves()],
    ?assertEqual([], Known -- expanded(Documented)),
    ?assertEqual([], expanded(Documented) -- Known).

%% As the documentation has them, and as the storage's own validation fills them in.
defaults_are_those_of_the_storage(_Config) ->
    Defaults = maps:from_list([{Key, maps:get(default, Field)} || {Key, Field} <- leaves()]),
    [
        ?assertEqual({Key, Default}, {Key, quoted(maps:get(Key, Defaults))})
     || {Key, _Type, Default} <- documented(), Default =/= <<>>
    ],
    ok = emqx_redis_storage_app:load_library(),
    ?assertEqual(
        emqx_redis_nif:validate({map, #{}}),
        emqx_redis_nif:validate({map, maps:fold(fun nest/3, #{}, Defaults)})
    ).

everything_is_described(_Config) ->
    [{redis_storage, #{desc := <<_, _/binary>>}}] = ?SCHEMA:roots(),
    redis_storage = ?SCHEMA:namespace(),
    [
        begin
            ?assertMatch(<<_, _/binary>>, ?SCHEMA:desc(Struct)),
            [
                ?assertMatch({_, _, #{desc := <<_, _/binary>>}}, {Struct, Name, Field})
             || {Name, Field} <- ?SCHEMA:fields(Struct)
            ]
        end
     || Struct <- [redis_storage, redis, ssl, sentinel_ssl, persistence, routes, mqtt, limits]
    ],
    ?assertEqual(undefined, ?SCHEMA:desc("Root Config Keys")),
    [
        ?assert(lists:member({Key, true}, [{K, maps:get(sensitive, F, false)} || {K, F} <- leaves()]))
     || Key <- [<<"redis.password">>, <<"redis.sentinel_password">>]
    ].

the_validator_tells_every_fault(_Config) ->
    [{redis_storage, #{validator := Validate}}] = ?SCHEMA:roots(),
    ?assertEqual(ok, Validate(#{})),
    ?assertEqual(ok, Validate(#{redis => #{servers => <<"a:1">>}})),
    ?assertEqual(ok, Validate(#{<<"redis">> => #{<<"password">> => <<"******">>}})),
    {error, [Database, Ttl]} =
        Validate(#{redis => #{database => -1}, persistence => #{session_ttl => <<"soon">>}}),
    ?assertMatch(<<"redis.database: found -1, expected ", _/binary>>, Database),
    ?assertMatch(<<"persistence.session_ttl: found \"soon\", expected ", _/binary>>, Ttl).

%%--------------------------------------------------------------------
%% With it
%%--------------------------------------------------------------------

defaults_are_filled_in(_Config) ->
    #{redis_storage := Checked} = check(<<>>),
    ?assertMatch(#{enable := true, redis := #{type := single, pool_size := 64}, limits := #{}}, Checked),
    ?assertEqual(emqx_redis_nif:validate({map, #{}}), emqx_redis_nif:validate({map, Checked})).

good_configurations(_Config) ->
    [
        begin
            #{redis_storage := Checked} = check(Text),
            ?assertEqual({Path, Value}, {Path, maps:get(Key, maps:get(Section, Checked))})
        end
     || {Text, [Section, Key] = Path, Value} <- [
            {<<"redis_storage.redis.servers = \"a:1\"">>, [redis, servers], <<"a:1">>},
            {<<"redis_storage.redis { type = cluster, servers = [\"a:1\", \"b:2\"] }">>,
                [redis, servers], [<<"a:1">>, <<"b:2">>]},
            {<<"redis_storage.redis { redis_type = sentinel, sentinel = m }">>, [redis, type], sentinel},
            {<<"redis_storage.redis.pool_size = \"7\"">>, [redis, pool_size], 7},
            {<<"redis_storage.persistence.session_ttl = 3600">>, [persistence, session_ttl], 3600},
            {<<"redis_storage.persistence.session_ttl = 2h">>, [persistence, session_ttl], <<"2h">>},
            {<<"redis_storage.persistence.durability = \"aof:1:1\"">>,
                [persistence, durability], <<"aof:1:1">>},
            {<<"redis_storage.limits.max_inflight_bytes = 1048576">>, [limits, max_inflight_bytes], 1048576},
            {<<"redis_storage.mqtt.when_unavailable = degrade">>, [mqtt, when_unavailable], degrade}
        ]
    ].

bad_configurations(_Config) ->
    [
        begin
            {refused, Faults} = check(Text),
            Told = lists:flatten(io_lib:format("~p", [Faults])),
            ?assert(string:find(Told, Expected) =/= nomatch, {Text, Told})
        end
     || {Text, Expected} <- [
            {<<"redis_storage.redis.pool_size = 0">>, "redis.pool_size: found 0"},
            {<<"redis_storage.redis.pool_size = many">>, "redis_storage.redis.pool_size"},
            {<<"redis_storage.redis.type = triple">>, "redis_storage.redis.type"},
            {<<"redis_storage.redis.typ = single">>, "typ"},
            {<<"redis_storage.redis.type = sentinel">>, "redis.sentinel: found no name"},
            {<<"redis_storage.redis { type = cluster, database = 1 }">>, "redis.database: found 1"},
            {<<"redis_storage.redis.ssl.certfile = \"/x\"">>, "redis.ssl.keyfile"},
            {<<"redis_storage.persistence.session_ttl = soon">>, "persistence.session_ttl"},
            {<<"redis_storage.enable = maybe">>, "redis_storage.enable"}
        ]
    ].

secrets_are_hidden(_Config) ->
    Text = <<"redis_storage.redis { type = sentinel, password = \"", ?SECRET, "\" }">>,
    {refused, Faults} = check(Text),
    ?assertEqual(nomatch, string:find(io_lib:format("~p", [Faults]), ?SECRET)),
    {ok, Parsed} = apply(hocon, binary, [<<"redis_storage.redis.password = \"", ?SECRET, "\"">>]),
    Shown = apply(hocon_tconf, check_plain, [?SCHEMA, Parsed, #{obfuscate_sensitive_values => true}]),
    ?assertEqual(nomatch, string:find(io_lib:format("~p", [Shown]), ?SECRET)),
    #{redis_storage := #{redis := #{password := Password}}} =
        check(<<"redis_storage.redis.password = \"", ?SECRET, "\"">>),
    ?assertEqual(<<?SECRET>>, Password).

documents_are_made_of_it(_Config) ->
    Structs = apply(hocon_schema_json, gen, [?SCHEMA]),
    Names = lists:sort([Name || #{full_name := Name} <- Structs]),
    ?assertEqual(9, length(Names)),
    ?assert(lists:member(<<"redis_storage:redis">>, Names)),
    Text = iolist_to_binary(apply(hocon_schema_md, gen, [?SCHEMA, "redis_storage"])),
    Keys = [<<"outage_grace">>, <<"when_unavailable">>],
    [?assertNotEqual(nomatch, binary:match(Text, Key)) || Key <- Keys],
    {ok, Rich} = apply(hocon, binary, [<<"redis_storage {}">>, #{format => richmap}]),
    ?assertMatch({[], _}, apply(hocon_tconf, map_translate, [?SCHEMA, Rich, #{}])).

%%--------------------------------------------------------------------
%% Internal
%%--------------------------------------------------------------------

check(Text) ->
    {ok, Parsed} = apply(hocon, binary, [Text]),
    try
        apply(hocon_tconf, check_plain, [?SCHEMA, Parsed, #{atom_key => true}])
    catch
        throw:{?SCHEMA, Faults} -> {refused, Faults}
    end.

%% Every key that is no section, by its path, with its field.
leaves() ->
    [{redis_storage, #{type := {ref, ?SCHEMA, Root}}}] = ?SCHEMA:roots(),
    leaves(<<>>, Root).

leaves(Path, Struct) ->
    lists:append([
        case Field of
            #{type := {ref, ?SCHEMA, Inner}} -> leaves(<<Path/binary, Name/binary, ".">>, Inner);
            _ -> [{<<Path/binary, Name/binary>>, Field}]
        end
     || {Key, Field} <- ?SCHEMA:fields(Struct), Name <- [atom_to_binary(Key)]
    ]).

%% The rows of the documentation's table of keys.
documented() ->
    Root = filename:dirname(filename:dirname(proplists:get_value(source, ?MODULE:module_info(compile)))),
    {ok, Text} = file:read_file(filename:join(Root, "docs/configuration.md")),
    [_, Keys] = binary:split(Text, <<"\n## Keys\n">>),
    [Table, _] = binary:split(Keys, <<"\n### ">>),
    {match, Rows} = re:run(Table, "^\\| `([a-z_.]+)` \\| (.*?) \\| `?(.*?)`? ?\\| ", [
        global, multiline, {capture, all_but_first, binary}
    ]),
    [list_to_tuple(Row) || Row <- Rows].

%% The section `redis.sentinel_ssl' has the keys of `redis.ssl'.
expanded(Keys) ->
    Ssl = [Key || <<"redis.ssl.", Key/binary>> <- Keys],
    lists:append([
        case Key of
            <<"redis.sentinel_ssl">> -> [<<"redis.sentinel_ssl.", Inner/binary>> || Inner <- Ssl];
            _ -> [Key]
        end
     || Key <- Keys
    ]).

quoted(<<"none">>) -> <<"none">>;
quoted(Text) when is_binary(Text) -> <<"\"", Text/binary, "\"">>;
quoted(Atom) when is_atom(Atom) -> atom_to_binary(Atom);
quoted(Integer) -> integer_to_binary(Integer).

nest(Path, Value, Map) -> nest_path(binary:split(Path, <<".">>, [global]), Value, Map).

nest_path([Key], Value, Map) -> Map#{Key => Value};
nest_path([Key | Keys], Value, Map) -> Map#{Key => nest_path(Keys, Value, maps:get(Key, Map, #{}))}.

%% What stands for the library's functions: a type is what it was made with.
stand_ins() ->
    [
        {hoconsc, [
            "mk(Type, Meta) -> Meta#{type => Type}.",
            "ref(Module, Struct) -> {ref, Module, Struct}.",
            "enum(Symbols) -> {enum, Symbols}.",
            "union(Types) -> {union, Types}.",
            "array(Type) -> {array, Type}."
        ]},
        {typerefl, ["boolean() -> boolean.", "integer() -> integer.", "binary() -> binary."]}
    ].

load_stand_in(Module, Functions) ->
    Head = ["-module(" ++ atom_to_list(Module) ++ ").", "-compile(export_all)."],
    Forms = [form(Text) || Text <- Head ++ Functions],
    {ok, Module, Code} = compile:forms(Forms, [nowarn_export_all]),
    {module, Module} = code:load_binary(Module, "stand-in", Code).

form(Text) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, Form} = erl_parse:parse_form(Tokens),
    Form.
