%% Shared subscriptions: each message goes to one live member of the group, the same chance for each.
-module(emqx_shared_sub).

-export([dispatch/3, redispatch/1]).

-include("emqx_standin.hrl").

dispatch(Group, Filter, Message) -> dispatch(Group, Filter, Message, []).

%% Messages that have come to a member, to another one.
redispatch(Messages) ->
    lists:foreach(
        fun
            (#message{qos = QoS, headers = #{redispatch_to := {Group, Filter}}} = Message) when QoS > 0 ->
                dispatch(Group, Filter, Message, [self()]);
            (_) ->
                ok
        end,
        Messages
    ).

dispatch(Group, Filter, Message, Except) ->
    Share = emqx_topic:make_shared_record(Group, Filter),
    Members = lists:filter(fun is_process_alive/1, emqx_broker:subscribers(Share)),
    case {Members -- Except, Members} of
        {[], []} -> {error, no_subscribers};
        {[], _} -> send(Group, Filter, Message, Members);
        {Others, _} -> send(Group, Filter, Message, Others)
    end.

send(Group, Filter, Message, Pids) ->
    Pid = lists:nth(rand:uniform(length(Pids)), Pids),
    Pid ! {deliver, Filter, emqx_message:set_header(redispatch_to, {Group, Filter}, Message)},
    {ok, 1}.
