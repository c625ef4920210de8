%% Events of the Rust side as events of OTP's `logger', as reports with level, target and fields.
-module(emqx_redis_log).

-export([log/4, format/1]).

-spec log(binary(), binary(), binary(), [{binary(), binary()}]) -> ok.
log(Level, Target, Message, Fields) ->
    Report = #{
        component => emqx_redis_storage,
        target => Target,
        message => Message,
        fields => Fields
    },
    logger:log(level(Level), Report, #{
        domain => [emqx_redis_storage], report_cb => fun ?MODULE:format/1
    }).

level(<<"error">>) -> error;
level(<<"warning">>) -> warning;
level(<<"info">>) -> info;
level(_) -> debug.

-spec format(map()) -> {io:format(), [term()]}.
format(#{target := Target, message := Message, fields := Fields}) ->
    Text = [[" ", Name, "=", Value] || {Name, Value} <- Fields],
    {"~ts: ~ts~ts", [Target, Message, Text]}.
