//! Volumes when the system has run out of contexts for asynchronous I/O (fs.aio-max-nr).

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use common::{
    Initiator, Options, Resource, Target, name_of, namespace, nqn_of, subsystem, tcp_controller,
};
use serde_json::json;
use tonic::Code;

/// I/Os per context that SPDK creates; Linux limits their sum over all contexts.
const DEPTH: u64 = 128;

/// Takes all of fs.aio-max-nr but the given number of SPDK's contexts; releases them on drop.
struct Hog(Child);

impl Hog {
    fn leaving(contexts: u64) -> Self {
        let number = |name: &str| -> u64 {
            let text = std::fs::read_to_string(format!("/proc/sys/fs/{name}"))
                .expect("the setting exists");
            text.trim().parse().expect("a number")
        };
        let most = number("aio-max-nr") - number("aio-nr") - contexts * DEPTH;
        // The number of I/Os per context is limited, and the kernel rounds up.
        let script = format!(
            "import ctypes, os, sys\n\
             libc, left = ctypes.CDLL(None, use_errno=True), {most}\n\
             while left > {DEPTH}:\n\
             \x20   some, context = min(left, 8192), ctypes.c_ulong(0)\n\
             \x20   if libc.syscall({}, some, ctypes.byref(context)) != 0: sys.exit('io_setup')\n\
             \x20   left -= some\n\
             print('taken', flush=True)\n\
             sys.stdin.read()\n",
            if cfg!(target_arch = "x86_64") { 206 } else { 0 },
        );
        let mut child = Command::new("python3")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let mut said = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        out.read_line(&mut said).expect("the script reports");
        assert_eq!(said, "taken\n");
        Self(child)
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_namespace_beyond_aio_max_nr_is_rejected_without_leftovers() {
    const ROOM: u64 = 3;
    let target = Target::start_with(Options::default().alone()).await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "AioVolume");
    let namespaces = Resource::new(&client, "NvmeNamespace");
    let over = subsystem(&client, "s", json!({})).await;
    let (_, port) = tcp_controller(&client, &over).await;
    let host = Initiator::tcp(port, &nqn_of("s"));
    let mut names = Vec::new();
    for n in 0..ROOM + 2 {
        let path = target.scratch().join(format!("disk{n}"));
        std::fs::write(&path, vec![0; 1 << 20]).expect("the file can be written");
        let object = json!({ "filename": path, "block_size": 512 });
        names.push(name_of(
            &volumes.created("", &format!("v{n}"), object).await,
        ));
    }
    let hog = Hog::leaving(ROOM);
    let mut shown = Vec::new();
    let full = loop {
        let name = &names[shown.len()];
        let object = json!({ "spec": { "volume_name_ref": name } });
        match namespaces.create(&over, "", object).await {
            Ok(made) => shown.push(name_of(&made)),
            Err(status) => break status,
        }
    };
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    assert!(full.message().contains("fs.aio-max-nr"), "{full}");
    assert!(!shown.is_empty(), "no namespace could be created");
    assert_eq!(namespaces.names(&over).await.len(), shown.len());
    volumes.deleted(&names[shown.len()]).await;
    // After a deletion, another namespace can be created.
    namespaces
        .deleted(&shown.pop().expect("a namespace exists"))
        .await;
    shown.push(namespace(&client, &over, &names[shown.len()], json!({})).await);
    drop(hog);
    shown.push(namespace(&client, &over, names.last().expect("one"), json!({})).await);
    let dir = target.scratch().join("host");
    std::fs::create_dir(&dir).expect("made");
    host.verify(&dir, 1)
        .await
        .expect("all namespaces serve I/O");
    target.stop();
}
