//! Attacks with vhost-user messages and their file descriptors.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::write;
use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::json;

use crate::common::{Random, Resource};
use crate::lab::{Lab, patiently};
use crate::vhost_user::{Connection, Disk, Kind, Message, Session, flag, request};

/// An incomplete message that is never continued.
pub fn a_header_without_its_payload_delays_no_other_client(
    lab: &mut Lab,
    kind: Kind,
) -> Connection {
    let victim = lab.victim(kind);
    // A device has one client: a new one is refused until the target has noticed that the last has gone.
    let sent = |bytes: &[u8]| {
        patiently(|| {
            let mut connection = Connection::open(&victim)?;
            connection.send_bytes(bytes, &[]).map(|()| connection)
        })
    };
    for bytes in [1, 11] {
        let whole = Message::new(request::GET_FEATURES).encode();
        let _held = sent(&whole[..bytes]);
        lab.undisturbed("while a header is incomplete");
    }
    sent(&Message::new(request::SET_FEATURES).declared(8).encode())
}

pub fn unexpected_file_descriptors_are_closed(lab: &mut Lab, kind: Kind) -> Option<Session> {
    const EACH: usize = 8;
    let mut held = None;
    let file = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
    for number in 1..=45 {
        drop(held.take());
        let mut session = lab.negotiated(kind, &kind.options());
        for fds in [EACH, 60] {
            let mut message = Message::new(number).u64s([0; 5]);
            for _ in 0..fds {
                message = message.fd(&file);
            }
            let _ = session.connection.send(&message);
        }
        held = Some(session);
    }
    held
}

pub fn a_blocking_call_eventfd_blocks_no_other_client(lab: &mut Lab, kind: Kind) -> Option<Disk> {
    let mut held = None;
    // An eventfd at its maximum: another write blocks until someone reads.
    let event = eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd");
    write(&event, &(u64::MAX - 1).to_ne_bytes()).expect("the counter takes its maximum");
    // A full pipe.
    let (reader, pipe) = pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
    while write(&pipe, &[0; 4096]).is_ok() {}
    while write(&pipe, &[0]).is_ok() {}
    fcntl_setfl(&pipe, OFlags::empty()).expect("its flags can be changed");
    for call in [event.as_fd(), pipe.as_fd()] {
        drop(held.take());
        let mut disk = lab.disk(kind);
        disk.read(0, 512).expect("the disk is served");
        for queue in 0..disk.session.queues.len() {
            let message = Message::new(request::SET_VRING_CALL)
                .u64s([queue as u64])
                .fd(call);
            let _ = disk.session.status(&message);
        }
        for _ in 0..4 {
            disk.begin_read(0, 512);
        }
        lab.undisturbed("while a call blocks");
        held = Some(disk);
    }
    drop(reader);
    held
}

pub fn a_full_backend_channel_blocks_no_other_client(
    lab: &mut Lab,
    kind: Kind,
) -> (Disk, UnixStream) {
    let socket = lab.socket("grows");
    let mut disk = Disk::open(kind, &socket).expect("the disk is served");
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    theirs.set_nonblocking(true).expect("a socket");
    while write(&theirs, &[0; 4096]).is_ok() {}
    while write(&theirs, &[0]).is_ok() {}
    theirs.set_nonblocking(false).expect("a socket");
    let channel = Message::new(request::SET_BACKEND_REQ_FD).fd(&theirs);
    let _ = disk.session.status(&channel);
    let nulls = Resource::new(&lab.client, "NullVolume");
    lab.wait(async {
        for blocks in [32768, 65536] {
            nulls
                .updated("volumes/grows", json!({ "blocks_count": blocks }), None)
                .await;
        }
    });
    (disk, ours)
}

pub fn a_thousand_connections_leave_other_devices_usable(
    lab: &mut Lab,
    kind: Kind,
) -> Vec<UnixStream> {
    (0..1022)
        .map_while(|_| UnixStream::connect(lab.victim(kind)).ok())
        .collect()
}

pub fn invalid_sizes_flags_and_numbers_are_rejected(lab: &mut Lab, kind: Kind) {
    let event = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
    let mut messages = Vec::new();
    for number in [0, 46, 1000, u32::MAX] {
        messages.push(Message::new(number).u64s([0]));
    }
    for number in 1..=45 {
        // A declared size above the limit, and one above the largest message's.
        messages.push(Message::new(number).declared(u32::MAX));
        messages.push(Message::new(number).declared(513).bytes(&[0; 513]));
    }
    for flags in [0, 2, 3, flag::VERSION | flag::REPLY, u32::MAX] {
        let mut message = Message::new(request::GET_FEATURES);
        message.flags = flags;
        messages.push(message);
    }
    for ring in [3, 64, 255, 256, 1 << 16, u32::MAX] {
        for number in [
            request::SET_VRING_NUM,
            request::SET_VRING_BASE,
            request::SET_VRING_ENABLE,
        ] {
            messages.push(Message::new(number).u32s([ring, 1]));
        }
        for number in [
            request::SET_VRING_KICK,
            request::SET_VRING_CALL,
            request::SET_VRING_ERR,
        ] {
            messages.push(Message::new(number).u64s([ring.into()]).fd(&event));
        }
        messages.push(
            Message::new(request::SET_VRING_ADDR)
                .u32s([ring, 0])
                .u64s([0; 4]),
        );
        messages.push(Message::new(request::GET_VRING_BASE).u32s([ring, 0]));
    }
    for config in [[0, 257, 0], [256, 1, 0], [u32::MAX, 8, 0], [0, u32::MAX, 0]] {
        messages.push(
            Message::new(request::GET_CONFIG)
                .u32s(config)
                .bytes(&[0; 8]),
        );
        messages.push(
            Message::new(request::SET_CONFIG)
                .u32s(config)
                .bytes(&[0; 8]),
        );
    }
    let mut session = None::<Session>;
    for message in messages {
        let current = match session.take() {
            Some(session) => session,
            None => lab.negotiated(kind, &kind.options()),
        };
        let mut current = current;
        current.connection.set_limit(Duration::from_millis(300));
        // The message is rejected, ignored or ends the connection: probe whether the connection still
        // works.
        let _ = current.connection.send(&message);
        let still = current.connection.ask(&Message::new(request::GET_FEATURES));
        session = still.is_ok().then_some(current);
    }
}

pub fn random_messages_do_no_harm(lab: &mut Lab, kind: Kind) {
    let mut random = Random(0xfeed);
    for _ in 0..60 {
        let mut session = if random.one_in(2) {
            lab.disk(kind).session
        } else {
            lab.negotiated(kind, &kind.options())
        };
        let file = session.guest.regions[0]
            .file
            .try_clone()
            .expect("a file descriptor is left");
        for _ in 0..20 {
            let mut message = Message::new(1 + random.below(42) as u32);
            let right = match random.below(4) {
                0 => session.guest.table(),
                1 => session.queues[0].setup(&session.guest)[random.below(5)].clone(),
                _ => message.clone(),
            };
            if random.one_in(2) {
                message = right;
            } else {
                let words = random.below(9);
                for _ in 0..words {
                    let word = match random.below(4) {
                        0 => u64::MAX - random.below(4096) as u64,
                        1 => random.below(4) as u64,
                        _ => 1 << random.below(64),
                    };
                    message = message.u64s([word]);
                }
                for _ in 0..random.below(3) {
                    message = message.fd(&file);
                }
            }
            message.body = random.damage(message.body);
            if session.connection.send(&message).is_err() {
                break;
            }
        }
        for queue in &session.queues {
            queue.kick();
        }
    }
}
