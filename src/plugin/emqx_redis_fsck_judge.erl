%% What has to be true of each item in Redis: what is asked about it, and of which kinds (`emqx_redis_fsck')
%% it is by the answers.
-module(emqx_redis_fsck_judge).

-export([commands/2, judge/4, subscribed/1]).

-export_type([item/0]).

%% Something of which something can be wrong: a key, or what one key says of another. A `..._member' is named
%% by a queue or an index, a `session_subscription' by a session.
-type item() ::
    {session | epoch | queue | session_member, client()}
    | {message | message_member, client(), Id :: binary()}
    | {subscription | session_subscription, filter(), client()}
    | {psub | route | trie | ptrie, place(), filter()}
    | {wildcard, place(), filter(), Node :: binary()}
    | {{index, atom()}, place()}
    | {typed, Key :: binary(), Type :: binary() | any}
    | {key, Key :: binary()}
    | {unreadable, KeyOrMember :: binary()}
    | shared.

-type layout() :: emqx_redis_fsck_keys:layout().
-type place() :: emqx_redis_fsck_keys:place().
-type client() :: emqx_redis_fsck_keys:client().
-type filter() :: emqx_redis_fsck_keys:filter().

-import(emqx_redis_fsck_keys, [key/2, score/4, member/3, client_place/2, filter_place/2]).
-import(emqx_redis_fsck_keys, [is_wildcard/1, real_filter/1]).
-import(emqx_redis_fsck_redis, [ask/1, score_ms/1]).

%% A member that has expired is swept within this; expiries that differ by less are the same.
-define(SWEEP_MS, 120000).
-define(SAME_MS, 5000).

%%--------------------------------------------------------------------
%% What is asked
%%--------------------------------------------------------------------

-spec commands(layout(), item()) -> [[binary()]].
commands(L, {session, Client} = Session) ->
    Key = key(L, Session),
    [
        [<<"PTTL">>, Key],
        [<<"HGET">>, Key, <<"expires_at">>],
        [<<"HGET">>, Key, <<"data">>],
        score(L, {index, sessions}, client_place(L, Client), Client),
        score(L, {index, sessions_expiry}, client_place(L, Client), Client)
    ];
commands(L, {session_member, Client}) ->
    [[<<"EXISTS">>, key(L, {session, Client})]];
commands(L, {epoch, Client} = Epoch) ->
    [[<<"PTTL">>, key(L, Epoch)], [<<"PTTL">>, key(L, {session, Client})]];
commands(L, {message, Client, Id} = Message) ->
    Member = member(L, Client, Id),
    [
        [<<"PTTL">>, key(L, Message)],
        [<<"ZSCORE">>, key(L, {queue, Client}), Id],
        score(L, {index, messages}, client_place(L, Client), Member),
        score(L, {index, messages_expiry}, client_place(L, Client), Member)
    ];
commands(L, {message_member, Client, Id}) ->
    [[<<"EXISTS">>, key(L, {message, Client, Id})]];
commands(L, {session_subscription, Filter, Client}) ->
    [is_subscribed(L, Filter, Client)];
commands(L, {subscription, Filter, Client}) ->
    [is_subscribed(L, Filter, Client), [<<"HGET">>, key(L, {session, Client}), <<"data">>]];
commands(L, {psub, Place, Filter} = Psub) ->
    [
        [<<"HLEN">>, key(L, Psub)],
        score(L, {index, psubs}, Place, Filter)
        | is_in_trie_set(L, ptrie, Place, Filter, Filter)
    ];
commands(L, {route, Place, Filter} = Route) ->
    [[<<"SCARD">>, key(L, Route)], score(L, {index, routes}, Place, Filter)];
commands(L, {wildcard, Place, Filter, Node}) ->
    Member = emqx_redis_fsck_keys:route_member(Filter, Node),
    [
        [<<"SISMEMBER">>, key(L, {route, Place, Filter}), Node],
        score(L, {index, wildcards}, Place, Member)
        | is_in_trie_set(L, trie, Place, Filter, Member)
    ];
commands(_L, {typed, Key, _Type}) ->
    [[<<"TYPE">>, Key]];
commands(_L, {key, Key}) ->
    [[<<"PTTL">>, Key]];
commands(_L, _) ->
    [].

is_subscribed(L, Filter, Client) ->
    [<<"HEXISTS">>, key(L, {psub, filter_place(L, Filter), Filter}), Client].

is_in_trie_set(L, Table, Place, Filter, Member) ->
    [[<<"SISMEMBER">>, key(L, {Table, Place, real_filter(Filter)}), Member] || is_wildcard(Filter)].

%%--------------------------------------------------------------------
%% What the answers mean
%%--------------------------------------------------------------------

%% `Now' is in milliseconds. Answers of what kinds the item is, and what else is to be looked at.
-spec judge(layout(), item(), [term()], integer()) -> {[Kind :: atom()], [item()]}.
judge(_L, {session, _}, [-2, _, _, Saved, Expires], Now) ->
    {[index_without_session || is_dead([Saved, Expires], Expires, Now)], []};
judge(_L, {session, Client}, [Left, ExpiresAt, Data, Saved, Expires], Now) ->
    IsIndexed = Saved =/= undefined andalso expires(Left, Expires, Now),
    Kinds = [session_not_indexed || not IsIndexed] ++
        [key_without_ttl || Left =:= -1, ExpiresAt =/= undefined, ExpiresAt =/= <<"infinity">>],
    case subscribed(Data) of
        error -> {[session_unreadable | Kinds], []};
        unknown -> {Kinds, []};
        {ok, Filters} -> {Kinds, [{session_subscription, Filter, Client} || Filter <- maps:keys(Filters)]}
    end;
judge(_L, {session_member, Client}, [IsThere], _Now) ->
    {[], [{session, Client} || IsThere =:= 0]};
judge(_L, {epoch, _}, [Left, SessionLeft], _Now) ->
    {[key_without_ttl || Left =:= -1, SessionLeft =/= -1], []};
judge(_L, {message, _, _}, [-2, Queued, Stored, Expires], Now) ->
    {[queue_without_message || is_dead([Queued], Expires, Now)] ++
        [index_without_message || is_dead([Stored, Expires], Expires, Now)], []};
judge(L, {message, _, _}, [Left, Queued, Stored, Expires], Now) ->
    IsListed = Stored =/= undefined orelse not emqx_redis_fsck_keys:keeps_message_index(L),
    IsIndexed = IsListed andalso Expires =/= undefined andalso
        (Left =:= -1 orelse expires(Left, Expires, Now)),
    {[message_not_queued || Queued =:= undefined] ++ [message_not_indexed || not IsIndexed] ++
        [key_without_ttl || Left =:= -1, Expires =/= undefined, Expires =/= <<"inf">>], []};
judge(_L, {message_member, Client, Id}, [IsThere], _Now) ->
    {[], [{message, Client, Id} || IsThere =:= 0]};
judge(_L, {session_subscription, Filter, Client}, [IsThere], _Now) ->
    {[], [{subscription, Filter, Client} || IsThere =/= 1]};
judge(_L, {subscription, Filter, _}, [IsThere, Data], _Now) ->
    {subscription_kinds(IsThere =:= 1, Data =/= undefined andalso subscribed(Data), Filter), []};
judge(L, {psub, Place, Filter}, [Clients, Indexed | InSet], _Now) ->
    {filter_kinds(Clients, Indexed, InSet, fun() -> is_in_trie(L, ptrie, Place, Filter) end), []};
judge(_L, {route, _, _}, [Nodes, Indexed], _Now) ->
    {filter_kinds(Nodes, Indexed, [], fun() -> true end), []};
judge(L, {wildcard, Place, Filter, _Node}, [IsThere, Indexed | InSet], _Now) ->
    {filter_kinds(IsThere, Indexed, InSet, fun() -> is_in_trie(L, trie, Place, Filter) end), []};
judge(_L, {typed, _, Expected}, [Type], _Now) ->
    {[wrong_type || Type =/= Expected, Type =/= <<"none">>], []};
judge(_L, {key, _}, [Left], _Now) ->
    {[key_without_ttl || Left =:= -1], []};
judge(_L, {unreadable, _}, [], _Now) ->
    {[unreadable_member], []};
judge(_L, _, [], _Now) ->
    {[], []}.

%% Whether these stand for what is not there, and the sweeper does not find them soon.
is_dead(Scores, Expires, Now) ->
    IsNamed = lists:any(fun(Score) -> Score =/= undefined end, Scores),
    IsNamed andalso
        case score_ms(Expires) of
            At when is_integer(At) -> At > Now + ?SAME_MS orelse At < Now - ?SWEEP_MS;
            _ -> true
        end.

expires(-1, Expires, _Now) ->
    score_ms(Expires) =:= infinity;
expires(Left, Expires, Now) ->
    case score_ms(Expires) of
        At when is_integer(At) -> abs(At - (Now + Left)) =< ?SAME_MS;
        _ -> false
    end.

%% The QoS 1 and 2 subscriptions in a session's data, with what publishers are to know; `unknown' where it is
%% none of this plugin's.
-spec subscribed(binary() | undefined) -> {ok, #{filter() => tuple()}} | unknown | error.
subscribed(undefined) ->
    error;
subscribed(Data) ->
    case emqx_redis_codec:decode(Data) of
        {ok, #{version := 1, instance := Instance, subscriptions := #{} = Subscriptions}} ->
            {ok, maps:filtermap(fun(_Filter, SubOpts) -> announced(SubOpts, Instance) end, Subscriptions)};
        {ok, _} ->
            unknown;
        {error, _} ->
            error
    end.

announced(#{qos := QoS} = SubOpts, Instance) when QoS =:= 1; QoS =:= 2 ->
    {true, {QoS, maps:get(nl, SubOpts, 0), Instance}};
announced(_, _) ->
    false.

subscription_kinds(true, false, _Filter) -> [ghost_subscription];
subscription_kinds(IsThere, {ok, Filters}, Filter) ->
    case {IsThere, is_map_key(Filter, Filters)} of
        {true, false} -> [stray_subscription];
        {false, true} -> [missing_subscription];
        _ -> []
    end;
subscription_kinds(_IsThere, _, _Filter) -> [].

filter_kinds(Holders, Indexed, InSet, IsInTrie) when is_integer(Holders), Holders > 0 ->
    IsIndexed = Indexed =/= undefined andalso InSet =/= [0] andalso (InSet =:= [] orelse IsInTrie()),
    [filter_not_indexed || not IsIndexed];
filter_kinds(_None, Indexed, InSet, _IsInTrie) ->
    [index_without_filter || Indexed =/= undefined orelse InSet =:= [1]].

%% Level by level, as lib/src/scripts/trie_add.lua has written it.
is_in_trie(L, Table, Place, Filter) ->
    Levels = binary:split(real_filter(Filter), <<"/">>, [global]),
    walk_trie(key(L, {trie_nodes, Table, Place}), <<"root">>, Levels).

walk_trie(Trie, Field, Levels) ->
    case {trie_node(Trie, Field), Levels} of
        {{_Id, Marks}, []} -> Marks band 1 =/= 0;
        {{_Id, Marks}, [<<"#">>]} -> Marks band 4 =/= 0;
        {{Id, _Marks}, [Level | Below]} -> walk_trie(Trie, <<Id/binary, "/", Level/binary>>, Below);
        {none, _} -> false
    end.

trie_node(Trie, Field) ->
    case ask([[<<"HGET">>, Trie, Field]]) of
        [<<_/binary>> = Node] ->
            case binary:split(Node, <<" ">>, [global]) of
                [Id, _Children, <<Marks>>] -> {Id, Marks - $0};
                _ -> none
            end;
        [undefined] ->
            none
    end.
