%% The channels of the whole cluster.
-module(emqx_cm_registry).

-export([register_channel/1, unregister_channel/1, lookup_channels/1, lookup_all_channels/1]).

register_channel(Channel) ->
    true = ets:insert(?MODULE, Channel),
    ok.

unregister_channel(Channel) ->
    true = ets:delete_object(?MODULE, Channel),
    ok.

lookup_channels(ClientId) -> lists:filter(fun is_process_alive/1, lookup_all_channels(ClientId)).

lookup_all_channels(ClientId) -> [Pid || {_, Pid} <- ets:lookup(?MODULE, ClientId)].
