//! vfio-user as an attack surface: what a guest's driver, or whoever can open the socket, can send to a
//! device.
//!
//! After each test the program runs and answers calls, the verified I/O of a neighbour was not
//! interrupted, and the device accepts a new client.
//!
//! ```text
//! target ─┬─ device under attack   ◄─ attacks
//!         └─ neighbour's device    ◄─ a thread that writes, reads and compares
//! ```
//!
//! One target serves all tests, one after another.

mod api;
mod client;
#[path = "../common/mod.rs"]
mod common;
mod guest;
mod lab;
mod memory;
mod queues;
mod sgl;
mod stop;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use lab::Lab;
use libtest_mimic::{Arguments, Trial};

/// A test's name and function.
type Test = (&'static str, fn(&mut Lab));

/// Builds the tests from their functions; a test has the name of its function.
#[macro_export]
macro_rules! tests {
    ($module:ident: $($name:ident)*) => {
        [$((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn(&mut Lab))),*]
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // The tests share one target.
    arguments.test_threads = Some(1);
    let lab = Arc::new(Mutex::new(None));
    let trials = all().into_iter().map(|(name, test)| {
        let lab = Arc::clone(&lab);
        Trial::test(name, move || {
            let mut place = lab.lock().unwrap_or_else(PoisonError::into_inner);
            // A failing test drops the target: the next test starts a new one.
            let mut mine = place.take().unwrap_or_else(Lab::start);
            test(&mut mine);
            mine.check();
            *place = Some(mine);
            Ok(())
        })
    });
    let mut trials: Vec<_> = trials.collect();
    let ends = Arc::clone(&lab);
    trials.push(Trial::test(stop::NAME, move || {
        let mut place = ends.lock().unwrap_or_else(PoisonError::into_inner);
        // This test stops the target.
        stop::the_program_stops_while_clients_disconnect(place.take().unwrap_or_else(Lab::start));
        Ok(())
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    let last = lab.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(lab) = last {
        lab.stop();
    }
    conclusion.exit_code()
}

fn all() -> Vec<Test> {
    let mut all: Vec<Test> = Vec::new();
    all.extend(api::TESTS);
    all.extend(client::TESTS);
    all.extend(guest::TESTS);
    all.extend(memory::TESTS);
    all.extend(queues::TESTS);
    all.extend(sgl::TESTS);
    all
}
