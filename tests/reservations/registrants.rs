//! The places of a namespace's registrants, which all hosts share.

use super::*;

/// RREGA of Register: unregister, and replace.
const UNREGISTER: u32 = 1;
const REPLACE: u32 = 2;

/// Feature: Reservation Persistence.
const PERSISTENCE: u32 = 0x83;

/// Statuses: Internal Error, as where all places are taken; Invalid Field.
const NO_PLACE: u16 = 0x06;
const INVALID_FIELD: u16 = 0x02;

/// `SPDK_NVMF_MAX_NUM_REGISTRANTS`.
const PLACES: u8 = 16;

/// `OPI_REGISTRANTS_PER_HOST`.
const OF_ONE_HOST: u8 = 4;

/// Returns the host with another host ID.
fn with_id(identity: &Identity, id: u8) -> Identity {
    Identity {
        hostid: [id; 16],
        ..identity.clone()
    }
}

/// Connects with a host ID and registers; returns the status, and the connections.
fn registers(identity: &Identity, id: u8) -> (u16, (Host, Host)) {
    let (admin, mut io) = connected(&with_id(identity, id));
    let status = command(&mut io, REGISTER, PERSIST, [0, u64::from(id)]);
    (status, (admin, io))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_with_many_ids_leaves_places_to_others() {
    let target = Target::start().await;
    let disk = Disk::new(&target).await;
    let attempts: Vec<_> = (1..=PLACES).map(|id| registers(&disk.holder, id)).collect();
    let done: Vec<_> = attempts.iter().map(|(status, _)| *status).collect();
    let (taken, refused) = done.split_at(usize::from(OF_ONE_HOST));
    assert!(taken.iter().all(|status| *status == 0), "{done:?}");
    assert!(refused.iter().all(|status| *status == NO_PLACE), "{done:?}");
    let (status, mut other) = registers(&disk.other, 0x77);
    assert_eq!(status, 0, "another host registers");
    assert_eq!(report(&mut other.1).1, u16::from(OF_ONE_HOST) + 1);
    drop(attempts);

    // An ID that is given up makes room for another one.
    let (_admin, mut first) = connected(&with_id(&disk.holder, 1));
    assert_eq!(command(&mut first, REGISTER, UNREGISTER, [1, 0]), 0);
    assert_eq!(registers(&disk.holder, 0x66).0, 0);
    target.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_of_the_list_keeps_its_place() {
    /// Hosts beside the one of many IDs: with its first one, all places but one.
    const OTHERS: u8 = 14;
    let named = |name: &str| Identity::new(0, "").named(name).hostnqn;
    let others: Vec<_> = (0..OTHERS).map(|n| format!("other-{n}")).collect();
    let admitted: Vec<_> = others.iter().map(|name| named(name)).collect();
    let target = Target::start().await;
    let disk = Disk::admitting(&target, &[admitted, vec![named("holder")]].concat()).await;
    let statuses: Vec<_> = (1..=3).map(|id| registers(&disk.holder, id).0).collect();
    assert_eq!(statuses, [0, 0, NO_PLACE]);
    for (name, id) in others.iter().zip(0x80..) {
        let other = disk.other.clone().named(name);
        assert_eq!(registers(&other, id).0, 0, "{name}");
    }
    target.stop();
}

/// Sends Set Features for Reservation Persistence (PTPL cleared); returns the status.
fn clear_persistence(admin: &mut Host, nsid: u32) -> u16 {
    let set = Command::new(0x09, admin.cid()).nsid(nsid);
    let answer = admin.call(set.cdw(10, PERSISTENCE), &[]);
    answer.expect("an answer").status()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_registrant_does_not_end_the_persistence_of_those_who_are() {
    let options = Options::default();
    let target = Target::start_with(options.clone()).await;
    let (disk, admin, mut holder) = reserved(&target).await;

    let (mut other_admin, mut other) = connected(&disk.other);
    assert_eq!(clear_persistence(&mut other_admin, 1), CONFLICT);
    assert_eq!(report(&mut holder), (2, 1, 1));
    clear_persistence(&mut other_admin, u32::MAX);
    assert_eq!(report(&mut holder), (2, 1, 1));
    // Registers that are refused: no registrant to replace, no key.
    let refused = command(&mut other, REGISTER, FORGET | REPLACE, [KEY, KEY]);
    assert_eq!(refused, CONFLICT);
    assert_eq!(command(&mut other, REGISTER, FORGET, [0, 0]), INVALID_FIELD);
    assert_eq!(report(&mut holder), (2, 1, 1));
    let options = killed(target, options);
    drop((admin, holder, other_admin, other));

    let target = Target::start_with(options).await;
    is_held(&disk);
    let (mut admin, mut holder) = connected(&disk.holder);
    clear_persistence(&mut admin, 1);
    assert_eq!(report(&mut holder), (2, 1, 0), "a registrant may");
    target.stop();
}
