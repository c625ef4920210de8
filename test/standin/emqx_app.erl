-module(emqx_app).

-export([init_load_done/0]).

%% False before EMQX has read its configuration, and again when it stops.
init_load_done() -> persistent_term:get(?MODULE, false).
