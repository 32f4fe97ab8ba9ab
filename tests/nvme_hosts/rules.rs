//! Validation of a subsystem's hosts: which are accepted, and which are refused with a reason.

use serde_json::{Value, json};
use tonic::Code;

use super::made::with;
use super::{ALICE, BOB, Export, SOON, host, hosts_of, key_file, reads};
use crate::common::nvme_tcp::Digests;
use crate::common::{
    Options, Resource, Target, base64, dhchap_key, expect_invalid, name_of, nqn_of, pcie_spec,
    psk_of, subsystem, tcp_spec,
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

    // A subsystem with `hostnqn` can be restricted and opened at any time, as before NvmeHosts existed.
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
        .refused(open, "c", plain(ALICE), Code::AlreadyExists)
        .await;
    assert!(status.message().contains(&alice), "{status}");
    // Without `hostnqn` the NvmeHosts remain the only admitted hosts.
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
    // While the subsystem has no controller, its only host may drop its TLS key.
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
    // Without a TLS key all NQNs are accepted, with one only NQNs that fit into the identity of the key.
    let upper = format!("{uuid}1B4E28BA-2FA1-11D2-883F-B9A761BDE3FB");
    let ctrlr = dhchap_key(2);
    let named = [("long", &longest), ("upper", &upper)];
    let keyed = named.map(|(id, hostnqn)| (id, host(hostnqn, "", &dhchap, &ctrlr)));
    let clear = Export::new(&target, "clear", &keyed).await;
    let room = 245 - nqn_of("secure").len();
    let fits = format!("{}{}", nqn_of(""), "x".repeat(room - nqn_of("").len()));
    let named_tls = [("fits", &fits), ("upper", &upper)];
    let keyed = named_tls.map(|(id, hostnqn)| (id, host(hostnqn, &psk, &dhchap, &ctrlr)));
    let secure = Export::new(&target, "secure", &keyed).await;
    for (_, hostnqn) in named {
        let [key, ctrlr] = [("key-of-long", &dhchap), ("key-of-ctrlr", &ctrlr)]
            .map(|(name, key)| key_file(&target, name, key));
        let host = clear.host(hostnqn).with_dhchap(&key);
        let host = host.with_dhchap_ctrlr(&ctrlr);
        reads(&target, &host).await.expect(hostnqn);
    }
    let keys = [psk.clone(), dhchap, ctrlr];
    for (_, hostnqn) in named_tls {
        let host = with(&target, &secure.host(hostnqn), "keyed", &keys);
        reads(&target, &host).await.expect(hostnqn);
    }
    let longer = format!("{fits}x");
    let refused = hosts
        .refused(
            &secure.subsystem,
            "bad",
            host(&longer, &psk, "", ""),
            Code::InvalidArgument,
        )
        .await;
    assert!(
        refused.message().contains("246 bytes together"),
        "{refused}"
    );
    let name = format!("{}/nvmeHosts/fits", secure.subsystem);
    let mask = Some(["hostnqn"].as_slice());
    let refused = hosts
        .update_refused(&name, plain(&longer), mask, Code::InvalidArgument)
        .await;
    assert!(refused.message().contains("room for 245"), "{refused}");
    let spec =
        json!({ "spec": { "nqn": nqn_of("other"), "hostnqn": longest, "psk": base64(&psk) } });
    let refused = Resource::new(&client, "NvmeSubsystem")
        .refused("", "other", spec, Code::InvalidArgument)
        .await;
    expect_invalid(&refused, "nvme_subsystem.spec.psk");
    target.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_an_nqn_as_seen_in_the_field_is_served_where_any_host_is_or_refused() {
    let target = Target::start().await;
    let export = Export::new(&target, "any", &[]).await;
    let uuid = "nqn.2014-08.org.nvmexpress:uuid:";
    let longest = format!("{}{}", nqn_of(""), "x".repeat(223 - nqn_of("").len()));
    let named = |hostnqn: &str| export.raw_host(hostnqn);
    for hostnqn in [
        longest.as_str(),
        "nqn.2022-09.io.spdk",
        &format!("{uuid}1B4E28BA-2FA1-11D2-883F-B9A761BDE3FB"),
        &format!("{uuid}1b4e28ba2fa111d2883fb9a761bde3fb"),
    ] {
        let identity = named(hostnqn);
        let admin = identity.admin(Digests::OFF);
        let mut io = identity.io(&admin, 1);
        io.read(1, 0, 1).expect(hostnqn);
        assert_eq!(export.connected(hostnqn).await.len(), 1, "{hostnqn}");
        let request = json!({ "name": export.subsystem, "host_nqn": hostnqn });
        export.client.ok("DisconnectHost", request).await;
        io.closed_within(SOON).expect(hostnqn);
    }
    let identity = named(&format!("{longest}x"));
    let mut host = identity.negotiated(Digests::OFF);
    let refused = host.connect(&identity, 0, 0xffff).expect_err("224 bytes");
    assert!(refused.to_string().contains("0x182"), "{refused}");
    target.stop();
}
