//! Tests with files and sockets, without a worker.

use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use spdk_gate::vhost_user::inflight::Area;
use spdk_gate::vhost_user::memory::Table;
use spdk_gate::vhost_user::message::Message;

use super::call::{Bell, Call};
use super::dirty::Dirty;
use super::inflight;
use super::journal::Journal;
use super::memory::{Map, Memory, View};
use super::room;
use super::socket::{Access, Connection, Listener, Read, send};
use crate::sigbus::Lost;

fn lost() -> (Bell, Arc<Lost>) {
    let bell = Bell::new().expect("an eventfd");
    let lost = Lost::new(&bell);
    (bell, lost)
}

/// An area that a client would keep, with its file.
fn area(queues: u16, entries: u16) -> (Area, OwnedFd) {
    let asked = Area {
        queues,
        entries,
        ..Area::default()
    };
    inflight::make(asked).expect("a memfd")
}

fn mapped(file: &OwnedFd, size: u64) -> Arc<Map> {
    let (_bell, lost) = lost();
    Arc::new(Map::new(file, 0, size, &lost, &room::of_a_client()).expect("it can be mapped"))
}

#[test]
fn what_was_in_flight_is_taken_again_in_its_order() {
    let (area, file) = area(2, 8);
    let map = mapped(&file, area.size);
    let first = Journal::new(&map, &area, 1, 8).expect("it has a region");
    assert!(first.recover(3).is_empty());
    for head in [5, 2, 7] {
        first.begin(head);
    }
    first.completing(2);
    first.completed(2, 4);

    // A restarted process maps the same file.
    let second = Journal::new(&mapped(&file, area.size), &area, 1, 8).expect("the same region");
    assert_eq!(second.recover(4), [5, 7]);
    second.begin(1);
    // The process died after the driver saw used index 5, of head 5, and before the journal recorded it.
    second.completing(5);
    let third = Journal::new(&mapped(&file, area.size), &area, 1, 8).expect("the same region");
    assert_eq!(third.recover(5), [7, 1]);
    // The other ring has a region of its own.
    let other = Journal::new(&map, &area, 0, 8).expect("it has a region");
    assert!(other.recover(0).is_empty());
    assert!(Journal::new(&map, &area, 2, 8).is_none());
    assert!(Journal::new(&map, &area, 0, 16).is_none());
}

#[test]
fn an_inflight_area_cannot_be_cut() {
    let (area, file) = area(128, 1024);
    assert_eq!(area.size, area.needed());
    let file = std::fs::File::from(file);
    assert!(file.set_len(1).is_err());
    assert!(file.set_len(area.size + 1).is_err());
}

#[test]
fn a_part_outside_its_file_or_of_no_file_is_refused() {
    let (bell, lost) = lost();
    let (area, file) = area(1, 16);
    for (offset, size) in [
        (0, area.size + 1),
        (area.size, 1),
        (u64::MAX, 1),
        (0, 0),
        (1 << 40, 4096),
    ] {
        assert!(
            Map::new(&file, offset, size, &lost, &room::of_a_client()).is_err(),
            "{offset} {size}"
        );
    }
    let (ours, _theirs) = UnixStream::pair().expect("sockets");
    assert!(
        Map::new(&ours.into(), 0, 1, &lost, &room::of_a_client()).is_err(),
        "a socket"
    );
    drop(bell);
}

#[test]
fn the_log_has_a_bit_for_each_page_and_nothing_behind_its_end() {
    let (area, file) = area(1, 16);
    let map = mapped(&file, area.size);
    let dirty = Dirty::new(map.clone());
    dirty.note(4096, 1);
    dirty.note(8 * 4096 - 1, 2);
    dirty.note(0, 0);
    dirty.note(u64::MAX, u64::MAX);
    dirty.note(area.size * 8 * 4096 - 1, 4097);
    let mut bytes = vec![0; map.size()];
    let file = std::fs::File::from(file);
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).expect("it can be read");
    assert_eq!(bytes[..2], [0b1000_0010, 0b1]);
    assert_eq!(*bytes.last().expect("a byte"), 0b1000_0000);
    assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 4);
}

#[test]
fn guest_addresses_are_found_back_from_ours() {
    let (_bell, lost) = lost();
    let (area, file) = area(4, 1024);
    let fields = [1_u64, 0x10_000, area.size, 0x7f00_0000, 0];
    let payload = fields.map(u64::to_le_bytes).concat();
    let table = Table::parse(&payload).expect("a table");
    let memory =
        Memory::new(&table, &[file], &lost, &room::of_a_client(), true).expect("it can be mapped");
    assert!(!memory.is_registered(), "these are ordinary pages");
    let host = memory.regions()[0].host;
    let view = View::new(Arc::new(memory));
    assert_eq!(view.to_guest(host + 5), Some(0x10_005));
    assert_eq!(view.to_guest(host.wrapping_sub(1)), None);
}

#[test]
fn a_call_fd_is_an_eventfd() {
    let (ours, _theirs) = UnixStream::pair().expect("sockets");
    assert!(Call::new(ours.into()).is_err());
    let (read, _write) = std::io::pipe().expect("a pipe");
    assert!(Call::new(read.into()).is_err());
}

/// A `SET_VRING_KICK` message, which comes with an fd.
fn kick() -> Vec<u8> {
    let words = [12_u32, 1, 8, 3, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn a_message_is_handed_on_whole_however_it_comes() {
    let (client, ours) = UnixStream::pair().expect("sockets");
    let mut connection = Connection::new(ours.into());
    assert!(matches!(connection.read(), Ok(Read::More)));
    assert!(connection.deadline().is_none());
    let fd: OwnedFd = std::io::pipe().expect("a pipe").0.into();
    let bytes = kick();
    send(client.as_raw_fd(), &bytes[..1], Some(&fd)).expect("sent");
    for byte in &bytes[1..] {
        assert!(matches!(connection.read(), Ok(Read::More)));
        assert!(connection.deadline().is_some());
        (&client).write_all(&[*byte]).expect("sent");
    }
    let Ok(Read::Whole(_, message, _, fds)) = connection.read() else {
        panic!("it is whole")
    };
    assert_eq!((*message, fds.len()), (Message::SetKick { ring: 3 }, 1));
    assert!(connection.deadline().is_none());
    // Two messages in one read stay two messages.
    send(client.as_raw_fd(), &bytes, Some(&fd)).expect("sent");
    send(client.as_raw_fd(), &bytes, Some(&fd)).expect("sent");
    for _ in 0..2 {
        assert!(matches!(connection.read(), Ok(Read::Whole(..))));
    }
    drop(client);
    assert!(matches!(connection.read(), Ok(Read::Gone)));
}

#[test]
fn fds_of_messages_that_are_refused_are_closed() {
    let (client, ours) = UnixStream::pair().expect("sockets");
    let mut connection = Connection::new(ours.into());
    let (read, write) = std::io::pipe().expect("a pipe");
    let write: OwnedFd = write.into();
    // GET_FEATURES takes no fd.
    let words = [1_u32, 1, 0];
    let bytes: Vec<_> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    send(client.as_raw_fd(), &bytes, Some(&write)).expect("sent");
    assert!(connection.read().is_err());
    drop(write);
    let mut rest = Vec::new();
    // Ends when the last copy of the other end is closed.
    std::io::Read::read_to_end(&mut { read }, &mut rest).expect("closed");
}

#[test]
fn a_socket_takes_the_place_of_one_that_was_left_and_of_nothing_else() {
    let dir = std::env::temp_dir().join(format!("opi-spdk-door-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let path = dir.join("socket");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "it was left");
    let access = Access {
        group: None,
        mode: Some(0o660),
    };
    let listener = Listener::bind(&path, access).expect("bound");
    let mode = std::os::unix::fs::MetadataExt::mode(&path.metadata().expect("it is there"));
    assert_eq!(mode & 0o777, 0o660);
    let refused = Listener::bind(&path, access)
        .err()
        .expect("somebody listens");
    assert_eq!(refused.errno.0, libc::EADDRNOTAVAIL);
    // The connection of the probe for a listener is accepted first.
    assert!(listener.accept().is_some() && listener.accept().is_none());
    let _client = UnixStream::connect(&path).expect("connected");
    assert!(listener.accept().is_some());
    drop(listener);
    assert!(!path.exists());
    std::fs::write(&path, "mine").expect("written");
    assert!(Listener::bind(&path, access).is_err());
    assert!(path.exists(), "a file that is no socket stays");
    std::fs::remove_dir_all(&dir).expect("removed");
}

#[test]
fn a_client_maps_what_the_machine_could_hold_and_gives_it_back() {
    const TIB: u64 = 1 << 40;
    let (_bell, lost) = lost();
    let room = room::of_a_client();
    let (_, file) = area(1, 16);
    let sparse = std::fs::File::from(
        // SAFETY: the name is a C literal; the descriptor is new and owned at once.
        unsafe { OwnedFd::from_raw_fd(libc::memfd_create(c"sparse".as_ptr(), libc::MFD_CLOEXEC)) },
    );
    sparse
        .set_len(32 * TIB)
        .expect("a sparse file has any size");
    let sparse = OwnedFd::from(sparse);
    let table = |size: u64| {
        let fields = [1_u64, 0, size, 0, 0];
        Table::parse(&fields.map(u64::to_le_bytes).concat()).expect("a table")
    };
    let map = |table: &Table, file: &OwnedFd| {
        Memory::new(
            table,
            &[file.try_clone().expect("an fd")],
            &lost,
            &room,
            false,
        )
    };
    let refused = map(&table(32 * TIB), &sparse)
        .err()
        .expect("no machine has that");
    assert_eq!(refused.errno.0, libc::ENOMEM);
    assert!(
        refused.to_string().contains("guest memory may have"),
        "{refused}"
    );
    let refused = map(&table(TIB), &file).err().expect("its file is shorter");
    assert!(refused.errno.0 == libc::EINVAL || refused.errno.0 == libc::ENOMEM);
    // On any machine two tables of the largest size and 64 GiB, here in tables of the least limit.
    let limit = 64_u64 << 30;
    let kept: Vec<_> = (0..1000)
        .map_while(|_| map(&table(limit), &sparse).ok())
        .collect();
    assert!((3..1000).contains(&kept.len()), "{}", kept.len());
    let full = map(&table(limit), &sparse).err().expect("it is full");
    assert!(full.to_string().contains("two memory tables"), "{full}");
    let count = kept.len();
    drop(kept);
    let again: Vec<_> = (0..count)
        .filter_map(|_| map(&table(limit), &sparse).ok())
        .collect();
    assert_eq!(again.len(), count);
}
