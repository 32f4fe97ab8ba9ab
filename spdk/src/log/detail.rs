//! SPDK's log lines that only follow from an event reported once elsewhere. They are details, at level debug.
//!
//! SPDK logs an error in every function that an error passes through: nine lines for one refused connection.

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

use spdk_sys as sys;

/// The level of details: debug in `tracing`.
const DETAIL: c_int = sys::spdk_log_level_SPDK_LOG_INFO;

/// Whether SPDK's JSON-RPC is served. The cause of a failed command is then reported in SPDK's log only.
static SERVES_COMMANDS: AtomicBool = AtomicBool::new(false);

/// Keeps lines that name a cause as errors, since SPDK's own commands report the cause nowhere else.
pub(super) fn keep_causes() {
    SERVES_COMMANDS.store(true, Ordering::Relaxed);
}

/// Lines that name a cause, as functions by file: errors and warnings that are details unless SPDK's JSON-RPC is
/// served.
///
/// NVMe driver: why a connection attempt failed is returned by the call (`bdev/nvme/refusal.rs`), and reported when
/// a path is lost. Listeners: why they cannot listen is returned by the call too, and is in the condition of an
/// object that waits for the listener.
const CAUSES: &[(&str, &[&str])] = &[
    ("nvme_ctrlr.c", &["nvme_ctrlr_process_init"]),
    ("nvme_fabric.c", &["nvme_fabric_qpair_connect_poll"]),
    ("nvme_tcp.c", &["nvme_tcp_sock_connect_cb_fn"]),
    ("posix.c", &["_posix_sock_listen"]),
];

/// Lines that only propagate a failure already logged: always details.
const CONSEQUENCES: &[(&str, &[&str])] = &[
    ("sock.c", &["sock_posix_fd_connect_poll"]),
    (
        "nvme.c",
        &["nvme_ctrlr_poll_internal", "nvme_dummy_attach_fail_cb"],
    ),
    (
        "nvme_ctrlr.c",
        &["nvme_ctrlr_fail", "spdk_nvme_ctrlr_reconnect_poll_async"],
    ),
    (
        "nvme_tcp.c",
        &[
            "nvme_tcp_ctrlr_connect_qpair_poll",
            "nvme_tcp_ctrlr_disconnect_qpair",
            "nvme_tcp_qpair_process_completions",
        ],
    ),
    ("bdev.c", &["bdev_register"]),
    (
        "bdev_nvme.c",
        &["bdev_nvme_reset_ctrlr_complete", "nvme_bdev_create"],
    ),
    ("tcp.c", &["nvmf_tcp_listen"]),
    ("nvmf.c", &["spdk_nvmf_tgt_listen_ext"]),
];

/// Notices that are details: each reconnect attempt, and each command that failed with its connection.
const NOTICES: &[(&str, &[&str])] = &[
    ("nvme_ctrlr.c", &["nvme_ctrlr_disconnect"]),
    (
        "nvme_qpair.c",
        &[
            "spdk_nvme_qpair_print_command",
            "spdk_nvme_qpair_print_completion",
        ],
    ),
];

/// Returns the level at which a line is logged.
pub(super) fn level(level: c_int, file: &str, function: &str) -> c_int {
    let name = file.rsplit('/').next().unwrap_or(file);
    let among = |functions: &[(&str, &[&str])]| {
        let mut of_file = functions.iter().filter(|(of, _)| *of == name);
        of_file.any(|(_, functions)| functions.contains(&function))
    };
    let is_detail = match level {
        sys::spdk_log_level_SPDK_LOG_ERROR | sys::spdk_log_level_SPDK_LOG_WARN => {
            among(CONSEQUENCES) || (among(CAUSES) && !SERVES_COMMANDS.load(Ordering::Relaxed))
        }
        sys::spdk_log_level_SPDK_LOG_NOTICE => among(NOTICES),
        _ => false,
    };
    if is_detail { DETAIL } else { level }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ERROR: c_int = sys::spdk_log_level_SPDK_LOG_ERROR;
    const NOTICE: c_int = sys::spdk_log_level_SPDK_LOG_NOTICE;

    #[test]
    fn errors_that_follow_are_detail_and_others_keep_their_level() {
        for (of, file, function, becomes) in [
            (ERROR, "nvme.c", "nvme_ctrlr_poll_internal", DETAIL),
            (ERROR, "lib/nvme/nvme.c", "nvme_ctrlr_poll_internal", DETAIL),
            (ERROR, "nvme.c", "spdk_nvme_probe", ERROR),
            (ERROR, "tcp.c", "nvme_ctrlr_poll_internal", ERROR),
            (NOTICE, "nvme_ctrlr.c", "nvme_ctrlr_disconnect", DETAIL),
            (
                NOTICE,
                "bdev_nvme.c",
                "bdev_nvme_reset_ctrlr_complete",
                NOTICE,
            ),
        ] {
            assert_eq!(level(of, file, function), becomes, "{file} {function}");
        }
    }
}
