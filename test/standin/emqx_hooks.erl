%% Callbacks at hook points: the highest priority first, and of the same one by name. One that crashes counts
%% as one that has nothing to say.
-module(emqx_hooks).

-behaviour(gen_server).

-export([put/3, del/2, run/2, run_fold/3, lookup/1]).
-export([init/1, handle_call/3, handle_cast/2]).

put(Point, Action, Priority) ->
    verify(Point),
    gen_server:call(?MODULE, {put, Point, Action, Priority}).

del(Point, Action) -> gen_server:cast(?MODULE, {del, Point, Action}).

run(Point, Arguments) ->
    verify(Point),
    run_all(lookup(Point), Arguments).

run_all([{_, Action} | Actions], Arguments) ->
    case safe_apply(Action, Arguments) of
        stop -> ok;
        _ -> run_all(Actions, Arguments)
    end;
run_all([], _Arguments) ->
    ok.

run_fold(Point, Arguments, Acc) ->
    verify(Point),
    fold(lookup(Point), Arguments, Acc).

fold([{_, Action} | Actions], Arguments, Acc) ->
    case safe_apply(Action, Arguments ++ [Acc]) of
        stop -> Acc;
        {stop, Last} -> Last;
        {ok, Next} -> fold(Actions, Arguments, Next);
        _ -> fold(Actions, Arguments, Acc)
    end;
fold([], _Arguments, Acc) ->
    Acc.

safe_apply({Module, Function, More} = Action, Arguments) ->
    try
        apply(Module, Function, Arguments ++ More)
    catch
        Class:Reason:Stack ->
            logger:error("hook ~p: ~p", [Action, {Class, Reason, Stack}])
    end.

init([]) -> {ok, none}.

handle_call({put, Point, Action, Priority}, _From, State) ->
    Others = without(Action, lookup(Point)),
    ok = persistent_term:put({?MODULE, Point}, lists:sort([{-Priority, Action} | Others])),
    {reply, ok, State}.

handle_cast({del, Point, Action}, State) ->
    ok = persistent_term:put({?MODULE, Point}, without(Action, lookup(Point))),
    {noreply, State}.

lookup(Point) -> persistent_term:get({?MODULE, Point}, []).

without(Action, All) ->
    Name = {element(1, Action), element(2, Action)},
    [It || {_, {Module, Function, _}} = It <- All, {Module, Function} =/= Name].

verify(Point) -> lists:member(Point, points()) orelse error({invalid_hookpoint, Point}).

points() ->
    [
        'client.connect', 'client.connack', 'client.connected', 'client.disconnected', 'client.authenticate',
        'client.check_authn_complete', 'client.subscribe', 'client.unsubscribe', 'client.handle_info',
        'session.created', 'session.subscribed', 'session.unsubscribed', 'session.disconnected',
        'session.resumed', 'session.discarded', 'session.takenover', 'session.terminated', 'message.publish',
        'message.puback', 'message.dropped', 'message.delivered', 'message.acked', 'message.nack',
        'delivery.dropped', 'delivery.completed', 'cm.channel.unregistered'
    ].
