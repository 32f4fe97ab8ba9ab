//! Delete (AIP-135): the object is removed from the API and from SPDK, unless it is in use.

use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::common::{
    Client, Resource, malloc, namespace, nqn_of, subsystem, tcp_controller, unique,
};
use crate::kinds::Place;

pub async fn a_deleted_object_is_gone_and_its_id_free(place: &Place) {
    let (name, _) = place.make(0).await;
    place.resource.deleted(&name).await;
    let gone = place
        .resource
        .get(&name)
        .await
        .expect_err("the object was deleted");
    assert_eq!(gone.code(), Code::NotFound);
    assert!(!place.resource.names(&place.parent).await.contains(&name));
    // A different object under the same ID: neither the API nor SPDK has remains of the first.
    let other = place.sample(1).await;
    place
        .resource
        .created(&place.parent, &place.id(0), other)
        .await;
}

pub async fn deleting_a_missing_object_is_not_found_unless_allow_missing(place: &Place) {
    let name = place.name(&place.id(0));
    let method = place.resource.method("Delete");
    let request = json!({ "name": name });
    place
        .resource
        .client
        .fails(&method, request, Code::NotFound)
        .await;
    let request = json!({ "name": name, "allow_missing": true });
    place.resource.client.ok(&method, request.clone()).await;
    place.make(0).await;
    place.resource.client.ok(&method, request).await;
    assert!(
        place.resource.get(&name).await.is_err(),
        "an existing object is deleted with allow_missing"
    );
}

pub async fn objects_in_use_are_not_deleted_and_the_error_names_the_user(client: &Client) {
    let id = unique("in-use");
    let volume = malloc(client, &id, 1).await;
    let subsystem = subsystem(client, &id, json!({})).await;
    let namespace = namespace(client, &subsystem, &volume, json!({})).await;
    let (controller, _) = tcp_controller(client, &subsystem).await;
    let [subsystems, namespaces, controllers, volumes] = [
        "NvmeSubsystem",
        "NvmeNamespace",
        "NvmeController",
        "MallocVolume",
    ]
    .map(|kind| Resource::new(client, kind));

    names_user(volumes.delete(&volume).await, &namespace);
    names_user(subsystems.delete(&subsystem).await, &controller);
    controllers.deleted(&controller).await;
    names_user(subsystems.delete(&subsystem).await, &namespace);
    // An update that requires a rebuild is rejected while the object is in use.
    let object = json!({ "blocks_count": 4096 });
    names_user(
        volumes.update(&volume, object, None).await.map(drop),
        &namespace,
    );
    namespaces.deleted(&namespace).await;
    subsystems.deleted(&subsystem).await;
    volumes.deleted(&volume).await;
    assert!(volumes.get(&volume).await.is_err());
    // The NQN and the bdev name are free again, for other kinds too.
    let other = subsystems
        .created(
            "",
            &format!("{id}-x"),
            json!({ "spec": { "nqn": nqn_of(&id) } }),
        )
        .await;
    let nulls = Resource::new(client, "NullVolume");
    let null = nulls
        .created("", &id, json!({ "block_size": 512, "blocks_count": 8 }))
        .await;
    subsystems.deleted(&crate::common::name_of(&other)).await;
    nulls.deleted(&crate::common::name_of(&null)).await;
}

fn names_user(result: Result<(), Status>, user: &str) {
    let status = result.expect_err("the object is in use");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(
        status.message().contains(user),
        "{user} is not named: {status}"
    );
    let details = status.get_error_details();
    assert_eq!(
        details.error_info().expect("ErrorInfo").metadata["user"],
        user
    );
}
