//! Lines of SPDK that only follow from an event, which is told once elsewhere: they are detail, at level debug.
//!
//! SPDK logs an error in each function through which an error passes: nine lines for one connection that is refused.

use std::ffi::c_int;

use spdk_sys as sys;

/// The level of detail: debug here.
const DETAIL: c_int = sys::spdk_log_level_SPDK_LOG_INFO;

/// What is detail of errors and warnings: functions by file.
///
/// Of the NVMe driver: why a controller could not be connected is in the answer of the call
/// (`bdev/nvme/refusal.rs`), and told when its path drops and comes back. Of listeners: why they cannot listen is in
/// the answer of the call too, and in the condition of an object that waits for it.
const ERRORS: &[(&str, &[&str])] = &[
    ("sock.c", &["sock_posix_fd_connect_poll"]),
    (
        "nvme.c",
        &["nvme_ctrlr_poll_internal", "nvme_dummy_attach_fail_cb"],
    ),
    (
        "nvme_ctrlr.c",
        &[
            "nvme_ctrlr_fail",
            "nvme_ctrlr_process_init",
            "spdk_nvme_ctrlr_reconnect_poll_async",
        ],
    ),
    ("nvme_fabric.c", &["nvme_fabric_qpair_connect_poll"]),
    (
        "nvme_tcp.c",
        &[
            "nvme_tcp_ctrlr_connect_qpair_poll",
            "nvme_tcp_ctrlr_disconnect_qpair",
            "nvme_tcp_qpair_process_completions",
            "nvme_tcp_sock_connect_cb_fn",
        ],
    ),
    ("bdev_nvme.c", &["bdev_nvme_reset_ctrlr_complete"]),
    ("posix.c", &["_posix_sock_listen"]),
    ("tcp.c", &["nvmf_tcp_listen"]),
    ("nvmf.c", &["spdk_nvmf_tgt_listen_ext"]),
];

/// What is detail of notices: each attempt to connect again, and each command that failed with it.
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

/// The level at which a line of this level is logged.
pub(super) fn level(level: c_int, file: &str, function: &str) -> c_int {
    let functions = match level {
        sys::spdk_log_level_SPDK_LOG_ERROR | sys::spdk_log_level_SPDK_LOG_WARN => ERRORS,
        sys::spdk_log_level_SPDK_LOG_NOTICE => NOTICES,
        _ => return level,
    };
    let name = file.rsplit('/').next().unwrap_or(file);
    let is_detail = functions
        .iter()
        .any(|(of, functions)| *of == name && functions.contains(&function));
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
