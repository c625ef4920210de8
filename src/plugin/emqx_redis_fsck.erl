%% Looks for what does not fit together in Redis, and mends it where that is safe. EMQX is not needed.
%%
%% The whole keyspace is walked in slices of a few hundred items, so that nobody waits for Redis: SCAN on each
%% server, then what the keys hold. A broker writes meanwhile, so what looks wrong is looked at again some
%% seconds later, several times: only what is wrong each time is told. Every repair leaves the item right,
%% whoever writes it at the same time, or is taken back; what can't be done so is left, and told.
%%
%% The order of the work is here. `emqx_redis_fsck_walk' goes through the keys, `..._look' looks at them and
%% at what they name, `..._judge' says what is wrong with it, `..._repair' mends it; below these, `..._keys'
%% has the names of keys, with `..._slots' for those in a cluster, and `..._redis' asks.
%%
%% Beside the commands of the storage itself (see the README's ACL) it needs SCAN and ZSCAN.
-module(emqx_redis_fsck).

-export([run/0, run/1, kinds/0]).

-export_type([options/0, result/0, kind/0, example/0]).

%% `repair': false by default. `examples': how many of each kind are told, 10 by default. `settle':
%% milliseconds between the two looks, 2,000 by default.
-type options() :: #{repair => boolean(), examples => non_neg_integer(), settle => non_neg_integer()}.
-type kind() :: atom().
-type example() :: #{client | message | filter | node | key => binary()}.
-type result() :: #{
    %% Whether all of Redis was seen; if not, `notes' say what is missing.
    complete := boolean(),
    notes := [binary()],
    servers := pos_integer(),
    %% How many items of each sort were looked at. What changes its place meanwhile may count twice.
    checked := #{atom() => non_neg_integer()},
    findings := #{kind() => #{count := pos_integer(), repaired := non_neg_integer(), examples := [example()]}}
}.

%% What is found, and what `repair' does about it.
-spec kinds() -> [{kind(), binary()}].
kinds() ->
    [
        {wrong_type, <<"a value of another type at a key of ours; left: the storage moves what it meets">>},
        {unreadable_member, <<"an index holds what can't be its member; left">>},
        {session_unreadable, <<"a session's data is missing or can't be decoded; left">>},
        {session_not_indexed, <<"a session is missing from an index, or has another expiry there; put in">>},
        {index_without_session, <<"an index names a session that is not there; taken out">>},
        {key_without_ttl, <<"a key that should expire never does; given its time to live">>},
        {ghost_subscription, <<"a subscription whose client has no session; deleted">>},
        {stray_subscription, <<"a subscription that its client's session does not have; deleted">>},
        {missing_subscription, <<"a session's QoS 1 or 2 subscription that publishers do not see; added">>},
        {filter_not_indexed, <<"a filter is missing from an index or the trie; put in">>},
        {index_without_filter, <<"an index or the trie names a filter that nobody has; taken out">>},
        {message_not_queued, <<"a message is in no queue; removed if its client has no session, else left">>},
        {message_not_indexed, <<"a message is missing from an index, or has another expiry there; put in">>},
        {queue_without_message, <<"a queue names a message that is not there; as above">>},
        {index_without_message, <<"an index names a message that is not there; as above">>}
    ].

-spec run() -> {ok, result()} | {error, emqx_redis_storage:error_reason()}.
run() -> run(#{}).

-spec run(options()) -> {ok, result()} | {error, emqx_redis_storage:error_reason()}.
run(Opts) ->
    try
        {ok, run_all(maps:merge(#{repair => false, examples => 10, settle => 2000}, Opts))}
    catch
        throw:{failed, Reason} -> {error, Reason}
    end.

run_all(#{repair := Repair, examples := Most, settle := Settle}) ->
    Layout = emqx_redis_fsck_keys:layout(),
    Servers = emqx_redis_fsck_walk:servers(Layout),
    Scan = fun(Server, Seen) -> emqx_redis_fsck_walk:scan(Layout, Server, Seen) end,
    #{suspects := Suspects, checked := Checked, notes := Notes} =
        lists:foldl(Scan, emqx_redis_fsck_look:new(), Servers),
    map_size(Suspects) > 0 andalso timer:sleep(Settle),
    Found = emqx_redis_fsck_look:look_again(Layout, Suspects),
    Repair andalso emqx_redis_fsck_repair:repair_all(Layout, Found),
    Left =
        case Repair of
            true -> emqx_redis_fsck_look:look_again(Layout, Found);
            false -> Found
        end,
    HaveMoved = emqx_redis_fsck_walk:servers(Layout) =/= Servers,
    Moved = [<<"slots have moved meanwhile: keys of theirs may be missing">> || HaveMoved],
    #{
        complete => Notes ++ Moved =:= [],
        notes => Notes ++ Moved,
        servers => length(Servers),
        checked => Checked,
        findings => findings(Found, Left, Most)
    }.

findings(Found, Left, Most) ->
    ByKind = maps:groups_from_list(fun({Kind, _}) -> Kind end, lists:sort(maps:keys(Found))),
    maps:map(
        fun(_Kind, All) ->
            #{
                count => length(All),
                repaired => length([Each || Each <- All, not is_map_key(Each, Left)]),
                examples => [example(Item) || {_, Item} <- lists:sublist(All, Most)]
            }
        end,
        ByKind
    ).

example({session, Client}) -> #{client => Client};
example({epoch, Client}) -> #{client => Client};
example({message, Client, Id}) -> #{client => Client, message => Id};
example({subscription, Filter, Client}) -> #{client => Client, filter => Filter};
example({psub, _Place, Filter}) -> #{filter => Filter};
example({route, _Place, Filter}) -> #{filter => Filter};
example({wildcard, _Place, Filter, Node}) -> #{filter => Filter, node => Node};
example({unreadable, Member}) -> #{key => Member};
example({typed, Key, _Type}) -> #{key => Key};
example({key, Key}) -> #{key => Key}.
