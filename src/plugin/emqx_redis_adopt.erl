%% A persistent session that EMQX has in memory and that Redis does not know: its client connected before
%% the plugin ran, or while Redis was away and the broker went on without it.
%%
%% Where Redis has an older state of the session, both become one: subscriptions and messages from there are
%% added. All runs in the process of the client's channel.
-module(emqx_redis_adopt).

-export([adopt/1]).

-spec adopt(emqx_redis_broker:client_info()) -> ok | {error, term()}.
adopt(ClientInfo) ->
    case emqx_redis_client_session:is_kept() of
        true -> ok;
        false -> adopt_unkept(ClientInfo)
    end.

adopt_unkept(#{clientid := ClientId} = ClientInfo) ->
    case emqx_redis_broker:channel_info(ClientId, self()) of
        #{conninfo := #{expiry_interval := Expiry} = ConnInfo, session := #{} = SessionInfo} when
            Expiry > 0
        ->
            adopt(ClientInfo, ConnInfo, SessionInfo);
        _ ->
            ok
    end.

adopt(#{clientid := ClientId} = ClientInfo, #{expiry_interval := Expiry} = ConnInfo, SessionInfo) ->
    Subscribed = subscriptions(ClientId, maps:get(subscriptions, SessionInfo, #{})),
    Info = #{
        subscriptions => Subscribed,
        created_at => maps:get(created_at, SessionInfo, erlang:system_time(millisecond))
    },
    %% Of a session that was kept before the plugin was stopped and started again EMQX has all messages in
    %% memory.
    WasKept = emqx_redis_client_session:current() =/= undefined,
    case emqx_redis_client_session:adopt(ClientId, Expiry, Info, #{}) of
        {ok, _} when WasKept ->
            ok;
        {ok, #{subscriptions := Old}} when not map_get(clean_start, ConnInfo) ->
            subscribe_again(ClientInfo, Old, Subscribed),
            read_backlog(ClientInfo, ConnInfo, Old);
        {ok, #{}} ->
            %% It began anew: nothing of the old one is to be seen again.
            #{epoch := Epoch} = emqx_redis_client_session:current(),
            emqx_redis_message:delete_messages(ClientId, #{epoch => Epoch});
        {ok, undefined} ->
            ok;
        {error, _} = Error ->
            Error
    end.

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

read_backlog(#{clientid := ClientId} = ClientInfo, ConnInfo, Subscriptions) ->
    Window = maps:get(receive_maximum, ConnInfo, 32),
    MaxQueue = emqx_redis_broker:zone_setting(ClientInfo, max_mqueue_len, 1000),
    #{epoch := Epoch, sent := Sent} = emqx_redis_client_session:current(),
    Owner = {ClientId, Epoch},
    case emqx_redis_backlog:first_page(Owner, Subscriptions, Sent, Window, MaxQueue) of
        {ok, Deliveries, Backlog} ->
            _ = [self() ! Delivery || Delivery <- Deliveries],
            emqx_redis_backlog:is_done(Backlog) orelse emqx_redis_client_session:backlog_found(Backlog),
            ok;
        {error, _} = Error ->
            Error
    end.
