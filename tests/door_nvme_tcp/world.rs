//! The fixture: a target, a bystander that must not be harmed, and an attacker.

use std::time::Duration;

use crate::common::nvme_tcp::{Answer, Bystander, Digests, Host, Identity, Pdu, kind};
use crate::common::{Fixture, Options, Target};

/// Timeout for the end of a connection that violated the protocol, with or without TermReq.
const ENDED: Duration = Duration::from_secs(3);

/// A target, its bystander, and a subsystem for the attacker.
pub struct World {
    /// The target under test.
    pub target: Target,
    /// A host whose I/O must continue.
    pub bystander: Bystander,
    /// The attacker's volume and subsystem.
    pub fixture: Fixture,
    /// The attacker, a host admitted to that subsystem.
    pub identity: Identity,
}

impl World {
    /// Starts the target and its hosts.
    pub async fn new() -> Self {
        Self::of(Target::start().await).await
    }

    /// As [`World::new`], with two reactors if the machine has two cores.
    pub async fn of_two_reactors() -> Self {
        let several = std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1);
        let mut options = Options::default();
        options.cores = several.then_some("0-1");
        Self::of(Target::start_with(options).await).await
    }

    async fn of(target: Target) -> Self {
        let bystander = Bystander::new(&target).await;
        let fixture = Fixture::tcp(&target, 4).await;
        let identity = Identity::new(fixture.port, &fixture.nqn);
        Self {
            target,
            bystander,
            fixture,
            identity,
        }
    }

    /// Connects and negotiates (ICReq), without Connect.
    pub fn stranger(&self, digests: Digests) -> Host {
        self.identity.negotiated(digests)
    }

    /// Connects an admin queue and an I/O queue of one controller.
    pub fn admitted(&self, digests: Digests) -> (Host, Host) {
        let admin = self.identity.admin(digests);
        let io = self.identity.io(&admin, 1);
        (admin, io)
    }

    /// Asserts that only the attacker was affected.
    pub async fn unharmed(&mut self, what: &str) {
        self.bystander.unharmed(&mut self.target, what).await;
    }
}

/// Sends PDUs in one write, and expects them to end the connection without any other answer.
pub fn ends(host: &mut Host, pdus: &[Pdu], what: &str) -> Option<Answer> {
    // The target may close before everything is written.
    let _ = host.send_all(pdus);
    terminated(host, what)
}

/// Expects a C2HTermReq or an immediate close; fails on a connection that neither answers nor ends.
pub fn terminated(host: &mut Host, what: &str) -> Option<Answer> {
    match host.receive_within(ENDED) {
        Ok(answer) => {
            assert_eq!(
                answer.kind,
                kind::C2H_TERM_REQ,
                "{what}: answered {answer:?}"
            );
            Some(answer)
        }
        Err(e) => {
            assert_ne!(
                e.kind(),
                std::io::ErrorKind::TimedOut,
                "{what}: no answer, no end"
            );
            None
        }
    }
}
