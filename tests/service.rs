//! The program as a service: notifications to its manager (sd_notify), health probes, and SIGHUP.

mod common;

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::{Authority, Machine, free_port, keep_private, poll_blocking};
use rustix::process::{Pid, Signal, kill_process};

/// Timeout of every step, on a busy machine too.
const LONG: Duration = Duration::from_secs(60);

/// A service with its own directory.
struct Service {
    child: Child,
    dir: tempfile::TempDir,
    manager: UnixDatagram,
    grpc: String,
    _machine: Machine,
}

impl Service {
    /// Starts the program as a service manager would, with TLS.
    fn start() -> Self {
        let machine = Machine::alone();
        let dir = tempfile::tempdir().expect("a directory");
        let grpc = format!("127.0.0.1:{}", free_port());
        issue(dir.path(), &Authority::new());
        configure(dir.path(), &grpc, "log-level = \"info\"");
        let manager = UnixDatagram::bind(dir.path().join("notify")).expect("a socket");
        manager.set_read_timeout(Some(LONG)).expect("a limit");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_opi-spdk"))
            .arg("--config")
            .arg(dir.path().join("a.toml"))
            .env("NOTIFY_SOCKET", dir.path().join("notify"))
            .env("WATCHDOG_USEC", "400000")
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        Self {
            child,
            dir,
            manager,
            grpc,
            _machine: machine,
        }
    }

    fn hears(&self, what: &str) {
        let mut bytes = [0; 256];
        loop {
            let length = self.manager.recv(&mut bytes);
            let length = length.unwrap_or_else(|e| panic!("no {what}: {e}; log: {}", self.log()));
            let text = String::from_utf8_lossy(&bytes[..length]);
            if text.lines().any(|line| line == what) {
                return;
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).expect("a log")
    }

    fn logs(&self, what: &str) {
        let found = poll_blocking(LONG, || self.log().contains(what).then_some(()));
        assert!(found.is_some(), "no {what:?} in: {}", self.log());
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the process exists");
    }

    fn health(&self) -> Output {
        health(&self.dir.path().join("probe.toml"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn health(config: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_opi-spdk"));
    command.arg("health").arg("--config").arg(config);
    command
        .args(["--timeout", "30"])
        .output()
        .expect("the program starts")
}

fn configure(dir: &Path, grpc: &str, more: &str) {
    let at = dir.display();
    let text = format!(
        "grpc-addr = \"{grpc}\"\nhttp-addr = \"127.0.0.1:0\"\nmem-mib = 512\nno-huge = true\n\
         state-dir = \"{at}/state\"\nctrlr-dir = \"{at}/ctrlr\"\n\
         tls = \"{at}/certificate:{at}/key:{at}/ca\"\n{more}\n"
    );
    std::fs::write(dir.join("a.toml"), &text).expect("written");
    // The probe's own configuration stays valid, whatever is added to the service's.
    let probe = text.replace(more, "");
    std::fs::write(dir.join("probe.toml"), probe).expect("written");
}

/// Writes the TLS files, signed by this authority.
fn issue(dir: &Path, authority: &Authority) {
    let (certificate, key) = authority.sign("localhost");
    let write = |name: &str, text: String| {
        std::fs::write(dir.join(name), text).expect("written");
        keep_private(&dir.join(name));
    };
    write("certificate", certificate.pem());
    write("key", key.serialize_pem());
    write("ca", authority.pem());
}

#[test]
fn a_service_notifies_its_manager_answers_probes_and_reloads() {
    let mut service = Service::start();
    service.hears("READY=1");
    for _ in 0..3 {
        service.hears("WATCHDOG=1");
    }
    let out = service.health();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );

    // New TLS files: probes with the new certificate are answered, those with the old one are rejected.
    let other = tempfile::tempdir().expect("a directory");
    for name in ["certificate", "key", "ca"] {
        std::fs::copy(service.dir.path().join(name), other.path().join(name)).expect("copied");
    }
    configure(other.path(), &service.grpc, "");
    assert!(health(&other.path().join("probe.toml")).status.success());
    issue(service.dir.path(), &Authority::new());
    let more = "log-level = \"warn,opi_spdk::reload=debug\"\nmax-calls = 64";
    configure(service.dir.path(), &service.grpc, more);
    service.signal(Signal::HUP);
    service.logs("configuration reloaded");
    service.logs("setting=\"max-calls\"");
    service.logs("level of the log is now warn,opi_spdk::reload=debug");
    let old = health(&other.path().join("probe.toml"));
    assert_eq!(old.status.code(), Some(1));
    assert!(service.health().status.success());

    // A rejected configuration changes nothing.
    configure(service.dir.path(), &service.grpc, "max-calls = 3");
    service.signal(Signal::HUP);
    service.logs("not reloaded: it stays as it was");
    assert!(service.health().status.success());
    service.hears("WATCHDOG=1");

    service.signal(Signal::TERM);
    service.hears("STOPPING=1");
    let ended = poll_blocking(LONG, || service.child.try_wait().expect("a child"));
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    let out = service.health();
    assert_eq!(out.status.code(), Some(1));
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(
        error.contains(&service.grpc) && error.contains("refused"),
        "{error}"
    );
}
