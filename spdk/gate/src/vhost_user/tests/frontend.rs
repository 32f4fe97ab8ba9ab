use proptest::prelude::*;
use std::vec::Vec;

use crate::vhost_user::frontend::{Action, Frontend, Offer};
use crate::vhost_user::inflight::Area;
use crate::vhost_user::memory::Table;
use crate::vhost_user::message::Message;
use crate::vhost_user::ring::Addresses;
use crate::vhost_user::{feature, protocol};

const OFFER: Offer = Offer {
    features: feature::CORE,
    protocol: protocol::CORE,
    rings: 4,
    told: 3,
};

const PLACE: Addresses = Addresses {
    flags: 0,
    descriptors: 0x1000,
    used: 0x2000,
    available: 0x3000,
    log: 0,
};

fn apply(frontend: &mut Frontend, message: Message) -> Action {
    frontend.apply(&message).expect("allowed")
}

/// A client whose ring 0 is running.
fn running() -> Frontend {
    let mut frontend = Frontend::new(OFFER);
    for message in [
        Message::SetFeatures(feature::PROTOCOL),
        Message::SetMemTable(Table::default()),
        Message::SetRingSize { ring: 0, size: 64 },
        Message::SetRingBase { ring: 0, base: 7 },
        Message::SetRingAddresses {
            ring: 0,
            addresses: PLACE,
        },
        Message::SetKick { ring: 0 },
        Message::SetRingEnable {
            ring: 0,
            enable: true,
        },
    ] {
        assert_eq!(frontend.startable().next(), None, "before {message:?}");
        apply(&mut frontend, message);
    }
    assert_eq!(frontend.startable().collect::<Vec<_>>(), [0]);
    frontend.started(0);
    assert_eq!(frontend.startable().next(), None);
    assert_eq!(frontend.running().collect::<Vec<_>>(), [0]);
    frontend
}

#[test]
fn a_ring_starts_once_it_has_all_and_stops_with_its_base() {
    let mut frontend = running();
    let stop = apply(&mut frontend, Message::GetRingBase { ring: 0 });
    assert_eq!(stop, Action::StopRing { ring: 0 });
    frontend.stopped(0, 99);
    assert_eq!(frontend.ring(0).base, 99);
    assert_eq!(frontend.startable().next(), None, "it was not kicked again");
    apply(&mut frontend, Message::SetKick { ring: 0 });
    assert_eq!(frontend.startable().collect::<Vec<_>>(), [0]);
}

#[test]
fn without_protocol_features_a_ring_needs_no_enabling() {
    let mut frontend = Frontend::new(OFFER);
    for message in [
        Message::SetMemTable(Table::default()),
        Message::SetRingSize { ring: 1, size: 2 },
        Message::SetRingAddresses {
            ring: 1,
            addresses: PLACE,
        },
        Message::SetKick { ring: 1 },
    ] {
        apply(&mut frontend, message);
    }
    assert_eq!(frontend.startable().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_ring_that_runs_keeps_its_size_base_and_place() {
    let mut frontend = running();
    let moved = Addresses {
        used: 0x4000,
        ..PLACE
    };
    for message in [
        Message::SetRingSize { ring: 0, size: 32 },
        Message::SetRingBase { ring: 0, base: 0 },
        Message::SetRingAddresses {
            ring: 0,
            addresses: moved,
        },
        Message::SetFeatures(feature::PROTOCOL | feature::INDIRECT),
        Message::SetInflight(Area {
            size: 64,
            offset: 0,
            queues: 1,
            entries: 1,
        }),
    ] {
        assert!(frontend.apply(&message).is_err(), "{message:?}");
    }
    let logged = Addresses {
        flags: 1,
        log: 0x9000,
        ..PLACE
    };
    for (message, expected) in [
        (
            Message::SetFeatures(feature::PROTOCOL | feature::LOG_ALL),
            Action::Relog,
        ),
        (Message::SetCall { ring: 0 }, Action::Call { ring: 0 }),
        (Message::SetKick { ring: 0 }, Action::Kick),
        (Message::SetMemTable(Table::default()), Action::MapMemory),
        (Message::ResetOwner, Action::StopAll),
    ] {
        assert_eq!(apply(&mut frontend, message), expected);
    }
    let mut frontend = running();
    let relog = Message::SetRingAddresses {
        ring: 0,
        addresses: logged,
    };
    assert_eq!(apply(&mut frontend, relog), Action::Relog);
    assert_eq!(frontend.ring(0).addresses, Some(logged));
}

#[test]
fn what_is_not_offered_is_refused() {
    let mut frontend = Frontend::new(Offer {
        protocol: 0,
        ..OFFER
    });
    let area = Area {
        size: 64,
        offset: 0,
        queues: 1,
        entries: 1,
    };
    for message in [
        Message::SetFeatures(1 << 40),
        Message::SetProtocolFeatures(1),
        Message::SetLogBase { size: 1, offset: 0 },
        Message::SetBackendChannel,
        Message::GetInflight(area),
        Message::SetInflight(area),
        Message::SetKick { ring: 4 },
        Message::GetRingBase { ring: 127 },
        Message::SetRingSize { ring: 0, size: 3 },
        Message::SetRingBase {
            ring: 0,
            base: 65_536,
        },
    ] {
        assert!(frontend.apply(&message).is_err(), "{message:?}");
    }
    assert_eq!(apply(&mut frontend, Message::GetQueueNum), Action::Reply(3));
    let offered = apply(&mut frontend, Message::GetFeatures);
    assert_eq!(offered, Action::Reply(feature::CORE));
}

#[test]
fn rings_have_a_limit_in_all() {
    let mut frontend = Frontend::new(Offer {
        rings: 128,
        ..OFFER
    });
    for ring in 0..32 {
        apply(&mut frontend, Message::SetRingSize { ring, size: 1024 });
    }
    let more = Message::SetRingSize { ring: 32, size: 1 };
    assert!(frontend.apply(&more).is_err());
    apply(&mut frontend, Message::SetRingSize { ring: 0, size: 512 });
    apply(&mut frontend, more);
}

/// Any message about six ring numbers, valid or not.
fn any_message() -> impl Strategy<Value = Message> {
    let ring = 0..6_usize;
    (0..16_u32, ring, any::<u64>(), 0..70_000_u32).prop_map(|(kind, ring, number, value)| {
        let addresses = Addresses {
            descriptors: number % 3,
            ..PLACE
        };
        let enable = number.is_multiple_of(2);
        match kind {
            0 => Message::SetFeatures(number & feature::CORE),
            1 => Message::SetProtocolFeatures(number & protocol::CORE),
            2 | 3 => Message::SetMemTable(Table::default()),
            4 => Message::SetRingSize {
                ring,
                size: 1 << (value % 12),
            },
            5 => Message::SetRingBase { ring, base: value },
            6 | 7 => Message::SetRingAddresses { ring, addresses },
            8 => Message::GetRingBase { ring },
            9 | 10 => Message::SetKick { ring },
            11 => Message::SetCall { ring },
            12 | 13 => Message::SetRingEnable { ring, enable },
            14 => Message::ResetOwner,
            _ => Message::GetFeatures,
        }
    })
}

proptest! {
    /// Invariant for any sequence of messages: a running ring has a size, addresses and memory, and keeps them.
    #[test]
    fn whatever_comes_rings_that_run_stay_as_they_are(
        messages in prop::collection::vec(any_message(), 0..60),
    ) {
        let mut frontend = Frontend::new(OFFER);
        for message in messages {
            let before: Vec<_> = frontend.running().map(|ring| (ring, frontend.ring(ring))).collect();
            let Ok(action) = frontend.apply(&message) else { return Ok(()) };
            for (ring, setup) in before {
                let now = frontend.ring(ring);
                prop_assert_eq!((now.size, now.base), (setup.size, setup.base));
                let same = now.addresses.zip(setup.addresses);
                prop_assert!(same.is_some_and(|(now, then)| now.same_places(&then)));
            }
            match action {
                Action::StopRing { ring } => frontend.stopped(ring, 1),
                Action::StopAll => {
                    let all: Vec<_> = frontend.running().collect();
                    all.into_iter().for_each(|ring| frontend.stopped(ring, 1));
                }
                _ => {}
            }
            let ready: Vec<_> = frontend.startable().collect();
            for ring in ready {
                let setup = frontend.ring(ring);
                prop_assert!(ring < 4 && setup.size > 0 && setup.addresses.is_some());
                frontend.started(ring);
            }
        }
    }
}
