//! Invalid input for subsystems and their parts: a specific status with the field and the reason, and no
//! partially created objects.

mod common;

use common::{
    Attempt, Resource, Target, free_port, malloc, name_of, namespace, nqn_of, only, pcie_spec,
    subsystem, tcp_controller, tcp_spec, with,
};
use serde_json::json;
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn invalid_nqns_are_rejected() {
    let target = Target::start().await;
    let client = target.client().await;
    let resource = Resource::new(&client, "NvmeSubsystem");
    let good = json!({ "spec": { "nqn": nqn_of("good") } });
    let attempt = Attempt {
        resource: &resource,
        parent: "",
        good,
    };
    let uuid = "nqn.2014-08.org.nvmexpress:uuid:";
    for nqn in [
        "nqn".into(),
        "nqn.2022-09.io.spdk".into(),
        "nqn.2022-09.io.spdk:".into(),
        "iqn.2022-09.io.spdk:a".into(),
        "NQN.2022-09.io.spdk:a".into(),
        "nqn.2022-13.io.spdk:a".into(),
        "nqn.2022-00.io.spdk:a".into(),
        "nqn.2022-9.io.spdk:a".into(),
        "nqn.22-09.io.spdk:a".into(),
        "nqn.20x2-09.io.spdk:a".into(),
        "nqn.2022.io.spdk:a".into(),
        "nqn.2022-09.:a".into(),
        "nqn.2022-09.io..spdk:a".into(),
        "nqn.2022-09.-io.spdk:a".into(),
        "nqn.2022-09.io-.spdk:a".into(),
        "nqn.2022-09.io.spdk:a\n".into(),
        "nqn.2014-08.org.nvmexpress.discovery".into(),
        format!("{uuid}11111111-2222-3333-4444"),
        format!("{uuid}11111111-2222-3333-4444-55555555555z"),
        nqn_of(&"x".repeat(224 - nqn_of("").len())),
    ] {
        attempt.is_invalid("spec.nqn", json!(nqn)).await;
        let of_host = with(attempt.good.clone(), "spec.hostnqn", json!(nqn));
        // The NQN of the discovery service is not a valid host NQN either.
        attempt.object_is_invalid("spec.hostnqn", of_host).await;
    }
    for nqn in [
        nqn_of(&"x".repeat(223 - nqn_of("").len())),
        format!("{uuid}11111111-2222-3333-4444-555555555555"),
    ] {
        let object = json!({ "spec": { "nqn": nqn, "hostnqn": nqn } });
        let made = resource.created("", "at-the-limit", object).await;
        resource.deleted(&name_of(&made)).await;
    }
    attempt.nothing_remains().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn invalid_subsystem_fields_are_rejected() {
    let target = Target::start().await;
    let client = target.client().await;
    let resource = Resource::new(&client, "NvmeSubsystem");
    let good = json!({ "spec": { "nqn": nqn_of("good") } });
    let attempt = Attempt {
        resource: &resource,
        parent: "",
        good,
    };
    for serial in ["x".repeat(21), "ä".into(), "a\tb".into()] {
        attempt
            .is_invalid("spec.serial_number", json!(serial))
            .await;
    }
    for model in ["x".repeat(41), "ä".into(), "a\u{7f}".into()] {
        attempt.is_invalid("spec.model_number", json!(model)).await;
    }
    for count in [-1, i64::from(i32::MIN), 1 << 32, i64::MAX] {
        attempt
            .is_invalid("spec.max_namespaces", json!(count))
            .await;
    }
    let limits = with(
        attempt.good.clone(),
        "spec.serial_number",
        json!("x".repeat(20)),
    );
    let limits = with(limits, "spec.model_number", json!("x".repeat(40)));
    let made = resource.created("", "at-the-limit", limits).await;
    assert_eq!(made["spec"]["serial_number"], "x".repeat(20));
    resource.deleted(&name_of(&made)).await;

    subsystem(&client, "first", json!({})).await;
    let twin = json!({ "spec": { "nqn": nqn_of("first") } });
    let status = attempt.refused(twin, Code::AlreadyExists).await;
    assert!(
        status.message().contains("nvmeSubsystems/first"),
        "{status}"
    );
    attempt.nothing_remains().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn invalid_endpoints_are_rejected() {
    let target = Target::start().await;
    let client = target.client().await;
    let parent = subsystem(&client, "sub", json!({})).await;
    let resource = Resource::new(&client, "NvmeController");
    let attempt = Attempt {
        resource: &resource,
        parent: &parent,
        good: tcp_spec(free_port()),
    };
    for traddr in [
        "localhost",
        "300.0.0.1",
        "127.0.0.1.1",
        "127.0.0.1/8",
        "[::1]",
        " 127.0.0.1",
        "0x7f000001",
    ] {
        attempt
            .is_invalid("spec.fabrics_id.traddr", json!(traddr))
            .await;
    }
    for trsvcid in [
        "0",
        "-1",
        "65536",
        "4420x",
        " 4420",
        "+4420",
        "0x1144",
        "nvme",
        "99999999999999999999",
    ] {
        attempt
            .is_invalid("spec.fabrics_id.trsvcid", json!(trsvcid))
            .await;
    }
    let ipv6_family = with(
        attempt.good.clone(),
        "spec.fabrics_id.adrfam",
        json!("NVME_ADDRESS_FAMILY_IPV6"),
    );
    attempt
        .object_is_invalid("spec.fabrics_id.adrfam", ipv6_family)
        .await;
    for family in [
        "NVME_ADDRESS_FAMILY_IB",
        "NVME_ADDRESS_FAMILY_FC",
        "NVME_ADDRESS_FAMILY_INTRA_HOST",
    ] {
        attempt
            .is_invalid("spec.fabrics_id.adrfam", json!(family))
            .await;
    }
    for transport in [
        "NVME_TRANSPORT_TYPE_FC",
        "NVME_TRANSPORT_TYPE_RDMA",
        "NVME_TRANSPORT_TYPE_CUSTOM",
    ] {
        attempt.is_invalid("spec.trtype", json!(transport)).await;
    }
    // The endpoint must match the transport.
    let none = json!({ "spec": { "trtype": "NVME_TRANSPORT_TYPE_TCP" } });
    attempt.object_is_invalid("spec.fabrics_id", none).await;
    let pcie_endpoint = with(
        pcie_spec(1),
        "spec.trtype",
        json!("NVME_TRANSPORT_TYPE_TCP"),
    );
    attempt
        .object_is_invalid("spec.fabrics_id", pcie_endpoint)
        .await;
    let tcp_endpoint = with(
        attempt.good.clone(),
        "spec.trtype",
        json!("NVME_TRANSPORT_TYPE_PCIE"),
    );
    attempt
        .object_is_invalid("spec.pcie_id", tcp_endpoint)
        .await;
    for (path, value) in [
        ("port_id", 1),
        ("port_id", -1),
        ("virtual_function", 1),
        ("physical_function", -1),
    ] {
        let path = format!("spec.pcie_id.{path}");
        attempt
            .object_is_invalid(&path, with(pcie_spec(1), &path, json!(value)))
            .await;
    }
    for (path, value) in [
        ("nvme_controller_id", -1),
        ("nvme_controller_id", 0xfff0),
        ("max_nsq", -1),
        ("max_ncq", -1),
        ("sqes", 16),
        ("cqes", -1),
        ("max_namespaces", -1),
    ] {
        let path = format!("spec.{path}");
        let object = with(attempt.good.clone(), &path, json!(value));
        attempt.object_is_invalid(&path, object).await;
    }
    attempt.nothing_remains().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_address_in_use_or_foreign_is_rejected() {
    let target = Target::start().await;
    let client = target.client().await;
    let parent = subsystem(&client, "sub", json!({})).await;
    let resource = Resource::new(&client, "NvmeController");
    let attempt = Attempt {
        resource: &resource,
        parent: &parent,
        good: tcp_spec(free_port()),
    };

    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = other.local_addr().expect("the listener is bound").port();
    let status = attempt
        .refused(tcp_spec(port), Code::FailedPrecondition)
        .await;
    assert!(status.message().contains(&port.to_string()), "{status}");
    drop(other);
    let made = resource.created(&parent, "", tcp_spec(port)).await;
    resource.deleted(&name_of(&made)).await;

    // An address of TEST-NET-1, which no local interface has.
    let foreign = with(
        attempt.good.clone(),
        "spec.fabrics_id.traddr",
        json!("192.0.2.1"),
    );
    let status = attempt.refused(foreign, Code::FailedPrecondition).await;
    assert!(status.message().contains("192.0.2.1"), "{status}");

    let (_, port) = tcp_controller(&client, &parent).await;
    let status = attempt.refused(tcp_spec(port), Code::AlreadyExists).await;
    assert!(status.message().contains(&port.to_string()), "{status}");

    // vfio-user clients cannot share memory with a target without hugepages.
    let status = attempt
        .refused(pcie_spec(1), Code::FailedPrecondition)
        .await;
    assert!(status.message().contains("hugepages"), "{status}");
    attempt.nothing_remains().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn invalid_namespaces_are_rejected() {
    let target = Target::start().await;
    let client = target.client().await;
    let parent = subsystem(&client, "sub", json!({ "max_namespaces": 4 })).await;
    let mine = malloc(&client, "mine", 1).await;
    let resource = Resource::new(&client, "NvmeNamespace");
    let good = only("spec.volume_name_ref", json!(mine));
    let attempt = Attempt {
        resource: &resource,
        parent: &parent,
        good,
    };
    for nsid in [-1, 5, i32::MAX, i32::MIN] {
        attempt.is_invalid("spec.host_nsid", json!(nsid)).await;
    }
    let digits = "0123456789abcdef0123456789abcde";
    for nguid in [
        "x",
        digits,
        &format!("{digits}g"),
        &format!("{digits}00"),
        "0123456789abcdef-0123456789abcdef-",
    ] {
        attempt.is_invalid("spec.nguid", json!(nguid)).await;
    }
    for uuid in [
        "x",
        "1b4e28ba-2fa1-11d2-883f",
        "1b4e28ba-2fa1-11d2-883f-0016d3cca4zz",
    ] {
        attempt.is_invalid("spec.uuid", json!(uuid)).await;
    }
    malloc(&client, "sub", 1).await;
    for name in [
        "/",
        "volumes/",
        "nullVolumes/a/b",
        "a\0",
        // Existing objects that are not volumes.
        "bdev/mine",
        "nvmeSubsystems/sub",
    ] {
        attempt
            .is_invalid("spec.volume_name_ref", json!(name))
            .await;
    }
    // Names with slashes may be aliases known to SPDK.
    for name in [
        "volumes/nobody",
        "nobody",
        "nullVolumes/mine",
        "a/b/c/d/e",
        "volumes/a/b",
    ] {
        let object = only("spec.volume_name_ref", json!(name));
        let status = attempt.refused(object, Code::NotFound).await;
        assert!(
            status
                .message()
                .contains(name.trim_start_matches("volumes/")),
            "{status}"
        );
    }

    let user = namespace(
        &client,
        &parent,
        &malloc(&client, "theirs", 1).await,
        json!({ "host_nsid": 2 }),
    )
    .await;
    let twin = with(attempt.good.clone(), "spec.host_nsid", json!(2));
    let status = attempt.refused(twin, Code::AlreadyExists).await;
    assert!(status.message().contains(&user), "{status}");

    let elsewhere = subsystem(&client, "other", json!({})).await;
    let claimed = Attempt {
        resource: &resource,
        parent: &elsewhere,
        good: attempt.good.clone(),
    };
    for name in ["volumes/theirs", "mallocVolumes/theirs", "theirs"] {
        let object = only("spec.volume_name_ref", json!(name));
        let status = claimed.refused(object, Code::FailedPrecondition).await;
        assert!(status.message().contains(&user), "{status}");
    }
    claimed.nothing_remains().await;
    attempt.nothing_remains().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn namespaces_beyond_the_limit_are_resource_exhausted() {
    let target = Target::start().await;
    let client = target.client().await;
    let parent = subsystem(&client, "sub", json!({ "max_namespaces": 2 })).await;
    for id in ["a", "b"] {
        namespace(&client, &parent, &malloc(&client, id, 1).await, json!({})).await;
    }
    let resource = Resource::new(&client, "NvmeNamespace");
    let object = only("spec.volume_name_ref", json!(malloc(&client, "c", 1).await));
    resource
        .refused(&parent, "", object.clone(), Code::ResourceExhausted)
        .await;
    let first = resource.names(&parent).await.swap_remove(0);
    resource.deleted(&first).await;
    resource.created(&parent, "", object).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn controllers_beyond_the_limit_are_resource_exhausted() {
    let target = Target::start().await;
    let client = target.client().await;
    let parent = subsystem(&client, "sub", json!({})).await;
    // SPDK's limit of listeners per subsystem.
    for _ in 0..16 {
        tcp_controller(&client, &parent).await;
    }
    let resource = Resource::new(&client, "NvmeController");
    let spec = tcp_spec(free_port());
    let status = resource
        .refused(&parent, "", spec.clone(), Code::ResourceExhausted)
        .await;
    assert!(status.message().contains("16"), "{status}");
    let first = resource.names(&parent).await.swap_remove(0);
    resource.deleted(&first).await;
    resource.created(&parent, "", spec).await;
}
