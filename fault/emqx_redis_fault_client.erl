%% One client of a writer: its session and its messages, what was done to them, and what may hold of them.
%%
%% Nobody else writes to the client, and all calls are submitted one after another, so that what may hold is
%% exact: after an `ok' the state is that of the operation; an answer that says "perhaps" adds that state
%% to those that may hold; any other error changes nothing.
-module(emqx_redis_fault_client).

-export([new/3, step/2, verify/2]).
-export([id/1, history/1, certain/1, forget_message/2, advance/2, save_again/1]).

-export_type([client/0]).

-type version() :: emqx_redis_fault_terms:version().
-type sequence() :: emqx_redis_fault_terms:sequence().
-opaque client() :: #{
    id := binary(),
    %% Whether saves, deletions and acknowledgements name an epoch; publishers never do.
    fenced := boolean(),
    %% Whether messages bring a timestamp, the same for some in a row.
    timestamps := boolean(),
    %% The epoch that is held; `undefined' where it must be claimed first.
    epoch := emqx_redis_session:epoch() | undefined,
    lowest_epoch := emqx_redis_session:epoch(),
    %% The versions that may be stored; 0 is no session.
    versions := [version()],
    last_version := version(),
    %% What is not here must not be there.
    messages := #{sequence() => certain | maybe},
    last_sequence := non_neg_integer(),
    history := emqx_redis_fault_call:history()
}.
-type context() :: emqx_redis_fault_call:context().

-define(TERMS, emqx_redis_fault_terms).
-define(HISTORY, 40).
-define(MOST_MESSAGES, 40).
-define(BURST, 8).
-define(ATTEMPTS, 4).

-spec new(binary(), Fenced :: boolean(), Timestamps :: boolean()) -> client().
new(Id, Fenced, Timestamps) ->
    #{
        id => Id,
        fenced => Fenced,
        timestamps => Timestamps,
        epoch => undefined,
        lowest_epoch => 0,
        versions => [0],
        last_version => 0,
        messages => #{},
        last_sequence => 0,
        history => []
    }.

-spec id(client()) -> binary().
id(#{id := Id}) -> Id.

-spec history(client()) -> emqx_redis_fault_call:history().
history(#{history := History}) -> History.

%% Something that a broker does for a client; raises {violation, What} with the client it happened to.
-spec step(context(), client()) -> client().
step(Context, Client = #{fenced := true, epoch := undefined}) ->
    claim(Context, Client);
step(Context, Client = #{messages := Messages}) when map_size(Messages) > ?MOST_MESSAGES ->
    ack(Context, Client);
step(Context, Client) ->
    case rand:uniform(100) of
        N when N =< 26 -> save(Context, Client);
        N when N =< 38 -> load(Context, Client);
        N when N =< 41 -> delete(Context, Client);
        N when N =< 44, map_get(fenced, Client) -> claim(Context, Client);
        N when N =< 66 -> store(Context, Client);
        N when N =< 74 -> store_burst(Context, Client);
        N when N =< 78 -> save_burst(Context, Client);
        N when N =< 87 -> get(Context, Client);
        N when N =< 98 -> ack(Context, Client);
        _ -> delete_messages(Context, Client)
    end.

%% When all is healthy and nobody writes: reads it, and says whether there is a session, and how many
%% messages.
-spec verify(context(), client()) -> {has_session | no_session, non_neg_integer(), client()}.
verify(Context, Client) ->
    {Version, Loaded} = load_version(Context, Client),
    Session =
        case Version of
            0 -> no_session;
            unknown -> violation(not_readable, Loaded);
            _ -> has_session
        end,
    {Number, Read} = get_pages(Context, Loaded, 0, []),
    {Session, Number, Read}.

%% For sabotage: the messages that must be there, in order, and whether a session must.
-spec certain(client()) -> {boolean(), [sequence()]}.
certain(#{versions := Versions, messages := Messages}) ->
    {not lists:member(0, Versions), lists:sort([Sequence || {Sequence, certain} <- maps:to_list(Messages)])}.

%% For sabotage: this message was acknowledged.
-spec forget_message(client(), sequence()) -> client().
forget_message(Client = #{messages := Messages}, Sequence) ->
    Client#{messages := maps:remove(Sequence, Messages)}.

%% For sabotage: this version was saved.
-spec advance(client(), version()) -> client().
advance(Client, Version) ->
    Client#{versions := [Version], last_version := Version}.

%% For sabotage: saves another version.
-spec save_again(client()) -> client().
save_again(Client = #{id := Id, last_version := Last}) ->
    ok = emqx_redis_session:save_session(Id, ?TERMS:session(Id, Last + 1), fence(Client, #{})),
    advance(Client, Last + 1).

%% Internal: sessions

claim(Context, Client = #{id := Id}) ->
    Options = options(Context),
    {Class, Answer, Entry} = emqx_redis_fault_call:call(
        Context, {claim, Id}, Options, fun() -> emqx_redis_session:claim_session(Id, Options) end
    ),
    Told = tell(brief(Client, Entry), Client),
    case {Class, Answer} of
        {done, {ok, #{epoch := Epoch, session := Session}}} -> claimed(Context, Told, Epoch, Session);
        {maybe, _} -> Told#{epoch := undefined};
        {no, _} -> Told
    end.

claimed(Context = #{strict := Strict}, Client = #{lowest_epoch := Lowest}, Epoch, Session) ->
    Strict andalso Epoch =< Lowest andalso violation({epoch_went_back, Lowest, Epoch}, Client),
    Seen = see_version(Context, Client, version_of(Client, Session)),
    Seen#{epoch := Epoch, lowest_epoch := Epoch}.

save(Context, Client = #{id := Id, last_version := Last}) ->
    Version = Last + 1,
    Options = fence(Client, options(Context)),
    Session = ?TERMS:session(Id, Version),
    Called = emqx_redis_fault_call:call(Context, {save, Id, Version}, Options, fun() ->
        emqx_redis_session:save_session(Id, Session, Options)
    end),
    changed(Context, Called, Version, Client#{last_version := Version}).

save_burst(Context, Client = #{id := Id, last_version := Last}) ->
    Options = fence(Client, options(Context)),
    Versions = lists:seq(Last + 1, Last + ?BURST),
    Answers = emqx_redis_fault_call:burst(Context, Options, [
        {{save, Id, Version}, fun() ->
            emqx_redis_session:save_session_async(Id, ?TERMS:session(Id, Version), Options)
        end}
     || Version <- Versions
    ]),
    lists:foldl(
        fun({Version, Called}, After) -> changed(Context, Called, Version, After) end,
        Client#{last_version := lists:last(Versions)},
        lists:zip(Versions, Answers)
    ).

delete(Context, Client = #{id := Id}) ->
    Options = fence(Client, options(Context)),
    Called = emqx_redis_fault_call:call(
        Context, {delete, Id}, Options, fun() -> emqx_redis_session:delete_session(Id, Options) end
    ),
    changed(Context, Called, 0, Client).

changed(Context, {Class, Answer, Entry}, Version, Client = #{versions := Versions}) ->
    Told = tell(Entry, Client),
    check_fence(Context, Answer, Told),
    case Class of
        done -> Told#{versions := [Version]};
        maybe -> Told#{versions := lists:usort([Version | Versions])};
        no -> Told
    end.

%% Nobody else claims.
check_fence(#{strict := true}, {error, {stale_epoch, _}} = Answer, Client) ->
    violation({lost_its_epoch, Answer}, Client);
check_fence(#{strict := true}, {error, fenced}, Client) ->
    violation(fenced, Client);
check_fence(_Context, _Answer, _Client) ->
    ok.

load(Context, Client) ->
    {_Version, Loaded} = load_version(Context, Client),
    Loaded.

load_version(Context, Client = #{id := Id}) ->
    {Class, Answer, Entry} = emqx_redis_fault_call:call(
        Context, {load, Id}, #{}, fun() -> emqx_redis_session:load_session(Id) end
    ),
    Told = tell(brief(Client, Entry), Client),
    case {Class, Answer} of
        {done, {ok, Session}} ->
            Version = version_of(Told, Session),
            {Version, see_version(Context, Told, Version)};
        {done, {error, not_found}} ->
            {0, see_version(Context, Told, 0)};
        _ ->
            {unknown, Told}
    end.

%% The whole session would fill the history.
brief(Client, {At, Took, What = {claim, _}, {ok, #{epoch := Epoch, session := Session}}}) ->
    {At, Took, What, {ok, {epoch, Epoch}, {version, version_of(Client, Session)}}};
brief(Client, {At, Took, What, {ok, Session}}) ->
    {At, Took, What, {ok, {version, version_of(Client, Session)}}};
brief(_Client, Entry) -> Entry.

version_of(_Client, undefined) ->
    0;
version_of(Client = #{id := Id}, #{version := Version} = Session) ->
    Session =:= ?TERMS:session(Id, Version) orelse violation({session_differs, Session}, Client),
    Version;
version_of(Client, Session) ->
    violation({session_differs, Session}, Client).

see_version(#{strict := Strict, tally := Tally}, Client, Version) ->
    #{versions := Versions, last_version := Last} = Client,
    Version > Last andalso violation({version_of_the_future, Version}, Client),
    case lists:member(Version, Versions) of
        true ->
            Client;
        false when Strict ->
            violation({wrong_session, {found, Version}, {may_be, numbers(Versions)}}, Client);
        false ->
            %% Counted once: from here on this is what there is.
            ok = emqx_redis_fault_tally:lose(Tally, sessions, 1),
            Client#{versions := lists:usort([Version | Versions])}
    end.

%% Internal: messages

%% A publisher that has no `ok' sends again before it sends the next one.
store(Context, Client = #{last_sequence := Last}) ->
    store(Context, Client#{last_sequence := Last + 1}, Last + 1, ?ATTEMPTS).

store(Context, Client = #{id := Id, timestamps := Timestamps}, Sequence, Attempts) ->
    Options = options(Context),
    Message = ?TERMS:message(Id, Timestamps, Sequence),
    Called = emqx_redis_fault_call:call(Context, {store, Id, Sequence}, Options, fun() ->
        emqx_redis_message:store_message(Id, Message, Options)
    end),
    Stored = stored(Called, Sequence, Client),
    case element(1, Called) of
        done -> Stored;
        _ when Attempts > 1 -> store(Context, Stored, Sequence, Attempts - 1);
        _ -> Stored
    end.

store_burst(Context, Client = #{id := Id, timestamps := Timestamps, last_sequence := Last}) ->
    Options = options(Context),
    Sequences = lists:seq(Last + 1, Last + ?BURST),
    Answers = emqx_redis_fault_call:burst(Context, Options, [
        {{store, Id, Sequence}, fun() ->
            emqx_redis_message:store_message_async(Id, ?TERMS:message(Id, Timestamps, Sequence), Options)
        end}
     || Sequence <- Sequences
    ]),
    lists:foldl(
        fun({Sequence, Called}, After) -> stored(Called, Sequence, After) end,
        Client#{last_sequence := lists:last(Sequences)},
        lists:zip(Sequences, Answers)
    ).

stored({Class, _Answer, Entry}, Sequence, Client = #{messages := Messages}) ->
    Told = tell(Entry, Client),
    case Class of
        done -> Told#{messages := Messages#{Sequence => certain}};
        maybe -> Told#{messages := maps:merge(#{Sequence => maybe}, Messages)};
        no -> Told
    end.

%% The oldest half.
ack(_Context, Client = #{messages := Messages}) when map_size(Messages) =:= 0 ->
    Client;
ack(Context, Client = #{id := Id, messages := Messages}) ->
    Oldest = lists:sublist(lists:sort(maps:keys(Messages)), 1 + map_size(Messages) div 2),
    Options = fence(Client, options(Context)),
    Ids = [?TERMS:message_id(Sequence) || Sequence <- Oldest],
    Called = emqx_redis_fault_call:call(Context, {ack, Id, numbers(Oldest)}, Options, fun() ->
        emqx_redis_message:ack_messages(Id, Ids, Options)
    end),
    removed(Context, Called, Oldest, Client).

delete_messages(Context, Client = #{id := Id, messages := Messages}) ->
    Options = fence(Client, options(Context)),
    Called = emqx_redis_fault_call:call(Context, {delete_messages, Id}, Options, fun() ->
        emqx_redis_message:delete_messages(Id, Options)
    end),
    removed(Context, Called, maps:keys(Messages), Client).

removed(Context, {Class, Answer, Entry}, Sequences, Client = #{messages := Messages}) ->
    Told = tell(Entry, Client),
    check_fence(Context, Answer, Told),
    case Class of
        done -> Told#{messages := maps:without(Sequences, Messages)};
        maybe -> Told#{messages := maps:merge(Messages, maps:from_keys(Sequences, maybe))};
        no -> Told
    end.

get(Context, Client = #{id := Id}) ->
    {Class, Answer, {At, Took, What, _}} = emqx_redis_fault_call:call(
        Context, {get, Id}, #{}, fun() -> emqx_redis_message:get_messages(Id, 0, 1000) end
    ),
    case {Class, Answer} of
        {done, {ok, Found}} ->
            Sequences = [sequence_of(Client, Message) || Message <- Found],
            Told = tell({At, Took, What, {ok, numbers(Sequences)}}, Client),
            see_messages(Context, Told, Sequences, passing);
        _ ->
            tell({At, Took, What, Answer}, Client)
    end.

get_pages(Context, Client = #{id := Id}, Offset, Pages) ->
    {_, Answer, _} = emqx_redis_fault_call:call(
        Context, {get, Id}, #{}, fun() -> emqx_redis_message:get_messages(Id, Offset, 7) end
    ),
    case Answer of
        {ok, []} ->
            {Offset, see_messages(Context, Client, lists:append(lists:reverse(Pages)), final)};
        {ok, Page} ->
            Sequences = [sequence_of(Client, Message) || Message <- Page],
            get_pages(Context, Client, Offset + length(Page), [Sequences | Pages]);
        {error, _} ->
            violation({not_readable, Answer}, Client)
    end.

sequence_of(Client, #{id := <<_:32, ":", Sequence:64>>} = Message) ->
    #{id := Id, timestamps := Timestamps} = Client,
    Message =:= ?TERMS:message(Id, Timestamps, Sequence) orelse violation({message_differs, Message}, Client),
    Sequence;
sequence_of(Client, Message) ->
    violation({message_differs, Message}, Client).

see_messages(Context = #{strict := Strict}, Client, Found, When) ->
    #{messages := Messages, last_sequence := Last} = Client,
    Found =:= lists:usort(Found) orelse violation({out_of_order, numbers(Found)}, Client),
    [violation({message_of_the_future, Sequence}, Client) || Sequence <- Found, Sequence > Last],
    Missing = [Sequence || {Sequence, certain} <- maps:to_list(Messages)] -- Found,
    Back = [Sequence || Sequence <- Found, not is_map_key(Sequence, Messages)],
    case {Missing, Back} of
        {[], []} ->
            Client;
        _ when Strict ->
            What = {{missing, numbers(lists:sort(Missing))}, {back, numbers(Back)}, {found, numbers(Found)}},
            violation({wrong_messages, What}, Client);
        _ when When =:= passing ->
            Client;
        _ ->
            #{tally := Tally} = Context,
            ok = emqx_redis_fault_tally:lose(Tally, messages, length(Missing)),
            ok = emqx_redis_fault_tally:lose(Tally, acknowledgements, length(Back)),
            Client
    end.

%% Internal

options(#{level := Level}) ->
    Options = emqx_redis_fault_call:timeout(#{}),
    %% It is the configuration's too.
    case rand:uniform(2) of
        1 -> Options#{durability => Level};
        2 -> Options
    end.

fence(#{fenced := true, epoch := Epoch}, Options) -> Options#{epoch => Epoch};
fence(#{fenced := false}, Options) -> Options.

%% What prints as numbers.
numbers(List) ->
    list_to_tuple(List).

tell(Entry, Client = #{history := History}) when length(History) < 2 * ?HISTORY ->
    Client#{history := [Entry | History]};
tell(Entry, Client = #{history := History}) ->
    Client#{history := [Entry | lists:sublist(History, ?HISTORY)]}.

-spec violation(term(), client()) -> no_return().
violation(What, Client) ->
    throw({violation, What, Client}).
