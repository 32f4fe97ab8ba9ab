//! A scripted QMP monitor: a test states the exact commands it expects and the answers.

use std::future::Future;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

use crate::kvm::address::Stream;
use crate::kvm::{Address, Device, Machine, Model};

/// Timeout, far above the duration of any step.
const BOUND: Duration = Duration::from_secs(10);

/// The listening socket of a monitor, which may be closed.
pub(super) struct Peer {
    dir: TempDir,
    listener: Option<UnixListener>,
}

impl Peer {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut peer = Self {
            dir,
            listener: None,
        };
        peer.start();
        peer
    }

    fn start(&mut self) {
        let listener = UnixListener::bind(self.dir.path().join("qmp"));
        self.listener = Some(listener.expect("a socket"));
    }

    /// QEMU ends: its socket file stays, but nothing listens.
    pub(super) fn end(&mut self) {
        self.listener = None;
    }

    /// Removes the socket file.
    pub(super) fn remove_socket(&self) {
        std::fs::remove_file(self.dir.path().join("qmp")).expect("a socket");
    }

    /// QEMU ends and another one starts.
    pub(super) fn restart(&mut self) {
        self.end();
        self.remove_socket();
        self.start();
    }

    /// A client with two buses.
    pub(super) fn machine(&self) -> Machine {
        self.machine_that(false)
    }

    /// The monitor's address.
    pub(super) fn address(&self) -> Address {
        Address::Unix(self.dir.path().join("qmp"))
    }

    /// A client with or without forced unplug.
    pub(super) fn machine_that(&self, force_unplug: bool) -> Machine {
        let address = self.address();
        let buses = vec!["pci.a".to_owned(), "pci.b".to_owned()];
        Machine::new(address, buses, force_unplug)
    }

    /// Accepts a connection, without a greeting.
    pub(super) async fn accept_silently(&self) -> Monitor {
        let accepted = self.listener.as_ref().expect("QEMU runs").accept();
        let (stream, _) = bounded("a connection", accepted)
            .await
            .expect("a connection");
        Monitor::on(stream)
    }

    /// Accepts a connection as QEMU `major`.`minor`, ready for commands.
    pub(super) async fn accept_as(&self, major: u32, minor: u32) -> Monitor {
        let mut monitor = self.accept_silently().await;
        monitor.greets(major, minor).await;
        monitor
    }

    /// Accepts a connection as Debian 12's QEMU.
    pub(super) async fn accept(&self) -> Monitor {
        self.accept_as(7, 2).await
    }
}

/// QEMU's side of a connection.
pub(super) struct Monitor {
    lines: Framed<Box<dyn Stream>, LinesCodec>,
    last_id: Option<u64>,
}

impl Monitor {
    pub(super) fn on(stream: impl Stream + 'static) -> Self {
        Self {
            lines: Framed::new(Box::new(stream), LinesCodec::new()),
            last_id: None,
        }
    }

    /// Sends the greeting, and answers the negotiation of capabilities.
    pub(super) async fn greets(&mut self, major: u32, minor: u32) {
        let version =
            json!({ "qemu": { "major": major, "minor": minor, "micro": 1 }, "package": "test" });
        let greeting = json!({ "QMP": { "version": version, "capabilities": ["oob"] } });
        self.says(&greeting.to_string()).await;
        self.answers("qmp_capabilities", Value::Null, json!({}))
            .await;
    }

    /// Sends a line.
    pub(super) async fn says(&mut self, line: &str) {
        self.tries_to_say(line).await.expect("a client");
    }

    /// Sends a line to a client that may disconnect before it has read it.
    pub(super) async fn tries_to_say(&mut self, line: &str) -> Result<(), LinesCodecError> {
        bounded("a client that reads", self.lines.send(line)).await
    }

    /// Reads the next command; `None` if the client has disconnected.
    pub(super) async fn next(&mut self) -> Option<Value> {
        let line = bounded("a command", self.lines.next()).await?;
        let command: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        let id = command["id"].as_u64().expect("a number as id");
        assert!(self.last_id < Some(id), "{id} was used before");
        self.last_id = Some(id);
        Some(command)
    }

    /// Reads the next command and returns its name; `None` if the client has disconnected.
    pub(super) async fn reads_next(&mut self) -> Option<String> {
        let command = self.next().await?;
        command["execute"].as_str().map(str::to_owned)
    }

    /// Reads a command and compares all of it; null means no arguments.
    pub(super) async fn expects(&mut self, execute: &str, arguments: Value) {
        let command = self
            .next()
            .await
            .unwrap_or_else(|| panic!("no {execute}: the client left"));
        let mut expected = json!({ "execute": execute, "id": self.last_id });
        if !arguments.is_null() {
            expected["arguments"] = arguments;
        }
        assert_eq!(command, expected);
    }

    /// Answers the command read last.
    pub(super) async fn answers_last(&mut self, value: Value) {
        self.says(&json!({ "return": value, "id": self.last_id }).to_string())
            .await;
    }

    /// Refuses the command of this ID.
    pub(super) async fn refuses_id(&mut self, id: Option<u64>, class: &str, description: &str) {
        let error = json!({ "class": class, "desc": description });
        self.says(&json!({ "id": id, "error": error }).to_string())
            .await;
    }

    /// Refuses the command read last.
    pub(super) async fn refuses_last(&mut self, class: &str, description: &str) {
        self.refuses_id(self.last_id, class, description).await;
    }

    /// Expects exactly this command and answers it.
    pub(super) async fn answers(&mut self, execute: &str, arguments: Value, value: Value) {
        self.expects(execute, arguments).await;
        self.answers_last(value).await;
    }

    /// Expects exactly this command and refuses it.
    pub(super) async fn refuses(
        &mut self,
        execute: &str,
        arguments: Value,
        class: &str,
        description: &str,
    ) {
        self.expects(execute, arguments).await;
        self.refuses_last(class, description).await;
    }

    /// Sends an event.
    pub(super) async fn tells(&mut self, event: &str, data: Value) {
        let timestamp = json!({ "seconds": 1_700_000_000, "microseconds": 1 });
        self.says(&json!({ "timestamp": timestamp, "event": event, "data": data }).to_string())
            .await;
    }

    /// Answers the first queries of a plug as a QEMU that has nothing of the device.
    pub(super) async fn has_nothing(&mut self) {
        self.answers("query-pci", Value::Null, pci(&[])).await;
        self.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
    }

    /// Expects the client to disconnect.
    pub(super) async fn sees_the_end(mut self) {
        let line = bounded("the end of the connection", self.lines.next()).await;
        assert!(line.is_none(), "the client goes on with {line:?}");
    }
}

/// An answer to `query-pci` with devices behind a bridge: their ID, and whether a driver has taken them.
pub(super) fn pci(devices: &[(&str, bool)]) -> Value {
    let devices = devices.iter().map(|(id, taken)| {
        let address = if *taken { 0xfe00_0000_i64 } else { -1 };
        json!({
            "bus": 1, "slot": 5, "function": 0, "qdev_id": id, "irq_pin": 1,
            "class_info": { "class": 256 }, "id": { "device": 4162, "vendor": 6900 },
            "regions": [{ "bar": 1, "type": "memory", "address": address, "size": 4096 }],
        })
    });
    let bridge = json!({
        "bus": 0, "slot": 3, "function": 0, "qdev_id": "pci.a", "irq_pin": 1,
        "class_info": { "class": 1540 }, "id": { "device": 1, "vendor": 6966 }, "regions": [],
        "pci_bridge": { "bus": { "number": 0 }, "devices": devices.collect::<Vec<_>>() },
    });
    json!([{ "bus": 0, "devices": [bridge] }])
}

/// An answer to `query-chardev` with these devices and the monitor's own.
pub(super) fn chardevs(devices: &[(&str, &str)]) -> Value {
    let own = [("compat_monitor0", "unix:/run/qmp,server=on")];
    let all = own.iter().chain(devices);
    all.map(
        |(label, filename)| json!({ "label": label, "filename": filename, "frontend-open": true }),
    )
    .collect()
}

/// A device in slot 2 of the second bus.
pub(super) fn device(machine: &Machine, model: Model, id: &str) -> Device {
    Device {
        id: id.to_owned(),
        model,
        place: machine.place(34).expect("two buses"),
        socket: "/run/opi/s".into(),
    }
}

/// A deadline that is not reached.
pub(super) fn in_time() -> Instant {
    Instant::now() + BOUND
}

/// Waits with the timeout.
pub(super) async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(BOUND, future).await;
    waited.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}"))
}
