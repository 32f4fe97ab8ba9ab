//! Attacks by whoever can open the socket.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::common::vfio_user::{Header, Link, command};
use crate::lab::{Lab, PATIENCE};
use crate::{Test, client, tests};

pub const TESTS: [Test; 7] = tests! { client:
    a_client_that_says_nothing_or_half_a_message_stops_nobody
    unread_replies_end_the_session
    malformed_messages_end_the_session
    messages_that_lack_something_or_have_too_much_are_refused
    an_interrupt_descriptor_that_blocks_stops_nobody
    an_interrupt_descriptor_is_replaced_in_its_place
    writes_to_the_configuration_space_stay_inside_their_register
};

fn a_client_that_says_nothing_or_half_a_message_stops_nobody(lab: &mut Lab) {
    let version = Header::new(command::VERSION, 100).bytes();
    let read = Header::new(command::REGION_READ, 16).bytes();
    let halves: [(bool, &[u8]); 4] = [
        (false, &[]),
        (false, &version),
        (true, &read[..1]),
        (true, &[&read[..], &[0; 15]].concat()),
    ];
    for (introduced, half) in halves {
        let mut link = if introduced {
            lab.link()
        } else {
            Link::open(&lab.socket).expect("the device listens")
        };
        link.send_raw(half, &[])
            .expect("the message fits the socket buffer");
        lab.check_neighbour();
        // The idle connection is closed after a timeout, and the device accepts the next client.
        assert!(link.is_closed_within(PATIENCE), "{half:?}");
    }
}

fn unread_replies_end_the_session(lab: &mut Lab) {
    let mut link = lab.link();
    let mut read = Header::new(command::REGION_READ, 16).bytes();
    read.extend([0; 8]);
    read.extend(7_u32.to_le_bytes());
    read.extend(4096_u32.to_le_bytes());
    let end = Instant::now() + PATIENCE;
    // Send until the socket is closed: each request of 32 bytes causes a reply of 4 KiB.
    while link.send_raw(&read, &[]).is_ok() {
        assert!(Instant::now() < end, "the session was not closed");
    }
    lab.check_neighbour();
}

fn malformed_messages_end_the_session(lab: &mut Lab) {
    let sizes = [0, 15, (1 << 20) + 33, u32::MAX];
    for introduced in [false, true] {
        for size in sizes {
            let mut link = if introduced {
                lab.link()
            } else {
                Link::open(&lab.socket).expect("the device listens")
            };
            let header = Header {
                size,
                ..Header::new(command::VERSION, 0)
            };
            link.send_raw(&header.bytes(), &[])
                .expect("the message fits the socket buffer");
            assert!(link.is_closed_within(PATIENCE), "size {size}");
        }
    }
    // File descriptors of an incomplete message are closed with the session.
    let before = lab.descriptors();
    let bell = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let many = vec![bell.as_fd(); 250];
    let mut link = lab.link();
    let read = Header::new(command::REGION_READ, 16).bytes();
    link.send_raw(&read, &many)
        .expect("the message fits the socket buffer");
    assert!(link.is_closed_within(PATIENCE), "half a message");
    drop(lab.link());
    let after = lab.descriptors();
    assert!(
        after < before + 20,
        "{after} descriptors are open, {before} were"
    );
}

fn messages_that_lack_something_or_have_too_much_are_refused(lab: &mut Lab) {
    let mut link = lab.link();
    for command in [2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 17, 18] {
        for length in [1, 4, 7] {
            let reply = link.ask(command, &vec![2; length], &[]);
            let reply = reply.expect("the device replies");
            assert_ne!(reply.errno, 0, "command {command} with {length} bytes");
        }
    }
    // Commands that do not exist, and VERSION after the handshake.
    for command in [0, 1, 11, 12, 14, 15, 19, u16::MAX] {
        let reply = link
            .ask(command, &[0; 64], &[])
            .expect("the device replies");
        assert_ne!(reply.errno, 0, "command {command}");
    }
    let information: Vec<u8> = [16_u32, 0, 0, 0]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    link.ok(command::GET_INFO, &information, &[]);
    // GET_INFO with a file descriptor, which the command does not take.
    let bell = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let reply = link.ask(command::GET_INFO, &information, &[bell.as_fd()]);
    assert_ne!(reply.expect("the device replies").errno, 0, "a descriptor");
}

fn an_interrupt_descriptor_that_blocks_stops_nobody(lab: &mut Lab) {
    let mut guest = lab.guest();
    // Only eventfds are accepted.
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    assert_ne!(guest.link.set_irqs(2, 1, &[writer.as_fd()]), 0, "a pipe");

    let bell = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    assert_eq!(guest.link.set_irqs(2, 1, &[bell.as_fd()]), 0, "an eventfd");
    // Set the MSI-X Enable bit in the capability's Message Control.
    let capability = msix_capability(&mut guest.link);
    let control = [0, 0x80];
    let reply = guest.link.write_region(7, capability + 2, &control);
    assert_eq!(reply.expect("the device replies").errno, 0, "MSI-X");
    guest.verify(1);
    let mut count = [0; 8];
    assert_eq!(
        rustix::io::read(&bell, &mut count),
        Ok(8),
        "no interrupt arrived"
    );

    // Counter at its maximum, and O_NONBLOCK cleared: the client shares the open file description.
    rustix::io::write(&bell, &(u64::MAX - 1).to_ne_bytes()).expect("the counter takes its maximum");
    let flags = fcntl_getfl(&bell).expect("an eventfd");
    fcntl_setfl(&bell, flags.difference(OFlags::NONBLOCK)).expect("an eventfd");
    for seed in 2..6 {
        guest.verify(seed);
    }
    lab.check_neighbour();
}

/// Threads of other queues may be about to signal the descriptor: its number must not be reused for
/// another file.
fn an_interrupt_descriptor_is_replaced_in_its_place(lab: &mut Lab) {
    let mut guest = lab.guest();
    let bell = || eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    let rings = |bell: &OwnedFd| {
        let mut count = [0; 8];
        rustix::io::read(bell, &mut count) == Ok(8)
    };
    let first = bell();
    assert_eq!(guest.link.set_irqs(2, 1, &[first.as_fd()]), 0);
    let capability = msix_capability(&mut guest.link);
    let reply = guest.link.write_region(7, capability + 2, &[0, 0x80]);
    assert_eq!(reply.expect("the device replies").errno, 0, "MSI-X");
    guest.verify(1);
    assert!(rings(&first), "no interrupt arrived");

    let numbers = lab.eventfds();
    let second = bell();
    assert_eq!(guest.link.set_irqs(2, 1, &[second.as_fd()]), 0);
    assert_eq!(lab.eventfds(), numbers, "eventfds after the replacement");
    guest.verify(2);
    assert!(rings(&second), "no interrupt arrived at the second eventfd");

    // SET_IRQS with DATA_NONE and count 0 disables all interrupts of the index.
    let none = [20, 0x21, 2, 0, 0].map(u32::to_le_bytes).concat();
    guest.link.ok(command::SET_IRQS, &none, &[]);
    assert_eq!(lab.eventfds(), numbers, "eventfds after the removal");
    guest.verify(3);
    for bell in [&first, &second] {
        let flags = fcntl_getfl(bell).expect("an eventfd");
        fcntl_setfl(bell, flags | OFlags::NONBLOCK).expect("an eventfd");
        assert!(!rings(bell), "an interrupt arrived at a removed eventfd");
    }
}

fn writes_to_the_configuration_space_stay_inside_their_register(lab: &mut Lab) {
    let mut guest = lab.guest();
    let capability = msix_capability(&mut guest.link);
    // From each byte of the 12-byte capability: writes must not cross its end.
    for offset in 2..12 {
        for count in [1, 4, 12, 64] {
            let bytes = vec![0xff; count];
            let reply = guest.link.write_region(7, capability + offset, &bytes);
            let errno = reply.expect("the device replies").errno;
            let is_inside = offset + count as u64 <= 12;
            assert!(
                is_inside || errno != 0,
                "{count} bytes from byte {offset} on"
            );
        }
    }
    // Partial writes to registers.
    for offset in (0..64).chain([0xff0]) {
        let reply = guest.link.write_region(7, offset, &[0]);
        reply.expect("the device replies");
    }
    guest.verify(3);
    assert!(guest.identify().is_ok(), "the admin queue still works");
}

/// Returns the offset of the MSI-X capability in the configuration space.
fn msix_capability(link: &mut Link) -> u64 {
    let space = link
        .read_region(7, 0, 256)
        .expect("the device replies")
        .body;
    let byte = |at: u64| space[16 + usize::try_from(at).expect("below 256")];
    let mut at = u64::from(byte(0x34));
    while at != 0 {
        if byte(at) == 0x11 {
            return at;
        }
        at = u64::from(byte(at + 1));
    }
    panic!("no MSI-X capability")
}
