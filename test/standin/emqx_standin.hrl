%% What the modules of the stand-in share.

-record(message, {id, qos = 0, from, flags = #{}, headers = #{}, topic, payload, timestamp, extra = #{}}).

-record(share, {group, topic}).

-define(SUCCESS, 0).
-define(NO_MATCHING_SUBSCRIBERS, 16#10).
-define(NO_SUBSCRIPTION_EXISTED, 16#11).
-define(UNSPECIFIED_ERROR, 16#80).
-define(PROTOCOL_ERROR, 16#82).
-define(IMPLEMENTATION_SPECIFIC_ERROR, 16#83).
-define(SERVER_UNAVAILABLE, 16#88).
-define(SERVER_BUSY, 16#89).
-define(SESSION_TAKEN_OVER, 16#8E).
-define(PACKET_IDENTIFIER_IN_USE, 16#91).
-define(PACKET_IDENTIFIER_NOT_FOUND, 16#92).
-define(RECEIVE_MAXIMUM_EXCEEDED, 16#93).
-define(QUOTA_EXCEEDED, 16#97).
-define(ADMINISTRATIVE_ACTION, 16#98).
