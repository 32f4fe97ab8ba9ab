//! Reservations of the type "all registrants", across SIGKILL, and across export and import of the
//! state.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use super::*;

/// RTYPE of Acquire: Exclusive Access - All Registrants.
const ALL: u32 = 6 << 8;

/// RREGA of Register: unregister.
const UNREGISTER: u32 = 1;

const OTHER_KEY: u64 = 0x99aa_bbcc_ddee_ff00;

/// Asserts that both hosts can write, and a third cannot.
fn is_shared(disk: &Disk) {
    for identity in [&disk.holder, &disk.other] {
        let (_admin, mut host) = connected(identity);
        let written = host.write(1, 0, &[3; 512]).expect("an answer");
        assert_eq!(written.status(), 0, "{identity:?}");
        assert_eq!(report(&mut host), (6, 2, 1));
    }
    let (_admin, mut third) = connected(&disk.other.clone().named("third"));
    let refused = third.write(1, 0, &[1; 512]).expect("an answer");
    assert_eq!(refused.status(), CONFLICT);
}

/// Registers both hosts and acquires the reservation.
fn share(disk: &Disk) {
    let (_admins, mut holder) = connected(&disk.holder);
    let (_admin, mut other) = connected(&disk.other);
    assert_eq!(command(&mut holder, REGISTER, PERSIST, [0, KEY]), 0);
    assert_eq!(command(&mut other, REGISTER, PERSIST, [0, OTHER_KEY]), 0);
    assert_eq!(command(&mut holder, ACQUIRE, ALL, [KEY, 0]), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_all_registrants_reservation_survives_a_kill_and_its_first_holder() {
    let options = Options::default();
    let target = Target::start_with(options.clone()).await;
    let disk = Disk::new(&target).await;
    share(&disk);
    let options = killed(target, options);

    let target = Target::start_with(options.clone()).await;
    is_shared(&disk);
    let (admin, mut holder) = connected(&disk.holder);
    assert_eq!(command(&mut holder, REGISTER, UNREGISTER, [KEY, 0]), 0);
    let refused = holder.write(1, 0, &[1; 512]).expect("an answer");
    assert_eq!(refused.status(), CONFLICT);
    let options = killed(target, options);
    drop((admin, holder));

    let target = Target::start_with(options.clone()).await;
    let (admin, mut other) = connected(&disk.other);
    let written = other.write(1, 0, &[4; 512]).expect("an answer");
    assert_eq!(
        written.status(),
        0,
        "the remaining registrant holds the reservation"
    );
    assert_eq!(report(&mut other), (6, 1, 1));
    assert_eq!(command(&mut other, RELEASE, ALL, [OTHER_KEY, 0]), 0);
    let options = killed(target, options);
    drop((admin, other));

    let target = Target::start_with(options).await;
    let (_admin, mut third) = connected(&disk.other.clone().named("third"));
    let written = third.write(1, 0, &[5; 512]).expect("an answer");
    assert_eq!(written.status(), 0, "the reservation is released");
    target.stop();
}

fn state(verb: &str, dir: &Path, args: &[&Path]) -> Output {
    let mut program = Command::new(env!("CARGO_BIN_EXE_opi-spdk"));
    program.args(["state", verb, "--state-dir"]).arg(dir);
    if verb == "export" {
        program.args(["--with-secrets", "--output"]);
    }
    let output = program.args(args).output().expect("the program starts");
    assert!(output.status.success(), "{output:?}");
    output
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reservation_is_exported_and_imported_with_the_state() {
    let options = Options::default();
    let target = Target::start_with(options.clone()).await;
    let disk = Disk::new(&target).await;
    share(&disk);
    let dir = target.scratch().join("state");
    let options = killed(target, options);
    let new = tempfile::Builder::new().prefix("opi-").tempdir();
    let new = Arc::new(new.expect("a directory"));
    let (export, imported) = (new.path().join("export.json"), new.path().join("state"));
    state("export", &dir, &[&export]);
    std::fs::create_dir(&imported).expect("a directory");
    state("import", &imported, &[&export]);

    let target = Target::start_with(options.in_dir(new)).await;
    is_shared(&disk);
    target.stop();
}
