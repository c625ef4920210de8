-module(emqx_config).

-export([get_zone_conf/3]).

get_zone_conf(_Zone, [mqtt, Name], Default) -> maps:get(Name, persistent_term:get(?MODULE), Default).
