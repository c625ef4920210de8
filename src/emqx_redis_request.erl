%% The way of every request into the NIF library and of its answer back.
%%
%% An accepted request brings exactly one message, `{emqx_redis_reply, Ref, Result}': Redis's answer, or
%% `{error, timeout}' at its deadline, or what became of it when the connection broke or the storage
%% was stopped. So a caller only waits; there is nothing to flush.
-module(emqx_redis_request).

-export([call/2, async/2, errand/2, submit/3]).
-export([receive_response/2, check_response/2, cancel/1, reference/1]).

-export_type([operation/0, settings/0, request_id/0, result/0]).

%% Far longer than the engine can take to answer a request that it is told to give up.
-define(CANCEL_TIMEOUT, 5000).

%% As `native/src/request.rs' takes them: a name and its arguments, `undefined' for what is not given.
-type operation() :: tuple().
%% `undefined' is what the configuration says.
-type settings() ::
    timeout() | undefined | {timeout() | undefined, emqx_redis_args:durability()}.
-opaque request_id() :: {emqx_redis_request, reference(), non_neg_integer() | none}.
-type result() :: ok | {ok, term()} | {error, emqx_redis_storage:error_reason()}.

%% Does the operation and awaits its result. The reference is made here, right before the `receive',
%% so that the virtual machine skips all mail that is older: a long mailbox costs nothing.
-spec call(operation(), settings()) -> result().
call(Operation, Settings) ->
    Ref = make_ref(),
    case ?MODULE:submit(Ref, Settings, Operation) of
        Number when is_integer(Number) ->
            receive
                {emqx_redis_reply, Ref, Result} -> decoded(Result)
            end;
        {error, _} = Error ->
            Error
    end.

%% Begins the operation. Its result comes as a message, also where it failed at once.
-spec async(operation(), settings()) -> request_id().
async(Operation, Settings) ->
    Ref = make_ref(),
    case ?MODULE:submit(Ref, Settings, Operation) of
        Number when is_integer(Number) ->
            {emqx_redis_request, Ref, Number};
        {error, _} = Error ->
            self() ! {emqx_redis_reply, Ref, Error},
            {emqx_redis_request, Ref, none}
    end.

%% Has an errand done, which the engine answers by its deadline.
-spec errand(tuple(), timeout() | undefined) -> result().
errand(Errand, Timeout) ->
    Ref = make_ref(),
    try erlang:module_loaded(emqx_redis_nif) andalso emqx_redis_nif:errand(Ref, Timeout, Errand) of
        ok ->
            receive
                {emqx_redis_reply, Ref, Result} -> Result
            end;
        _ ->
            {error, stopped}
    catch
        error:undef -> {error, stopped}
    end.

%% Called as if from another module: the compiler would follow the reference into a local function,
%% and make it forget where in the mailbox the `receive' may begin.
-spec submit(reference(), settings(), operation()) ->
    non_neg_integer() | {error, term()}.
submit(Ref, Settings, Operation) ->
    %% A storage that was stopped has unloaded the library; to load it here again would keep whoever
    %% upgrades it from doing so.
    try erlang:module_loaded(emqx_redis_nif) andalso leave(Ref, Settings, Operation) of
        false -> {error, stopped};
        Submitted -> submitted(Submitted)
    catch
        error:undef -> {error, stopped}
    end.

leave(Ref, Settings, Operation) ->
    case emqx_redis_nif:submit(Ref, Settings, Operation) of
        over_budget -> emqx_redis_nif:submit_dirty(Ref, Settings, Operation);
        Submitted -> Submitted
    end.

%% What can't be stored is the caller's mistake.
submitted({error, {unencodable, _What, _Path} = Reason}) -> erlang:error(Reason);
submitted(Submitted) -> Submitted.

-spec receive_response(request_id(), timeout()) -> {reply, result()} | timeout.
receive_response({emqx_redis_request, Ref, _} = RequestId, Timeout) ->
    receive
        {emqx_redis_reply, Ref, Result} -> {reply, decoded(Result)}
    after Timeout ->
        case cancel(RequestId) of
            {reply, Result} -> {reply, Result};
            _ -> timeout
        end
    end.

-spec check_response(term(), request_id()) -> {reply, result()} | no_reply.
check_response({emqx_redis_reply, Ref, Result}, {emqx_redis_request, Ref, _}) ->
    {reply, decoded(Result)};
check_response(_, {emqx_redis_request, _, _}) -> no_reply.

%% What its message `{emqx_redis_reply, Reference, _}' holds, to find one among many.
-spec reference(request_id()) -> reference().
reference({emqx_redis_request, Ref, _}) -> Ref.

-spec cancel(request_id()) -> ok | {error, {unknown, cancelled}} | {reply, result()}.
cancel({emqx_redis_request, Ref, Number}) ->
    receive
        {emqx_redis_reply, Ref, Result} -> {reply, decoded(Result)}
    after 0 ->
        _ = is_integer(Number) andalso erlang:module_loaded(emqx_redis_nif) andalso
            emqx_redis_nif:cancel(Number),
        await_cancelled(Ref)
    end.

%% The message is certain to come, unless the caller took it before: then do not wait for ever.
await_cancelled(Ref) ->
    receive
        {emqx_redis_reply, Ref, {error, cancelled}} -> ok;
        {emqx_redis_reply, Ref, {error, {unknown, cancelled}} = Error} -> Error;
        {emqx_redis_reply, Ref, Result} -> {reply, decoded(Result)}
    after ?CANCEL_TIMEOUT ->
        {error, {unknown, cancelled}}
    end.

%% Terms with maps of many thousand pairs are made here: on other threads than a scheduler's, the
%% virtual machine can't.
decoded({emqx_redis_encoded, {ok, Messages}}) when is_list(Messages) ->
    decode_messages(Messages, []);
decoded({emqx_redis_encoded, {ok, #{session := Session} = Claimed}}) ->
    case decoded({emqx_redis_encoded, {ok, Session}}) of
        {ok, Decoded} -> {ok, Claimed#{session := Decoded}};
        {error, _} = Error -> Error
    end;
decoded({emqx_redis_encoded, {ok, Stored}}) ->
    case emqx_redis_codec:decode(Stored) of
        {ok, _} = Decoded -> Decoded;
        {error, Reason} -> {error, {undecodable, #{reason => Reason}}}
    end;
decoded(Result) ->
    Result.

decode_messages([{Id, Stored} | Rest], Decoded) ->
    case emqx_redis_codec:decode(Stored) of
        {ok, Message} when is_map(Message) -> decode_messages(Rest, [Message | Decoded]);
        {ok, _} -> {error, {undecodable, #{reason => not_a_map, message_id => Id}}};
        {error, Reason} -> {error, {undecodable, #{reason => Reason, message_id => Id}}}
    end;
decode_messages([], Decoded) ->
    {ok, lists:reverse(Decoded)}.
