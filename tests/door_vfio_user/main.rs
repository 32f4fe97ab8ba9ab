//! The door vfio-user: what the guest's driver, or whoever may open the socket, can send to a device, and
//! what must not come of it. After each test the program is alive and answers calls, another machine's
//! verified I/O went on, and the device takes a client again.
//!
//! ```text
//! target ─┬─ device of the test   ◄─ attacks
//!         └─ device of a neighbour ◄─ a thread that writes, reads and compares
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

/// A test and its name.
type Test = (&'static str, fn(&mut Lab));

/// Names tests by their functions.
#[macro_export]
macro_rules! tests {
    ($module:ident: $($name:ident)*) => {
        [$((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn(&mut Lab))),*]
    };
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // They share one target.
    arguments.test_threads = Some(1);
    let lab = Arc::new(Mutex::new(None));
    let trials = all().into_iter().map(|(name, test)| {
        let lab = Arc::clone(&lab);
        Trial::test(name, move || {
            let mut place = lab.lock().unwrap_or_else(PoisonError::into_inner);
            // A test that fails takes the target with it.
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
        // The target ends in it.
        stop::the_program_stops_while_clients_leave(place.take().unwrap_or_else(Lab::start));
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
