//! The real server as a process, and a client that is as simple as can be.
#![allow(dead_code)] // Each test file uses a part of it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

pub struct Server {
    child: Child,
    pub address: String,
    /// What it printed on standard output when it was ready.
    pub banner: String,
    log: Receiver<String>,
}

pub struct Response {
    pub status: u16,
    pub body: String,
}

impl Response {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn events(&self) -> Vec<Value> {
        let mut events: Vec<&str> = self.body.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{}", self.body);
        events.iter().map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap()).collect()
    }
}

impl Server {
    /// Starts it on a free port and waits until it is ready.
    pub fn start(args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aisp-serve"));
        // Tests run side by side: one compute thread each keeps them from fighting over the cores.
        command.env("RAYON_NUM_THREADS", "1").args(["--port", "0"]).args(args).envs(env.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = channel();
        let mut stderr = child.stderr.take().unwrap();
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            let _ = sender.send(text);
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut banner = String::new();
        let mut address = String::new();
        // The banner ends with the body of the curl line.
        while !banner.contains(" -d '") {
            let Some(Ok(line)) = lines.next() else {
                child.wait().unwrap();
                panic!("the server ended early: {}", log.recv().unwrap());
            };
            if let Some(found) = line.strip_prefix("listening on http://") {
                address = found.to_owned();
            }
            banner.push_str(&line);
            banner.push('\n');
        }
        Self { child, address, banner, log }
    }

    /// Sends a request and leaves the response to the caller.
    pub fn open(&self, path: &str, json: &str) -> TcpStream {
        self.write("POST", path, "content-type: application/json\r\n", json)
    }

    fn write(&self, method: &str, path: &str, headers: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n");
        stream.write_all(format!("{head}{headers}\r\n{body}").as_bytes()).unwrap();
        stream
    }

    pub fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Response {
        let mut text = String::new();
        self.write(method, path, headers, body).read_to_string(&mut text).unwrap();
        let (head, mut rest) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if !head.contains("transfer-encoding: chunked") {
            return Response { status, body: rest.to_owned() };
        }
        let mut body = String::new();
        while let Some((size, after)) = rest.split_once("\r\n") {
            let size = usize::from_str_radix(size, 16).unwrap();
            body.push_str(&after[..size]);
            rest = &after[size + 2..];
        }
        Response { status, body }
    }

    pub fn post(&self, path: &str, json: &str) -> Response {
        self.send("POST", path, "content-type: application/json\r\n", json)
    }

    pub fn get(&self, path: &str) -> Response {
        self.send("GET", path, "", "")
    }

    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(started.elapsed() < Duration::from_secs(5), "not in time: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn engine_is_empty(&self) {
        self.eventually("blocks are free", |server| {
            server.metric("aisp_kv_cache_usage_perc") == 0.0 && server.metric("aisp_num_requests_running") == 0.0
        });
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end: exit code, and how long it took.
    pub fn wait(mut self) -> (Option<i32>, Duration) {
        let started = Instant::now();
        let code = self.child.wait().unwrap().code();
        (code, started.elapsed())
    }

    /// Ends it with SIGTERM: exit code and log.
    pub fn terminate(mut self) -> (Option<i32>, String) {
        self.signal("TERM");
        let code = self.child.wait().unwrap().code();
        (code, self.log.recv().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
