//! Exactly what is bound, each list sorted. Types that these refer to come along.

#[rustfmt::skip]
pub const FUNCTIONS: &[&str] = &[
    "opi_bdev_aio_create",
    "opi_bdev_aio_rescan",
    "opi_bdev_claimed_by",
    "opi_bdev_crypto_create",
    "opi_bdev_crypto_delete",
    "opi_bdev_delay_create",
    "opi_bdev_delay_delete",
    "opi_bdev_delay_set",
    "opi_bdev_device_errors",
    "opi_bdev_malloc_create",
    "opi_bdev_needs_dma",
    "opi_bdev_null_create",
    "opi_bdev_read_counters",
    "opi_bdev_read_errors",
    "opi_bdev_read_histogram",
    "opi_bdev_set_num_blocks",
    "opi_bdev_set_qos_limits",
    "opi_bdev_stand_in",
    "opi_bdev_unregister",
    "opi_keyring_add",
    "opi_keyring_remove",
    "opi_log_configure",
    "opi_log_sink",
    "opi_memory_largest_free",
    "opi_nvme_attach",
    "opi_nvme_configure",
    "opi_nvme_count",
    "opi_nvme_detach",
    "opi_nvme_for_each_controller",
    "opi_nvme_for_each_missing",
    "opi_nvme_for_each_namespace",
    "opi_nvme_for_each_path",
    "opi_nvme_end_attempt",
    "opi_nvme_end_attempts",
    "opi_nvme_give_up",
    "opi_nvme_path_stat",
    "opi_nvme_reset",
    "opi_nvmf_add_host",
    "opi_nvmf_add_listener",
    "opi_nvmf_add_ns",
    "opi_nvmf_describe_queue",
    "opi_nvmf_disconnect_hosts",
    "opi_nvmf_for_each_queue",
    "opi_nvmf_listen",
    "opi_nvmf_transport_create",
    "opi_reactor_read",
    "opi_sock_disable_ssl_tickets",
    "opi_thread_create",
    "spdk_app_fini",
    "spdk_app_opts_init",
    "spdk_app_start",
    "spdk_app_stop",
    "spdk_bdev_alias_add",
    "spdk_bdev_alias_del",
    "spdk_bdev_close",
    "spdk_bdev_desc_get_bdev",
    "spdk_bdev_first",
    "spdk_bdev_flush",
    "spdk_bdev_free_io",
    "spdk_bdev_get_block_size",
    "spdk_bdev_get_buf_align",
    "spdk_bdev_get_by_name",
    "spdk_bdev_get_device_stat",
    "spdk_bdev_get_io_channel",
    "spdk_bdev_get_md_size",
    "spdk_bdev_get_module_name",
    "spdk_bdev_get_name",
    "spdk_bdev_get_num_blocks",
    "spdk_bdev_get_physical_block_size",
    "spdk_bdev_get_product_name",
    "spdk_bdev_get_qos_rate_limits",
    "spdk_bdev_get_uuid",
    "spdk_bdev_io_type_supported",
    "spdk_bdev_next",
    "spdk_bdev_open_ext",
    "spdk_bdev_queue_io_wait",
    "spdk_bdev_readv",
    "spdk_bdev_reset",
    "spdk_bdev_unmap",
    "spdk_bdev_write_zeroes",
    "spdk_bdev_writev",
    "spdk_env_get_core_count",
    "spdk_bdev_nvme_set_multipath_policy",
    "spdk_env_get_first_core",
    "spdk_env_get_next_core",
    "spdk_get_thread",
    "spdk_get_ticks",
    "spdk_get_ticks_hz",
    "spdk_iobuf_get_opts",
    "spdk_iobuf_get_stats",
    "spdk_iobuf_set_opts",
    "spdk_log_open",
    "spdk_mem_register",
    "spdk_mem_unregister",
    "spdk_nvme_transport_available_by_name",
    "spdk_nvmf_get_first_tgt",
    "spdk_nvmf_host_get_nqn",
    "spdk_nvmf_ns_get_bdev",
    "spdk_nvmf_ns_get_id",
    "spdk_nvmf_ns_get_opts",
    "spdk_nvmf_subsystem_create",
    "spdk_nvmf_subsystem_destroy",
    "spdk_nvmf_subsystem_disconnect_host",
    "spdk_nvmf_subsystem_get_allow_any_host",
    "spdk_nvmf_subsystem_get_first",
    "spdk_nvmf_subsystem_get_first_host",
    "spdk_nvmf_subsystem_get_first_listener",
    "spdk_nvmf_subsystem_get_first_ns",
    "spdk_nvmf_subsystem_get_max_nsid",
    "spdk_nvmf_subsystem_get_mn",
    "spdk_nvmf_subsystem_get_next",
    "spdk_nvmf_subsystem_get_next_host",
    "spdk_nvmf_subsystem_get_next_listener",
    "spdk_nvmf_subsystem_get_next_ns",
    "spdk_nvmf_subsystem_get_nqn",
    "spdk_nvmf_subsystem_get_ns",
    "spdk_nvmf_subsystem_get_sn",
    "spdk_nvmf_subsystem_is_discovery",
    "spdk_nvmf_subsystem_listener_get_trid",
    "spdk_nvmf_subsystem_pause",
    "spdk_nvmf_subsystem_remove_host",
    "spdk_nvmf_subsystem_remove_listener",
    "spdk_nvmf_subsystem_remove_ns",
    "spdk_nvmf_subsystem_resume",
    "spdk_nvmf_subsystem_set_allow_any_host",
    "spdk_nvmf_subsystem_set_mn",
    "spdk_nvmf_subsystem_set_sn",
    "spdk_nvmf_subsystem_start",
    "spdk_nvmf_subsystem_stop",
    "spdk_nvmf_tgt_add_transport",
    "spdk_nvmf_tgt_find_subsystem",
    "spdk_nvmf_tgt_get_transport",
    "spdk_nvmf_tgt_stop_listen",
    "spdk_nvmf_transport_destroy",
    "spdk_nvmf_transport_stop_listen_async",
    "spdk_poller_register_named",
    "spdk_poller_unregister",
    "spdk_put_io_channel",
    "spdk_ring_count",
    "spdk_ring_create",
    "spdk_ring_dequeue",
    "spdk_ring_enqueue",
    "spdk_ring_free",
    "spdk_rpc_initialize",
    "spdk_thread_bind",
    "spdk_thread_exit",
    "spdk_thread_send_msg",
];

#[rustfmt::skip]
pub const TYPES: &[&str] = &[
    "opi_nvme_path_state",
    "opi_reactor_time",
    "spdk_bdev_io_stat",
    "spdk_bdev_io_type",
    "spdk_bdev_qos_rate_limit_type",
    "spdk_bdev_reset_stat_mode",
    "spdk_log_level",
    "spdk_nvme_transport_type",
    "spdk_nvmf_adrfam",
    "spdk_nvmf_subtype",
    "spdk_ring_type",
];

#[rustfmt::skip]
pub const CONSTANTS: &[&str] = &[
    "SPDK_ENV_NUMA_ID_ANY",
    "SPDK_NVMF_NQN_MAX_LEN",
    "SPDK_NVMF_TRADDR_MAX_LEN",
    "SPDK_NVMF_TRSVCID_MAX_LEN",
];

/// bindgen says nothing about names that it did not find.
pub fn check(bindings: &str) -> Result<(), String> {
    let found = |keyword: &str, name: &str| {
        bindings.match_indices(name).any(|(at, _)| {
            bindings[..at].ends_with(keyword)
                && !bindings[at + name.len()..]
                    .starts_with(|c: char| c.is_alphanumeric() || c == '_')
        })
    };
    let absent: Vec<&str> = FUNCTIONS
        .iter()
        .filter(|name| !found("fn ", name))
        .chain(
            TYPES
                .iter()
                .filter(|name| !found("struct ", name) && !found("type ", name)),
        )
        .chain(CONSTANTS.iter().filter(|name| !found("const ", name)))
        .copied()
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    Err(format!(
        "SPDK's headers do not declare {}",
        absent.join(", ")
    ))
}
