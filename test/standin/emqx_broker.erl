%% Subscriptions of processes, and the way of a message to them.
-module(emqx_broker).

-behaviour(gen_server).

-export([subscribe/3, unsubscribe/1, subscriptions/1, subscribers/1, publish/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-include("emqx_standin.hrl").

-define(OPTIONS, emqx_suboption).
-define(SUBSCRIBERS, emqx_subscriber).

%% For the calling process. Done again it changes the options.
subscribe(Filter, ClientId, Options) ->
    All = maps:merge(#{rh => 0, rap => 0, nl => 0, qos => 0}, Options),
    gen_server:call(?MODULE, {subscribe, Filter, self(), All#{subid => ClientId}}).

unsubscribe(Filter) -> gen_server:call(?MODULE, {unsubscribe, Filter, self()}).

subscriptions(Pid) -> [{Filter, Options} || {{P, Filter}, Options} <- ets:tab2list(?OPTIONS), P =:= Pid].

subscribers(Filter) -> [Pid || {_, Pid} <- ets:lookup(?SUBSCRIBERS, Filter)].

%% Answers one entry for each filter that has subscribers, or `disconnect'.
publish(#message{} = Message) ->
    case emqx_hooks:run_fold('message.publish', [], emqx_message:set_flag(dup, false, Message)) of
        #message{headers = #{should_disconnect := true}} -> disconnect;
        #message{headers = #{allow_publish := false}} -> [];
        Allowed -> route(Allowed)
    end.

route(#message{topic = Topic} = Message) ->
    Filters = lists:usort([Filter || {Filter, _} <- ets:tab2list(?SUBSCRIBERS)]),
    case [Filter || Filter <- Filters, emqx_topic:match(Topic, real(Filter))] of
        [] ->
            ok = emqx_hooks:run('message.dropped', [Message, #{node => node()}, no_subscribers]),
            [];
        Matching ->
            [dispatch(Filter, Message) || Filter <- Matching]
    end.

real(#share{topic = Filter}) -> Filter;
real(Filter) -> Filter.

dispatch(#share{group = Group, topic = Filter}, Message) ->
    {share, Filter, emqx_shared_sub:dispatch(Group, Filter, Message)};
dispatch(Filter, Message) ->
    Pids = subscribers(Filter),
    _ = [Pid ! {deliver, Filter, Message} || Pid <- Pids],
    {node(), Filter, {ok, length(Pids)}}.

init([]) ->
    ?OPTIONS = ets:new(?OPTIONS, [named_table, protected]),
    ?SUBSCRIBERS = ets:new(?SUBSCRIBERS, [named_table, protected, bag]),
    _ = [ets:new(Table, [named_table, public]) || Table <- [emqx_alarm, emqx_ctl]],
    {ok, none}.

handle_call({subscribe, Filter, Pid, Options}, _From, State) ->
    _ = monitor(process, Pid),
    true = ets:insert(?OPTIONS, {{Pid, Filter}, Options}),
    true = ets:insert(?SUBSCRIBERS, {Filter, Pid}),
    {reply, ok, State};
handle_call({unsubscribe, Filter, Pid}, _From, State) ->
    {reply, forget(Filter, Pid), State}.

handle_cast(_Request, State) -> {noreply, State}.

handle_info({'DOWN', _, process, Pid, _}, State) ->
    _ = [forget(Filter, Pid) || {Filter, _} <- subscriptions(Pid)],
    {noreply, State}.

forget(Filter, Pid) ->
    true = ets:delete(?OPTIONS, {Pid, Filter}),
    true = ets:delete_object(?SUBSCRIBERS, {Filter, Pid}),
    ok.
