-module(emqx_redis_codec_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include("emqx_redis_proper.hrl").

-import(proper_types, [
    binary/0,
    bitstring/0,
    byte/0,
    char/0,
    float/0,
    float/2,
    frequency/1,
    integer/0,
    list/1,
    oneof/1,
    range/2,
    resize/2,
    vector/2
]).

-export([all/0]).
-export([
    spec_vectors/1,
    extension_vectors/1,
    other_writers/1,
    terms_come_back/1,
    random_terms_come_back/1,
    local_terms_come_back/1,
    external_funs_come_back/1,
    unencodable_terms/1,
    malformed_input/1,
    random_input/1,
    mutated_input/1,
    depth_is_bounded/1,
    key_depth_is_bounded/1,
    new_atoms_are_bounded/1,
    new_atoms_are_counted/1,
    large_terms/1,
    scheduler_budget/1,
    scheduler_time/1
]).

-define(MIB, 1048576).
-define(MAX_DEPTH, 256).

all() ->
    [F || {F, 1} <- ?MODULE:module_info(exports), F =/= module_info].

%%--------------------------------------------------------------------
%% The format
%%--------------------------------------------------------------------

%% Byte for byte what https://github.com/msgpack/msgpack/blob/master/spec.md says.
spec_vectors(_Config) ->
    lists:foreach(
        fun({Term, Bytes}) ->
            ?assertEqual({Term, {ok, Bytes}}, {Term, emqx_redis_codec:encode(Term)}),
            ?assertEqual({Bytes, {ok, Term}}, {Bytes, emqx_redis_codec:decode(Bytes)})
        end,
        [
            {undefined, <<16#c0>>},
            {false, <<16#c2>>},
            {true, <<16#c3>>},
            {0, <<0>>},
            {127, <<127>>},
            {128, <<16#cc, 128>>},
            {255, <<16#cc, 255>>},
            {256, <<16#cd, 256:16>>},
            {65535, <<16#cd, 65535:16>>},
            {65536, <<16#ce, 65536:32>>},
            {16#ffffffff, <<16#ce, 16#ffffffff:32>>},
            {16#100000000, <<16#cf, 16#100000000:64>>},
            {1 bsl 63, <<16#cf, 1:1, 0:63>>},
            {(1 bsl 64) - 1, <<16#cf, -1:64>>},
            {-1, <<16#ff>>},
            {-32, <<16#e0>>},
            {-33, <<16#d0, -33:8>>},
            {-128, <<16#d0, -128:8>>},
            {-129, <<16#d1, -129:16>>},
            {-32768, <<16#d1, -32768:16>>},
            {-32769, <<16#d2, -32769:32>>},
            {-(1 bsl 31), <<16#d2, -(1 bsl 31):32>>},
            {-(1 bsl 31) - 1, <<16#d3, (-(1 bsl 31) - 1):64>>},
            {-(1 bsl 63), <<16#d3, 1:1, 0:63>>},
            {1.5, <<16#cb, 1.5/float>>},
            {-0.0, <<16#cb, 1:1, 0:63>>},
            {a, <<16#a1, $a>>},
            {'', <<16#a0>>},
            {nil, <<16#a3, "nil">>},
            {'é', <<16#a2, "é"/utf8>>},
            {'日本', <<16#a6, "日本"/utf8>>},
            {atom($a, 31), <<16#bf, (binary:copy(<<"a">>, 31))/binary>>},
            {atom($a, 32), <<16#d9, 32, (binary:copy(<<"a">>, 32))/binary>>},
            {atom($a, 255), <<16#d9, 255, (binary:copy(<<"a">>, 255))/binary>>},
            {atom(16#1f600, 255),
                <<16#da, 1020:16, (binary:copy(<<16#1f600/utf8>>, 255))/binary>>},
            {<<>>, <<16#c4, 0>>},
            {<<"abc">>, <<16#c4, 3, "abc">>},
            {zeros(255), <<16#c4, 255, (zeros(255))/binary>>},
            {zeros(256), <<16#c5, 256:16, (zeros(256))/binary>>},
            {zeros(65535), <<16#c5, 65535:16, (zeros(65535))/binary>>},
            {zeros(65536), <<16#c6, 65536:32, (zeros(65536))/binary>>},
            {[], <<16#90>>},
            {[1, a], <<16#92, 1, 16#a1, $a>>},
            {"ab", <<16#92, $a, $b>>},
            {lists:duplicate(15, 0), <<16#9f, (zeros(15))/binary>>},
            {lists:duplicate(16, 0), <<16#dc, 16:16, (zeros(16))/binary>>},
            {lists:duplicate(65536, 0), <<16#dd, 65536:32, (zeros(65536))/binary>>},
            {#{}, <<16#80>>},
            {#{1 => #{}}, <<16#81, 1, 16#80>>}
        ]
    ).

%% The extensions, as the table at the top of the codec says.
extension_vectors(_Config) ->
    lists:foreach(
        fun({Term, Bytes}) ->
            ?assertEqual({Term, {ok, Bytes}}, {Term, encode(Term)}),
            ?assertEqual({Bytes, {ok, Term}}, {Bytes, emqx_redis_codec:decode(Bytes)})
        end,
        [
            {{}, <<16#c7, 1, 1, 16#90>>},
            {{1, a}, <<16#c7, 4, 1, 16#92, 1, 16#a1, $a>>},
            {{{}}, <<16#c7, 5, 1, 16#91, 16#c7, 1, 1, 16#90>>},
            {1 bsl 64, <<16#c7, 10, 2, 0, 1, 0:64>>},
            {-(1 bsl 64), <<16#c7, 10, 2, 1, 1, 0:64>>},
            {-(1 bsl 63) - 1, <<16#c7, 9, 2, 1, 16#80, 1:56>>},
            {<<5:3>>, <<16#c7, 2, 3, 3, 5:3, 0:5>>},
            {<<"a", 1:1>>, <<16#c7, 3, 3, 1, $a, 16#80>>},
            {[1 | 2], <<16#c7, 3, 4, 16#92, 1, 2>>},
            {[1, 2 | #{}], <<16#c7, 4, 4, 16#93, 1, 2, 16#80>>},
            {pid(<<"n@h">>, 1, 2, 3), <<16#c7, 8, 5, 16#94, 16#a3, "n@h", 1, 2, 3>>},
            {reference(<<"n@h">>, 3, [4, 5]),
                <<16#c7, 8, 6, 16#94, 16#a3, "n@h", 3, 4, 5>>},
            {fun lists:map/2,
                <<16#c7, 12, 7, 16#93, 16#a5, "lists", 16#a3, "map", 2>>}
        ]
    ).

%% What we do not write, and other libraries do.
other_writers(_Config) ->
    lists:foreach(
        fun({Bytes, Term}) ->
            ?assertEqual({Bytes, {ok, Term}}, {Bytes, emqx_redis_codec:decode(Bytes)})
        end,
        [
            {<<16#ca, 1.5:32/float>>, 1.5},
            {<<16#cf, 1:64>>, 1},
            {<<16#d3, 1:64>>, 1},
            {<<16#d3, -1:64>>, -1},
            {<<16#db, 4:32, "true">>, true},
            {<<16#a9, "undefined">>, undefined},
            {<<16#dd, 1:32, 16#de, 1:16, 1, 2>>, [#{1 => 2}]},
            {<<16#d4, 1, 16#90>>, {}},
            {<<16#d5, 1, 16#91, 7>>, {7}},
            {<<16#d6, 1, 16#93, 1, 2, 3>>, {1, 2, 3}},
            {<<16#c9, 2:32, 1, 16#91, 7>>, {7}},
            {<<16#d5, 2, 0, 5>>, 5},
            {<<16#d5, 2, 1, 5>>, -5}
        ]
    ).

%%--------------------------------------------------------------------
%% Round trips
%%--------------------------------------------------------------------

terms_come_back(_Config) ->
    Small = maps:from_list([{I, I} || I <- lists:seq(1, 32)]),
    Large = maps:from_list([{integer_to_binary(I), {I}} || I <- lists:seq(1, 1000)]),
    lists:foreach(
        fun comes_back/1,
        [
            #{1 => a, 1.0 => b, <<"1">> => c, "1" => d, {1} => e, [1 | 1] => f, #{} => g},
            #{0.0 => a, 0 => b},
            Small,
            Small#{33 => 33},
            Large,
            #{Large => Large},
            list_to_tuple(lists:seq(1, 300)),
            list_to_tuple(lists:seq(1, 70000)),
            {zeros(250), {zeros(250), {zeros(65530), {zeros(65530), a}, b}, c}, d},
            [1 bsl N + D || N <- lists:seq(1, 70), D <- [-1, 0, 1]],
            [-(1 bsl N) + D || N <- lists:seq(1, 70), D <- [-1, 0, 1]],
            [1 bsl 2040 - 1, 1 bsl 2040, -(1 bsl 2040), 1 bsl 100000 - 1],
            [<<0:N>> || N <- lists:seq(0, 33)],
            binary:part(<<"0123456789">>, 3, 4),
            begin
                <<_:3, Shifted:11/bitstring, _/bitstring>> = <<"abc">>,
                Shifted
            end,
            [list_to_atom([C]) || C <- [0, 127, 128, 255, 256, 16#d7ff, 16#e000, 16#10ffff]],
            nested(fun(T) -> {T, T} end, 12)
        ]
    ).

random_terms_come_back(_Config) ->
    check(?FORALL(Term, any_term(), holds(fun comes_back/1, Term)), 2000).

local_terms_come_back(_Config) ->
    Alias = alias(),
    Monitor = monitor(process, self(), [{alias, explicit_unalias}]),
    Ets = ets:new(?MODULE, []),
    lists:foreach(fun comes_back/1, [self(), make_ref(), Alias, Monitor, Ets, group_leader()]),
    %% The table can still be used by what came back.
    {ok, Bytes} = emqx_redis_codec:encode(Ets),
    {ok, Same} = emqx_redis_codec:decode(Bytes),
    ?assert(ets:insert(Same, {a})),
    unalias(Alias),
    demonitor(Monitor, [flush]).

external_funs_come_back(_Config) ->
    lists:foreach(
        fun comes_back/1,
        [fun lists:map/2, fun no_such_module:'é'/0, fun '日本':'語'/255, fun erlang:self/0]
    ),
    {ok, Bytes} = emqx_redis_codec:encode(fun erlang:length/1),
    {ok, Length} = emqx_redis_codec:decode(Bytes),
    ?assertEqual(2, Length("ab")).

unencodable_terms(_Config) ->
    Fun = fun() -> ok end,
    Port = hd(erlang:ports()),
    Large = lists:seq(1, 1000000),
    lists:foreach(
        fun({Term, What, Path}) ->
            ?assertEqual(
                {error, {unencodable, What, Path}},
                emqx_redis_codec:encode(Term)
            )
        end,
        [
            {Fun, <<"a local fun">>, <<>>},
            {fun() -> Large end, <<"a local fun">>, <<>>},
            {Port, <<"a port">>, <<>>},
            {#{subs => [a, b, {x, Port}]}, <<"a port">>, <<".subs[3]{2}">>},
            {#{'A b' => Port}, <<"a port">>, <<".'A b'">>},
            {#{<<"secret">> => Port}, <<"a port">>, <<".[value]">>},
            {#{{a, Port} => 1}, <<"a port">>, <<"[key]{2}">>},
            {[a | Port], <<"a port">>, <<"[tail]">>}
        ]
    ).

%%--------------------------------------------------------------------
%% Hostile input
%%--------------------------------------------------------------------

malformed_input(_Config) ->
    lists:foreach(
        fun({Reason, Bytes}) ->
            ?assertEqual({Bytes, {error, Reason}}, {Bytes, emqx_redis_codec:decode(Bytes)})
        end,
        [
            {truncated, <<>>},
            {truncated, <<16#cd, 1>>},
            {truncated, <<16#dd, -1:32, 1>>},
            {truncated, <<16#df, -1:32, 1, 1>>},
            {truncated, <<16#c6, -1:32, 1>>},
            {truncated, <<16#c9, -1:32, 1, 1>>},
            {truncated, <<16#92, 1>>},
            {truncated, <<16#82, 1, 2, 3>>},
            {trailing_bytes, <<1, 2>>},
            {reserved_byte, <<16#c1>>},
            {reserved_byte, <<16#91, 16#c1>>},
            {not_finite, <<16#cb, 16#7ff0000000000000:64>>},
            {not_finite, <<16#cb, 16#7ff8000000000000:64>>},
            {not_finite, <<16#ca, 16#7f800000:32>>},
            {atom_not_utf8, <<16#a1, 255>>},
            {atom_not_utf8, <<16#a3, 16#ed, 16#a0, 16#80>>},
            {atom_too_long, <<16#da, 256:16, (binary:copy(<<"a">>, 256))/binary>>},
            {atom_too_long, <<16#da, 512:16, (binary:copy(<<"é"/utf8>>, 256))/binary>>},
            {atom_too_long, <<16#da, 768:16, (binary:copy(<<"日"/utf8>>, 256))/binary>>},
            {duplicate_key, <<16#82, 1, 2, 1, 3>>},
            {duplicate_key, <<16#82, 16#80, 2, 16#80, 3>>},
            {duplicate_key, <<16#de, 100:16, (binary:copy(<<1, 2>>, 100))/binary>>},
            {unknown_extension, <<16#d4, 0, 16#c0>>},
            {unknown_extension, <<16#d6, -1:8, 1:32>>},
            {bad_extension, <<16#d4, 1, 16#c0>>},
            {bad_extension, <<16#d5, 1, 16#90, 16#90>>},
            {bad_extension, <<16#d4, 4, 16#90>>},
            {bad_extension, <<16#d5, 4, 16#91, 1>>},
            {bad_extension, <<16#c7, 3, 4, 16#92, 1, 16#90>>},
            {bad_extension, <<16#d5, 2, 0, 0>>},
            {bad_extension, <<16#d5, 2, 2, 1>>},
            {bad_extension, <<16#d5, 3, 1, 16#ff>>},
            {bad_extension, <<16#d4, 3, 1>>},
            {bad_extension, <<16#d6, 5, 16#93, 1, 2, 3>>},
            {bad_extension, <<16#d6, 7, 16#92, 16#a1, "a", 1>>}
        ]
    ),
    ?assertError(badarg, emqx_redis_codec:decode(a)),
    ?assertError(badarg, emqx_redis_codec:decode(<<1:3>>)).

random_input(_Config) ->
    check(?FORALL(Bytes, ?SUCHTHAT(B, binary(), B =/= <<>>), holds(fun is_answered/1, Bytes)), 5000).

mutated_input(_Config) ->
    Property = ?FORALL(
        {Term, Mutations},
        {any_term(), list(mutation())},
        begin
            {ok, Bytes} = encode(Term),
            holds(fun is_answered/1, lists:foldl(fun mutate/2, Bytes, Mutations))
        end
    ),
    check(Property, 3000).

%% 256 containers are the limit, also on the smallest stacks that schedulers can be given.
depth_is_bounded(_Config) ->
    in_peer(["+sss", "20", "+sssdcpu", "20"], fun depth_is_bounded_here/0).

depth_is_bounded_here() ->
    lists:foreach(
        fun(Wrap) ->
            Deepest = nested(Wrap, ?MAX_DEPTH),
            lists:foreach(
                fun({Encode, Decode}) ->
                    {ok, Bytes} = emqx_redis_nif:Encode(Deepest),
                    ?assertEqual({ok, Deepest}, emqx_redis_nif:Decode(Bytes)),
                    ?assertMatch(
                        {error, {unencodable, <<"a term nested too deeply">>, _}},
                        emqx_redis_nif:Encode(Wrap(Deepest))
                    )
                end,
                [{encode, decode}, {encode_dirty, decode_dirty}]
            )
        end,
        [
            fun(T) -> {T} end,
            fun(T) -> [T] end,
            fun(T) -> [T | a] end,
            fun(T) -> #{a => T} end
        ]
    ),
    lists:foreach(
        fun(Head) ->
            ?assertEqual(
                {error, too_deep},
                emqx_redis_codec:decode(binary:copy(Head, 1000000))
            )
        end,
        [<<16#91>>, <<16#81, 1>>, <<16#92, 16#91>>]
    ),
    Tuples = lists:foldl(
        fun(_, Inner) -> <<16#c9, (byte_size(Inner) + 1):32, 1, 16#91, Inner/binary>> end,
        <<1>>,
        lists:seq(1, ?MAX_DEPTH + 1)
    ),
    ?assertEqual({error, too_deep}, emqx_redis_codec:decode(Tuples)),
    <<16#c9, _:32, 1, 16#91, Fewer/binary>> = Tuples,
    ?assertMatch({ok, {_}}, emqx_redis_codec:decode(Fewer)).

%% To make a map of more than 32 keys, the VM hashes them: each level of maps in keys hashes all
%% that is inside it again.
key_depth_is_bounded(_Config) ->
    Wrap = fun(T) -> #{T => 1} end,
    Deepest = nested(Wrap, 8),
    comes_back(Deepest),
    ?assertMatch({error, {unencodable, _, _}}, emqx_redis_codec:encode(Wrap(Deepest))),
    {ok, Bytes} = emqx_redis_codec:encode(Deepest),
    ?assertEqual({error, too_deep}, emqx_redis_codec:decode(<<16#81, Bytes/binary, 1>>)).

new_atoms_are_bounded(_Config) ->
    in_peer([], fun new_atoms_are_bounded_here/0).

new_atoms_are_bounded_here() ->
    Left = emqx_redis_codec:new_atoms_left(),
    ?assertEqual(10000, Left),
    Atoms = erlang:system_info(atom_count),
    Names = [integer_to_binary(I) || I <- lists:seq(1, 2 * Left)],
    Decoded = [emqx_redis_codec:decode(str(<<"unheard_of_", N/binary>>)) || N <- Names],
    ?assertEqual(Left, length([A || {ok, A} <- Decoded])),
    ?assertEqual([{error, atom_budget}], lists:usort([E || {error, _} = E <- Decoded])),
    ?assertEqual(0, emqx_redis_codec:new_atoms_left()),
    ?assert(erlang:system_info(atom_count) - Atoms < Left + 100),
    %% What exists can still be read, whatever it is in.
    ?assertMatch({ok, _}, emqx_redis_codec:decode(str(<<"unheard_of_1">>))),
    ?assertEqual({ok, lists}, emqx_redis_codec:decode(<<16#a5, "lists">>)),
    comes_back({self(), make_ref(), fun lists:map/2, '日本'}),
    lists:foreach(
        fun(Bytes) ->
            ?assertEqual({error, atom_budget}, emqx_redis_codec:decode(Bytes))
        end,
        new_names()
    ).

new_atoms_are_counted(_Config) ->
    in_peer([], fun new_atoms_are_counted_here/0).

new_atoms_are_counted_here() ->
    Left = emqx_redis_codec:new_atoms_left(),
    lists:foreach(fun(Bytes) -> {ok, _} = emqx_redis_codec:decode(Bytes) end, new_names()),
    %% A name each, but two of the fun, which is itself one more.
    Taken = length(new_names()) + 2,
    ?assertEqual(Left - Taken, emqx_redis_codec:new_atoms_left()),
    lists:foreach(fun(Bytes) -> {ok, _} = emqx_redis_codec:decode(Bytes) end, new_names()),
    ?assertEqual(Left - Taken, emqx_redis_codec:new_atoms_left()).

%% Encodings that each name what the VM does not know yet.
new_names() ->
    Name = fun(N) -> str(<<"never_seen_", (integer_to_binary(N))/binary>>) end,
    [
        Name(1),
        str(<<"jamais_ouï_é"/utf8>>),
        str(<<"前代未聞_日本"/utf8>>),
        ext(5, <<16#94, (Name(2))/binary, 1, 2, 3>>),
        ext(6, <<16#93, (Name(3))/binary, 1, 2>>),
        ext(7, <<16#93, (Name(4))/binary, (Name(5))/binary, 2>>)
    ].

%%--------------------------------------------------------------------
%% Size and time
%%--------------------------------------------------------------------

large_terms(_Config) ->
    lists:foreach(
        fun({Name, Term}) ->
            {EncodeTime, {ok, Bytes}} = timer:tc(emqx_redis_codec, encode, [Term]),
            {DecodeTime, {ok, Same}} = timer:tc(emqx_redis_codec, decode, [Bytes]),
            ?assert(Same =:= Term),
            ct:pal("~s: ~b bytes, encoded in ~b ms, decoded in ~b ms", [
                Name, byte_size(Bytes), EncodeTime div 1000, DecodeTime div 1000
            ]),
            ?assert(EncodeTime + DecodeTime < 20000000)
        end,
        [
            {"binary", zeros(16 * ?MIB)},
            {"bitstring", <<(zeros(16 * ?MIB))/binary, 1:3>>},
            {"list", lists:seq(1, 2000000)},
            {"map", maps:from_list([{I, I} || I <- lists:seq(1, 200000)])},
            {"tuples", [{I, {I}} || I <- lists:seq(1, 200000)]},
            {"deep tuples", nested(fun(T) -> {zeros(65536), T} end, 250)}
        ]
    ),
    ?assertEqual({error, too_large}, emqx_redis_codec:encode(zeros(64 * ?MIB))),
    ?assertEqual({error, too_large}, emqx_redis_codec:decode(zeros(64 * ?MIB + 1))).

scheduler_budget(_Config) ->
    lists:foreach(
        fun(Term) ->
            ?assertEqual(over_budget, emqx_redis_nif:encode(Term)),
            ?assertMatch({ok, _}, emqx_redis_nif:encode_dirty(Term))
        end,
        [zeros(32768), lists:seq(1, 5000), [zeros(20000), zeros(20000)], 1 bsl 64, <<1:3>>]
    ),
    lists:foreach(
        fun(Term) -> ?assertMatch({ok, _}, emqx_redis_nif:encode(Term)) end,
        [zeros(32000), lists:seq(1, 4000)]
    ),
    ?assertEqual(over_budget, emqx_redis_nif:decode(zeros(4097))).

%% A call on a scheduler is short whatever it is given. The shortest of some is taken: the machine
%% may be busy with other things.
scheduler_time(_Config) ->
    List = lists:seq(1, 1000000),
    lists:foreach(
        fun({Name, F}) ->
            Times = [element(1, timer:tc(F)) || _ <- lists:seq(1, 20)],
            ct:pal("~s: ~b us", [Name, lists:min(Times)]),
            ?assert(lists:min(Times) < 1000)
        end,
        [
            {Name, fun() -> emqx_redis_nif:encode(Term) end}
         || {Name, Term} <- [
                {"long list", List},
                {"lists", lists:duplicate(4000, List)},
                {"large tuple", list_to_tuple(List)},
                {"large map", maps:from_list([{I, I} || I <- List])},
                {"map of half the budget", maps:from_list([{I, I} || I <- lists:seq(1, 2000)])},
                {"binary", zeros(16 * ?MIB)},
                {"bitstring", <<(zeros(16 * ?MIB))/binary, 1:3>>},
                {"bignum", 1 bsl 4000000},
                {"fun", fun() -> List end},
                {"pids", lists:duplicate(4000, self())},
                {"atoms", lists:duplicate(4000, '日本')},
                {"small ints", lists:duplicate(4000, 1)},
                {"deep tuples", nested(fun(T) -> {zeros(100), T} end, 250)}
            ]
        ] ++
            [
                {Name, fun() -> emqx_redis_nif:decode(Bytes) end}
             || {Name, Bytes} <- [
                    {"arrays", <<16#dc, 4093:16, (binary:copy(<<16#90>>, 4093))/binary>>},
                    {"maps", <<16#dc, 4093:16, (binary:copy(<<16#80>>, 4093))/binary>>},
                    {"strings", <<16#dc, 2046:16, (binary:copy(<<16#a1, $a>>, 2046))/binary>>}
                ]
            ]
    ).

%%--------------------------------------------------------------------
%% Generators
%%--------------------------------------------------------------------

any_term() ->
    ?SIZED(Size, any_term(Size)).

any_term(Size) when Size =< 1 ->
    leaf();
any_term(Size) ->
    Inner = ?LAZY(any_term(Size div 4)),
    frequency([
        {4, leaf()},
        {1, up_to(Size, Inner)},
        {1, ?LET(L, up_to(Size, Inner), list_to_tuple(L))},
        {1, ?LET(L, up_to(Size, {Inner, Inner}), maps:from_list(L))},
        {1, ?LET({L, Tail}, {up_to(Size, Inner), leaf()}, [Tail | L] ++ Tail)}
    ]).

up_to(Length, Inner) ->
    ?LET(N, range(0, Length), vector(N, Inner)).

leaf() ->
    oneof([
        an_atom(),
        an_integer(),
        float(),
        oneof([0.0, -0.0, 1.0, 1.0e308, -5.0e-324]),
        binary(),
        bitstring(),
        list(char()),
        a_pid(),
        a_reference(),
        a_fun()
    ]).

an_atom() ->
    oneof([
        oneof([a, true, false, undefined, nil, null, '', 'A b', 'é', '日本', '\n']),
        ?LET(Chars, resize(8, list(a_char())), list_to_atom(Chars))
    ]).

a_char() ->
    oneof([range(0, 16#7f), range(0, 16#ff), range(0, 16#d7ff), range(16#e000, 16#10ffff)]).

an_integer() ->
    oneof([
        integer(),
        ?LET({N, D, Sign}, {range(0, 200), range(-2, 2), oneof([1, -1])}, Sign * (1 bsl N + D)),
        ?LET({N, B}, {range(1, 300), integer()}, binary:decode_unsigned(zeros_and(N, B)))
    ]).

zeros_and(N, B) ->
    <<(abs(B) + 1):8, 0:N/unit:8, B:16>>.

a_node() ->
    oneof([<<"a@b">>, <<"node">>, <<"日本@é"/utf8>>]).

a_word() ->
    oneof([range(0, 127), range(0, 16#7fff), range(0, 16#ffffffff)]).

a_pid() ->
    oneof([
        ?LET(N, range(0, 32767), list_to_pid("<0." ++ integer_to_list(N) ++ ".0>")),
        ?LET(
            {Node, Id, Serial, Creation},
            {a_node(), a_word(), a_word(), a_word()},
            pid(Node, Id, Serial, Creation)
        )
    ]).

%% References of one word no node makes, and OTP 25 does not find them as keys of large maps.
a_reference() ->
    oneof([
        ?LAZY(make_ref()),
        ?LET(
            {Node, Creation, Words},
            {a_node(), a_word(), ?LET(N, range(2, 5), vector(N, a_word()))},
            reference(Node, Creation, Words)
        )
    ]).

a_fun() ->
    ?LET(
        {M, F, A},
        {oneof([lists, no_such_module, 'é', '日本']), oneof([map, '語']), range(0, 255)},
        fun M:F/A
    ).

mutation() ->
    {oneof([set, flip, insert, delete, cut, repeat]), float(0.0, 1.0), byte()}.

mutate({_, _, _}, <<>>) ->
    <<>>;
mutate({Kind, Where, Byte}, Bytes) ->
    Position = min(byte_size(Bytes) - 1, trunc(Where * byte_size(Bytes))),
    <<Before:Position/binary, At, After/binary>> = Bytes,
    case Kind of
        set -> <<Before/binary, Byte, After/binary>>;
        flip -> <<Before/binary, (At bxor (1 bsl (Byte band 7))), After/binary>>;
        insert -> <<Before/binary, Byte, At, After/binary>>;
        delete -> <<Before/binary, After/binary>>;
        cut -> <<Before/binary, At>>;
        repeat -> <<Before/binary, At, After/binary, At, After/binary>>
    end.

%%--------------------------------------------------------------------
%% Helpers
%%--------------------------------------------------------------------

check(Property, Tests) ->
    Print = fun
        (".", []) -> ok;
        (Format, Args) -> ct:pal(Format, Args)
    end,
    ?assert(proper:quickcheck(Property, [{numtests, Tests}, {max_size, 60}, {on_output, Print}])).

%% PropEr 1.2 itself fails on an exception in a property on an OTP that is as new as ours.
holds(Fun, Input) ->
    try
        Fun(Input)
    catch
        Class:Reason:Stack ->
            ct:pal("~p ~0P~n~p~n~p", [Class, Reason, 20, Stack, Input]),
            false
    end.

%% Both ways of each direction: the one for schedulers may find the term too large.
comes_back(Term) ->
    {ok, Bytes} = emqx_redis_nif:encode_dirty(Term),
    case emqx_redis_nif:encode(Term) of
        over_budget -> ok;
        Encoded -> ?assertEqual({ok, Bytes}, Encoded)
    end,
    {ok, Same} = emqx_redis_nif:decode_dirty(Bytes),
    {ok, Same} = emqx_redis_codec:decode(Bytes),
    ?assert(Same =:= Term),
    %% Matching takes 0.0 and -0.0 for one.
    ?assertEqual(term_to_binary(Term, [deterministic]), term_to_binary(Same, [deterministic])),
    true.

is_answered(Bytes) ->
    case emqx_redis_codec:decode(Bytes) of
        {ok, Term} ->
            %% A real term, which can be looked at in every way.
            _ = term_to_binary(Term),
            _ = erlang:phash2(Term),
            {ok, Again} = emqx_redis_codec:encode(Term),
            ?assertEqual({Again, {ok, Term}}, {Again, emqx_redis_codec:decode(Again)}),
            true;
        {error, Reason} ->
            is_atom(Reason)
    end.

encode(Term) ->
    emqx_redis_codec:encode(Term).

in_peer(Args, Fun) ->
    Paths = lists:append([["-pa", Path] || Path <- code:get_path(), filelib:is_dir(Path)]),
    {ok, Peer, _Node} = peer:start_link(#{connection => standard_io, args => Args ++ Paths}),
    try
        peer:call(Peer, erlang, apply, [Fun, []], 120000)
    after
        peer:stop(Peer)
    end.

nested(Wrap, Times) ->
    lists:foldl(fun(_, T) -> Wrap(T) end, Wrap(1), lists:seq(2, Times)).

atom(Char, Times) ->
    list_to_atom(lists:duplicate(Times, Char)).

zeros(Bytes) ->
    <<0:Bytes/unit:8>>.

str(Text) ->
    <<16#d9, (byte_size(Text)), Text/binary>>.

ext(Type, Payload) ->
    <<16#c7, (byte_size(Payload)), Type, Payload/binary>>.

pid(Node, Id, Serial, Creation) ->
    binary_to_term(
        <<131, 88, 119, (byte_size(Node)), Node/binary, Id:32, Serial:32, Creation:32>>
    ).

reference(Node, Creation, Words) ->
    Number = <<<<Word:32>> || Word <- Words>>,
    binary_to_term(
        <<131, 90, (length(Words)):16, 119, (byte_size(Node)), Node/binary, Creation:32,
            Number/binary>>
    ).
