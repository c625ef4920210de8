//! A private Redis server for tests: on a unix socket in a folder of its own, gone with the value.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary has this module to itself and uses its part of it"
)]

pub mod cluster;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A running `redis-server` without persistence. Dropping it kills it and removes its folder.
pub struct RedisServer {
    process: Child,
    folder: PathBuf,
}

impl RedisServer {
    /// Starts a server and waits until it answers.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a server with further arguments, for instance `["--maxmemory", "100mb"]`.
    pub fn start_with(arguments: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        // A socket's path has at most 107 bytes, so the folder is right below the temporary one.
        let folder = std::env::temp_dir().join(format!(
            "emqx-redis-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir(&folder).expect("a new folder");
        let process = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(&folder)
            .arg("--unixsocket")
            .arg(folder.join("redis.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let mut server = RedisServer { process, folder };
        server.wait_until_ready();
        server
    }

    /// Starts a cluster of one server that owns all slots.
    pub fn start_cluster_node() -> Self {
        Self::start_cluster_node_at("0")
    }

    /// The same at a port, `0` for none: clients that look for a cluster need one.
    pub fn start_cluster_node_at(port: &str) -> Self {
        let server = Self::start_with(&["--cluster-enabled", "yes", "--port", port]);
        let mut connection = server.connection();
        let mut add = redis::cmd("CLUSTER");
        add.arg("ADDSLOTS").arg((0..16_384).collect::<Vec<u16>>());
        add.exec(&mut connection).expect("slots that nobody owns");
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let mut info = redis::cmd("CLUSTER");
            let info: String = info.arg("INFO").query(&mut connection).expect("an answer");
            if info.contains("cluster_state:ok") {
                return server;
            }
            assert!(Instant::now() < deadline, "{info}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The path of the unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    /// The server's own folder, removed with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The id of the server's process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A new blocking connection.
    pub fn connection(&self) -> redis::Connection {
        self.try_connection().expect("a connection")
    }

    fn try_connection(&self) -> redis::RedisResult<redis::Connection> {
        redis::Client::open(format!("redis+unix://{}", self.socket().display()))?.get_connection()
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = self
                .try_connection()
                .and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection));
            match answer {
                Ok(_) => return,
                Err(error) => assert!(Instant::now() < deadline, "redis-server: {error}"),
            }
            let exited = self.process.try_wait().expect("the state of our child");
            assert!(exited.is_none(), "redis-server ended: {exited:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
