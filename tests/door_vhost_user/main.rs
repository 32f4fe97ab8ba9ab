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
    BOTH memory::an_unmappable_memory_table_is_rejected,
    BOTH memory::an_invalid_memory_table_is_rejected,
    BOTH memory::a_table_larger_than_the_machine_could_hold_is_rejected,
    BOTH memory::a_file_shorter_than_declared_does_no_harm,
    BOTH memory::memory_truncated_while_in_use_ends_only_its_session,
    BOTH memory::a_second_memory_table_leaves_no_ring_in_the_old_one,
    BOTH rings::a_ring_enlarged_while_it_runs_stays_within_memory,
    BOTH rings::a_ring_kicked_twice_is_one_ring,
    BOTH rings::ring_parts_outside_memory_are_rejected,
    BOTH rings::reset_of_the_owner_stops_the_rings,
    BOTH rings::rings_without_their_parts_do_not_run,
    BOTH rings::an_indirect_table_of_invalid_length_is_rejected,
    BOTH rings::an_endless_chain_is_rejected,
    BOTH rings::indices_outside_the_ring_are_rejected,
    BLK requests::a_split_discard_at_the_end_of_memory_is_served_or_rejected,
    BLK requests::malformed_blk_requests_are_rejected,
    SCSI requests::a_reset_of_a_missing_unit_is_rejected,
    SCSI requests::malformed_scsi_requests_are_rejected,
    BOTH requests::a_length_changed_during_the_read_stays_within_memory,
    BOTH requests::large_requests_left_by_a_turn_are_served_without_a_kick,
    BOTH requests::random_chains_do_no_harm,
    BOTH logs::a_dirty_log_outside_its_file_is_rejected,
    BOTH logs::requests_mark_the_pages_that_they_wrote_and_no_others,
    BOTH logs::a_too_small_inflight_area_is_rejected,
    BOTH logs::hostile_counters_in_the_inflight_area_do_no_harm,
    BOTH logs::a_huge_inflight_area_is_rejected_at_once,
    BOTH messages::a_header_without_its_payload_delays_no_other_client,
    BOTH messages::unexpected_file_descriptors_are_closed,
    BOTH messages::a_blocking_call_eventfd_blocks_no_other_client,
    BLK messages::a_full_backend_channel_blocks_no_other_client,
    BOTH messages::a_thousand_connections_leave_other_devices_usable,
    BOTH messages::invalid_sizes_flags_and_numbers_are_rejected,
    BOTH messages::random_messages_do_no_harm,
    BOTH slow::memory_of_a_client_gone_under_slow_io_is_released_later,
    BOTH slow::a_ring_stopped_under_slow_io_delays_no_other_client,
    BOTH slow::a_new_memory_table_under_slow_io_is_safe,
    BLK lifecycle::a_device_is_deleted_while_its_client_reconnects,
    BLK lifecycle::machines_come_while_limits_are_lifted,
];

/// A test that stops the target.
type Stop = (&'static str, fn(Lab));

const STOPS: &[Stop] = &[
    (
        "stop::a_stop_does_not_wait_for_slow_io_or_disconnecting_clients",
        lifecycle::a_stop_does_not_wait_for_slow_io_or_disconnecting_clients,
    ),
    (
        "stop::a_stop_does_not_wait_for_io_of_a_deleted_device",
        lifecycle::a_stop_does_not_wait_for_io_of_a_deleted_device,
    ),
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
    // Each of these stops its target.
    for (name, stop) in STOPS {
        let slot = Arc::clone(&slot);
        trials.push(trial((*name).to_owned(), move || {
            stop(slot.lock().take().unwrap_or_else(Lab::start));
        }));
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
