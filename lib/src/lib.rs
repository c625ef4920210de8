//! Sessions, QoS 1/2 messages and routes of an MQTT broker in Redis. No BEAM type is named here.
//!
//! A request's way: [`engine`] takes it at the door and leaves it in a queue; the task of a
//! connection ([`lane`]) takes it up, has its [`request::Operation`] write commands, and has the
//! operation read the replies; the [`request::Responder`] delivers the one answer.

pub mod clock;
pub mod command;
pub mod config;
pub mod connection;
pub mod context;
pub mod dispatch;
pub mod engine;
pub mod error;
pub mod hash_slot;
mod internal;
pub mod keys;
pub mod message;
pub mod metrics;
pub mod order;
mod outcome;
mod queue;
pub mod repair;
pub mod replica;
pub mod request;
pub mod resp;
pub mod route_scripts;
pub mod router;
pub mod scripts;
pub mod server;
pub mod session;
pub mod slots;
mod sweeper;
pub mod table;
pub mod tls;
pub mod topic;
mod topology;
mod walk;
