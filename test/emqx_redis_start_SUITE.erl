%% `start/0' in a virtual machine that has not loaded the application: the configuration of `sys.config' or of
%% a file is taken, and its faults are told.
-module(emqx_redis_start_SUITE).

-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-export([all/0]).
-export([a_faulty_file_is_refused/1, a_missing_file_is_refused/1, the_environment_is_taken/1]).

all() -> [a_faulty_file_is_refused, a_missing_file_is_refused, the_environment_is_taken].

a_faulty_file_is_refused(Config) ->
    File = filename:join(?config(priv_dir, Config), "faulty.conf"),
    ok = file:write_file(File, "redis_storage {\n  redis {\n    pool_sise = 3\n  }\n}\n"),
    Answer = start_fresh([{config_file, File}], "emqx_redis_storage:start()"),
    ?assertMatch({error, {invalid_config, [#{path := <<"redis.pool_sise">>, line := 3}]}}, Answer).

a_missing_file_is_refused(_Config) ->
    Answer = start_fresh([{config_file, "/nonexistent.conf"}], "emqx_redis_storage:start()"),
    ?assertMatch({error, {invalid_config, [#{kind := unreadable}]}}, Answer).

the_environment_is_taken(_Config) ->
    Environment = [{redis_storage, #{redis => #{servers => <<"127.0.0.1:1">>}, key_prefix => <<"p:">>}}],
    Answer = start_fresh(Environment, "{emqx_redis_storage:start(), emqx_redis_storage:config()}"),
    ?assertMatch({ok, #{key_prefix := <<"p:">>, redis := #{servers := _}}}, Answer).

%% What the expression gives in a virtual machine of its own.
start_fresh(Environment, Expression) ->
    Arguments = lists:append([
        ["-emqx_redis_storage", atom_to_list(Key), lists:flatten(io_lib:format("~0p", [Value]))]
     || {Key, Value} <- Environment
    ]),
    Ebin = filename:dirname(code:which(emqx_redis_storage)),
    Print = "io:format(\"answer ~w.~n\", [term_to_binary(" ++ Expression ++ ")]), halt().",
    Port = open_port({spawn_executable, os:find_executable("erl")}, [
        {args, ["-noinput", "-pa", Ebin | Arguments] ++ ["-eval", Print]}, exit_status, binary
    ]),
    Output = collect(Port, <<>>),
    {match, [Bytes]} = re:run(Output, "answer <<([0-9,\\s]*)>>\\.", [{capture, [1], binary}]),
    Digits = re:split(Bytes, "[,\\s]+", [{return, list}]),
    binary_to_term(list_to_binary([list_to_integer(Digit) || Digit <- Digits])).

collect(Port, Output) ->
    receive
        {Port, {data, Data}} -> collect(Port, <<Output/binary, Data/binary>>);
        {Port, {exit_status, _}} -> Output
    after 30000 -> ct:fail({no_answer, Output})
    end.
