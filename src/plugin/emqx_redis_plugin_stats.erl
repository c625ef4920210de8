%% What the plugin has done, as counters.
-module(emqx_redis_plugin_stats).

-export([init/0, count/1, count/2, read/0, help/0]).

-define(KEY, ?MODULE).

%% Each with what it counts.
-spec help() -> [{atom(), binary()}].
help() ->
    [
        {sessions_created, <<"persistent sessions that began">>},
        {sessions_resumed, <<"sessions that were taken over from a channel of the cluster">>},
        {sessions_restored, <<"sessions that no node had, restored from Redis">>},
        {sessions_deleted, <<"sessions that ended, deleted from Redis">>},
        {sessions_lost, <<"channels dropped since another node has claimed their session">>},
        {messages_stored, <<"messages stored, one for each client that is to have them">>},
        {messages_stored_later, <<"messages that a session held and Redis did not, stored afterwards">>},
        {strays_found, <<"messages routed past their live session, delivered from Redis">>},
        {messages_restored, <<"messages read from Redis for a session that was restored">>},
        {publishes_refused, <<"publishers disconnected since their message could not be stored">>},
        {publishes_unstored, <<"messages that went on unstored (degrade)">>},
        {subscribes_refused, <<"subscriptions refused since they could not be stored">>},
        {connects_refused, <<"connections ended as their session could not be read or written">>},
        {ghosts_deleted, <<"subscriptions deleted whose session was gone">>},
        {acks_dropped, <<"acknowledgements given up while Redis was away">>}
    ].

-spec init() -> ok.
init() ->
    Names = [Name || {Name, _} <- help()],
    Counters = counters:new(length(Names), [write_concurrency]),
    Places = maps:from_list(lists:zip(Names, lists:seq(1, length(Names)))),
    persistent_term:put(?KEY, {Counters, Places}).

-spec count(atom()) -> ok.
count(Name) -> count(Name, 1).

-spec count(atom(), integer()) -> ok.
count(Name, More) ->
    {Counters, #{Name := Place}} = persistent_term:get(?KEY),
    counters:add(Counters, Place, More).

-spec read() -> #{atom() => integer()}.
read() ->
    case persistent_term:get(?KEY, undefined) of
        {Counters, Places} -> maps:map(fun(_, Place) -> counters:get(Counters, Place) end, Places);
        undefined -> #{}
    end.
