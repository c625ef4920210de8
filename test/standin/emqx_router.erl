-module(emqx_router).

-export([has_route/2]).

has_route(Filter, Node) -> Node =:= node() andalso emqx_broker:subscribers(Filter) =/= [].
