//! How many queues one host may have.

use std::time::Duration;

use crate::common::eventually;
use crate::common::nvme_tcp::{Digests, Host, Identity};
use crate::world::World;

/// More controllers than the target has memory for: 164 queues fit in 512 MiB.
const TOO_MANY: usize = 300;

/// `HOST_QUEUES_FREE`: a host has these queues whatever they leave.
const FREE: usize = 65;

/// Queues of each host that connects beside the one of many.
const OTHERS: u16 = 8;

/// Status of Connect: Controller Busy (SCT 1, SC 81h), without DNR.
const BUSY: &str = "status 0x181";

/// Deadline for a log line, and for the release of a host's memory.
const SOON: Duration = Duration::from_secs(5);

/// Connects admin queues, each with a controller of its own and no keep-alive timer, until one is refused.
fn as_many_as_possible(identity: &Identity) -> Vec<Host> {
    let mut admins = Vec::new();
    while admins.len() < TOO_MANY {
        let mut host = identity.negotiated(Digests::OFF);
        match host.connect(identity, 0, 0xffff) {
            Ok(()) => admins.push(host),
            Err(error) => {
                assert!(error.to_string().contains(BUSY), "{error}");
                return admins;
            }
        }
    }
    panic!("a host has {TOO_MANY} controllers");
}

/// Connects a host with some I/O queues, and reads on each.
fn connects(identity: &Identity) -> (Host, Vec<Host>) {
    let admin = identity.admin(Digests::OFF);
    let mut queues: Vec<_> = (1..=OTHERS).map(|qid| identity.io(&admin, qid)).collect();
    for io in &mut queues {
        assert_eq!(io.read(1, 0, 1).expect("data").len(), 512);
    }
    (admin, queues)
}

#[tokio::test]
async fn a_host_of_many_controllers_leaves_queues_to_others() {
    let mut world = World::new().await;
    let admins = as_many_as_possible(&world.identity);
    println!("one host has {} controllers", admins.len());
    assert!(admins.len() > FREE, "{} controllers", admins.len());

    let neighbours = ["one", "another"].map(|name| connects(&world.identity.clone().named(name)));
    world.bystander.verify();
    eventually("the refusal is logged", SOON, async || {
        let log = world.target.log();
        let mut lines = log.lines().filter(|line| line.contains("host refused"));
        lines
            .any(|line| line.contains("too_many_queues") && line.contains(&world.identity.hostnqn))
            .then_some(())
    })
    .await;

    // What the host gives back it can have again.
    drop((admins, neighbours));
    eventually("the host connects again", SOON, async || {
        let mut host = world.identity.negotiated(Digests::OFF);
        host.connect(&world.identity, 0, 0xffff).ok()
    })
    .await;
    world.unharmed("a host of many controllers").await;
}

#[tokio::test]
async fn io_queues_count_as_controllers_do() {
    let mut world = World::new().await;
    let identity = &world.identity;
    let (mut admins, mut queues) = (Vec::new(), Vec::new());
    let refused = 'full: loop {
        let mut admin = identity.negotiated(Digests::OFF);
        if let Err(error) = admin.connect(identity, 0, 0xffff) {
            break error;
        }
        admin.enable().expect("the controller becomes ready");
        for qid in 1..=OTHERS {
            let mut io = identity.negotiated(Digests::OFF);
            if let Err(error) = io.connect(identity, qid, admin.cntlid) {
                break 'full error;
            }
            queues.push(io);
        }
        admins.push(admin);
        assert!(queues.len() < TOO_MANY, "{} I/O queues", queues.len());
    };
    assert!(refused.to_string().contains(BUSY), "{refused}");
    assert!(queues.len() + admins.len() >= FREE);
    let neighbour = connects(&identity.clone().named("neighbour"));
    drop((admins, queues, neighbour));
    world.unharmed("a host of many I/O queues").await;
}
