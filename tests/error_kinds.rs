//! Several kinds share names of the form `volumes/ID`: errors state the kind.

mod common;

use common::{Resource, Target, malloc};
use serde_json::json;
use tonic::Code;
use tonic_types::StatusExt;

#[tokio::test]
async fn errors_state_the_kind_of_a_volume() {
    let target = Target::start().await;
    let client = target.client().await;
    let volume = malloc(&client, "m", 4).await;
    let limits = json!({ "volume_name_ref": volume, "limits": { "max": { "rw_iops_kiops": 1 } } });
    Resource::new(&client, "QosVolume")
        .created("", "lim", limits)
        .await;

    let name = json!({ "name": volume });
    let in_use = client.fails("DeleteMallocVolume", name.clone(), Code::FailedPrecondition);
    let in_use = in_use.await;
    assert!(
        in_use.message().contains("volumes/lim (QosVolume)"),
        "{in_use}"
    );
    let details = in_use.get_error_details();
    let about = details
        .resource_info()
        .expect("the error names the resource");
    assert_eq!(about.resource_type, "opi_api.storage.v1/MallocVolume");

    let missing = client.fails("DeleteNullVolume", name, Code::NotFound).await;
    assert!(
        missing
            .message()
            .contains("there is volumes/m (MallocVolume)"),
        "{missing}"
    );
    let details = missing.get_error_details();
    let about = details
        .resource_info()
        .expect("the error names the resource");
    assert_eq!(about.resource_type, "opi_api.storage.v1/NullVolume");
    target.stop();
}
