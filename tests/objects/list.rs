//! ListObjects.

use serde_json::json;

use super::Service;
use crate::common::{Fixture, Http, Target};
use opi_spdk::api::own::Condition;

#[tokio::test]
async fn all_objects_are_listed_with_conditions_and_references() {
    let target = Target::start().await;
    let made = Fixture::tcp(&target, 1).await;
    let service = Service::of(&made.client);
    let (objects, revision) = service.list(0).await;
    let of = |name: &str| {
        let found = objects.iter().find(|one| one.name == name);
        found.unwrap_or_else(|| panic!("{name} is not among {objects:?}"))
    };
    let (volume, namespace) = (of(&made.volume), of(&made.namespace));
    assert_eq!(volume.kind, "MallocVolume");
    assert!(
        volume.typed_name.starts_with("mallocVolumes/"),
        "{volume:?}"
    );
    assert_eq!(volume.used_by, [made.namespace.as_str()]);
    assert_eq!(volume.condition(), Condition::Applied);
    let uses = [volume.typed_name.as_str(), &made.subsystem];
    assert_eq!(namespace.uses, uses);
    assert!(namespace.revision > volume.revision && namespace.revision <= revision);

    let (one_by_one, _) = service.list(1).await;
    assert_eq!(
        one_by_one, objects,
        "the pages together equal the whole list"
    );
    let answer = Http(target.http)
        .send("GET", "/v1/objects?pageSize=2", &[], Vec::new())
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let listed = answer.body["objects"].as_array().expect("a list").clone();
    assert_eq!(listed[0]["typedName"], objects[0].typed_name.as_str());
    assert_eq!(
        (listed.len(), &listed[0]["condition"]),
        (2, &json!("CONDITION_APPLIED"))
    );
    let answer = Http(target.http)
        .send("GET", "/v1/objects?pageToken=nonsense", &[], Vec::new())
        .await;
    assert_eq!(answer.status, 400, "{answer:?}");
    made.remove().await;
    assert!(service.list(0).await.0.is_empty());
    target.stop();
}
