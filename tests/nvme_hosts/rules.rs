//! What a subsystem's hosts can be, and what is refused with a reason.

use serde_json::{Value, json};
use tonic::Code;

use super::{ALICE, BOB, Export, host, hosts_of, reads};
use crate::common::{
    Options, Resource, Target, dhchap_key, expect_invalid, name_of, nqn_of, pcie_spec, psk_of,
    subsystem, tcp_spec,
};

fn plain(hostnqn: &str) -> Value {
    json!({ "hostnqn": hostnqn })
}

#[tokio::test]
async fn a_subsystem_is_opened_and_closed_by_its_hosts_only_while_nobody_can_be_connected() {
    let target = Target::start().await;
    let export = Export::new(&target, "open", &[]).await;
    let (client, open) = (&export.client, export.subsystem.as_str());
    let [hosts, subsystems, controllers] =
        ["NvmeHost", "NvmeSubsystem", "NvmeController"].map(|kind| Resource::new(client, kind));
    reads(&target, &export.host(BOB)).await.expect("any host");
    let state = Code::FailedPrecondition;

    let status = hosts.refused(open, "a", plain(ALICE), state).await;
    assert!(status.message().contains("admits any host"), "{status}");
    reads(&target, &export.host(BOB))
        .await
        .expect("still any host");

    // By the host of `hostnqn` it is closed and opened at any time, as it always was.
    let only = |hostnqn: &str| json!({ "spec": { "hostnqn": hostnqn } });
    let mask = Some(["spec.hostnqn"].as_slice());
    subsystems.updated(open, only(BOB), mask).await;
    let alice = export.admit("a", plain(ALICE)).await;
    for admitted in [ALICE, BOB] {
        reads(&target, &export.host(admitted))
            .await
            .expect(admitted);
    }
    let status = hosts
        .refused(open, "b", plain(BOB), Code::AlreadyExists)
        .await;
    assert!(status.message().contains(open), "{status}");
    let status = hosts
        .refused(open, "c", plain(ALICE), Code::AlreadyExists)
        .await;
    assert!(status.message().contains(&alice), "{status}");
    subsystems
        .update_refused(open, only(ALICE), mask, Code::AlreadyExists)
        .await;
    // Without `hostnqn` the others are still the only ones.
    subsystems.updated(open, only(""), mask).await;
    reads(&target, &export.host(ALICE))
        .await
        .expect("she stays");
    reads(&target, &export.host(BOB))
        .await
        .expect_err("he is out");
    let status = hosts.delete(&alice).await.expect_err("it would open");
    assert_eq!(status.code(), state, "{status}");
    assert!(status.message().contains("nvmeControllers"), "{status}");
    reads(&target, &export.host(ALICE))
        .await
        .expect("she still may");
    subsystems.delete(open).await.expect_err("it has parts");

    let controller = controllers.names(open).await.remove(0);
    controllers.deleted(&controller).await;
    hosts.deleted(&alice).await;
    controllers
        .created(open, "again", tcp_spec(export.port))
        .await;
    reads(&target, &export.host(BOB))
        .await
        .expect("any host again");
    target.stop();
}

#[tokio::test]
async fn all_hosts_of_a_subsystem_have_a_pre_shared_key_or_none_has() {
    let target = Target::start_with(Options::hugepages()).await;
    let client = target.client().await;
    let [hosts, subsystems, controllers] =
        ["NvmeHost", "NvmeSubsystem", "NvmeController"].map(|kind| Resource::new(&client, kind));
    let state = Code::FailedPrecondition;
    let secure = subsystem(&client, "secure", json!({})).await;
    let key = psk_of(1);
    let first = hosts.created(&secure, "a", host(ALICE, &key, "", "")).await;
    let first = name_of(&first);
    let status = hosts.refused(&secure, "b", plain(BOB), state).await;
    assert!(status.message().contains(&first), "{status}");
    let only = json!({ "spec": { "hostnqn": BOB } });
    let mask = Some(["spec.hostnqn"].as_slice());
    let status = subsystems.update_refused(&secure, only, mask, state).await;
    assert!(status.message().contains(&first), "{status}");
    // While there is no controller its only host may change that.
    let none = Some(["psk"].as_slice());
    hosts.updated(&first, json!({}), none).await;
    hosts.created(&secure, "b", plain(BOB)).await;
    hosts
        .update_refused(&first, host(ALICE, &key, "", ""), none, state)
        .await;
    let pcie = controllers
        .refused(&secure, "pcie", pcie_spec(1), state)
        .await;
    assert!(pcie.message().contains("NvmeHosts"), "{pcie}");

    let machine = subsystem(&client, "machine", json!({})).await;
    controllers.created(&machine, "pcie", pcie_spec(2)).await;
    let status = hosts.refused(&machine, "a", plain(ALICE), state).await;
    assert!(
        status.message().contains("nvmeControllers/pcie"),
        "{status}"
    );
    target.stop();
}

#[tokio::test]
async fn a_key_or_an_nqn_that_no_host_could_use_is_refused_with_the_reason() {
    let target = Target::start().await;
    let client = target.client().await;
    let hosts = hosts_of(&client);
    let parent = subsystem(&client, "s", json!({})).await;
    let (psk, dhchap) = (psk_of(1), dhchap_key(1));
    let longest = format!("{}{}", nqn_of(""), "x".repeat(223 - nqn_of("").len()));
    let uuid = "nqn.2014-08.org.nvmexpress:uuid:";
    for (field, object, why) in [
        ("psk", host(ALICE, &dhchap, "", ""), "another form"),
        (
            "psk",
            host(ALICE, &psk.replace("AQEB", "AQEC"), "", ""),
            "checksum",
        ),
        ("dhchap_key", host(ALICE, "", &psk, ""), "another form"),
        (
            "dhchap_key",
            host(ALICE, "", &dhchap.replace(":00:", ":03:"), ""),
            "length",
        ),
        (
            "dhchap_key",
            host(ALICE, "", &dhchap.replace(":00:", ":04:"), ""),
            "hash",
        ),
        ("dhchap_key", host(ALICE, "", "", &dhchap), "is required"),
        ("hostnqn", plain(&format!("{longest}x")), "224 bytes"),
        ("hostnqn", plain("nqn.2022-09.io.spdk"), "a colon"),
        ("hostnqn", plain("nqn.2022-09.io.spdk:a b"), "a space"),
        (
            "hostnqn",
            plain("nqn.2014-08.org.nvmexpress.discovery"),
            "discovery",
        ),
        (
            "hostnqn",
            plain(&format!("{uuid}1b4e28ba2fa111d2883fb9a761bde3fb")),
            "not a UUID",
        ),
    ] {
        let status = hosts
            .refused(&parent, "bad", object, Code::InvalidArgument)
            .await;
        expect_invalid(&status, &format!("nvme_host.{field}"));
        assert!(status.message().contains(why), "{why}: {status}");
    }
    let export = Export::new(
        &target,
        "forms",
        &[
            ("long", plain(&longest)),
            (
                "upper",
                plain(&format!("{uuid}1B4E28BA-2FA1-11D2-883F-B9A761BDE3FB")),
            ),
        ],
    )
    .await;
    for hostnqn in [
        longest,
        format!("{uuid}1B4E28BA-2FA1-11D2-883F-B9A761BDE3FB"),
    ] {
        reads(&target, &export.host(&hostnqn))
            .await
            .expect(&hostnqn);
    }
    target.stop();
}
