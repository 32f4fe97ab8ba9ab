//! The weakest hash and DH group that a host may use (`--dhchap-min-hash`, `--dhchap-min-group`).

use super::exchange::receives;
use super::refusals::{fields, told};
use super::{ALICE, Export, host, key_file, reads};
use crate::common::nvme_tcp::{Digests, Host, Identity, Sgl};
use crate::common::{Options, Target, dhchap_key};

/// Numbers of hashes and groups (NVMe Base Specification 2.1, 8.3.5.5).
const SHA256: u8 = 1;
const SHA384: u8 = 2;
const SHA512: u8 = 3;
const NO_GROUP: u8 = 0;
const FFDHE2048: u8 = 1;
const FFDHE3072: u8 = 2;

/// Offers these hashes and groups; returns the target's message.
fn offers(alice: &Identity, hashes: &[u8], groups: &[u8]) -> (Host, Vec<u8>) {
    let mut host = alice.negotiated(Digests::OFF);
    host.connect(alice, 0, 0xffff).expect("it may try");
    let mut message = [0; 72];
    (message[4], message[7], message[8]) = (1, 1, 1);
    let count = |list: &[u8]| u8::try_from(list.len()).expect("few");
    (message[10], message[11]) = (count(hashes), count(groups));
    message[12..12 + hashes.len()].copy_from_slice(hashes);
    message[42..42 + groups.len()].copy_from_slice(groups);
    let cid = host.cid();
    let send = fields(5, cid, 72).sgl(Sgl::InCapsule(72));
    assert_eq!(host.call(send, &message).expect("an answer").status(), 0);
    let answer = receives(&mut host);
    (host, answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weaker_hash_or_group_than_the_weakest_is_refused_however_the_offer_was_narrowed() {
    let args = ["--log-format", "json", "--dhchap-min-hash", "sha384"];
    let options = Options::default().args(args);
    let options = options.args(["--dhchap-min-group", "ffdhe2048"]);
    let target = Target::start_with(options).await;
    let key = dhchap_key(1);
    let export = Export::new(&target, "s", &[("alice", host(ALICE, "", &key, ""))]).await;
    let alice = export.raw_host(ALICE);
    // AUTH_Failure1, "authentication failed", and why: 4 is the hash, 5 the group.
    for (hashes, groups, why) in [
        (&[SHA256] as &[u8], &[FFDHE2048, FFDHE3072] as &[u8], 4),
        (&[SHA384, SHA512], &[NO_GROUP], 5),
        (&[SHA256], &[NO_GROUP], 4),
    ] {
        let (_host, failure) = offers(&alice, hashes, groups);
        assert_eq!(
            failure[..2],
            [0, 0xf1],
            "{hashes:?} {groups:?}: {failure:?}"
        );
        assert_eq!(failure[6..8], [1, why], "{hashes:?} {groups:?}");
        told(&target, "dhchap", ALICE, "127.0.0.1").await;
    }
    for (hashes, groups, chosen) in [
        (
            &[SHA256, SHA384] as &[u8],
            &[NO_GROUP, FFDHE2048] as &[u8],
            [SHA384, FFDHE2048],
        ),
        (&[SHA512], &[FFDHE3072], [SHA512, FFDHE3072]),
    ] {
        let (_host, challenge) = offers(&alice, hashes, groups);
        assert_eq!(challenge[..2], [1, 1], "a challenge: {challenge:?}");
        assert_eq!(challenge[8..10], chosen);
    }
    let key = key_file(&target, "key", &key);
    let proved = export.host(ALICE).with_dhchap(&key);
    reads(&target, &proved)
        .await
        .expect("SPDK's initiator offers all");
    target.stop();
}
