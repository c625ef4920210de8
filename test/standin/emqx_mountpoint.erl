-module(emqx_mountpoint).

-export([mount/2, unmount/2]).

-include("emqx_standin.hrl").

mount(undefined, Filter) -> Filter;
mount(Prefix, #share{topic = Filter} = Share) -> Share#share{topic = mount(Prefix, Filter)};
mount(Prefix, Filter) -> <<Prefix/binary, Filter/binary>>.

unmount(undefined, Filter) -> Filter;
unmount(Prefix, #share{topic = Filter} = Share) -> Share#share{topic = unmount(Prefix, Filter)};
unmount(Prefix, Filter) ->
    case string:prefix(Filter, Prefix) of
        nomatch -> Filter;
        Rest -> Rest
    end.
