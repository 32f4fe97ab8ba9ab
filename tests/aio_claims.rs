//! A file or block device backs one volume only and must not be used by anyone else; changes of the file
//! are reported.

mod common;

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Loop, Options, Resource, Target, eventually, metrics, name_of, namespace, subsystem};
use serde_json::{Value, json};
use tonic::Code;

const MIB: u64 = 1 << 20;

fn file(path: &Path, bytes: u64) -> File {
    let file = File::create(path).expect("a file");
    file.set_len(bytes).expect("the file can be extended");
    file
}

fn volume(path: impl AsRef<Path>) -> Value {
    json!({ "filename": path.as_ref(), "block_size": 512, "blocks_count": 64 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_backs_one_volume_by_any_path_and_is_released_on_delete() {
    let target = Target::start().await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "AioVolume");
    let path = |name: &str| target.scratch().join(name);
    file(&path("file"), MIB);
    file(&path("other"), MIB);
    std::fs::hard_link(path("file"), path("hard")).expect("made");
    std::os::unix::fs::symlink(path("file"), path("soft")).expect("made");

    let first = name_of(&volumes.created("", "first", volume(path("file"))).await);
    let second = name_of(&volumes.created("", "second", volume(path("other"))).await);
    for name in ["file", "hard", "soft"] {
        let object = volume(path(name));
        let status = volumes
            .refused("", "third", object.clone(), Code::FailedPrecondition)
            .await;
        assert!(status.message().contains("\"first\""), "{status}");
        let status = volumes
            .update_refused(&second, object, None, Code::FailedPrecondition)
            .await;
        assert!(status.message().contains("\"first\""), "{status}");
    }
    // A repeated create is idempotent, and so is an update to another name of the same file.
    volumes.created("", "first", volume(path("file"))).await;
    volumes.updated(&first, volume(path("hard")), None).await;
    volumes.deleted(&first).await;
    volumes.created("", "third", volume(path("soft"))).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_file_or_device_in_use_is_rejected_naming_its_user() {
    // A target that is not alone sees no mounts that come later.
    let target = Target::start_with(Options::default().alone()).await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "AioVolume");
    let path = target.scratch().join("disk");
    file(&path, 16 * MIB);
    let refused = async |path: &Path, who: &str| {
        let status = volumes.refused("", "v", volume(path), Code::FailedPrecondition);
        let status = status.await;
        assert!(status.message().contains(who), "{who}: {status}");
    };

    let mut locker = Command::new("flock")
        .args(["--exclusive", path.to_str().expect("UTF-8")])
        .args(["-c", "echo locked; read _"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("flock runs");
    let mut said = [0; 6];
    let mut out = locker.stdout.take().expect("piped");
    std::io::Read::read_exact(&mut out, &mut said).expect("flock locks the file");
    refused(&path, "process ").await;
    drop(locker.stdin.take());
    locker.wait().expect("flock exits");

    let device = Loop::over(&path, 512);
    refused(&path, &device.0).await;
    let node = Path::new(&device.0);
    let exclusive = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed())
        .open(node)
        .expect("the device is free");
    refused(node, &format!("process {}", std::process::id())).await;
    drop(exclusive);

    let run = |program: &str, args: &[&Path]| {
        let done = Command::new(program).args(args).output().expect(program);
        assert!(done.status.success(), "{program}: {done:?}");
    };
    let place = target.scratch().join("mounted");
    std::fs::create_dir(&place).expect("made");
    run("mkfs.ext4", &[Path::new("-q"), node]);
    run("mount", &[node, &place]);
    refused(node, place.to_str().expect("UTF-8")).await;
    run("umount", &[&place]);

    let made = name_of(&volumes.created("", "v", volume(node)).await);
    let mounted = Command::new("mount").args([node, &place]).output();
    assert!(!mounted.expect("mount runs").status.success());
    volumes.deleted(&made).await;
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn removing_or_replacing_a_file_takes_its_volume_offline_with_one_log_line() {
    let target = Target::start().await;
    let client = target.client().await;
    let path = target.scratch().join("disk");
    let aside = target.scratch().join("aside");
    file(&path, MIB);
    let made = Resource::new(&client, "AioVolume")
        .created("", "v", volume(&path))
        .await;
    let over = subsystem(&client, "s", json!({})).await;
    let shown = namespace(&client, &over, &name_of(&made), json!({})).await;
    let namespaces = Resource::new(&client, "NvmeNamespace");
    let becomes = async |state: &str| {
        eventually(state, Duration::from_secs(10), async || {
            let now = namespaces.get(&shown).await.expect("the namespace exists");
            (now["status"]["oper_state"] == format!("OPER_STATE_{state}")).then_some(())
        })
        .await;
    };
    becomes("ONLINE").await;
    let address = target.http;
    let offline = async || {
        let scrape = tokio::task::spawn_blocking(move || metrics(address));
        let scrape = scrape.await.expect("no panic");
        ["AioVolume", "NvmeNamespace"].map(|kind| {
            let metric = format!("opi_spdk_objects{{kind=\"{kind}\",condition=\"offline\"}} ");
            let line = scrape.lines().find_map(|line| line.strip_prefix(&metric));
            line.and_then(|value| value.parse::<u64>().ok())
                .unwrap_or_else(|| panic!("{metric}: {scrape}"))
        })
    };
    for (replaced, says) in [
        (false, "was removed"),
        (true, "another file is in the place of"),
    ] {
        std::fs::rename(&path, &aside).expect("the file can be renamed");
        if replaced {
            file(&path, MIB);
        }
        becomes("OFFLINE").await;
        assert_eq!(offline().await, [1, 1], "{says}");
        std::fs::rename(&aside, &path).expect("the file can be renamed back");
        becomes("ONLINE").await;
        assert_eq!(offline().await, [0, 0], "{says}");
        let log = target.log();
        assert_eq!(log.matches(says).count(), 1, "{says}: {log}");
    }
    target.stop();
}

#[tokio::test]
async fn a_no_op_update_reports_a_truncated_file() {
    let target = Target::start().await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "AioVolume");
    let path = target.scratch().join("disk");
    let file = file(&path, MIB);
    let object = json!({ "filename": path, "block_size": 512 });
    let name = name_of(&volumes.created("", "v", object.clone()).await);
    volumes.updated(&name, object.clone(), None).await;
    file.set_len(MIB / 2).expect("the file can be truncated");
    let status = volumes
        .update_refused(&name, object.clone(), None, Code::FailedPrecondition)
        .await;
    assert!(
        status.message().contains("524288 of the 1048576"),
        "{status}"
    );
    volumes
        .refused("", "v", object.clone(), Code::FailedPrecondition)
        .await;
    file.set_len(MIB).expect("the file can be extended");
    volumes.updated(&name, object, None).await;
    target.stop();
}

#[tokio::test]
async fn volumes_with_metadata_cause_a_warning_about_linux_hosts() {
    let target = Target::start().await;
    let client = target.client().await;
    let object = json!({ "block_size": 512, "blocks_count": 2048, "metadata_size": 8 });
    let volumes = Resource::new(&client, "MallocVolume");
    let made = name_of(&volumes.created("", "m", object).await);
    let over = subsystem(&client, "s", json!({})).await;
    namespace(&client, &over, &made, json!({})).await;
    assert!(
        target.log().contains("a disk of 0 bytes"),
        "{}",
        target.log()
    );
    target.stop();
}
