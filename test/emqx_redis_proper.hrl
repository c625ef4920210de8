%% What a suite needs of PropEr's own header, which not every package of PropEr brings
%% (Debian's erlang-proper does not).

-define(FORALL(X, Type, Property), proper:forall(Type, fun(X) -> Property end)).
-define(LET(X, Type, Generator), proper_types:bind(Type, fun(X) -> Generator end, false)).
-define(SUCHTHAT(X, Type, Condition),
    proper_types:add_constraint(Type, fun(X) -> Condition end, true)
).
-define(SIZED(Size, Generator), proper_types:sized(fun(Size) -> Generator end)).
-define(LAZY(Generator), proper_types:lazy(fun() -> Generator end)).
