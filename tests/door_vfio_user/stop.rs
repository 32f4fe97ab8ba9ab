//! SIGTERM under load.

use std::time::Duration;

use rustix::process::Signal;

use crate::common::vfio_user::{Command, DATA, Guest, Link, PAGE, Which, io};
use crate::lab::Lab;

/// The test's name.
pub const NAME: &str = "stop::the_program_stops_while_clients_disconnect";

/// Clients disconnect, stay connected and have sent nothing yet, all at once.
pub fn the_program_stops_while_clients_disconnect(lab: Lab) {
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
        guest.ring(Which::Io).expect("the device replies");
    }
    // Half of the guests disconnect, the others stay, and one client has sent nothing yet.
    let silent = Link::open(&lab.socket).expect("the device listens");
    let stay = guests.split_off(3);
    drop(guests);
    let mut target = lab.into_target();
    target.signal(Signal::TERM);
    let status = target.wait(Duration::from_secs(5));
    assert!(
        status.success(),
        "the target ended with {status}:\n{}",
        target.log()
    );
    drop((silent, stay));
}
