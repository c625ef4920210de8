%% What a channel has asked `emqx_redis_reconcile' for, and is not done yet.
%%
%% One comparison at a time: what is asked for meanwhile comes behind it, as it may have looked already.
-module(emqx_redis_comparing).

-export([request/2, strongest/1, current/1, looking/1, not_looking/1, left/1, left/2, done/1]).

-export_type([state/0]).

-type surplus() :: keep | remove | deliver.
-type ids() :: #{emqx_redis_message:message_id() => []}.
-type state() ::
    none
    | #{
        current := surplus(),
        next := none | surplus(),
        %% What has left the session since it was looked at last.
        left := none | ids()
    }.

%% `ask': nothing else is under way.
-spec request(surplus(), state()) -> {ask | wait, state()}.
request(Surplus, none) -> {ask, #{current => Surplus, next => none, left => none}};
request(Surplus, #{next := Next} = State) -> {wait, State#{next := stronger(Surplus, Next)}}.

%% `deliver' finds all that `remove' does, and that what `keep' does.
stronger(Surplus, none) -> Surplus;
stronger(none, Surplus) -> Surplus;
stronger(One, Other) when One =:= deliver; Other =:= deliver -> deliver;
stronger(One, Other) when One =:= remove; Other =:= remove -> remove;
stronger(keep, keep) -> keep.

%% All that is left to do, as one.
-spec strongest(state()) -> none | surplus().
strongest(none) -> none;
strongest(#{current := Current, next := Next}) -> stronger(Current, Next).

-spec current(state()) -> none | surplus().
current(none) -> none;
current(#{current := Current}) -> Current.

%% The session is about to be looked at: what leaves it from now on may be among what is found.
-spec looking(state()) -> state().
looking(none) -> none;
looking(State) -> State#{left := #{}}.

%% Nothing comes of that look.
-spec not_looking(state()) -> state().
not_looking(none) -> none;
not_looking(State) -> State#{left := none}.

%% A message has left the session.
-spec left(emqx_redis_message:message_id(), state()) -> state().
left(Id, #{left := #{} = Left} = State) -> State#{left := Left#{Id => []}};
left(_Id, State) -> State.

%% What has left the session since the last look.
-spec left(state()) -> ids().
left(#{left := #{} = Left}) -> Left;
left(_) -> #{}.

%% It is done; and what is to be asked for now.
-spec done(state()) -> state().
done(#{next := none}) -> none;
done(#{next := Next}) -> element(2, request(Next, none)).
