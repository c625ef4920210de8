%% What many suites need: waiting, and counting what a test must not leave behind.
-module(emqx_redis_test_helpers).

-export([with_stray_check/1, stray_messages/1, flush/0]).
-export([wait_until/1, wait_until/2]).
-export([process_count/0, atom_count/0, thread_count/0, memory_kb/0, open_file_count/0]).

%% Runs Fun and fails if a message has come that Fun did not take. What was in the mailbox before is
%% put aside and given back, and messages that are still under way get 50 ms to arrive.
-spec with_stray_check(fun(() -> Result)) -> Result.
with_stray_check(Fun) ->
    Before = flush(),
    Result = Fun(),
    Stray = stray_messages(50),
    lists:foreach(fun(Message) -> self() ! Message end, Before),
    case Stray of
        [] -> Result;
        _ -> error({stray_messages, length(Stray), lists:sublist(Stray, 5)})
    end.

%% Takes every message out of the mailbox until none came for Milliseconds.
-spec stray_messages(timeout()) -> [term()].
stray_messages(Milliseconds) ->
    receive
        Message -> [Message | stray_messages(Milliseconds)]
    after Milliseconds ->
        []
    end.

%% Takes every message out of the mailbox that is there now.
-spec flush() -> [term()].
flush() ->
    stray_messages(0).

-spec wait_until(fun(() -> boolean())) -> ok.
wait_until(Condition) ->
    wait_until(Condition, 5000).

%% Fails if Condition does not become true within Timeout milliseconds.
-spec wait_until(fun(() -> boolean()), timeout()) -> ok.
wait_until(Condition, Timeout) ->
    wait_until_deadline(Condition, Timeout, erlang:monotonic_time(millisecond) + Timeout).

wait_until_deadline(Condition, Timeout, Deadline) ->
    case Condition() of
        true ->
            ok;
        false ->
            case erlang:monotonic_time(millisecond) > Deadline of
                true ->
                    error({still_false_after, Timeout});
                false ->
                    timer:sleep(10),
                    wait_until_deadline(Condition, Timeout, Deadline)
            end
    end.

-spec process_count() -> non_neg_integer().
process_count() ->
    erlang:system_info(process_count).

-spec atom_count() -> non_neg_integer().
atom_count() ->
    erlang:system_info(atom_count).

%% Threads of the VM's operating system process, the NIF library's included.
-spec thread_count() -> pos_integer().
thread_count() ->
    {ok, Threads} = file:list_dir("/proc/self/task"),
    length(Threads).

%% Resident memory of the VM's operating system process.
-spec memory_kb() -> pos_integer().
memory_kb() ->
    {ok, Status} = file:read_file("/proc/self/status"),
    {match, [KiloBytes]} = re:run(Status, "VmRSS:\\s+(\\d+) kB", [{capture, [1], binary}]),
    binary_to_integer(KiloBytes).

%% Files and sockets that the VM's operating system process holds open.
-spec open_file_count() -> pos_integer().
open_file_count() ->
    {ok, Files} = file:list_dir("/proc/self/fd"),
    length(Files).
