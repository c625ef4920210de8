%% A persistent session that EMQX has in memory and that Redis does not know: its client connected before
%% the plugin ran, or while Redis was away and the broker went on without it.
%%
%% Where Redis has an older state of the session, both become one: subscriptions and messages from there are
%% added. All runs in the process of the client's channel.
-module(emqx_redis_adopt).

-export([adopt/1]).

-spec adopt(emqx_redis_broker:client_info()) -> ok | {error, term()}.
adopt(ClientInfo) ->
    case emqx_redis_session_state:current() of
        undefined -> adopt_unkept(ClientInfo);
        _ -> ok
    end.

adopt_unkept(#{clientid := ClientId} = ClientInfo) ->
    case emqx_redis_broker:channel_info(ClientId, self()) of
        #{conninfo := #{expiry_interval := Expiry} = ConnInfo, session := #{} = SessionInfo} = Channel when
            Expiry > 0
        ->
            tell_groups(ClientId, ClientId),
            IsConnected = maps:get(conn_state, Channel) =/= disconnected,
            adopt(ClientInfo, ConnInfo, SessionInfo#{connected => IsConnected});
        _ ->
            tell_groups(ClientId, self())
    end.

%% What it holds for shared groups is nobody else's, whatever becomes of the rest.
tell_groups(ClientId, Member) ->
    Filters = [Filter || {Filter, _} <- emqx_redis_broker:subscriptions(self())],
    _ = lists:any(fun is_tuple/1, Filters) andalso
        emqx_redis_reconcile:group_member(ClientId, Member),
    ok.

adopt(#{clientid := ClientId} = ClientInfo, #{expiry_interval := Expiry} = ConnInfo, SessionInfo) ->
    Subscribed = subscriptions(ClientId, maps:get(subscriptions, SessionInfo, #{})),
    Info = #{
        subscriptions => Subscribed,
        connected => maps:get(connected, SessionInfo),
        created_at => maps:get(created_at, SessionInfo, erlang:system_time(millisecond))
    },
    %% By the plugin before that was stopped and started again.
    Earlier = emqx_redis_session_state:earlier(),
    case emqx_redis_client_session:adopt(ClientId, Expiry, Info, #{}) of
        {claimed, Old, Written} ->
            compare(Old, Earlier, Subscribed, ClientInfo, ConnInfo),
            Written;
        {error, _} = Error ->
            Error
    end.

compare(undefined, _Earlier, _Subscribed, _ClientInfo, _ConnInfo) ->
    emqx_redis_compare:ask(keep);
%% It had all that Redis had. What it has no more was acknowledged meanwhile.
compare(_Old, whole, _Subscribed, _ClientInfo, _ConnInfo) ->
    emqx_redis_compare:ask(remove);
compare(_Old, in_part, _Subscribed, ClientInfo, ConnInfo) ->
    emqx_redis_compare:all(ClientInfo, ConnInfo);
compare(#{subscriptions := Old}, unknown, Subscribed, ClientInfo, #{clean_start := false} = ConnInfo) ->
    subscribe_again(ClientInfo, Old, Subscribed),
    emqx_redis_compare:all(ClientInfo, ConnInfo);
compare(_Old, unknown, _Subscribed, #{clientid := ClientId}, _ConnInfo) ->
    begin_anew(ClientId).

%% Nothing of the old session is to be seen again.
begin_anew(ClientId) ->
    #{epoch := Epoch} = emqx_redis_session_state:current(),
    case emqx_redis_message:delete_messages(ClientId, #{epoch => Epoch}) of
        ok -> ok;
        {error, Reason} -> emqx_redis_plugin_log:log(warning, "could not delete old messages", Reason)
    end,
    emqx_redis_compare:ask(keep).

%% What the broker knows is true now; the options are those of the session, where it has told them yet. The
%% broker keeps the client id in the place of the subscription identifier.
subscriptions(ClientId, Known) ->
    maps:from_list([
        {Filter, maps:get(Filter, Known, without_client_id(ClientId, SubOpts))}
     || {Filter, SubOpts} <- emqx_redis_broker:subscriptions(self())
    ]).

without_client_id(ClientId, #{subid := ClientId} = SubOpts) -> maps:remove(subid, SubOpts);
without_client_id(_ClientId, SubOpts) -> SubOpts.

subscribe_again(ClientInfo, Old, Subscribed) ->
    Known = [emqx_redis_broker:filter_to_binary(Filter) || Filter <- maps:keys(Subscribed)],
    Missing = [
        {emqx_redis_broker:unmount(ClientInfo, emqx_redis_broker:filter_from_binary(Filter)), SubOpts}
     || {Filter, SubOpts} <- maps:to_list(maps:without(Known, Old))
    ],
    Missing =:= [] orelse (self() ! {subscribe, Missing}),
    ok.
