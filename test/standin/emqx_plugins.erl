-module(emqx_plugins).

-export([get_config/2]).

get_config(_NameVsn, _Default) -> persistent_term:get(?MODULE).
