%% What `emqx_redis_fsck' does about what it has found. Every repair leaves the item right, whoever writes it
%% at the same time, or is taken back; what can't be done so is left.
-module(emqx_redis_fsck_repair).

-export([repair_all/2]).

-import(emqx_redis_fsck_keys, [key/2, score/4, member/3, client_place/2]).
-import(emqx_redis_fsck_redis, [ask/1, ask_one/1, transaction/1, now_ms/0, time_ms/1, score_ms/1]).

-define(DAY_MS, 86400000).
%% No client has it: client ids hold no null character (MQTT 5.0 section 1.5.4).
-define(NOBODY, <<0, "nobody">>).
-define(NOWHERE, 'nobody@nowhere').

-spec repair_all(emqx_redis_fsck_keys:layout(), emqx_redis_fsck_look:suspects()) -> ok.
repair_all(L, Found) ->
    lists:foreach(fun({Kind, Item}) -> repair(L, Kind, Item) end, lists:sort(maps:keys(Found))).

repair(L, session_not_indexed, {session, Client}) ->
    index_session(L, Client);
repair(L, index_without_session, {session, Client}) ->
    case unlist_session(L, Client) of
        true -> index_session(L, Client);
        false -> ok
    end;
repair(L, key_without_ttl, Item) ->
    limit_ttl(L, Item);
repair(L, Kind, {subscription, Filter, Client}) when
    Kind =:= ghost_subscription; Kind =:= stray_subscription; Kind =:= missing_subscription
->
    settle_subscription(L, Filter, Client, 5);
repair(L, filter_not_indexed, {psub, _Place, Filter} = Psub) ->
    %% What is added again is put back wherever it is missing.
    case ask_one([<<"HSCAN">>, key(L, Psub), 0, <<"COUNT">>, 1]) of
        [_, [Client, Stored | _]] ->
            case emqx_redis_codec:decode(Stored) of
                {ok, SubOpts} -> emqx_redis_subscription:add_subscription(Filter, Client, SubOpts);
                {error, _} -> left
            end;
        _ ->
            left
    end;
repair(L, filter_not_indexed, {route, Place, Filter}) ->
    ask_one([<<"ZADD">>, key(L, {{index, routes}, Place}), <<"NX">>, now_ms(), Filter]);
repair(_L, filter_not_indexed, {wildcard, _Place, Filter, Node}) ->
    %% What this node adds for itself it would keep adding.
    case Node =:= atom_to_binary(node()) of
        true -> left;
        false -> emqx_redis_router:add_route(Filter, binary_to_atom(Node))
    end;
%% Deleting what is not there takes a filter that nobody has out of every index.
repair(_L, index_without_filter, {psub, _Place, Filter}) ->
    emqx_redis_subscription:delete_subscription(Filter, ?NOBODY);
repair(_L, index_without_filter, {route, _Place, Filter}) ->
    emqx_redis_router:delete_route(Filter, ?NOWHERE);
repair(_L, index_without_filter, {wildcard, _Place, Filter, Node}) ->
    emqx_redis_router:delete_route(Filter, binary_to_atom(Node));
repair(L, message_not_indexed, {message, Client, Id}) ->
    index_message(L, Client, Id);
repair(L, Kind, {message, Client, Id}) when
    Kind =:= message_not_queued; Kind =:= queue_without_message; Kind =:= index_without_message
->
    remove_message(L, Client, Id);
repair(_L, _Kind, _Item) ->
    left.

%% Where the session goes while it is put in, it is taken out again.
index_session(L, Client) ->
    Key = key(L, {session, Client}),
    [At, Left, Now] = ask([[<<"HGET">>, Key, <<"updated_at">>], [<<"PTTL">>, Key], [<<"TIME">>]]),
    case expiry(Left, Now) of
        gone ->
            ok;
        Expiry ->
            Place = client_place(L, Client),
            IsThere = transaction([
                [<<"ZADD">>, key(L, {{index, sessions}, Place}), <<"NX">>, seconds_to_ms(At), Client],
                [<<"ZADD">>, key(L, {{index, sessions_expiry}, Place}), Expiry, Client],
                [<<"EXISTS">>, Key]
            ]),
            lists:last(IsThere) =:= 1 orelse unlist_session(L, Client),
            ok
    end.

%% Answers whether the session is there after all.
unlist_session(L, Client) ->
    Place = client_place(L, Client),
    [_, _, IsThere] = transaction([
        [<<"ZREM">>, key(L, {{index, sessions}, Place}), Client],
        [<<"ZREM">>, key(L, {{index, sessions_expiry}, Place}), Client],
        [<<"EXISTS">>, key(L, {session, Client})]
    ]),
    IsThere =:= 1.

index_message(L, Client, Id) ->
    Key = key(L, {message, Client, Id}),
    Asked = [[<<"PTTL">>, Key], [<<"TIME">>], [<<"ZSCORE">>, key(L, {queue, Client}), Id]],
    [Left, Now, Score] = ask(Asked),
    case expiry(Left, Now) of
        gone ->
            ok;
        Expiry ->
            Place = client_place(L, Client),
            Member = member(L, Client, Id),
            Listed = [
                [<<"ZADD">>, key(L, {{index, messages}, Place}), <<"NX">>, score_ms(Score), Member]
             || emqx_redis_fsck_keys:keeps_message_index(L), Score =/= undefined
            ],
            Expiring = [<<"ZADD">>, key(L, {{index, messages_expiry}, Place}), Expiry, Member],
            case lists:last(transaction(Listed ++ [Expiring, [<<"EXISTS">>, Key]])) of
                1 ->
                    ok;
                0 ->
                    _ = transaction([
                        [<<"ZREM">>, key(L, {{index, Which}, Place}), Member]
                     || Which <- [messages, messages_expiry]
                    ]),
                    ok
            end
    end.

expiry(-2, _Time) -> gone;
expiry(-1, _Time) -> <<"+inf">>;
expiry(Left, Time) -> time_ms(Time) + Left.

seconds_to_ms(undefined) -> now_ms();
seconds_to_ms(Seconds) -> binary_to_integer(Seconds) * 1000.

%% To the time that the session itself names, the index has, or else a day or a week. Whoever writes meanwhile
%% decides.
limit_ttl(L, {session, Client} = Session) ->
    Key = key(L, Session),
    case ask([[<<"HGET">>, Key, <<"expires_at">>]]) of
        [At] when At =:= undefined; At =:= <<"infinity">> ->
            left;
        [At] ->
            Limited = [[<<"HGET">>, Key, <<"expires_at">>], [<<"PEXPIREAT">>, Key, seconds_to_ms(At)]],
            case transaction(Limited) of
                [At, _] -> index_session(L, Client);
                [<<"infinity">>, _] -> ask_one([<<"PERSIST">>, Key]);
                _ -> limit_ttl(L, Session)
            end
    end;
limit_ttl(L, {message, Client, Id} = Message) ->
    Score = score(L, {index, messages_expiry}, client_place(L, Client), member(L, Client, Id)),
    case ask([Score]) of
        [At] when At =:= undefined; At =:= <<"inf">> -> left;
        [At] -> ask_one([<<"PEXPIREAT">>, key(L, Message), score_ms(At)])
    end;
limit_ttl(L, {epoch, Client} = Epoch) ->
    Limited = [[<<"PEXPIRE">>, key(L, Epoch), ?DAY_MS], [<<"PTTL">>, key(L, {session, Client})]],
    case transaction(Limited) of
        [_, -1] -> ask_one([<<"PERSIST">>, key(L, Epoch)]);
        _ -> ok
    end;
limit_ttl(_L, {key, Key}) ->
    ask_one([<<"PEXPIRE">>, Key, 7 * ?DAY_MS]).

%% Makes it what the session says, until that is the same before and after.
settle_subscription(_L, _Filter, _Client, 0) ->
    left;
settle_subscription(L, Filter, Client, Attempts) ->
    Before = wanted(L, Filter, Client),
    _ =
        case Before of
            unknown -> left;
            none -> emqx_redis_subscription:delete_subscription(Filter, Client);
            SubOpts -> emqx_redis_subscription:add_subscription(Filter, Client, SubOpts)
        end,
    case wanted(L, Filter, Client) of
        Before -> ok;
        _ -> settle_subscription(L, Filter, Client, Attempts - 1)
    end.

wanted(L, Filter, Client) ->
    case ask([[<<"HGET">>, key(L, {session, Client}), <<"data">>]]) of
        [undefined] ->
            none;
        [Data] ->
            case emqx_redis_fsck_judge:subscribed(Data) of
                {ok, Filters} -> maps:get(Filter, Filters, none);
                _ -> unknown
            end
    end.

%% The epoch keeps it from a client that comes back meanwhile. A shared group's queue, whose name begins with
%% a null, never has a session.
remove_message(_L, <<0, _/binary>>, _Id) ->
    left;
remove_message(L, Client, Id) ->
    case ask([[<<"EXISTS">>, key(L, {session, Client})], [<<"GET">>, key(L, {epoch, Client})]]) of
        [0, undefined] -> emqx_redis_message:ack_message(Client, Id);
        [0, Epoch] -> emqx_redis_message:ack_message(Client, Id, #{epoch => binary_to_integer(Epoch)});
        [1, _] -> left
    end.
