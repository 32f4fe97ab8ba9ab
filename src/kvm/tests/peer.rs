//! The other side: a test says which commands must come, word for word, and what is answered.

use std::future::Future;
use std::time::{Duration, Instant};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

use crate::kvm::address::Stream;
use crate::kvm::{Address, Device, Machine, Model};

/// Far more than any step takes.
const BOUND: Duration = Duration::from_secs(10);

/// Where a monitor listens, or does not any more.
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

    /// QEMU ends: its socket stays in the file system, and nobody listens.
    pub(super) fn end(&mut self) {
        self.listener = None;
    }

    /// Somebody tidies up after it.
    pub(super) fn remove_socket(&self) {
        std::fs::remove_file(self.dir.path().join("qmp")).expect("a socket");
    }

    /// QEMU ends and another one is started.
    pub(super) fn restart(&mut self) {
        self.end();
        self.remove_socket();
        self.start();
    }

    /// The machine that is behind it, with two buses.
    pub(super) fn machine(&self) -> Machine {
        self.machine_that(false)
    }

    /// The same, which is unplugged from whatever becomes of it.
    pub(super) fn machine_that(&self, force_unplug: bool) -> Machine {
        let address = Address::Unix(self.dir.path().join("qmp"));
        let buses = vec!["pci.a".to_owned(), "pci.b".to_owned()];
        Machine::new(address, buses, force_unplug)
    }

    /// A connection, before the greeting.
    pub(super) async fn accept_silently(&self) -> Monitor {
        let accepted = self.listener.as_ref().expect("QEMU runs").accept();
        let (stream, _) = bounded("a connection", accepted)
            .await
            .expect("a connection");
        Monitor::on(stream)
    }

    /// A connection to the monitor of QEMU `major`.`minor`, ready for commands.
    pub(super) async fn accept_as(&self, major: u32, minor: u32) -> Monitor {
        let mut monitor = self.accept_silently().await;
        monitor.greets(major, minor).await;
        monitor
    }

    /// The same with Debian 12's QEMU.
    pub(super) async fn accept(&self) -> Monitor {
        self.accept_as(7, 2).await
    }
}

/// One connection, from QEMU's side.
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

    /// Greets, and gets the capabilities asked for.
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

    /// The same to a client that may hang up in the middle.
    pub(super) async fn tries_to_say(&mut self, line: &str) -> Result<(), LinesCodecError> {
        bounded("a client that reads", self.lines.send(line)).await
    }

    /// Reads the next command, if the client has one.
    pub(super) async fn next(&mut self) -> Option<Value> {
        let line = bounded("a command", self.lines.next()).await?;
        let command: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
        let id = command["id"].as_u64().expect("a number as id");
        assert!(self.last_id < Some(id), "{id} was used before");
        self.last_id = Some(id);
        Some(command)
    }

    /// Reads the next command and gives its name; `None` when the client has left.
    pub(super) async fn reads_next(&mut self) -> Option<String> {
        let command = self.next().await?;
        command["execute"].as_str().map(str::to_owned)
    }

    /// Reads a command and checks all of it; null means no arguments.
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

    /// Answers the command that was read last.
    pub(super) async fn answers_last(&mut self, value: Value) {
        self.says(&json!({ "return": value, "id": self.last_id }).to_string())
            .await;
    }

    /// Refuses the command of this id.
    pub(super) async fn refuses_id(&mut self, id: Option<u64>, class: &str, description: &str) {
        let error = json!({ "class": class, "desc": description });
        self.says(&json!({ "id": id, "error": error }).to_string())
            .await;
    }

    /// Refuses the command that was read last.
    pub(super) async fn refuses_last(&mut self, class: &str, description: &str) {
        self.refuses_id(self.last_id, class, description).await;
    }

    /// Reads exactly this command and answers it.
    pub(super) async fn answers(&mut self, execute: &str, arguments: Value, value: Value) {
        self.expects(execute, arguments).await;
        self.answers_last(value).await;
    }

    /// Reads exactly this command and refuses it.
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

    /// Tells of something that happened.
    pub(super) async fn tells(&mut self, event: &str, data: Value) {
        let timestamp = json!({ "seconds": 1_700_000_000, "microseconds": 1 });
        self.says(&json!({ "timestamp": timestamp, "event": event, "data": data }).to_string())
            .await;
    }

    /// What a plug begins with, in a machine that has nothing of the device.
    pub(super) async fn has_nothing(&mut self) {
        self.answers("query-pci", Value::Null, pci(&[])).await;
        self.answers("query-chardev", Value::Null, chardevs(&[]))
            .await;
    }

    /// The client has no more commands.
    pub(super) async fn sees_the_end(mut self) {
        let line = bounded("the end of the connection", self.lines.next()).await;
        assert!(line.is_none(), "the client goes on with {line:?}");
    }
}

/// What `query-pci` answers of devices in slots of a bridge: their id, and whether a driver has them.
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

/// What `query-chardev` answers of these, and of the monitor's own.
pub(super) fn chardevs(devices: &[(&str, &str)]) -> Value {
    let own = [("compat_monitor0", "unix:/run/qmp,server=on")];
    let all = own.iter().chain(devices);
    all.map(
        |(label, filename)| json!({ "label": label, "filename": filename, "frontend-open": true }),
    )
    .collect()
}

/// A device on the second bus, in slot 2.
pub(super) fn device(machine: &Machine, model: Model, id: &str) -> Device {
    Device {
        id: id.to_owned(),
        model,
        place: machine.place(34).expect("two buses"),
        socket: "/run/opi/s".into(),
    }
}

/// A deadline that is never reached.
pub(super) fn in_time() -> Instant {
    Instant::now() + BOUND
}

/// Waits, with a bound.
pub(super) async fn bounded<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = tokio::time::timeout(BOUND, future).await;
    waited.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}"))
}
