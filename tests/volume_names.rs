//! Every name of a volume, our own ID or any name in SPDK, refers to the same volume.

mod common;

use common::{Options, Resource, Target, Tool, malloc, name_of, namespace, subsystem};
use serde_json::{Value, json};
use tonic::Code;

const RAW: &str = "3b4e28ba-2fa1-11d2-883f-b9a761bde3fb";

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_volume_that_is_referred_to_by_its_uuid_is_protected_counted_and_had_once() {
    let (options, socket) = Options::default().with_rpc();
    let target = Target::start_with(options).await;
    let client = target.client().await;
    let volumes = Resource::new(&client, "MallocVolume");
    let namespaces = Resource::new(&client, "NvmeNamespace");
    let volume = malloc(&client, "m", 4).await;
    let uuid = volumes.get(&volume).await.expect("it is there")["uuid"].clone();
    let uuid = uuid.as_str().expect("a text").to_owned();
    let args = ["bdev_malloc_create", "-b", "raw", "-u", RAW, "4", "512"];
    Tool::rpc(&socket).args(args).run().await.expect("made");

    let over = subsystem(&client, "s", json!({})).await;
    let forms = |name: &str, uuid: &str| {
        [
            uuid.to_owned(),
            format!("volumes/{uuid}"),
            uuid.replace('-', "").to_uppercase(),
            name.to_owned(),
        ]
    };
    for (name, uuid) in [("volumes/m", uuid.as_str()), ("raw", RAW)] {
        for form in forms(name, uuid) {
            let shown = namespace(&client, &over, &form, json!({})).await;
            for other in forms(name, uuid) {
                let object = json!({ "spec": { "volume_name_ref": other } });
                let status = namespaces
                    .refused(&over, "", object, Code::FailedPrecondition)
                    .await;
                assert!(
                    status.message().contains(&shown),
                    "{form}, {other}: {status}"
                );
            }
            if name == "volumes/m" {
                let status = volumes.delete(&volume).await.expect_err("it is in use");
                assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                assert!(status.message().contains(&shown), "{form}: {status}");
                let [of_both, own] = [namespaces.stats(&shown).await, volumes.stats(name).await];
                assert_eq!(of_both, own);
            }
            // Updating to another name of the same volume changes nothing.
            let same = json!({ "spec": { "volume_name_ref": name } });
            namespaces
                .updated(&shown, same, Some(&["spec.volume_name_ref"]))
                .await;
            namespaces.deleted(&shown).await;
        }
    }

    // Layered volumes: a limit over the volume, and encryption over the limit.
    let limits = json!({ "volume_name_ref": uuid, "limits": { "max": { "rw_iops_kiops": 1 } } });
    let limited = Resource::new(&client, "QosVolume");
    let limited_name = name_of(&limited.created("", "limited", limits).await);
    let status = volumes.delete(&volume).await.expect_err("it is limited");
    assert!(status.message().contains("limited"), "{status}");
    let shown = namespace(&client, &over, "volumes/limited", json!({})).await;
    let status = limited.delete(&limited_name).await.expect_err("in use");
    assert!(
        status.message().contains(&shown),
        "our own ID comes first: {status}"
    );
    namespaces.deleted(&shown).await;
    limited.deleted(&limited_name).await;
    let key = common::base64((0..64).collect::<Vec<u8>>());
    let encrypted = Resource::new(&client, "EncryptedVolume");
    let object = common::encrypted_spec(&uuid, "AES_XTS_256", &key);
    let encrypted_name = name_of(&encrypted.created("", "e", object).await);
    let status = volumes.delete(&volume).await.expect_err("it is encrypted");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    encrypted.deleted(&encrypted_name).await;
    volumes.deleted(&volume).await;

    let object: Value = json!({ "spec": { "volume_name_ref": uuid } });
    namespaces.refused(&over, "", object, Code::NotFound).await;

    // Names may contain slashes, as those of logical volumes do.
    let args = ["bdev_malloc_create", "-b", "lvs/lvol", "4", "512"];
    Tool::rpc(&socket).args(args).run().await.expect("made");
    let shown = namespace(&client, &over, "lvs/lvol", json!({})).await;
    let object = json!({ "spec": { "volume_name_ref": "volumes/lvs/lvol" } });
    let status = namespaces
        .refused(&over, "", object, Code::FailedPrecondition)
        .await;
    assert!(status.message().contains(&shown), "{status}");
    let stats = namespaces.stats(&shown).await;
    assert!(stats["read_ops_count"].is_number(), "{stats}");
    namespaces.deleted(&shown).await;
    let object = json!({ "spec": { "volume_name_ref": "lvs/other" } });
    namespaces.refused(&over, "", object, Code::NotFound).await;
    target.stop();
}
