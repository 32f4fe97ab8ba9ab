//! vhost-user as an attack surface: what a guest's driver, or whoever can open a device's socket, can
//! send.
//!
//! One target serves all attacks, one after another, each on virtio-blk and virtio-scsi where
//! applicable. During an attack, another client's verified I/O does not stall, and another device
//! accepts a new client. After it, the program runs and answers calls, the attacked device accepts a new
//! client, and file descriptors, hugepages and memory are released. A test is named `device::rule`.

#[path = "../common/mod.rs"]
mod common;
mod lab;
mod lifecycle;
mod logs;
mod memory;
mod messages;
mod requests;
mod rings;
mod slow;

use common::vhost_user;

use std::any::Any;
use std::process::ExitCode;
use std::sync::Arc;

use lab::Lab;
use libtest_mimic::{Arguments, Failed, Trial};
use parking_lot::Mutex;
use vhost_user::Kind;

/// What an attack keeps open until the invariants have been checked.
type Held = Box<dyn Any>;

/// One attack.
struct Attack {
    /// The rule in words: the function's name.
    name: &'static str,
    /// The kinds of devices that the attack applies to.
    kinds: &'static [Kind],
    run: fn(&mut Lab, Kind) -> Held,
}

const BOTH: &[Kind] = &Kind::ALL;
const BLK: &[Kind] = &[Kind::Blk];
const SCSI: &[Kind] = &[Kind::Scsi];

/// Builds attacks on these kinds of devices; an attack has the name of its function.
macro_rules! attacks {
    ($($kinds:ident $module:ident::$name:ident),* $(,)?) => {
        &[$(Attack {
            name: stringify!($name),
            kinds: $kinds,
            run: |lab, kind| Box::new($module::$name(lab, kind)),
        }),*]
    };
}

const ATTACKS: &[Attack] = attacks![
    BOTH memory::ordinary_pages_and_2_mib_pages_serve_a_disk,
    BOTH memory::regions_at_odd_addresses_serve_a_disk,
    BOTH memory::a_region_added_before_any_table_does_no_harm,
    BOTH memory::a_memory_table_that_cannot_be_mapped_is_refused,
    BOTH memory::a_memory_table_with_wrong_numbers_is_refused,
    BOTH memory::a_file_shorter_than_declared_does_no_harm,
    BOTH memory::memory_that_is_cut_while_in_use_ends_that_session_only,
    BOTH memory::a_second_memory_table_leaves_no_ring_in_the_old_one,
    BOTH rings::a_ring_enlarged_while_it_runs_stays_inside_memory,
    BOTH rings::a_ring_kicked_twice_is_one_ring,
    BOTH rings::ring_parts_outside_memory_are_refused,
    BOTH rings::reset_of_the_owner_stops_the_rings,
    BOTH rings::rings_without_their_parts_do_not_run,
    BOTH rings::an_indirect_table_of_a_wrong_length_is_refused,
    BOTH rings::a_chain_without_end_is_refused,
    BOTH rings::indices_outside_the_ring_are_refused,
    BLK requests::a_discard_in_pieces_at_the_end_of_memory_is_served_or_refused,
    BLK requests::blk_requests_of_wrong_shapes_are_refused,
    SCSI requests::a_reset_of_a_unit_that_is_not_there_is_refused,
    SCSI requests::scsi_requests_of_wrong_shapes_are_refused,
    BOTH requests::a_length_that_changes_under_the_device_stays_inside_memory,
    BOTH requests::random_chains_do_no_harm,
    BOTH logs::a_log_outside_its_file_is_refused,
    BOTH logs::an_inflight_area_that_is_too_small_is_refused,
    BOTH logs::hostile_counters_in_the_inflight_area_do_no_harm,
    BOTH logs::a_huge_inflight_area_is_refused_at_once,
    BOTH messages::a_header_without_its_payload_delays_nobody,
    BOTH messages::file_descriptors_that_nobody_asked_for_are_closed,
    BOTH messages::a_call_that_blocks_blocks_nobody,
    BLK messages::a_full_back_end_channel_blocks_nobody,
    BOTH messages::a_thousand_connections_leave_room_at_other_devices,
    BOTH messages::sizes_flags_and_numbers_that_are_wrong_are_refused,
    BOTH messages::random_messages_do_no_harm,
    BOTH slow::a_client_that_leaves_under_slow_io_takes_its_memory_along_later,
    BOTH slow::a_ring_stopped_under_slow_io_delays_nobody,
    BOTH slow::a_new_memory_table_under_slow_io_is_safe,
    BLK lifecycle::a_device_is_deleted_while_its_client_reconnects,
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    lab::raise_limits();
    let slot = Arc::new(Mutex::new(None));
    let mut trials = Vec::new();
    for attack in ATTACKS {
        for kind in attack.kinds {
            let slot = Arc::clone(&slot);
            let name = format!("{kind:?}::{}", attack.name).to_lowercase();
            trials.push(trial(name, move || {
                // A failing attack drops the lab: the next one starts a new one.
                let mut lab = slot.lock().take().unwrap_or_else(Lab::start);
                lab.attacked_by(*kind, attack.run);
                *slot.lock() = Some(lab);
            }));
        }
    }
    {
        let slot = Arc::clone(&slot);
        trials.push(trial(
            "stop::a_stop_does_not_wait_for_slow_io_or_leaving_clients".into(),
            move || {
                let lab = slot.lock().take().unwrap_or_else(Lab::start);
                lifecycle::a_stop_does_not_wait_for_slow_io_or_leaving_clients(lab);
            },
        ));
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(lab) = slot.lock().take() {
        lab.stop();
    }
    conclusion.exit_code()
}

fn trial(name: String, run: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        run();
        Ok::<(), Failed>(())
    })
}
