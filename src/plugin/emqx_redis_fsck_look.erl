%% One look of `emqx_redis_fsck' at some items, a few hundred in a round trip, and what has been seen so far:
%% how many of each sort, and which look wrong.
-module(emqx_redis_fsck_look).

-export([new/0, look/3, look_again/2, count/3, suspect/2]).

-export_type([seen/0, suspects/0]).

-type item() :: emqx_redis_fsck_judge:item().
-type suspects() :: #{{Kind :: atom(), item()} => true}.
-type seen() :: #{
    suspects := suspects(),
    checked := #{Sort :: atom() => non_neg_integer()},
    notes := [binary()]
}.

-import(emqx_redis_fsck_redis, [ask/1, time_ms/1]).

-define(SLICE, 250).
%% The most that is kept to be looked at again.
-define(MOST_SUSPECTS, 100000).
%% How often what looked wrong is looked at again.
-define(LOOKS, 8).

-spec new() -> seen().
new() -> #{suspects => #{}, checked => #{}, notes => []}.

%% At these, and at what they lead to.
-spec look(emqx_redis_fsck_keys:layout(), [item()], seen()) -> seen().
look(_L, [], Seen) ->
    Seen;
look(L, Items, Seen) ->
    {Some, Rest} = lists:split(min(?SLICE, length(Items)), Items),
    Asked = [{Item, emqx_redis_fsck_judge:commands(L, Item)} || Item <- Some],
    [Time | Answers] = ask([[<<"TIME">>] | lists:append([Commands || {_, Commands} <- Asked])]),
    {More, NewSeen} = judge_all(L, Asked, Answers, time_ms(Time), [], Seen),
    look(L, Rest, look(L, More, NewSeen)).

judge_all(_L, [], [], _Now, More, Seen) ->
    {More, Seen};
judge_all(L, [{Item, Commands} | Asked], Answers, Now, More, Seen) ->
    {Own, Rest} = lists:split(length(Commands), Answers),
    {Kinds, Items} = emqx_redis_fsck_judge:judge(L, Item, Own, Now),
    judge_all(L, Asked, Rest, Now, Items ++ More, suspect([{Kind, Item} || Kind <- Kinds], Seen)).

%% What of these is wrong still. What one look asks is no atomic unit, so that an item which is written all
%% the time may look wrong once more, but not every time.
-spec look_again(emqx_redis_fsck_keys:layout(), suspects()) -> suspects().
look_again(L, Suspects) -> look_again(L, Suspects, ?LOOKS).

look_again(_L, Suspects, Looks) when Looks =:= 0; map_size(Suspects) =:= 0 ->
    Suspects;
look_again(L, Suspects, Looks) ->
    Items = lists:usort([Item || {_Kind, Item} <- maps:keys(Suspects)]),
    #{suspects := Again} = look(L, Items, new()),
    look_again(L, maps:with(maps:keys(Suspects), Again), Looks - 1).

-spec count(atom(), non_neg_integer(), seen()) -> seen().
count(_Sort, 0, Seen) -> Seen;
count(Sort, More, #{checked := Checked} = Seen) ->
    Seen#{checked := maps:update_with(Sort, fun(Before) -> Before + More end, More, Checked)}.

-spec suspect([{Kind :: atom(), item()}], seen()) -> seen().
suspect([], Seen) ->
    Seen;
suspect(_Suspects, #{suspects := Known} = Seen) when map_size(Known) >= ?MOST_SUSPECTS ->
    Seen#{notes := [<<"more was found than can be kept: repair, and run it again">>]};
suspect(Suspects, #{suspects := Known} = Seen) ->
    Seen#{suspects := maps:merge(Known, maps:from_keys(Suspects, true))}.
