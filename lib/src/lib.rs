//! Sessions, QoS 1/2 messages and routes of an MQTT broker in Redis. No BEAM type is named here.

pub mod keys;
pub mod route_scripts;
pub mod topic;
