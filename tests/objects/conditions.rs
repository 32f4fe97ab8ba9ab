//! Conditions that change without a call.

use std::sync::Arc;

use opi_spdk::api::own::{Condition, EventType};
use serde_json::json;

use super::{SOON, Service};
use crate::common::{Options, Resource, Target, eventually};

const KEY: &str = "aioVolumes/waits";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_waits_for_its_file_is_pending_until_the_file_is_back() {
    let dir = Arc::new(tempfile::tempdir().expect("a directory"));
    let options = || Options::default().in_dir(Arc::clone(&dir));
    let (file, away) = (dir.path().join("disk"), dir.path().join("away"));
    let made = std::fs::File::create(&file).and_then(|file| file.set_len(1 << 20));
    made.expect("a file");
    let target = Target::start_with(options()).await;
    let object = json!({ "filename": file, "block_size": 512 });
    let volumes = Resource::new(&target.client().await, "AioVolume");
    volumes.created("", "waits", object).await;
    target.stop();

    std::fs::rename(&file, &away).expect("renamed");
    let target = Target::start_with(options()).await;
    let service = Service::of(&target.client().await);
    let (objects, revision) = service.list(0).await;
    let [volume] = &objects[..] else {
        panic!("one object: {objects:?}");
    };
    assert_eq!(volume.condition(), Condition::Pending, "{volume:?}");
    let path = file.display().to_string();
    assert!(
        volume.reason.contains(&path) && volume.since.is_some(),
        "{volume:?}"
    );
    assert_eq!(volume.device, path);

    let mut events = service.watch(Some(revision)).await.expect("a watch");
    std::fs::rename(&away, &file).expect("renamed back");
    let applied = eventually("the volume is applied again", SOON, async || {
        let event = events.message().await.expect("it goes on").expect("no end");
        let is_it = (event.r#type(), &*event.object) == (EventType::ConditionChanged, KEY);
        (is_it && event.condition() == Condition::Applied).then_some(event)
    })
    .await;
    assert!(applied.reason.is_empty(), "{applied:?}");
    let (objects, _) = service.list(0).await;
    assert_eq!(objects[0].condition(), Condition::Applied);
    target.stop();
}
