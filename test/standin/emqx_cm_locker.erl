%% One connection of a client at a time opens its session. Nobody waits for the lock, and a process that is
%% killed does not give it back: then it is free after a while.
-module(emqx_cm_locker).

-export([trans/2, lock/1, unlock/1]).

-define(LEASE, 20000).

trans(ClientId, Fun) ->
    case lock(ClientId) of
        {true, _Nodes} ->
            try
                Fun()
            after
                unlock(ClientId)
            end;
        {false, _Nodes} ->
            {error, client_id_unavailable}
    end.

lock(ClientId) ->
    Now = erlang:monotonic_time(millisecond),
    _ = [
        ets:delete_object(?MODULE, Lock)
     || {_, Pid, Since} = Lock <- ets:lookup(?MODULE, ClientId),
        Now - Since > ?LEASE,
        not is_process_alive(Pid)
    ],
    {ets:insert_new(?MODULE, {ClientId, self(), Now}), [node()]}.

%% By the process that has it.
unlock(ClientId) ->
    true = ets:match_delete(?MODULE, {ClientId, self(), '_'}),
    {true, [node()]}.
