%% A Redis and a broker with the plugin, as cases see them: what a suite's configuration has of them, their
%% clients, and what is in Redis.
-module(emqx_redis_test_plugin).

-export([start/2, start_again/1, stop/1, server/1, broker/1, call/4]).
-export([id/1, id/2, options/2, connect/2, leave_offline/3, publisher/1, publisher/2]).
-export([publish_numbers/4, payloads/1, receive_all/2, receive_and_ack/2]).
-export([session/1, session/2, stored_filters/2, ttl/1, ttl/2]).
-export([stored/1, stored/2, marks/1, await_marks/2]).
-export([matching/2, cli/2, keys/1, keys_of/2, is_available/1, await/1, await/2]).

-include_lib("stdlib/include/assert.hrl").

-define(SERVER, emqx_redis_test_server).
-define(NODE, emqx_redis_broker_node).
-define(CLIENT, emqx_redis_mqtt_client).
-define(HELPERS, emqx_redis_test_helpers).

start(Config, Options) ->
    Server = ?SERVER:start(#{tcp => true, appendonly => true}),
    Own = [{server, Server}, {options, Options} | Config],
    [{broker, start_broker(Own)} | Own].

%% Another node, that knows nothing of the first.
start_again(Config) -> [{broker, start_broker(Config)} | Config].

start_broker(Config) ->
    Options = proplists:get_value(options, Config),
    Given = ?SERVER:config(server(Config)),
    Plugin = maps:merge_with(fun(_, A, B) -> maps:merge(A, B) end, Given, maps:get(config, Options, #{})),
    ?NODE:start(Options#{config => Plugin, folder => proplists:get_value(priv_dir, Config)}).

stop(Config) ->
    ok = ?NODE:kill(broker(Config)),
    ok = ?SERVER:stop(server(Config)).

server(Config) -> proplists:get_value(server, Config).

broker(Config) -> proplists:get_value(broker, Config).

call(Config, Module, Function, Arguments) -> ?NODE:call(broker(Config), Module, Function, Arguments).

id(Config) -> proplists:get_value(client_id, Config).

id(Config, More) -> <<(id(Config))/binary, "_", More/binary>>.

options(Config, Options) ->
    Own = #{port => ?NODE:port(broker(Config)), client_id => id(Config), clean_start => false, expiry => 300},
    maps:merge(Own, Options).

connect(Config, Options) ->
    {ok, Client, _} = ?CLIENT:connect(options(Config, Options)),
    Client.

%% Until EMQX has noticed that its client is gone.
leave_offline(Config, Client, Id) ->
    ?CLIENT:drop(Client),
    await(fun() -> ttl(Config, Id) =< 300 end).

publisher(Config) -> publisher(Config, #{}).

publisher(Config, Options) ->
    Id = <<"publisher", (integer_to_binary(erlang:unique_integer([positive])))/binary>>,
    connect(Config, Options#{client_id => Id, clean_start => true, expiry => 0}).

%% Those that were published, as texts.
publish_numbers(Publisher, Topic, First, Last) ->
    [
        begin
            Payload = integer_to_binary(N),
            {ok, 0} = ?CLIENT:publish(Publisher, Topic, Payload, #{qos => 1}),
            Payload
        end
     || N <- lists:seq(First, Last)
    ].

payloads(Messages) -> [Payload || #{payload := Payload} <- Messages].

%% So many, and no more.
receive_all(Client, Count) ->
    Messages = ?CLIENT:receive_messages(Client, Count),
    ?assertEqual(Count, length(Messages), Messages),
    Messages.

%% Until the condition holds, or so many have come.
receive_and_ack(_Client, 0) ->
    [];
receive_and_ack(Client, Until) ->
    Messages = ?CLIENT:receive_messages(Client, 1),
    [ok = ?CLIENT:ack(Client, Message) || Message <- Messages],
    case is_function(Until) of
        true ->
            case Until() of
                true -> Messages;
                false -> Messages ++ receive_and_ack(Client, Until)
            end;
        false ->
            Messages ++ receive_and_ack(Client, Until - length(Messages))
    end.

session(Config) -> session(Config, id(Config)).

session(Config, Id) -> call(Config, emqx_redis_session, load_session, [Id]).

stored_filters(Config, Id) ->
    case session(Config, Id) of
        {ok, #{subscriptions := Subscriptions}} -> lists:sort(maps:keys(Subscriptions));
        {error, not_found} -> none
    end.

ttl(Config) -> ttl(Config, id(Config)).

ttl(Config, Id) -> cli(Config, ["TTL", <<"session:", Id/binary>>]).

stored(Config) -> stored(Config, id(Config)).

stored(Config, Id) ->
    {ok, Messages} = call(Config, emqx_redis_message, get_messages, [Id, 0, 10000]),
    payloads(Messages).

%% The packet ids that are noted of what is stored.
marks(Config) ->
    {ok, Messages} = call(Config, emqx_redis_message, get_messages, [id(Config), 0, 1000]),
    {ok, Marks} = call(Config, emqx_redis_message, get_marks, [id(Config), [Id || #{id := Id} <- Messages]]),
    [Mark || Mark <- Marks, Mark =/= undefined].

await_marks(Config, Count) -> await(Count, fun() -> length(marks(Config)) end).

matching(Config, Topic) ->
    {ok, Subscriptions} = call(Config, emqx_redis_subscription, match_subscriptions, [Topic]),
    Subscriptions.

cli(Config, Command) -> ?SERVER:cli(server(Config), Command).

keys(Config) -> cli(Config, ["KEYS", "*"]).

%% All but its epoch, and where subscriptions name it.
keys_of(Config, Id) ->
    Keys = [Key || Key <- keys(Config), string:prefix(Key, "epoch:") =:= nomatch],
    Own = [Key || Key <- Keys, binary:match(Key, Id) =/= nomatch],
    Named = [Key || <<"psub:", _/binary>> = Key <- Keys, cli(Config, ["HEXISTS", Key, Id]) =:= 1],
    Indexed = [
        Index
     || Index <- ["sync:sessions", "expiry:sessions"], cli(Config, ["ZSCORE", Index, Id]) =/= undefined
    ],
    Own ++ Named ++ Indexed.

is_available(Config) -> call(Config, emqx_redis_availability, is_available, []).

await(Condition) -> await(true, Condition).

%% Until the function answers this.
await(Expected, Fun) ->
    try
        ?HELPERS:wait_until(fun() -> Expected =:= Fun() end, 10000)
    catch
        error:{still_false_after, _} -> ?assertEqual(Expected, Fun())
    end.
