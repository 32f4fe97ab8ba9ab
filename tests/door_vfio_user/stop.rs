//! SIGTERM in the middle of it.

use std::time::Duration;

use rustix::process::Signal;

use crate::common::vfio_user::{Command, DATA, Guest, Link, PAGE, Which, io};
use crate::lab::Lab;

/// Its name.
pub const NAME: &str = "stop::the_program_stops_while_clients_leave";

/// With clients that leave, that stay, and that have said nothing, all at once.
pub fn the_program_stops_while_clients_leave(lab: Lab) {
    let sockets: Vec<_> = (0..6)
        .map(|n| lab.device(&format!("leaves-{n}"), 10 + n))
        .collect();
    let mut guests: Vec<_> = sockets.iter().map(|socket| Guest::start(socket)).collect();
    for guest in &mut guests {
        for block in 0..24 {
            let data = DATA + block * PAGE;
            guest.push(
                Which::Io,
                Command::rw(io::WRITE, block * 8, 8).prps(data, 0),
            );
        }
        guest.ring(Which::Io).expect("it is answered");
    }
    // Some leave, some stay, one has said nothing yet.
    let silent = Link::open(&lab.socket).expect("the device listens");
    let stay = guests.split_off(3);
    drop(guests);
    let mut target = lab.into_target();
    target.signal(Signal::TERM);
    let status = target.wait(Duration::from_secs(5));
    assert!(
        status.success(),
        "it ended with {status}:\n{}",
        target.log()
    );
    drop((silent, stay));
}
