/* The NVMe-oF target's calls whose options are structs of many fields. */

#include <spdk/stdinc.h>
#include <spdk/json.h>
#include <spdk/nvmf.h>
#include <spdk/nvmf_transport.h>
#include <spdk/sock.h>

#include "shim.h"

int
opi_nvmf_transport_create(const char *name, spdk_nvmf_transport_create_done_cb done, void *arg)
{
	struct spdk_nvmf_transport_opts opts;

	if (!spdk_nvmf_transport_opts_init(name, &opts, sizeof(opts))) {
		return -ENODEV;
	}
	/* What a vendor's command moves cannot be checked, nor what its answer holds. */
	opts.disable_command_passthru = true;
	return spdk_nvmf_transport_create_async(name, &opts, done, arg);
}

int
opi_sock_disable_ssl_tickets(void)
{
#ifdef OPI_SOCK_HAS_SSL_TICKETS
	struct spdk_sock_impl_opts opts;
	size_t size = sizeof(opts);

	if (spdk_sock_impl_get_opts("ssl", &opts, &size) != 0) {
		return -errno;
	}
	opts.num_ssl_tickets = 0;
	return spdk_sock_impl_set_opts("ssl", &opts, size) == 0 ? 0 : -errno;
#else
	return -ENOTSUP;
#endif
}

int
opi_nvmf_listen(struct spdk_nvmf_tgt *tgt, const struct spdk_nvme_transport_id *trid, bool secure)
{
	struct spdk_nvmf_listen_opts opts;

	spdk_nvmf_listen_opts_init(&opts, sizeof(opts));
	opts.secure_channel = secure;
	return spdk_nvmf_tgt_listen_ext(tgt, trid, &opts);
}

void
opi_nvmf_add_listener(struct spdk_nvmf_subsystem *subsystem,
		      const struct spdk_nvme_transport_id *trid, bool secure,
		      void (*done)(void *arg, int status), void *arg)
{
	struct spdk_nvmf_listener_opts opts;

	spdk_nvmf_subsystem_listener_opts_init(&opts, sizeof(opts));
	opts.secure_channel = secure;
	spdk_nvmf_subsystem_add_listener_ext(subsystem, trid, done, arg, &opts);
}

uint32_t
opi_nvmf_add_ns(struct spdk_nvmf_subsystem *subsystem, const char *bdev_name, uint32_t nsid,
		const uint8_t uuid[16], const uint8_t nguid[16], const uint8_t eui64[8])
{
	struct spdk_nvmf_ns_opts opts;

	spdk_nvmf_ns_opts_get_defaults(&opts, sizeof(opts));
	opts.nsid = nsid;
	memcpy(&opts.uuid, uuid, sizeof(opts.uuid));
	memcpy(opts.nguid, nguid, sizeof(opts.nguid));
	memcpy(opts.eui64, eui64, sizeof(opts.eui64));
	return spdk_nvmf_subsystem_add_ns_ext(subsystem, bdev_name, &opts, sizeof(opts), NULL);
}

int
opi_nvmf_add_host(struct spdk_nvmf_subsystem *subsystem, const char *hostnqn, const char *psk_name)
{
	/* The TCP transport takes its part of the options as parsed JSON: {"psk": name}. */
	static char key[] = "psk";
	struct spdk_json_val object[] = {
		{ .type = SPDK_JSON_VAL_OBJECT_BEGIN, .len = 2 },
		{ .type = SPDK_JSON_VAL_NAME, .start = key, .len = sizeof(key) - 1 },
		{ .type = SPDK_JSON_VAL_STRING, .start = (void *)psk_name },
		{ .type = SPDK_JSON_VAL_OBJECT_END },
	};

	if (psk_name == NULL) {
		return spdk_nvmf_subsystem_add_host(subsystem, hostnqn, NULL);
	}
	object[2].len = strlen(psk_name);
	return spdk_nvmf_subsystem_add_host(subsystem, hostnqn, object);
}
